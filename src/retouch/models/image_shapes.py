"""What a Stable Diffusion's configuration says of its sizes, before any weight is loaded."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, cast, final

from retouch.models.refs import numbers_in, read_config, read_index, resolve, weight_variant

DECODER_LAYERS: Final = 16
"""How many times the decoder's narrowest layer, at full size, is there at once; from measured peaks."""


@final
@dataclass(frozen=True)
class ImageShapes:
    """Sizes of a text-to-image model of Stable Diffusion's layout."""

    numbers: int
    """How many numbers its weights are."""
    factor: int
    multiple: int
    native: int
    """The side in pixels that it was trained at."""
    channels: int
    """Channels of its latents."""
    width: int
    """Channels of the network's finest level."""
    decoder_width: int

    @classmethod
    def read(cls, ref: str) -> Self | None:
        """The sizes of the model that `ref` names; nothing if it is of another kind.

        Raises:
            ModelNotFound: it is not on this machine.
        """
        folder = resolve(ref)
        if not str(read_index(folder, ref).get("_class_name")).startswith("StableDiffusion"):
            return None
        unet = cast("Mapping[str, Any]", read_config(folder / "unet" / "config.json", ref))
        vae = cast("Mapping[str, Any]", read_config(folder / "vae" / "config.json", ref))
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        return cls(
            numbers=sum(map(numbers_in, _weight_files(folder))),
            factor=factor,
            multiple=factor * 2 ** (len(unet["block_out_channels"]) - 1),
            native=int(unet["sample_size"]) * factor,
            channels=int(unet["in_channels"]),
            width=int(unet["block_out_channels"][0]),
            decoder_width=int(vae["block_out_channels"][0]),
        )

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """The size at which the model edits a picture of this size."""
        return working_size(height, width, self.native, self.multiple)

    def layer(self, frames: int, inner: tuple[int, int]) -> int:
        """Numbers in a layer of the network's finest level."""
        return frames * math.prod(inner) // self.factor**2 * self.width

    def decoding(self, frames: int, inner: tuple[int, int]) -> int:
        """Numbers that are there at once while so many frames are decoded together."""
        return frames * math.prod(inner) * self.decoder_width * DECODER_LAYERS

    def latents(self, frames: int, inner: tuple[int, int]) -> int:
        """Numbers in the latents of so many frames."""
        return frames * math.prod(inner) // self.factor**2 * self.channels


def working_size(height: int, width: int, native: int, multiple: int) -> tuple[int, int]:
    """The size at which to edit a picture: short side as the model knows it, aspect kept, sides fitting."""
    scale = native / min(height, width)
    tall, wide = (max(1, round(side * scale / multiple)) * multiple for side in (height, width))
    return tall, wide


def _weight_files(folder: Path) -> list[Path]:
    """The files that loading reads; the same weights may lie there in half precision as well."""
    parts = [folder / name for name in ("text_encoder", "unet", "vae")]
    return [
        path
        for part in parts
        for path in part.glob("*.safetensors")
        if (".fp16." in path.name) == (weight_variant(part) == "fp16")
    ]
