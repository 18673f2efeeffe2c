"""The two walks of Videoshop: up into noise given the old first frame, and down again given the new one.

The paper's inversion is an implicit Euler step: the sample at the next noisier level is the one that the
sampler's own step would bring back. Where to ask the network, before that sample is known, is a guess, and
noise extrapolation is a good one: the noise that the current sample holds belongs to the next sample too.
With the network asked once, at the guess, this is the released method; each further call asks nearer to the
exact inverse.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from retouch.artifacts import Draft
from retouch.diffusion.euler import extrapolate, inverse_step, log_snr, renoise, step
from retouch.diffusion.fixed_point import fixed_point
from retouch.models.image_to_video import Condition, ImageToVideo, Level, Schedule
from retouch.run import Run

STEPS_A_DRAFT: Final = 4
"""Steps of an inversion that a kill may cost."""
Latents: TypeAlias = Float[Tensor, "g c h w"]
Guess: TypeAlias = Callable[[Latents, Latents, Level, Level], Latents]


def invert(
    model: ImageToVideo,
    clean: Latents,
    schedule: Schedule,
    condition: Condition,
    *,
    guess: Guess,
    calls: int,
    run: Run,
    against: Condition | None = None,
    guidance: float = 1.0,
    draft: Draft | None = None,
) -> Float[Tensor, "n g c h w"]:
    """Walks up from the clean latents and gives every sample on the way, the clean one first.

    Every step asks the network `calls` times. With a draft, the walk goes on where one that was stopped left
    off.
    """

    def above(x: Latents, lo: Level, hi: Level, guessed: Latents) -> Latents:
        velocity = model.predict(guessed, hi, condition, against=against, guidance=guidance)
        return model.held(inverse_step(x, velocity, lo, hi), condition)

    kept = draft.load() if draft else None
    ladder = list(kept["ladder"].to(clean)) if kept else [model.held(clean, condition)]
    for at in run.steps("invert", schedule.up()):
        if at.index < len(ladder) - 1:
            continue
        (lo, hi), x = at.item, ladder[-1]
        guessed = model.held(guess(clean, x, lo, hi), condition)
        ladder.append(at.done(fixed_point(partial(above, x, lo, hi), guessed, calls=calls)))
        if draft and len(ladder) % STEPS_A_DRAFT == 0:
            draft.save({"ladder": torch.stack(ladder)})
    return torch.stack(ladder)


def sample(
    model: ImageToVideo,
    x: Latents,
    schedule: Schedule,
    condition: Condition,
    *,
    run: Run,
    against: Condition | None = None,
    guidance: float | Float[Tensor, " g"] = 1.0,
    settled: "Settled | None" = None,
    stage: str = "sample",
) -> Latents:
    """Walks down from noise; what is `settled` already leads the rest."""
    x = model.held(x if settled is None else settled.put(x, 0), condition)
    for at in run.steps(stage, schedule.down()):
        hi, lo = at.item
        velocity = model.predict(x, hi, condition, against=against, guidance=guidance)
        x = model.held(step(x, velocity, hi, lo), condition)
        x = at.done(x if settled is None else settled.put(x, at.index + 1))
    return x


@final
@dataclass(frozen=True, eq=False)
class Settled:
    """Latents that are known before a window is sampled, as samples at every level of the way down.

    They follow the source's own samples, moved by what the edit changed: so they carry the source's noise,
    and where nothing was edited they are the source's samples exactly.
    """

    samples: Float[Tensor, "n g c h w"]
    where: Bool[Tensor, "g 1 h w"]

    @classmethod
    def of(
        cls,
        ladder: Float[Tensor, "n g c h w"],
        edited: Latents,
        where: Bool[Tensor, "g 1 h w"],
        schedule: Schedule,
    ) -> "Settled":
        """Moves a source's ladder to edited latents, at every level; they count where it says."""
        signal = torch.tensor([level.a for level in schedule.levels[schedule.start :]]).to(ladder)
        change = signal[:, None, None, None, None] * (edited - ladder[0])
        return cls(ladder.flip(0) + change, where)

    def put(self, x: Latents, index: int) -> Latents:
        """Gives the sample after step `index` with what is known in its place."""
        return torch.where(self.where, self.samples[index], x)


def same_noise(clean: Latents, x: Latents, lo: Level, hi: Level) -> Latents:
    """Guesses that the next sample holds the same noise, wherever there is any noise to go by."""
    return hi.a * clean if lo.b == 0 else extrapolate(clean, x, lo, hi)


def same_sample(_clean: Latents, x: Latents, _lo: Level, _hi: Level) -> Latents:
    """Guesses that the next sample is the current one: plain inversion, without extrapolation."""
    return x


def drawn_then_same(eps: Latents, threshold: float = 0.0) -> Guess:
    """Gives the released rule: drawn noise while the signal is above the noise, extrapolation from then on.

    Args:
        eps: the noise to draw, already as strong as the clean latents.
        threshold: log signal-to-noise ratio under which the current sample's own noise is trusted.
    """

    def guess(clean: Latents, x: Latents, lo: Level, hi: Level) -> Latents:
        return extrapolate(clean, x, lo, hi) if log_snr(lo) < threshold else renoise(clean, eps, hi)

    return guess
