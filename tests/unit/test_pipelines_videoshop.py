"""Videoshop as a diffusers pipeline: loaded, called and answered like one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from retouch.errors import ParamsError
from retouch.pipelines import Frames, VideoshopPipeline

MODEL = Path(__file__).resolve().parents[1] / "parity" / "data" / "videoshop" / "pipeline"
BYTE = 0.5 / 255  # numbers were bytes


@pytest.fixture(scope="module")
def pipe() -> VideoshopPipeline:
    pipe: VideoshopPipeline = VideoshopPipeline.from_pretrained(MODEL, feature_extractor=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def frames() -> np.ndarray:
    smooth = np.linspace(0, 200, 32 * 48 * 3).reshape(32, 48, 3)
    return np.stack([np.roll(smooth, t, axis=1) for t in range(3)]).astype(np.uint8)


def edited() -> Image.Image:
    picture = frames()[0].copy()
    picture[8:20, 8:20] = (240, 20, 60)
    return Image.fromarray(picture)


def call(pipe: VideoshopPipeline, video: Frames, **more: Any) -> object:
    # All that this clip shows can be followed, so that nothing would be left to the model.
    options = {"short_side": 16, "check_inversion": False, "hold": "nothing"}
    return pipe(
        video=video, image=edited(), num_inference_steps=3, strength=0.8, options=options, **more
    ).frames


def test_frames_go_in_and_come_out_in_every_kind(pipe: VideoshopPipeline) -> None:
    pictures = call(pipe, [Image.fromarray(frame) for frame in frames()])
    assert isinstance(pictures, list)
    shown = np.stack([np.asarray(picture) for picture in pictures[0]])
    numbers = call(pipe, frames(), output_type="np")
    tensor = call(pipe, torch.from_numpy(frames()).movedim(-1, 1).float() / 255, output_type="pt")
    assert isinstance(numbers, np.ndarray)
    assert isinstance(tensor, Tensor)
    np.testing.assert_allclose(numbers[0], shown / 255, atol=BYTE)
    np.testing.assert_allclose(tensor[0].movedim(1, -1).numpy(), shown / 255, atol=BYTE)
    assert (shown[2] != frames()[2]).any()


def test_a_callback_sees_every_step_down_and_can_change_it(pipe: VideoshopPipeline) -> None:
    seen: list[tuple[int, float]] = []

    def watch(_pipe: object, step: int, time: float, given: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append((step, time))
        return {"latents": given["latents"] * 1.5}

    changed = call(pipe, frames(), output_type="np", callback_on_step_end=watch)
    assert [step for step, _ in seen] == [0, 1]
    assert seen[0][1] > seen[1][1]
    assert isinstance(changed, np.ndarray)
    assert np.abs(changed - call(pipe, frames(), output_type="np")).max() > BYTE


def test_wrong_values_are_said_as_everywhere(pipe: VideoshopPipeline) -> None:
    with pytest.raises(ParamsError):
        pipe(video=frames(), image=edited(), num_inference_steps=0)
