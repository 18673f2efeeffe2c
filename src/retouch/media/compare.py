"""Clips side by side, difference sheets and contact sheets: what people look at to compare.

Everything is drawn one frame at a time, with a font that comes with Pillow, so that it works offline and for
clips of any length.
"""

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TypeAlias, final

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from retouch.errors import InputError
from retouch.events import Listener, ignore
from retouch.media.writing import Writer
from retouch.video import FRAMES_AT_ONCE, Video, release_pages

Picture: TypeAlias = UInt8[np.ndarray, "_ _ 3"]
Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

GROUND, TEXT, FAINT = (22, 23, 26), (236, 236, 238), (150, 152, 158)
GAP, LINE, FONT_SIZE = 8, 30, 17
SMALLEST = 192
"""Clips lower than this are drawn larger, so that labels fit."""
WIDEST = 3840
"""Side by side, clips are drawn smaller where they would be wider than this together."""
LARGEST = 320
"""On a sheet, pictures higher than this are drawn smaller."""


@final
@dataclass(frozen=True)
class SheetLayout:
    """Where each clip lies in a side-by-side picture: row by row, a label above each."""

    height: int
    """Of every cell, without its label."""
    widths: tuple[int, ...]
    """Of each column."""
    rows: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the whole, both even, as encoders want them."""
        height = self.rows * (self.height + LINE + GAP) + GAP
        width = sum(self.widths) + GAP * (len(self.widths) + 1)
        return height + height % 2, width + width % 2

    def corner(self, index: int) -> tuple[int, int]:
        """Row and column of a cell's upper left corner, below its label."""
        row, column = divmod(index, len(self.widths))
        top = GAP + LINE + row * (self.height + LINE + GAP)
        return top, GAP * (column + 1) + sum(self.widths[:column])


def lay_out_clips(clips: Sequence[Video]) -> SheetLayout:
    """Lays clips out at the height of the tallest, up to four in a row, squarely beyond."""
    height = max(clip.height for clip in clips)
    height *= max(1, math.ceil(SMALLEST / height))
    columns = len(clips) if len(clips) <= 4 else math.ceil(math.sqrt(len(clips)))
    together = columns * max(_width_at(clip, height) for clip in clips)
    height = min(height, math.floor(height * WIDEST / together))
    widths = [max(_width_at(clip, height) for clip in clips[x::columns]) for x in range(columns)]
    return SheetLayout(height, tuple(widths), math.ceil(len(clips) / columns))


def common_length(lengths: Sequence[int], *, shortest: bool = False) -> int:
    """Return the number of frames that clips of these lengths share.

    Raises:
        InputError: they differ, and nobody asked for the shortest.
    """
    if len(set(lengths)) > 1 and not shortest:
        raise InputError(
            f"the clips have {', '.join(map(str, lengths))} frames",
            hint="add --shortest to compare the frames that all of them have",
        )
    return min(lengths)


def write_side_by_side(
    clips: Sequence[Video],
    labels: Sequence[str],
    path: Path,
    *,
    force: bool = False,
    listen: Listener = ignore,
) -> Path:
    """Writes labelled clips side by side as one video, frame by frame: a long clip needs no more memory.

    The first clip gives rate, timestamps and sound; see `side_by_side` for the pictures.
    """
    first = clips[0]
    flat = Video(first.frames, first.fps, None, replace(first.origin, sample_aspect=Fraction(1)))
    with Writer(path, like=flat, force=force, listen=listen) as out:
        for picture in side_by_side(clips, labels):
            out.add(np.ascontiguousarray(picture.transpose(2, 0, 1))[None])
    return path


def side_by_side(clips: Sequence[Video], labels: Sequence[str]) -> Iterator[Picture]:
    """Draws labelled clips side by side, one picture after the other, as many as the shortest has.

    Clips are scaled to one height by their shape as displayed (sample aspect applied); frames are paired by
    number.
    """
    _one_label_each(clips, labels)
    plan = lay_out_clips(clips)
    canvas = _add_label(plan, labels)
    for t in range(min(len(clip) for clip in clips)):
        for index, clip in enumerate(clips):
            top, left = plan.corner(index)
            width = _width_at(clip, plan.height)
            tile = canvas[top : top + plan.height, left : left + width]
            tile[:] = _resize_picture(_turn_upright(clip, t), plan.height, width)
        yield canvas.copy()
        if t % FRAMES_AT_ONCE == FRAMES_AT_ONCE - 1:
            for clip in clips:
                release_pages(clip.frames)


def difference_sheet(
    clips: Sequence[Video], labels: Sequence[str], *, frames: int = 5, gain: float = 4.0
) -> Picture:
    """Draws evenly spaced frames down and clips across, each followed by its difference from the first clip.

    The difference is absolute, per channel, times `gain`, and the heading says so; a clip of another size
    is first scaled to the first clip's.
    """
    _one_label_each(clips, labels)
    first, others = clips[0], list(zip(clips[1:], labels[1:], strict=True))
    length = min(len(clip) for clip in clips)
    chosen = evenly_spaced(length, frames)
    columns = [labels[0]]
    for clip, label in others:
        scaled = "" if (clip.height, clip.width) == (first.height, first.width) else ", scaled"
        columns += [f"{label}{scaled}", f"difference x{gain:g}"]
    rows = []
    for t in chosen:
        here = _turn_upright(first, t)
        row = [here]
        for clip, _ in others:
            there = _resize_picture(_turn_upright(clip, t), here.shape[0], here.shape[1])
            row += [there, amplified_difference(here, there, gain)]
        rows.append(row)
    return draw_sheet(rows, columns, [f"frame {t}" for t in chosen])


def draw_sheet(
    rows: Sequence[Sequence[Picture | None]],
    columns: Sequence[str],
    titles: Sequence[str],
    *,
    height: int | None = None,
) -> Picture:
    """Draws a table of pictures with a heading a column and a title a row; None leaves a cell empty.

    All are drawn at one height: the tallest one's, within `SMALLEST` and `LARGEST`, unless given.
    """
    there = [picture for row in rows for picture in row if picture is not None]
    if not there:
        raise InputError("there is no picture to draw", hint="give at least one frame")
    tallest = max(picture.shape[0] for picture in there)
    height = height or min(LARGEST, tallest * max(1, math.ceil(SMALLEST / tallest)))
    width = max(round(picture.shape[1] * height / picture.shape[0]) for picture in there)
    titles = [_drawable_text(title) for title in titles]
    margin = max((_text_length(title) for title in titles), default=0) + 2 * GAP
    canvas = np.full(
        (LINE + len(rows) * (height + GAP) + GAP, margin + len(columns) * (width + GAP), 3),
        GROUND,
        dtype=np.uint8,
    )
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            if picture is None:
                continue
            drawn = _resize_picture(picture, height, round(picture.shape[1] * height / picture.shape[0]))
            top, left = LINE + y * (height + GAP), margin + x * (width + GAP)
            canvas[top : top + height, left : left + drawn.shape[1]] = drawn
    lines = [(margin + x * (width + GAP), 4, _clip_text(label, width)) for x, label in enumerate(columns)]
    lines += [(GAP, LINE + y * (height + GAP) + height // 2 - 10, title) for y, title in enumerate(titles)]
    return _draw_text(canvas, lines)


def amplified_difference(one: Picture, other: Picture, gain: float) -> Picture:
    """Gives the absolute difference of two pictures times `gain`, cut at white."""
    difference = np.abs(one.astype(np.int16) - other)
    return np.asarray(np.minimum(difference * gain, 255), dtype=np.uint8)


def evenly_spaced(length: int, count: int) -> list[int]:
    """Picks at most `count` frames from the first to the last, evenly spaced, each once."""
    if count <= 1 or length == 1:
        return [0]
    count = min(count, length)
    return [round(i * (length - 1) / (count - 1)) for i in range(count)]


def _one_label_each(clips: Sequence[Video], labels: Sequence[str]) -> None:
    if not clips or len(clips) != len(labels):
        raise InputError(
            f"{len(labels)} labels for {len(clips)} clips", hint="give one label a clip, with commas"
        )


def _add_label(plan: SheetLayout, labels: Sequence[str]) -> Picture:
    canvas = np.full((*plan.size, 3), GROUND, dtype=np.uint8)
    lines = []
    for index, label in enumerate(labels):
        top, left = plan.corner(index)
        lines.append((left, top - LINE + 4, _clip_text(label, plan.widths[index % len(plan.widths)])))
    return _draw_text(canvas, lines)


def _width_at(clip: Video, height: int) -> int:
    return max(1, round(clip.width * clip.origin.sample_aspect * Fraction(height, clip.height)))


def _turn_upright(clip: Video, t: int) -> Picture:
    return np.ascontiguousarray(clip.frames[t].transpose(1, 2, 0))


def _resize_picture(picture: Picture, height: int, width: int) -> Picture:
    """A picture in another size: averaged when it shrinks, exact when it grows by a whole factor."""
    h, w = picture.shape[:2]
    if (h, w) == (height, width):
        return picture
    if height % h == 0 and width % w == 0 and height // h == width // w:
        return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_NEAREST))
    how = cv2.INTER_AREA if height < h else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, (width, height), interpolation=how))


def _draw_text(canvas: Picture, lines: Sequence[tuple[int, int, str]]) -> Picture:
    image = Image.fromarray(canvas)
    pen = ImageDraw.Draw(image)
    for x, y, text in lines:
        pen.text((x, y), text, fill=TEXT, font=_label_font())
    return np.array(image)


def _clip_text(text: str, width: int) -> str:
    """As much of a text as fits, with dots where some is left out."""
    text = _drawable_text(text)
    if _text_length(text) <= width:
        return text
    while text and _text_length(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _drawable_text(text: str) -> str:
    """A text in the letters that the built-in font has: without accents, `?` for what is still unknown."""
    plain = unicodedata.normalize("NFKD", text)
    bare = "".join(letter for letter in plain if not unicodedata.combining(letter))
    return bare.encode("ascii", "replace").decode("ascii")


def _text_length(text: str) -> int:
    return math.ceil(_label_font().getlength(text))


def _label_font() -> Font:
    return ImageFont.load_default(FONT_SIZE)
