"""Colour as people see it: CIELAB, the CIEDE2000 difference, and how a clip's mean colour drifts."""

from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, UInt8

from retouch.errors import InputError
from retouch.metrics.fidelity import Frames, Other, frames_of

Lab: TypeAlias = Float[np.ndarray, "n 3"]

_TO_XYZ = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])  # D65, 2 degrees
_25_TO_7 = 25.0**7


def colour_drift(
    result: Frames, source: Other | None = None, *, window: int = 8
) -> Float[np.ndarray, " windows"]:
    """Measure, window by window, how far the mean colour has drifted from the first window's, in dE2000.

    With `source`, the change of the source's own mean colour is taken off first (in CIELAB), so that a
    clip that pans from sand to sea does not count as drift. The first value is 0; the worst one is what a
    viewer notices.
    """
    if source is not None and len(source) != len(result):
        raise InputError(
            f"the clips have {len(result)} and {len(source)} frames", hint="compare equal lengths"
        )
    means = _window_means(result, window)
    if source is not None:
        own = _window_means(source, window)
        means = means - (own - own[:1])
    return delta_e(means, np.broadcast_to(means[:1], means.shape))


def delta_e(lab: Lab, other: Lab) -> Float[np.ndarray, " n"]:
    """Compute CIEDE2000 with unit weights, in the steps of Sharma, Wu and Dalal (2005)."""
    l1, a1, b1 = np.moveaxis(np.asarray(lab, dtype=np.float64), -1, 0)
    l2, a2, b2 = np.moveaxis(np.asarray(other, dtype=np.float64), -1, 0)
    chroma_mean = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    stretch = 1.5 - 0.5 * np.sqrt(chroma_mean**7 / (chroma_mean**7 + _25_TO_7))
    c1, h1 = _polar_angle(a1 * stretch, b1)
    c2, h2 = _polar_angle(a2 * stretch, b2)

    turn = np.where(c1 * c2 == 0, 0.0, (h2 - h1 + 180) % 360 - 180)
    turn = np.where((turn == -180) & (h2 > h1), 180.0, turn)  # the remainder folds +180 to -180
    d_hue = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn) / 2)
    lightness, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    hue = _mean_hue(h1, h2, grey=c1 * c2 == 0)

    t = (
        1
        - 0.17 * np.cos(np.radians(hue - 30))
        + 0.24 * np.cos(np.radians(2 * hue))
        + 0.32 * np.cos(np.radians(3 * hue + 6))
        - 0.20 * np.cos(np.radians(4 * hue - 63))
    )
    s_l = 1 + 0.015 * (lightness - 50) ** 2 / np.sqrt(20 + (lightness - 50) ** 2)
    s_c, s_h = 1 + 0.045 * chroma, 1 + 0.015 * chroma * t
    rotation = np.sin(np.radians(60 * np.exp(-(((hue - 275) / 25) ** 2))))
    r_t = -2 * np.sqrt(chroma**7 / (chroma**7 + _25_TO_7)) * rotation
    dl, dc, dh = (l2 - l1) / s_l, (c2 - c1) / s_c, d_hue / s_h
    return np.asarray(np.sqrt(dl**2 + dc**2 + dh**2 + r_t * dc * dh))


def lab_of(rgb: UInt8[np.ndarray, "n 3"]) -> Lab:
    """Turn 8-bit sRGB into CIELAB under D65, 2 degrees."""
    light = _LINEAR[rgb]
    ratio = light @ _TO_XYZ.T / _WHITE
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _window_means(clip: Frames, window: int) -> Float[np.ndarray, "windows 3"]:
    per_frame = np.stack([lab_of(frame.reshape(3, -1).T).mean(axis=0) for frame in frames_of(clip)])
    starts = range(0, len(clip), window)
    return np.stack([per_frame[start : start + window].mean(axis=0) for start in starts])


def _polar_angle(
    a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    return np.hypot(a, b), np.degrees(np.arctan2(b, a)) % 360


def _mean_hue(
    h1: Float[np.ndarray, " n"], h2: Float[np.ndarray, " n"], *, grey: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Return the hue half-way on the shorter arc; a grey has no hue and takes the other's."""
    total = h1 + h2
    far = np.abs(h1 - h2) > 180
    around = np.where(total < 360, (total + 360) / 2, (total - 360) / 2)
    return np.asarray(np.where(grey, total, np.where(far, around, total / 2)))


def _linear_light() -> Float[np.ndarray, " values"]:
    s = np.arange(256) / 255
    return np.where(s > 0.04045, ((s + 0.055) / 1.055) ** 2.4, s / 12.92)


_LINEAR = _linear_light()
