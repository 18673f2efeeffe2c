"""The drawn objects: each a list of parts with signed distances, painted back to front.

Texture coordinates of an object: `u` to the right, `v` down, the object within about [-1, 1] on both,
whatever its place, turn, size or bend in the picture. Distances are negative inside. Nothing here knows
pixels but `paint_parts`, which is told their width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias, final

import numpy as np
from jaxtyping import Float

from retouch.world.exact import Plane, clamp_unit, cosine, sine

Distance: TypeAlias = Callable[[Plane, Plane], Plane]
Colour: TypeAlias = tuple[int, int, int]

REACH = 1.25
"""No object reaches farther from its own centre than this, outline included."""

OUTLINE = 0.055
"""Width of the dark line around a part."""

INK: Colour = (28, 26, 34)


@final
@dataclass(frozen=True)
class ShapePart:
    """One painted part of an object.

    A `colour` of `None` is the object's own, with its pattern; `line` is the width of the dark outline.
    `shade` below 1 darkens the object's own colour, above 1 lightens it.
    """

    distance: Distance
    colour: Colour | None = None
    shade: float = 1.0
    line: float = OUTLINE


def circle(x: float, y: float, radius: float) -> Distance:
    """Return a disc."""

    def distance(u: Plane, v: Plane) -> Plane:
        du, dv = u - x, v - y
        return np.sqrt(du * du + dv * dv) - radius

    return distance


def ellipse(x: float, y: float, wide: float, high: float) -> Distance:
    """Return an upright ellipse of half axes `wide` and `high`; the distance is exact at the border only."""

    def distance(u: Plane, v: Plane) -> Plane:
        du, dv = (u - x) / wide, (v - y) / high
        value = np.sqrt(du * du + dv * dv)
        slope = np.sqrt(du * du / (wide * wide) + dv * dv / (high * high))
        far: Plane = (value - 1) * value / np.maximum(slope, 1e-3)
        return far

    return distance


def rounded_rectangle(left: float, top: float, right: float, bottom: float, corner: float = 0.0) -> Distance:
    """Return a rectangle with rounded corners."""
    x, y = (left + right) / 2, (top + bottom) / 2
    wide, high = (right - left) / 2 - corner, (bottom - top) / 2 - corner

    def distance(u: Plane, v: Plane) -> Plane:
        du, dv = np.abs(u - x) - wide, np.abs(v - y) - high
        far: Plane = np.maximum(du, dv)
        if corner > 0:
            ou, ov = np.maximum(du, 0), np.maximum(dv, 0)
            far = np.sqrt(ou * ou + ov * ov) + np.minimum(far, 0) - corner
        return far

    return distance


def convex_polygon(*corners: tuple[float, float]) -> Distance:
    """Return a convex polygon; outside it keeps its sharp corners at every distance."""
    pairs = list(zip(corners, corners[1:] + corners[:1], strict=True))
    if sum(ax * by - bx * ay for (ax, ay), (bx, by) in pairs) < 0:
        pairs = [(b, a) for a, b in pairs]
    sides = []
    for (ax, ay), (bx, by) in pairs:
        length = float(np.sqrt((bx - ax) * (bx - ax) + (by - ay) * (by - ay)))
        nx, ny = (by - ay) / length, -(bx - ax) / length
        sides.append((nx, ny, nx * ax + ny * ay))

    def distance(u: Plane, v: Plane) -> Plane:
        farthest = sides[0][0] * u + sides[0][1] * v - sides[0][2]
        for nx, ny, offset in sides[1:]:
            farthest = np.maximum(farthest, nx * u + ny * v - offset)
        return farthest

    return distance


def round_line(ax: float, ay: float, bx: float, by: float, radius: float) -> Distance:
    """Return a straight line with round ends."""
    dx, dy = bx - ax, by - ay
    square = dx * dx + dy * dy

    def distance(u: Plane, v: Plane) -> Plane:
        pu, pv = u - ax, v - ay
        along = clamp_unit((pu * dx + pv * dy) / square)
        du, dv = pu - along * dx, pv - along * dy
        return np.sqrt(du * du + dv * dv) - radius

    return distance


def shape_border(shape: Distance, half: float) -> Distance:
    """Return the border of a shape, `half` wide to both sides."""
    return lambda u, v: np.abs(shape(u, v)) - half


def union_of(*shapes: Distance) -> Distance:
    """Return what lies in any of the shapes."""

    def distance(u: Plane, v: Plane) -> Plane:
        nearest = shapes[0](u, v)
        for shape in shapes[1:]:
            nearest = np.minimum(nearest, shape(u, v))
        return nearest

    return distance


def cut_out(shape: Distance, hole: Distance) -> Distance:
    """Return what lies in `shape` and not in `hole`."""
    return lambda u, v: np.maximum(shape(u, v), -hole(u, v))


def intersection_of(shape: Distance, frame: Distance) -> Distance:
    """Return what lies in both."""
    return lambda u, v: np.maximum(shape(u, v), frame(u, v))


def pointed_star(outer: float, inner: float, y: float = 0.0) -> Distance:
    """Return a five-pointed star: the plane is folded into one tenth, where its border is one line."""
    nu, nv = cosine(0.1), sine(0.1)  # across the mirror between a point and the notch beside it
    ix, iy = inner * sine(0.1), -inner * cosine(0.1)
    length = float(np.sqrt(ix * ix + (iy + outer) * (iy + outer)))
    sx, sy = (iy + outer) / length, -ix / length  # across the border

    def distance(u: Plane, v: Plane) -> Plane:
        fu, fv = np.abs(u), v - y
        for _ in range(2):
            across = np.maximum(nu * fu + nv * fv, 0)
            fu, fv = np.abs(fu - 2 * nu * across), fv - 2 * nv * across
        far: Plane = sx * fu + sy * (fv + outer)
        return far

    return distance


GLASS: Colour = (178, 222, 240)
WHITE: Colour = (250, 250, 246)
DARK: Colour = (52, 50, 58)
GREY: Colour = (176, 178, 184)
BEAK: Colour = (250, 160, 30)
WOODEN: Colour = (120, 78, 44)
LAMP: Colour = (255, 232, 130)


def _ball_parts() -> tuple[ShapePart, ...]:
    body = circle(0.0, 0.0, 0.86)
    seams = union_of(circle(-1.24, 0.0, 0.8), circle(1.24, 0.0, 0.8))
    return (
        ShapePart(body),
        ShapePart(intersection_of(seams, circle(0.0, 0.0, 0.83)), WHITE, line=0.04),
        ShapePart(ellipse(-0.16, -0.5, 0.2, 0.11), WHITE, line=0.0),
    )


def _box_parts() -> tuple[ShapePart, ...]:
    return (
        ShapePart(convex_polygon((-0.86, -0.36), (-0.44, -0.8), (0.86, -0.8), (0.5, -0.36)), shade=1.35),
        ShapePart(convex_polygon((0.5, -0.36), (0.86, -0.8), (0.86, 0.42), (0.5, 0.84)), shade=0.55),
        ShapePart(rounded_rectangle(-0.86, -0.36, 0.5, 0.84)),
    )


def _star_parts() -> tuple[ShapePart, ...]:
    return (ShapePart(pointed_star(1.02, 0.45, 0.06)),)


def _heart_parts() -> tuple[ShapePart, ...]:
    # Two discs and the corner between their tangents from the tip.
    discs = union_of(circle(-0.43, -0.3, 0.47), circle(0.43, -0.3, 0.47))
    corner = convex_polygon((0.0, -0.32), (0.782, 0.0138), (0.0, 0.9), (-0.782, 0.0138))
    shine = ellipse(-0.48, -0.42, 0.13, 0.1)
    return (ShapePart(union_of(discs, corner)), ShapePart(shine, WHITE, line=0.0))


def _car_parts() -> tuple[ShapePart, ...]:
    cabin = convex_polygon((-0.66, -0.02), (-0.42, -0.5), (0.22, -0.5), (0.56, -0.02))
    rear = convex_polygon((-0.51, -0.05), (-0.34, -0.39), (-0.1, -0.39), (-0.1, -0.05))
    front = convex_polygon((0.02, -0.05), (0.02, -0.39), (0.17, -0.39), (0.4, -0.05))
    wheels = union_of(circle(-0.52, 0.42, 0.25), circle(0.52, 0.42, 0.25))
    hubs = union_of(circle(-0.52, 0.42, 0.11), circle(0.52, 0.42, 0.11))
    return (
        ShapePart(cabin),
        ShapePart(union_of(rear, front), GLASS, line=0.035),
        ShapePart(rounded_rectangle(-0.96, -0.08, 0.98, 0.42, 0.14)),
        ShapePart(circle(0.86, 0.1, 0.09), LAMP, line=0.03),
        ShapePart(wheels, DARK, line=0.03),
        ShapePart(hubs, GREY, line=0.0),
    )


def _fish_parts() -> tuple[ShapePart, ...]:
    upper = convex_polygon((-0.36, 0.06), (-1.0, -0.52), (-0.78, 0.06))
    lower = convex_polygon((-0.36, -0.06), (-0.78, -0.06), (-1.0, 0.52))
    tail = union_of(upper, lower)
    fins = union_of(
        convex_polygon((-0.18, -0.3), (0.02, -0.76), (0.42, -0.36)),
        convex_polygon((-0.02, 0.36), (0.3, 0.36), (0.0, 0.68)),
    )
    gill = intersection_of(shape_border(circle(0.2, 0.0, 0.28), 0.03), rounded_rectangle(0.3, -0.3, 0.6, 0.3))
    return (
        ShapePart(tail, shade=0.7),
        ShapePart(fins, shade=0.7),
        ShapePart(ellipse(0.18, 0.0, 0.74, 0.46)),
        ShapePart(gill, INK, line=0.0),
        ShapePart(circle(0.62, -0.12, 0.12), WHITE, line=0.03),
        ShapePart(circle(0.65, -0.12, 0.055), INK, line=0.0),
    )


def _cup_parts() -> tuple[ShapePart, ...]:
    body = intersection_of(
        convex_polygon((-0.74, -0.62), (0.44, -0.62), (0.34, 0.84), (-0.64, 0.84)),
        rounded_rectangle(-0.9, -1.0, 0.6, 0.84, 0.2),
    )
    return (
        ShapePart(shape_border(ellipse(0.46, 0.06, 0.36, 0.38), 0.085), shade=0.8),
        ShapePart(body),
        ShapePart(ellipse(-0.15, -0.62, 0.6, 0.17), shade=1.3),
        ShapePart(ellipse(-0.15, -0.6, 0.47, 0.1), (92, 56, 34), line=0.02),
    )


def _house_parts() -> tuple[ShapePart, ...]:
    panes = rounded_rectangle(-0.5, 0.16, -0.12, 0.5)
    return (
        ShapePart(rounded_rectangle(0.34, -0.84, 0.58, -0.2), (150, 82, 70)),
        ShapePart(rounded_rectangle(-0.72, -0.12, 0.72, 0.88)),
        ShapePart(convex_polygon((0.0, -0.92), (1.0, -0.08), (-1.0, -0.08)), (124, 66, 52)),
        ShapePart(rounded_rectangle(0.12, 0.26, 0.5, 0.88), WOODEN, line=0.04),
        ShapePart(circle(0.41, 0.58, 0.04), LAMP, line=0.0),
        ShapePart(panes, LAMP, line=0.04),
        ShapePart(
            union_of(
                rounded_rectangle(-0.325, 0.16, -0.295, 0.5), rounded_rectangle(-0.5, 0.315, -0.12, 0.345)
            ),
            INK,
            line=0.0,
        ),
    )


def _boat_parts() -> tuple[ShapePart, ...]:
    return (
        ShapePart(rounded_rectangle(-0.09, -1.0, 0.0, 0.4), WOODEN, line=0.03),
        ShapePart(convex_polygon((0.06, -0.94), (0.82, 0.2), (0.06, 0.2)), WHITE),
        ShapePart(convex_polygon((-0.15, -0.8), (-0.15, 0.2), (-0.74, 0.2)), shade=1.3),
        ShapePart(convex_polygon((-1.0, 0.32), (1.0, 0.32), (0.68, 0.84), (-0.62, 0.84))),
    )


def _bird_parts() -> tuple[ShapePart, ...]:
    tail = convex_polygon((-0.42, 0.0), (-1.02, -0.24), (-0.96, 0.14), (-0.4, 0.3))
    legs = union_of(round_line(-0.1, 0.5, -0.1, 0.88, 0.035), round_line(0.14, 0.5, 0.14, 0.88, 0.035))
    feet = union_of(round_line(-0.1, 0.88, 0.04, 0.88, 0.035), round_line(0.14, 0.88, 0.28, 0.88, 0.035))
    wing = intersection_of(
        ellipse(-0.1, 0.02, 0.42, 0.3), convex_polygon((-0.7, -0.12), (0.6, -0.02), (0.6, 0.6), (-0.7, 0.6))
    )
    return (
        ShapePart(union_of(legs, feet), BEAK, line=0.035),
        ShapePart(tail, shade=0.7),
        ShapePart(convex_polygon((0.68, -0.56), (1.04, -0.36), (0.66, -0.22)), BEAK),
        ShapePart(union_of(ellipse(0.02, 0.14, 0.58, 0.44), circle(0.42, -0.36, 0.37))),
        ShapePart(wing, shade=0.6),
        ShapePart(circle(0.5, -0.44, 0.115), WHITE, line=0.03),
        ShapePart(circle(0.53, -0.44, 0.055), INK, line=0.0),
    )


SHAPES: Mapping[str, tuple[ShapePart, ...]] = MappingProxyType(
    {
        "ball": _ball_parts(),
        "box": _box_parts(),
        "star": _star_parts(),
        "heart": _heart_parts(),
        "car": _car_parts(),
        "fish": _fish_parts(),
        "cup": _cup_parts(),
        "house": _house_parts(),
        "boat": _boat_parts(),
        "bird": _bird_parts(),
    }
)
"""The parts of every object, back to front."""


def paint_parts(
    parts: tuple[ShapePart, ...], u: Plane, v: Plane, width: float, own: Float[np.ndarray, "3 h w"]
) -> tuple[Float[np.ndarray, "3 h w"], Plane]:
    """Return colour and alpha, both in [0, 1], of an object seen at texture coordinates `u`, `v`.

    A pixel is `width` wide in texture coordinates; `own` is the object's colour with its pattern, everywhere.
    """
    colour = np.empty_like(own)
    for channel, level in zip(colour, INK, strict=True):
        channel[...] = level / 255
    alpha = np.zeros_like(u)
    for part in parts:
        distance = part.distance(u, v)
        if part.line:
            drawn = clamp_unit(0.5 - (distance - part.line) / width)
            alpha = np.maximum(alpha, drawn)
            for channel, level in zip(colour, INK, strict=True):
                channel += drawn * (level / 255 - channel)
        filled = clamp_unit(0.5 - distance / width)
        alpha = np.maximum(alpha, filled)
        for channel, mine, level in zip(colour, own, part.colour or INK, strict=True):
            if part.colour is not None:
                channel += filled * (level / 255 - channel)
            elif part.shade > 1:
                channel += filled * (mine + (1 - mine) * (part.shade - 1) - channel)
            else:
                channel += filled * (mine * part.shade - channel)
    return colour, alpha
