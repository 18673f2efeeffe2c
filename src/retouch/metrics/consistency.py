"""How still an edit holds from frame to frame: warp error along the motion of the source, and flicker.

Both reward doing nothing and blur: a clip that was not edited, or smeared, scores best. Print them beside
a figure that asks for the edit (`fidelity_inside`, CLIP direction), never alone.

**Flow** is `float (2, h, w)` in pixels, x (to the right) before y (down): what lies at `(x, y)` in frame
t lies at `(x + flow[0], y + flow[1])` in frame t + 1. **Seen** is `bool (1, h, w)`, true where that point
of frame t is still in view in frame t + 1: neither covered nor out of the picture.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias, final

import numpy as np
from jaxtyping import Bool, Float, UInt8

from retouch.errors import InputError
from retouch.metrics.fidelity import Frames, Other, frame_pairs
from retouch.tracking.flow import DisFlow, consistent_flow, warp_picture
from retouch.tracking.flow import Flow as FlowFinder
from retouch.video import FRAMES_AT_ONCE, release_pages

Flow: TypeAlias = Float[np.ndarray, "2 h w"]
Seen: TypeAlias = Bool[np.ndarray, "1 h w"]


@final
@dataclass(frozen=True, eq=False)
class FrameMotion:
    """Where each pixel of a frame goes in the next one, and whether it can still be seen there."""

    flow: Flow
    seen: Seen

    def difference(
        self, frame: UInt8[np.ndarray, "3 h w"], after: UInt8[np.ndarray, "3 h w"]
    ) -> Float[np.ndarray, "n 3"]:
        """Return how far a frame is from the next one brought back, at the pixels that stay in view."""
        back = warp_picture(_rows_first(after).astype(np.float32), self.flow.astype(np.float32))
        return np.asarray(np.abs(back - _rows_first(frame))[self.seen[0] & self._stays_inside()])

    def _stays_inside(self) -> Bool[np.ndarray, "h w"]:
        h, w = self.flow.shape[-2:]
        x, y = self.flow[0] + np.arange(w), self.flow[1] + np.arange(h)[:, None]
        return np.asarray((x >= 0) & (x <= w - 1) & (y >= 0) & (y <= h - 1))


def warp_error(clip: Frames, motion: Iterable[FrameMotion]) -> float:
    """Measure how far each frame is from the next one brought back along `motion`: mean |.| from 0 to 1.

    The motion is the source's: what it shows moving must move alike in the edit. Only pixels that stay in
    view count, pooled over the clip; bilinear sampling.

    Raises:
        InputError: the motion has not one step per pair of frames, or nothing stays in view.
    """
    total, count, steps = 0.0, 0, 0
    for t, step in enumerate(motion):
        if t + 1 >= len(clip):
            raise InputError(
                f"there is motion for more than the {len(clip)} frames", hint="pass one step per pair"
            )
        difference = step.difference(clip[t], clip[t + 1])
        total, count, steps = total + float(difference.sum(dtype=np.float64)), count + difference.size, t + 1
        if steps % FRAMES_AT_ONCE == 0:
            release_pages(clip)
    if steps != len(clip) - 1:
        raise InputError(f"{len(clip)} frames need {len(clip) - 1} steps of motion, not {steps}")
    if not count:
        raise InputError("no pixel stays in view from frame to frame", hint="give at least two frames")
    return total / count / 255


def flicker_ratio(result: Frames, source: Other) -> float:
    """Measure how much more `result` changes from frame to frame than `source`: ratio of mean changes.

    1 is as lively as the source, 2.8 flickers. A source that stands still gives 1 where the result does
    too, else infinity.
    """
    return _change_ratio(_mean_change(_frame_changes(result)), _mean_change(_frame_changes(source)))


def flicker_peak(result: Frames, source: Other) -> float:
    """Measure as `flicker_ratio` does, by the 99th percentile of changes: it finds small spots that flash."""
    return _change_ratio(
        _percentile_level(_frame_changes(result), 0.99), _percentile_level(_frame_changes(source), 0.99)
    )


def true_motion(
    flow: Float[np.ndarray, "pairs 2 h w"], seen: Bool[np.ndarray, "pairs 1 h w"]
) -> Iterator[FrameMotion]:
    """Yield known motion pair by pair; the arrays may be memory-mapped."""
    for t in range(len(flow)):
        yield FrameMotion(np.asarray(flow[t]), np.asarray(seen[t]))


def estimated_motion(source: Frames, flow: FlowFinder | None = None) -> Iterator[FrameMotion]:
    """Estimate the motion of a clip, pair by pair; `flow` is dense inverse search unless given.

    In view is what comes back to within a pixel when it follows the flow there and back.
    """
    finder = flow or DisFlow()
    for t in range(len(source) - 1):
        a, b = _rows_first(source[t]), _rows_first(source[t + 1])
        there, back = finder.pair(a, b), finder.pair(b, a)
        yield FrameMotion(there, consistent_flow(there, back)[None])


def _frame_changes(clip: Frames) -> Iterator[UInt8[np.ndarray, "3 h w"]]:
    for _, before, after in frame_pairs(clip[:-1], clip[1:]):
        yield np.abs(after.astype(np.int16) - before).astype(np.uint8)


def _mean_change(changes: Iterable[UInt8[np.ndarray, "3 h w"]]) -> float:
    means = [float(change.mean()) for change in changes]
    return sum(means) / len(means) if means else 0.0


def _percentile_level(changes: Iterable[UInt8[np.ndarray, "3 h w"]], share: float) -> float:
    """Find the lowest of the 256 levels that `share` of all changes do not exceed: exact, in flat memory."""
    counts = np.zeros(256, dtype=np.int64)
    for change in changes:
        counts += np.bincount(change.ravel(), minlength=256)
    return float(np.searchsorted(counts.cumsum(), share * counts.sum()))


def _change_ratio(result: float, source: float) -> float:
    if source > 0:
        return result / source
    return 1.0 if result == 0 else math.inf


def _rows_first(frame: UInt8[np.ndarray, "3 h w"]) -> UInt8[np.ndarray, "h w 3"]:
    return np.ascontiguousarray(frame.transpose(1, 2, 0))
