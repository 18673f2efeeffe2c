"""FateZero as a diffusers pipeline: loaded, called and answered like one."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from retouch.errors import ParamsError
from retouch.models.refs import resolve
from retouch.pipelines import FateZeroPipeline

SOURCE, TARGET = "a red ball on grass", "a blue ball on grass"
OPTIONS = {"size": "clip", "fixed_point": 1}


@pytest.fixture(scope="module")
def pipe() -> FateZeroPipeline:
    pipe: FateZeroPipeline = FateZeroPipeline.from_pretrained(resolve("tiny:sd"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def frames() -> np.ndarray:
    smooth = np.linspace(0, 200, 32 * 64 * 3).reshape(32, 64, 3)
    return np.stack([np.roll(smooth, t, axis=1) for t in range(2)]).astype(np.uint8)


def call(pipe: FateZeroPipeline, video: Any, **more: Any) -> Any:
    options = {**OPTIONS, **more.pop("options", {})}
    return pipe(video, TARGET, source_prompt=SOURCE, num_inference_steps=2, options=options, **more).frames


def test_frames_go_in_and_come_out_in_every_kind(pipe: FateZeroPipeline) -> None:
    pictures = call(pipe, [Image.fromarray(frame) for frame in frames()])
    shown = np.stack([np.asarray(picture) for picture in pictures[0]])
    numbers = call(pipe, frames(), output_type="np")
    tensor = call(pipe, torch.from_numpy(frames()).movedim(-1, 1).float() / 255, output_type="pt")
    assert numbers.shape == (1, 2, 32, 64, 3)
    assert np.array_equal(shown, np.rint(numbers[0] * 255))
    assert torch.equal(tensor, torch.from_numpy(numbers).movedim(-1, 2))


def test_a_word_that_the_model_was_not_taught_is_refused_unless_it_is_meant(pipe: FateZeroPipeline) -> None:
    words: dict[str, Any] = {"source_prompt": SOURCE, "num_inference_steps": 1, "options": OPTIONS}
    with pytest.raises(ParamsError, match="does not know the word 'jeep'"):
        pipe(frames(), "a blue jeep on grass", **words)
    assert len(pipe(frames(), "a blue jeep on grass", anyway=True, **words).frames[0]) == 2


def test_the_callback_sees_every_step_and_may_replace_the_latents(pipe: FateZeroPipeline) -> None:
    plain, seen = call(pipe, frames(), output_type="np"), []

    def zero(caller: object, step: int, t: float, values: dict[str, Tensor]) -> dict[str, Tensor]:
        assert caller is pipe
        seen.append((step, t, tuple(values["latents"].shape)))
        return {"latents": torch.zeros_like(values["latents"])}

    changed = call(pipe, frames(), output_type="np", callback_on_step_end=zero)
    assert [step for step, _, _ in seen] == [0, 1]
    assert seen[0][1] > seen[1][1]
    assert seen[0][2] == (1, 2, 4, 8, 16)
    assert not np.array_equal(changed, plain)
    assert np.array_equal(changed[0, 0], changed[0, 1])


def test_presets_and_options_reach_the_method(pipe: FateZeroPipeline) -> None:
    with pytest.raises(ParamsError, match="no preset 'styl'"):
        call(pipe, frames(), preset="styl")
    with pytest.raises(ParamsError, match="no parameter 'blnd'"):
        call(pipe, frames(), options={"blnd": True})
    with pytest.raises(ParamsError, match="above 1"):
        call(pipe, frames(), preset="paper", guidance_scale=1.0)
