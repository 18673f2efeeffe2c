"""Object masks from a few marks on a few frames.

Marks are boxes, strokes, polygons or whole drawn masks, on any frames, for any number of objects; the object
named first is in front. The default needs no weights: each marked frame is cut by GrabCut (Rother et al.,
2004), the mask follows the optical flow to the neighbours and is cut again there, and every frame goes with
its nearest marked one that has not lost the object on the way.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, TypeAlias, final, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8

from retouch.errors import EmptyMask, ParamsError
from retouch.events import Advanced, Ended, Listener, Started, ignore
from retouch.tracking.flow import ClipFlow, DisFlow, Flow, consistent_flow, warp_picture
from retouch.video import Video, release_pages

MarkKind = Literal["box", "stroke", "polygon", "mask", "not"]
Found: TypeAlias = tuple[int, UInt8[np.ndarray, "h w"], list[str]]
"""A frame, the soft mask of an object in it, and what is doubtful about that."""
Shelf: TypeAlias = Callable[[str, tuple[int, ...], type[np.generic]], np.ndarray]
"""Gives an array of zeros of a name, shape and type: `Run.scratch` in a file, `in_memory` without a run."""
DEFAULT_OBJECT: Final = "object"
WORKING_SIDE: Final = 240
"""Long side, in pixels, that cutting works at: edges are refined later from the full picture."""

JUMP: Final = 0.20
"""Share by which an object's area may change between neighbours before a warning."""
ALIKE: Final = 0.30
"""Share of an object's colours that are its own in the neighbouring frame too, or it is not seen there."""
AGAIN: Final = 0.7
"""The same of an object that was lost, or it is not found again."""
REST: Final = 0.5
"""Share of a marked object's area that was last seen of it, or it is not looked for again."""
SEEN: Final = 128
"""What the most certain pixel of a mask has, of 255, or the object is lost."""
UNSURE: Final = 0.60
"""Share of an object's flow that must come back on itself, or there is a warning."""


@final
@dataclass(frozen=True, eq=False)
class ObjectMark:
    """One thing that a user said about one object on one frame.

    `points` are x, y in pixels of the clip: two corners of a box, the corners of a polygon, the path of a
    stroke. `not` is a stroke over what does not belong to the object. `drawn` is a mask of the clip's size,
    for kind `mask`.
    """

    kind: MarkKind
    frame: int
    points: tuple[tuple[float, float], ...] = ()
    name: str = DEFAULT_OBJECT
    radius: float = 0.0
    """Half the width of a stroke in pixels of the clip; 0 is a hundredth of its long side."""
    drawn: UInt8[np.ndarray, "h w"] | None = None

    @property
    def identity(self) -> str:
        """What the mark says, for the keys of kept results."""
        from retouch.identity import identity

        return identity((self.kind, self.frame, self.points, self.name, self.radius, self.drawn))


def parse_mark(kind: MarkKind, text: str) -> ObjectMark:
    """Read a mark written as `[NAME@]FRAME:x,y x,y ...`.

    >>> parse_mark("box", "car@40:12,30 200,180").points
    ((12.0, 30.0), (200.0, 180.0))

    Raises:
        ParamsError: the text is no such thing, or has too few points.
    """
    head, colon, tail = text.partition(":")
    name, at, frame = head.rpartition("@")
    numbers = tail.replace(",", " ").replace(";", " ").split()
    least = {"box": 2, "polygon": 3}.get(kind, 1)
    try:
        if not colon or (at and not name):
            raise ValueError("no frame")
        values = [float(number) for number in numbers]
        points = tuple(zip(values[::2], values[1::2], strict=True))
        if len(points) < least or (kind == "box" and len(points) != least) or not np.isfinite(values).all():
            raise ValueError("points")
        return ObjectMark(kind, int(frame), points, name or DEFAULT_OBJECT)
    except ValueError:
        raise ParamsError(
            f"the {kind} {text!r} cannot be read",
            hint=f"write [NAME@]FRAME:x,y x,y ... with at least {least} point{'s' * (least > 1)}",
        ) from None


def in_memory(name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """Give an array of zeros, for clips that are short."""
    del name
    return np.zeros(shape, dtype)


@final
@dataclass(frozen=True, eq=False)
class ObjectMasks:
    """Soft masks of several objects over a clip, the front object first, at the size they were made at."""

    names: tuple[str, ...]
    masks: UInt8[np.ndarray, "objects f h w"]
    height: int
    width: int
    """Size of the clip."""
    warnings: tuple[str, ...] = ()

    def full(self, which: int, start: int, stop: int) -> UInt8[np.ndarray, "f 1 hh ww"]:
        """Give one object's masks of some frames at the size of the clip."""
        size = (self.width, self.height)
        grown = [cv2.resize(m, size, interpolation=cv2.INTER_LINEAR) for m in self.masks[which, start:stop]]
        return np.stack(grown)[:, None]


@runtime_checkable
class ObjectSegmenter(Protocol):
    """Anything that turns marks on some frames into masks on all."""

    @property
    def identity(self) -> str:
        """What decides the result besides clip and marks."""
        ...

    def segment(
        self,
        video: Video,
        marks: Sequence[ObjectMark],
        *,
        listen: Listener = ignore,
        shelf: Shelf = in_memory,
    ) -> ObjectMasks:
        """Find the marked objects in every frame; `shelf` gives the arrays that grow with the clip."""
        ...


@final
@dataclass(frozen=True)
class GrabCutSegmenter:
    """GrabCut on the marked frames, carried along by optical flow: no weights, tens of ms a frame."""

    flow: Flow = field(default_factory=DisFlow)
    side: int = WORKING_SIDE

    @property
    def identity(self) -> str:
        """Name, flow and working size; OpenCV's sampling is seeded before every cut."""
        return f"grabcut-{self.side}-{self.flow.identity}"

    def segment(
        self,
        video: Video,
        marks: Sequence[ObjectMark],
        *,
        listen: Listener = ignore,
        shelf: Shelf = in_memory,
        flow: ClipFlow | None = None,
    ) -> ObjectMasks:
        """Find the marked objects in every frame.

        Args:
            video: The clip.
            marks: What the user said; the object named first is in front.
            listen: Told about progress.
            shelf: Gives the arrays that grow with the clip: in files for a long one.
            flow: The clip's flow at the working size, when another step needs it as well.

        Raises:
            ParamsError: there are no marks, or one lies outside the clip.
            EmptyMask: a marked frame shows nothing of its object.
        """
        check_marks(video, marks)
        height, width = tracking_size(video.height, video.width, self.side)
        pictures = shelf("segmented", (len(video), height, width, 3), np.uint8)
        for t in range(len(video)):
            pictures[t] = shrink_frame(video, t, height, width)
        release_pages(video.frames)
        flow = flow or ClipFlow(
            pictures.__getitem__,
            self.flow,
            shelf("segment-flow", (len(video), 2, 2, height, width), np.float16),
        )
        names = tuple(dict.fromkeys(mark.name for mark in marks))
        masks = shelf("masks", (len(names), len(video), height, width), np.uint8)
        warnings: list[str] = []
        listen(Started("masks", len(names) * len(video)))
        for index, name in enumerate(names):
            own = [mark for mark in marks if mark.name == name]
            doubtful: dict[str, list[int]] = defaultdict(list)
            for done, (t, soft, doubts) in enumerate(self._follow(video, pictures, flow, own)):
                masks[index, t] = soft
                for doubt in doubts:
                    doubtful[doubt].append(t)
                listen(Advanced("masks", index * len(video) + done + 1, masks[:, :, 0, 0].size))
            for doubt, frames in doubtful.items():
                warnings.append(
                    f"{name}: {doubt} in {video.named_frames(frames)}; mark it there if it is wrong"
                )
            warnings += losses(video, name, masks[index])
        listen(Ended("masks"))
        return ObjectMasks(names, masks, video.height, video.width, tuple(warnings))

    def _follow(
        self,
        video: Video,
        pictures: UInt8[np.ndarray, "f h w 3"],
        flow: ClipFlow,
        marks: Sequence[ObjectMark],
    ) -> Iterator[Found]:
        """One object's soft masks, from every marked frame outwards; two that are neighbours meet half way.

        Where one of them loses the object before, the other goes on; frames that neither reaches stay empty.
        """
        cuts = {}
        height, width = pictures.shape[1:3]
        for anchor in sorted({mark.frame for mark in marks}):
            here = [_scale_mark(mark, video, height, width) for mark in marks if mark.frame == anchor]
            cuts[anchor] = _cut_marks(pictures[anchor], here)
            if not cuts[anchor].any():
                raise EmptyMask(
                    f"nothing of {marks[0].name!r} was found on {video.named_frames([anchor])}",
                    hint="draw the box a little larger, or add a stroke over the object",
                )
            yield anchor, _soften_edge(cuts[anchor]), []
        for left, right in itertools.pairwise([-1, *cuts, len(video)]):
            missing = set(range(left + 1, right))
            ways = [
                _carry_mask(pictures, flow, cuts[steps[0]], steps)
                for steps in (range(left, right), range(right, left, -1))
                if steps[0] in cuts
            ]
            lost: list[Iterator[Found | None]] = []
            while ways or lost:
                if not ways:  # what was found again counts least
                    ways, lost = lost, []
                for way in tuple(ways):
                    found = next(way, ())
                    if found and found[0] in missing:
                        missing.remove(found[0])
                        yield found
                        continue
                    ways.remove(way)  # it is at its end, or where the other one was, or has lost the object
                    if found is None:
                        lost.append(way)
            for t in sorted(missing):
                yield t, np.zeros((height, width), np.uint8), []


def _carry_mask(
    pictures: UInt8[np.ndarray, "f h w 3"],
    flow: ClipFlow,
    mask: Bool[np.ndarray, "h w"],
    steps: Sequence[int],
) -> Iterator[Found | None]:
    """Yield the masks of the frames after the first one, whose mask is given; None where the object is lost.

    What has other colours than before is not the object: something has passed before it. It is looked for
    where it was last, unless hardly anything was left of it.
    """
    whole, colours, lost = mask.sum(), _colours_of(pictures[steps[0]], mask), False
    for known, t in itertools.pairwise(steps):
        back, before = flow.between(t, known), mask.astype(np.float32)
        cut = _cut_near(pictures[t], before if lost else warp_picture(before, back))
        now = _colours_of(pictures[t], cut)
        if np.minimum(colours, now).sum() < (AGAIN if lost else ALIKE):
            if mask.sum() < REST * whole:
                return
            if not lost:
                yield None
            lost = True
            continue
        doubts = []
        if abs(cut.sum() / mask.sum() - 1) > JUMP:
            doubts.append(f"its area jumps by more than {JUMP:.0%}")
        if not lost and consistent_flow(flow.between(known, t), back)[mask].mean() < UNSURE:
            doubts.append("most of its flow is unreliable")
        yield t, _soften_edge(cut), doubts
        mask, colours, lost = cut, now, False


def _colours_of(
    picture: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"]
) -> Float32[np.ndarray, "10 10 10"]:
    """Return how often each colour is seen in a mask; neighbours among the colours share what they have."""
    counts = np.pad(cv2.calcHist([picture], [0, 1, 2], mask.astype(np.uint8), [8] * 3, [0, 256] * 3), 1)
    for axis in range(3):
        counts = (np.roll(counts, 1, axis) + 2 * counts + np.roll(counts, -1, axis)) / 4
    return counts / max(1, int(mask.sum()))


def losses(video: Video, name: str, masks: UInt8[np.ndarray, "f h w"]) -> Iterator[str]:
    """Yield a sentence that names the frames in which an object is lost, if there are any."""
    lost = [t for t, mask in enumerate(masks) if mask.max() < SEEN]
    if lost:
        named = video.named_frames(lost)
        yield f"{name} is lost in {named}: mark it again where it is seen, if it is seen there"


def check_marks(video: Video, marks: Sequence[ObjectMark]) -> None:
    """See that there are marks and that they fit the clip.

    Raises:
        ParamsError: there are none, one lies on no frame of the clip, or a drawn mask has another size.
    """
    if not marks:
        raise ParamsError("no object is marked", hint="give a box, a stroke, a polygon or a drawn mask")
    for mark in marks:
        if not 0 <= mark.frame < len(video):
            raise ParamsError(
                f"a {mark.kind} is on frame {mark.frame}; the clip has frames 0 to {len(video) - 1}",
                hint="count frames from 0",
            )
        if mark.kind == "mask" and (mark.drawn is None or mark.drawn.shape != (video.height, video.width)):
            shape = None if mark.drawn is None else mark.drawn.shape
            raise ParamsError(
                f"the drawn mask of frame {mark.frame} is {shape}; the clip is {(video.height, video.width)}",
                hint="draw it over a frame of the clip",
            )


def tracking_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Give the size of frames whose long side is at most `side`."""
    scale = min(1.0, side / max(height, width))
    return max(8, round(height * scale)), max(8, round(width * scale))


def shrink_frame(video: Video, t: int, height: int, width: int) -> UInt8[np.ndarray, "hh ww 3"]:
    """Give one frame, colour last, shrunk by area."""
    picture = np.ascontiguousarray(video.frames[t].transpose(1, 2, 0))
    if picture.shape[:2] == (height, width):
        return picture
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)  # type: ignore[no-any-return]


def _scale_mark(mark: ObjectMark, video: Video, height: int, width: int) -> ObjectMark:
    """The mark in pixels of the working size."""
    sx, sy = width / video.width, height / video.height
    radius = (mark.radius or 0.01 * max(video.height, video.width)) * sx
    drawn = (
        None if mark.drawn is None else cv2.resize(mark.drawn, (width, height), interpolation=cv2.INTER_AREA)
    )
    points = tuple(((x + 0.5) * sx - 0.5, (y + 0.5) * sy - 0.5) for x, y in mark.points)
    return ObjectMark(mark.kind, 0, points, mark.name, max(1.0, radius), drawn)


def _cut_marks(picture: UInt8[np.ndarray, "h w 3"], marks: Sequence[ObjectMark]) -> Bool[np.ndarray, "h w"]:
    """What the marks of one frame say, with GrabCut deciding where they leave it open."""
    labels = np.full(picture.shape[:2], cv2.GC_BGD, np.uint8)
    if all(mark.kind in ("stroke", "not") for mark in marks):
        labels[:] = cv2.GC_PR_BGD  # nothing says how far it reaches
    drawn = [mark for mark in marks if mark.drawn is not None or mark.kind == "polygon"]
    for mark in sorted(marks, key=lambda m: ("box", "polygon", "mask", "stroke", "not").index(m.kind)):
        _draw_mark(labels, mark)
    if drawn and len(drawn) == len(marks):
        return np.equal(labels, cv2.GC_FGD)
    cut = _cut_region(picture, labels, rounds=6)
    return _tidy_mask(cut, labels == cv2.GC_FGD)


def _draw_mark(labels: UInt8[np.ndarray, "h w"], mark: ObjectMark) -> None:
    points = np.round(np.array(mark.points, np.float64)).astype(np.int32)
    if mark.kind == "box":
        low, high = np.sort(points, axis=0).tolist()
        cv2.rectangle(labels, tuple(low), tuple(high), cv2.GC_PR_FGD, cv2.FILLED)
    elif mark.kind == "polygon":
        cv2.fillPoly(labels, [points], cv2.GC_FGD)
    elif mark.kind == "mask":
        assert mark.drawn is not None
        labels[mark.drawn > 127] = cv2.GC_FGD
    else:
        label = cv2.GC_FGD if mark.kind == "stroke" else cv2.GC_BGD
        width = max(1, round(2 * mark.radius))
        for a, b in zip(points, points[1:] if len(points) > 1 else points, strict=False):
            cv2.line(labels, tuple(a.tolist()), tuple(b.tolist()), label, width)


def _cut_near(
    picture: UInt8[np.ndarray, "h w 3"], moved: Float32[np.ndarray, "h w"]
) -> Bool[np.ndarray, "h w"]:
    """The object near where the flow brought it: only a band around the moved edge is open."""
    inside = (moved > 0.5).astype(np.uint8)
    if not inside.any():
        return inside.astype(bool)
    unit = max(picture.shape[:2]) / WORKING_SIDE
    sure = cv2.erode(inside, _disc_kernel(5 * unit), borderValue=1)
    possible = cv2.dilate(inside, _disc_kernel(5 * unit))
    labels = np.where(inside == 1, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[sure == 1], labels[possible == 0] = cv2.GC_FGD, cv2.GC_BGD
    return _tidy_mask(_cut_region(picture, labels, rounds=2), sure == 1)


def _cut_region(
    picture: UInt8[np.ndarray, "h w 3"], labels: UInt8[np.ndarray, "h w"], *, rounds: int
) -> Bool[np.ndarray, "h w"]:
    """GrabCut on the surroundings of what is open or marked; the rest of the frame would only cost time."""
    rows, columns = np.nonzero((labels != cv2.GC_BGD).any(1))[0], np.nonzero((labels != cv2.GC_BGD).any(0))[0]
    if not len(rows):
        return np.zeros(labels.shape, bool)
    edge = max(8, labels.shape[1] // 12)
    part = (
        slice(max(0, rows[0] - edge), rows[-1] + 1 + edge),
        slice(max(0, columns[0] - edge), columns[-1] + 1 + edge),
    )
    inner = labels[part].copy()
    whole = np.zeros(labels.shape, bool)
    is_front = (inner == cv2.GC_FGD) | (inner == cv2.GC_PR_FGD)
    if is_front.all() or not is_front.any() or min(is_front.sum(), (~is_front).sum()) < 10:
        whole[part] = is_front  # too little of one side for a colour model
        return whole
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(np.ascontiguousarray(picture[part]), inner, None, *models, rounds, cv2.GC_INIT_WITH_MASK)
    whole[part] = (inner == cv2.GC_FGD) | (inner == cv2.GC_PR_FGD)
    return whole


def _tidy_mask(cut: Bool[np.ndarray, "h w"], sure: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The largest piece and every piece that was marked, without specks and pinholes."""
    unit = max(cut.shape) / WORKING_SIDE
    closed = cv2.morphologyEx(cut.astype(np.uint8), cv2.MORPH_CLOSE, _disc_kernel(2 * unit), borderValue=0)
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(closed | sure.astype(np.uint8))
    if count <= 1:
        return np.zeros(cut.shape, bool)
    keep = set(np.unique(pieces[sure])) | {1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))}
    kept: np.ndarray = np.isin(pieces, sorted(keep - {0}))
    return kept


def _disc_kernel(radius: float) -> UInt8[np.ndarray, "d d"]:
    side = 2 * max(1, round(radius)) + 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))  # type: ignore[no-any-return]


def _soften_edge(mask: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """The mask with an edge about two pixels wide, which is how a camera sees an edge."""
    return cv2.GaussianBlur(mask.astype(np.uint8) * 255, (0, 0), 0.8)  # type: ignore[no-any-return]
