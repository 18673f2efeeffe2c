import math

import numpy as np
import pytest

from retouch.errors import InputError
from retouch.metrics.uncertainty import FEWEST, bootstrap_interval, paired_interval


def test_interval_has_the_width_that_the_normal_law_gives_for_many_values() -> None:
    values = np.random.default_rng(3).normal(10, 2, 400)
    found = bootstrap_interval(values.tolist())
    standard_error = values.std() / math.sqrt(400)
    assert found.mean == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * standard_error, rel=0.05)  # 10,000 draws
    assert found.low < found.mean < found.high


def test_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for trial in range(200):
        found = bootstrap_interval(rng.exponential(1.0, 40).tolist(), draws=400, seed=trial)
        hits += found.low <= 1 <= found.high
    assert 0.86 <= hits / 200 <= 0.99


def test_interval_is_the_same_every_time_and_a_point_for_equal_values() -> None:
    values = [1.0, 4.0, 2.0, 8.0]
    assert bootstrap_interval(values) == bootstrap_interval(values)
    same = bootstrap_interval([3.0] * 5)
    assert (same.low, same.mean, same.high, same.clips) == (3.0, 3.0, 3.0, 5)


def test_paired_decides_where_clips_differ_more_than_methods() -> None:
    rng = np.random.default_rng(1)
    clips = rng.normal(25, 5, 30)
    better = clips + rng.normal(1, 0.5, 30)
    apart = [bootstrap_interval(x.tolist()) for x in (better, clips)]
    assert apart[0].low < apart[1].high  # side by side nothing is decided
    assert paired_interval(better.tolist(), clips.tolist()).sign == 1
    assert paired_interval(clips.tolist(), better.tolist()).sign == -1
    assert paired_interval(clips.tolist(), clips.tolist()).sign == 0


def test_a_few_clips_decide_nothing_however_far_they_are_apart() -> None:
    assert paired_interval([9.0] * (FEWEST - 1), [1.0] * (FEWEST - 1)).sign == 0
    assert paired_interval([9.0] * FEWEST, [1.0] * FEWEST).sign == 1


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_interval_of_what_is_no_number_is_an_error(values: list[float]) -> None:
    with pytest.raises(InputError, match="not finite"):
        bootstrap_interval(values)


def test_paired_refuses_rows_of_different_length() -> None:
    with pytest.raises(InputError, match="2 and 1 values"):
        paired_interval([1.0, 2.0], [1.0])
