"""A hole in a pattern, filled and held against the pattern."""

import torch
from torch import Tensor

from retouch.atlas.complete import complete_texture

STRAY = 0.12
"""Mean error, of a range of 1, below which a fill goes on with the pattern; a smooth one has .3 or more."""


def stripes() -> Tensor:
    x = torch.arange(48.0)
    return (0.5 + 0.5 * torch.sin(x / 1.6)).expand(3, 40, 48).contiguous()


def square() -> Tensor:
    hole = torch.zeros(1, 40, 48, dtype=torch.bool)
    hole[:, 12:28, 16:34] = True
    return hole


def test_a_pattern_goes_on_through_a_hole() -> None:
    true, hole = stripes(), square()
    smooth = torch.where(hole, torch.tensor(0.5), true)
    made = complete_texture(smooth, hole, ~hole)
    inside = hole.expand(3, -1, -1)
    assert float((made - true).abs()[inside].mean()) < STRAY < float((smooth - true).abs()[inside].mean())
    assert torch.equal(made[~inside], true[~inside])


def test_what_is_not_known_is_not_copied() -> None:
    true, hole = stripes(), square()
    true[:, :, 38:] = 9.0
    known = ~hole
    known[:, :, 38:] = False
    made = complete_texture(torch.where(hole, torch.tensor(0.5), true), hole, known)
    assert float(made[hole.expand(3, -1, -1)].max()) <= 1.0


def test_where_nothing_is_known_or_nothing_missing_a_texture_stays_as_it_is() -> None:
    true, hole = stripes(), square()
    everything = torch.ones_like(hole)
    assert torch.equal(complete_texture(true, ~everything, everything), true)
    assert torch.equal(complete_texture(true, hole, ~everything), true)
