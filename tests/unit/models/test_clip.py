import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from retouch.compute import Compute
from retouch.errors import InputError, ModelMismatch
from retouch.models.clip import TextImage, fit_square, normalise_colours

ROUNDING = 1.01 / 255 / 0.26
"""Torch and Pillow both round resized bytes; on a tie they part by one level, here over the deviation."""
SINGLE_PRECISION = 1e-5
CPU = Compute(device="cpu")


def noisy_frames(height: int, width: int, count: int = 2) -> np.ndarray:
    rng = np.random.default_rng(3)
    smooth = np.linspace(0, 255, width)[None, None, None] * np.ones((count, 3, height, 1))
    return (0.5 * smooth + rng.integers(0, 128, (count, 3, height, width))).astype(np.uint8)


@pytest.mark.parametrize("size", [(32, 32), (48, 48), (70, 45), (45, 71), (20, 26)])
def test_preparation_equals_that_of_transformers(size: tuple[int, int]) -> None:
    frames = noisy_frames(*size)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    theirs = processor([Image.fromarray(f.transpose(1, 2, 0)) for f in frames], return_tensors="np")
    ours = normalise_colours(fit_square(torch.from_numpy(frames), 32).float() / 255).numpy()
    assert np.abs(ours - theirs.pixel_values).max() < ROUNDING


def test_vectors_equal_those_of_transformers(small_clip: Path) -> None:
    frames = noisy_frames(32, 32)
    ours = TextImage.from_pretrained(str(small_clip), CPU)
    model = CLIPModel.from_pretrained(small_clip, local_files_only=True)
    tokenizer = CLIPTokenizer.from_pretrained(small_clip, local_files_only=True)
    words = tokenizer(["a cat", "dog"], padding=True, return_tensors="pt")
    with torch.no_grad():
        pixels = normalise_colours(torch.from_numpy(frames).float() / 255)
        theirs = model(pixel_values=pixels, **words)
    torch.testing.assert_close(ours.images(frames), theirs.image_embeds, atol=SINGLE_PRECISION, rtol=0)
    torch.testing.assert_close(
        ours.texts(["a cat", "dog"]), theirs.text_embeds, atol=SINGLE_PRECISION, rtol=0
    )
    logits = ours.scale * ours.images(frames) @ ours.texts(["a cat", "dog"]).T
    torch.testing.assert_close(logits, theirs.logits_per_image, atol=1e-3, rtol=1e-4)


def test_a_frame_has_the_same_vector_alone_and_among_others(small_clip: Path) -> None:
    clip = TextImage.from_pretrained(str(small_clip), CPU)
    frames = noisy_frames(40, 33, count=3)
    torch.testing.assert_close(
        clip.images(frames)[1:2], clip.images(frames[1:2]), atol=SINGLE_PRECISION, rtol=0
    )


def test_a_sentence_has_the_same_vector_alone_and_beside_a_longer_one(small_clip: Path) -> None:
    clip = TextImage.from_pretrained(str(small_clip), CPU)
    together = clip.texts(["ab", "a longer one"])
    torch.testing.assert_close(together[:1], clip.texts(["ab"]), atol=SINGLE_PRECISION, rtol=0)


def test_gradients_reach_the_pixels(small_clip: Path) -> None:
    clip = TextImage.from_pretrained(str(small_clip), CPU)
    pixels = torch.zeros(1, 3, 48, 48, requires_grad=True)
    (gradient,) = torch.autograd.grad((clip.pixels(pixels) @ clip.texts(["a"]).T).sum(), pixels)
    assert float(gradient.abs().max()) > 0


def test_no_sentence_is_an_error(small_clip: Path) -> None:
    with pytest.raises(InputError, match="no sentence"):
        TextImage.from_pretrained(str(small_clip), CPU).texts([])


def test_another_preparation_is_refused(small_clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(small_clip, folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5]}))
    with pytest.raises(ModelMismatch, match="in its own way"):
        TextImage.from_pretrained(str(folder), CPU)


def test_a_folder_of_another_kind_is_refused(small_control: Path) -> None:
    with pytest.raises(ModelMismatch, match="not clip"):
        TextImage.from_pretrained(str(small_control), CPU)
