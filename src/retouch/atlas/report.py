"""What an atlas is good for: how well it explains the clip, how well paint will stick, and where it will not.

`propagate_frame` is the honest figure for real clips, which have no truth: one frame is painted over a whole
layer, and the other frames it gives are held against the clip.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final, final

import numpy as np
import torch

from retouch.atlas.atlas import Atlas, reconstruction_decibels
from retouch.atlas.edit import propagate_frame, render_edit
from retouch.atlas.mapping import stretch_ratio, texel_area
from retouch.atlas.pyramid import frame_blocks
from retouch.video import Video, decibels

POOR: Final = 22.0
"""dB below which a frame is not explained well enough for an edit to sit still on it."""
STRETCHED: Final = 1.5
FEWEST: Final = 100
"""Pixels that a frame must show of a layer to have a stretch of its own."""
LOOKED_AT: Final = 12
"""Frames, evenly over the clip, that one frame is propagated to."""


@final
@dataclass(frozen=True)
class LayerReport:
    """One layer's figures."""

    name: str
    pictures: int
    explained: float | None
    """Mean error of its pixels over the clip, in dB."""
    worst_frame: int
    worst: float | None
    poor: tuple[int, ...]
    """Frames explained worse than `POOR`."""
    propagated: float | None
    """How well one frame's pixels, carried through the atlas, give the others, in dB."""
    propagated_frame: int
    """That frame."""
    reached: float
    """Share of the layer's pixels, over the clip, that this one frame reaches."""
    stretch: float
    """95th percentile of how many times longer than wide a painted disc becomes."""
    stretched_frame: int
    stretched: float
    """The frame where the same figure is largest, and how large it is there."""
    folds: float
    """Share of visible pixels where the mapping folds."""
    seen: float
    """Share of the textures' texels that any frame shows."""


@final
@dataclass(frozen=True)
class AtlasReport:
    """An atlas's figures, and what they mean; frames are numbered as in the clip's file."""

    explained: float | None
    layers: tuple[LayerReport, ...]
    sentences: tuple[str, ...]

    def plain(self) -> dict[str, object]:
        """Return everything as plain values."""
        return asdict(self)

    def words(self) -> str:
        """Return everything as a person reads it."""
        lines = [f"explained  {_in_words(self.explained)}"]
        for one in self.layers:
            worst = f"; worst frame {one.worst_frame} with {one.worst:.1f}" if one.worst is not None else ""
            reached = f"{_in_words(one.propagated)}, reaching {100 * one.reached:.0f} % of its pixels"
            nothing = f"frame {one.propagated_frame}, the one it was tried from, reaches no other"
            lines += [
                f"{one.name}: {one.pictures} picture{'s' * (one.pictures > 1)}",
                f"  explained   {_in_words(one.explained)}{worst}",
                f"  propagated  {nothing if one.propagated is None else reached}",
                f"  stretch     {one.stretch:.2f}; worst {one.stretched:.2f} in frame {one.stretched_frame}",
                f"  folds       {100 * one.folds:.2f} %",
                f"  seen        {100 * one.seen:.0f} % of its texels",
            ]
        return "\n".join([*lines, *self.sentences])


@torch.no_grad()
def examine_atlas(atlas: Atlas, video: Video) -> AtlasReport:
    """Measure an atlas against its clip."""
    off = reconstruction_decibels(atlas, video)
    layers = tuple(_layer_figures(atlas, video, i, off[name]) for i, name in enumerate(atlas.names))
    return AtlasReport(_mean_decibels(off["all"]), layers, tuple(_report_sentences(layers, video)))


def _in_words(value: float | None) -> str:
    return "unknown, for no frame shows it" if value is None else f"{value:.1f} dB"


def _mean_decibels(figures: Sequence[float]) -> float | None:
    """Return the dB of the mean error; None where nothing is known."""
    known = [10 ** (-d / 10) for d in figures if np.isfinite(d)]
    return decibels(float(np.mean(known)), peak=1) if known else None


def _layer_figures(atlas: Atlas, video: Video, layer: int, off: Sequence[float]) -> LayerReport:
    charts = [chart for chart in atlas.charts if chart.layer == layer]
    known = [t for t in range(atlas.frames) if np.isfinite(off[t])]
    worst = min(known, key=lambda t: off[t]) if known else 0
    own = sorted(chart.reference for chart in charts)
    middle = own[len(own) // 2]
    found, reach = propagation_quality(atlas, video, layer, middle)
    first = video.origin.first
    stretch, stretched_frame, folds = _stretch_figures(atlas, layer)
    seen = sum(float((c.seen > 0.05).float().sum()) for c in charts) / sum(c.seen.numel() for c in charts)
    return LayerReport(
        name=atlas.names[layer],
        pictures=len(charts),
        explained=_mean_decibels(off),
        worst_frame=worst + first,
        worst=off[worst] if known else None,
        poor=tuple(t + first for t in known if off[t] < POOR),
        propagated=found,
        propagated_frame=middle + first,
        reached=reach,
        stretch=stretch,
        stretched_frame=stretched_frame[0] + first,
        stretched=stretched_frame[1],
        folds=folds,
        seen=seen,
    )


def propagation_quality(atlas: Atlas, video: Video, layer: int, frame: int) -> tuple[float | None, float]:
    """Return how well one frame of a layer gives the others, in dB, and the share of pixels reached."""
    patches = propagate_frame(atlas, video, frame, layer)
    wanted = {int(t) for t in np.linspace(0, atlas.frames - 1, LOOKED_AT).round()} - {frame}
    squares, count, whole = 0.0, 0, 0
    for start, frames, touched in render_edit(atlas, video, patches):
        for t in sorted(wanted & set(range(start, start + len(frames)))):
            share = atlas.shares(t, t + 1)[layer][0, 0].cpu().numpy() > 0.95
            sure = touched[t - start, 0] & share
            difference = frames[t - start].astype(np.float64) - video.frames[t]
            squares += float(np.square(difference[:, sure]).sum()) / 255**2
            count, whole = count + 3 * int(sure.sum()), whole + 3 * int(share.sum())
    return (decibels(squares / count, peak=1) if count else None), count / max(whole, 1)


def _stretch_figures(atlas: Atlas, layer: int) -> tuple[float, tuple[int, float], float]:
    """Return the stretch of visible pixels (95th percentile), overall and of the worst frame; the folds."""
    stretches, worst, folded, count = [], (0, 1.0), 0, 0
    for chart in atlas.charts:
        if chart.layer != layer:
            continue
        for a, b in frame_blocks(chart.start, chart.stop):
            part = chart.part(a, b)
            window = part.window()
            jacobian = part.jacobian(window)
            visible = window.cut(atlas.shares(a, b)[layer])[:, 0] > 0.05
            stretch = stretch_ratio(jacobian)
            values = stretch[visible]
            stretches.append(values[:: max(1, len(values) // 2000)].cpu())
            for t, (one, seen) in enumerate(zip(stretch, visible, strict=True), a):
                own = one[seen]
                if len(own) >= FEWEST and chart.covers(t):
                    found = float(own[:: max(1, len(own) // 2000)].quantile(0.95))
                    worst = max(worst, (t, found), key=lambda pair: pair[1])
            folded += int((texel_area(jacobian)[visible] <= 0).sum())
            count += int(visible.sum())
    together = torch.cat(stretches)
    return (float(together.quantile(0.95)) if len(together) else 1.0), worst, folded / max(count, 1)


def _report_sentences(layers: Sequence[LayerReport], video: Video) -> list[str]:
    """What to expect, in plain words."""
    said = []
    for one in layers:
        if one.poor:
            poor = video.named_frames([t - video.origin.first for t in one.poor])
            said.append(
                f"Paint on the {one.name} may slide or flicker in {poor}, worst around frame "
                f"{one.worst_frame}: mark the object there again, or paint a frame near it."
            )
        if one.pictures > 1:
            said.append(
                f"The {one.name} turns or changes: it takes {one.pictures} pictures, and paint is handed "
                "from one to the next; what goes out of sight between is lost, so paint on both sides of it."
            )
        elif one.reached < 0.7:
            share = f"{100 * one.reached:.0f} %"
            said.append(f"One frame shows only {share} of the {one.name}: paint several, or the texture.")
        if one.stretched > STRETCHED:
            said.append(
                f"Parts of the {one.name} are stretched {one.stretched:.1f} times around frame "
                f"{one.stretched_frame}: paint there leans and fine detail blurs."
            )
        if one.folds > 0:
            said.append(f"The {one.name} folds in places: paint shows twice there.")
    return said or ["Nothing stands in the way: paint should stay where it is put in every frame."]
