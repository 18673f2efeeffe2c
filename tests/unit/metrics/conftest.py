"""A textured square that moves over a textured ground by whole pixels, with its mask and true motion."""

from dataclasses import dataclass
from typing import final

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

SIDE, SQUARE, FRAMES = 48, 16, 6
STEP = (3, 1)  # pixels to the right and down, from one frame to the next


@final
@dataclass(frozen=True, eq=False)
class Scene:
    """A clip with what is known of it."""

    frames: np.ndarray
    mask: np.ndarray
    flow: np.ndarray
    seen: np.ndarray


@final
class Scenes:
    """Clips whose motion is known, and ways to spoil them."""

    step = STEP

    @staticmethod
    def moving_square(colour: tuple[int, int, int] = (40, -30, 0)) -> Scene:
        """Draws the clip; `colour` is added to the square's grey texture."""
        rng = np.random.default_rng(7)
        ground = Scenes.texture(rng, (SIDE, SIDE))
        square = np.clip(Scenes.texture(rng, (SQUARE, SQUARE)) + np.array(colour)[:, None, None], 0, 255)
        frames = np.repeat(ground[None], FRAMES, axis=0)
        mask = np.zeros((FRAMES, 1, SIDE, SIDE), dtype=bool)
        for t in range(FRAMES):
            x, y = 4 + STEP[0] * t, 10 + STEP[1] * t
            frames[t, :, y : y + SQUARE, x : x + SQUARE] = square
            mask[t, 0, y : y + SQUARE, x : x + SQUARE] = True
        flow = np.zeros((FRAMES - 1, 2, SIDE, SIDE), dtype=np.float32)
        for axis in (0, 1):
            flow[:, axis][mask[:-1, 0]] = STEP[axis]
        seen = mask[:-1] | ~mask[1:]  # ground that the square moves over is covered
        return Scene(frames.astype(np.uint8), mask, flow, seen)

    @staticmethod
    def texture(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        """Gives smooth noise around middle grey, three equal channels."""
        noise = gaussian_filter(rng.standard_normal(shape), 1.5)
        grey = 128 + 35 * noise / noise.std()
        return np.repeat(np.clip(grey, 0, 255)[None], 3, axis=0)

    @staticmethod
    def blurred(frames: np.ndarray, sigma: float = 1.5) -> np.ndarray:
        """Blurs every frame in space."""
        return np.asarray(gaussian_filter(frames.astype(float), (0, 0, sigma, sigma)).round(), dtype=np.uint8)

    @staticmethod
    def flickering(frames: np.ndarray, levels: int = 12) -> np.ndarray:
        """Makes every other frame brighter."""
        bright = frames.astype(int) + levels * (np.arange(len(frames)) % 2)[:, None, None, None]
        return np.clip(bright, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def scenes() -> Scenes:
    return Scenes()
