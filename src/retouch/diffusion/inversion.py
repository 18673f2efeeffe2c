"""Inversion: from a clip's latents up to the noise that sampling would lead back from.

A step down with the prediction frozen has an exact inverse (`retouch.models.noise_path`). What is not exact
is the prediction: going down it is taken at the noisier sample, which going up is not known yet. So each
step up is the fixed point of x -> inverse_step(lower sample, prediction at x): asked for once, at the lower
sample itself, it is DDIM inversion as usual (Song et al. 2021); asked again and again, each time at the best
guess so far, it converges to the samples that the way down really passes (fixed-point inversion, Pan et al.
2023).

Asking again at the last answer converges only where the map contracts, and slowly where it contracts little.
Here two calls in a row show how an error changes, and the next guess is the point between their answers where
it would vanish if it changed alike everywhere: the secant rule, or Anderson's (1965) with a memory of one.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from retouch.artifacts import artifact
from retouch.diffusion.attention import OWN_FRAME, Attend, Neighbours, controlled
from retouch.diffusion.resize import Resize, encode_clip
from retouch.diffusion.windows import Window
from retouch.models.image import StableDiffusion
from retouch.models.noise_path import Level, add_noise, extrapolate, inverse_step, step
from retouch.run import Run, Step
from retouch.video import Video, chunks, decibels

Clip: TypeAlias = Float[Tensor, "f c h w"]
Predict: TypeAlias = Callable[[Clip, Level], Clip]
"""Asks the network about a whole clip at a level; latents may lie in files and be longer than memory."""
Start: TypeAlias = Callable[[Clip, Clip, Level, Level], Clip]
"""Guesses the sample at the noisier level from the clean latents, the sample at the lower level, and both."""
REACH: Final = 5.0
"""How far the next guess may lie, in distances of the last two answers: rounding errors know no direction."""


@final
@dataclass(frozen=True, eq=False)
class Trajectory:
    """What inversion leaves behind: the clip's latents at every level, the clean ones first.

    It is all that is needed to know the source's attention at any step: the network is asked again.
    """

    latents: Float[Tensor, "n f c h w"]
    """In the precision that the inversion ran in; may lie in a file."""
    reconstruction: float
    """How near the first window comes to the source when nothing is edited: PSNR of pixels, decibels."""


def invert(
    latents: Float[Tensor, "n f c h w"],
    predict: Predict,
    steps: Iterable[Step[tuple[Level, Level]]],
    *,
    calls: int = 1,
    start: Start | None = None,
    buffer: Float[Tensor, "2 f c h w"] | None = None,
) -> None:
    """Fill a trajectory from its clean latents upwards.

    Args:
        latents: One more than there are levels to reach; what the steps leave out is there already.
        predict: Asks the network.
        steps: The levels, `(lo, hi)`, cleanest first, from `Run.steps` or `Run.resumable`.
        calls: Network calls a step; 1 is DDIM inversion as usual.
        start: Where the network is asked first; at the sample of the lower level if not given.
        buffer: Room for two clips, in a file where the clip is longer than memory.
    """
    last = torch.empty_like(latents[:2]) if buffer is None else buffer
    for at in steps:
        (lo, hi), below, above = at.item, latents[at.index], latents[at.index + 1]
        above.copy_(start(latents[0], below, lo, hi) if start else below)
        for call in range(calls):
            out = predict(above, hi)
            for part in chunks(len(above)):
                answer = inverse_step(below[part], out[part], lo, hi)
                above[part] = _best_guess(answer, above[part], last[:, part], first=call == 0)
        at.done(above)


def _best_guess(answer: Clip, guess: Clip, last: Float[Tensor, "2 f c h w"], *, first: bool) -> Clip:
    """Return the next guess after an answer: from the second one on by the secant rule, frame by frame.

    `last` holds the last answer and its error, and takes up these.
    """
    error = answer - guess
    best = answer if first else answer - _share(error, error - last[1]) * (answer - last[0])
    last[0], last[1] = answer, error
    return best


def _share(error: Clip, change: Clip) -> Float[Tensor, "f 1 1 1"]:
    """Return how much of its change takes an error away, in each frame; none where nothing changed."""
    wanted, given = error.float().flatten(1), change.float().flatten(1)
    length = given.square().sum(1)
    share = torch.where(length > 0, (wanted * given).sum(1) / length, 0.0).clamp(-REACH, REACH)
    return share.to(error.dtype)[:, None, None, None]


def draw_noise(eps: Clip, threshold: float = 0.0) -> Start:
    """Return the released Videoshop's start: drawn noise while there is little of the sample's own.

    Args:
        eps: the noise to draw, already as strong as the clean latents.
        threshold: log signal-to-noise ratio below which the current sample's own noise is trusted.
    """

    def start(clean: Clip, x: Clip, lo: Level, hi: Level) -> Clip:
        return extrapolate(clean, x, lo, hi) if lo.log_snr < threshold else add_noise(clean, eps, hi)

    return start


@artifact("trajectory", version=1)
@torch.no_grad()
def invert_clip(
    video: Video,
    sd: StableDiffusion,
    resize: Resize,
    *,
    prompt: str,
    steps: int,
    windows: tuple[Window, ...],
    fixed_point: int = 1,
    neighbours: Neighbours = OWN_FRAME,
    clip_norm: bool = False,
    weights: str = "",  # noqa: ARG001 - a part of the key
    run: Run,
) -> Trajectory:
    """Take a clip from its latents to noise, without guidance, and keep the latents of every level.

    Args:
        video: The clip.
        sd: The model.
        resize: How the clip lies in the pixels that the model takes.
        prompt: What the clip shows.
        steps: How many steps lead to noise.
        windows: The frames that pass the network together.
        fixed_point: Network calls a step.
        neighbours: The frames that a frame looks at.
        clip_norm: Whether norms go over the whole clip.
        weights: The identity of what is put on the network meanwhile.
        run: Where it goes on if it was stopped.
    """
    shape = (len(video), int(sd.unet.config.in_channels), *resize.latents)
    file = run.draft.array("latents", (steps + 1, *shape))
    latents = torch.from_numpy(file)
    out = torch.from_numpy(run.scratch("prediction", shape, np.float32))
    buffer = torch.from_numpy(run.scratch("fixed_point", (2, *shape), np.float32))
    text = sd.embed(prompt)
    rules = [Attend(neighbours.among(window.frames, len(video))) for window in windows]

    def predict(z: Clip, level: Level) -> Clip:
        out.zero_()
        for window, rule in zip(windows, rules, strict=True):
            run.check()
            part = window.take(z, sd.device)
            window.add(out, sd.predict(part, level.t, text, attention={"rule": rule}))
        return out

    encode_clip(video, sd, resize, latents[0])
    levels = run.resumable("invert", sd.schedule(steps).up(), {"latents": file})
    with controlled(sd.unet, size=resize.latents, clip_norm=clip_norm):
        invert(latents, predict, levels, calls=fixed_point, buffer=buffer)
        z, first = windows[0].take(latents[-1], sd.device), list(windows[0].frames)
        for at in run.steps("try the way back", sd.schedule(steps).down()):
            hi, lo = at.item
            z = step(z, sd.predict(z, hi.t, text, attention={"rule": rules[0]}), hi, lo)
    shown = video[: len(first)].like(resize.to_clip(sd.decode(z))).frames
    error = float(np.mean((shown.astype(np.float32) - video.frames[first]) ** 2))
    return Trajectory(latents, decibels(error, 255))
