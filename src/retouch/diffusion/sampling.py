"""Sampling: from noise down to latents."""

from collections.abc import Callable, Iterable
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor

from retouch.models.noise_path import Level, step
from retouch.run import Step

Clip: TypeAlias = Float[Tensor, "f c h w"]


def sample(
    x: Clip,
    predict: Callable[[Clip, Level], Clip],
    steps: Iterable[Step[tuple[Level, Level]]],
    *,
    replace: Callable[[Clip, Level], Clip] = lambda x, _level: x,
) -> Clip:
    """Sample from `x` down the steps, `(hi, lo)`; `replace` puts in what is known after each."""
    for at in steps:
        hi, lo = at.item
        x = at.done(replace(step(x, predict(x, hi), hi, lo), lo))
    return x
