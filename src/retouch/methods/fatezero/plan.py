"""What an edit will need, worked out from shapes before any weight is loaded."""

from typing import Final

from retouch.compute import Compute, in_words
from retouch.diffusion.attention import Neighbours
from retouch.diffusion.resize import ENCODED_AT_ONCE, Resize
from retouch.diffusion.windows import overlapping
from retouch.diffusion.words import step_range
from retouch.methods.fatezero.spec import FateZeroParams, reach
from retouch.models.estimate import Estimate
from retouch.models.image_shapes import ImageShapes
from retouch.models.refs import stored_bytes

NETWORK_LAYERS: Final = 90
"""How many times the network's finest layer is there at once, with the source's queries and keys of a step;
from measured peaks, 60 to 83."""
AT_REST: Final = 4
"""Bytes of a number of the latents that are kept."""


def plan(frames: int, height: int, width: int, params: FateZeroParams, compute: Compute) -> Estimate:
    """Memory, network calls and disk of an edit.

    Of models that are not of Stable Diffusion's layout nothing is said.

    Raises:
        ModelNotFound: the model is not on this machine.
    """
    sizes = ImageShapes.read(params.model)
    if sizes is None:
        return Estimate(stored_bytes(params.model))
    number = compute.torch_dtype().itemsize
    inner = Resize.for_image_model(height, width, sizes, params.size).padded
    neighbours = Neighbours(tuple(reach(text) for text in params.attend))
    size, overlap = (frames, 0) if params.faithful else (params.window, params.overlap)
    laid = overlapping(frames, size=size, overlap=overlap, anchors=neighbours.anchors(frames))
    longest = max(len(window.frames) for window in laid)
    at_once = max(
        sizes.layer(longest, inner) * NETWORK_LAYERS, sizes.decoding(min(frames, ENCODED_AT_ONCE), inner)
    )
    ladder = (params.steps + 1) * sizes.latents(frames, inner) * AT_REST
    found, carried = params.steps * params.fixed_point * len(laid), _calls(params) * len(laid)
    notes = (
        f"{len(laid)} windows of up to {longest} frames at {inner[1]}x{inner[0]}",
        f"{found} network calls find the noise, kept ({in_words(ladder)}), and {carried} carry the edit",
    )
    tuning = (f"{params.tune_steps} steps of tuning, kept too",) if params.tune_steps else ()
    return Estimate((sizes.numbers + at_once) * number, notes=notes + tuning)


def _calls(params: FateZeroParams) -> int:
    """Network calls a window of the way down: two a step, and one about the source where it is looked at."""
    looked = {
        *step_range((params.self_from, params.self_until), params.steps),
        *step_range((params.cross_from, params.cross_until), params.steps),
    }
    if params.blend and params.mask is None:
        looked |= {*step_range((params.blend_from, params.blend_until), params.steps)}
    return params.steps * (1 if params.guidance == 1 else 2) + len(looked)
