"""Noise levels, and steps from one to the next: the same arithmetic for every model and both directions.

Every path here is affine: a sample is `signal` times the clean latents plus `noise` times noise. A variance-
preserving path has signal^2 + noise^2 = 1 (DDPM, DDIM), EDM signal = 1 (Karras et al. 2022), a rectified
flow signal = 1 - noise. A network predicts the noise, the v of Salimans and Ho (2022), which belongs to the
angle of (signal, noise) and so is the same number on the first two paths, or noise minus clean on the third.

With the prediction frozen a step is linear in the sample, `x_lo = p x_hi + q out`, so its inverse is exact:
`x_hi = (x_lo - q out) / p`. With a noise or v prediction on a variance-preserving path that is DDIM (eq. 12
of Song et al. 2021, sigma 0); on the other paths it is an Euler step.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias, final

from jaxtyping import Float
from torch import Tensor

Prediction: TypeAlias = Literal["epsilon", "v_prediction", "flow"]
Timestep: TypeAlias = int | float


@final
@dataclass(frozen=True)
class Level:
    """A noise level: how much signal and noise a sample there holds, and what the network answers at it."""

    signal: float
    noise: float
    t: Timestep
    """The time that the network is told."""
    prediction: Prediction

    @property
    def log_snr(self) -> float:
        """Logarithm of signal over noise power: one scale for every path, infinite at the clean level."""
        if self.noise == 0:
            return math.inf
        return -math.inf if self.signal == 0 else 2 * math.log(self.signal / self.noise)


@final
@dataclass(frozen=True)
class Schedule:
    """Levels from the noisiest to the clean one, of which an edit takes those from number `start` on."""

    levels: tuple[Level, ...]
    start: int = 0

    def down(self) -> list[tuple[Level, Level]]:
        """Return the steps of a sampling, `(hi, lo)`, noisiest first."""
        return list(pairwise(self.levels[self.start :]))

    def up(self) -> list[tuple[Level, Level]]:
        """Return the steps of an inversion, `(lo, hi)`, cleanest first."""
        return [(lo, hi) for hi, lo in reversed(self.down())]


def step(
    x: Float[Tensor, "f c h w"], out: Float[Tensor, "f c h w"], hi: Level, lo: Level
) -> Float[Tensor, "f c h w"]:
    """Move a sample from one level to another with the prediction frozen."""
    p, q = _step_factors(hi, lo)
    return p * x + q * out


def inverse_step(
    x: Float[Tensor, "f c h w"], out: Float[Tensor, "f c h w"], lo: Level, hi: Level
) -> Float[Tensor, "f c h w"]:
    """Return the sample at `hi` that `step` with the same prediction brings to `x` at `lo`."""
    p, q = _step_factors(hi, lo)
    return (x - q * out) / p


def add_noise(
    clean: Float[Tensor, "f c h w"], eps: Float[Tensor, "f c h w"], level: Level
) -> Float[Tensor, "f c h w"]:
    """Bring clean latents to a noise level: eq. 4 of Song et al. 2021, on any path."""
    return level.signal * clean + level.noise * eps


def target(
    clean: Float[Tensor, "f c h w"], eps: Float[Tensor, "f c h w"], level: Level
) -> Float[Tensor, "f c h w"]:
    """Return what the network should predict at `add_noise(clean, eps, level)`."""
    match level.prediction:
        case "epsilon":
            return eps
        case "flow":
            return eps - clean
    return (level.signal * eps - level.noise * clean) / math.hypot(level.signal, level.noise)


def extrapolate(
    clean: Float[Tensor, "f c h w"], x: Float[Tensor, "f c h w"], lo: Level, hi: Level
) -> Float[Tensor, "f c h w"]:
    """Guess the sample at `hi` by keeping the noise that `x` at `lo` holds (Fan et al. 2024).

    For EDM that is `clean + (x - clean) * sigma_hi / sigma_lo`, for a rectified flow the straight line
    through both. From the clean level there is no noise to go by, and the guess has none.
    """
    if lo.noise == 0:
        return hi.signal * clean
    return add_noise(clean, (x - lo.signal * clean) / lo.noise, hi)


def guided(
    negative: Float[Tensor, "f c h w"],
    positive: Float[Tensor, "f c h w"],
    guidance: float | Float[Tensor, " f"],
) -> Float[Tensor, "f c h w"]:
    """Go from one prediction past another, by one weight or one a frame: eq. 6 of Ho and Salimans.

    It holds for every kind of prediction alike. The negative one is usually for an empty prompt. With that
    for the source prompt instead (Negative-prompt Inversion, Miyake et al. 2023), whatever the two prompts
    agree on is left as it is, and an edit to the same prompt changes nothing at any guidance.
    """
    weight = guidance.to(positive)[:, None, None, None] if isinstance(guidance, Tensor) else guidance
    return negative + weight * (positive - negative)


def _step_factors(hi: Level, lo: Level) -> tuple[float, float]:
    """Return the factors p and q of a step, `x_lo = p x_hi + q out`."""
    signal, noise = hi.signal, hi.noise
    if hi.prediction == "epsilon":
        p = lo.signal / signal
        return p, lo.noise - p * noise
    if hi.prediction == "flow":
        total = signal + noise
        return (lo.signal + lo.noise) / total, (lo.noise * signal - lo.signal * noise) / total
    radius = math.hypot(signal, noise)
    p = (lo.signal * signal + lo.noise * noise) / radius**2
    return p, (lo.noise * signal - lo.signal * noise) / radius
