"""The judge: a small classifier that never meets a diffusion model, to say what a sampled picture shows.

It is trained on true renders alone, some of them blurred or noisy, and is not shipped.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import torch
from command import options, tell
from pictures import FACTORS, Pictures, held_out, prepared
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate

from retouch.models.fit import Fit, load_average

BATCH: Final = 64
COUNTS: Final = {"easy": 25_000, "middle": 40_000, "styled": 30_000}
SIDE: Final = 64


class Judge(nn.Module):
    """Four halvings, then one linear answer per factor from the mean and the maximum over places."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, 160)
        layers: list[nn.Module] = []
        for n, m in itertools.pairwise(widths):
            layers += [nn.Conv2d(n, m, 3, stride=2, padding=1), nn.GroupNorm(8, m), nn.SiLU()]
            layers += [nn.Conv2d(m, m, 3, padding=1), nn.GroupNorm(8, m), nn.SiLU()] if n != 3 else []
        self.body = nn.Sequential(*layers)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(2 * widths[-1], len(words)) for name, words in FACTORS.items()}
        )

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Scores of every word of every factor, for pixels in [-1, 1]."""
        seen = self.body(pixels)
        summary = torch.cat([seen.mean((2, 3)), seen.amax((2, 3))], 1)
        return {name: head(summary).float() for name, head in self.heads.items()}


def spoilt(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the pictures blurred or noisy, as an autoencoder leaves them."""
    kind = torch.rand((), generator=generator)
    if kind < 0.25:
        return interpolate(avg_pool2d(pixels, 2), scale_factor=2, mode="bilinear")
    if kind < 0.5:
        noise = torch.randn(pixels.shape, generator=generator).to(pixels.device)
        return pixels + 0.2 * float(torch.rand((), generator=generator)) * noise
    return pixels


def verdicts(judge: nn.Module, pixels: np.ndarray) -> np.ndarray:
    """What the judge sees: for each picture the place of its word in each of FACTORS."""
    like = next(judge.parameters())
    parts = []
    with torch.no_grad():
        for start in range(0, len(pixels), 128):
            part = torch.from_numpy(pixels[start : start + 128]).to(like.device).float() / 127.5 - 1
            if part.shape[-1] != SIDE:
                part = interpolate(part, (SIDE, SIDE), mode="area")
            scores = judge(part.to(like.dtype))
            parts.append(torch.stack([score.argmax(1) for score in scores.values()], 1).cpu())
    return torch.cat(parts).numpy()


def accuracy(judge: nn.Module, pictures: Pictures) -> dict[str, float]:
    """How often the judge is right, by factor."""
    right = verdicts(judge, pictures.pixels) == pictures.labels
    return {name: round(float(share), 4) for name, share in zip(FACTORS, right.mean(0), strict=True)}


def train(
    work: Path, *, size: int, images: int, device: str, seed: int = 1, counts: Mapping[str, int] | None = None
) -> Fit[Judge]:
    """Train until `images` have been seen, counting those of earlier calls."""
    torch.manual_seed(seed)
    fit = Fit(Judge(), work / "judge", tell=tell, rate=2e-3, keep=0.995, device=device, decay=0.05)
    sets = [prepared(work, lesson, n, size) for lesson, n in (counts or COUNTS).items()]
    tested = held_out("middle", 300, size)

    def look(generator: torch.Generator) -> tuple[Tensor, int]:
        chosen = sets[int(torch.randint(len(sets), (), generator=generator))]
        rows = np.sort(torch.randint(len(chosen), (BATCH,), generator=generator).numpy())
        pixels = torch.from_numpy(chosen.pixels[rows]).to(fit.device).float() / 127.5 - 1
        if pixels.shape[-1] != SIDE:
            pixels = interpolate(pixels, (SIDE, SIDE), mode="area")
        pixels = spoilt(pixels, generator).roll(
            tuple(torch.randint(-3, 4, (2,), generator=generator).tolist()), (-2, -1)
        )
        truth = torch.from_numpy(chosen.labels[rows].astype(np.int64)).to(fit.device)
        scores = fit.network(pixels.to(fit.precision)).values()
        losses = [cross_entropy(s, truth[:, n]) for n, s in enumerate(scores)]
        return torch.stack(losses).sum(), BATCH

    return fit.until(images, look, every=250, figures=lambda: accuracy(fit.network, tested))


def finished_judge(work: Path) -> Judge:
    """The trained judge."""
    return load_average(Judge(), work / "judge")


def main() -> None:
    """Train from the command line."""
    asked = options(__doc__, images=250_000).parse_args()
    train(asked.work, size=asked.size, images=asked.images, device=asked.device)


if __name__ == "__main__":
    main()
