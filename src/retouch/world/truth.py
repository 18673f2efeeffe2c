"""A clip of the world with everything that is true about it, and the same clip truly edited.

Nothing here is estimated. Layers are what the renderer laid over one another; flow follows each layer's own
motion in closed form; an edited clip is the changed scene drawn again, so whatever the change does not
reach has the same bytes.

Flow has two channels, x then y, in pixels: what frame t shows at `p`, frame t + 1 shows at
`p + forward[t](p)`.
The style of the whole picture is fixed to the screen and does not follow the flow; layers are kept unstyled.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Literal, TypeAlias, final

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from retouch.errors import RequestError
from retouch.video import Video
from retouch.world.render import (
    FPS,
    Size,
    background_planes,
    compose_sheets,
    height_width,
    sheet_of,
    texture_coordinates,
    world_points,
)
from retouch.world.scene import BACKGROUNDS, COLOURS, OBJECTS, PATTERNS, STYLES, Actor, Scene
from retouch.world.styles import apply_style

PURE = 250
"""A pixel shows one layer alone where that layer's share is at least this, of 255."""

What: TypeAlias = Literal["colour", "pattern", "object", "background", "style"]

_WORDS: dict[What, tuple[str, ...]] = {
    "colour": COLOURS,
    "pattern": PATTERNS,
    "object": OBJECTS,
    "background": BACKGROUNDS,
    "style": STYLES,
}

Places: TypeAlias = tuple[Float64[np.ndarray, "h w"], Float64[np.ndarray, "h w"]]


@final
@dataclass(frozen=True)
class Change:
    """One word of a scene replaced by another: what it says, to what, and for which of the objects."""

    what: What
    to: str
    which: int = 0

    @classmethod
    def parse(cls, text: str) -> "Change":
        """Read `colour=blue`, `background=snow`, `1.object=fish`; `blue` alone will do, the word says what.

        The number says which object as the caption names them, from 0; without it the first is meant.

        Raises:
            RequestError: the text is no such change, or the word is not in the world's vocabulary.
        """
        name, equals, word = text.partition("=")
        word = " ".join((word if equals else name).lower().replace("_", " ").split())
        word = "watercolour" if word == "watercolor" else word
        number, dot, what = name.strip().lower().rpartition(".") if equals else ("", "", "")
        what = {"color": "colour"}.get(what, what)
        fitting = [key for key, words in _WORDS.items() if word in words and what in (key, "")]
        if not fitting or (dot and number not in ("0", "1")):
            words = _WORDS.get(what)  # type: ignore[call-overload]
            raise RequestError(
                f"no change of the world is meant by {text!r}",
                hint=f"write {what}= one of: {', '.join(words)}"
                if words
                else f"write one of {', '.join(_WORDS)}, then =, then a word, such as colour=blue",
            )
        return cls(fitting[0], word, int(number or 0))

    def of(self, scene: Scene) -> Scene:
        """Return the scene with the change made; motion, camera and everything else stay.

        Raises:
            RequestError: the scene has no such object.
        """
        if self.what == "background":
            return replace(scene, background=self.to)
        if self.what == "style":
            return replace(scene, style=self.to)
        if not 0 <= self.which < len(scene.actors):
            raise RequestError(
                f"the scene has no object {self.which}: {scene.caption}",
                hint=f"objects are numbered from 0 to {len(scene.actors) - 1}, as the caption names them",
            )
        actors = list(scene.actors)
        actors[self.which] = self._made(actors[self.which])
        return replace(scene, actors=tuple(actors))

    def _made(self, actor: Actor) -> Actor:
        if self.what == "colour":
            return replace(actor, colour=self.to)
        if self.what == "pattern":
            return replace(actor, pattern=self.to)
        return replace(actor, object=self.to)


@final
@dataclass(frozen=True, eq=False)
class ClipLayer:
    """One layer of a clip, unstyled: an object, or the background.

    `colour` counts where `alpha` is above 0. `coordinates` are the texture coordinates u (right) and v
    (down): on an object, from about -1 to 1 and the same for the same spot of it in every frame; on the
    background, places on its tile in world units.
    """

    name: str
    colour: UInt8[np.ndarray, "f 3 h w"]
    alpha: UInt8[np.ndarray, "f 1 h w"]
    coordinates: Float32[np.ndarray, "f 2 h w"]


@final
@dataclass(frozen=True, eq=False)
class Clip:
    """A drawn clip and the truth about it.

    `layers` are front to back: the objects as the caption names them, then the background. `shares` says how
    much of each pixel each layer decides, of 255.
    """

    scene: Scene
    video: Video
    layers: tuple[ClipLayer, ...]
    shares: UInt8[np.ndarray, "f layers h w"]

    @classmethod
    def of(cls, scene: Scene, frames: int = 16, size: Size = 128, fps: Fraction = FPS) -> "Clip":
        """Draw the first `frames` frames of a scene."""
        hw = height_width(size)
        drawn = [_draw_layers(scene, _frame_seconds(number, fps), hw) for number in range(frames)]
        video = Video(np.stack([frame for frame, _ in drawn]), fps)
        names = [actor.name for actor in scene.actors] + [scene.background]
        layers = tuple(
            ClipLayer(
                name, *(np.stack(parts) for parts in zip(*(sheets[k] for _, sheets in drawn), strict=True))
            )
            for k, name in enumerate(names)
        )
        return cls(scene, video, layers, _layer_shares([layer.alpha[:, 0] for layer in layers]))

    @property
    def caption(self) -> str:
        """What the clip shows, in words."""
        return self.scene.caption

    @property
    def masks(self) -> Bool[np.ndarray, "layers f 1 h w"]:
        """Where each layer decides the pixel, front to back; every pixel belongs to exactly one."""
        owner = self.owner
        return np.stack([(owner == k)[:, None] for k in range(len(self.layers))])

    @cached_property
    def owner(self) -> UInt8[np.ndarray, "f h w"]:
        """The number of the layer that decides each pixel."""
        owner: UInt8[np.ndarray, "f h w"] = self.shares.argmax(axis=1).astype(np.uint8)
        return owner

    @cached_property
    def forward(self) -> Float32[np.ndarray, "pairs 2 h w"]:
        """The flow from every frame to the next."""
        return self._flows(1)[0]

    @cached_property
    def forward_seen(self) -> Bool[np.ndarray, "pairs 1 h w"]:
        """Where what a frame shows is to be seen in the next: neither hidden nor out of the picture.

        Where two layers mix in one pixel, at the border of an object, there is no single motion: a pixel
        counts as seen only if it shows one layer alone, and so do the four pixels around the place it moves
        to.
        """
        return self._flows(1)[1]

    @cached_property
    def backward(self) -> Float32[np.ndarray, "pairs 2 h w"]:
        """The flow from every frame but the first to the one before: `backward[t]` from t + 1 to t."""
        return self._flows(-1)[0]

    @cached_property
    def backward_seen(self) -> Bool[np.ndarray, "pairs 1 h w"]:
        """Where what frame t + 1 shows was to be seen in frame t, as in `forward_seen`."""
        return self._flows(-1)[1]

    def flow(self, start: int, stop: int) -> tuple[Float32[np.ndarray, "2 h w"], Bool[np.ndarray, "1 h w"]]:
        """Return the flow from any frame to any other, and where what `start` shows is seen in `stop`."""
        h, w = hw = (self.video.height, self.video.width)
        owner, pure = self.owner, self.shares.max(axis=1) >= PURE
        before, after = _frame_seconds(start, self.video.fps), _frame_seconds(stop, self.video.fps)
        x, y = np.zeros(hw), np.zeros(hw)
        for k in range(len(self.layers)):
            actor = self.scene.actors[k] if k < len(self.scene.actors) else None
            moved = _follow_surface(self.scene, actor, before, after, hw)
            mine = owner[start] == k
            x[mine], y[mine] = moved[0][mine], moved[1][mine]
        seen = pure[start] & (x >= 0) & (x <= w - 1) & (y >= 0) & (y <= h - 1)
        left, top = np.floor(x), np.floor(y)
        for down in (top, np.ceil(y)):
            for across in (left, np.ceil(x)):
                row = np.clip(down, 0, h - 1).astype(np.int64)
                column = np.clip(across, 0, w - 1).astype(np.int64)
                seen &= pure[stop, row, column] & (owner[stop, row, column] == owner[start])
        flow = np.stack([x - np.arange(w)[None, :], y - np.arange(h)[:, None]]).astype(np.float32)
        return flow, seen[None]

    def _flows(
        self, way: Literal[1, -1]
    ) -> tuple[Float32[np.ndarray, "pairs 2 h w"], Bool[np.ndarray, "pairs 1 h w"]]:
        starts = range(len(self.video) - 1) if way == 1 else range(1, len(self.video))
        found = [self.flow(start, start + way) for start in starts]
        h, w = self.video.height, self.video.width
        if not found:
            return np.zeros((0, 2, h, w), np.float32), np.zeros((0, 1, h, w), np.bool_)
        return np.stack([flow for flow, _ in found]), np.stack([seen for _, seen in found])


def edited_clip(clip: Clip, *changes: Change) -> Clip:
    """Return the true edited clip: the same scene with the changes made, moving in the same way.

    Without a change of style, every pixel that no changed layer reaches has the same bytes as before.
    """
    scene = clip.scene
    for change in changes:
        scene = change.of(scene)
    return Clip.of(scene, len(clip.video), (clip.video.height, clip.video.width), clip.video.fps)


def reachable_pixels(before: Clip, after: Clip) -> Bool[np.ndarray, "f 1 h w"]:
    """Return where an edited clip may differ from the clip it was made of: where changed layers have any say.

    With a style of the whole picture that is everywhere, for a style looks at a pixel's surroundings too.
    """
    shape = before.layers[0].alpha.shape
    if before.scene.style != "none" or after.scene.style != "none":
        return np.ones(shape, np.bool_)
    where, uncovered = np.zeros(shape, np.bool_), np.ones(shape, np.bool_)
    for old, new in zip(before.layers, after.layers, strict=True):
        if old.name != new.name:
            where |= uncovered & ((old.alpha > 0) | (new.alpha > 0))
        else:
            uncovered &= old.alpha < 255
    return where


def _frame_seconds(number: int, fps: Fraction) -> float:
    return number * fps.denominator / fps.numerator


def _draw_layers(
    scene: Scene, t: float, hw: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "3 h w"], list[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    view = scene.camera.at(t)
    x, y = view.axes(hw)
    ground = background_planes(scene.background, scene.ground, view, hw)
    sheets = [sheet_of(actor, actor.motion.at(t), view, hw) for actor in scene.actors]
    layers = []
    for actor, sheet in zip(scene.actors, sheets, strict=True):
        spots = texture_coordinates(actor, actor.motion.at(t), x[None, :], y[:, None])
        shown = sheet.spread(hw) if sheet else (np.zeros((3, *hw), np.uint8), np.zeros((1, *hw), np.uint8))
        layers.append((*shown, np.stack(spots).astype(np.float32)))
    tile = np.broadcast_arrays((x + scene.ground[0])[None, :], (y + scene.ground[1])[:, None])
    layers.append((ground, np.full((1, *hw), 255, np.uint8), np.stack(tile).astype(np.float32)))
    return apply_style(compose_sheets(ground, sheets), scene.style), layers


def _layer_shares(alphas: list[UInt8[np.ndarray, "f h w"]]) -> UInt8[np.ndarray, "f layers h w"]:
    left = np.full(alphas[0].shape, 255, np.uint16)
    shares = []
    for alpha in alphas:
        share = (left * alpha + np.uint16(127)) // np.uint16(255)
        shares.append(share.astype(np.uint8))
        left = left - share
    return np.stack(shares, axis=1)


def _follow_surface(
    scene: Scene, actor: Actor | None, before: float, after: float, hw: tuple[int, int]
) -> Places:
    """Return where what a layer shows at every pixel at one time is at another; `None` for the background."""
    x, y = scene.camera.at(before).axes(hw)
    if actor is None:
        points = tuple(np.broadcast_arrays(x[None, :], y[:, None]))
    else:
        spots = texture_coordinates(actor, actor.motion.at(before), x[None, :], y[:, None])
        points = world_points(actor, actor.motion.at(after), *spots)
    return scene.camera.at(after).places(hw, points[0], points[1])
