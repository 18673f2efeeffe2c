"""What a clip shows, before anything is drawn, and the captions that say it.

A scene is a small frozen value. It comes from a seed (`Scene.sample`), from a seed and a caption
(`Scene.of`), or is written out by hand. Times are in seconds, angles in turns, lengths in world units: the
shorter side of an unmoved picture spans 2, its middle is the origin, y points down.
"""

import re
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from jaxtyping import Float

from retouch.errors import RequestError
from retouch.world.exact import Dice, cosine, sine

WORLD_VERSION = 1
"""Grows whenever the same seed may give other pixels."""

OBJECTS = ("ball", "box", "star", "heart", "car", "fish", "cup", "house", "boat", "bird")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
PATTERNS = ("plain", "striped", "dotted", "checked")
BACKGROUNDS = ("grass", "sand", "water", "sky", "bricks", "snow", "wood", "night")
STYLES = ("none", "pencil sketch", "neon", "pixel art", "watercolour")

_PLACES = {"sky": "in sky", "night": "at night"}


@final
@dataclass(frozen=True)
class ActorPose:
    """Where an object is at one moment."""

    x: float
    y: float
    turn: float
    scale: float
    bend: float


@final
@dataclass(frozen=True)
class Motion:
    """How an object moves: every part of its pose swings to and fro, all within one `period`.

    `bend` is the greatest height by which the object arches, in its own units.
    """

    centre: tuple[float, float] = (0.0, 0.0)
    swing: tuple[float, float] = (0.0, 0.0)
    turn: float = 0.0
    turn_swing: float = 0.0
    scale: float = 0.7
    scale_swing: float = 0.0
    bend: float = 0.0
    period: float = 4.0
    phase: float = 0.0

    def at(self, t: float) -> ActorPose:
        """Return the pose at `t` seconds."""
        turns = t / self.period + self.phase
        return ActorPose(
            x=self.centre[0] + self.swing[0] * sine(turns),
            y=self.centre[1] + self.swing[1] * cosine(turns),
            turn=self.turn + self.turn_swing * sine(turns + 0.15),
            scale=self.scale * (1 + self.scale_swing * cosine(turns + 0.3)),
            bend=self.bend * sine(2 * turns),
        )


@final
@dataclass(frozen=True)
class Actor:
    """An object in a scene: what it is, how it looks, how it moves.

    Raises:
        RequestError: a word is not in the world's vocabulary.
    """

    object: str
    colour: str
    pattern: str = "plain"
    motion: Motion = Motion()
    mirrored: bool = False

    def __post_init__(self) -> None:
        check_word("object", self.object, OBJECTS)
        check_word("colour", self.colour, COLOURS)
        check_word("pattern", self.pattern, PATTERNS)

    @property
    def name(self) -> str:
        """The object in words, such as "red striped car"."""
        words = (self.colour, "" if self.pattern == "plain" else self.pattern, self.object)
        return " ".join(word for word in words if word)


@final
@dataclass(frozen=True)
class CameraView:
    """Where the camera looks at one moment: the world point in the middle, and the magnification."""

    x: float
    y: float
    zoom: float

    def axes(self, hw: tuple[int, int]) -> tuple[Float[np.ndarray, " w"], Float[np.ndarray, " h"]]:
        """Return world x of every column and world y of every row."""
        h, w = hw
        short = min(hw)
        x = (np.arange(w) * 2.0 + (1 - w)) / short / self.zoom + self.x
        y = (np.arange(h) * 2.0 + (1 - h)) / short / self.zoom + self.y
        return x, y

    def places(
        self, hw: tuple[int, int], x: Float[np.ndarray, "h w"], y: Float[np.ndarray, "h w"]
    ) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
        """Return column and row at which world points are seen: `axes` undone."""
        h, w = hw
        scale = self.zoom * min(hw) / 2
        return (x - self.x) * scale + (w - 1) / 2, (y - self.y) * scale + (h - 1) / 2


@final
@dataclass(frozen=True)
class Camera:
    """How the camera pans and zooms, swinging within one `period`."""

    pan: tuple[float, float] = (0.0, 0.0)
    zoom: float = 1.0
    zoom_swing: float = 0.0
    period: float = 6.0
    phase: float = 0.0

    def at(self, t: float) -> CameraView:
        """Return the view at `t` seconds."""
        turns = t / self.period + self.phase
        return CameraView(
            x=self.pan[0] * sine(turns),
            y=self.pan[1] * sine(turns),
            zoom=self.zoom * (1 + self.zoom_swing * cosine(turns)),
        )


@final
@dataclass(frozen=True)
class Variety:
    """What `Scene.sample` may choose from, and how far things may go.

    The first lesson of a small network is `Variety.easy()`: one large upright plain object, hardly moving.

    Args:
        pair: the share of scenes with two objects.
        scale: smallest and largest half size of an object, in world units.
        turn: the farthest an object may lean to either side, in turns.
        place: the farthest an object's mean place may lie from the middle.
        swing: the longest way an object travels to either side of its mean place.
        pan, zoom: the farthest the camera travels, and the least and most it magnifies.
        mirrored: whether objects may face left.
    """

    objects: tuple[str, ...] = OBJECTS
    colours: tuple[str, ...] = COLOURS
    patterns: tuple[str, ...] = PATTERNS
    backgrounds: tuple[str, ...] = BACKGROUNDS
    styles: tuple[str, ...] = STYLES
    pair: float = 0.25
    scale: tuple[float, float] = (0.42, 0.72)
    scale_swing: float = 0.12
    turn: float = 0.08
    place: float = 0.3
    swing: float = 0.3
    bend: float = 0.14
    pan: float = 0.25
    zoom: tuple[float, float] = (0.9, 1.15)
    mirrored: bool = True

    @classmethod
    def easy(cls) -> "Variety":
        """Large, upright, centred, plain and unstyled."""
        return cls(
            patterns=("plain",),
            styles=("none",),
            pair=0.0,
            scale=(0.66, 0.8),
            scale_swing=0.0,
            turn=0.0,
            place=0.08,
            swing=0.06,
            bend=0.0,
            pan=0.05,
            zoom=(1.0, 1.0),
            mirrored=False,
        )


@final
@dataclass(frozen=True)
class Scene:
    """Everything a clip shows. The first actor is named first in the caption and stands in front.

    Raises:
        RequestError: there is no actor, or a word is not in the world's vocabulary.
    """

    actors: tuple[Actor, ...]
    background: str
    style: str = "none"
    camera: Camera = Camera()
    ground: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if not self.actors:
            raise RequestError("the scene has no object", hint=f"put in one of: {', '.join(OBJECTS)}")
        check_word("background", self.background, BACKGROUNDS)
        check_word("style", self.style, STYLES)

    @classmethod
    def sample(cls, seed: int, variety: Variety = Variety()) -> "Scene":
        """Return the scene that belongs to a seed.

        Every choice has its own throw of the dice, so that a narrower variety changes nothing else.
        """
        dice = Dice(seed, WORLD_VERSION, 64)
        background, style = _one_word(dice, variety.backgrounds), _one_word(dice, variety.styles)
        ground = (dice.between(0.0, 4.0), dice.between(0.0, 4.0))
        camera = _random_camera(dice, variety)
        paired = dice.chance(variety.pair)
        side = -1.0 if dice.chance(0.5) else 1.0
        first = _random_actor(dice, variety, side if paired else 0.0, ())
        second = _random_actor(dice, variety, -side, (first,))
        return cls((first, second) if paired else (first,), background, style, camera, ground)

    @classmethod
    def of(cls, caption: str, seed: int = 0, variety: Variety = Variety()) -> "Scene":
        """Return the scene of a seed, changed to show what a caption says; the rest stays as the seed has it.

        Colour and pattern words belong to the object word after them. An object without a pattern word is
        plain, and a caption without a style word is a plain picture.

        Raises:
            RequestError: no object of the world is named, or more than two.
        """
        words = _CaptionWords.read(caption)
        wide = replace(variety, pair=1.0 if len(words.objects) == 2 else 0.0)
        scene = cls.sample(seed, wide)
        actors = tuple(
            replace(actor, object=name, colour=colour or actor.colour, pattern=pattern)
            for actor, (name, colour, pattern) in zip(scene.actors, words.objects, strict=True)
        )
        return replace(
            scene, actors=actors, background=words.background or scene.background, style=words.style
        )

    @property
    def caption(self) -> str:
        """The scene in words, such as "a red striped car on grass, pencil sketch"."""
        names = " and ".join(f"a{'n' * (actor.name[0] in 'aeiou')} {actor.name}" for actor in self.actors)
        where = _PLACES.get(self.background, f"on {self.background}")
        return f"{names} {where}" + ("" if self.style == "none" else f", {self.style}")


def check_word(what: str, word: str, known: tuple[str, ...]) -> None:
    """Refuse a word that is not among those known.

    Raises:
        RequestError: with the known words in its hint.
    """
    if word not in known:
        raise RequestError(
            f"no {what} of the world is called {word!r}", hint=f"choose from: {', '.join(known)}"
        )


def _one_word(dice: Dice, words: tuple[str, ...]) -> str:
    return words[dice.pick(len(words))]


def _random_camera(dice: Dice, variety: Variety) -> Camera:
    low, high = variety.zoom
    near, far = dice.between(low, high), dice.between(low, high)
    return Camera(
        pan=(dice.between(-variety.pan, variety.pan), dice.between(-variety.pan, variety.pan) / 2),
        zoom=(near + far) / 2,
        zoom_swing=(near - far) / (near + far),
        period=dice.between(5.0, 9.0),
        phase=dice.between(0.0, 1.0),
    )


def _random_actor(dice: Dice, variety: Variety, side: float, others: tuple[Actor, ...]) -> Actor:
    names = [
        name for name in variety.objects if name not in {other.object for other in others}
    ] or variety.objects
    hues = [
        hue for hue in variety.colours if hue not in {other.colour for other in others}
    ] or variety.colours
    name, hue, pattern = (
        _one_word(dice, tuple(names)),
        _one_word(dice, tuple(hues)),
        _one_word(dice, variety.patterns),
    )
    mirrored = dice.chance(0.5) and variety.mirrored
    low, high = variety.scale
    motion = Motion(
        centre=(
            dice.between(-1.0, 1.0) * variety.place + 0.42 * side,
            dice.between(-1.0, 1.0) * variety.place,
        ),
        swing=(dice.between(-1.0, 1.0) * variety.swing, dice.between(-1.0, 1.0) * variety.swing * 0.6),
        turn=dice.between(-1.0, 1.0) * variety.turn / 2.0,
        turn_swing=dice.between(-1.0, 1.0) * variety.turn / 2.0,
        scale=dice.between(low, high) * (0.8 if side else 1.0),
        scale_swing=dice.between(-1.0, 1.0) * variety.scale_swing,
        bend=dice.between(-1.0, 1.0) * variety.bend,
        period=dice.between(3.0, 6.0),
        phase=dice.between(0.0, 1.0),
    )
    return Actor(name, hue, pattern, motion, mirrored)


@final
@dataclass(frozen=True)
class _CaptionWords:
    """What a caption says: objects with colour and pattern, background, style."""

    objects: tuple[tuple[str, str | None, str], ...]
    background: str | None
    style: str

    @classmethod
    def read(cls, caption: str) -> "_CaptionWords":
        text = " ".join(re.findall(r"[a-z]+", caption.lower().replace("watercolor", "watercolour")))
        style = next((style for style in STYLES[1:] if re.search(rf"\b{style}\b", text)), "none")
        objects: list[tuple[str, str | None, str]] = []
        colour, pattern, background = None, "plain", None
        for word in text.split():
            if word in COLOURS:
                colour = word
            elif word in PATTERNS:
                pattern = word
            elif word in BACKGROUNDS:
                background = word
            elif word in OBJECTS:
                objects.append((word, colour, pattern))
                colour, pattern = None, "plain"
        if not 1 <= len(objects) <= 2:
            raise RequestError(
                f"the caption names {len(objects)} objects of the world: {caption!r}",
                hint=f"name one or two of: {', '.join(OBJECTS)}",
            )
        return cls(tuple(objects), background, style)
