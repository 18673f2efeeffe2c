"""DDIM forth and back (Song et al. 2021): from a clip to its noise, and the way down again.

The deterministic step with the network's output frozen is linear in the latents, `z_lo = a z_hi + b out`, for
noise and for velocity predictions alike, so its inverse is exact: `z_hi = (z_lo - b out) / a`. What is not
exact is the output: going down it is taken at `z_hi`, which going up is not known yet. Usual DDIM inversion
takes it at `z_lo` instead, at the timestep of `hi`. Doing so repeatedly, each time at the last guess of
`z_hi`, converges to the latents that the way down really passes through (fixed-point inversion, Pan et al.
2023).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, final, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from retouch.errors import ModelMismatch, ParamsError

Prediction: TypeAlias = Literal["epsilon", "v_prediction"]
Latents: TypeAlias = np.ndarray
"""Latents at rest, `f c h w`; may lie in a file."""


@final
@dataclass(frozen=True)
class Level:
    """A noise level: latents there are `signal` times the clean ones plus `noise` times noise."""

    t: int
    signal: float
    noise: float

    @classmethod
    def of(cls, t: int, alpha: float) -> "Level":
        """The level with that share of signal power."""
        return cls(t, math.sqrt(alpha), math.sqrt(1 - alpha))


@final
@dataclass(frozen=True)
class Schedule:
    """The levels of an n-step sampling, clean end first: rung k of an inversion lies at `levels[k]`."""

    levels: tuple[Level, ...]
    prediction: Prediction

    @property
    def steps(self) -> int:
        """How many steps lead from one end to the other."""
        return len(self.levels) - 1

    @property
    def ascending(self) -> list[tuple[Level, Level]]:
        """The steps of an inversion, `(lo, hi)`, cleanest first."""
        return list(zip(self.levels, self.levels[1:], strict=False))

    @property
    def descending(self) -> list[tuple[Level, Level]]:
        """The steps of a sampling, `(hi, lo)`, noisiest first."""
        return [(hi, lo) for lo, hi in reversed(self.ascending)]


@runtime_checkable
class Scheduled(Protocol):
    """What a schedule asks of a model; `retouch.models.image.StableDiffusion` has it."""

    @property
    def alphas_cumprod(self) -> Tensor:
        """The share of signal power at each training timestep."""
        ...

    @property
    def final_alpha(self) -> float:
        """The share below timestep 0."""
        ...

    @property
    def prediction(self) -> str:
        """What the network predicts."""
        ...

    def timesteps(self, steps: int) -> list[int]:
        """The timesteps of an n-step sampling, noisiest first."""
        ...


def schedule(model: Scheduled, steps: int) -> Schedule:
    """The levels that a model's own scheduler visits in so many steps.

    Raises:
        ModelMismatch: the network predicts something that cannot be inverted.
    """
    times = model.timesteps(steps)[::-1]
    if len(set(times)) != steps:
        raise ParamsError(f"steps is {steps}; this model tells only {len(set(times))} levels apart")
    levels = [Level.of(t, float(model.alphas_cumprod[t])) for t in times]
    return checked(Schedule((Level.of(-1, model.final_alpha), *levels), _prediction(model.prediction)))


def checked(schedule: Schedule) -> Schedule:
    """The same schedule, if every step of it can be walked both ways.

    Raises:
        ModelMismatch: one cannot.
    """
    for lo, hi in schedule.ascending:
        if schedule.prediction == "epsilon" and hi.signal == 0:
            raise ModelMismatch(
                "a model that predicts noise cannot start from pure noise",
                hint="use a scheduler without rescaled betas, or a model that predicts velocity",
            )
        if _line(hi, lo, schedule.prediction)[0] <= 0:
            raise ModelMismatch(
                "a single step from pure noise to the clean end cannot be inverted", hint="steps 2"
            )
    return schedule


def move(
    z: Float[Tensor, "f c h w"], out: Float[Tensor, "f c h w"], hi: Level, lo: Level, prediction: Prediction
) -> Float[Tensor, "f c h w"]:
    """A DDIM step down: eq. 12 of Song et al. with sigma 0."""
    a, b = _line(hi, lo, prediction)
    return a * z + b * out


def move_back(
    z: Float[Tensor, "f c h w"], out: Float[Tensor, "f c h w"], lo: Level, hi: Level, prediction: Prediction
) -> Float[Tensor, "f c h w"]:
    """The latents that `move` with the same output would bring to `z`."""
    a, b = _line(hi, lo, prediction)
    return (z - b * out) / a


def clean(
    z: Float[Tensor, "f c h w"], out: Float[Tensor, "f c h w"], level: Level, prediction: Prediction
) -> Float[Tensor, "f c h w"]:
    """The clean latents that the network's output means."""
    if prediction == "epsilon":
        return (z - level.noise * out) / level.signal
    return level.signal * z - level.noise * out


@final
@dataclass(frozen=True, eq=False)
class Ladder:
    """What inversion leaves behind: the clip's latents at every level, the clean ones first.

    It is all that is needed to know the source's attention at any step: the network is asked again.
    """

    rungs: np.ndarray
    """`n+1 f c h w`, in the precision that the inversion ran in; may lie in a file."""

    @property
    def steps(self) -> int:
        """How many steps lead from one end to the other."""
        return len(self.rungs) - 1


Predict: TypeAlias = Callable[[Latents, Latents, Level], None]
"""Writes the network's output for the first latents, at a level, into the second."""


def climb(
    rungs: np.ndarray,
    predict: Predict,
    schedule: Schedule,
    *,
    spare: Latents,
    iterations: int = 1,
    done: int = 0,
) -> Iterator[int]:
    """Inverts `rungs[0]`, filling one rung of the ladder at a time and yielding its number.

    Args:
        rungs: `n+1 f c h w`; rung 0, and all up to `done`, hold latents already.
        predict: Asks the network; latents may lie in files and be longer than memory.
        schedule: The levels of the rungs.
        spare: Room for one network output.
        iterations: Network calls per step; 1 is DDIM inversion as usual.
        done: The last rung that is there, to go on from.
    """
    for k, (lo, hi) in list(enumerate(schedule.ascending))[done:]:
        rungs[k + 1] = rungs[k]
        for _ in range(iterations):
            guess = rungs[k + 1]
            predict(guess, spare, hi)
            for part in parts(len(spare)):
                below, out = torch.tensor(rungs[k][part]), torch.from_numpy(spare[part])
                guess[part] = move_back(below, out, lo, hi, schedule.prediction).numpy()
        yield k + 1


FRAMES_AT_ONCE = 32
"""Frames whose latents are taken from a file together."""


def parts(frames: int) -> Sequence[slice]:
    """Slices that cover a clip without loading it whole."""
    return [slice(a, min(a + FRAMES_AT_ONCE, frames)) for a in range(0, frames, FRAMES_AT_ONCE)]


def _line(hi: Level, lo: Level, prediction: Prediction) -> tuple[float, float]:
    """The two factors of a step down, `z_lo = a z_hi + b out`."""
    if prediction == "epsilon":
        a = lo.signal / hi.signal
        return a, lo.noise - a * hi.noise
    return lo.signal * hi.signal + lo.noise * hi.noise, lo.noise * hi.signal - lo.signal * hi.noise


def _prediction(name: str) -> Prediction:
    match name:
        case "epsilon" | "v_prediction":
            return name
    raise ModelMismatch(
        f"the model predicts {name!r}; inversion knows epsilon and v_prediction", hint="use another model"
    )
