"""What an edit will need, worked out from shapes before any weight is loaded."""

import math
from collections.abc import Mapping
from typing import Final, cast

from retouch.compute import Compute
from retouch.diffusion.resize import Resize
from retouch.diffusion.windows import sequential
from retouch.methods.videoshop.spec import VideoshopParams
from retouch.models.estimate import Estimate
from retouch.models.image_to_video import DECODED_BESIDE, steps_back, still_traits
from retouch.models.refs import numbers_in, read_config, read_index, resolve

DECODER_LAYERS: Final = 11
"""How many times the decoder's narrowest layer, at full size, is there at once; from measured peaks."""
NETWORK_LAYERS: Final = 24
"""The same for the network: its first level's width, for the two halves of a guided call."""


def plan(frames: int, height: int, width: int, params: VideoshopParams, compute: Compute) -> Estimate:
    """Memory and network calls of an edit.

    Of models that are not of Stable Video Diffusion's layout, the weights alone are counted.

    Raises:
        ModelNotFound: the model is not on this machine.
        ParamsError: steps and strength, or windows, do not go together.
    """
    folder = resolve(params.model)
    number = 4 if compute.torch_dtype().itemsize == 4 else 2
    weights = sum(map(numbers_in, folder.rglob("*.safetensors"))) * number
    if read_index(folder, params.model).get("_class_name") != "StableVideoDiffusionPipeline":
        return Estimate(weights)
    unet = read_config(folder / "unet" / "config.json", params.model)
    vae = read_config(folder / "vae" / "config.json", params.model)
    traits = still_traits(unet, vae)
    resize = Resize.to_area(height, width, traits, params.short_side)
    starts = sorted(at for at in params.pictures() if at < frames)
    size = params.window or traits.native_frames
    laid = sequential(frames, starts, size=size, overlap=params.overlap, stride=traits.frame_stride)
    longest, pixels = max(len(window.frames) for window in laid), math.prod(resize.padded)
    together = min((params.decode_at_once or longest) + 2 * DECODED_BESIDE, longest)
    decoded = together * pixels * _widths(vae)[0] * DECODER_LAYERS
    seen = longest * pixels // traits.latent_factor**2 * _widths(unet)[0] * NETWORK_LAYERS
    walked = steps_back(params.steps, params.strength)
    up = walked * params.fixed_point * len(laid) + walked * params.check_inversion
    return Estimate(
        weights + max(decoded, seen) * number,
        notes=(
            f"{len(laid)} windows of up to {longest} frames at {resize.padded[1]}x{resize.padded[0]}",
            f"{up} network calls find the noise, which is kept, and {walked * len(laid)} carry the edit",
        ),
    )


def _widths(config: Mapping[str, object]) -> list[int]:
    return cast("list[int]", config["block_out_channels"])
