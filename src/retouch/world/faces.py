"""Drawn faces: who it is, how it moves and what is behind, each apart; with landmarks and parts.

A face's own coordinates have the middle of the head at the origin, `u` to the right and `v` down, and the
head within about [-0.9, 0.9]. A turn of the head is drawn as a shift of what lies in front (eyes, nose,
mouth) against the outline of the head.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from types import MappingProxyType
from typing import final

import numpy as np
from jaxtyping import Float32, UInt8

from retouch.errors import RequestError
from retouch.video import Video
from retouch.world.exact import Dice, Plane, blend_over, clamp_unit, cosine, sine, to_bytes
from retouch.world.render import (
    FPS,
    SOFTNESS,
    Size,
    background_planes,
    height_width,
)
from retouch.world.scene import BACKGROUNDS, WORLD_VERSION, Camera, check_word
from retouch.world.shapes import (
    INK,
    Colour,
    Distance,
    circle,
    cut_out,
    ellipse,
    intersection_of,
    round_line,
    rounded_rectangle,
    shape_border,
    union_of,
)

SKINS: Mapping[str, Colour] = MappingProxyType(
    {
        "pale": (255, 226, 204),
        "fair": (244, 200, 160),
        "tan": (222, 166, 112),
        "brown": (164, 104, 62),
        "dark": (104, 64, 42),
    }
)
FACE_SHAPES = ("round", "oval", "square", "long")
EYE_COLOURS: Mapping[str, Colour] = MappingProxyType(
    {"brown": (110, 64, 28), "blue": (52, 120, 214), "green": (56, 150, 76), "grey": (130, 140, 150)}
)
HAIR_STYLES = ("bald", "short", "curly", "long")
HAIR_COLOURS: Mapping[str, Colour] = MappingProxyType(
    {
        "black": (38, 34, 40),
        "brown": (108, 66, 36),
        "blond": (236, 200, 96),
        "red": (190, 78, 32),
        "grey": (168, 170, 176),
    }
)
HATS: Mapping[str, Colour] = MappingProxyType(
    {"red": (208, 44, 48), "yellow": (246, 208, 44), "green": (44, 150, 72), "blue": (44, 92, 208)}
)
PARTS = (
    "background",
    "clothes",
    "neck",
    "ears",
    "skin",
    "beard",
    "mouth",
    "nose",
    "eyes",
    "brows",
    "hair",
    "hat",
    "glasses",
)
LANDMARKS = (
    "left eye",
    "right eye",
    "left eye outer",
    "left eye inner",
    "right eye inner",
    "right eye outer",
    "left brow outer",
    "left brow inner",
    "right brow inner",
    "right brow outer",
    "nose tip",
    "mouth left",
    "mouth right",
    "mouth top",
    "mouth bottom",
    "chin",
    "left lid top",
    "left lid bottom",
    "right lid top",
    "right lid bottom",
    "left pupil",
    "right pupil",
)
"""Names of the landmarks, in order; left and right as seen in the picture."""

YES_NO = ("no", "yes")

STILL = Camera()
"""A camera that does not move."""

_CLOTHES: tuple[Colour, ...] = ((70, 92, 140), (150, 62, 70), (74, 124, 96), (120, 96, 150))


@final
@dataclass(frozen=True)
class Identity:
    """Who it is: everything about a face that stays while it moves.

    `eye_distance` is from the middle of the face to an eye; `clothes` numbers what is worn below the neck.

    Raises:
        RequestError: a word is none of those known for faces.
    """

    skin: str = "fair"
    shape: str = "oval"
    eyes: str = "brown"
    hair: str = "short"
    hair_colour: str = "brown"
    glasses: bool = False
    beard: bool = False
    hat: str = "none"
    eye_distance: float = 0.25
    nose: float = 0.1
    mouth: float = 0.2
    clothes: int = 0

    def __post_init__(self) -> None:
        check_word("skin", self.skin, tuple(SKINS))
        check_word("face shape", self.shape, FACE_SHAPES)
        check_word("eye colour", self.eyes, tuple(EYE_COLOURS))
        check_word("hair", self.hair, HAIR_STYLES)
        check_word("hair colour", self.hair_colour, tuple(HAIR_COLOURS))
        check_word("hat", self.hat, ("none", *HATS))


@final
@dataclass(frozen=True)
class Expression:
    """A face at one moment: place, roll and size; yaw, mouth and blink; where the eyes look.

    `yaw` goes from -1 (to the left) to 1, `mouth` from 0 (shut) to 1, `smile` from -1 to 1, `blink` from 0
    (eyes open) to 1, `gaze` from -1 to 1 across and down.
    """

    x: float = 0.0
    y: float = 0.0
    scale: float = 0.8
    roll: float = 0.0
    yaw: float = 0.0
    mouth: float = 0.0
    smile: float = 0.4
    blink: float = 0.0
    gaze: tuple[float, float] = (0.0, 0.0)

    @property
    def lid_gap(self) -> float:
        """From the middle of an eye to a lid; a nearly shut eye is drawn as a line."""
        return 0.0 if self.blink > 0.8 else 0.115 * (1.0 - self.blink)

    def pupil_of(self, eye: tuple[float, float]) -> tuple[float, float]:
        """Return where the pupil of the eye at a place lies."""
        return eye[0] + 0.05 * self.gaze[0], eye[1] + 0.03 * self.gaze[1]


@final
@dataclass(frozen=True)
class Liveliness:
    """How a face moves, whoever it is: how far each part of the expression swings, and when it blinks."""

    centre: tuple[float, float] = (0.0, 0.0)
    sway: tuple[float, float] = (0.0, 0.0)
    scale: float = 0.8
    roll: float = 0.0
    yaw: float = 0.0
    mouth: float = 0.0
    smile: float = 0.4
    gaze: float = 0.0
    blinks: float = 2.5
    period: float = 3.0
    phase: float = 0.0

    def at(self, t: float) -> Expression:
        """Return the expression at `t` seconds; an eye shuts and opens within a quarter of a second."""
        turns = t / self.period + self.phase
        since = t / self.blinks + self.phase
        since = (since - int(since)) * self.blinks
        return Expression(
            x=self.centre[0] + self.sway[0] * sine(turns),
            y=self.centre[1] + self.sway[1] * sine(turns + 0.2),
            scale=self.scale,
            roll=self.roll * sine(turns + 0.1),
            yaw=self.yaw * sine(turns + 0.35),
            mouth=self.mouth * (0.5 - 0.5 * cosine(3 * turns)),
            smile=self.smile,
            blink=max(0.0, 1 - abs(since - 0.125) / 0.125),
            gaze=(self.gaze * sine(2 * turns), self.gaze * 0.5 * cosine(2 * turns)),
        )


@final
@dataclass(frozen=True)
class Portrait:
    """A face in front of a background.

    Raises:
        RequestError: there is no such background.
    """

    identity: Identity
    motion: Liveliness = Liveliness()
    background: str = "sky"
    camera: Camera = STILL
    ground: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        check_word("background", self.background, BACKGROUNDS)

    @classmethod
    def sample(cls, seed: int) -> "Portrait":
        """Return the portrait that belongs to a seed; identity, motion and background are drawn apart."""
        return cls(sample_identity(seed), sample_motion(seed), *_sample_behind(seed))

    @property
    def caption(self) -> str:
        """The portrait in words."""
        who = self.identity
        hair = "no hair" if who.hair == "bald" else f"{who.hair} {who.hair_colour} hair"
        said = [f"{who.skin} skin", hair, f"{who.eyes} eyes"]
        said += ["glasses"] * who.glasses + ["a beard"] * who.beard
        said += [] if who.hat == "none" else [f"a {who.hat} hat"]
        listed = f"{', '.join(said[:-1])} and {said[-1]}"
        place = {"sky": "in sky", "night": "at night"}.get(self.background, f"on {self.background}")
        shape = f"an {who.shape}" if who.shape == "oval" else f"a {who.shape}"
        return f"{shape} face with {listed}, {place}"

    @classmethod
    def of(cls, caption: str, seed: int = 0) -> "Portrait":
        """Return the portrait of a seed, changed to show what a caption says.

        Skin, shape, eyes, hair and background stay as the seed has them where the caption is silent; glasses,
        beard and hat are there only if it names them.

        Raises:
            RequestError: the caption is not about a face.
        """
        text = " ".join(re.findall(r"[a-z]+", caption.lower().replace("an oval", "a oval")))
        if not re.search(r"\bface\b", text):
            raise RequestError(f"the caption names no face: {caption!r}", hint="begin with: a face with ...")
        portrait = cls.sample(seed)
        for change in (f"glasses={_yes_no(text, 'glasses')}", f"beard={_yes_no(text, 'beard')}", "hat=none"):
            portrait = portrait.changed(change)
        for name, words in FACE_WORDS.items():
            for word in words:
                if re.search(_SAID.get(name, r"\b{} \b" + name).format(word) + r"\b", text):
                    portrait = portrait.changed(f"{name}={word}")
        return portrait.changed("hair=bald") if re.search(r"\bno hair\b", text) else portrait

    def changed(self, text: str) -> "Portrait":
        """Return the portrait with one thing changed, as in `glasses=yes`, `hair=long` or `background=snow`.

        Raises:
            RequestError: there is no such thing to change, or no such word for it.
        """
        name, _, word = (part.strip().lower() for part in text.replace("color", "colour").partition("="))
        name = name.replace(" ", "_")
        choices = FACE_WORDS.get(name)
        if choices is None or word not in choices:
            raise RequestError(
                f"no change of a face is meant by {text!r}",
                hint=f"write {name}= one of: {', '.join(choices)}"
                if choices
                else f"write one of {', '.join(FACE_WORDS)}, then =, then a word, such as glasses=yes",
            )
        if name == "background":
            return replace(self, background=word)
        kept = {field.name: getattr(self.identity, field.name) for field in fields(Identity)}
        kept[name] = word == "yes" if choices == YES_NO else word
        return replace(self, identity=Identity(**kept))


FACE_WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "skin": tuple(SKINS),
        "shape": FACE_SHAPES,
        "eyes": tuple(EYE_COLOURS),
        "hair": HAIR_STYLES,
        "hair_colour": tuple(HAIR_COLOURS),
        "glasses": YES_NO,
        "beard": YES_NO,
        "hat": ("none", *HATS),
        "background": BACKGROUNDS,
    }
)
"""What can be said about a portrait, and the words for it."""

_SAID: Mapping[str, str] = MappingProxyType(
    {
        "shape": r"\b{} face",
        "hair": r"\b{}( [a-z]+)? hair",
        "hair_colour": r"\b{} hair",
        "background": r"\b{}",
        "glasses": r"(?!)",
        "beard": r"(?!)",
    }
)


def _yes_no(text: str, word: str) -> str:
    return "yes" if re.search(rf"\b{word}\b", text) else "no"


_STREAM = 7_000_003


def sample_identity(seed: int) -> Identity:
    """Return who belongs to a seed."""
    dice = Dice(seed, _STREAM + WORLD_VERSION, 16)

    def one(words: tuple[str, ...]) -> str:
        return words[dice.pick(len(words))]

    return Identity(
        skin=one(tuple(SKINS)),
        shape=one(FACE_SHAPES),
        eyes=one(tuple(EYE_COLOURS)),
        hair=one(HAIR_STYLES),
        hair_colour=one(tuple(HAIR_COLOURS)),
        glasses=dice.chance(0.35),
        beard=dice.chance(0.35),
        hat=one(("none", "none", "none", "none", *HATS)),
        eye_distance=dice.between(0.21, 0.29),
        nose=dice.between(0.075, 0.13),
        mouth=dice.between(0.16, 0.26),
        clothes=dice.pick(len(_CLOTHES)),
    )


def sample_motion(seed: int) -> Liveliness:
    """Return how the face of a seed moves."""
    dice = Dice(seed, _STREAM + 100 + WORLD_VERSION, 16)
    return Liveliness(
        centre=(dice.between(-0.12, 0.12), dice.between(-0.08, 0.1)),
        sway=(dice.between(-0.14, 0.14), dice.between(-0.08, 0.08)),
        scale=dice.between(0.72, 0.88),
        roll=dice.between(-0.05, 0.05),
        yaw=dice.between(-1.0, 1.0),
        mouth=dice.between(0.0, 1.0),
        smile=dice.between(-0.5, 1.0),
        gaze=dice.between(-1.0, 1.0),
        blinks=dice.between(1.5, 3.5),
        period=dice.between(2.5, 5.0),
        phase=dice.between(0.0, 1.0),
    )


def _sample_behind(seed: int) -> tuple[str, Camera, tuple[float, float]]:
    dice = Dice(seed, _STREAM + 200 + WORLD_VERSION, 8)
    background = BACKGROUNDS[dice.pick(len(BACKGROUNDS))]
    camera = Camera(pan=(dice.between(-0.15, 0.15), dice.between(-0.05, 0.05)), phase=dice.between(0.0, 1.0))
    return background, camera, (dice.between(0.0, 4.0), dice.between(0.0, 4.0))


@final
@dataclass(frozen=True, eq=False)
class FaceClip:
    """A drawn clip of a face and the truth about it.

    `colour` and `alpha` are the face's layer, `parts` numbers what every pixel shows by `PARTS`, and
    `landmarks` are columns and rows of `LANDMARKS` in pixels, the middle of the first pixel being 0, 0.
    """

    portrait: Portrait
    video: Video
    colour: UInt8[np.ndarray, "f 3 h w"]
    alpha: UInt8[np.ndarray, "f 1 h w"]
    parts: UInt8[np.ndarray, "f 1 h w"]
    landmarks: Float32[np.ndarray, "f landmarks 2"]

    @classmethod
    def of(
        cls, portrait: Portrait, frames: int = 16, size: Size = 128, fps: Fraction = FPS, start: float = 0.0
    ) -> "FaceClip":
        """Draw so many frames of a portrait from `start` seconds on."""
        hw, seconds = height_width(size), fps.denominator / fps.numerator
        drawn = [_draw_portrait(portrait, start + number * seconds, hw) for number in range(frames)]
        video, colour, alpha, parts, landmarks = (np.stack(kind) for kind in zip(*drawn, strict=True))
        return cls(portrait, Video(video, fps), colour, alpha[:, None], parts[:, None], landmarks)

    @property
    def caption(self) -> str:
        """What the clip shows, in words."""
        return self.portrait.caption

    def edited(self, *changes: str) -> "FaceClip":
        """Return the true edited clip: the portrait with the changes made, moving in the same way."""
        portrait = self.portrait
        for change in changes:
            portrait = portrait.changed(change)
        return FaceClip.of(portrait, len(self.video), (self.video.height, self.video.width), self.video.fps)


def face_picture(portrait: Portrait, t: float = 0.0, size: Size = 64) -> UInt8[np.ndarray, "h w 3"]:
    """Return the portrait at `t` seconds: rows, columns, red green blue."""
    return np.ascontiguousarray(_draw_portrait(portrait, t, height_width(size))[0].transpose(1, 2, 0))


def face_landmarks(identity: Identity, pose: Expression) -> Float32[np.ndarray, "landmarks 2"]:
    """Return where the landmarks of a face lie in the world."""
    layout = _FaceLayout.of(identity, pose)
    points: dict[str, tuple[float, float]] = {
        "nose tip": layout.nose,
        "chin": (0.0, _HEADS[identity.shape][2]),
    }
    for name, (x, y), outward in (("left", layout.left, -1), ("right", layout.right, 1)):
        reach = outward * layout.eye_width(outward)
        points[f"{name} eye"] = (x, y)
        points[f"{name} eye outer"] = (x + reach, y)
        points[f"{name} eye inner"] = (x - reach, y)
        points[f"{name} brow outer"] = (x + reach * 1.25, y - 0.19)
        points[f"{name} brow inner"] = (x - reach * 1.05, y - 0.21)
        open_by = pose.lid_gap
        points[f"{name} lid top"], points[f"{name} lid bottom"] = (x, y - open_by), (x, y + open_by)
        points[f"{name} pupil"] = pose.pupil_of((x, y))
    x, y = layout.mouth
    corner, gap = y - 0.07 * pose.smile, layout.gape
    points["mouth left"], points["mouth right"] = (x - identity.mouth, corner), (x + identity.mouth, corner)
    points["mouth top"], points["mouth bottom"] = (x, y - gap), (x, y + gap)
    c, s = cosine(pose.roll) * pose.scale, sine(pose.roll) * pose.scale
    spots = [points[name] for name in LANDMARKS]
    return np.array([(pose.x + c * u - s * v, pose.y + s * u + c * v) for u, v in spots], np.float32)


@final
@dataclass(frozen=True)
class _FaceLayout:
    """Where the features of a face lie, in its own coordinates, at one moment."""

    left: tuple[float, float]
    right: tuple[float, float]
    nose: tuple[float, float]
    mouth: tuple[float, float]
    yaw: float
    gape: float

    @classmethod
    def of(cls, identity: Identity, pose: Expression) -> "_FaceLayout":
        shift = 0.13 * pose.yaw
        return cls(
            left=(-identity.eye_distance + shift, -0.1),
            right=(identity.eye_distance + shift, -0.1),
            nose=(1.5 * shift, 0.16),
            mouth=(shift, 0.42),
            yaw=pose.yaw,
            gape=0.03 + 0.12 * pose.mouth,
        )

    def eye_width(self, side: int) -> float:
        """Return half an eye's width, left (-1) or right (1), narrower on the side turned away."""
        return 0.135 * (1 - 0.18 * self.yaw * side)


@final
@dataclass(frozen=True)
class _FacePiece:
    part: str
    distance: Distance
    colour: Colour
    line: float = 0.03


def _draw_portrait(
    portrait: Portrait, t: float, hw: tuple[int, int]
) -> tuple[
    UInt8[np.ndarray, "3 h w"],
    UInt8[np.ndarray, "3 h w"],
    UInt8[np.ndarray, "h w"],
    UInt8[np.ndarray, "h w"],
    Float32[np.ndarray, "landmarks 2"],
]:
    view, pose = portrait.camera.at(t), portrait.motion.at(t)
    x, y = view.axes(hw)
    dx, dy = (x - pose.x).astype(np.float32)[None, :], (y - pose.y).astype(np.float32)[:, None]
    c, s = cosine(pose.roll) / pose.scale, sine(pose.roll) / pose.scale
    u, v = c * dx + s * dy, c * dy - s * dx
    width = SOFTNESS * 2 / (min(hw) * view.zoom * pose.scale)
    colour, alpha, parts = _paint_pieces(_face_pieces(portrait.identity, pose), u, v, width)
    frame = blend_over(colour, alpha, background_planes(portrait.background, portrait.ground, view, hw))
    spots = face_landmarks(portrait.identity, pose).astype(np.float64)
    places = view.places(hw, spots[:, :1], spots[:, 1:])
    return frame, colour, alpha, parts, np.concatenate(places, axis=1).astype(np.float32)


def _paint_pieces(
    pieces: list[_FacePiece], u: Plane, v: Plane, width: float
) -> tuple[UInt8[np.ndarray, "3 h w"], UInt8[np.ndarray, "h w"], UInt8[np.ndarray, "h w"]]:
    colour = np.zeros((3, *u.shape), np.float32)
    for channel, level in zip(colour, INK, strict=True):
        channel[...] = level / 255
    alpha, parts = np.zeros_like(u), np.zeros(u.shape, np.uint8)
    for piece in pieces:
        distance = piece.distance(u, v)
        for grown, paint in ((piece.line, INK), (0.0, piece.colour)):
            if grown == 0.0 and paint == INK and piece.line > 0:
                continue
            drawn = clamp_unit(0.5 - (distance - grown) / width)
            alpha = np.maximum(alpha, drawn)
            for channel, level in zip(colour, paint, strict=True):
                channel += drawn * (level / 255 - channel)
        parts[distance < piece.line] = PARTS.index(piece.part)
    return to_bytes(colour), to_bytes(alpha), parts


_HEADS: Mapping[str, tuple[Distance, float, float]] = MappingProxyType(
    {
        "round": (ellipse(0.0, 0.0, 0.7, 0.73), 0.7, 0.73),
        "oval": (ellipse(0.0, 0.0, 0.59, 0.77), 0.59, 0.77),
        "square": (rounded_rectangle(-0.6, -0.74, 0.6, 0.74, 0.26), 0.6, 0.74),
        "long": (ellipse(0.0, 0.03, 0.5, 0.86), 0.5, 0.89),
    }
)


def _shade_colour(colour: Colour, share: float) -> Colour:
    red, green, blue = (int(level * share) for level in colour)
    return red, green, blue


def _grow_shape(shape: Distance, by: float) -> Distance:
    return lambda u, v: shape(u, v) - by


def _face_pieces(who: Identity, pose: Expression) -> list[_FacePiece]:
    """Return what to paint, back to front."""
    layout = _FaceLayout.of(who, pose)
    groups: tuple[Callable[[Identity, Expression, _FaceLayout], list[_FacePiece]], ...] = (
        _body_pieces,
        _head_pieces,
        _beard_pieces,
        _mouth_pieces,
        _eye_pieces,
        _hair_pieces,
        _hat_pieces,
        _glasses_pieces,
    )
    return [piece for group in groups for piece in group(who, pose, layout)]


def _body_pieces(who: Identity, pose: Expression, _: _FaceLayout) -> list[_FacePiece]:
    c, s = cosine(pose.roll), sine(pose.roll)

    def upright(shape: Distance) -> Distance:
        return lambda u, v: shape(c * u - s * v, s * u + c * v)

    skin, hair, (_head_alone, wide, high) = SKINS[who.skin], HAIR_COLOURS[who.hair_colour], _HEADS[who.shape]
    long = rounded_rectangle(-wide - 0.2, -high - 0.1, wide + 0.2, 1.0, 0.46)
    behind = [_FacePiece("hair", long, _shade_colour(hair, 0.8))] if who.hair == "long" else []
    return [
        *behind,
        _FacePiece("neck", upright(rounded_rectangle(-0.24, 0.4, 0.24, 1.2)), _shade_colour(skin, 0.84)),
        _FacePiece("clothes", upright(ellipse(0.0, 1.72, 1.05, 0.74)), _CLOTHES[who.clothes]),
    ]


def _head_pieces(who: Identity, _: Expression, layout: _FaceLayout) -> list[_FacePiece]:
    skin, (head, wide, _high) = SKINS[who.skin], _HEADS[who.shape]
    turn = -0.07 * layout.yaw
    ears = union_of(ellipse(turn - wide, 0.02, 0.12, 0.17), ellipse(turn + wide, 0.02, 0.12, 0.17))
    return [_FacePiece("ears", ears, _shade_colour(skin, 0.9)), _FacePiece("skin", head, skin)]


def _beard_pieces(who: Identity, _: Expression, layout: _FaceLayout) -> list[_FacePiece]:
    pieces = [
        _FacePiece("nose", ellipse(*layout.nose, who.nose, 0.075), _shade_colour(SKINS[who.skin], 0.8), 0.0)
    ]
    if who.beard:
        head, wide, _chin_at = _HEADS[who.shape]
        jaw = intersection_of(_grow_shape(head, 0.05), rounded_rectangle(-1.0, 0.08, 1.0, 1.2))
        beard = cut_out(jaw, ellipse(layout.mouth[0], -0.02, wide - 0.09, 0.33))
        pieces.insert(0, _FacePiece("beard", beard, _shade_colour(HAIR_COLOURS[who.hair_colour], 0.9), 0.02))
    return pieces


def _mouth_pieces(who: Identity, pose: Expression, layout: _FaceLayout) -> list[_FacePiece]:
    (x, y), wide, gape = layout.mouth, who.mouth, layout.gape

    def smiling(shape: Distance) -> Distance:
        def distance(u: Plane, v: Plane) -> Plane:
            across = (u - x) / wide
            return shape(u - x, v - y + 0.07 * pose.smile * across * across)

        return distance

    pieces = [_FacePiece("mouth", smiling(ellipse(0.0, 0.0, wide, gape)), (188, 66, 72), 0.015)]
    if gape > 0.06:
        inner = ellipse(0.0, 0.0, wide - 0.03, gape - 0.025)
        teeth = intersection_of(inner, rounded_rectangle(-wide, -gape, wide, -0.35 * gape))
        pieces += [_FacePiece("mouth", smiling(inner), (84, 22, 32), 0.0)]
        pieces += [_FacePiece("mouth", smiling(teeth), (250, 248, 240), 0.0)]
    return pieces


def _eye_pieces(who: Identity, pose: Expression, layout: _FaceLayout) -> list[_FacePiece]:
    iris = EYE_COLOURS[who.eyes]
    brow = HAIR_COLOURS[who.hair_colour]
    pieces = []
    for (x, y), side in ((layout.left, -1), (layout.right, 1)):
        wide = layout.eye_width(side)
        start, end = (x + side * wide * 1.25, y - 0.19), (x - side * wide * 1.05, y - 0.21)
        pieces.append(_FacePiece("brows", round_line(*start, *end, 0.032), _shade_colour(brow, 0.85), 0.0))
        if not (gap := pose.lid_gap):
            pieces.append(_FacePiece("eyes", round_line(x - wide, y, x + wide, y, 0.02), INK, 0.0))
            continue
        white, (gx, gy) = ellipse(x, y, wide, gap), pose.pupil_of((x, y))
        pieces.append(_FacePiece("eyes", white, (250, 250, 250), 0.025))
        pieces.append(_FacePiece("eyes", intersection_of(circle(gx, gy, 0.085), white), iris, 0.0))
        pieces.append(_FacePiece("eyes", intersection_of(circle(gx, gy, 0.04), white), INK, 0.0))
    return pieces


def _hair_pieces(who: Identity, _: Expression, layout: _FaceLayout) -> list[_FacePiece]:
    if who.hair == "bald":
        return []
    colour, (head, wide, high) = HAIR_COLOURS[who.hair_colour], _HEADS[who.shape]
    middle, half = 0.5 * layout.mouth[0], wide - 0.04
    opening = rounded_rectangle(middle - half, -0.42, middle + half, 1.4, 0.24)
    reach = 0.62 if who.hair == "long" else -0.04
    cap = cut_out(
        intersection_of(_grow_shape(head, 0.08), rounded_rectangle(-1.0, -1.2, 1.0, reach)), opening
    )
    if who.hair == "curly":
        around = [k / 16 for k in range(-6, 7)]  # turns from straight up
        curls = [circle((wide + 0.1) * sine(a / 1.3), -high * cosine(a / 1.3) * 0.95, 0.165) for a in around]
        cap = union_of(cap, *curls)
    return [_FacePiece("hair", cap, colour)]


def _hat_pieces(who: Identity, _: Expression, __: _FaceLayout) -> list[_FacePiece]:
    if who.hat == "none":
        return []
    colour = HATS[who.hat]
    top = -_HEADS[who.shape][2]
    crown = intersection_of(
        rounded_rectangle(-0.58, top - 0.34, 0.58, top + 0.6, 0.24),
        rounded_rectangle(-1.0, -2.0, 1.0, top + 0.24),
    )
    return [
        _FacePiece("hat", crown, colour),
        _FacePiece(
            "hat", rounded_rectangle(-0.58, top + 0.06, 0.58, top + 0.18), _shade_colour(colour, 0.55), 0.0
        ),
        _FacePiece("hat", rounded_rectangle(-0.86, top + 0.18, 0.86, top + 0.3, 0.055), colour),
    ]


def _glasses_pieces(who: Identity, _: Expression, layout: _FaceLayout) -> list[_FacePiece]:
    if not who.glasses:
        return []
    (lx, y), (rx, _y), wide = layout.left, layout.right, _HEADS[who.shape][1]
    rims = union_of(shape_border(circle(lx, y, 0.18), 0.026), shape_border(circle(rx, y, 0.18), 0.026))
    bridge = round_line(lx + 0.18, y - 0.03, rx - 0.18, y - 0.03, 0.022)
    arms = union_of(
        round_line(lx - 0.18, y - 0.03, -wide, y - 0.06, 0.02),
        round_line(rx + 0.18, y - 0.03, wide, y - 0.06, 0.02),
    )
    return [_FacePiece("glasses", union_of(rims, bridge, arms), (24, 24, 32), 0.0)]
