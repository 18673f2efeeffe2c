"""Trains the UNet and the text encoder of tiny:sd.

Lessons go from large upright plain objects to the whole world, because shape is what a small network learns
last and a small, turned, patterned object hides it. The loss weighs objects above their background, and
half of the noise levels are drawn from the noisy half of the schedule, where shape is decided.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final

import architecture
import numpy as np
import torch
from command import options, tell
from diffusers.models.attention_processor import AttnProcessor
from latents import Latents, latents_of, prepared_latents
from pictures import held_out
from probe import word_swap
from schedule import noised, velocity
from torch import Tensor, nn

from retouch.models.fit import Fit, load_average

BATCH: Final = 32
WORDLESS: Final = 0.1
"""Share of pictures shown without words, for guidance."""
OBJECT_WEIGHT: Final = 2.0
COUNTS: Final = {"easy": 25_000, "middle": 40_000, "styled": 30_000, "full": 30_000}
PLAN: Final[Sequence[tuple[int, Mapping[str, float]]]] = (
    (25_000, {"easy": 1.0}),
    (66_000, {"easy": 0.3, "middle": 0.7}),
    (190_000, {"easy": 0.15, "middle": 0.45, "styled": 0.4}),
    (10**12, {"easy": 0.05, "middle": 0.35, "styled": 0.3, "full": 0.3}),
)
"""Until how many images have been seen, in which shares the lessons come."""


class Pair(nn.Module):
    """Text encoder and UNet, trained as one."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.text = architecture.text_encoder(vocabulary)
        self.unet = architecture.unet()

    def forward(self, z: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """The velocity at noisy latents, timesteps and token numbers."""
        words = self.text(tokens).last_hidden_state
        return torch.as_tensor(self.unet(z, t, words).sample.float())


def shares_at(images: int, lessons: Sequence[str] = tuple(COUNTS)) -> Mapping[str, float]:
    """Which of the lessons that there are come in which shares after so many images."""
    planned = next(shares for until, shares in PLAN if images < until)
    return {name: share for name, share in planned.items() if name in lessons} or dict.fromkeys(lessons, 1.0)


class Lessons(Mapping[str, Latents]):
    """The lessons' latents, each encoded when it first comes up."""

    def __init__(self, counts: Mapping[str, int], load: Callable[[str, int], Latents]) -> None:
        self._counts, self._load = counts, cache(load)

    def __getitem__(self, name: str) -> Latents:
        return self._load(name, self._counts[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)


def batch(
    sets: Mapping[str, Latents], images: int, generator: torch.Generator, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, object masks and token numbers."""
    shares = shares_at(images, tuple(sets))
    lessons = torch.multinomial(
        torch.tensor(list(shares.values())), count, replacement=True, generator=generator
    )
    parts = []
    for number, name in enumerate(shares):
        chosen, n = sets[name], int((lessons == number).sum())
        rows = np.sort(torch.randint(len(chosen), (n,), generator=generator).numpy())
        parts.append((chosen.z[rows], chosen.masks[rows], chosen.tokens[rows]))
    z, masks, tokens = (torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True))
    return z.float(), masks.float() / 255, tokens.long()


def timesteps(count: int, generator: torch.Generator) -> Tensor:
    """Half anywhere, half in the noisy half."""
    anywhere = torch.rand(count, generator=generator)
    noisy = 0.5 + 0.5 * torch.rand(count, generator=generator)
    take = torch.rand(count, generator=generator) < 0.5
    return (torch.where(take, noisy, anywhere) * 1000).long().clamp(max=999)


def loss_of(
    pair: nn.Module, z: Tensor, masks: Tensor, tokens: Tensor, wordless: Tensor, generator: torch.Generator
) -> Tensor:
    """The weighted error of the predicted velocity, with one caption in ten left out."""
    device = next(pair.parameters()).device
    precision = next(pair.parameters()).dtype
    t = timesteps(len(z), generator)
    noise = torch.randn(z.shape, generator=generator)
    silent = torch.rand(len(z), generator=generator) < WORDLESS
    tokens = torch.where(silent[:, None], wordless, tokens)
    out = pair(noised(z, noise, t).to(device, precision), t.to(device), tokens.to(device))
    error = (out - velocity(z, noise, t).to(device)).square()
    weight = 1 + OBJECT_WEIGHT * masks[:, None].to(device)
    return torch.as_tensor((error * weight / weight.mean()).mean())


def train(
    work: Path,
    *,
    size: int,
    images: int,
    device: str,
    seed: int = 0,
    counts: Mapping[str, int] | None = None,
    warm_text: bool = True,
    count: int = BATCH,
) -> Fit[Pair]:
    """Train until `images` have been seen, counting those of earlier calls."""
    torch.manual_seed(seed)
    tokenizer = architecture.tokenizer(work / "tokenizer")
    pair = Pair(len(tokenizer))
    if warm_text and (work / "clip" / "checkpoint.safetensors").exists():
        clip = load_average(architecture.clip(len(tokenizer)), work / "clip")
        pair.text.load_state_dict(clip.text_model.state_dict())
    if device == "cpu":
        pair.unet.set_attn_processor(
            AttnProcessor()
        )  # its backward pass is twice as fast on a CPU in bfloat16
    fit = Fit(pair, work / f"unet-{size}px", tell=tell, rate=1e-3, keep=0.999, device=device)
    sets = Lessons(counts or COUNTS, lambda name, n: prepared_latents(work, name, n, size, tokenizer, device))
    probed = latents_of(work, held_out("middle", 96, size), size, tokenizer)
    wordless = torch.tensor(
        tokenizer("", padding="max_length", max_length=architecture.TEXT_LENGTH).input_ids
    )

    def look(generator: torch.Generator) -> tuple[Tensor, int]:
        fit.settle(images)
        drawn = batch(sets, fit.images, generator, count)
        return loss_of(fit.network, *drawn, wordless, generator), count

    return fit.until(images, look, every=500, figures=lambda: word_swap(fit.network, probed, tokenizer))


def main() -> None:
    """Train from the command line."""
    parser = options(__doc__, images=3_000_000)
    parser.add_argument("--batch", type=int, default=BATCH)
    asked = parser.parse_args()
    train(asked.work, size=asked.size, images=asked.images, device=asked.device, count=asked.batch)


if __name__ == "__main__":
    main()
