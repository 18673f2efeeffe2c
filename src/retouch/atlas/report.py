"""What an atlas is good for: how well it explains the clip, how well paint will stick, and where it will not.

`propagate_frame` is the honest figure for real clips, which have no truth: one frame is painted over a whole
layer, and the other frames it gives are held against the clip.
"""

from collections.abc import Iterator, Sequence
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
NOTHING_IN_THE_WAY: Final = "Nothing stands in the way: paint should stay where it is put in every frame."
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

    def lines(self) -> list[str]:
        """Return the figures as a person reads them."""
        worst = f"; worst frame {self.worst_frame} with {self.worst:.1f}" if self.worst is not None else ""
        reached = f"{_in_words(self.propagated)}, reaching {100 * self.reached:.0f} % of its pixels"
        nothing = f"frame {self.propagated_frame}, the one it was tried from, reaches no other"
        return [
            f"{self.name}: {self.pictures} picture{'s' * (self.pictures > 1)}",
            f"  explained   {_in_words(self.explained)}{worst}",
            f"  propagated  {nothing if self.propagated is None else reached}",
            f"  stretch     {self.stretch:.2f}; worst {self.stretched:.2f} in frame {self.stretched_frame}",
            f"  folds       {100 * self.folds:.2f} %",
            f"  seen        {100 * self.seen:.0f} % of its texels",
        ]

    def warnings(self, video: Video) -> Iterator[str]:
        """Yield what to expect of paint on the layer, in plain words."""
        if self.poor:
            poor = video.named_frames([t - video.origin.first for t in self.poor])
            yield (
                f"Paint on the {self.name} may slide or flicker in {poor}, worst around frame "
                f"{self.worst_frame}: mark the object there again, or paint a frame near it."
            )
        if self.pictures > 1:
            yield (
                f"The {self.name} turns or changes: it takes {self.pictures} pictures, and paint is handed "
                "from one to the next; what goes out of sight between is lost, so paint on both sides of it."
            )
        elif self.reached < 0.7:
            share = f"{100 * self.reached:.0f} %"
            yield f"One frame shows only {share} of the {self.name}: paint several, or the texture."
        if self.stretched > STRETCHED:
            yield (
                f"Parts of the {self.name} are stretched {self.stretched:.1f} times around frame "
                f"{self.stretched_frame}: paint there leans and fine detail blurs."
            )
        if self.folds > 0:
            yield f"The {self.name} folds in places: paint shows twice there."


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
            lines += one.lines()
        return "\n".join([*lines, *self.sentences])


@torch.no_grad()
def examine_atlas(atlas: Atlas, video: Video) -> AtlasReport:
    """Measure an atlas against its clip."""
    off = reconstruction_decibels(atlas, video)
    layers = tuple(_layer_figures(atlas, video, i, off[name]) for i, name in enumerate(atlas.names))
    said = [sentence for layer in layers for sentence in layer.warnings(video)]
    return AtlasReport(_mean_decibels(off["all"]), layers, tuple(said or [NOTHING_IN_THE_WAY]))


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
