"""Every frame edited for itself with SDEdit (Meng et al. 2022): the baseline that must lose.

The paper in three lines, and where to find them:
    noise the picture to the level that the strength says      `noised`
    denoise it under the prompt                                `denoised`
    do so for every frame, knowing nothing of the others       `edit`

With a noise of its own per frame, each frame decides anew what the prompt means, and the clip flickers. With
one noise for all, equal frames come out equal; what moves still changes its face, and texture sticks to the
screen. The source's edges hold the shapes (ControlNet, Zhang et al. 2023), and a reference picture may speak
beside the prompt (IP-Adapter, Ye et al. 2023); neither makes two frames agree.
"""

import contextlib
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from retouch.diffusion.image_edit import Goal, denoised, descent
from retouch.diffusion.resize import resized
from retouch.media.io import read_picture
from retouch.methods.frame_by_frame.spec import FrameByFrameParams
from retouch.models.annotate import canny
from retouch.models.image import Control, StableDiffusion
from retouch.models.image_prompt import ImagePrompt
from retouch.models.noise_path import add_noise
from retouch.run import Edited, Run
from retouch.video import Video

FRAMES_AT_ONCE: Final = 16
"""Frames that pass the network together; bounds memory, changes nothing else."""


@torch.no_grad()
def edit(video: Video, params: FrameByFrameParams, run: Run) -> Edited:
    """Show `params.prompt` in every frame, each for itself."""
    sd = run.load(params.model, StableDiffusion)
    steps = descent(sd.schedule(params.steps), params.strength)
    result = run.scratch("edited", (len(video), 3, video.height, video.width))

    with contextlib.ExitStack() as stack:
        goal, control = goal_of(sd, params, run, stack), control_of(sd, params, run)
        for span, part in video.chunks(FRAMES_AT_ONCE):
            pixels = resized(part.pixels(), *sd.working_size(video.height, video.width))
            edges = canny(part.like(pixels).frames)
            z = sd.encode(pixels)
            z = add_noise(z, starting_noise(span, z, run, shared=params.shared_noise), steps[0][0])
            for step in run.steps(f"frames {span.start + 1} to {span.stop}", steps):
                at = step.item[0].t
                residuals = control and control.residuals(edges, z, at, goal.text, scale=params.edges)
                z = step.done(denoised(z, step.item, goal, sd, residuals=residuals))
            edited = part.like(resized(sd.decode(z), video.height, video.width))
            result[span] = edited.frames

    return Edited(video.like(result))


def goal_of(sd: StableDiffusion, params: FrameByFrameParams, run: Run, stack: contextlib.ExitStack) -> Goal:
    """What every frame should show; a reference picture applies until `stack` closes."""
    words = sd.embed(params.prompt), sd.embed(params.negative_prompt), params.guidance
    if params.reference is None or params.reference_scale == 0:
        return Goal(*words)
    adapter = run.load(params.adapter, ImagePrompt)
    stack.enter_context(adapter.applied_to(sd, scale=params.reference_scale))
    return Goal(*words, seen=adapter.seen(on_white(read_picture(params.reference))))


def on_white(picture: UInt8[np.ndarray, "h w channels"]) -> UInt8[np.ndarray, "3 h w"]:
    """A picture without its alpha, as it looks on paper."""
    if picture.shape[2] == 4:
        share = picture[..., 3:] / 255.0
        picture = np.rint(picture[..., :3] * share + 255 * (1 - share)).astype(np.uint8)
    return np.ascontiguousarray(picture.transpose(2, 0, 1))


def control_of(sd: StableDiffusion, params: FrameByFrameParams, run: Run) -> Control | None:
    """The network that holds frames to their edges, if it is asked for."""
    if params.edges == 0:
        return None
    control = run.load(params.control, Control)
    control.check_fit(sd)
    return control


def starting_noise(
    span: slice, z: Float[Tensor, "f 4 y x"], run: Run, *, shared: bool
) -> Float[Tensor, "f 4 y x"]:
    """Noise for the frames of a span: one for all of the clip, or one for each, whatever the span."""
    names = ["frame" if shared else f"frame {number}" for number in range(span.start, span.stop)]
    return torch.cat([run.noise(name, z[:1]) for name in names])
