"""An editor of pictures that stands in for a network, so that what is done with its answers can be seen."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import cv2
import numpy as np
import pytest

from retouch.run import Run


@final
@dataclass
class SwapsColours:
    """Shows red as blue and blue as red, some pixels beside where things are; keeps what it was asked."""

    shift: int = 0
    instead: np.ndarray | None = None
    """A picture that it answers whatever it is shown."""
    identity: str = "swaps colours"
    shown: list[np.ndarray] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    masks: list[np.ndarray | None] = field(default_factory=list)
    references: list[tuple[np.ndarray, ...]] = field(default_factory=list)

    def edit(
        self,
        picture: np.ndarray,
        prompt: str,
        *,
        mask: np.ndarray | None,
        references: Sequence[np.ndarray],
        seed: int,
        run: Run,
    ) -> np.ndarray:
        """Return the picture with its colours swapped, all of it."""
        del seed, run
        self.shown.append(picture)
        self.prompts.append(prompt)
        self.masks.append(mask)
        self.references.append(tuple(references))
        if self.instead is not None:
            return self.instead
        matrix = np.array([[1.0, 0, self.shift], [0, 1.0, -self.shift]])
        size = (picture.shape[1], picture.shape[0])
        swapped = np.ascontiguousarray(picture[..., ::-1])
        return np.asarray(cv2.warpAffine(swapped, matrix, size, borderMode=cv2.BORDER_REPLICATE))


@pytest.fixture
def swaps_colours() -> SwapsColours:
    """The stand-in, which keeps what it was asked."""
    return SwapsColours()
