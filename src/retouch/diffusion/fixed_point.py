"""Solving `f(x) = x` where every call of f asks a network: what calls have shown goes into the next guess.

Asking again at the last answer converges only where f contracts, and slowly where it contracts little. Here
two calls in a row show how an error changes under f, and the next guess is the point between their answers
where the error would vanish if it changed alike everywhere: the secant rule, or Anderson's (1965) with a
memory of one. Every frame has its own rule, as if it were solved alone. No call is added.
"""

from collections.abc import Callable
from typing import Final, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

Clip: TypeAlias = Float[Tensor, "g c h w"]
REACH: Final = 5.0
"""How far the next guess may lie, in distances of the last two answers: rounding errors know no direction."""


def fixed_point(f: Callable[[Clip], Clip], guess: Clip, *, calls: int) -> Clip:
    """Gives the best known solution of `f(x) = x` after so many calls of f; after one, that is `f(guess)`."""
    best = answer = f(guess)
    error = answer - guess
    for _ in range(calls - 1):
        before, error_before, guess = answer, error, best
        answer = f(guess)
        error = answer - guess
        best = answer - _share(error, error - error_before) * (answer - before)
    return best


def _share(error: Clip, change: Clip) -> Float[Tensor, "g 1 1 1"]:
    """How much of its change takes an error away, in each frame; none where nothing changed."""
    wanted, given = error.float().flatten(1), change.float().flatten(1)
    length = given.square().sum(1)
    share = torch.where(length > 0, (wanted * given).sum(1) / length, 0.0).clamp(-REACH, REACH)
    return share.to(error.dtype)[:, None, None, None]
