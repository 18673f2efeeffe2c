"""Steps along a noise path, forth and back, as arithmetic on two levels.

Every path here is affine: a sample is `a` times the clean latents plus `b` times noise. EDM has a = 1 and b =
sigma (Karras et al. 2022), a variance-preserving path a^2 + b^2 = 1, a rectified flow a = 1 - t and b = t.
The network predicts v (Salimans and Ho 2022) on the first two, which is the same number for both since it
belongs to the angle of (a, b), and noise minus clean on the third. A step moves from one level to another
with the prediction frozen, which makes it linear in the sample, `x_lo = p x_hi + q v`, and its inverse exact:
`x_hi = (x_lo - q v) / p`. Written so, no level is special, neither the clean one nor pure noise.
"""

import math

from jaxtyping import Float
from torch import Tensor

from retouch.models.image_to_video import Level


def step(
    x: Float[Tensor, "f c h w"], velocity: Float[Tensor, "f c h w"], hi: Level, lo: Level
) -> Float[Tensor, "f c h w"]:
    """Moves a sample from one level to another with the prediction frozen: an Euler step, on any path."""
    p, q = _line(hi, lo)
    return p * x + q * velocity


def inverse_step(
    x: Float[Tensor, "f c h w"], velocity: Float[Tensor, "f c h w"], lo: Level, hi: Level
) -> Float[Tensor, "f c h w"]:
    """Finds the sample at `hi` that `step` with the same prediction brings to `x` at `lo`."""
    p, q = _line(hi, lo)
    return (x - q * velocity) / p


def clean(
    x: Float[Tensor, "f c h w"], velocity: Float[Tensor, "f c h w"], level: Level
) -> Float[Tensor, "f c h w"]:
    """Gives the clean latents that a prediction implies."""
    (p, q), _ = _parts(level)
    return p * x + q * velocity


def noise(
    x: Float[Tensor, "f c h w"], velocity: Float[Tensor, "f c h w"], level: Level
) -> Float[Tensor, "f c h w"]:
    """Gives the noise that a prediction implies."""
    _, (p, q) = _parts(level)
    return p * x + q * velocity


def velocity_of(
    x: Float[Tensor, "f c h w"], clean: Float[Tensor, "f c h w"], level: Level
) -> Float[Tensor, "f c h w"]:
    """Gives the prediction that implies certain clean latents; needs a level above the clean one."""
    (p, q), _ = _parts(level)
    return (clean - p * x) / q


def renoise(
    clean: Float[Tensor, "f c h w"], eps: Float[Tensor, "f c h w"], level: Level
) -> Float[Tensor, "f c h w"]:
    """Gives clean latents the noise of a level."""
    return level.a * clean + level.b * eps


def extrapolate(
    clean: Float[Tensor, "f c h w"], x: Float[Tensor, "f c h w"], lo: Level, hi: Level
) -> Float[Tensor, "f c h w"]:
    """Guesses the sample at `hi` by keeping the noise that `x` at `lo` holds: noise extrapolation.

    For EDM that is `clean + (x - clean) * sigma_hi / sigma_lo`, for a rectified flow the straight line
    through both.
    """
    eps = (x - lo.a * clean) / lo.b
    return renoise(clean, eps, hi)


def log_snr(level: Level) -> float:
    """Logarithm of signal over noise power: one scale for every path, infinite at the clean level."""
    if level.b == 0:
        return math.inf
    return -math.inf if level.a == 0 else 2 * math.log(level.a / level.b)


def _parts(level: Level) -> tuple[tuple[float, float], tuple[float, float]]:
    """What x and the prediction count for in the clean latents, and in the noise."""
    a, b = level.a, level.b
    if level.path == "flow":
        return (1 / (a + b), -b / (a + b)), (1 / (a + b), a / (a + b))
    radius = math.hypot(a, b)
    return (a / radius**2, -b / radius), (b / radius**2, a / radius)


def _line(hi: Level, lo: Level) -> tuple[float, float]:
    """The two factors p and q of a step, `x_lo = p x_hi + q v`."""
    (clean_x, clean_v), (noise_x, noise_v) = _parts(hi)
    return lo.a * clean_x + lo.b * noise_x, lo.a * clean_v + lo.b * noise_v
