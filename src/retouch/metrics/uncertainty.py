"""How far a mean over clips can be trusted: bootstrap intervals, and paired differences."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from retouch.errors import InputError

FEWEST = 5
"""Clips below which nothing is decided: the interval of so few is too narrow."""


@final
@dataclass(frozen=True)
class MeanInterval:
    """A mean over `clips` clips with the ends of its bootstrap interval."""

    mean: float
    low: float
    high: float
    clips: int

    @property
    def sign(self) -> int:
        """1 where the whole interval lies above zero, -1 where below, 0 where nothing is decided."""
        return int(self.low > 0) - int(self.high < 0) if self.clips >= FEWEST else 0


def bootstrap_interval(
    values: Sequence[float], *, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> MeanInterval:
    """Return the mean of `values`, one per clip, with its percentile bootstrap interval over clips.

    Raises:
        InputError: there is no value, or one that is no number; a mean that hides it would be a lie.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0 or not np.isfinite(x).all():
        raise InputError(
            f"{x.size} values, {int((~np.isfinite(x)).sum())} of them not finite, have no interval",
            hint="leave out the clips on which the metric is not defined, in every row alike",
        )
    drawn = np.random.default_rng(seed).integers(0, x.size, size=(draws, x.size))
    means = x[drawn].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return MeanInterval(float(x.mean()), float(low), float(high), int(x.size))


def paired_interval(
    values: Sequence[float],
    others: Sequence[float],
    *,
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> MeanInterval:
    """Return the mean of `values - others` with its interval, both taken on the same clips in the same order.

    Hard clips are hard for both, so that this is far narrower than the two intervals side by side.
    """
    if len(values) != len(others):
        raise InputError(
            f"{len(values)} and {len(others)} values do not pair", hint="measure both on the same clips"
        )
    return bootstrap_interval(
        [a - b for a, b in zip(values, others, strict=True)], level=level, draws=draws, seed=seed
    )
