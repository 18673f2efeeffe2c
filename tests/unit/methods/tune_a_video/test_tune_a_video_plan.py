"""What tuning and an edit will need, before they start."""

from retouch.compute import Compute
from retouch.methods.tune_a_video.plan import plan
from retouch.methods.tune_a_video.spec import SPEC, TuneAVideoParams
from retouch.models.estimate import Estimate


def planned(frames: int = 8, **more: object) -> Estimate:
    params = SPEC.fill({"source_prompt": "a ball", "prompt": "a star", "steps": 5, **more})
    assert isinstance(params, TuneAVideoParams)
    return plan(frames, 64, 64, params, Compute(device="cpu"))


def test_memory_grows_with_the_clip_as_it_passes_whole() -> None:
    assert planned(8).memory < planned(16).memory < planned(100).memory


def test_tuning_takes_memory_by_the_frames_that_it_sees_and_none_where_weights_are_read() -> None:
    assert planned(24).memory > planned(24, tune_steps=0).memory
    assert planned(24, tune_frames=4).memory < planned(24).memory
    assert planned(24, tuned="weights").memory == planned(24, tune_steps=0).memory
    assert planned(tune_steps=30).notes[1].startswith("30 steps of tuning, kept, and 15 network calls")
