"""Every frame edited for itself with SDEdit (Meng et al. 2022): the baseline that must lose.

The paper in three lines, and where to find them:
    noise the picture to the level that the strength says      `edit_picture`
    denoise it under the prompt                                `denoised`
    do so for every frame, knowing nothing of the others       `edit`

With a noise of its own per frame, each frame decides anew what the prompt means, and the clip flickers. With
one noise for all, equal frames come out equal; what moves still changes its face, and texture sticks to the
screen. The source's edges hold the shapes (ControlNet, Zhang et al. 2023), and a reference picture may speak
beside the prompt (IP-Adapter, Ye et al. 2023); neither makes two frames agree.
"""

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from retouch.diffusion.image_edit import control_of, descent, edit_picture, goal_of
from retouch.diffusion.resize import resized
from retouch.media.pictures import read_rgb
from retouch.methods.frame_by_frame.spec import FrameByFrameParams
from retouch.models.annotate import canny
from retouch.models.image import StableDiffusion
from retouch.run import Edited, Run
from retouch.video import Video

FRAMES_AT_ONCE: Final = 16
"""Frames that pass the network together; bounds memory, changes nothing else."""


@torch.no_grad()
def edit(video: Video, params: FrameByFrameParams, run: Run) -> Edited:
    """Show `params.prompt` in every frame, each for itself."""
    sd = run.load(params.model, StableDiffusion)
    control = control_of(params.control, params.edges, sd, run)
    down = descent(sd.schedule(params.steps), params.strength)
    height, width = sd.working_size(video.height, video.width)
    result = run.scratch("edited", (len(video), 3, video.height, video.width))

    words = params.prompt, params.negative_prompt, params.guidance
    with goal_of(
        sd,
        *words,
        reference=None if params.reference is None else read_rgb(params.reference),
        reference_scale=params.reference_scale,
        adapter=params.adapter,
        run=run,
    ) as goal:
        for span, part in video.chunks(FRAMES_AT_ONCE):
            pixels = resized(part.pixels(), height, width)
            made = edit_picture(
                pixels,
                starting_noise(span, (height // sd.factor, width // sd.factor), params.shared_noise, run),
                goal,
                sd,
                run.steps(f"frames {span.start + 1} to {span.stop}", down),
                edges=canny(part.like(pixels).frames),
                control=control,
                scale=params.edges,
            )
            result[span] = part.like(resized(made, video.height, video.width)).frames

    return Edited(video.like(result))


def starting_noise(span: slice, size: tuple[int, int], shared: bool, run: Run) -> Float[Tensor, "f 4 y x"]:
    """Return noise for the frames of a span: one for all of the clip, or one for each, whatever the span."""
    names = ["frame" if shared else f"frame {number}" for number in range(span.start, span.stop)]
    return torch.cat([run.noise(name, torch.empty(1, 4, *size)) for name in names])
