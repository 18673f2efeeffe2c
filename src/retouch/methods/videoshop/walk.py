"""The two walks of Videoshop: up into noise given the old first frame, and down again given the new one.

The paper's inversion is an implicit Euler step: the sample at the next noisier level is the one that the
sampler's own step would bring back. Where to ask the network, before that sample is known, is a guess, and
noise extrapolation is a good one: the noise that the current sample holds belongs to the next sample too.
With the network asked once, at the guess, this is the released method; each further call asks nearer to the
exact inverse.
"""

from dataclasses import dataclass
from typing import Final, TypeAlias, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from retouch.diffusion import inversion
from retouch.diffusion.inversion import Start
from retouch.identity import identity
from retouch.models.image_to_video import Condition, ImageToVideo
from retouch.models.noise_path import Level, Schedule, step
from retouch.run import Run

STEPS_A_DRAFT: Final = 4
"""Steps of an inversion that a kill may cost."""
Latents: TypeAlias = Float[Tensor, "g c h w"]


def invert(
    model: ImageToVideo,
    clean: Latents,
    schedule: Schedule,
    condition: Condition,
    *,
    guess: Start | None,
    calls: int,
    run: Run,
    against: Condition | None = None,
    guidance: float = 1.0,
) -> Float[Tensor, "n g c h w"]:
    """Walks up from the clean latents and gives every sample on the way, the clean one first.

    Every step asks the network `calls` times. It goes on where one that was stopped left off.
    """

    def predict(x: Latents, level: Level) -> Latents:
        return model.predict(x, level, condition, against=against, guidance=guidance)

    steps = schedule.up()
    ladder = clean.new_empty(len(steps) + 1, *clean.shape)
    ladder[0] = clean
    job = identity((clean, condition, steps, calls, guidance))
    walked = run.resumable("invert", steps, {"ladder": ladder}, every=STEPS_A_DRAFT, key=job)
    inversion.invert(ladder, predict, walked, calls=calls, start=guess)
    return ladder


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
    x = x if settled is None else settled.put(x, 0)
    for at in run.steps(stage, schedule.down()):
        hi, lo = at.item
        velocity = model.predict(x, hi, condition, against=against, guidance=guidance)
        x = step(x, velocity, hi, lo)
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
        signal = torch.tensor([level.signal for level in schedule.levels[schedule.start :]]).to(ladder)
        change = signal[:, None, None, None, None] * (edited - ladder[0])
        return cls(ladder.flip(0) + change, where)

    def put(self, x: Latents, index: int) -> Latents:
        """Gives the sample after step `index` with what is known in its place."""
        return torch.where(self.where, self.samples[index], x)
