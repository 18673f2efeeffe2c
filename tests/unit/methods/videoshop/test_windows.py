"""What an edit will need before it starts, and the windows that it takes."""

from pathlib import Path

import numpy as np
import pytest

from retouch.compute import Compute
from retouch.errors import ModelNotFound, OutOfBudget, ParamsError
from retouch.methods.videoshop.spec import VideoshopParams
from retouch.methods.videoshop.windows import estimate, windows_of, write_window
from retouch.models.estimate import Estimate
from retouch.models.image_to_video import VideoTraits

PIPELINE = str(Path(__file__).resolve().parents[3] / "parity" / "data" / "videoshop" / "pipeline")
SVD = VideoTraits(1, 64, 8, 4, 14, 576 * 1024)
WAN = VideoTraits(4, 16, 8, 16, 81, 480 * 832)
WEIGHTS = 2.1e6 * 4  # 1.31, 0.76 and 0.03 million numbers
CPU = Compute(device="cpu")


def estimated(frames: int = 5, height: int = 64, width: int = 64, **more: object) -> Estimate:
    return estimate(
        frames,
        height,
        width,
        VideoshopParams(first=Path("first.png"), model=PIPELINE, overlap=1, **more),
        CPU,
    )


def test_memory_holds_the_weights_and_does_not_grow_with_length() -> None:
    assert WEIGHTS < estimated().memory < 10 * WEIGHTS
    assert estimated(500).memory == estimated().memory
    assert estimated(2).memory < estimated().memory
    assert estimated(height=640, width=640, short_side=640).memory > 5 * estimated().memory
    assert (
        estimated(decode_chunk_size=1, window=20, frames=20).memory < estimated(window=20, frames=20).memory
    )


def test_calls_are_counted_as_they_are_made() -> None:
    notes = estimated(9, steps=5, strength=0.8).notes
    assert "2 windows of up to 5 frames" in notes[0]
    assert notes[1].startswith("28 network calls find the noise, which is kept, and 8 carry")


def test_what_cannot_be_is_said_before_anything_is_loaded() -> None:
    with pytest.raises(OutOfBudget):
        estimated().require(Compute(device="cpu", memory="1MB"))
    with pytest.raises(ParamsError, match="leave no step"):
        estimated(steps=2, strength=0.1)
    with pytest.raises(ModelNotFound):
        estimate(5, 64, 64, VideoshopParams(first=Path("first.png"), model="./nowhere"), CPU)


def test_a_window_begins_at_every_key_frame_of_the_models_own_length() -> None:
    asked = VideoshopParams(first=Path("a.png"), keyframe=("20=b.png", "99=c.png"))
    windows = windows_of(40, SVD, asked)
    assert [window.frames.start for window in windows if window.known == 0] == [0, 20]
    assert max(len(window.frames) for window in windows) <= 14
    assert {window.known for window in windows} == {0, 3}


def test_a_model_with_several_frames_a_latent_shares_one() -> None:
    windows = windows_of(200, WAN, VideoshopParams(first=Path("a.png"), window=50))
    assert {window.known for window in windows} == {0, 1}
    assert max(len(window.frames) for window in windows) <= 49
    assert (WAN.padded_length(50), SVD.padded_length(50)) == (53, 50)


def test_shared_frames_fade_over_from_the_window_before() -> None:
    first, second = windows_of(8, SVD, VideoshopParams(first=Path("a.png"), window=5, overlap=2))
    result = np.zeros((8, 3, 1, 1), np.uint8)
    write_window(np.full((len(first.frames), 3, 1, 1), 30, np.uint8), first, result)
    write_window(np.full((len(second.frames), 3, 1, 1), 90, np.uint8), second, result)
    assert result[:, 0, 0, 0].tolist() == [30, 30, 30, 50, 70, 90, 90, 90]
