"""What becomes of paint, frame by frame: where it is seen, how well it sits, and where it leans.

`report` looks at whole layers; this looks at the pixels that one edit covers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from retouch.atlas.atlas import Atlas, Chart
from retouch.atlas.edit import PaintedFrame, Period, TexturePatch, patches_from_frames
from retouch.atlas.mapping import PixelWindow, stretch_ratio
from retouch.atlas.pyramid import frame_blocks
from retouch.atlas.report import POOR, STRETCHED
from retouch.atlas.transported_paint import TransportedPaint
from retouch.video import Video, decibels

LEAST_SEEN: Final = 0.01
"""Share of the most pixels that the paint covers in any frame; with less it counts as out of sight."""
SLIPS: Final = 2.0
"""Pixels that paint may lie off before it counts as sliding; more in pictures larger than 512 pixels."""
COLOURS: Final = {"sits": "#3b76c4", "may slide": "#d9541e", "leans": "#e0a800", "hidden": "#7a3b8f"}
"""What a frame's paint does, and how it is drawn."""
UNSEEN: Final = "#dcdcdc"
STRIP_WIDTH, EDGE = 720, 12
"""Pixels of the strip that shows each frame, and beside it."""
HIDDEN: Final = 0.5
"""Share of the pixels over its place that must show the paint, or it counts as hidden."""


@final
@dataclass(frozen=True, eq=False)
class PaintReport:
    """What a painted area is worth in each frame that may show it."""

    video: Video
    frames: tuple[int, ...]
    covered: tuple[float, ...]
    """Pixels over the painted place, whatever is in front of it."""
    seen: tuple[float, ...]
    """Pixels that show the paint."""
    explained: tuple[float, ...]
    """How well the atlas explains those of them that go through it, in dB; nan where there are none."""
    stretch: tuple[float, ...]
    """How many times longer than wide a disc painted in the nearest painted frame becomes."""
    slips: Mapping[int, float] = field(default_factory=dict)
    """How many pixels off it lies in some of the frames, as the painted frame's own pixels say."""

    def out_of_sight(self) -> list[int]:
        """Return the frames in which the painted place is not in the picture, or turned away."""
        least = max(1.0, LEAST_SEEN * max(self.covered, default=0.0))
        return [t for t, pixels in zip(self.frames, self.covered, strict=True) if pixels < least]

    def hidden(self) -> list[int]:
        """Return the frames in which most of the painted place is covered by something else."""
        pairs = zip(self.frames, self.seen, self.covered, strict=True)
        gone = self.out_of_sight()
        return [t for t, seen, covered in pairs if seen < HIDDEN * covered and t not in gone]

    def sliding(self) -> list[int]:
        """Return the frames that the atlas explains poorly, or in which paint lies off by too much."""
        pairs = zip(self.frames, self.explained, self.off(), strict=True)
        return [t for t, explained, off in pairs if explained < POOR or off > self._most()]

    def _most(self) -> float:
        return SLIPS * max(1.0, max(self.video.height, self.video.width) / 512)

    def off(self) -> tuple[float, ...]:
        """Return how many pixels off the paint lies in each frame, by those in which it was looked."""
        known = sorted(self.slips)
        if not known:
            return (0.0,) * len(self.frames)
        return tuple(np.interp(self.frames, known, [self.slips[t] for t in known]).tolist())

    def leaning(self) -> list[int]:
        """Return the frames in which the paint is drawn out of shape."""
        gone = self.out_of_sight()
        pairs = zip(self.frames, self.stretch, strict=True)
        return [t for t, found in pairs if found > STRETCHED and t not in gone]

    def warnings(self) -> list[str]:
        """Return where the paint will not do what was painted, a sentence each."""
        named, said = self.video.named_frames, []
        if sliding := self.sliding():
            off = dict(zip(self.frames, self.off(), strict=True))
            explained = dict(zip(self.frames, self.explained, strict=True))
            worst = max(sliding, key=lambda t: (off[t], -explained[t]))
            by = f"{off[worst]:.1f} pixels" if off[worst] > self._most() else f"{explained[worst]:.1f} dB"
            said.append(
                f"the paint may slide or flicker in {named(sliding)}, worst in {named([worst])} "
                f"({by}): mark the object there again, or paint a frame near it"
            )
        if leaning := self.leaning():
            worst = max(leaning, key=lambda t: self.stretch[self.frames.index(t)])
            found = self.stretch[self.frames.index(worst)]
            said.append(
                f"the paint leans in {named(leaning)}, drawn out {found:.1f} times in {named([worst])}: "
                "paint a frame near it as well"
            )
        if hidden := self.hidden():
            said.append(f"most of the paint is hidden in {named(hidden)}: something is in front of its place")
        if gone := self.out_of_sight():
            said.append(
                f"the paint is out of sight in {named(gone)}: its place is not in the picture, or turned away"
            )
        return said

    def words(self) -> str:
        """Return all of it as a person reads it."""
        shown = [t for t in self.frames if t not in self.out_of_sight()]
        lines = [f"seen       in {len(shown)} of {len(self.frames)} frames"]
        explained = {t: e for t, e in zip(self.frames, self.explained, strict=True) if np.isfinite(e)}
        if explained:
            worst = min(explained, key=lambda t: explained[t])
            lines.append(
                f"explained  {np.median(list(explained.values())):.1f} dB in the middle of its frames; "
                f"worst {explained[worst]:.1f} in {self.video.named_frames([worst])}"
            )
            most = max(explained, key=lambda t: self.stretch[self.frames.index(t)])
            stretch = self.stretch[self.frames.index(most)]
            lines.append(f"stretch    at most {stretch:.2f}, in {self.video.named_frames([most])}")
        good = ["nothing stands in the way: the paint should stay where it was put in every frame"]
        return "\n".join([*lines, *(self.warnings() or good)])

    def picture(self) -> UInt8[np.ndarray, "h w 3"]:
        """Draw how much of the paint each frame shows, and in which it will not do what was painted."""
        frame = max(2, STRIP_WIDTH // len(self.frames))
        image = Image.new("RGB", (max(frame * len(self.frames), STRIP_WIDTH) + 2 * EDGE, 150), "white")
        pen, font = ImageDraw.Draw(image), ImageFont.load_default(11)
        kinds = {"hidden": self.hidden(), "may slide": self.sliding(), "leans": self.leaning()}
        most = max(1.0, *self.covered)
        for number, t in enumerate(self.frames):
            left = EDGE + number * frame
            for pixels, colour in (
                (self.covered[number], UNSEEN),
                (
                    self.seen[number],
                    next((COLOURS[k] for k, found in kinds.items() if t in found), COLOURS["sits"]),
                ),
            ):
                pen.rectangle((left, 100 - 90 * min(1.0, pixels / most), left + frame - 2, 100), colour)
        for number in range(0, len(self.frames), max(1, -(-40 // frame))):
            name = str(self.frames[number] + self.video.origin.first)
            pen.text((EDGE + number * frame, 104), name, "black", font)
        left = EDGE
        for name, colour in {**COLOURS, "covered": UNSEEN}.items():
            pen.rectangle((left, 130, left + 10, 140), colour)
            pen.text((left + 15, 128), name, "black", font)
            left += 90
        return np.array(image)


@torch.no_grad()
def examine_paint(
    atlas: Atlas,
    video: Video,
    patches: Sequence[TexturePatch],
    painted: Sequence[int],
    period: Period,
    straight: TransportedPaint | None = None,
    slips: Mapping[int, float] | None = None,
) -> PaintReport:
    """Measure what an edit covers, in every frame of a period.

    Args:
        atlas: The decomposed clip.
        video: The clip.
        patches: The edit.
        painted: Frames that were painted by hand; shapes are held against the nearest.
        period: The frames that show the edit.
        straight: The paint that does not go through the textures, so that these cannot let it slide.
        slips: How many pixels off the rest lies in some frames, where that is known.
    """
    layers = straight.layers if straight else set[int]()
    through = [patch for patch in patches if atlas.charts[patch.chart].layer not in layers]
    slopes: dict[tuple[int, int], Float[Tensor, "2 2"]] = {}
    covered, seen, explained = [], [], []
    for a, b in frame_blocks(period.start, period.stop):
        cover, shown = _areas(atlas, through, a, b, slopes)
        if layers:
            cover, _ = _areas(atlas, patches, a, b)
        source = torch.tensor(video.frames[a:b]).to(atlas.device).float() / 255
        off = (atlas.reconstruct(a, b) - source).square().mean(1, keepdim=True)
        covered += cover.sum((1, 2, 3)).tolist()
        pixels = shown.sum((1, 2, 3))
        direct = straight.at(atlas, a, b)[:, 3].sum((1, 2)) if straight else torch.zeros_like(pixels)
        seen += (pixels + direct).tolist()
        mean = (off * shown).sum((1, 2, 3)) / pixels.clamp(min=1e-6)
        explained += [
            decibels(float(e), peak=1) if float(n) >= 1 else float("nan")
            for e, n in zip(mean, pixels, strict=True)
        ]
    frames = tuple(range(period.start, period.stop))
    stretch = tuple(_stretch(atlas, slopes, t, painted) for t in frames)
    figures = (tuple(covered), tuple(seen), tuple(explained), stretch)
    return PaintReport(video, frames, *figures, slips or {})


def useless_keys(
    atlas: Atlas, keys: Sequence[PaintedFrame], layers: Sequence[int] | None, period: Period
) -> Iterator[tuple[int, bool]]:
    """Yield painted frames whose paint reaches no other frame, and whether they show it themselves."""
    for key in keys:
        if not key.cover.any():
            continue
        patches = patches_from_frames(atlas, [key], layers)
        others = sorted(set(range(period.start, period.stop)) - {key.frame}, key=lambda t: abs(t - key.frame))
        if others and not any(float(_areas(atlas, patches, t, t + 1)[1].sum()) >= 1 for t in others):
            yield key.frame, bool(patches)


def _areas(
    atlas: Atlas,
    patches: Sequence[TexturePatch],
    a: int,
    b: int,
    slopes: dict[tuple[int, int], Float[Tensor, "2 2"]] | None = None,
) -> tuple[Float[Tensor, "f 1 h w"], Float[Tensor, "f 1 h w"]]:
    """Return how much of each pixel lies over the edit's place, and how much of it shows the edit.

    `slopes` takes the mean slope of texture positions over the place, by chart and frame.
    """
    own = atlas.shares(a, b)
    cover, shown = torch.zeros_like(own[0]), torch.zeros_like(own[0])
    for patch in patches:
        chart = atlas.charts[patch.chart]
        s, e = max(a, chart.start), min(b, chart.stop)
        if s >= e:
            continue
        window = chart.part(s, e).window()
        frames = slice(s - a, e - a)
        place = patch.at(chart.part(s, e).uv(window))[:, 3:]
        blend = chart.blend[s - chart.start : e - chart.start, None, None, None]
        share = window.cut(own[chart.layer][frames])
        cover[frames] += window.paste(blend * place, atlas.height, atlas.width)
        shown[frames] += window.paste(blend * place * share, atlas.height, atlas.width)
        if slopes is not None:
            slopes.update(_slopes(chart, patch.chart, window, place, s, e))
    return cover, shown


def _slopes(
    chart: Chart, index: int, window: PixelWindow, place: Float[Tensor, "f 1 h w"], s: int, e: int
) -> dict[tuple[int, int], Float[Tensor, "2 2"]]:
    weight = place[:, :, None]
    slopes = (chart.part(s, e).jacobian(window) * weight).sum((3, 4)) / weight.sum((3, 4)).clamp(min=1e-6)
    return {(index, t): slope for t, slope in enumerate(slopes, s) if chart.covers(t)}


def _stretch(
    atlas: Atlas, slopes: dict[tuple[int, int], Float[Tensor, "2 2"]], t: int, painted: Sequence[int]
) -> float:
    """Return how far a disc of the nearest painted frame, or else of the texture, is drawn out in a frame."""
    charts = [index for index, frame in slopes if frame == t]
    if not charts:
        return 1.0
    index = max(charts, key=lambda i: float(atlas.charts[i].blend[t - atlas.charts[i].start]))
    here = slopes[index, t]
    if float(torch.linalg.det(here).abs()) < 1e-9:
        return 1.0
    near = min((k for k in painted if (index, k) in slopes), key=lambda k: abs(k - t), default=None)
    there = torch.eye(2).to(here) if near is None else slopes[index, near]
    return float(stretch_ratio(torch.linalg.solve(here, there)[None, :, :, None, None]))
