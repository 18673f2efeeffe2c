from collections.abc import Mapping

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from torch import Tensor

from retouch.diffusion.attention import Attend, Gather, Layer, Neighbours, attend, controlled
from retouch.errors import ModelMismatch

ROUNDING = 1e-5
"""Single precision, summed in another order."""


def small_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=8,
    ).eval()


def ask(unet: UNet2DConditionModel, z: Tensor, attention: Mapping[str, object] | None = None) -> Tensor:
    text = torch.linspace(-1, 1, 7 * 8).reshape(1, 7, 8).expand(len(z), 7, 8).to(z.dtype)
    with torch.no_grad():
        out: Tensor = unet(z, 5, text, cross_attention_kwargs=dict(attention or {})).sample
    return out


def clip(frames: int = 3, height: int = 8, width: int = 12) -> Tensor:
    return torch.randn(frames, 4, height, width, generator=torch.Generator().manual_seed(1))


def test_without_a_rule_controlled_answers_as_the_plain_network() -> None:
    unet, z = small_unet(), clip()
    plain = ask(unet, z)
    with controlled(unet, size=(8, 12)):
        assert torch.allclose(ask(unet, z), plain, atol=ROUNDING)
        assert torch.allclose(ask(unet.double(), z.double()).float(), plain, atol=ROUNDING)


def test_layers_are_known_before_any_call() -> None:
    seen: list[tuple[Layer, int]] = []

    class Note:
        def __call__(self, layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            seen.append((layer, q.shape[2]))
            return attend(q, k, v)

    unet = small_unet()
    with controlled(unet, size=(8, 12)) as layers:
        ask(unet, clip(), {"rule": Note()})
    assert {layer for layer, _ in seen} == set(layers)
    assert len(seen) == len(layers)
    assert all(layer.tokens == queries for layer, queries in seen)
    down = [(layer.index, layer.level, layer.width, layer.grid) for layer, _ in seen if layer.place == "down"]
    assert down == [(0, 0, 16, (8, 12)), (0, 0, 16, (8, 12)), (1, 1, 32, (4, 6)), (1, 1, 32, (4, 6))]
    ups = [layer for layer, _ in seen if (layer.place, layer.kind) == ("up", "self")]
    assert [layer.index for layer in ups] == [0, 1, 2, 3]
    assert [layer.level for layer in ups] == [1, 1, 0, 0]


def test_controlled_restores_what_was_there_after_an_error() -> None:
    unet = small_unet()
    before = dict(unet.attn_processors)
    with pytest.raises(ZeroDivisionError), controlled(unet, size=(8, 12), clip_norm=True):
        raise ZeroDivisionError
    assert unet.attn_processors == before
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in unet.modules())


def test_controlled_is_left_sound_by_an_error_inside_a_call() -> None:
    unet, z = small_unet(), clip()
    plain = ask(unet, z)

    class Fail:
        def __call__(self, *seen: object) -> Tensor:
            raise ZeroDivisionError(len(seen))

    with controlled(unet, size=(8, 12), clip_norm=True), pytest.raises(ZeroDivisionError):
        ask(unet, z, {"rule": Fail()})
    assert torch.equal(ask(unet, z), plain)


def test_the_innermost_block_decides_and_the_outer_one_comes_back() -> None:
    unet, z = small_unet(), clip()
    plain = ask(unet, z)
    with controlled(unet, size=(8, 12), clip_norm=True):
        wide = ask(unet, z)
        with controlled(unet, size=(8, 12)):
            assert torch.allclose(ask(unet, z), plain, atol=ROUNDING)
            with controlled(unet, size=(8, 12), clip_norm=True):
                assert torch.equal(ask(unet, z), wide)
        assert torch.equal(ask(unet, z), wide)
    assert not torch.allclose(wide, plain, atol=10 * ROUNDING)
    assert torch.equal(ask(unet, z), plain)


def test_clip_norm_takes_statistics_over_all_frames() -> None:
    unet, x = small_unet(), torch.randn(3, 16, 8, 8)
    norm = unet.get_submodule("down_blocks.0.resnets.0.norm1")
    with controlled(unet, size=(8, 8), clip_norm=True):
        ours = norm(x)
    groups = x.reshape(3, 8, 2, 64)
    mean, variance = groups.mean((0, 2, 3), keepdim=True), groups.var((0, 2, 3), keepdim=True, unbiased=False)
    theirs = ((groups - mean) / (variance + norm.eps) ** 0.5).reshape(x.shape)
    assert torch.allclose(ours, theirs, atol=ROUNDING)


def test_one_frame_is_the_same_with_and_without_clip_norm() -> None:
    unet, z = small_unet(), clip(frames=1)
    with controlled(unet, size=(8, 12), clip_norm=True):
        assert torch.allclose(ask(unet, z), ask(small_unet(), z), atol=ROUNDING)


def test_processors_with_weights_are_refused() -> None:
    unet = small_unet()
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor"
    adapter = IPAdapterAttnProcessor2_0(hidden_size=16, cross_attention_dim=8)
    unet.set_attn_processor({**unet.attn_processors, name: adapter})
    with pytest.raises(ModelMismatch, match="weights of its own"), controlled(unet, size=(8, 12)):
        pass


def test_a_wrong_size_is_told() -> None:
    unet = small_unet()
    with controlled(unet, size=(8, 8)), pytest.raises(ModelMismatch, match="queries"):
        ask(unet, clip())


def test_frames_look_where_the_paper_says() -> None:
    assert Neighbours(("mid",)).among(range(8), 8).places == ((3,) * 8,)
    assert Neighbours(("mid",)).among(range(4), 4).places == ((1,) * 4,)
    assert Neighbours((-1, "first")).among(range(4), 4).places == ((0, 0, 1, 2), (0,) * 4)
    assert Neighbours((1, "last")).among(range(3), 3).places == ((1, 2, 2), (2,) * 3)
    assert Neighbours((-1, "mid")).among(range(1), 1).places == ((0,), (0,))


def test_a_window_finds_its_anchor_and_stands_in_for_frames_it_lacks() -> None:
    near = Neighbours(("first", -1))
    assert near.anchors(20) == (0,)
    assert near.among((0, 8, 9, 10), 20).places == ((0,) * 4, (0, 1, 1, 2))


def test_gathered_attention_is_attention_over_both_frames() -> None:
    layer = Layer("down", "self", 0, 0, 16, (2, 3))
    q, k, v = (torch.randn(3, 2, 6, 4) for _ in range(3))
    rule = Attend(Neighbours((-1, "first")).among(range(3), 3))
    ours = rule(layer, q, k, v)
    for frame, (before, first) in enumerate([(0, 0), (0, 0), (1, 0)]):
        keys, values = torch.cat([k[before], k[first]], 1), torch.cat([v[before], v[first]], 1)
        weights = (q[frame] @ keys.transpose(1, 2) / 2).softmax(-1)
        assert torch.allclose(ours[frame], weights @ values, atol=ROUNDING)


def test_narrow_and_fine_layers_keep_to_their_own_frame() -> None:
    x = torch.randn(3, 2, 6, 4)
    places = ((1, 1, 1),)
    layer = Layer("down", "self", 0, level=1, width=64, grid=(2, 3))
    assert Gather(places, least_width=65)(layer, x) is x
    assert Gather(places, least_level=2)(layer, x) is x
    assert torch.equal(Gather(places, least_width=64, least_level=1)(layer, x), x[[1, 1, 1]])
