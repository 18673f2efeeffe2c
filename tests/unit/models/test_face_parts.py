from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from retouch.compute import Compute
from retouch.errors import ModelMismatch, ModelNotFound
from retouch.models.face_irse import IrSe
from retouch.models.face_parts import (
    CELEBA_MASK,
    ArcFace,
    FaceParser,
    IdentityEncoder,
    OnnxNetwork,
    SegmentationParser,
    SmallIdentity,
    SmallReader,
    YuNetFinder,
    identity_input,
    mask_of,
    motion_of_68,
    parser_input,
    points_input,
)

SUBPIXEL = 0.3


def test_small_networks_are_what_the_protocols_ask_for() -> None:
    torch.manual_seed(0)
    encoder, reader = SmallIdentity(), SmallReader(5, ("background", "skin", "hair"))
    assert isinstance(encoder, IdentityEncoder)
    assert isinstance(reader, FaceParser)
    crops = torch.rand(2, 3, 64, 64) * 2 - 1
    assert torch.allclose(encoder.vectors(crops).norm(dim=1), torch.ones(2))
    assert reader.parts(crops).max() < 3
    points, scores = reader(crops)
    assert points.shape == (2, 5, 2)
    assert scores.shape == (2, 3, 64, 64)


def test_a_point_lies_where_its_map_is_high() -> None:
    reader = SmallReader(2, ("skin",))
    torch.nn.init.zeros_(reader.head.weight)
    torch.nn.init.zeros_(torch.as_tensor(reader.head.bias))
    middle, _ = reader(torch.zeros(1, 3, 64, 64))
    assert torch.allclose(middle, torch.full((1, 2, 2), 0.5))

    class Peak(torch.nn.Module):
        def forward(self, h: torch.Tensor) -> torch.Tensor:
            maps = torch.zeros(len(h), 6, 32, 32)
            maps[0, 0, 10, 20] = maps[0, 1, 3, 0] = 50.0
            return maps

    reader.head = Peak()  # type: ignore[assignment]
    points, _ = reader(torch.zeros(1, 3, 64, 64))
    wanted = torch.tensor([[20.5, 10.5], [0.5, 3.5]]) / 32
    assert (64 * (points[0] - wanted)).abs().max() < SUBPIXEL


def test_masks_gather_parts_by_name() -> None:
    parts = torch.tensor([[[0, 4], [5, 18]]])
    assert mask_of(parts, CELEBA_MASK, ("eyes",)).tolist() == [[[[0.0, 1.0], [1.0, 0.0]]]]
    assert mask_of(parts, CELEBA_MASK, ("hat", "background")).tolist() == [[[[1.0, 0.0], [0.0, 1.0]]]]


def test_published_networks_are_shown_their_windows() -> None:
    rows = torch.linspace(-1, 1, 256)[None, None, :, None].expand(1, 3, -1, 256)
    assert identity_input(rows).shape == (1, 3, 112, 112)
    assert torch.allclose(identity_input(rows)[0, 0, :, 0].mean(), rows[0, 0, 35:223, 0].mean(), atol=1e-5)
    assert points_input(rows).shape == (1, 3, 224, 224)
    assert parser_input(rows).shape == (1, 3, 512, 512)
    seen = parser_input(torch.ones(1, 3, 256, 256))[0, :, 0, 0] * torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(seen + torch.tensor([0.485, 0.456, 0.406]), torch.ones(3))
    raw = torch.arange(136.0)[None] / 100
    assert motion_of_68(raw).shape == (1, 102)
    assert motion_of_68(raw)[0, 0] == 0.34
    assert motion_of_68(raw).max() == 1.0


def test_an_identity_network_is_read_from_safetensors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file({k: v.clone() for k, v in IrSe().state_dict().items()}, tmp_path / "ir.safetensors")
    crops = torch.rand(2, 3, 256, 256) * 2 - 1
    vectors = ArcFace.from_file(tmp_path / "ir.safetensors").vectors(crops)
    assert vectors.shape == (2, 512)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(2))
    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelMismatch, match="IR-SE-50"):
        ArcFace.from_file(tmp_path / "other.safetensors")


def test_files_that_are_not_there_or_hold_something_else_are_refused(tmp_path: Path) -> None:
    nothing, rubbish = tmp_path / "nothing.onnx", tmp_path / "rubbish.onnx"
    rubbish.write_bytes(b"no network" * 20)
    for reader in (OnnxNetwork, YuNetFinder, ArcFace.from_file):
        with pytest.raises(ModelNotFound):
            reader(nothing)
        with pytest.raises(ModelMismatch):
            reader(rubbish)


def parser_folder(folder: Path, labels: dict[int, str]) -> Path:
    torch.manual_seed(0)
    config = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 8], patch_sizes=[3, 3],
        strides=[4, 2], num_attention_heads=[1, 1], mlp_ratios=[1, 1], decoder_hidden_size=8, id2label=labels,
        label2id={name: number for number, name in labels.items()},
    )  # fmt: skip
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    return folder


def test_a_parser_says_its_parts_by_the_names_of_its_own_config(tmp_path: Path) -> None:
    folder = parser_folder(
        tmp_path / "parser", {0: "background", 1: "skin", 2: "l_eye", 3: "r_eye", 4: "hair"}
    )
    parser = SegmentationParser.from_pretrained(str(folder), Compute(device="cpu", dtype="float32"))
    assert isinstance(parser, FaceParser)
    assert list(parser.names) == ["background", "skin", "eyes", "eyes", "hair"]
    assert parser.identity
    parts = parser.parts(torch.rand(1, 3, 32, 32))
    assert parts.shape == (1, 32, 32)
    assert parts.max() < 5


def test_a_parser_of_streets_is_refused(tmp_path: Path) -> None:
    folder = parser_folder(tmp_path / "parser", {0: "road", 1: "car"})
    with pytest.raises(ModelMismatch, match="skin and hair"):
        SegmentationParser.from_pretrained(str(folder))
