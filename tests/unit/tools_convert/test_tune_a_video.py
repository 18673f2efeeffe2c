import pickle
import runpy
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from diffusers import UNet2DConditionModel

from retouch.diffusion.inflate import Temporal
from retouch.diffusion.tune import Tuned, tuned

SCRIPT = Path(__file__).parents[3] / "tools" / "convert" / "tune_a_video.py"
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"


def small_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=4,
        attention_head_dim=2,
        norm_num_groups=4,
    )


def convert(*arguments: str) -> tuple[int, str]:
    path = list(sys.path)
    try:
        result = CliRunner().invoke(runpy.run_path(str(SCRIPT))["main"], arguments)
    finally:
        sys.path[:] = path
    return result.exit_code, result.output


@pytest.mark.parametrize("suffix", ["_temp", "_temporal"])
def test_authors_names_come_over_and_load(tmp_path: Path, suffix: str) -> None:
    unet = small_unet()
    released = dict(unet.state_dict())
    for name, tensor in Temporal.of(unet).named_tensors().items():
        block, _, part = name.rpartition("transformer_blocks.0.")
        part, kind = part or name, "norm" if part.startswith("norm.") else "attn"
        rest = part.removeprefix("norm.").replace("to_out.", "to_out.0.")
        released[f"{block}transformer_blocks.0.{kind}{suffix}.{rest}"] = torch.randn_like(tensor)
    released["conv_in.conv_temporal.down.weight"] = torch.randn(2, 8, 3)
    released["conv_in.conv_temporal.up.weight"] = torch.zeros(8, 2, 3)
    (tmp_path / "unet").mkdir()
    torch.save(released, tmp_path / "unet" / "diffusion_pytorch_model.bin")
    code, output = convert(str(tmp_path), str(tmp_path / "out"))
    assert code == 0, output
    learned = Tuned.read(tmp_path / "out")
    assert torch.equal(
        learned.temporal[f"{BLOCK}.to_out.bias"], released[f"{BLOCK}.attn{suffix}.to_out.0.bias"]
    )
    assert torch.equal(learned.queries[f"{BLOCK}.attn2.to_q.weight"], released[f"{BLOCK}.attn2.to_q.weight"])
    with tuned(unet, learned), torch.no_grad():
        assert torch.isfinite(unet(torch.randn(2, 4, 8, 8), 5, torch.ones(2, 3, 4)).sample).all()


def test_a_file_that_would_run_something_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.mkdir, (str(tmp_path / "pwned"),)

    (tmp_path / "evil.bin").write_bytes(pickle.dumps({"x": Evil()}))
    code, output = convert(str(tmp_path / "evil.bin"), str(tmp_path / "out"))
    assert code == 3
    assert "not a file of tensors" in output
    assert not (tmp_path / "pwned").exists()
    assert not (tmp_path / "out").exists()


def test_weights_without_temporal_attention_are_refused(tmp_path: Path) -> None:
    torch.save(dict(small_unet().state_dict()), tmp_path / "plain.bin")
    code, output = convert(str(tmp_path / "plain.bin"), str(tmp_path / "out"))
    assert code == 3
    assert "no temporal attention" in output
