"""Every metric by name: what it asks for, which way is better, what it punishes, and if doing nothing wins.

A package adds its own with an entry point in the group `retouch.metrics` that names a `Metric`.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeVar, final

import numpy as np
from jaxtyping import Bool, Float

from retouch.errors import InputError, PluginError
from retouch.fields import near
from retouch.metrics.alignment import (
    ImageTextEncoder,
    clip_direction,
    clip_text,
    frame_accuracy,
    frame_similarity,
)
from retouch.metrics.colour import colour_drift
from retouch.metrics.consistency import estimated_motion, flicker_peak, flicker_ratio, true_motion, warp_error
from retouch.metrics.fidelity import (
    Frames,
    Mask,
    Other,
    fidelity_inside,
    fidelity_outside,
    psnr,
    ssim,
    untouched_share,
)
from retouch.registry import load, plugins
from retouch.tracking.flow import DisFlow

GROUP = "retouch.metrics"

T = TypeVar("T")


@final
@dataclass(frozen=True, eq=False)
class Case:
    """One edit with all that is known of it; metrics that need what is None are not measured.

    `mask` is where the true edit differs from the source, `touched` where the method says that it may
    have changed something. `flow` and `seen` are the source's true motion (`retouch.metrics.consistency`
    says how they point).
    """

    result: Other
    source: Frames
    truth: Frames | None = None
    mask: Mask | None = None
    touched: Mask | None = None
    flow: Float[np.ndarray, "pairs 2 h w"] | None = None
    seen: Bool[np.ndarray, "pairs 1 h w"] | None = None
    prompt: str | None = None
    source_prompt: str | None = None
    encoder: ImageTextEncoder | None = None
    network: str = "clip"
    crop: str = "centre"


@final
@dataclass(frozen=True)
class Metric:
    """A figure, and how to read it.

    `needs` names the fields of `Case` that must be known. `backbone` is what the key names: the
    network, or how the pixels were taken.
    """

    name: str
    measure: Callable[[Case], float]
    better: Literal["higher", "lower"]
    punishes: str
    needs: tuple[str, ...] = ()
    backbone: str = "rgb8"
    unit: str = ""
    rewards_doing_nothing: bool = False

    def fits(self, case: Case) -> bool:
        """Return whether the case knows all that is needed."""
        return all(getattr(case, need) is not None for need in self.needs)

    def key(self, case: Case) -> str:
        """Name the figure with what moves it: `psnr@rgb8/64x64/8f`, `clip-t@vit-b32/224c/8f`."""
        frames, _, height, width = case.result.shape
        if "encoder" in self.needs:
            return f"{self.name}@{case.network}/{case.crop}/{frames}f"
        return f"{self.name}@{self.backbone}/{width}x{height}/{frames}f"


def metrics() -> Mapping[str, Metric]:
    """Return all metrics by name, ours and those of installed packages.

    One that cannot be loaded, or takes a name that is taken, is left out.
    """
    return loaded()


def find_metric(name: str) -> Metric:
    """Return the metric of that name.

    Raises:
        InputError: there is none; the hint names the nearest.
        PluginError: it is a plug-in that cannot be loaded.
    """
    if name not in metrics():
        if name in plugins(GROUP):
            load(plugins(GROUP)[name], Metric)
        raise InputError(
            f"there is no metric {name!r}",
            hint=near(name, metrics()) or f"metrics: {', '.join(metrics())}",
        )
    return metrics()[name]


def measure(case: Case, names: tuple[str, ...] = ()) -> dict[str, float]:
    """Measure a case: the metrics named, or all those whose needs are known. The keys are full ones.

    Raises:
        InputError: a named metric needs what the case does not know.
    """
    chosen = [find_metric(name) for name in names] or [
        metric for metric in metrics().values() if metric.fits(case)
    ]
    for metric in chosen:
        if not metric.fits(case):
            missing = ", ".join(need for need in metric.needs if getattr(case, need) is None)
            raise InputError(f"{metric.name} needs {missing}", hint="leave it out, or give what it needs")
    return {metric.key(case): metric.measure(case) for metric in chosen}


@cache
def loaded() -> dict[str, Metric]:
    """Return ours and those of plug-ins, found once a process."""
    found = {metric.name: metric for metric in BUILT_IN}
    for entry in plugins(GROUP).values():
        # A broken one breaks nothing else: `find_metric` and `retouch doctor` say why.
        with suppress(PluginError):
            metric = load(entry, Metric)
            found.setdefault(metric.name, metric)
    return found


def _must_know(value: T | None) -> T:
    assert value is not None, "measured without asking `fits`"
    return value


def _true_warp_error(case: Case) -> float:
    return warp_error(case.result, true_motion(_must_know(case.flow), _must_know(case.seen)))


def _clip_direction(case: Case) -> float:
    return clip_direction(
        case.result,
        case.source,
        _must_know(case.prompt),
        _must_know(case.source_prompt),
        _must_know(case.encoder),
    )


def _frame_accuracy(case: Case) -> float:
    return frame_accuracy(
        case.result, _must_know(case.prompt), _must_know(case.source_prompt), _must_know(case.encoder)
    )


BUILT_IN: tuple[Metric, ...] = (
    Metric(
        "fidelity-inside",
        lambda c: fidelity_inside(c.result, _must_know(c.truth), _must_know(c.mask)),
        "higher",
        "an edit that is missing, weak or wrong",
        ("truth", "mask"),
        unit="dB",
    ),
    Metric(
        "fidelity-outside",
        lambda c: fidelity_outside(c.result, _must_know(c.truth), _must_know(c.mask)),
        "higher",
        "changes where nothing should change",
        ("truth", "mask"),
        unit="dB",
        rewards_doing_nothing=True,
    ),
    Metric(
        "warp-error",
        _true_warp_error,
        "lower",
        "an edit that does not move with the scene",
        ("flow", "seen"),
        "true-flow",
        rewards_doing_nothing=True,
    ),
    Metric(
        "warp-error-estimated",
        lambda c: warp_error(c.result, estimated_motion(c.source)),
        "lower",
        "an edit that does not move with the scene, as far as the motion can be guessed",
        backbone=DisFlow().identity,
        rewards_doing_nothing=True,
    ),
    Metric(
        "untouched-share",
        lambda c: untouched_share(c.result, c.source, _must_know(c.touched)),
        "higher",
        "any change, by one level, where the method says that it changes nothing",
        ("touched",),
        rewards_doing_nothing=True,
    ),
    Metric(
        "flicker",
        lambda c: flicker_ratio(c.result, c.source),
        "lower",
        "frames that change more than the source's do",
        unit="x",
        rewards_doing_nothing=True,
    ),
    Metric(
        "flicker-peak",
        lambda c: flicker_peak(c.result, c.source),
        "lower",
        "small spots that flash",
        unit="x",
        rewards_doing_nothing=True,
    ),
    Metric(
        "colour-drift",
        lambda c: float(colour_drift(c.result, c.source).max()),
        "lower",
        "a colour that wanders from one window of 8 frames to the next",
        backbone="de2000-8f",
        unit="dE2000",
        rewards_doing_nothing=True,
    ),
    Metric(
        "psnr",
        lambda c: psnr(c.result, _must_know(c.truth)),
        "higher",
        "any distance from the true edit, in proportion to its area",
        ("truth",),
        unit="dB",
    ),
    Metric(
        "ssim",
        lambda c: ssim(c.result, _must_know(c.truth)),
        "higher",
        "lost or false structure",
        ("truth",),
        "rgb8-gauss11",
    ),
    Metric(
        "psnr-source",
        lambda c: psnr(c.result, c.source),
        "higher",
        "the edit itself: only for a null edit, which should return the source",
        unit="dB",
        rewards_doing_nothing=True,
    ),
    Metric(
        "ssim-source",
        lambda c: ssim(c.result, c.source),
        "higher",
        "the edit itself, where it changes structure; a recolouring is hardly seen",
        backbone="rgb8-gauss11",
        rewards_doing_nothing=True,
    ),
    Metric(
        "clip-t",
        lambda c: clip_text(c.result, _must_know(c.prompt), _must_know(c.encoder)),
        "higher",
        "pictures that do not show the words",
        ("prompt", "encoder"),
    ),
    Metric(
        "clip-direction",
        _clip_direction,
        "higher",
        "a change that is not the one the words ask for",
        ("prompt", "source_prompt", "encoder"),
    ),
    Metric(
        "frame-accuracy",
        _frame_accuracy,
        "higher",
        "frames nearer to the old words",
        ("prompt", "source_prompt", "encoder"),
    ),
    Metric(
        "clip-f",
        lambda c: frame_similarity(c.result, _must_know(c.encoder)),
        "higher",
        "neighbouring frames that look unlike",
        ("encoder",),
        rewards_doing_nothing=True,
    ),
)
