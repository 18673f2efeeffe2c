"""Trains tiny:clip: pictures and captions of the world, contrastively."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import architecture
import numpy as np
import torch
from command import options, tell
from latents import tokens_of
from pictures import Pictures, held_out, prepared
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate
from transformers import CLIPModel

from retouch.models.fit import Fit

BATCH: Final = 96
COUNTS: Final = {"easy": 25_000, "middle": 40_000, "styled": 30_000, "full": 30_000}
SHARES: Final = {"easy": 0.1, "middle": 0.4, "styled": 0.3, "full": 0.2}
MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
STD: Final = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's own colour statistics, so that its picture processor needs no other settings."""


def normalised(pixels: Tensor) -> Tensor:
    """Bytes to what the picture tower takes."""
    mean, std = (torch.tensor(v, device=pixels.device)[:, None, None] for v in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


def batch(
    sets: Mapping[str, tuple[Pictures, np.ndarray]], generator: torch.Generator, count: int
) -> tuple[Tensor, Tensor]:
    """Pictures and tokens of one lesson; moved by up to three pixels."""
    names = [name for name in sets if name in SHARES] or list(sets)
    shares = torch.tensor([SHARES.get(name, 1.0) for name in names])
    pictures, tokens = sets[names[int(torch.multinomial(shares, 1, generator=generator))]]
    rows = np.sort(torch.randint(len(pictures), (count,), generator=generator).numpy())
    pixels = torch.from_numpy(pictures.pixels[rows])
    down, across = (int(n) for n in torch.randint(-3, 4, (2,), generator=generator))
    pixels = pixels.roll((down, across), (-2, -1))
    if pixels.shape[-1] != architecture.CLIP_SIDE:
        pixels = interpolate(pixels.float(), architecture.CLIP_SIDE, mode="area").round().byte()
    return pixels, torch.from_numpy(tokens[rows].astype(np.int64))


def contrast(model: CLIPModel, pixels: Tensor, tokens: Tensor) -> Tensor:
    """How badly pictures and captions find each other; equal captions are right for each other."""
    device, precision = model.logit_scale.device, model.logit_scale.dtype
    tokens = tokens.to(device)
    out = model(input_ids=tokens, pixel_values=normalised(pixels.to(device)).to(precision))
    scale = model.logit_scale.float().exp().clamp(max=100)
    logits = scale * out.image_embeds.float() @ out.text_embeds.float().T
    same = (tokens[:, None] == tokens[None]).all(-1).float()
    target = same / same.sum(1, keepdim=True)
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2


def retrieval(model: CLIPModel, pictures: Pictures, tokens: np.ndarray) -> float:
    """How often a picture's own caption scores highest among those of a hundred different ones."""
    seen: dict[str, int] = {}
    for row, caption in enumerate(pictures.captions):
        seen.setdefault(caption, row)
    rows = list(seen.values())[: len(seen) // 100 * 100]
    with torch.no_grad():
        like = model.logit_scale
        pixels = normalised(torch.from_numpy(pictures.pixels[rows])).to(like.device, like.dtype)
        texts = torch.from_numpy(tokens[rows].astype(np.int64)).to(like.device)
        out = model(input_ids=texts, pixel_values=pixels)
        logits = out.image_embeds.float() @ out.text_embeds.float().T
    hits = [logits[n : n + 100, n : n + 100].argmax(1) == torch.arange(100) for n in range(0, len(rows), 100)]
    return float(torch.cat(hits).float().mean())


def train(
    work: Path,
    *,
    size: int,
    images: int,
    device: str,
    seed: int = 0,
    counts: Mapping[str, int] | None = None,
    count: int = BATCH,
) -> Fit[CLIPModel]:
    """Train until `images` have been seen, counting those of earlier calls."""
    torch.manual_seed(seed)
    tokenizer = architecture.tokenizer(work / "tokenizer")
    model = architecture.clip(len(tokenizer))
    model.set_attn_implementation("eager")
    fit = Fit(model, work / "clip", tell=tell, rate=1e-3, keep=0.995, device=device, decay=0.05)
    sets = {}
    for lesson, n in (counts or COUNTS).items():
        pictures = prepared(work, lesson, n, size)
        sets[lesson] = (pictures, tokens_of(tokenizer, pictures.captions))
    tested = held_out("styled", 230, size)
    tested_tokens = tokens_of(tokenizer, tested.captions)

    def look(generator: torch.Generator) -> tuple[Tensor, int]:
        return contrast(fit.network, *batch(sets, generator, count)), count

    def figures() -> dict[str, float]:
        return {"retrieval": round(retrieval(fit.network, tested, tested_tokens), 3)}

    return fit.until(images, look, every=100, figures=figures)


def main() -> None:
    """Train from the command line."""
    asked = options(__doc__, images=300_000).parse_args()
    train(asked.work, size=asked.size, images=asked.images, device=asked.device)


if __name__ == "__main__":
    main()
