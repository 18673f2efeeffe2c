"""One face, found in a clip and followed through it: where its eyes and mouth are in every frame.

Without a finder the model's own reader looks for faces: it sees the whole frame at a few sizes, and squares
that seem to show a face are laid anew by the points read in them, until they stay.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, final

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, UInt8
from torch.nn.functional import interpolate, max_pool2d, pad

from retouch.artifacts import artifact
from retouch.errors import NoFace, ParamsError
from retouch.methods.face.align import FaceSquares
from retouch.models.face_model import ANCHORS, FaceModel, SmallFaceReader
from retouch.models.face_parts import FaceFinder, FoundFace, SmallReader
from retouch.run import Run
from retouch.video import Video

SURE: Final = 0.4
"""The least score of a face."""
PROMISING: Final = 0.2
"""How likely the middle of a square must be a face's for the square to be looked at."""
SEARCH_SIDE: Final = 192
"""The longer side of a frame in which faces are looked for."""
SMALLEST: Final = 0.09
"""Half the side of the smallest square looked for, in longer sides of the frame."""
GROWTH: Final = 1.4
PEAK: Final = 11
"""Pixels, odd, of a square of 64, within which one middle is taken."""
MOST_TRIED: Final = 16
"""Squares of a frame that are laid anew, the surest."""
ROUNDS: Final = 4
"""How often a promising square is laid anew; and twice in every frame that follows."""
SAME_PERSON: Final = 0.5
"""The least likeness by which a face that was lost is known again."""
ANCHOR_FRAMES: Final = 32
"""Frames in which the face is looked for first, spread over the clip."""
MOST_FILLED: Final = 8
"""Frames in a row without the face that are filled in from both sides; longer gaps stay as they are."""


@final
@dataclass(frozen=True, eq=False)
class FaceTrack:
    """Where the face's eyes and corners of the mouth are, in pixels, and which frames show it."""

    points: Float64[np.ndarray, "f 4 2"]
    score: Float32[np.ndarray, " f"]
    """0 where the face was not found, and its points are filled in."""

    @property
    def shown(self) -> Bool[np.ndarray, " f"]:
        """Which frames can be edited: those that show the face, and short gaps between them."""
        shown = self.score > 0
        for gap in gaps(shown):
            if len(gap) <= MOST_FILLED and gap.start > 0 and gap.stop < len(shown):
                shown[gap.start : gap.stop] = True
        return shown

    def squares(self, scale: float) -> FaceSquares:
        """Return the squares around the face, steady over time."""
        eyes_and_mouth = self.points.transpose(1, 0, 2)
        left, right, corner, other = eyes_and_mouth
        return FaceSquares.around((left, right), (corner, other), scale).smoothed()


def gaps(shown: Bool[np.ndarray, " f"]) -> list[range]:
    """Return the runs of frames that are not shown."""
    edges = np.flatnonzero(np.diff(np.concatenate([[1], shown.astype(int), [1]])))
    return [range(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


@artifact("face_track", version=1)
def follow_face(
    video: Video, model: FaceModel, finder: FaceFinder | None, face: int | None, *, run: Run
) -> FaceTrack:
    """Find the face that is meant and follow it to both ends of the clip.

    Raises:
        NoFace: no frame shows one.
        ParamsError: there are several and none was chosen, or fewer than was said.
    """
    seeker = finder or ReaderFinder(model)
    start, first = first_face(video, seeker, face)
    who = vector_of(video.frames[start], first, model)
    points = torch.zeros(len(video), 4, 2, dtype=torch.float64)
    score = torch.zeros(len(video))
    points[start], score[start] = torch.from_numpy(first.points), first.score
    way = [*range(start + 1, len(video)), *range(start - 1, -1, -1)]
    state = {"points": points, "score": score}
    for step in run.resumable("follow the face", way, state, every=32):
        at = step.item
        before = at - 1 if at > start else at + 1
        last = FoundFace(points[before].numpy(), float(score[before]))
        found = next_face(video.frames[at], last, who, seeker, model)
        points[at] = torch.from_numpy(found.points) if found else points[before]
        score[at] = found.score if found else 0.0
    return FaceTrack(filled(points.numpy(), score.numpy()), score.numpy())


def first_face(video: Video, finder: FaceFinder, face: int | None) -> tuple[int, FoundFace]:
    """Return the first frame looked at that shows faces, and the one of them that is meant."""
    for at in range(0, len(video), max(1, len(video) // ANCHOR_FRAMES)):
        found = sorted(finder.find(video.frames[at]), key=lambda each: float(each.points[:, 0].mean()))
        if found:
            return at, chosen_face(found, face, video.named_frames([at]))
    raise NoFace(
        f"no face was found in {video.named_frames(range(len(video)))}",
        hint="faces must be upright and not too small; --finder takes a file of YuNet",
    )


def chosen_face(found: Sequence[FoundFace], face: int | None, frame: str) -> FoundFace:
    """Return the face that is meant, of those found from left to right."""
    if face is None and len(found) > 1:
        raise ParamsError(f"{frame} shows {len(found)} faces", hint="choose one: --face 0 is the leftmost")
    if face is not None and face >= len(found):
        raise ParamsError(f"face is {face}; {frame} shows {len(found)}", hint="they are counted from 0")
    return found[face or 0]


def next_face(
    frame: UInt8[np.ndarray, "3 h w"],
    last: FoundFace,
    who: torch.Tensor,
    finder: FaceFinder,
    model: FaceModel,
) -> FoundFace | None:
    """Return where a face went; it is sought in the whole frame where it is not near its last place."""
    if last.score > 0 and isinstance(finder, ReaderFinder):
        (near,) = finder.laid_anew(frame, [last], rounds=2)
        if near.score >= SURE:
            return near
    found = finder.find(frame)
    if last.score > 0 and found:
        reach = float(np.ptp(last.points[:, 0]) + np.ptp(last.points[:, 1]))
        near = min(found, key=lambda each: float(np.abs(each.points - last.points).mean()))
        if np.abs(near.points - last.points).mean() < reach / 2:
            return near
    alike = [float((vector_of(frame, each, model) @ who.T).item()) for each in found]
    best = int(np.argmax(alike)) if alike else -1
    return found[best] if alike and alike[best] >= SAME_PERSON else None


def filled(points: Float64[np.ndarray, "f 4 2"], score: Float32[np.ndarray, " f"]) -> np.ndarray:
    """Return points with those between frames that show the face put in, in a straight line."""
    there, every = np.flatnonzero(score > 0), np.arange(len(points))
    columns = [np.interp(every, there, column[there]) for column in points.reshape(len(points), -1).T]
    return np.stack(columns, axis=1).reshape(points.shape)


def vector_of(frame: UInt8[np.ndarray, "3 h w"], face: FoundFace, model: FaceModel) -> torch.Tensor:
    """Return who a face in a frame is."""
    squares = squares_of([face], model.diffusion.config.scale)
    return model.vectors(squares.crop(pixels_of(frame), model.side).to(model.device))


def squares_of(faces: Sequence[FoundFace], scale: float) -> FaceSquares:
    """Return the squares around faces."""
    left, right, corner, other = np.stack([face.points for face in faces]).transpose(1, 0, 2)
    return FaceSquares.around((left, right), (corner, other), scale)


def pixels_of(frame: UInt8[np.ndarray, "3 h w"], count: int = 1) -> torch.Tensor:
    """Return a frame as numbers, seen so many times."""
    return (torch.tensor(np.asarray(frame))[None].float() / 127.5 - 1).expand(count, -1, -1, -1)


@final
@dataclass(frozen=True, eq=False)
class ReaderFinder:
    """Finds faces by what the model's reader says of squares."""

    model: FaceModel

    def find(self, frame: UInt8[np.ndarray, "3 h w"]) -> Sequence[FoundFace]:
        """Return the faces of a frame, the surest first."""
        small, factor = shrunk(frame)
        tried = [face for squares in self.promising_squares(small) for face in self.read(small, squares)]
        near = surest_apart(tried, 0.0, 0.25)[:MOST_TRIED]
        if not near:
            return []
        sure = surest_apart(self.laid_anew(small, near, rounds=ROUNDS), SURE, 0.7)
        if not sure:
            return []
        full = [FoundFace((face.points + 0.5) * factor - 0.5, face.score) for face in sure]
        return surest_apart(self.laid_anew(frame, full, rounds=1), SURE, 0.7)

    def promising_squares(self, frame: UInt8[np.ndarray, "3 y x"]) -> Iterator[FaceSquares]:
        """Yield upright squares whose middle is likely that of a face, those of a size together."""
        reader, longer = self.model.reader, max(frame.shape[1:])
        assert isinstance(reader, SmallFaceReader)
        half = 0.6 * longer
        while half >= SMALLEST * longer:
            likely = reader.likely_middles(at_scale(frame, SmallReader.SIDE / 2 / half)).cpu()[None]
            peak = (likely >= PROMISING) & (likely == max_pool2d(likely, PEAK, 1, PEAK // 2))
            spots = peak[0].nonzero().double().numpy()[:, ::-1]
            if len(spots):
                centres = (spots + 0.5) * (half * 2 / SmallReader.SIDE) - 0.5
                yield FaceSquares(centres, np.tile([half, 0.0], (len(spots), 1)))
            half /= GROWTH

    def laid_anew(
        self, frame: UInt8[np.ndarray, "3 h w"], faces: Sequence[FoundFace], *, rounds: int
    ) -> list[FoundFace]:
        """Return faces read again in the squares around them, so often."""
        for _ in range(rounds):
            faces = self.read(frame, squares_of(faces, self.model.diffusion.config.scale))
        return list(faces)

    def read(self, frame: UInt8[np.ndarray, "3 h w"], squares: FaceSquares) -> list[FoundFace]:
        """Return what squares of a frame show, taken for faces."""
        reader = self.model.reader
        assert isinstance(reader, SmallFaceReader)
        crops = squares.crop(pixels_of(frame, len(squares.centre)), self.model.side)
        reading = reader.read(crops.to(self.model.device))
        kept = [reader.point_names.index(name) for name in ANCHORS]
        places = squares.outside(reading.points[:, kept].double().cpu().numpy())
        return [FoundFace(p, float(s)) for p, s in zip(places, reading.score.cpu(), strict=True)]

    @property
    def identity(self) -> str:
        """What decides the faces found."""
        return self.model.identity


def shrunk(frame: UInt8[np.ndarray, "3 h w"]) -> tuple[UInt8[np.ndarray, "3 y x"], float]:
    """Return a frame small enough to be searched, and how much smaller it is."""
    h, w = frame.shape[1:]
    factor = max(h, w) / SEARCH_SIDE
    if factor <= 1:
        return np.asarray(frame), 1.0
    size = (max(1, round(w / factor)), max(1, round(h / factor)))
    small = cv2.resize(np.ascontiguousarray(frame.transpose(1, 2, 0)), size, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(small.transpose(2, 0, 1)), factor


def at_scale(frame: UInt8[np.ndarray, "3 h w"], scale: float) -> Float[torch.Tensor, "1 3 y x"]:
    """Return a frame so many times as large; its border is repeated until both sides are multiples of 16."""
    h, w = (max(1, round(side * scale)) for side in frame.shape[1:])
    seen = interpolate(pixels_of(frame), (h, w), mode="bilinear", antialias=True, align_corners=False)
    beyond = [max(0, SmallReader.SIDE - side) or -side % 16 for side in (w, h)]
    return pad(seen, (0, beyond[0], 0, beyond[1]), mode="replicate")


def surest_apart(faces: Sequence[FoundFace], least: float, share: float) -> list[FoundFace]:
    """Return faces of some score, surest first, that do not lie on a surer one."""
    kept: list[FoundFace] = []
    for face in sorted(faces, key=lambda each: -each.score):
        reach = 2 * share * max(np.ptp(face.points[:, 0]), np.ptp(face.points[:, 1]), 1.0)
        middle = face.points.mean(0)
        apart = all(np.linalg.norm(other.points.mean(0) - middle) > reach for other in kept)
        if face.score >= least and apart:
            kept.append(face)
    return kept
