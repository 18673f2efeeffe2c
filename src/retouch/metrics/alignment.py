"""What a text-and-image network (CLIP) says of an edit: does it show the words, and do its frames look alike?

The network is any `ImageTextEncoder`. Figures of different networks, crops, sizes or frame selections do
not compare, so that each is printed under a key that names them (`figure_key`). Definitions: E is the unit
embedding, x the source, y the result, `p_s` and `p_t` source and target prompt; means are over all
frames.
"""

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from retouch.errors import InputError
from retouch.metrics.fidelity import Frames
from retouch.video import release_pages

AT_ONCE = 16
"""Frames that the network looks at in one call, so that a long clip needs no more memory than a short one."""


@runtime_checkable
class ImageTextEncoder(Protocol):
    """A network that puts pictures and texts into one space, as vectors of length one."""

    def images(self, frames: Frames, /) -> Float[Tensor, "f d"]:
        """Embed frames, cropped and resized as the network was trained."""
        ...

    def texts(self, sentences: list[str], /) -> Float[Tensor, "n d"]:
        """Embed texts."""
        ...


def figure_key(metric: str, network: str, crop: str, frames: str = "all") -> str:
    """Name a figure so that only like is set beside like: `clip-f@vit-b32/224c/all`."""
    return f"{metric}@{network}/{crop}/{frames}"


@torch.no_grad()
def clip_text(result: Frames, prompt: str, encoder: ImageTextEncoder) -> float:
    """CLIP-T: mean cosine of E(y_t) and E(p_t), from -1 to 1; not multiplied by the network's logit scale."""
    return float((embed_clip(result, encoder) @ embed_texts(encoder, prompt)[0]).mean())


@torch.no_grad()
def clip_direction(
    result: Frames, source: Frames, prompt: str, source_prompt: str, encoder: ImageTextEncoder
) -> float:
    """Return the mean cosine of E(y_t) - E(x_t) and E(p_t) - E(p_s): did pictures move as the words did?

    A frame that did not move at all counts 0: no change is no change in the right direction.

    Raises:
        InputError: the prompts are the same to the network, so that there is no direction.
    """
    target, origin = embed_texts(encoder, prompt, source_prompt)
    way = target - origin
    if float(way.norm()) < 1e-6:
        raise InputError(
            f"{prompt!r} and {source_prompt!r} are the same to the network", hint="use other words"
        )
    moves = embed_clip(result, encoder) - embed_clip(source, encoder)
    lengths = moves.norm(dim=-1)
    cosines = (moves @ way) / (lengths.clamp_min(1e-12) * way.norm())
    return float(torch.where(lengths < 1e-6, torch.zeros_like(cosines), cosines).mean())


@torch.no_grad()
def frame_similarity(result: Frames, encoder: ImageTextEncoder) -> float:
    """CLIP-F, called Tem-Con: mean cosine of each frame and the next. It rewards doing nothing, and blur.

    Projected embeddings, as FateZero measures it; figures from un-projected ones are higher and do not
    compare.

    Raises:
        InputError: there is one frame only.
    """
    if len(result) < 2:
        raise InputError("one frame has no next one to resemble", hint="give a clip of two frames or more")
    x = embed_clip(result, encoder)
    return float((x[:-1] * x[1:]).sum(dim=-1).mean())


@torch.no_grad()
def frame_accuracy(result: Frames, prompt: str, source_prompt: str, encoder: ImageTextEncoder) -> float:
    """Frame accuracy: the share of frames nearer to the target prompt than to the source's; a tie counts.

    The softmax over the two logits is at least one half exactly where the cosine is at least the other's,
    so that no logit scale is asked for.
    """
    target, origin = embed_texts(encoder, prompt, source_prompt)
    x = embed_clip(result, encoder)
    return float((x @ target >= x @ origin).float().mean())


def embed_clip(frames: Frames, encoder: ImageTextEncoder) -> Float[Tensor, "f d"]:
    """Embed a clip of any length, `AT_ONCE` frames at a time."""
    parts = []
    for t in range(0, len(frames), AT_ONCE):
        parts.append(encoder.images(np.asarray(frames[t : t + AT_ONCE])).float().cpu())
        release_pages(frames)
    return torch.cat(parts)


def embed_texts(encoder: ImageTextEncoder, *texts: str) -> Float[Tensor, "n d"]:
    """Embed texts on the CPU in full precision, where cosines of near neighbours keep their order."""
    return encoder.texts(list(texts)).float().cpu()
