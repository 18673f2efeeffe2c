import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from retouch.compute import Compute
from retouch.errors import ModelMismatch
from retouch.models.check import inspect_model
from retouch.models.image import StableDiffusion
from retouch.models.image_prompt import ImagePrompt

CPU = Compute(device="cpu", dtype="float32")
SINGLE_PRECISION = 1e-5
ENCODED_ALIKE = 2e-2
"""The stock preparation resizes with PIL, which rounds to bytes between its two passes."""


def write_adapter(folder: Path, clip: Path, base: Path, *, wider: int = 0) -> Path:
    """An IP-Adapter folder with random weights, beside a random encoder of 32-pixel pictures."""
    torch.manual_seed(5)
    tower = CLIPVisionModelWithProjection.from_pretrained(clip, local_files_only=True)
    unet = UNet2DConditionModel.from_pretrained(base / "unet", local_files_only=True)
    width = unet.config.cross_attention_dim + wider
    tensors: dict[str, Tensor] = {
        "image_proj.proj.weight": torch.randn(4 * width, tower.config.projection_dim),
        "image_proj.proj.bias": torch.randn(4 * width),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }
    modules = dict(unet.named_modules())
    for number, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            out = modules[name.removesuffix(".processor")].to_k.out_features
            for part in ("to_k_ip", "to_v_ip"):
                tensors[f"ip_adapter.{number}.{part}.weight"] = torch.randn(out, width)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "ip_adapter.safetensors")
    tower.save_pretrained(folder / "image_encoder")
    return folder


@pytest.fixture(scope="module")
def small_ip(tmp_path_factory: pytest.TempPathFactory, small_clip: Path, small_sd: Path) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapters") / "small-ip", small_clip, small_sd)


@pytest.fixture(scope="module")
def sd(small_sd: Path) -> StableDiffusion:
    return StableDiffusion.from_pretrained(str(small_sd), CPU)


def picture() -> np.ndarray:
    return np.random.default_rng(4).integers(0, 255, (3, 32, 48), dtype=np.uint8)


def latents() -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def test_the_picture_speaks_as_in_a_stock_pipeline(
    small_sd: Path, small_ip: Path, sd: StableDiffusion
) -> None:
    adapter = ImagePrompt.from_pretrained(str(small_ip), CPU)
    seen, words = adapter.seen(picture()), sd.embed("x")
    with adapter.applied_to(sd, scale=0.7), torch.no_grad():
        ours = sd.predict(latents(), 400, words, seen=seen)

    preparation = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pipe = StableDiffusionPipeline.from_pretrained(
        small_sd, safety_checker=None, feature_extractor=preparation, local_files_only=True
    )
    names = {"weight_name": "ip_adapter.safetensors", "image_encoder_folder": "image_encoder"}
    pipe.load_ip_adapter(str(small_ip), subfolder="", **names)
    pipe.set_ip_adapter_scale(0.7)
    shown = Image.fromarray(picture().transpose(1, 2, 0))
    stock, nothing = pipe.encode_image(shown, "cpu", 1)
    torch.testing.assert_close(stock[0], seen, atol=ENCODED_ALIKE, rtol=0)
    assert float(nothing.abs().max()) == 0
    with torch.no_grad():
        theirs = pipe.unet(
            latents(),
            400,
            words.expand(2, -1, -1),
            added_cond_kwargs={"image_embeds": [seen.expand(2, 1, -1)]},
        ).sample
    torch.testing.assert_close(ours, theirs, atol=SINGLE_PRECISION, rtol=0)


def test_afterwards_the_model_is_as_it_was_even_after_an_error(small_ip: Path, sd: StableDiffusion) -> None:
    adapter, words = ImagePrompt.from_pretrained(str(small_ip), CPU), sd.embed("x")
    before, processors = sd.predict(latents(), 400, words), dict(sd.unet.attn_processors)
    with pytest.raises(KeyError), adapter.applied_to(sd):
        raise KeyError
    with adapter.applied_to(sd):
        loud = sd.predict(latents(), 400, words, seen=adapter.seen(picture()))
    assert torch.equal(sd.predict(latents(), 400, words), before)
    assert sd.unet.attn_processors == processors
    assert sd.unet.config.encoder_hid_dim_type is None
    assert float((loud - before).abs().max()) > 100 * SINGLE_PRECISION


def test_at_scale_nought_the_picture_is_not_heard(small_ip: Path, sd: StableDiffusion) -> None:
    adapter, words = ImagePrompt.from_pretrained(str(small_ip), CPU), sd.embed("x")
    with adapter.applied_to(sd, scale=0.0):
        quiet = sd.predict(latents(), 400, words, seen=adapter.seen(picture()))
    torch.testing.assert_close(quiet, sd.predict(latents(), 400, words), atol=SINGLE_PRECISION, rtol=0)


def test_the_layout_of_the_published_repository_is_found(small_ip: Path, tmp_path: Path) -> None:
    shutil.copytree(small_ip, tmp_path / "hub" / "models")
    assert ImagePrompt.from_pretrained(str(tmp_path / "hub"), CPU).tensors.keys() == {
        "image_proj.",
        "ip_adapter.",
    }


def without_encoder(folder: Path) -> None:
    shutil.rmtree(folder / "image_encoder")


def second_adapter(folder: Path) -> None:
    shutil.copy(folder / "ip_adapter.safetensors", folder / "other.safetensors")


def pickled(folder: Path) -> None:
    (folder / "ip_adapter.safetensors").rename(folder / "ip_adapter.bin")


def of_the_plus_kind(folder: Path) -> None:
    path = folder / "ip_adapter.safetensors"
    tensors = load_file(path)
    tensors["image_proj.latents"] = tensors.pop("image_proj.proj.weight")
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without_encoder, "image_encoder"),
        (second_adapter, "2 adapters"),
        (pickled, "pickle"),
        (of_the_plus_kind, "plain IP-Adapter"),
    ],
)
def test_what_is_no_adapter_is_refused_by_name(
    small_ip: Path, tmp_path: Path, change: Callable[[Path], None], says: str
) -> None:
    folder = shutil.copytree(small_ip, tmp_path / "changed")
    change(folder)
    with pytest.raises(ModelMismatch, match=says) as caught:
        ImagePrompt.from_pretrained(str(folder), CPU)
    assert caught.value.hint


def test_an_adapter_of_another_base_model_is_refused(
    small_clip: Path, small_sd: Path, tmp_path: Path, sd: StableDiffusion
) -> None:
    wide = write_adapter(tmp_path / "wide", small_clip, small_sd, wider=8)
    adapter = ImagePrompt.from_pretrained(str(wide), CPU)
    with pytest.raises(ModelMismatch, match="another base model"), adapter.applied_to(sd):
        pass
    assert sd.unet.encoder_hid_proj is None


def test_a_check_of_the_folder_says_what_it_is(small_ip: Path, tmp_path: Path) -> None:
    found = inspect_model(small_ip)
    assert found.kind == "an image prompt (IP-Adapter)"
    assert not found.faults
    folder = shutil.copytree(small_ip, tmp_path / "changed")
    second_adapter(folder)
    assert "2 adapters" in inspect_model(folder).faults[0]
    (folder / "other.safetensors").unlink()
    (folder / "ip_adapter.safetensors").write_bytes(b"cut short")
    assert inspect_model(folder).faults
