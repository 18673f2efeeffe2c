"""What is taken out of latents and put back."""

import pytest
import torch
from torch import Tensor

from retouch.diffusion.latents import Moments, Normaliser, match_area, match_frame

CLOSE = 1e-5  # float32


def latents() -> Tensor:
    draw = torch.randn(3, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    return draw * torch.tensor([0.5, 1, 2, 3])[:, None, None] + torch.tensor([1, -1, 0, 2])[:, None, None]


@pytest.mark.parametrize("over", ["none", "clip", "channel", "frame"])
def test_what_is_taken_out_can_be_put_back(over: Normaliser) -> None:
    moments = Moments.of(latents(), over)
    back = moments.restore(moments.standardise(latents()))
    torch.testing.assert_close(back, latents(), atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize(
    ("over", "axes"), [("clip", (0, 1, 2, 3)), ("channel", (0, 2, 3)), ("frame", (1, 2, 3))]
)
def test_standardised_latents_have_mean_0_and_deviation_1(over: Normaliser, axes: tuple[int, ...]) -> None:
    done = Moments.of(latents(), over).standardise(latents())
    assert float(done.mean(dim=axes).abs().max()) < CLOSE
    assert float((done.std(dim=axes) - 1).abs().max()) < CLOSE


def test_matching_undoes_a_tint_of_each_channel() -> None:
    tint = torch.tensor([2.0, 0.5, 1.5, 1.0])[:, None, None]
    tinted = latents() * tint + tint
    torch.testing.assert_close(
        match_frame(tinted, tinted[:1], latents()[:1]), latents(), atol=CLOSE, rtol=CLOSE
    )


def test_matching_moves_a_channel_without_contrast_and_does_not_blow_it_up() -> None:
    flat = torch.full((1, 1, 6, 8), 3.0)
    done = match_frame(flat, flat, latents()[:1, :1])
    assert torch.isfinite(done).all()
    torch.testing.assert_close(done.mean(), latents()[0, 0].mean(), atol=CLOSE, rtol=CLOSE)


def test_matching_an_area_looks_at_nothing_else() -> None:
    edited, where = latents() * 2 + 1, torch.zeros(3, 1, 6, 8, dtype=torch.bool)
    where[:, :, :, 4:] = True
    edited[:, :, :, :4] = 77
    done = match_area(edited, latents(), where)
    torch.testing.assert_close(done[:, :, :, 4:], latents()[:, :, :, 4:], atol=CLOSE, rtol=CLOSE)
