"""Draws scenes: one picture at a moment, or every frame of a clip.

A frame is made of layers, each a colour and an alpha in bytes: the background, then the actors from the
last named to the first. They are laid over one another in whole numbers, so a frame is exactly what its
layers say, and a layer that did not change leaves the same bytes. The style of the whole picture comes
last.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias, final

import numpy as np
from jaxtyping import Float, UInt8

from retouch.video import Video
from retouch.world.exact import Plane, blend_over, cosine, sine, to_bytes
from retouch.world.scene import Actor, ActorPose, CameraView, Scene
from retouch.world.shapes import REACH, SHAPES, paint_parts
from retouch.world.styles import apply_style
from retouch.world.textures import looked_up, second_share

Size: TypeAlias = int | tuple[int, int]
"""Height and width in pixels; a single number for a square."""

FPS = Fraction(12)
"""Frames a second, unless said otherwise."""

SOFTNESS = 1.75
"""How many pixels wide the soft border of a painted part is: wide enough to be moved by fractions of one."""

PAINT: dict[str, tuple[int, int, int]] = {
    "red": (216, 36, 40),
    "orange": (246, 132, 18),
    "yellow": (248, 216, 36),
    "green": (36, 160, 68),
    "blue": (38, 84, 216),
    "purple": (132, 56, 186),
    "pink": (248, 132, 188),
    "white": (240, 240, 238),
}
_SECOND_PALE = (252, 248, 236)
_SECOND_DARK = {"white": (84, 86, 98), "yellow": (112, 70, 20)}


@final
@dataclass(frozen=True)
class LayerSheet:
    """A layer's colour and alpha within a window of the frame; outside the window it is clear."""

    top: int
    left: int
    colour: UInt8[np.ndarray, "3 h w"]
    alpha: UInt8[np.ndarray, "h w"]

    def spread(self, hw: tuple[int, int]) -> tuple[UInt8[np.ndarray, "3 h w"], UInt8[np.ndarray, "1 h w"]]:
        """Return colour and alpha over a whole frame."""
        colour, alpha = np.zeros((3, *hw), np.uint8), np.zeros((1, *hw), np.uint8)
        colour[self._window], alpha[self._window] = self.colour, self.alpha
        return colour, alpha

    def lay_over(self, frame: UInt8[np.ndarray, "3 h w"]) -> None:
        """Lay the sheet over a frame, in place."""
        spot = frame[self._window]
        spot[...] = blend_over(self.colour, self.alpha, spot)

    @property
    def _window(self) -> tuple[slice, slice, slice]:
        h, w = self.alpha.shape
        return slice(None), slice(self.top, self.top + h), slice(self.left, self.left + w)


def height_width(size: Size) -> tuple[int, int]:
    """`size` as height and width."""
    return (size, size) if isinstance(size, int) else size


def picture(scene: Scene, t: float = 0.0, size: Size = 64) -> UInt8[np.ndarray, "h w 3"]:
    """Return the scene at `t` seconds, as pictures are kept in files: rows, columns, red green blue."""
    return np.ascontiguousarray(planes(scene, t, size).transpose(1, 2, 0))


def planes(scene: Scene, t: float = 0.0, size: Size = 64) -> UInt8[np.ndarray, "3 h w"]:
    """Return the scene at `t` seconds, as frames of a video are kept: red, green and blue planes."""
    hw, view = height_width(size), scene.camera.at(t)
    sheets = [sheet_of(actor, actor.motion.at(t), view, hw) for actor in scene.actors]
    return apply_style(
        compose_sheets(background_planes(scene.background, scene.ground, view, hw), sheets), scene.style
    )


def compose_sheets(
    background: UInt8[np.ndarray, "3 h w"], sheets: Sequence[LayerSheet | None]
) -> UInt8[np.ndarray, "3 h w"]:
    """Return the background with sheets laid over it, the first in front."""
    frame = background.copy()
    for sheet in reversed(sheets):
        if sheet is not None:
            sheet.lay_over(frame)
    return frame


def film(scene: Scene, frames: int, size: Size = 128, fps: Fraction = FPS) -> Video:
    """Return the first `frames` frames of the scene as a clip, without the truth about it."""
    h, w = height_width(size)
    clip = np.empty((frames, 3, h, w), np.uint8)
    for number in range(frames):
        clip[number] = planes(scene, number / fps.numerator * fps.denominator, (h, w))
    return Video(clip, fps)


def background_planes(
    background: str, ground: tuple[float, float], view: CameraView, hw: tuple[int, int]
) -> UInt8[np.ndarray, "3 h w"]:
    """Return a background, unstyled; `ground` is the place of its tile at the world's origin."""
    x, y = view.axes(hw)
    pixel = 2 / (min(hw) * view.zoom)
    levels = looked_up(background, x + ground[0], y + ground[1], pixel)
    return (levels + np.float32(0.5)).astype(np.uint8)


def texture_coordinates(
    actor: Actor, pose: ActorPose, x: Float[np.ndarray, "*x"], y: Float[np.ndarray, "*y"]
) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Return where on the actor the world points at columns `x` and rows `y` lie."""
    c, s = cosine(pose.turn) / pose.scale, sine(pose.turn) / pose.scale
    dx, dy = x - pose.x, y - pose.y
    u, v = c * dx + s * dy, c * dy - s * dx
    v = v - pose.bend * (u * u - 1 / 3)
    return (-u if actor.mirrored else u), v


def world_points(
    actor: Actor, pose: ActorPose, u: Float[np.ndarray, "h w"], v: Float[np.ndarray, "h w"]
) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Return where in the world points of the actor lie: `texture_coordinates` undone."""
    c, s = cosine(pose.turn) * pose.scale, sine(pose.turn) * pose.scale
    u = -u if actor.mirrored else u
    v = v + pose.bend * (u * u - 1 / 3)
    return pose.x + (c * u - s * v), pose.y + (s * u + c * v)


def sheet_of(actor: Actor, pose: ActorPose, view: CameraView, hw: tuple[int, int]) -> LayerSheet | None:
    """Return what an actor adds to the frame; `None` when it is out of sight."""
    x, y = view.axes(hw)
    reach = (REACH + 0.1) * pose.scale
    columns = np.flatnonzero(np.abs(x - pose.x) <= reach)
    rows = np.flatnonzero(np.abs(y - pose.y) <= reach)
    if len(columns) == 0 or len(rows) == 0:
        return None
    u, v = texture_coordinates(
        actor,
        pose,
        x[columns[0] : columns[-1] + 1].astype(np.float32)[None, :],
        y[rows[0] : rows[-1] + 1].astype(np.float32)[:, None],
    )
    width = SOFTNESS * 2 / (min(hw) * view.zoom * pose.scale)
    colour, alpha = paint_actor(actor, u, v, width)
    return LayerSheet(int(rows[0]), int(columns[0]), to_bytes(colour), to_bytes(alpha))


def paint_actor(actor: Actor, u: Plane, v: Plane, width: float) -> tuple[Float[np.ndarray, "3 h w"], Plane]:
    """Return colour and alpha in [0, 1] of an actor at texture coordinates; `width` is a pixel's."""
    first = PAINT[actor.colour]
    second = _SECOND_DARK.get(actor.colour, _SECOND_PALE)
    share = second_share(actor.pattern, u, v, width)
    own = np.empty((3, *u.shape), np.float32)
    for channel, low, high in zip(own, first, second, strict=True):
        channel[...] = np.float32(low / 255)
        if share is not None:
            channel += share * np.float32((high - low) / 255)
    return paint_parts(SHAPES[actor.object], u, v, width, own)
