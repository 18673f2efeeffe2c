"""What tuning and an edit will need, before they start."""

from retouch.compute import Compute
from retouch.methods.tune_a_video.edit import estimate
from retouch.methods.tune_a_video.spec import SPEC, TuneAVideoParams
from retouch.models.estimate import Estimate


def estimated(frames: int = 8, **more: object) -> Estimate:
    params = SPEC.fill({"source_prompt": "a ball", "prompt": "a star", "steps": 5, **more})
    assert isinstance(params, TuneAVideoParams)
    return estimate(frames, 64, 64, params, Compute(device="cpu"))


def test_memory_grows_with_the_clip_as_it_passes_whole() -> None:
    assert estimated(8).memory < estimated(16).memory < estimated(100).memory


def test_tuning_takes_memory_by_the_frames_that_it_sees_and_none_where_weights_are_read() -> None:
    assert estimated(24).memory > estimated(24, tune_steps=0).memory
    assert estimated(24, tune_frames=4).memory < estimated(24).memory
    assert estimated(24, tuned="weights").memory == estimated(24, tune_steps=0).memory
    notes = estimated(tune_steps=30).notes
    assert notes[1].startswith("10 network calls find the noise")
    assert notes[1].endswith("and 10 carry the edit")
    assert notes[2] == "30 steps of tuning, kept too"
