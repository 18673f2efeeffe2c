import pickle
import runpy
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from retouch.compute import Compute
from retouch.models.face import FaceDiffusion, FaceNetwork

SCRIPT = Path(__file__).parents[3] / "tools" / "convert" / "dva.py"
WIDTH = 32


def unit(name: str, channels: int, wider: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "in_layers.0": (channels,),
        "in_layers.2": (wider, channels, 3, 3),
        "emb_layers.1": (2 * wider, WIDTH),
        "out_layers.0": (wider,),
        "out_layers.2": (wider, wider, 3, 3),
        "out_layers.3": (wider,),
        "cond_emb_layers.1": (2 * wider, WIDTH),
        "out_layers.6": (wider, wider, 3, 3),
    }
    shapes |= {"skip_connection": (wider, channels, 1, 1)} if channels != wider else {}
    return {f"{name}.{part}": shape for part, shape in shapes.items()}


def attention(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    parts = {"norm": (channels,), "qkv": (3 * channels, channels, 1), "proj_out": (channels, channels, 1)}
    return {f"{name}.{part}": shape for part, shape in parts.items()}


def authors_weights() -> dict[str, torch.Tensor]:
    """Two levels of one unit each, 32 and 64 channels, attention on the lower; as the authors name them."""
    shapes: dict[str, tuple[int, ...]] = {
        "time_embed.time_embed.0": (WIDTH, 32),
        "time_embed.time_embed.2": (WIDTH, WIDTH),
        "input_blocks.0.0": (32, 3, 3, 3),
        "encoder.linear": (WIDTH, 6 + 4),
        "out.0": (32,),
        "out.2": (3, 32, 3, 3),
        **unit("input_blocks.1.0", 32, 32),
        **unit("input_blocks.2.0", 32, 32),
        **unit("input_blocks.3.0", 32, 64),
        **attention("input_blocks.3.1", 64),
        **unit("middle_block.0", 64, 64),
        **attention("middle_block.1", 64),
        **unit("middle_block.2", 64, 64),
        **unit("output_blocks.0.0", 128, 64),
        **attention("output_blocks.0.1", 64),
        **unit("output_blocks.1.0", 96, 64),
        **attention("output_blocks.1.1", 64),
        **unit("output_blocks.1.2", 64, 64),
        **unit("output_blocks.2.0", 96, 32),
        **unit("output_blocks.3.0", 64, 32),
    }
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"{name}.weight": 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()
    }
    weights |= {
        f"{name}.bias": 0.1 * torch.randn(shape[:1], generator=generator) for name, shape in shapes.items()
    }
    return {**weights, "encoder.idnet.model.weight": torch.ones(3)}


def convert(*arguments: str) -> tuple[int, str]:
    path = list(sys.path)
    try:
        result = CliRunner().invoke(runpy.run_path(str(SCRIPT))["main"], arguments)
    finally:
        sys.path[:] = path
    return result.exit_code, result.output


def loaded(folder: Path) -> FaceNetwork:
    return FaceDiffusion.from_pretrained(str(folder), Compute(device="cpu", dtype="float32")).network


def test_a_checkpoint_becomes_a_model_with_its_averaged_weights_where_they_belong(tmp_path: Path) -> None:
    averaged = authors_weights()
    state = {f"ema_model.{name}": tensor for name, tensor in averaged.items()}
    state |= {f"model.{name}": 0 * tensor for name, tensor in averaged.items()}
    torch.save({"state_dict": state, "global_step": 7}, tmp_path / "last.ckpt")
    code, said = convert(
        str(tmp_path / "last.ckpt"), str(tmp_path / "face"), "--side", "16", "--identity", "6"
    )
    assert code == 0, said
    network = loaded(tmp_path / "face")
    assert network.config.side == 16
    assert (network.config.identity, network.config.motion) == (6, 4)
    assert network.config.prediction == "epsilon"
    names = {
        "unet.conv_in.weight": "input_blocks.0.0.weight",
        "unet.down_blocks.0.downsamplers.0.conv_mid.weight": "input_blocks.2.0.out_layers.2.weight",
        "unet.up_blocks.0.upsamplers.0.cond_proj.bias": "output_blocks.1.2.cond_emb_layers.1.bias",
        "unet.up_blocks.1.resnets.1.conv_shortcut.weight": "output_blocks.3.0.skip_connection.weight",
        "merge.bias": "encoder.linear.bias",
    }
    state_here = network.state_dict()
    for here, there in names.items():
        assert torch.equal(state_here[here], averaged[there]), here
    whole = averaged["middle_block.1.qkv.weight"][..., 0]
    for number, key in enumerate(("to_q", "to_k", "to_v")):
        rows = whole[64 * number : 64 * (number + 1)]
        assert torch.equal(state_here[f"unet.mid_block.attentions.0.{key}.weight"], rows)
    answer = network(torch.rand(1, 3, 16, 16), torch.tensor([3]), torch.rand(1, WIDTH))
    assert torch.isfinite(answer).all()


@pytest.mark.parametrize("damage", ["missing", "shape", "foreign"])
def test_weights_that_do_not_fit_are_refused(damage: str, tmp_path: Path) -> None:
    weights = authors_weights()
    if damage == "missing":
        del weights["input_blocks.3.1.proj_out.bias"]
    if damage == "shape":
        weights["out.2.weight"] = torch.ones(3, 16, 3, 3)
    if damage == "foreign":
        weights = {"conv.weight": torch.ones(2)}
    torch.save(weights, tmp_path / "last.ckpt")
    code, said = convert(
        str(tmp_path / "last.ckpt"), str(tmp_path / "face"), "--side", "16", "--identity", "6"
    )
    assert code == 3, said
    assert "hint:" in said
    assert not (tmp_path / "face").exists()


def test_a_pickle_that_would_run_something_is_not_opened(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (marker,)

    (tmp_path / "trap.ckpt").write_bytes(pickle.dumps(Trap()))
    code, said = convert(str(tmp_path / "trap.ckpt"), str(tmp_path / "face"))
    assert code == 3, said
    assert not marker.exists()
