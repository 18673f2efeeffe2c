"""A reference picture that speaks to a text-to-image model beside the words (IP-Adapter, Ye et al. 2023).

The picture is seen through an image encoder; its embedding becomes a few extra tokens, which every
cross-attention reads with keys and values of their own.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self, cast, final

import numpy as np
import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor, IPAdapterAttnProcessor2_0
from jaxtyping import Float, UInt8
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from retouch.compute import Compute
from retouch.errors import ModelMismatch, ParamsError
from retouch.models.adapter_file import ATTENTION, ENCODER, PARTS, adapter_file
from retouch.models.clip import fit_square, normalise_colours
from retouch.models.image import StableDiffusion
from retouch.models.loading import folder_identity, load_network, placed, quiet
from retouch.models.refs import resolve


@final
class ImagePrompt:
    """An IP-Adapter: shows `StableDiffusion` a reference picture."""

    def __init__(
        self,
        encoder: CLIPVisionModelWithProjection,
        tensors: Mapping[str, Mapping[str, Tensor]],
        *,
        identity: str,
    ) -> None:
        """Take the parts as they are; `from_pretrained` is the usual way here."""
        self.encoder = encoder
        self.tensors = tensors
        self._identity = identity

    @classmethod
    def from_pretrained(cls, ref: str, compute: Compute | None = None) -> Self:
        """Load the adapter that `ref` names with its image encoder, from this machine only.

        Raises:
            ModelNotFound: it is not here; the hint says how to get it.
            ModelMismatch: the folder holds no IP-Adapter in safetensors, or one of another kind.
        """
        file = adapter_file(resolve(ref), ref)
        encoder = load_network(CLIPVisionModelWithProjection, file.parent / ENCODER, *placed(compute))
        return cls(encoder, _read_parts(file), identity=folder_identity(file.parent))

    @property
    def identity(self) -> str:
        """A hash of weights and configuration."""
        return self._identity

    @torch.no_grad()
    def seen(self, picture: UInt8[np.ndarray, "3 h w"]) -> Float[Tensor, " e"]:
        """What the encoder sees in a picture; its middle square, if it is none."""
        weight = self.encoder.visual_projection.weight
        pixels = torch.tensor(picture[None])
        prepared = normalise_colours(fit_square(pixels, int(self.encoder.config.image_size)).float() / 255)
        out = self.encoder(pixel_values=prepared.to(weight.device, weight.dtype))
        return cast(Tensor, out.image_embeds[0].float())

    @contextmanager
    def applied_to(self, sd: StableDiffusion, *, scale: float = 1.0) -> Iterator[None]:
        """Within, every prediction of `sd` must be given a picture; afterwards all is as it was.

        Args:
            sd: the model.
            scale: how loud the picture is beside the words; 0 is not heard.

        Raises:
            ModelMismatch: the adapter was made for another base model.
            ParamsError: the model's layers wait in main memory one by one, where no layer can be added.
        """
        unet = sd.unet
        if any(value.is_meta for value in unet.parameters()):
            raise ParamsError(
                "a reference picture does not go with layers that wait one by one",
                hint="use --offload model, or none",
            )
        before = unet.attn_processors, unet.encoder_hid_proj, unet.config.encoder_hid_dim_type
        try:
            self._check_fit(sd)
            with quiet():
                unet._load_ip_adapter_weights(
                    [{part.rstrip("."): dict(self.tensors[part]) for part in PARTS}]
                )
            unet.encoder_hid_proj.requires_grad_(False)
            for processor in unet.attn_processors.values():
                if isinstance(processor, (IPAdapterAttnProcessor, IPAdapterAttnProcessor2_0)):
                    processor.requires_grad_(False).scale = [scale]
            yield
        finally:
            processors, unet.encoder_hid_proj, unet.config.encoder_hid_dim_type = before
            unet.set_attn_processor(processors)

    def _check_fit(self, sd: StableDiffusion) -> None:
        """Every cross-attention has its key matrix, of its own shape."""
        modules = dict(sd.unet.named_modules())
        wanted = {}
        for number, name in enumerate(sd.unet.attn_processors):
            if name.endswith("attn2.processor"):
                keys = modules[name.removesuffix(".processor")].to_k
                wanted[f"{number}.to_k_ip.weight"] = tuple(keys.weight.shape)
        given = {
            name: tuple(value.shape)
            for name, value in self.tensors[ATTENTION].items()
            if name.endswith("to_k_ip.weight")
        }
        if given != wanted:
            raise ModelMismatch(
                f"this IP-Adapter was made for another base model: {len(given)} layers, not {len(wanted)}, "
                "or of another width",
                hint="tiny:ip goes with tiny:sd, sd15-ip with sd15",
            )


def _read_parts(file: Path) -> Mapping[str, Mapping[str, Tensor]]:
    """The tensors of an adapter's file, by part."""
    tensors = load_file(file)
    return {
        part: {name.removeprefix(part): t for name, t in tensors.items() if name.startswith(part)}
        for part in PARTS
    }
