"""What a call captures: queries and keys, attention to words, and where the object is by it."""

import torch
from torch import Tensor

from retouch.diffusion.attention import Gather, Layer, Rule
from retouch.diffusion.capture import CaptureRule, ObjectMask, WordAttention, capture_source, object_mask

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


def test_a_truncated_call_ends_at_the_last_layer_that_is_wanted_and_has_captured_the_same() -> None:
    q, k, v = (random(3, 2, 6, 4, seed=n) for n in range(3))
    late = Layer("up", "self", 1, 1, 8, (2, 3))
    columns = torch.ones(6, 1, dtype=torch.float64)
    ran = list[Layer]()

    def network(rule: Rule) -> None:
        for layer in (SELF, CROSS, late):
            rule(layer, q, k, v)
            ran.append(layer)

    whole = CaptureRule(GATHER, frozenset({SELF}), WordAttention(frozenset({CROSS}), columns))
    network(whole)
    assert ran == [SELF, CROSS, late]
    ran.clear()
    words = WordAttention(frozenset({CROSS}), columns)
    source = capture_source(network, GATHER, frozenset({SELF}), words)
    assert ran == [SELF], "nothing is computed in the last layer beyond what was asked, nor after it"
    assert source.queries[SELF] is q
    assert torch.equal(words.mean_map(), whole.words.mean_map())


def test_reading_adds_up_the_map_over_words_and_means_over_heads_and_layers() -> None:
    columns = torch.tensor([[0.0, 1], [1, 0], [1, 0], [0, 0]], dtype=torch.float64)
    other = Layer("up", "cross", 1, 1, 8, (2, 3))
    words = WordAttention(frozenset({CROSS, other}), columns)
    maps = []
    for seed, layer in ((0, CROSS), (1, other), (2, SELF)):
        q, k = random(3, 2, 6, 4, seed=seed), random(3, 2, 4, 4, seed=seed + 5)
        words.read(layer, q, k)
        maps.append(weights(q, k).mean(1))
    mean = (maps[0] + maps[1]) / 2
    word_map = words.mean_map()
    assert word_map.shape == (3, 2, 2, 3)
    assert torch.allclose(word_map[:, 0].flatten(1), mean[..., 1] + mean[..., 2], atol=ROUNDING)
    assert torch.allclose(word_map[:, 1].flatten(1), mean[..., 0], atol=ROUNDING)


def test_the_object_is_where_word_map_is_near_its_peak_grown_by_a_pixel() -> None:
    word_map = torch.full((2, 8, 12), 0.1)
    word_map[0, 3, 4] = 1.0
    word_map[1, 6, 9] = 0.01
    mask = object_mask(word_map, (8, 12), 0.5)
    assert mask[0].nonzero().tolist() == [[y, x] for y in (2, 3, 4) for x in (3, 4, 5)]
    assert bool(mask[1].all()), "each frame is measured by its own peak"
    assert object_mask(word_map, (16, 24), 0.5)[0].sum() == 36
    assert not object_mask(torch.zeros(1, 4, 4), (4, 4), 0.3).any()


def test_an_object_is_averaged_over_its_neighbours_nearer_ones_counting_more() -> None:
    word_map = torch.zeros(3, 4, 4)
    word_map[0, 1, 1] = word_map[2, 1, 1] = 1.0
    word_map[1, 3, 3] = 0.9
    alone = ObjectMask(0.5).at(word_map, range(3), (4, 4))
    smooth = ObjectMask(0.5, smoothing=1).at(word_map, range(3), (4, 4))
    assert not alone[1, 1, 1]
    assert smooth[1, 1, 1], "both neighbours say so"
    assert smooth[1, 3, 3]


def test_an_object_that_is_given_is_not_looked_for_and_any_pixel_counts() -> None:
    given = torch.zeros(3, 8, 8, dtype=torch.bool)
    given[2, 5, 6] = True
    found = ObjectMask(0.5, given=given).at(torch.rand(2, 2, 2), (0, 2), (2, 2))
    assert found.tolist() == [[[False, False], [False, False]], [[False, False], [False, True]]]
