"""Tune-A-Video (Wu et al., ICCV 2023): an image model that has learned one clip shows it under a new prompt.

The paper in three lines, and where to find them:
    temporal attention behind every block, learned with the queries          `retouch.diffusion.tune`
    invert the clip under an empty prompt                                    `retouch.diffusion.inversion`
    sample from that noise under the new prompt, all frames together         `edit`

Frames look at the first and the previous one, and norms of residual blocks go over the whole clip, as in
the authors' code. The clip passes whole: memory grows with its length.
"""

import numpy as np
import torch

from retouch.diffusion.attention import Attend, controlled
from retouch.diffusion.ddim import move, schedule
from retouch.diffusion.framing import Framing, decode_clip, framing
from retouch.diffusion.guidance import guided
from retouch.diffusion.inversion import Inversion, inverted
from retouch.diffusion.tune import FIRST_AND_PREVIOUS, Tuned, Tuning, load_tuned, save_tuned, tune, tuned
from retouch.diffusion.words import read_prompt
from retouch.identity import identity
from retouch.methods.tune_a_video.spec import TuneAVideoParams
from retouch.models.image import StableDiffusion
from retouch.run import Edited, Run
from retouch.video import Video


@torch.no_grad()
def edit(video: Video, params: TuneAVideoParams, run: Run) -> Edited:
    """Shows the clip's motion under `params.prompt`."""
    sd = run.load(params.model, StableDiffusion)
    frame = framing(video, sd, params.size)
    for prompt in (params.source_prompt, params.prompt):
        read_prompt(sd.tokenizer, prompt)
    learned = _learned(video, params, sd, frame, run)
    inversion = Inversion(
        prompt="",
        steps=params.steps,
        frame=frame,
        iterations=params.fixed_point,
        neighbours=FIRST_AND_PREVIOUS,
        clip_norm=True,
        window=len(video),
        overlap=0,
        weights=identity(learned),
    )
    with tuned(sd.unet, learned):
        ladder = inverted(video, sd, inversion, run=run)
        z = _sampled(torch.tensor(ladder.rungs[-1]).to(sd.device), params, sd, frame, run)
    return Edited(decode_clip(z, video, sd, frame, run))


def _sampled(
    z: torch.Tensor, params: TuneAVideoParams, sd: StableDiffusion, frame: Framing, run: Run
) -> np.ndarray:
    """DDIM from the clip's noise, guided away from the negative prompt."""
    text, negative = sd.embed(params.prompt), sd.embed(params.negative_prompt)
    levels = schedule(sd, params.steps)
    rule = {"rule": Attend(FIRST_AND_PREVIOUS.among(range(len(z)), len(z)))}
    with controlled(sd.unet, size=frame.latents, clip_norm=True):
        for step in run.steps("edit", levels.descending):
            hi, lo = step.item
            towards = sd.predict(z, hi.t, text, attention=rule)
            against = sd.predict(z, hi.t, negative, attention=rule)
            z = step.done(move(z, guided(against, towards, params.guidance), hi, lo, levels.prediction))
    return z.cpu().numpy()


def _learned(video: Video, params: TuneAVideoParams, sd: StableDiffusion, frame: Framing, run: Run) -> Tuned:
    """What the model learned of this clip, read or made now."""
    if params.tuned is not None:
        return load_tuned(params.tuned)
    if not params.tune_steps:
        run.notice("tune_steps is 0: the model knows nothing of this clip but its noise")
        return Tuned()
    how = Tuning(
        params.source_prompt,
        frame,
        params.tune_steps,
        rate=params.tune_rate,
        frames=params.tune_frames,
        rank=params.lora_rank,
    )
    learned = tune(video, sd, how, run=run)
    if params.keep_weights:
        save_tuned(learned, run.folder / "tuned")
    return learned
