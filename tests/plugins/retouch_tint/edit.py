"""The edit itself."""

import os
import signal
import time
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from retouch.artifacts import artifact
from retouch.run import Edited, Run
from retouch.video import Video
from retouch_tint.spec import TintParams


def edit(video: Video, params: TintParams, run: Run) -> Edited:
    """Tints the upper rows, a little more in each step."""
    grain = fit(video, params.steps, params.pause, run=run).grain
    if params.ends:
        os.kill(os.getpid(), signal.SIGKILL)
    source = pixels = video.pixels()
    colour = torch.tensor([params.red, 0.0, 0.0]).view(1, 3, 1, 1)
    speck = run.noise("speck", grain)
    for step in run.steps("tint", range(params.steps)):
        time.sleep(params.pause)
        share = params.strength * (step.item + 1) / params.steps
        pixels = step.done((source + share * colour * (1 + grain + 0.1 * speck)).clamp(-1, 1))
    touched = np.zeros((len(video), 1, video.height, video.width), dtype=bool)
    touched[:, :, : max(1, round(video.height * params.rows))] = True
    frames = np.where(touched, video.like(pixels).frames, video.frames)
    return Edited(
        video.like(frames), touched, figures={"mean": float(frames.mean())}, extras={"words": "tinted"}
    )


@final
@dataclass(frozen=True)
class Grain:
    """How strongly the colour takes, row by row."""

    grain: Tensor
    steps: int


@artifact("grain", version=1)
def fit(video: Video, steps: int, pause: float, *, run: Run) -> Grain:
    """Fits the grain in steps, each of which survives a stop."""
    kept = run.draft.load() or {
        "grain": torch.zeros(1, 1, video.height, video.width),
        "done": torch.tensor(0),
    }
    grain = kept["grain"]
    for step in run.steps("fit", range(int(kept["done"]), steps)):
        time.sleep(pause)
        grain = step.done(0.8 * grain + 0.05 * run.noise(f"fit/{step.item}", grain))
        run.draft.save({"grain": grain, "done": torch.tensor(step.item + 1)})
    return Grain(grain, steps)
