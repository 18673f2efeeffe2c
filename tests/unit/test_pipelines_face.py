"""The face method called like a pipeline."""

import numpy as np
import pytest
import torch
from PIL import Image

from retouch.errors import ParamsError
from retouch.pipelines import FacePipeline
from retouch.world import FaceClip, Portrait


@pytest.fixture(scope="module")
def pipe() -> FacePipeline:
    return FacePipeline.from_pretrained("tiny:face", device="cpu")


@pytest.fixture(scope="module")
def frames() -> list[Image.Image]:
    clip = FaceClip.of(Portrait.sample(5), 2, 96).video
    return [Image.fromarray(frame.transpose(1, 2, 0)) for frame in np.asarray(clip.frames)]


def test_a_face_gets_a_beard_and_strength_0_gives_the_clip_back(
    pipe: FacePipeline, frames: list[Image.Image]
) -> None:
    source = np.stack([np.asarray(frame) for frame in frames]) / np.float32(255)
    made = pipe(frames, attributes={"beard": 1.0}, num_inference_steps=3, output_type="np").frames[0]
    assert (np.abs(made - source).max(-1) > 0.1).mean() > 0.01
    same = pipe(frames, attributes={"beard": 0.0}, num_inference_steps=3, output_type="pt").frames[0]
    assert torch.allclose(same.movedim(1, 3), torch.from_numpy(source), atol=1e-6)


def test_what_the_model_does_not_know_is_refused_before_any_step(
    pipe: FacePipeline, frames: list[Image.Image]
) -> None:
    with pytest.raises(ParamsError, match="knows no attribute 'berd'"):
        pipe(frames, attributes={"berd": 1.0})
    with pytest.raises(ParamsError, match="does not know the word 'moustache'"):
        pipe(frames, prompt="a face with a moustache")
    with pytest.raises(ParamsError, match="nothing is to be changed"):
        pipe(frames)
