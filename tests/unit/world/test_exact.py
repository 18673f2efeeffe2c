import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from retouch.world.exact import Dice, blend_over, cosine, random_uniform, sine, sine_waves, to_bytes

# The Taylor series is cut after x**13; at a quarter turn the next term is 7e-10.
SERIES = 1e-9
# Single precision carries about seven digits, and the angle in turns loses some before the sine is taken.
SINGLE = 2e-6


@given(st.floats(-50, 50))
def test_sine_and_cosine_of_turns_follow_the_library(turns: float) -> None:
    assert abs(sine(turns) - math.sin(2 * math.pi * turns)) < SERIES
    assert abs(cosine(turns) - math.cos(2 * math.pi * turns)) < SERIES


def test_waves_are_sines_of_whole_arrays() -> None:
    turns = np.linspace(-3, 3, 1001, dtype=np.float32)
    expected = np.sin(2 * np.pi * turns.astype(np.float64))
    assert np.abs(sine_waves(turns) - expected).max() < SINGLE
    assert sine_waves(turns).dtype == np.float32


def test_over_is_the_rounded_blend_for_every_pair_of_bytes() -> None:
    top, below = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    for share in (0, 1, 77, 127, 128, 200, 254, 255):
        alpha = np.full((256, 256), share, np.uint8)
        got = blend_over(np.stack([top] * 3), alpha, np.stack([below] * 3))[0]
        exact = (top.astype(np.int64) * share + below.astype(np.int64) * (255 - share)) / 255
        assert np.array_equal(got, np.floor(exact + 0.5).astype(np.uint8))


def test_bytes_are_rounded_and_held_in_range() -> None:
    levels = np.array([-1.0, 0.0, 0.4 / 255, 0.6 / 255, 1.0, 2.0])
    assert to_bytes(levels).tolist() == [0, 0, 0, 1, 255, 255]


def test_random_numbers_are_the_top_bits_of_the_named_stream() -> None:
    raw = np.random.Philox(key=np.array([5, 9], np.uint64)).random_raw(4)
    assert random_uniform(4, 5, 9).tolist() == [(number >> 11) / 2**53 for number in raw.tolist()]
    assert random_uniform(4, 5, 9).tolist() != random_uniform(4, 6, 9).tolist()


def test_dice_keep_within_their_bounds_and_use_all_of_them() -> None:
    dice = Dice(1, 2, 3000)
    assert {dice.pick(7) for _ in range(1000)} == set(range(7))
    between = [dice.between(-2.0, 3.0) for _ in range(1000)]
    assert -2 <= min(between) < -1.9
    assert 2.9 < max(between) < 3
    share = sum(dice.chance(0.3) for _ in range(1000)) / 1000
    assert 0.25 < share < 0.35
