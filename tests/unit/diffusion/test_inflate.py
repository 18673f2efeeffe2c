import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from retouch.diffusion.inflate import Temporal, TemporalConv, inflated, transformer_blocks
from retouch.diffusion.tune import Tuned, tuned
from retouch.errors import ModelMismatch, ModelNotFound

ROUNDING = 1e-5
"""Single precision, summed in another order."""
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"


def small_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=8,
    ).eval()


def ask(unet: UNet2DConditionModel, frames: int = 3) -> Tensor:
    z = torch.randn(frames, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out: Tensor = unet(z, 5, torch.ones(frames, 7, 8)).sample
    return out


def state(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in unet.state_dict().items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_network_that_was_just_inflated_is_the_image_network_exactly() -> None:
    unet = small_unet()
    plain = ask(unet)
    with inflated(unet, Temporal.of(unet)):
        assert torch.equal(ask(unet), plain)


def test_temporal_attention_mixes_frames_and_leaves_nothing_behind() -> None:
    unet = small_unet()
    plain, before = ask(unet), state(unet)
    temporal = Temporal.of(unet)
    for name in transformer_blocks(unet):
        torch.nn.init.normal_(temporal.of_block(name).get_parameter("to_out.weight"))
    with inflated(unet, temporal):
        assert not torch.allclose(ask(unet), plain, atol=100 * ROUNDING)
    assert torch.equal(ask(unet), plain)
    assert same(state(unet), before)


def test_temporal_attention_is_attention_over_frames_at_each_pixel() -> None:
    unet = small_unet()
    block = Temporal.of(unet).of_block(BLOCK)
    torch.nn.init.normal_(block.get_parameter("to_out.weight"))
    x = torch.randn(3, 5, 16)
    with torch.no_grad():
        ours = block(x)
        for pixel in range(5):
            y = torch.nn.functional.layer_norm(x[:, pixel], (16,))
            q, k, v = (y @ block.get_parameter(f"to_{part}.weight").T for part in "qkv")
            heads = [
                (q[:, s] @ k[:, s].T / 2).softmax(-1) @ v[:, s]
                for s in (slice(i, i + 4) for i in range(0, 16, 4))
            ]
            theirs = x[:, pixel] + torch.cat(heads, 1) @ block.get_parameter("to_out.weight").T
            assert torch.allclose(ours[:, pixel], theirs, atol=ROUNDING)


def test_a_temporal_convolution_starts_as_it_is_told() -> None:
    x = torch.randn(4, 3, 2, 2)
    identity = torch.zeros(3, 3, 3)
    identity[:, :, 1] = torch.eye(3)
    assert torch.allclose(TemporalConv({"weight": identity, "bias": torch.zeros(3)})(x), x, atol=ROUNDING)
    low = {"down.weight": torch.randn(2, 3, 3), "up.weight": torch.zeros(3, 2, 3)}
    assert torch.equal(TemporalConv(low)(x), x)
    delay = torch.zeros(3, 3, 3)
    delay[:, :, 0] = torch.eye(3)
    late = TemporalConv({"weight": delay})(x)
    assert torch.equal(late[1:], x[:-1])
    assert not late[0].any()


def test_what_was_learned_goes_on_and_off_and_survives_a_file(tmp_path: Path) -> None:
    unet = small_unet()
    plain, before = ask(unet), state(unet)
    temporal = Temporal.of(unet)
    for name in transformer_blocks(unet):
        torch.nn.init.normal_(temporal.of_block(name).get_parameter("to_out.weight"))
    learned = Tuned(
        {f"{BLOCK}.attn1.to_q.weight": torch.randn(16, 16)},
        {name: tensor.detach() for name, tensor in temporal.named_tensors().items()},
        {"conv_in.conv_temporal.weight": torch.randn(16, 16, 3)},
    )
    with tuned(unet, learned):
        changed = ask(unet)
    assert not torch.allclose(changed, plain, atol=100 * ROUNDING)
    assert torch.equal(ask(unet), plain)
    assert same(state(unet), before)
    learned.save(tmp_path / "learned")
    with tuned(unet, Tuned.read(tmp_path / "learned")):
        assert torch.equal(ask(unet), changed)


def test_weights_of_another_model_are_refused_and_leave_nothing_behind() -> None:
    unet = small_unet()
    before = state(unet)
    queries = {f"{BLOCK}.attn1.to_q.weight": torch.zeros(16, 16), "nowhere.to_q.weight": torch.zeros(1)}
    with pytest.raises(ModelMismatch, match="nowhere"), tuned(unet, Tuned(queries)):
        pass
    with (
        pytest.raises(ModelMismatch, match="another UNet"),
        tuned(unet, Tuned(temporal={"x": torch.zeros(1)})),
    ):
        pass
    assert same(state(unet), before)


def test_a_folder_without_tuned_weights_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"tuned\.safetensors"):
        Tuned.read(tmp_path)
    (tmp_path / "tuned.safetensors").write_bytes(b"not a file of tensors")
    with pytest.raises(ModelMismatch, match="cannot be read"):
        Tuned.read(tmp_path)
    (tmp_path / "tuned.safetensors").unlink()
    os.mkfifo(tmp_path / "tuned.safetensors")
    with pytest.raises(ModelMismatch, match="pipe"):
        Tuned.read(tmp_path)
