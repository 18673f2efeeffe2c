from typing import TYPE_CHECKING

import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, rgb2lab

from retouch.errors import InputError
from retouch.metrics.colour import colour_drift, delta_e, lab_of

if TYPE_CHECKING:
    from tests.unit.metrics.conftest import Scenes


FOUR_DECIMALS = 5e-5  # the published table rounds there
ROUNDING = 1e-6  # matrices of the two sides are given to six digits

# Table 1 of Sharma, Wu and Dalal, "The CIEDE2000 Color-Difference Formula" (2005).
SHARMA = [
    ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
    ((50.0, 3.1571, -77.2803), (50.0, 0.0, -82.7485), 2.8615),
    ((50.0, 2.8361, -74.0200), (50.0, 0.0, -82.7485), 3.4412),
    ((50.0, -1.3802, -84.2814), (50.0, 0.0, -82.7485), 1.0000),
    ((50.0, -1.1848, -84.8006), (50.0, 0.0, -82.7485), 1.0000),
    ((50.0, -0.9009, -85.5211), (50.0, 0.0, -82.7485), 1.0000),
    ((50.0, 0.0, 0.0), (50.0, -1.0, 2.0), 2.3669),
    ((50.0, -1.0, 2.0), (50.0, 0.0, 0.0), 2.3669),
    ((50.0, 2.4900, -0.0010), (50.0, -2.4900, 0.0009), 7.1792),
    ((50.0, 2.4900, -0.0010), (50.0, -2.4900, 0.0010), 7.1792),
    ((50.0, 2.4900, -0.0010), (50.0, -2.4900, 0.0011), 7.2195),
    ((50.0, 2.4900, -0.0010), (50.0, -2.4900, 0.0012), 7.2195),
    ((50.0, -0.0010, 2.4900), (50.0, 0.0009, -2.4900), 4.8045),
    ((50.0, -0.0010, 2.4900), (50.0, 0.0010, -2.4900), 4.8045),
    ((50.0, -0.0010, 2.4900), (50.0, 0.0011, -2.4900), 4.7461),
    ((50.0, 2.5, 0.0), (50.0, 0.0, -2.5), 4.3065),
    ((50.0, 2.5, 0.0), (73.0, 25.0, -18.0), 27.1492),
    ((50.0, 2.5, 0.0), (61.0, -5.0, 29.0), 22.8977),
    ((50.0, 2.5, 0.0), (56.0, -27.0, -3.0), 31.9030),
    ((50.0, 2.5, 0.0), (58.0, 24.0, 15.0), 19.4535),
    ((50.0, 2.5, 0.0), (50.0, 3.1736, 0.5854), 1.0000),
    ((50.0, 2.5, 0.0), (50.0, 3.2972, 0.0), 1.0000),
    ((50.0, 2.5, 0.0), (50.0, 1.8634, 0.5757), 1.0000),
    ((50.0, 2.5, 0.0), (50.0, 3.2592, 0.3350), 1.0000),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((63.0109, -31.0961, -5.8663), (62.8187, -29.7946, -4.0864), 1.2630),
]


@pytest.mark.parametrize(("one", "other", "published"), SHARMA)
def test_delta_e_equals_the_published_pairs(
    one: tuple[float, ...], other: tuple[float, ...], published: float
) -> None:
    assert delta_e(np.array([one]), np.array([other])) == pytest.approx(published, abs=FOUR_DECIMALS)


def test_delta_e_is_symmetric_and_equals_scikit_image_all_over_the_space() -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.uniform((0, -100, -100), (100, 100, 100), (4000, 3)) for _ in range(2))
    assert np.allclose(delta_e(one, other), deltaE_ciede2000(one, other), atol=ROUNDING)
    assert np.allclose(delta_e(one, other), delta_e(other, one), atol=ROUNDING)


def test_lab_equals_scikit_image_on_all_levels() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.allclose(
        lab_of(rgb.reshape(-1, 3)), rgb2lab(rgb).reshape(-1, 3), atol=1e-3
    )  # reference white to five digits there


def tinted(frames: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Adds to the red of each frame."""
    result = frames.astype(int)
    result[:, 0] += levels[:, None, None]
    return np.asarray(np.clip(result, 0, 255), dtype=np.uint8)


def test_colour_drift_finds_the_window_in_which_the_colour_slips(scenes: "Scenes") -> None:
    source = np.repeat(scenes.moving_square().frames[:1], 12, axis=0)
    result = tinted(source, np.array([20] * 8 + [60] * 4))
    drift = colour_drift(result, source, window=4)
    assert drift.shape == (3,)
    assert drift[0] == drift[1] == 0
    assert drift[2] > 5


def test_colour_drift_forgives_an_edit_that_holds_and_what_the_source_does_itself(
    scenes: "Scenes",
) -> None:
    still = np.repeat(scenes.moving_square().frames[:1], 12, axis=0)
    assert colour_drift(tinted(still, np.full(12, 40)), still, window=4).max() == 0
    source = tinted(still, np.arange(12) * 5)
    assert colour_drift(source, window=4).max() > 2
    assert colour_drift(source, source, window=4).max() == pytest.approx(0, abs=ROUNDING)


def test_colour_drift_does_not_see_flicker_inside_a_window(scenes: "Scenes") -> None:
    source = np.repeat(scenes.moving_square().frames[:1], 8, axis=0)
    assert colour_drift(scenes.flickering(source), source, window=4).max() == pytest.approx(0, abs=ROUNDING)


def test_colour_drift_refuses_clips_of_different_length(scenes: "Scenes") -> None:
    clip = scenes.moving_square().frames
    with pytest.raises(InputError, match="6 and 5 frames"):
        colour_drift(clip, clip[:5])
