"""What an edit will need, before it starts."""

from pathlib import Path

import pytest

from retouch.compute import Compute
from retouch.errors import ModelNotFound, OutOfBudget, ParamsError
from retouch.methods.videoshop.plan import plan
from retouch.methods.videoshop.spec import VideoshopParams
from retouch.models.estimate import Estimate

PIPELINE = str(Path(__file__).resolve().parents[3] / "parity" / "data" / "videoshop" / "pipeline")
WEIGHTS = 2.1e6 * 4  # 1.31, 0.76 and 0.03 million numbers
CPU = Compute(device="cpu")


def planned(frames: int = 5, height: int = 64, width: int = 64, **more: object) -> Estimate:
    return plan(
        frames,
        height,
        width,
        VideoshopParams(first=Path("first.png"), model=PIPELINE, overlap=1, **more),
        CPU,
    )


def test_memory_holds_the_weights_and_does_not_grow_with_length() -> None:
    assert WEIGHTS < planned().memory < 10 * WEIGHTS
    assert planned(500).memory == planned().memory
    assert planned(2).memory < planned().memory
    assert planned(height=640, width=640, short_side=640).memory > 5 * planned().memory
    assert planned(decode_at_once=1, window=20, frames=20).memory < planned(window=20, frames=20).memory


def test_calls_are_counted_as_they_are_made() -> None:
    notes = planned(9, steps=5, strength=0.8).notes
    assert "2 windows of up to 5 frames" in notes[0]
    assert notes[1].startswith("28 network calls find the noise, which is kept, and 8 carry")


def test_what_cannot_be_is_said_before_anything_is_loaded() -> None:
    with pytest.raises(OutOfBudget):
        planned().require(Compute(device="cpu", memory="1MB"))
    with pytest.raises(ParamsError, match="leave no step"):
        planned(steps=2, strength=0.1)
    with pytest.raises(ModelNotFound):
        plan(5, 64, 64, VideoshopParams(first=Path("first.png"), model="./nowhere"), CPU)
