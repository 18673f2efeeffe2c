"""What an edit will need, worked out from shapes before any weight is loaded."""

from typing import Final

from retouch.compute import Compute, in_words
from retouch.diffusion.resize import ENCODED_AT_ONCE, Resize
from retouch.methods.tune_a_video.spec import TuneAVideoParams
from retouch.models.estimate import Estimate
from retouch.models.image_shapes import ImageShapes
from retouch.models.refs import stored_bytes

NETWORK_LAYERS: Final = 40
"""How many times the network's finest layer is there at once when it is asked."""
LEARNING_LAYERS: Final = 250
"""The same when it learns, since what every layer gave is kept until the way back."""
SINGLE: Final = 4
"""Bytes of a number while learning, and of the latents that are kept."""


def plan(frames: int, height: int, width: int, params: TuneAVideoParams, compute: Compute) -> Estimate:
    """Memory, network calls and disk of an edit; the clip passes whole, so memory grows with its length.

    Of models that are not of Stable Diffusion's layout nothing is said.

    Raises:
        ModelNotFound: the model is not on this machine.
    """
    sizes = ImageShapes.read(params.model)
    if sizes is None:
        return Estimate(stored_bytes(params.model))
    number = compute.torch_dtype().itemsize
    inner = Resize.for_image_model(height, width, sizes, params.size).padded
    learned = 0 if params.tuned else params.tune_steps
    asking = sizes.layer(frames, inner) * NETWORK_LAYERS * number
    learning = (
        sizes.layer(min(frames, params.tune_frames), inner) * LEARNING_LAYERS * SINGLE if learned else 0
    )
    decoding = sizes.decoding(min(frames, ENCODED_AT_ONCE), inner) * number
    ladder = (params.steps + 1) * sizes.latents(frames, inner) * SINGLE
    calls = params.steps * (params.fixed_point + 2)
    return Estimate(
        sizes.numbers * number + max(asking, learning, decoding),
        notes=(
            f"{frames} frames at once at {inner[1]}x{inner[0]}; memory grows with their number",
            f"{learned} steps of tuning, kept, and {calls} network calls; noise is kept ({in_words(ladder)})",
        ),
    )
