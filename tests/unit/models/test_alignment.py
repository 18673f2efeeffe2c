"""Each network of the embedded family gives the same bits wherever in memory its numbers lie."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import Module

import retouch
from retouch.compute import Compute
from retouch.models.face_model import FaceModel, SmallFaceReader
from retouch.models.face_parts import SmallIdentity

TINY = Path(retouch.__file__).parent / "models" / "_tiny"
FACES = {Path("face"), Path("face/identity"), Path("face/reader")}
NETWORKS = sorted({path.parent.relative_to(TINY) for path in TINY.glob("[!f]*/**/config.json")} | FACES)
ADDRESSES = 64
"""Of four bytes each: every place that a float32 may have in two lines of a processor's cache, twice."""


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def loaded(place: Path) -> Module:
    if place in FACES:
        model = FaceModel.from_pretrained("tiny:face", Compute(device="cpu"))
        encoder, reader = model.encoder, model.reader
        assert isinstance(encoder, SmallIdentity)
        assert isinstance(reader, SmallFaceReader)
        return {"face": model.diffusion.network, "identity": encoder, "reader": reader.network}[place.name]
    folder = TINY / place
    about = json.loads((folder / "config.json").read_text())
    name = about.get("_class_name") or about["architectures"][0]
    kind = getattr(diffusers, name, None) or getattr(transformers, name)
    network = kind.from_pretrained(folder, torch_dtype=torch.float32)
    assert isinstance(network, Module)
    return network.eval()


def given(network: Any) -> Mapping[str, Any]:
    """Something small to call a network on; a new class of networks needs a case of its own here."""
    c: Any = getattr(network, "config", None)
    match type(network).__name__:
        case "UNet2DConditionModel":
            z, words = random(2, 4, 16, 16), random(2, 32, c.cross_attention_dim)
            return {"sample": z, "timestep": torch.tensor(500), "encoder_hidden_states": words}
        case "ControlNetModel":
            z, words = random(1, 4, 16, 16), random(1, 32, c.cross_attention_dim)
            lines = {"controlnet_cond": random(1, 3, 64, 64)}
            return {"sample": z, "timestep": torch.tensor(500), "encoder_hidden_states": words, **lines}
        case "UNetSpatioTemporalConditionModel":
            z, seen = random(1, 2, c.in_channels, 8, 8), random(1, 1, c.cross_attention_dim)
            told = {"timestep": torch.tensor(1.0), "added_time_ids": torch.tensor([[6.0, 127.0, 0.02]])}
            return {"sample": z, "encoder_hidden_states": seen, **told}
        case "AutoencoderKL":
            return {"sample": random(1, 3, 32, 32)}
        case "AutoencoderKLTemporalDecoder":
            return {"sample": random(2, 3, 32, 32), "num_frames": 2}
        case "CLIPTextModel":
            return {"input_ids": torch.arange(32)[None]}
        case "CLIPVisionModelWithProjection":
            return {"pixel_values": random(1, 3, c.image_size, c.image_size)}
        case "CLIPModel":
            return {
                "input_ids": torch.arange(32)[None],
                "pixel_values": random(1, 3, c.vision_config.image_size, c.vision_config.image_size),
            }
        case "FaceNetwork":
            code = random(2, network.merge.out_features)
            return {"x": random(2, 3, c.side, c.side), "t": torch.tensor([300, 900]), "code": code}
        case "SmallIdentity" | "SmallReader":
            return {"crops": random(2, 3, 64, 64)}
    raise AssertionError(f"say what {type(network).__name__} is called on")


def lying_at(value: Tensor, address: int) -> Tensor:
    """The same numbers that many floats behind a line of 256 bytes."""
    if value.dtype != torch.float32:
        return value
    room = torch.empty(value.numel() + 128)
    start = -room.data_ptr() // 4 % 64 + address
    return room[start : start + value.numel()].view(value.shape).copy_(value)


@torch.no_grad()
def answered(network: Module, values: Mapping[str, Any], address: int) -> list[Tensor]:
    for weight in (*network.parameters(), *network.buffers()):
        weight.data = lying_at(weight.data, address)
    # What a network is called on lies elsewhere than its weights: together they are aligned alike.
    moved = {
        name: lying_at(value, (5 * address + 3) % ADDRESSES) if isinstance(value, Tensor) else value
        for name, value in values.items()
    }
    plain = {} if type(network).__module__.startswith("retouch") else {"return_dict": False}
    answer = network(**moved, **plain)
    return [
        value for value in (answer if isinstance(answer, tuple) else (answer,)) if isinstance(value, Tensor)
    ]


@pytest.mark.parametrize("place", NETWORKS, ids=str)
def test_equal_numbers_at_other_addresses_give_equal_bits(place: Path) -> None:
    network = loaded(place)
    values = given(network)
    first = answered(network, values, 0)
    assert first
    assert all(bool(torch.isfinite(value).all()) for value in first)
    for address in range(1, ADDRESSES):
        again = answered(network, values, address)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), address
