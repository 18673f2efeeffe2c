import torch
from torch import Tensor

from retouch.diffusion.guidance import nested
from retouch.models.noise_path import guided

ROUNDING = 1e-5


def three(seed: int = 0) -> list[Tensor]:
    made = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 4, 3, 3, generator=made) for _ in range(3)]


def test_equal_weights_are_guidance_over_both_at_once() -> None:
    base, picture, words = three()
    made = nested(base, picture, words, picture_guidance=3.5, guidance=3.5)
    assert torch.allclose(made, guided(base, words, 3.5), atol=ROUNDING)


def test_ones_are_the_prediction_for_both_and_zeros_that_for_neither() -> None:
    base, picture, words = three()
    both = nested(base, picture, words, picture_guidance=1, guidance=1)
    assert torch.allclose(both, words, atol=ROUNDING)
    assert torch.equal(nested(base, picture, words, picture_guidance=0, guidance=0), base)


def test_without_weight_the_words_are_not_heard_and_with_it_they_are() -> None:
    base, picture, words = three()
    silent = nested(base, picture, words, picture_guidance=2, guidance=0)
    assert torch.equal(silent, nested(base, picture, -words, picture_guidance=2, guidance=0))
    loud = nested(base, picture, words, picture_guidance=2, guidance=1)
    assert not torch.allclose(loud, silent)


def test_a_source_that_is_asked_for_is_left_as_it_is_at_any_weight() -> None:
    base = three()[0]
    assert torch.equal(nested(base, base, base, picture_guidance=7, guidance=9), base)
