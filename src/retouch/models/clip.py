"""Pictures and sentences in one space: CLIP, for guidance and for metrics."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self, cast, final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate, normalize
from transformers import CLIPModel, CLIPTokenizer

from retouch.compute import Compute
from retouch.errors import InputError, ModelMismatch
from retouch.models.loading import folder_identity, load_network, placed, weights_identity
from retouch.models.refs import check_weights, read_config, resolve

OPENAI_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD: Final = (0.26862954, 0.26130258, 0.27577711)
FRAMES_AT_ONCE: Final = 64
"""Frames that pass the network together; bounds its memory, changes no value."""


@final
class TextImage:
    """A CLIP model: unit vectors for pictures and for sentences, to be compared by their inner product."""

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer, *, identity: str | None = None) -> None:
        """Take the parts as they are; `from_pretrained` is the usual way here."""
        self.model = model
        self.tokenizer = tokenizer
        self._identity = identity

    @classmethod
    def from_pretrained(cls, ref: str, compute: Compute | None = None) -> Self:
        """Load the model that `ref` names, from this machine only.

        Raises:
            ModelNotFound: it is not here; the hint says how to get it.
            ModelMismatch: the folder is no CLIP in safetensors, or it prepares pictures in another way.
        """
        folder = resolve(ref)
        kind = read_config(folder / "config.json", ref).get("model_type")
        if kind != "clip":
            raise ModelMismatch(f"{ref} is a {kind} model, not clip", hint="tiny:clip works now")
        check_weights(folder, ref)
        _check_preparation(folder, ref)
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        return cls(
            load_network(CLIPModel, folder, *placed(compute)), tokenizer, identity=folder_identity(folder)
        )

    @property
    def identity(self) -> str:
        """A hash of weights and configuration."""
        if self._identity is None:
            self._identity = weights_identity({"clip": self.model}, "")
        return self._identity

    @property
    def side(self) -> int:
        """The side, in pixels, of the square that the picture tower sees."""
        return int(self.model.config.vision_config.image_size)

    @property
    def scale(self) -> float:
        """What inner products are multiplied by before a softmax (the learnt temperature)."""
        return float(self.model.logit_scale.exp())

    @torch.no_grad()
    def images(self, frames: UInt8[np.ndarray, "f 3 h w"]) -> Float[Tensor, "f d"]:
        """The unit vectors of frames, prepared exactly as transformers prepares pictures for CLIP."""
        parts = []
        for start in range(0, len(frames), FRAMES_AT_ONCE):
            part = torch.tensor(np.ascontiguousarray(frames[start : start + FRAMES_AT_ONCE]))
            parts.append(self._seen(normalise_colours(fit_square(part, self.side).float() / 255)))
        return torch.cat(parts)

    def pixels(self, pixels: Float[Tensor, "f 3 h w"]) -> Float[Tensor, "f d"]:
        """The unit vectors of pixels in [-1, 1], as `images` but unrounded: gradients reach the pixels."""
        return self._seen(normalise_colours((fit_square(pixels, self.side) + 1) / 2))

    @torch.no_grad()
    def texts(self, sentences: Sequence[str]) -> Float[Tensor, "n d"]:
        """The unit vectors of sentences; what is longer than the model reads is cut."""
        if not sentences:
            raise InputError("no sentence was given to compare with", hint="give at least one prompt")
        device = self.model.text_projection.weight.device
        words = self.tokenizer(
            list(sentences),
            padding=True,
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(device)
        read = self.model.text_model(input_ids=words.input_ids, attention_mask=words.attention_mask)
        return normalize(self.model.text_projection(read.pooler_output).float(), dim=-1)

    def _seen(self, prepared: Float[Tensor, "f 3 s s"]) -> Float[Tensor, "f d"]:
        weight = self.model.visual_projection.weight
        seen = self.model.vision_model(pixel_values=prepared.to(weight.device, weight.dtype))
        return normalize(self.model.visual_projection(seen.pooler_output).float(), dim=-1)


def normalise_colours(unit: Float[Tensor, "f 3 s s"]) -> Float[Tensor, "f 3 s s"]:
    """Colours in [0, 1], less their mean and over their deviation in CLIP's training pictures."""
    mean, std = (torch.tensor(v, device=unit.device)[:, None, None] for v in (OPENAI_MEAN, OPENAI_STD))
    return (unit - mean) / std


def fit_square(pixels: Tensor, side: int) -> Tensor:
    """The middle square of pixels (bytes or floats) with that side: bicubic, antialiased, then cut."""
    height, width = pixels.shape[-2:]
    short = min(height, width)
    size = (int(side * height / short), int(side * width / short))
    if size != (height, width):
        pixels = interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    return pixels[..., top : top + side, left : left + side]


def _check_preparation(folder: Path, ref: str) -> None:
    """`fit_square` prepares as OpenAI does; a model that asks for something else must be refused."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return
    config = read_config(path, ref)
    stated = (config.get("image_mean", OPENAI_MEAN), config.get("image_std", OPENAI_STD))
    same = all(
        np.allclose(cast("Sequence[float]", given), ours, atol=1e-6)
        for given, ours in zip(stated, (OPENAI_MEAN, OPENAI_STD), strict=True)
    )
    if not same or config.get("resample", 3) != 3 or not config.get("do_center_crop", True):
        raise ModelMismatch(
            f"{ref} prepares pictures in its own way ({path.name})",
            hint="only CLIP's own preparation is known: bicubic, centre crop, OpenAI's mean and deviation",
        )
