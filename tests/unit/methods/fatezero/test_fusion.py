import torch
from torch import Tensor

from retouch.diffusion.attention import Gather, Layer
from retouch.methods.fatezero.fusion import (
    Fuse,
    Reading,
    Watch,
    captured,
    mask_layers,
    object_mask,
    released_mask_layers,
)

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
    watch = Watch(GATHER, frozenset({SELF}))
    watch(SELF, qs, ks, vs)
    inside = torch.rand(3, 2, 3, generator=torch.Generator().manual_seed(0)) > 0.5
    source, own = weights(qs, GATHER(SELF, ks)), weights(qe, GATHER(SELF, ke))
    rows = inside.flatten(1)[:, None, :, None]
    for masks, kept in ((None, source), ({(2, 3): inside}, torch.where(rows, own, source))):
        ours = Fuse(GATHER, watch.seen, object_at=masks)(SELF, qe, ke, ve)
        assert torch.allclose(ours, kept @ GATHER(SELF, ve), atol=ROUNDING)


def test_fused_cross_attention_mixes_the_columns_of_both_maps() -> None:
    words = 7
    qs, qe = random(3, 2, 6, 4, seed=1), random(3, 2, 6, 4, seed=2)
    ks, ke, ve = (random(1, 2, words, 4, seed=s).expand(3, -1, -1, -1) for s in (3, 4, 5))
    taken, kept = random(words, words, seed=6), random(words, seed=7)
    watch = Watch(GATHER, frozenset({CROSS}))
    watch(CROSS, qs, ks, ve)
    mixed = weights(qs, ks) @ taken + weights(qe, ke) * kept
    assert torch.allclose(
        Fuse(GATHER, watch.seen, (taken, kept))(CROSS, qe, ke, ve), mixed @ ve, atol=ROUNDING
    )
    none = torch.zeros_like(kept)
    replaced = weights(qs, ks) @ taken @ ve
    assert torch.allclose(Fuse(GATHER, watch.seen, (taken, none))(CROSS, qe, ke, ve), replaced, atol=ROUNDING)


def test_layers_that_were_not_watched_stay_the_edits_own() -> None:
    q, k, v = (random(3, 2, 6, 4, seed=n) for n in range(3))
    watch = Watch(GATHER, frozenset())
    watch(SELF, q + 1, k - 1, v)
    own = weights(q, GATHER(SELF, k)) @ GATHER(SELF, v)
    assert torch.allclose(Fuse(GATHER, watch.seen)(SELF, q, k, v), own, atol=ROUNDING)


def test_a_brief_call_ends_at_the_last_layer_that_is_looked_at_and_has_seen_the_same() -> None:
    q, k, v = (random(3, 2, 6, 4, seed=n) for n in range(3))
    late = Layer("up", "self", 1, 1, 8, (2, 3))
    columns = torch.ones(6, 1, dtype=torch.float64)
    ran = list[Layer]()

    def network(rule: Watch) -> None:
        for layer in (SELF, CROSS, late):
            rule(layer, q, k, v)
            ran.append(layer)

    whole = Watch(GATHER, frozenset({SELF}), Reading(frozenset({CROSS}), columns))
    network(whole)
    assert ran == [SELF, CROSS, late]
    ran.clear()
    brief = Watch(GATHER, frozenset({SELF}), Reading(frozenset({CROSS}), columns))
    brief.during(network)
    assert ran == [SELF], "nothing is computed in the last layer beyond what was asked, nor after it"
    assert brief.seen.queries[SELF] is q
    assert torch.equal(brief.reading.heat(), whole.reading.heat())


def test_reading_adds_up_the_map_over_words_and_means_over_heads_and_layers() -> None:
    columns = torch.tensor([[0.0, 1], [1, 0], [1, 0], [0, 0]], dtype=torch.float64)
    other = Layer("up", "cross", 1, 1, 8, (2, 3))
    reading = Reading(frozenset({CROSS, other}), columns)
    maps = []
    for seed, layer in ((0, CROSS), (1, other), (2, SELF)):
        q, k = random(3, 2, 6, 4, seed=seed), random(3, 2, 4, 4, seed=seed + 5)
        reading.read(layer, q, k)
        maps.append(weights(q, k).mean(1))
    mean = (maps[0] + maps[1]) / 2
    heat = reading.heat()
    assert heat.shape == (3, 2, 2, 3)
    assert torch.allclose(heat[:, 0].flatten(1), mean[..., 1] + mean[..., 2], atol=ROUNDING)
    assert torch.allclose(heat[:, 1].flatten(1), mean[..., 0], atol=ROUNDING)


def test_the_object_is_where_heat_is_near_its_peak_grown_by_a_pixel() -> None:
    heat = torch.full((2, 8, 12), 0.1)
    heat[0, 3, 4] = 1.0
    heat[1, 6, 9] = 0.01
    mask = object_mask(heat, (8, 12), 0.5)
    assert mask[0].nonzero().tolist() == [[y, x] for y in (2, 3, 4) for x in (3, 4, 5)]
    assert bool(mask[1].all()), "each frame is measured by its own peak"
    assert object_mask(heat, (16, 24), 0.5)[0].sum() == 36
    assert not object_mask(torch.zeros(1, 4, 4), (4, 4), 0.3).any()


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
    taking = captured(unet_layers((64, 32, 16, 8)), 1024)
    assert {layer.grid for layer in taking} == {(32, 32), (16, 16), (8, 8)}
    assert mask_layers(taking) == released_mask_layers(taking)
    assert {layer.grid for layer in mask_layers(taking)} == {(16, 16)}
    assert len(mask_layers(taking)) == 5


def test_at_256_pixels_the_released_choice_does_not_fit_together_and_ours_does() -> None:
    taking = captured(unet_layers((32, 16, 8, 4)), 1024)
    assert len({layer.grid for layer in released_mask_layers(taking)}) == 2
    assert {layer.grid for layer in mask_layers(taking)} == {(16, 16)}
