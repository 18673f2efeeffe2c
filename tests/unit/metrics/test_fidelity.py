from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from retouch.errors import InputError
from retouch.metrics.fidelity import (
    changed_pixels,
    fidelity_inside,
    fidelity_outside,
    psnr,
    ssim,
    untouched_share,
)
from retouch.video import CEILING_DB

if TYPE_CHECKING:
    from tests.unit.metrics.conftest import Scenes


Measure: TypeAlias = Callable[[np.ndarray, np.ndarray], float]
ROUNDING = 1e-9  # both sides compute in float64
BLUR_SUMS = 1e-6  # two libraries sum a Gaussian window in another order


def noisy(frames: np.ndarray, sigma: float = 9.0) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, sigma, frames.shape)
    return np.clip(frames + noise, 0, 255).astype(np.uint8)


def test_psnr_equals_scikit_image_over_the_whole_clip(scenes: "Scenes") -> None:
    clip = scenes.moving_square().frames
    other = noisy(clip)
    assert psnr(clip, other) == pytest.approx(peak_signal_noise_ratio(clip, other), abs=ROUNDING)


def test_psnr_under_a_mask_sees_nothing_else(scenes: "Scenes") -> None:
    scene = scenes.moving_square()
    other = noisy(scene.frames)
    everywhere = np.broadcast_to(scene.mask, scene.frames.shape)
    expected = peak_signal_noise_ratio(scene.frames[everywhere], other[everywhere])
    spoiled = np.where(scene.mask, other, 255 - other)
    assert psnr(scene.frames, spoiled, scene.mask) == pytest.approx(expected, abs=ROUNDING)


def test_psnr_of_equal_clips_is_the_ceiling_and_of_one_wrong_level_is_finite(scenes: "Scenes") -> None:
    clip = scenes.moving_square().frames
    assert psnr(clip, clip) == CEILING_DB
    other = clip.copy()
    other[0, 0, 0, 0] ^= 1
    assert psnr(clip, other) == pytest.approx(10 * np.log10(255**2 * clip.size), abs=ROUNDING)


def test_psnr_is_pooled_so_that_one_exact_frame_does_not_lift_it(scenes: "Scenes") -> None:
    clip = scenes.moving_square().frames
    half = noisy(clip)
    half[:3] = clip[:3]
    assert psnr(clip, half) == pytest.approx(
        10 * np.log10(255**2 / np.mean((clip.astype(float) - half) ** 2)), abs=ROUNDING
    )


def test_ssim_equals_scikit_image_frame_by_frame(scenes: "Scenes") -> None:
    clip = scenes.moving_square().frames
    other = noisy(clip)
    theirs = [
        structural_similarity(
            a,
            b,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
        )
        for a, b in zip(clip, other, strict=True)
    ]
    assert ssim(clip, other) == pytest.approx(np.mean(theirs), abs=BLUR_SUMS)


def test_ssim_under_a_mask_averages_the_windows_centred_in_it(scenes: "Scenes") -> None:
    scene = scenes.moving_square()
    other = noisy(scene.frames)
    wanted = []
    for a, b, m in zip(scene.frames, other, scene.mask, strict=True):
        _, full = structural_similarity(
            a, b, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
            data_range=255, full=True,
        )  # fmt: skip
        inner = np.zeros_like(m[0])
        inner[5:-5, 5:-5] = m[0, 5:-5, 5:-5]
        wanted.append(full[:, inner].ravel())
    assert ssim(scene.frames, other, scene.mask) == pytest.approx(
        np.concatenate(wanted).mean(), abs=BLUR_SUMS
    )


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_blur_lowers_fidelity_and_more_blur_lowers_it_more(scenes: "Scenes", measure: Measure) -> None:
    clip = scenes.moving_square().frames
    figures = [measure(clip, other) for other in (clip, scenes.blurred(clip, 0.6), scenes.blurred(clip, 2.0))]
    assert figures[0] > figures[1] > figures[2]


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_a_shift_of_one_pixel_lowers_fidelity(scenes: "Scenes", measure: Measure) -> None:
    clip = scenes.moving_square().frames
    assert measure(clip, np.roll(clip, 1, axis=3)) < measure(clip, clip)


def test_edit_fidelity_tells_a_missing_edit_from_vandalism(scenes: "Scenes") -> None:
    source, truth = scenes.moving_square((40, -30, 0)).frames, scenes.moving_square((-60, 20, 60)).frames
    mask = changed_pixels(source, truth)
    assert fidelity_inside(truth, truth, mask) == fidelity_outside(truth, truth, mask) == CEILING_DB
    assert fidelity_inside(source, truth, mask) < 20  # nothing done: the edit is missing ...
    assert fidelity_outside(source, truth, mask) == CEILING_DB  # ... and the rest is perfect, as always
    vandal = np.where(mask, truth, 255 - truth)
    assert fidelity_inside(vandal, truth, mask) == CEILING_DB
    assert fidelity_outside(vandal, truth, mask) < 20


def test_changed_is_where_any_channel_differs_by_any_level(scenes: "Scenes") -> None:
    scene = scenes.moving_square()
    truth = scene.frames.copy()
    truth[2, 1, 5, 7] ^= 1
    mask = changed_pixels(scene.frames, truth)
    assert np.argwhere(mask).tolist() == [[2, 0, 5, 7]]


def test_untouched_share_counts_a_pixel_that_is_off_by_one_level(scenes: "Scenes") -> None:
    scene = scenes.moving_square()
    result = np.where(scene.mask, 0, scene.frames).astype(np.uint8)
    assert untouched_share(result, scene.frames, scene.mask) == 1
    y, x = np.argwhere(~scene.mask[3, 0])[0]
    result[3, 2, y, x] ^= 1
    outside = int((~scene.mask).sum())
    assert untouched_share(result, scene.frames, scene.mask) == pytest.approx(1 - 1 / outside, abs=ROUNDING)


def test_a_mask_without_pixels_is_an_error_and_no_number(scenes: "Scenes") -> None:
    scene = scenes.moving_square()
    with pytest.raises(InputError, match="no pixel"):
        fidelity_outside(scene.frames, scene.frames, np.ones_like(scene.mask))


def test_clips_of_different_length_are_refused(scenes: "Scenes") -> None:
    clip = scenes.moving_square().frames
    with pytest.raises(InputError, match="6 frames and 48x48 with 5 frames"):
        psnr(clip, clip[:5])


def test_a_mapped_clip_gives_the_same_figures(scenes: "Scenes", tmp_path: Path) -> None:
    clip = scenes.moving_square().frames
    mapped = np.memmap(tmp_path / "clip.bin", dtype=np.uint8, mode="w+", shape=clip.shape)
    mapped[:] = clip
    other = noisy(clip)
    assert psnr(mapped, other) == psnr(clip, other)
    assert ssim(mapped, other) == ssim(clip, other)
