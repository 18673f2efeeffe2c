import torch
from torch import Tensor

from retouch.diffusion.attention import Gather, Layer
from retouch.diffusion.capture import CaptureRule, mask_layers
from retouch.methods.fatezero import released
from retouch.methods.fatezero.fusion import FusedAttention, fused_layers

ROUNDING = 1e-10
"""Double precision."""
SELF = Layer("up", "self", 0, 1, 8, (2, 3))
CROSS = Layer("up", "cross", 0, 1, 8, (2, 3))
GATHER = Gather(((0, 0, 1), (0, 0, 0)))


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(q: Tensor, k: Tensor) -> Tensor:
    """The whole map, as the paper keeps it."""
    return torch.softmax(q @ k.transpose(2, 3) / float(q.shape[-1]) ** 0.5, dim=-1)


def test_fused_self_attention_is_the_kept_map_on_the_edits_values() -> None:
    (qs, ks, vs), (qe, ke, ve) = ([random(3, 2, 6, 4, seed=s + n) for n in range(3)] for s in (0, 10))
    capture = CaptureRule(GATHER, frozenset({SELF}))
    capture(SELF, qs, ks, vs)
    inside = torch.rand(3, 2, 3, generator=torch.Generator().manual_seed(0)) > 0.5
    source, own = weights(qs, GATHER(SELF, ks)), weights(qe, GATHER(SELF, ke))
    rows = inside.flatten(1)[:, None, :, None]
    for masks, kept in ((None, source), ({(2, 3): inside}, torch.where(rows, own, source))):
        ours = FusedAttention(GATHER, capture.source, inside=masks)(SELF, qe, ke, ve)
        assert torch.allclose(ours, kept @ GATHER(SELF, ve), atol=ROUNDING)


def test_fused_cross_attention_mixes_the_columns_of_both_maps() -> None:
    words = 7
    qs, qe = random(3, 2, 6, 4, seed=1), random(3, 2, 6, 4, seed=2)
    ks, ke, ve = (random(1, 2, words, 4, seed=s).expand(3, -1, -1, -1) for s in (3, 4, 5))
    taken, kept = random(words, words, seed=6), random(words, seed=7)
    capture = CaptureRule(GATHER, frozenset({CROSS}))
    capture(CROSS, qs, ks, ve)
    mixed = weights(qs, ks) @ taken + weights(qe, ke) * kept
    assert torch.allclose(
        FusedAttention(GATHER, capture.source, (taken, kept))(CROSS, qe, ke, ve), mixed @ ve, atol=ROUNDING
    )
    none = torch.zeros_like(kept)
    replaced = weights(qs, ks) @ taken @ ve
    assert torch.allclose(
        FusedAttention(GATHER, capture.source, (taken, none))(CROSS, qe, ke, ve), replaced, atol=ROUNDING
    )


def test_layers_that_were_not_captured_stay_the_edits_own() -> None:
    q, k, v = (random(3, 2, 6, 4, seed=n) for n in range(3))
    capture = CaptureRule(GATHER, frozenset())
    capture(SELF, q + 1, k - 1, v)
    own = weights(q, GATHER(SELF, k)) @ GATHER(SELF, v)
    assert torch.allclose(FusedAttention(GATHER, capture.source)(SELF, q, k, v), own, atol=ROUNDING)


def unet_layers(sides: tuple[int, ...]) -> list[Layer]:
    """The cross layers of Stable Diffusion 1.x for latents whose levels have these sides."""
    down = [
        Layer("down", "cross", i, i // 2, 1, (side, side))
        for i, side in enumerate(s for s in sides[:3] for _ in "ab")
    ]
    up = [
        Layer("up", "cross", i, 2 - i // 3, 1, (s, s))
        for i, s in enumerate(s for s in sides[2::-1] for _ in "abc")
    ]
    return [*down, Layer("mid", "cross", 0, 3, 1, (sides[3], sides[3])), *up]


def test_the_object_is_looked_for_in_the_same_layers_as_released_at_512_pixels() -> None:
    taking = fused_layers(unet_layers((64, 32, 16, 8)), 1024)
    assert {layer.grid for layer in taking} == {(32, 32), (16, 16), (8, 8)}
    assert mask_layers(taking) == released.released_mask_layers(taking)
    assert {layer.grid for layer in mask_layers(taking)} == {(16, 16)}
    assert len(mask_layers(taking)) == 5


def test_at_256_pixels_the_released_choice_does_not_fit_together_and_ours_does() -> None:
    taking = fused_layers(unet_layers((32, 16, 8, 4)), 1024)
    assert len({layer.grid for layer in released.released_mask_layers(taking)}) == 2
    assert {layer.grid for layer in mask_layers(taking)} == {(16, 16)}
