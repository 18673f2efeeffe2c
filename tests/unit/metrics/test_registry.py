import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest

from retouch.errors import InputError
from retouch.metrics.fidelity import changed_pixels
from retouch.metrics.registry import Case, find_metric, measure, metrics

if TYPE_CHECKING:
    from tests.unit.metrics.conftest import Scenes


@pytest.fixture
def case(scenes: "Scenes") -> Case:
    """The true edit, held up as the result."""
    scene, truth = scenes.moving_square(), scenes.moving_square((-60, 20, 60)).frames
    mask = changed_pixels(scene.frames, truth)
    return Case(truth, scene.frames, truth, mask, mask, scene.flow, scene.seen)


def test_a_key_names_backbone_size_and_frames(case: Case) -> None:
    assert find_metric("psnr").key(case) == "psnr@rgb8/48x48/6f"
    assert (
        find_metric("clip-f").key(dataclasses.replace(case, network="vit-b32", crop="224c"))
        == "clip-f@vit-b32/224c/6f"
    )


def test_measure_takes_what_the_case_knows_and_nothing_else(case: Case) -> None:
    known = {name.partition("@")[0] for name in measure(case)}
    assert {"fidelity-inside", "fidelity-outside", "warp-error", "untouched-share", "flicker"} <= known
    assert not known & {"clip-t", "clip-f", "clip-direction", "frame-accuracy"}
    bare = {name.partition("@")[0] for name in measure(Case(case.result, case.source))}
    assert bare == {
        "warp-error-estimated",
        "flicker",
        "flicker-peak",
        "colour-drift",
        "psnr-source",
        "ssim-source",
    }


def test_a_metric_by_name_that_lacks_something_says_what(case: Case) -> None:
    with pytest.raises(InputError, match="warp-error needs flow, seen"):
        measure(dataclasses.replace(case, flow=None, seen=None), ("warp-error",))


def test_an_unknown_metric_suggests_the_near_one() -> None:
    with pytest.raises(InputError) as caught:
        find_metric("fidelity_inside")
    assert "fidelity-inside" in caught.value.hint


def test_metrics_labelled_so_rank_doing_nothing_first_or_level(case: Case, scenes: "Scenes") -> None:
    """And those that are not labelled put the true edit above doing nothing."""
    nothing = dataclasses.replace(case, result=case.source)
    spoiled = dataclasses.replace(case, result=scenes.flickering(case.result))
    for metric in metrics().values():
        if not metric.fits(case):
            continue
        sign = 1 if metric.better == "higher" else -1
        idle, true, worse = (sign * metric.measure(x) for x in (nothing, case, spoiled))
        if metric.rewards_doing_nothing:
            assert idle >= worse, metric.name
            assert idle >= true - 0.1, metric.name  # colour drift and flicker of a true edit differ a little
        else:
            assert true > idle, metric.name
            assert true > worse, metric.name


def test_every_metric_says_what_it_punishes() -> None:
    for name, metric in metrics().items():
        assert metric.name == name
        assert metric.punishes
        assert set(metric.needs) <= {field.name for field in dataclasses.fields(Case)}


def test_a_case_whose_result_has_another_size_is_refused(case: Case) -> None:
    with pytest.raises(InputError, match="the clips differ"):
        measure(dataclasses.replace(case, result=np.ascontiguousarray(case.result[..., :-2])), ("psnr",))
