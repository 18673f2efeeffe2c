import numpy as np
import pytest

from retouch.errors import ParamsError
from retouch.models.annotate import canny


def square(level: int = 255) -> np.ndarray:
    frames = np.zeros((2, 3, 32, 32), np.uint8)
    frames[1, :, 8:24, 8:24] = level
    return frames


def test_edges_lie_on_the_border_of_a_square_and_nowhere_else() -> None:
    edges = canny(square())
    assert edges.shape == (2, 3, 32, 32)
    assert float(edges[0].max()) == 0
    rows, columns = np.nonzero(edges[1, 0].numpy())
    nearest = np.minimum.reduce(
        [np.abs(rows - 8), np.abs(rows - 23), np.abs(columns - 8), np.abs(columns - 23)]
    )
    assert len(rows) >= 4 * 14
    assert nearest.max() <= 1
    assert set(np.unique(edges)) == {0.0, 1.0}


def test_the_three_planes_are_one_picture() -> None:
    edges = canny(square())
    assert bool((edges[:, :1] == edges).all())


def test_a_faint_edge_needs_a_low_threshold() -> None:
    assert float(canny(square(30)).sum()) == 0
    assert float(canny(square(30), low=10, high=20).sum()) > 0


def test_thresholds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ParamsError, match="rise from 0"):
        canny(square(), low=200, high=100)
