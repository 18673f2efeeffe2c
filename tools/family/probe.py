"""The word-swap probe: by how much the error in the object grows when one word of the caption is wrong.

Seconds, no sampling. A network that does not read a word answers zero for it, so this is the gate of a
training.
"""

from typing import Final

import numpy as np
import torch
from latents import Latents
from pictures import FACTORS
from schedule import noised, velocity
from torch import Tensor, nn
from transformers import CLIPTokenizer

TIMESTEP: Final = 600
PROBED: Final = ("object", "colour", "background")


def word_swap(pair: nn.Module, seen: Latents, tokenizer: CLIPTokenizer) -> dict[str, float]:
    """The rise of the error, inside the object for its words and outside for the background's."""
    tokens = torch.from_numpy(seen.tokens.astype(np.int64))
    right = _errors(pair, seen, tokens)
    masks = torch.from_numpy(seen.masks.astype(np.float32) / 255)
    return {
        f"swap_{factor}": round(
            _rise(right, _errors(pair, seen, swapped(tokens, seen, factor, tokenizer)), masks, factor), 4
        )
        for factor in PROBED
    }


def swapped(tokens: Tensor, seen: Latents, factor: str, tokenizer: CLIPTokenizer) -> Tensor:
    """The captions' tokens with the word of one factor replaced by the next in its list."""
    names = FACTORS[factor]
    number = {name: tokenizer(name).input_ids[1] for name in names}
    column = list(FACTORS).index(factor)
    out = tokens.clone()
    for row, label in enumerate(seen.labels[:, column]):
        old, new = names[label], names[(label + 1) % len(names)]
        out[row][out[row] == number[old]] = number[new]
    return out


def _errors(pair: nn.Module, seen: Latents, tokens: Tensor) -> Tensor:
    like = next(pair.parameters())
    noise = torch.randn(seen.z.shape, generator=torch.Generator().manual_seed(5))
    z = torch.from_numpy(seen.z.astype(np.float32))
    t = torch.full((len(z),), TIMESTEP)
    parts = []
    with torch.no_grad():
        for rows in torch.split(torch.arange(len(z)), 32):
            noisy = noised(z[rows], noise[rows], t[rows]).to(like.device, like.dtype)
            out = pair(noisy, t[rows].to(like.device), tokens[rows].to(like.device)).cpu()
            parts.append((out - velocity(z[rows], noise[rows], t[rows])).square().mean(1))
    return torch.cat(parts)


def _rise(right: Tensor, wrong: Tensor, masks: Tensor, factor: str) -> float:
    where = 1 - masks if factor == "background" else masks
    return float(((wrong - right) * where).sum() / where.sum())
