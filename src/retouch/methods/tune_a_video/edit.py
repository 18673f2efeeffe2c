"""Tune-A-Video (Wu et al., ICCV 2023): an image model that has learned one clip shows it under a new prompt.

The paper in three lines, and where to find them:
    temporal attention behind every block, learned with the queries          `retouch.diffusion.tune`
    invert the clip under an empty prompt                                    `retouch.diffusion.inversion`
    sample from that noise under the new prompt, all frames together         `edit`

Frames look at the first and the previous one, and norms of residual blocks go over the whole clip, as in
the authors' code. The clip passes whole: memory grows with its length.
"""

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from retouch.compute import Compute
from retouch.diffusion.attention import Attend, controlled
from retouch.diffusion.inversion import invert_clip
from retouch.diffusion.resize import Resize, decode_clip
from retouch.diffusion.tune import FIRST_AND_PREVIOUS, Tuning, tuned, tuned_weights
from retouch.diffusion.windows import overlapping
from retouch.diffusion.words import read_prompt
from retouch.identity import identity
from retouch.methods.tune_a_video.spec import TuneAVideoParams
from retouch.models.estimate import Estimate, estimate_inversion
from retouch.models.image import StableDiffusion
from retouch.models.noise_path import guided, step
from retouch.run import Edited, Run
from retouch.video import Video

NETWORK_LAYERS: Final = 40
"""How many times the network's finest layer is there at once when it is asked."""


@torch.no_grad()
def edit(video: Video, params: TuneAVideoParams, run: Run) -> Edited:
    """Shows the clip's motion under `params.prompt`."""
    sd = run.load(params.model, StableDiffusion)
    resize = Resize.for_image_model(video.height, video.width, sd, params.size)
    for prompt in (params.source_prompt, params.prompt):
        read_prompt(sd.tokenizer, prompt)
    how = Tuning(
        params.source_prompt,
        resize,
        params.tune_steps,
        rate=params.tune_rate,
        frames=params.tune_frames,
        rank=params.lora_rank,
    )
    learned = tuned_weights(params.tuned, video, sd, how, run=run)
    if learned is None:
        run.notice("tune_steps is 0: the model knows nothing of this clip but its noise")
    elif params.keep_weights and params.tuned is None:
        learned.save(run.folder / "tuned")
    with tuned(sd.unet, learned):
        trajectory = invert_clip(
            video,
            sd,
            resize,
            prompt="",
            steps=params.steps,
            windows=overlapping(len(video), size=len(video), overlap=0),
            fixed_point=params.fixed_point,
            neighbours=FIRST_AND_PREVIOUS,
            clip_norm=True,
            weights="" if learned is None else identity(learned),
            run=run,
        )
        z = _sampled(trajectory.latents[-1].to(sd.device), params, sd, resize, run)
    figures = {"reconstruction_db": trajectory.reconstruction}
    return Edited(decode_clip(z, video, sd, resize, run), figures=figures)


def _sampled(
    z: Float[Tensor, "f c h w"], params: TuneAVideoParams, sd: StableDiffusion, resize: Resize, run: Run
) -> Float[Tensor, "f c h w"]:
    """DDIM from the clip's noise, guided away from the negative prompt."""
    text, negative = sd.embed(params.prompt), sd.embed(params.negative_prompt)
    rule = {"rule": Attend(FIRST_AND_PREVIOUS.among(range(len(z)), len(z)))}
    with controlled(sd.unet, size=resize.latents, clip_norm=True):
        for at in run.steps("edit", sd.schedule(params.steps).down()):
            hi, lo = at.item
            out = guided(
                sd.predict(z, hi.t, negative, attention=rule),
                sd.predict(z, hi.t, text, attention=rule),
                params.guidance,
            )
            z = at.done(step(z, out, hi, lo))
    return z


def estimate(frames: int, height: int, width: int, params: TuneAVideoParams, compute: Compute) -> Estimate:
    """Return memory, network calls and disk of an edit; memory grows with the clip's length.

    Of models that are not of Stable Diffusion's layout nothing is said.

    Raises:
        ModelNotFound: the model is not on this machine.
    """
    return estimate_inversion(
        params.model,
        compute,
        lambda sizes: Resize.for_image_model(height, width, sizes, params.size).padded,
        frames=frames,
        together=frames,
        layers=NETWORK_LAYERS,
        steps=params.steps,
        inverting=params.steps * (params.fixed_point + 1),
        sampling=params.steps * 2,
        windows=f"{frames} frames at once, memory growing with their number,",
        tuning=0 if params.tuned else params.tune_steps,
        learning=min(frames, params.tune_frames),
    )
