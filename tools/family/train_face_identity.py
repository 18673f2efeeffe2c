"""Trains the identity encoder of tiny:face: one vector for a person at two moments, far from any other's.

Linear heads, not shipped, must read off it what is known of the person in words and numbers. With `--judge`
it trains another one, which `benchmarks/face.py` asks what an edit shows.
"""

from pathlib import Path
from typing import Final

import numpy as np
import torch
from command import options, tell
from faces import FACTORS, SIZES, Faces, held_out, prepared
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from retouch.models.face_parts import SmallIdentity
from retouch.models.fit import Fit

BATCH: Final = 32
"""Persons at a step, each at two moments."""
TEMPERATURE: Final = 0.1
SIZES_SCALE: Final = 0.03


class EncoderWithHeads(nn.Module):
    """The encoder and the heads that it is asked through."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = SmallIdentity()
        features = self.encoder.head.out_features
        self.words = nn.Linear(features, sum(len(words) for words in FACTORS.values()))
        self.sizes = nn.Linear(features, len(SIZES))

    def forward(self, crops: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Vectors, the scores of the words of each factor, and sizes."""
        z = self.encoder(crops)
        scores = self.words(8 * z).split([len(words) for words in FACTORS.values()], dim=1)
        return z, list(scores), self.sizes(8 * z)


def pixels_of(faces: Faces, rows: np.ndarray) -> Tensor:
    """Pixels of persons' moments in [-1, 1], all first moments before all second ones."""
    return torch.from_numpy(faces.pixels[rows]).transpose(0, 1).flatten(0, 1).float() / 127.5 - 1


def loss_of(network: EncoderWithHeads, pixels: Tensor, labels: Tensor, sizes: Tensor) -> Tensor:
    """Words by cross-entropy, sizes by squares, and each person's other moment found among all."""
    z, scores, guessed = network(pixels)
    words = [cross_entropy(s, labels[:, n].repeat(2)) for n, s in enumerate(scores)]
    one, other = z.chunk(2)
    alike = one @ other.T / TEMPERATURE
    here = torch.arange(len(one))
    found = (cross_entropy(alike, here) + cross_entropy(alike.T, here)) / 2
    steady = 1 - (one * other).sum(1).mean()
    return torch.stack(words).sum() + mse_loss(guessed, sizes.repeat(2, 1)) + 0.3 * found + 0.5 * steady


def figures_of(network: EncoderWithHeads, faces: Faces) -> dict[str, float]:
    """Shares of words read right, likeness of the same person and of others, and how many are found again."""
    with torch.no_grad():
        z, scores, _ = network(pixels_of(faces, np.arange(len(faces))))
    truth = torch.from_numpy(faces.labels.astype(np.int64)).repeat(2, 1)
    right = {
        name: float((s.argmax(1) == truth[:, n]).float().mean())
        for n, (name, s) in enumerate(zip(FACTORS, scores, strict=True))
    }
    one, other = z.chunk(2)
    alike = one @ other.T
    same, here = alike.diag().mean(), torch.arange(len(one))
    strangers = (alike.sum() - alike.diag().sum()) / (alike.numel() - len(one))
    found = (alike.argmax(1) == here).float().mean()
    numbers = {"same": float(same), "others": float(strangers), "found": float(found)}
    return {name: round(value, 3) for name, value in {**right, **numbers}.items()}


def train(
    work: Path,
    *,
    images: int,
    count: int,
    device: str = "cpu",
    tested: int = 100,
    name: str = "face-identity",
    seed: int = 0,
) -> Fit[EncoderWithHeads]:
    """Train until `images` have been seen, counting those of earlier calls."""
    torch.manual_seed(seed)
    network = EncoderWithHeads()
    fit = Fit(
        network, work / name, tell=tell, rate=2e-3, keep=0.99, warmup=50, decay=0.05, device=device,
        precision=torch.float32, orthogonal=True,
    )  # fmt: skip
    faces, judged = prepared(work, count), held_out(tested)
    sizes = torch.from_numpy(np.array(faces.sizes))
    sizes = (sizes - sizes.mean(0)) / SIZES_SCALE

    def look(generator: torch.Generator) -> tuple[Tensor, int]:
        rows = np.sort(torch.randperm(len(faces), generator=generator)[:BATCH].numpy())
        pixels = pixels_of(faces, rows)
        if torch.rand((), generator=generator) < 0.5:
            pixels = pixels.flip(-1)
        pixels = pixels + 0.1 * torch.rand((), generator=generator) * torch.randn(
            pixels.shape, generator=generator
        )
        fit.settle(images)
        labels = torch.from_numpy(faces.labels[rows].astype(np.int64))
        return loss_of(fit.network, pixels, labels, sizes[rows]), 2 * len(rows)

    return fit.until(images, look, every=100, figures=lambda: figures_of(fit.network, judged))


def main() -> None:
    """Train from the command line."""
    parser = options(__doc__, images=60_000)
    parser.add_argument("--persons", type=int, default=15_000)
    parser.add_argument(
        "--judge", action="store_true", help="another one, from other weights, to judge edits by"
    )
    asked = parser.parse_args()
    torch.set_num_threads(1)
    name, seed = ("face-judge", 1) if asked.judge else ("face-identity", 0)
    train(asked.work, images=asked.images, count=asked.persons, device=asked.device, name=name, seed=seed)


if __name__ == "__main__":
    main()
