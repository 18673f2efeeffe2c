"""The inversion of a whole clip, kept: a second edit starts from it."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch

from retouch.artifacts import Draft, artifact
from retouch.diffusion.attention import OWN_FRAME, Attend, Neighbours, controlled
from retouch.diffusion.ddim import Ladder, Latents, Level, Predict, climb, schedule
from retouch.diffusion.framing import Framing, encode_clip
from retouch.diffusion.windows import Window, windows
from retouch.errors import Diverged
from retouch.models.image import StableDiffusion
from retouch.run import Run
from retouch.video import Video


@final
@dataclass(frozen=True)
class Inversion:
    """What decides an inversion, besides the clip and the model."""

    prompt: str
    steps: int
    frame: Framing
    iterations: int = 1
    neighbours: Neighbours = OWN_FRAME
    clip_norm: bool = False
    window: int = 16
    overlap: int = 4
    weights: str = ""
    """The identity of what is put on the network meanwhile."""

    def laid(self, total: int) -> tuple[Window, ...]:
        """The windows of a clip."""
        anchors = self.neighbours.anchors(total)
        return windows(total, size=self.window, overlap=self.overlap, anchors=anchors)


@artifact("ladder", version=1)
@torch.no_grad()
def inverted(video: Video, sd: StableDiffusion, how: Inversion, *, run: Run) -> Ladder:
    """Takes a clip from its latents to noise, without guidance, and keeps the latents of every level.

    It goes on where it was stopped.
    """
    plan = schedule(sd, how.steps)
    channels = int(sd.unet.config.in_channels)
    rungs, done = _begun(run.draft, (how.steps + 1, len(video), channels, *how.frame.latents))
    if done < 0:
        encode_clip(video, sd, how.frame, rungs[0])
        done = 0
    spare = run.scratch("prediction", rungs.shape[1:], np.float32)
    with controlled(sd.unet, size=how.frame.latents, clip_norm=how.clip_norm):
        climbing = climb(
            rungs, _asked(video, sd, how, run), plan, spare=spare, iterations=how.iterations, done=done
        )
        for _ in run.steps("invert", plan.ascending[done:]):
            k = next(climbing)
            if not np.isfinite(rungs[k]).all():
                raise Diverged(
                    f"inversion gave values that are not numbers at step {k}", hint="try --dtype float32"
                )
            rungs.flush()
            run.draft.save({"done": torch.tensor(k)})
    _rungs_beside(run.draft).unlink()
    return Ladder(rungs)


def _asked(video: Video, sd: StableDiffusion, how: Inversion, run: Run) -> Predict:
    """Asks the network about a whole clip, window by window."""
    text = sd.embed(how.prompt)
    laid = [(part, Attend(how.neighbours.among(part.frames, len(video)))) for part in how.laid(len(video))]
    like = torch.empty(0, device=sd.device)

    def predict(z: Latents, out: Latents, level: Level) -> None:
        out[:] = 0
        for part, rule in laid:
            run.check()
            part.add(out, sd.predict(part.take(z, like), level.t, text, attention={"rule": rule}))

    return predict


def _begun(draft: Draft, shape: tuple[int, ...]) -> tuple[np.memmap, int]:
    """The rungs in a file beside the draft, and the last that an earlier attempt filled; -1 if none."""
    path, state = _rungs_beside(draft), draft.load()
    size = int(np.prod(shape)) * np.dtype(np.float32).itemsize
    if state is not None and path.exists() and path.stat().st_size == size:
        return np.memmap(path, np.float32, "r+", shape=shape), int(state["done"])
    path.parent.mkdir(parents=True, exist_ok=True)
    return np.memmap(path, np.float32, "w+", shape=shape), -1


def _rungs_beside(draft: Draft) -> Path:
    return draft.path.with_suffix(".rungs")
