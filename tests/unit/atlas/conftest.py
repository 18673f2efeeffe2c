"""A clip whose layers and texture positions are known exactly, decomposed once for all tests.

A textured rounded patch moves, turns by 40 degrees, grows and bends over a background that pans and zooms.
Every pixel's place on its surface is a formula, so the drift of painted points can be computed.
"""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from retouch.atlas.atlas import Atlas, PackedMattes, pack_matte
from retouch.atlas.decompose import decompose_clip
from retouch.atlas.pyramid import AtlasSettings
from retouch.compute import Compute
from retouch.run import Run
from retouch.video import Video


@dataclass(frozen=True)
class Painted:
    """The clip and its truth. Surface positions are x, y in the units of each layer's own picture."""

    video: Video
    alpha: np.ndarray  # float (f, h, w)
    front: np.ndarray  # float (f, 2, h, w): where each pixel lies on the patch
    back: np.ndarray  # float (f, 2, h, w): where each pixel lies on the background
    pictures: tuple[np.ndarray, np.ndarray]  # patch and background, float (h, w, 3) 0..1

    @property
    def masks(self) -> np.ndarray:
        """Bytes (f, 1, h, w)."""
        made: np.ndarray = np.round(self.alpha[:, None] * 255).astype(np.uint8)
        return made


def cloth(seed: int, height: int, width: int) -> np.ndarray:
    """A picture with detail at every size, smooth enough to be sampled without aliasing."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    for sigma in (1.6, 3.0, 6.0, 12.0):
        total += (
            cv2.GaussianBlur(rng.standard_normal((height, width, 3)).astype(np.float32), (0, 0), sigma)
            * sigma
        )
    total -= total.mean()
    picture: np.ndarray = np.clip(0.5 + total / total.std() * 0.17, 0.02, 0.98)
    return picture


def read(picture: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The picture at positions (2, h, w), smoothly."""
    got: np.ndarray = cv2.remap(
        picture,
        at[0].astype(np.float32),
        at[1].astype(np.float32),
        cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REFLECT,
    )
    return got


def painted(frames: int = 24, height: int = 96, width: int = 160, seed: int = 3) -> Painted:
    """Draw the clip."""
    unit = width / 160
    patch, ground = cloth(seed, 160, 220), cloth(seed + 1, 260, 380)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    fronts: list[np.ndarray] = []
    backs: list[np.ndarray] = []
    alphas: list[np.ndarray] = []
    shots: list[np.ndarray] = []
    for t in range(frames):
        s = t / max(frames - 1, 1)
        # Inverse maps, frame to surface: the patch about its own centre, then a smooth bend.
        angle, grow = np.deg2rad(-20 + 40 * s), 0.92 + 0.22 * s
        cx, cy = (52 + 54 * s) * unit, (44 + 8 * np.sin(2.2 * s)) * unit
        dx, dy = (x - cx) / unit, (y - cy) / unit
        px = (np.cos(angle) * dx + np.sin(angle) * dy) / grow
        py = (-np.sin(angle) * dx + np.cos(angle) * dy) / grow
        bend = 1.6 * np.sin(2 * np.pi * s)
        px, py = px + bend * np.sin(py / 16), py + bend * np.cos(px / 20)
        inside = 1 - ((np.abs(px) / 34) ** 3 + (np.abs(py) / 24) ** 3) ** (1 / 3)
        alpha = np.clip(inside * 26 * unit + 0.5, 0, 1)
        front = np.stack([px * 2.2 + 110, py * 2.2 + 80])
        zoom = 1.45 - 0.14 * s
        back = np.stack([(x / unit) * zoom + 30 + 60 * s, (y / unit) * zoom + 40 + 22 * s])
        shot = alpha[..., None] * read(patch, front) + (1 - alpha[..., None]) * read(ground, back)
        for kept, new in ((fronts, front), (backs, back), (alphas, alpha), (shots, shot)):
            kept.append(new)
    pixels = np.clip(np.round(np.stack(shots) * 255), 0, 255).astype(np.uint8).transpose(0, 3, 1, 2)
    clip = Video(np.ascontiguousarray(pixels), Fraction(12))
    return Painted(clip, np.stack(alphas), np.stack(fronts), np.stack(backs), (patch, ground))


@pytest.fixture(scope="session")
def drawn() -> Painted:
    return painted(frames=10, height=72, width=120)


@pytest.fixture(scope="session")
def clip(drawn: Painted) -> Video:
    return drawn.video


@pytest.fixture(scope="session")
def truth(drawn: Painted) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The alpha (f, h, w) of the patch, and the place of each pixel on patch and ground (f, 2, h, w)."""
    return drawn.alpha, drawn.front, drawn.back


@pytest.fixture(scope="session")
def mattes(drawn: Painted) -> tuple[PackedMattes, ...]:
    packed = [pack_matte(m[0]) for m in drawn.masks]
    return (PackedMattes.pack(packed, drawn.video.height, drawn.video.width),)


@pytest.fixture(scope="session")
def atlas(clip: Video, mattes: tuple[PackedMattes, ...], tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    run = Run.alone(tmp_path_factory.mktemp("atlas"), compute=Compute(device="cpu"))
    return decompose_clip(clip, mattes, ("object", "background"), AtlasSettings(steps=4), run=run)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.alone(tmp_path, compute=Compute(device="cpu"))
