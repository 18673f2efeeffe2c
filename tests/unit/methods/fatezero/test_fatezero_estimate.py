"""What an edit will need, before it starts."""

import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from retouch.compute import Compute
from retouch.errors import ModelNotFound, OutOfBudget
from retouch.methods.fatezero.edit import edit_with, estimate
from retouch.methods.fatezero.spec import SPEC, FateZeroParams
from retouch.models.estimate import Estimate
from retouch.models.image import StableDiffusion
from retouch.models.image_shapes import ImageShapes
from retouch.run import Run
from retouch.video import Video

CPU = Compute(device="cpu")
SMALL = {"source_prompt": "a red ball on grass", "prompt": "a blue ball on grass", "size": "clip"}


def filled(preset: str, **more: object) -> FateZeroParams:
    params = SPEC.fill({**SMALL, **more}, preset=preset)
    assert isinstance(params, FateZeroParams)
    return params


def estimated(frames: int = 8, height: int = 64, width: int = 64, **more: object) -> Estimate:
    return estimate(frames, height, width, filled("attribute", **more), CPU)


def test_sizes_are_those_of_the_loaded_model() -> None:
    sizes = ImageShapes.read("tiny:sd")
    sd = StableDiffusion.from_pretrained("tiny:sd", CPU)
    assert sizes is not None
    parts = (sd.unet, sd.vae, sd.text_encoder)
    assert sizes.numbers == sum(tensor.numel() for part in parts for tensor in part.state_dict().values())
    assert (sizes.factor, sizes.multiple, sizes.native) == (sd.factor, sd.multiple, sd.native)
    assert sizes.working_size(90, 160) == sd.working_size(90, 160)


def test_memory_holds_the_weights_and_does_not_grow_with_length() -> None:
    sizes = ImageShapes.read("tiny:sd")
    assert sizes is not None
    assert estimated(2).memory > 4 * sizes.numbers
    assert estimated(2).memory < estimated(16).memory
    assert estimated(500).memory == estimated(64).memory
    assert estimated(64, window=8).memory < estimated(64).memory
    assert estimated(height=256, width=256).memory > 3 * estimated().memory
    half = estimate(8, 64, 64, filled("attribute"), Compute(device="cpu", dtype="float16"))
    assert half.memory == estimated().memory // 2


@pytest.mark.parametrize(
    ("preset", "more"),
    [
        ("attribute", {}),
        ("style", {"self_from": 0.5}),
        ("shape", {"guidance": 1.0, "window": 2, "overlap": 1}),
    ],
)
def test_calls_are_counted_as_they_are_made(tmp_path: Path, preset: str, more: dict[str, object]) -> None:
    params = filled(preset, steps=4, fixed_point=2, **more)
    sd = StableDiffusion.from_pretrained("tiny:sd", CPU)
    frames = np.random.default_rng(0).integers(0, 255, (3, 3, 32, 32), dtype=np.uint8)
    calls = list[int]()
    counting = sd.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        edit_with(sd, Video(frames, Fraction(8)), params, Run.alone(tmp_path, compute=CPU))
    finally:
        counting.remove()
    notes = estimate(3, 32, 32, params, CPU).notes
    found, carried = map(int, re.findall(r"(\d+) (?:network calls|carry)", notes[1]))
    assert found + carried == len(calls)


def test_what_cannot_be_is_said_before_anything_is_loaded() -> None:
    with pytest.raises(OutOfBudget):
        estimated().require(Compute(device="cpu", memory="1MB"))
    with pytest.raises(ModelNotFound):
        estimated(model="./nowhere")
    assert "3 steps of tuning" in estimated(tune_steps=3).notes[-1]
