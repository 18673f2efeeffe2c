"""One face, found in a clip and followed through it; and how what was drawn of it is laid over the clip.

Without a finder the model's own reader looks for faces: it sees the whole frame at a few sizes, and squares
that seem to show a face are laid anew by the points read in them, until they stay.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, final

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int, UInt8
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d, pad

from retouch.artifacts import artifact
from retouch.errors import NoFace, ParamsError
from retouch.models.face_model import ANCHORS, FaceModel, SmallFaceReader
from retouch.models.face_parts import OUTSIDE_VIDEO, FaceFinder, FoundFace, SmallReader
from retouch.run import Run
from retouch.tracking.face_squares import FaceSquares
from retouch.video import Video, chunks

Crops: TypeAlias = Float[torch.Tensor, "f 3 side side"]

NOT_FACE: Final = ("background", "clothes", "necklace")
"""Parts that are never changed; a neck is of the face's skin."""
COME_AND_GO: Final = ("glasses", "beard", "hat", "hair")
"""Parts that an edit may add or take away."""
REACH: Final = 5
"""Width, in pixels of the crop, of what lies around a part and still belongs to it: odd."""
STEEP: Final = 3.0
"""How much narrower the edge of a mask gets than the pixels of the crop are apart."""
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
AS_SURE: Final = 0.9
"""The share of a face's score that another one must pass to take its place."""
SAME_PLACE: Final = 0.1
"""How far squares laid anew may end apart to be at one place, in shares of the face."""
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


def cut_faces(
    video: Video, model: FaceModel, finder: FaceFinder | None, *, run: Run
) -> Float[torch.Tensor, "f 3 side side"]:
    """Return the only face of a clip, cut out of the frames in which it was found.

    Raises:
        NoFace: no frame shows one.
        ParamsError: there are several.
    """
    track = follow_face(video, model, finder, None, run=run)
    squares = track.squares(model.diffusion.config.scale)
    crops = [squares[part].crop(video[part].pixels(), model.side) for part in chunks(len(video))]
    return torch.cat(crops)[torch.from_numpy(track.score > 0)]


def gaps(shown: Bool[np.ndarray, " f"]) -> list[range]:
    """Return the runs of frames that are not shown."""
    edges = np.flatnonzero(np.diff(np.concatenate([[1], shown.astype(int), [1]])))
    return [range(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


@artifact("face_track", version=3)
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
        laid = [face for face in self.laid_anew(small, near, rounds=ROUNDS) if face.score >= SURE]
        sure = surest_apart(most_agreed(no_parts_of_others(laid)), SURE, 0.7)
        if not sure:
            return []
        full = [FoundFace((face.points + 0.5) * factor - 0.5, face.score) for face in sure]
        return surest_apart(no_parts_of_others(self.laid_anew(frame, full, rounds=1)), SURE, 0.7)

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


def most_agreed(faces: Sequence[FoundFace]) -> list[FoundFace]:
    """Return faces without those that lie on one as sure to which more squares came: such as still move."""
    if not faces:
        return []
    points = np.stack([face.points for face in faces])
    reach = np.ptp(points, axis=1).max(1)
    apart = np.linalg.norm(points[:, None] - points[None], axis=3).mean(2)
    away = np.linalg.norm(points.mean(1)[:, None] - points.mean(1)[None], axis=2)
    score = np.array([face.score for face in faces])
    came = (apart < SAME_PLACE * reach).sum(1)
    beaten = (away < reach[:, None]) & (came > came[:, None]) & (score > AS_SURE * score[:, None])
    return [face for face, lost in zip(faces, beaten.any(1), strict=True) if not lost]


def no_parts_of_others(faces: Sequence[FoundFace]) -> list[FoundFace]:
    """Return faces without those that are a part of a much larger one, such as a lens of its glasses."""

    def within(face: FoundFace, other: FoundFace) -> bool:
        small, large = (float(np.ptp(each.points, axis=0).max()) for each in (face, other))
        away = np.linalg.norm(face.points.mean(0) - other.points.mean(0))
        return bool(large > 2 * small and away < large and other.score > AS_SURE * face.score)

    return [face for face in faces if not any(within(face, other) for other in faces)]


def lay_over(
    clip: Video,
    squares: FaceSquares,
    seen: Crops,
    drawn: Crops,
    parts: Int[torch.Tensor, "f side side"],
    model: FaceModel,
    gate: float,
) -> tuple[Float[torch.Tensor, "f 3 h w"], np.ndarray]:
    """Return the clip with the change in it, and where it may differ: line 5, at the clip's own size."""
    now = model.reader.read(drawn.to(model.device)).parts.cpu()
    seen, drawn = seen.cpu(), drawn.cpu()
    face, other = (1 - model.mask(shown, *NOT_FACE) for shown in (parts, now))
    allowed = max_pool2d(torch.maximum(face, opened(other * (1 - face))), 3, 1, 1)  # outlines change too
    changed = [(model.mask(parts, name) - model.mask(now, name)).abs() for name in COME_AND_GO]
    shape = max_pool2d(torch.stack(changed).amax(0), REACH, 1, REACH // 2)
    pictures, size = torch.cat([drawn - seen, drawn], dim=1), (clip.height, clip.width)
    masks = torch.cat([gated(drawn - seen, gate), allowed, shape], dim=1)
    change, anew = squares.paste(pictures, size, by="bicubic").tensor_split([3], dim=1)
    strength, allowed, shape = squares.paste(masks, size).tensor_split([1, 2], dim=1)
    strength = strength * crisp(allowed)
    share = strength * crisp(shape)
    pixels = (1 - share) * (clip.pixels() + strength * change) + share * anew
    return pixels.clamp(-1, 1), (strength > 0).numpy()


def opened(mask: Float[torch.Tensor, "f 1 h w"]) -> Float[torch.Tensor, "f 1 h w"]:
    """Return a mask without what is thinner than three pixels: two readings of one rim differ by as much."""
    return max_pool2d(-max_pool2d(-mask, 3, 1, 1), 3, 1, 1)


def crisp(mask: Float[torch.Tensor, "f 1 h w"]) -> Float[torch.Tensor, "f 1 h w"]:
    """Return a mask that was made larger with the soft edge that this gave it made narrow again."""
    return (STEEP * (mask - 0.5) + 0.5).clamp(0, 1)


def gated(change: Crops, least: float) -> Float[torch.Tensor, "f 1 side side"]:
    """Return 0 where pictures hardly change, 1 where they do, and a soft way between."""
    by = avg_pool2d(change.abs().mean(1, keepdim=True) / 2, 3, 1, 1)
    if least == 0:
        return torch.ones_like(by)
    share = ((by - least / 2) / least).clamp(0, 1)
    return share * share * (3 - 2 * share)


def lay_as_published(
    clip: Video,
    squares: FaceSquares,
    seen: Crops,
    drawn: Crops,
    parts: Int[torch.Tensor, "f side side"],
    model: FaceModel,
    gate: float,
) -> tuple[Float[torch.Tensor, "f 3 h w"], np.ndarray]:
    """Return the clip with the drawn face in it where the source shows skin and features; edges are hard."""
    del seen, gate
    mask = 1 - model.mask(parts, *OUTSIDE_VIDEO)
    laid, share = squares.paste(
        torch.cat([mask * drawn.cpu(), mask], dim=1), (clip.height, clip.width)
    ).tensor_split([3], dim=1)
    pixels = (1 - share) * clip.pixels() + laid
    return pixels.clamp(-1, 1), (share > 0).numpy()
