"""How many pictures a layer needs, and which frames they look like.

One picture cannot hold an object that turns: what its reference frame shows goes out of sight. Points on the
object are followed along the flow from candidate frames; how much of the object they still cover in another
frame says how well one picture would serve both. References are taken greedily until every frame is covered.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor

from retouch.tracking.flow import ClipFlow

ENOUGH: Final = 0.75
"""Share of an object that a picture must show in each of its frames, or another picture is wanted."""
BENT: Final = 3.5
"""How much a picture loses by the object's changing shape: a bend of a hundredth of the object's size costs
this many hundredths of coverage."""
LOST: Final = 1.5
"""Pixels that a followed point may miss its way back by before it counts as lost."""
CELL: Final = 6
"""Side, in working pixels, of the cells that count as covered when a point is in them."""
LEAST_GAIN: Final = 0.01
"""Mean coverage that another picture must add to be worth it."""
CANDIDATES: Final = 24
ZOOM: Final = 3.0
"""How much larger or smaller a background may appear than in its picture."""


@final
@dataclass(frozen=True, eq=False)
class ChartSpan:
    """One chart to be: its reference frame, its run of frames, and how much each of them takes from it."""

    reference: int
    start: int
    blend: Float[Tensor, " f"]

    @property
    def stop(self) -> int:
        """The frame after the last one."""
        return self.start + len(self.blend)


def reference_candidates(frames: int) -> list[int]:
    """Return the frames that are tried as references, evenly over the clip and with its middle."""
    step = max(1, -(-frames // CANDIDATES))
    return sorted({*range(step // 2, frames, step), frames // 2})


def followed_share(
    masks: UInt8[np.ndarray, "f h w"], flow: ClipFlow, choose_references: Sequence[int]
) -> Float32[np.ndarray, "references f"]:
    """Return the share of the object in every frame that can be followed there from each reference.

    `masks` may lie in a file: frames are read one at a time.
    """
    frames, height, width = masks.shape
    cells = (-(-width // CELL), -(-height // CELL))
    filled = [
        cv2.resize((m > 127).astype(np.float32), cells, interpolation=cv2.INTER_AREA) > 0.4 for m in masks
    ]
    shown = np.zeros((len(choose_references), frames), np.float32)
    for index, reference in enumerate(choose_references):
        y, x = np.nonzero(masks[reference] > 127)
        if not len(x):
            continue  # it shows nothing of the object
        kept = (x % (CELL // 2) == 0) & (y % (CELL // 2) == 0)
        start = np.stack([x, y], 1)[kept].astype(np.float32)
        shown[index, reference] = 1
        for turn in (1, -1):
            points, t = np.concatenate([start, start], 1), reference
            while 0 <= t + turn < frames and len(points):
                there, back = flow.between(t, t + turn), flow.between(t + turn, t)
                t += turn
                points = _follow_points(points, there, back, None if flow.is_hidden(t) else masks[t])
                hit = np.zeros(cells[::-1], bool)
                hit[tuple((points[:, 1::-1] / CELL).astype(int).T)] = True
                share = (hit & filled[t]).sum() / max(1, filled[t].sum())
                shown[index, t] = share * (1 - min(1.0, BENT * _affine_misfit(points)))
    return shown


def _follow_points(
    points: Float32[np.ndarray, "n 4"],
    there: Float32[np.ndarray, "2 h w"],
    back: Float32[np.ndarray, "2 h w"],
    mask: UInt8[np.ndarray, "h w"] | None,
) -> Float32[np.ndarray, "m 4"]:
    """Return points (where they are now, where they began) one frame on, without those that get lost.

    Without a mask none is lost for being out of sight.
    """
    height, width = there.shape[1:]
    now, began = points[:, :2], points[:, 2:]
    x, y = now.round().astype(int).T
    step = there[:, y, x].T
    inside = ((now + step >= 0) & (now + step <= (width - 1, height - 1))).all(1)
    now, began, step = (now + step)[inside], began[inside], step[inside]
    x, y = now.round().astype(int).T
    kept = np.hypot(*(step + back[:, y, x].T).T) < LOST
    now, began = now[kept], began[kept]
    if mask is not None:
        x, y = now.round().astype(int).T
        on = mask[y, x] > 127
        now, began = now[on], began[on]
    return np.concatenate([now, began], 1)


def _affine_misfit(points: Float32[np.ndarray, "n 4"]) -> float:
    """Return how far points lie from any affine image of where they began, in parts of the object's size."""
    if len(points) < 8:
        return 1.0
    now, began = points[:, :2].astype(np.float64), points[:, 2:].astype(np.float64)
    now -= now.mean(0)
    began -= began.mean(0)
    matrix = np.linalg.lstsq(began.T @ began + 1e-6 * np.eye(2), began.T @ now, rcond=None)[0]
    return float(
        np.sqrt(np.square(now - began @ matrix).sum(1).mean() / (np.square(now).sum(1).mean() + 1e-6))
    )


def choose_references(shown: Float32[np.ndarray, "candidates f"], most: int) -> list[int]:
    """Return the rows to take, in order: each time the one that covers most of what is not covered enough."""
    wanted = np.minimum(shown, ENOUGH)
    have = np.zeros(shown.shape[1], np.float32)
    taken: list[int] = []
    while len(taken) < most and (not taken or have.min() < ENOUGH - 1e-3):
        gains = np.maximum(wanted - have, 0).sum(1)
        best = int(gains.argmax())
        if taken and gains[best] < LEAST_GAIN * len(have):
            break  # the rest is covered by nothing: blur, occlusion, a bad mask
        taken.append(best)
        have = np.maximum(have, wanted[best])
    return sorted(taken)


def spans_between(
    shown: Float32[np.ndarray, "candidates f"], frames_of: Sequence[int], taken: Sequence[int]
) -> list[ChartSpan]:
    """Give each reference its run of frames; neighbours share some, in which one fades into the other."""
    frames = shown.shape[1]
    own = [frames_of[k] for k in taken]
    cuts, fades = [], []
    for k, nxt, a, b in zip(taken, taken[1:], own, own[1:], strict=False):
        between = np.arange(a + 1, b + 1)
        # Where the next picture begins to show more; the middle decides between equals.
        lead = np.cumsum((shown[k] - shown[nxt])[between] - 1e-3 * (between - (a + b) / 2))
        cuts.append(int(between[int(lead.argmax())]))
        fades.append(max(1, (b - a) // 5))
    made = []
    for i, reference in enumerate(own):
        start = max(0, cuts[i - 1] - fades[i - 1]) if i else 0
        stop = min(frames, cuts[i] + fades[i] + 1) if i < len(cuts) else frames
        t = np.arange(start, stop)
        blend = np.ones(len(t))
        if i:
            blend *= _fade_in(t, cuts[i - 1], fades[i - 1])
        if i < len(cuts):
            blend *= 1 - _fade_in(t, cuts[i], fades[i])
        made.append(
            ChartSpan(reference, min(start, reference), _holding_reference(blend, start, stop, reference))
        )
    total = torch.zeros(frames)
    for span in made:
        total[span.start : span.stop] += span.blend
    return [ChartSpan(s.reference, s.start, s.blend / total[s.start : s.stop].clamp(min=1e-6)) for s in made]


def _fade_in(t: np.ndarray, cut: int, width: int) -> Float[np.ndarray, " f"]:
    x = np.clip((t - cut + width + 0.5) / (2 * width + 1), 0, 1)
    smooth: np.ndarray = x * x * (3 - 2 * x)
    return smooth


def _holding_reference(blend: np.ndarray, start: int, stop: int, reference: int) -> Float[Tensor, " f"]:
    """Return the run made to hold its reference, which may lie outside when fades are long."""
    before, after = max(0, start - reference), max(0, reference + 1 - stop)
    return torch.from_numpy(np.pad(blend, (before, after))).float()


def zoom_coverage(
    matrices: Float[Tensor, "references f 3 3"], height: int, width: int
) -> Float32[np.ndarray, "references f"]:
    """Return the share of each frame that a flat background's picture shows at a fair size."""
    y, x = torch.meshgrid(
        torch.linspace(0, height - 1, 8).double(), torch.linspace(0, width - 1, 8).double(), indexing="ij"
    )
    points = torch.stack([x, y, torch.ones_like(x)]).flatten(1)
    lifted = matrices @ points
    deep = lifted[..., 2, :]
    size = (torch.linalg.det(matrices)[..., None] / deep.clamp(min=1e-6) ** 3).abs().sqrt()
    fits: Bool[Tensor, "references f n"] = (deep > 0) & (size < ZOOM) & (size > 1 / ZOOM)
    return fits.float().mean(-1).numpy()
