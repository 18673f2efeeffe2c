import numpy as np
import torch

from retouch.models.face import alphas_cumprod
from retouch.models.face_losses import losses_of


def naive(
    answers: list[np.ndarray], x: np.ndarray, t: int, noises: list[np.ndarray], mask: np.ndarray, cap: float
) -> tuple[float, float]:
    alpha = float(alphas_cumprod()[t])
    simple = sum(np.abs(noise - eps).mean() for noise, eps in zip(noises, answers, strict=True))
    noisy = [alpha**0.5 * x + (1 - alpha) ** 0.5 * noise for noise in noises]
    seen = [(n - (1 - alpha) ** 0.5 * eps) / alpha**0.5 for n, eps in zip(noisy, answers, strict=True)]
    weight = min(1.0, cap / ((1 - alpha) / alpha) ** 0.5)
    return float(simple), float(np.abs(mask * weight * (seen[0] - seen[1])).mean())


def test_losses_are_those_of_the_formulas_and_the_cap_holds_noisy_levels_down() -> None:
    dice, times = np.random.default_rng(0), [20, 500, 950]
    x, one, other, first, second = (dice.normal(size=(3, 3, 4, 4)).astype(np.float32) for _ in range(5))
    mask = (dice.random((3, 1, 4, 4)) > 0.5).astype(np.float32)
    as_tensors = [torch.from_numpy(v) for v in (x, one, other, first, second, mask)]
    for cap in (float("inf"), 1.0):
        found = losses_of(
            (as_tensors[1], as_tensors[2]),
            as_tensors[0],
            torch.tensor(times),
            (as_tensors[3], as_tensors[4]),
            as_tensors[5],
            cap=cap,
        )
        for n, t in enumerate(times):
            wanted = naive([one[n], other[n]], x[n], t, [first[n], second[n]], mask[n], cap)
            assert np.allclose((found.simple[n], found.consistency[n]), wanted, rtol=1e-3)
        assert torch.allclose(found.total, found.simple.mean() + found.consistency.mean())
    assert (
        found.consistency[2]
        < 0.05 * naive([one[2], other[2]], x[2], 950, [first[2], second[2]], mask[2], 1e9)[1]
    )


def test_a_right_answer_costs_nothing() -> None:
    noise = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    x, t, mask = torch.zeros(2, 3, 4, 4), torch.tensor([100, 400]), torch.ones(2, 1, 4, 4)
    found = losses_of((noise[0], noise[1]), x, t, (noise[0], noise[1]), mask)
    assert found.total < 1e-5
