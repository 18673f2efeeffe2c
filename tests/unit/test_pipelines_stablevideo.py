"""StableVideo as a diffusers pipeline: loaded, called and answered like one."""

from typing import Any

import numpy as np
import pytest
from diffusers import ControlNetModel
from PIL import Image
from torch import Tensor

from retouch.errors import ParamsError
from retouch.models.refs import resolve
from retouch.pipelines import StableVideoPipeline
from retouch.testing import bouncing

TARGET = "a blue ball on sand"


@pytest.fixture(scope="module")
def pipe() -> StableVideoPipeline:
    edges = ControlNetModel.from_pretrained(resolve("tiny:sd-canny"))
    pipe: StableVideoPipeline = StableVideoPipeline.from_pretrained(resolve("tiny:sd"), controlnet=edges)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_masked_object_is_edited_and_the_callback_sees_every_step(pipe: StableVideoPipeline) -> None:
    clip, seen = bouncing(2), []
    frames = [Image.fromarray(frame.transpose(1, 2, 0)) for frame in np.asarray(clip.video.frames)]
    masks = np.repeat(clip.mask, 3, axis=1).transpose(0, 2, 3, 1)

    def watch(_pipe: object, step: int, _t: float, values: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append((step, tuple(values["latents"].shape[:2])))
        return {}

    more: dict[str, Any] = {"num_inference_steps": 2, "strength": 1.0, "options": {"first_strength": 1.0}}
    made = pipe(frames, masks, TARGET, callback_on_step_end=watch, output_type="np", **more).frames[0]
    source = np.asarray(clip.video.frames).transpose(0, 2, 3, 1) / 255
    far = np.ones((64, 64), bool)
    far[:48, :40] = False
    assert seen == [(0, (1, 1)), (1, (1, 1))]
    assert not np.allclose(made, source, atol=1 / 255)
    assert np.allclose(made[:, far], source[:, far], atol=1e-6)
    with pytest.raises(ParamsError, match="does not know the word 'jeep'"):
        pipe(frames, masks, "a blue jeep on sand")
