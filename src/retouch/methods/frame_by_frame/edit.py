"""Every frame edited for itself with SDEdit (Meng et al. 2022): the baseline that must lose.

The paper in three lines, and where to find them:
    noise the picture to the level that the strength says      `noised`
    denoise it under the prompt                                `denoised`
    do so for every frame, knowing nothing of the others       `edit`

With a noise of its own per frame, each frame decides anew what the prompt means, and the clip flickers. With
one noise for all, equal frames come out equal; what moves still changes its face, and texture sticks to the
screen.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from retouch.diffusion.ddim import schedule
from retouch.diffusion.image_edit import Wish, denoised, descent, noised
from retouch.methods.frame_by_frame.spec import FrameByFrameParams
from retouch.models.image import StableDiffusion, resized
from retouch.run import Edited, Run
from retouch.video import Video

FRAMES_AT_ONCE = 16
"""Frames that pass the network together; bounds memory, changes nothing else."""


@torch.no_grad()
def edit(video: Video, params: FrameByFrameParams, run: Run) -> Edited:
    """Show `params.prompt` in every frame, each for itself."""
    sd = run.load(params.model, StableDiffusion)
    wish = Wish(sd.embed(params.prompt), sd.embed(params.negative_prompt), params.guidance)
    levels = schedule(sd, params.steps)
    steps = descent(levels, params.strength)
    result = run.scratch("edited", (len(video), 3, video.height, video.width))

    for span, part in video.windows(FRAMES_AT_ONCE, 0):
        pixels = resized(part.pixels(), *sd.working_size(video.height, video.width))
        z = sd.encode(pixels)
        z = noised(z, starting_noise(span, z, run, shared=params.shared_noise), steps[0][0])
        for step in run.steps(f"frames {span.start + 1} to {span.stop}", steps):
            z = step.done(denoised(z, step.item, wish, sd, levels))
        edited = part.like(resized(sd.decode(z), video.height, video.width))
        result[span.start : span.stop] = edited.frames

    return Edited(video.like(result))


def starting_noise(
    span: range, z: Float[Tensor, "f 4 y x"], run: Run, *, shared: bool
) -> Float[Tensor, "f 4 y x"]:
    """Noise for the frames of a span: one for all of the clip, or one for each, whatever the span."""
    names = ["frame" if shared else f"frame {number}" for number in span]
    return torch.cat([run.noise(name, z[:1]) for name in names])
