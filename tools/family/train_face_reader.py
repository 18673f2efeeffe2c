"""Trains the reader of tiny:face: points of a cut-out face, lids and pupils too, and parts.

Rare parts count more, and points within a pixel count by their distance, so that the last half pixel still
pulls. Half of the squares lie beside the face, turned, or of another size, as they do while a face is sought.
"""

from pathlib import Path
from typing import Final

import numpy as np
import torch
from command import options, tell
from faces import MIRRORED, SIDE, Faces, held_out, prepared
from torch import Tensor
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, smooth_l1_loss

from retouch.models.face_parts import SmallReader
from retouch.models.fit import Fit
from retouch.world import LANDMARKS, PARTS

BATCH: Final = 32
WEIGHT_OF_POINTS: Final = 0.3
WIDE: Final = (0.35, 0.35, 0.3)
"""How far squares go wrong: their size in logarithms, their turn in radians, their place in half sides."""
RARE: Final = 3.0
"""How much more a pixel counts of a part that a picture hardly shows than one of its background."""


def batch(faces: Faces, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, parts and points of random moments, half of them mirrored, some noisy."""
    rows = np.sort(torch.randperm(len(faces), generator=generator)[:BATCH].numpy())
    moments = torch.randint(2, (len(rows),), generator=generator).numpy()
    pixels = torch.from_numpy(faces.pixels[rows, moments]).float() / 127.5 - 1
    parts = torch.from_numpy(faces.parts[rows, moments]).long()
    points = torch.from_numpy(faces.points[rows, moments])
    if torch.rand((), generator=generator) < 0.5:
        pixels, parts = pixels.flip(-1), parts.flip(-1)
        points = points[:, MIRRORED] * torch.tensor([-1.0, 1.0]) + torch.tensor([1.0, 0.0])
    half = len(pixels) // 2
    pixels[:half], parts[:half], points[:half] = misplaced(
        pixels[:half], parts[:half], points[:half], generator
    )
    noise = torch.randn(pixels.shape, generator=generator)
    return pixels + 0.1 * torch.rand((), generator=generator) * noise, parts, points


def misplaced(
    pixels: Tensor, parts: Tensor, points: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what squares show that were laid wrongly; beyond the picture its border is repeated."""
    dice = 2 * torch.rand(4, len(pixels), generator=generator) - 1
    size, turn, place = (WIDE[0] * dice[0]).exp(), WIDE[1] * dice[1], WIDE[2] * dice[2:].T
    c, s = size * turn.cos(), size * turn.sin()
    axes = torch.stack([torch.stack([c, -s], 1), torch.stack([s, c], 1)], 1)  # n 2 2
    grid = affine_grid(torch.cat([axes, place[:, :, None]], 2), list(pixels.shape), align_corners=False)
    seen = grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    shown = grid_sample(
        parts[:, None].float(), grid, mode="nearest", padding_mode="border", align_corners=False
    )
    away = torch.linalg.solve(axes, (2 * points - 1 - place[:, None]).mT).mT
    return seen, shown[:, 0].long(), ((away + 1) / 2).clamp(0, 1)


def loss_of(reader: SmallReader, pixels: Tensor, parts: Tensor, points: Tensor) -> Tensor:
    """Distances of points in pixels, and the weighted cross-entropy of parts."""
    spots, scores = reader(pixels)
    share = torch.bincount(parts.flatten(), minlength=len(PARTS)) / parts.numel()
    weight = 1 + RARE * (-share / 0.02).exp()
    near = smooth_l1_loss(SIDE * spots, SIDE * points, beta=0.5)
    return WEIGHT_OF_POINTS * near + cross_entropy(scores, parts, weight)


def figures_of(reader: SmallReader, faces: Faces) -> dict[str, float]:
    """The mean distance of points in pixels, the share of pixels right, and how well small parts overlap."""
    pixels = torch.from_numpy(faces.pixels).flatten(0, 1).float() / 127.5 - 1
    parts = torch.from_numpy(faces.parts).flatten(0, 1).long()
    with torch.no_grad():
        spots, scores = reader(pixels)
    away = SIDE * (spots - torch.from_numpy(faces.points).flatten(0, 1)).norm(dim=2)
    said = scores.argmax(1)
    figures = {"points_px": float(away.mean()), "parts_right": float((said == parts).float().mean())}
    for name in ("eyes", "glasses", "beard", "hair", "hat"):
        a, b = said == PARTS.index(name), parts == PARTS.index(name)
        figures[name] = float((a & b).sum() / (a | b).sum().clamp(min=1))
    return {name: round(value, 3) for name, value in figures.items()}


def train(work: Path, *, images: int, count: int, device: str = "cpu", tested: int = 50) -> Fit[SmallReader]:
    """Train until `images` have been seen, counting those of earlier calls."""
    torch.manual_seed(0)
    fit = Fit(
        SmallReader(len(LANDMARKS), PARTS),
        work / "face-reader",
        tell=tell,
        rate=3e-3,
        keep=0.99,
        warmup=50,
        decay=0.05,
        device=device,
        precision=torch.float32,
        orthogonal=True,
    )
    faces, judged = prepared(work, count), held_out(tested)

    def look(generator: torch.Generator) -> tuple[Tensor, int]:
        fit.settle(images)
        return loss_of(fit.network, *batch(faces, generator)), min(BATCH, len(faces))

    return fit.until(images, look, every=100, figures=lambda: figures_of(fit.network, judged))


def main() -> None:
    """Train from the command line."""
    parser = options(__doc__, images=100_000)
    parser.add_argument("--persons", type=int, default=15_000)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    train(asked.work, images=asked.images, count=asked.persons, device=asked.device)


if __name__ == "__main__":
    main()
