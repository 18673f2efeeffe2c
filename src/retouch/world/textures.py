"""The procedural textures: one tile for each background, and the patterns that objects wear.

A background is a square tile that repeats without a seam, drawn once per run from fixed random streams and
kept as a ladder of ever smaller copies in bytes; a picture looks it up at the size it needs. The tile spans
`SPAN` world units, where the shorter side of an unmoved picture spans 2.
"""

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from retouch.world.exact import Plane, clamp_unit, random_uniform, sine_waves, smooth_step, to_bytes

SPAN = 4.0
"""World units that one tile spans."""

TILE = 1024
"""Texels across a tile at its finest."""

_STREAM = 1_000_003
"""Keeps the random streams of textures apart from those of scenes."""

RGB: TypeAlias = tuple[int, int, int]


def lattice_noise(cells_down: int, cells_across: int, key: int, size: int = TILE) -> Plane:
    """Return noise in [0, 1] that repeats over the tile: random values on a lattice, blended between."""
    values = random_uniform(cells_down * cells_across, key, _STREAM).astype(np.float32)
    values = values.reshape(cells_down, cells_across)
    values = _stretch_values(values, size)  # down
    return np.ascontiguousarray(_stretch_values(np.ascontiguousarray(values.T), size).T)


def _stretch_values(values: Float[np.ndarray, "v u"], size: int) -> Float[np.ndarray, "h u"]:
    cells = values.shape[0]
    place = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(cells / size)
    low = np.floor(place).astype(np.int64)
    share = smooth_step(place - low.astype(np.float32))[:, None]
    below, above = values[low % cells], values[(low + 1) % cells]
    between: Float[np.ndarray, "h u"] = below + share * (above - below)
    return between


def cloud_noise(cells: int, key: int, octaves: int = 3, *, wide: int = 1, high: int = 1) -> Plane:
    """Return noise of several sizes summed, in [0, 1]; `wide` and `high` stretch its grains."""
    total: Plane = np.zeros((TILE, TILE), np.float32)
    weight, sum_of_weights = 1.0, 0.0
    for octave in range(octaves):
        n = cells << octave
        total = total + np.float32(weight) * lattice_noise(
            max(n // high, 1), max(n // wide, 1), key * 16 + octave
        )
        sum_of_weights += weight
        weight /= 2
    return total / np.float32(sum_of_weights)


def mix_colours(share: Plane, low: RGB, high: RGB) -> Float[np.ndarray, "3 h w"]:
    """Return the colour that lies `share` of the way from `low` to `high`, in [0, 1]."""
    s = clamp_unit(share)
    return np.stack(
        [np.float32(a / 255) + s * np.float32((b - a) / 255) for a, b in zip(low, high, strict=True)]
    )


def lay_colour(picture: Float[np.ndarray, "3 h w"], share: Plane, colour: RGB) -> None:
    """Blend a colour into a picture in place."""
    s = clamp_unit(share)
    for channel, level in zip(picture, colour, strict=True):
        channel += s * (np.float32(level / 255) - channel)


Stamp: TypeAlias = Callable[[Plane, Plane, int], tuple[Plane, RGB]]


def scatter_stamps(
    picture: Float[np.ndarray, "3 h w"], count: int, key: int, reach: int, stamp: Stamp
) -> None:
    """Stamp `count` small drawings at random places, in place, wrapping round the tile's border.

    `stamp` answers share and colour for distances in texels to the right of and below a place, and the
    place's number.
    """
    places = random_uniform(2 * count, key, _STREAM + 1).reshape(count, 2)
    steps = np.arange(-reach, reach + 1)
    for number, (down, across) in enumerate(places * TILE):
        rows, columns = (int(down) + steps) % TILE, (int(across) + steps) % TILE
        y = (steps - (down - int(down))).astype(np.float32)[:, None] + np.zeros((1, len(steps)), np.float32)
        x = (steps - (across - int(across))).astype(np.float32)[None, :] + np.zeros(
            (len(steps), 1), np.float32
        )
        share, colour = stamp(x, y, number)
        spot = picture[:, rows[:, None], columns[None, :]]
        lay_colour(spot, share, colour)
        picture[:, rows[:, None], columns[None, :]] = spot


def tile_ramp() -> Plane:
    """0 at the left border of the tile to 1 at the right."""
    line = (np.arange(TILE, dtype=np.float32) + np.float32(0.5)) / np.float32(TILE)
    return np.broadcast_to(line, (TILE, TILE))


def soft_border(distance: Plane, soft: float = 1.5) -> Plane:
    """1 inside (distance in texels below 0), 0 outside, with a soft border."""
    return clamp_unit(np.float32(0.5) - distance / np.float32(soft))


def _grass_blade(x: Plane, y: Plane, number: int) -> tuple[Plane, RGB]:
    lean = ((number * 37) % 17 - 8) / 22
    high = 44 + (number * 13) % 26
    along = (y + high / 2) / high  # 0 at the tip
    middle = lean * (1 - along) * (1 - along) * high
    half = 8.0 * clamp_unit(along)
    colour = ((44, 112, 36), (126, 192, 66), (64, 142, 44), (160, 214, 84))[number % 4]
    return soft_border(np.maximum(np.abs(x - middle) - half, np.abs(y) - high / 2), 2.5), colour


def _grass_tile() -> Float[np.ndarray, "3 h w"]:
    picture = mix_colours(cloud_noise(8, 1), (58, 128, 40), (112, 176, 60))
    scatter_stamps(picture, 620, 1, 44, _grass_blade)
    return picture


def _sand_tile() -> Float[np.ndarray, "3 h w"]:
    warp = cloud_noise(4, 2, 2)
    ripples = sine_waves(tile_ramp().T * 14 + warp * np.float32(2.2)) * np.float32(0.5) + np.float32(0.5)
    picture = mix_colours(
        ripples * np.float32(0.75) + cloud_noise(16, 3, 2) * np.float32(0.3), (206, 166, 104), (244, 218, 160)
    )

    def grain(x: Plane, y: Plane, number: int) -> tuple[Plane, RGB]:
        return soft_border(np.sqrt(x * x + y * y) - 6, 3.0), (
            (150, 112, 66),
            (255, 240, 200),
            (176, 130, 84),
        )[number % 3]

    scatter_stamps(picture, 420, 2, 10, grain)
    return picture


def _water_tile() -> Float[np.ndarray, "3 h w"]:
    picture = mix_colours(cloud_noise(6, 4, 2, wide=2), (18, 104, 158), (34, 140, 190))
    warp = lattice_noise(8, 8, 77)
    for row, (waves_across, phase) in enumerate(((16, 0.0), (16, 0.5))):
        y = tile_ramp().T * 16 + np.float32(row * 0.5)
        swell = sine_waves(
            tile_ramp() * waves_across + np.float32(phase) + np.floor(y) * np.float32(0.5)
        ) * np.float32(0.12)
        inside = y - np.floor(y) - np.float32(0.5) + swell
        share = soft_border((np.abs(inside) - np.float32(0.06)) * np.float32(TILE / 16), 4.0) * clamp_unit(
            warp * 3 - np.float32(0.9)
        )
        if row == 0:
            lay_colour(picture, share, (170, 226, 240))
        else:
            lay_colour(picture, share * np.float32(0.7), (8, 72, 124))
    return picture


def _sky_tile() -> Float[np.ndarray, "3 h w"]:
    picture = mix_colours(cloud_noise(4, 5, 2), (112, 184, 244), (146, 206, 250))

    def cloud(x: Plane, y: Plane, number: int) -> tuple[Plane, RGB]:
        size = 0.8 + 0.5 * ((number * 7) % 5) / 4
        x, y = x / np.float32(size), y / np.float32(size)
        puffs = ((-44, 4, 26), (-16, -16, 36), (22, -8, 32), (50, 6, 22))
        nearest = np.full_like(x, 999)
        for px, py, radius in puffs:
            nearest = np.minimum(nearest, np.sqrt((x - px) * (x - px) + (y - py) * (y - py)) - radius)
        return soft_border(np.maximum(nearest, y - 18), 5.0), (252, 253, 255)

    scatter_stamps(picture, 16, 5, 110, cloud)
    return picture


def _brick_tile() -> Float[np.ndarray, "3 h w"]:
    across, down = 8, 16
    y = tile_ramp().T * down
    row = np.floor(y)
    x = tile_ramp() * across + (row - 2 * np.floor(row / 2)) * np.float32(0.5)
    column = np.floor(x) % across
    kind = ((row * 5 + column * 3 + row * column) % 7) / np.float32(6)
    picture = mix_colours(
        kind * np.float32(0.7) + cloud_noise(32, 6, 2) * np.float32(0.4), (150, 60, 44), (206, 102, 74)
    )
    fx, fy = np.abs(x - np.floor(x) - np.float32(0.5)), np.abs(y - np.floor(y) - np.float32(0.5))
    gap = np.minimum((np.float32(0.5) - fx) * (TILE / across), (np.float32(0.5) - fy) * (TILE / down))
    lay_colour(picture, soft_border(gap - 6, 2.0), (218, 206, 190))
    return picture


def _snow_tile() -> Float[np.ndarray, "3 h w"]:
    picture = mix_colours(smooth_step(cloud_noise(4, 7, 2, wide=2)), (206, 222, 240), (248, 251, 255))

    def flake(x: Plane, y: Plane, number: int) -> tuple[Plane, RGB]:
        long, half = (40.0, 3.6) if number % 2 else (28.0, 3.0)
        arms = np.full_like(x, 999)
        for ax, ay in ((0.0, 1.0), (0.8660254, 0.5), (0.8660254, -0.5)):
            along, across = (
                np.abs(x * np.float32(ax) + y * np.float32(ay)),
                np.abs(y * np.float32(ax) - x * np.float32(ay)),
            )
            arms = np.minimum(arms, np.maximum(across - half, along - long))
            barb = np.abs(along - np.float32(0.62 * long) - across)
            arms = np.minimum(arms, np.maximum(barb - half, across - np.float32(0.32 * long)))
        return soft_border(arms, 2.0), (128, 172, 222)

    scatter_stamps(picture, 52, 7, 46, flake)
    return picture


def _wood_tile() -> Float[np.ndarray, "3 h w"]:
    down = 8
    y = tile_ramp().T * down
    plank = np.floor(y)
    grain = lattice_noise(64, 4, 8) * np.float32(0.6) + lattice_noise(160, 6, 9) * np.float32(0.4)
    tone = ((plank * 5) % 8) / np.float32(7)
    picture = mix_colours(
        grain * np.float32(0.75) + tone * np.float32(0.35) - np.float32(0.05), (112, 68, 34), (196, 138, 82)
    )

    def knot(x: Plane, y: Plane, _: int) -> tuple[Plane, RGB]:
        far = np.sqrt(x * x / 4 + y * y)
        rings = (
            soft_border(np.abs(far - 22) - 3, 3.0)
            + soft_border(np.abs(far - 12) - 3, 3.0)
            + soft_border(far - 4, 3.0)
        )
        return clamp_unit(rings), (84, 48, 24)

    scatter_stamps(picture, 12, 8, 56, knot)
    gap = (np.float32(0.5) - np.abs(y - plank - np.float32(0.5))) * (TILE / down)
    seam = tile_ramp() * 2 + (plank * 3 % 4) * np.float32(0.25)
    joint = (np.float32(0.5) - np.abs(seam - np.floor(seam) - np.float32(0.5))) * (TILE / 2)
    lay_colour(picture, soft_border(np.minimum(gap, joint) - 4, 2.0), (58, 32, 16))
    return picture


def _night_tile() -> Float[np.ndarray, "3 h w"]:
    picture = mix_colours(cloud_noise(4, 10, 2), (10, 12, 44), (26, 26, 78))

    def star(x: Plane, y: Plane, number: int) -> tuple[Plane, RGB]:
        far = np.sqrt(x * x + y * y)
        if number % 3:
            return soft_border(far - 5, 4.0), (240, 240, 220)
        ray = np.minimum(np.abs(x) * 5 + np.abs(y), np.abs(y) * 5 + np.abs(x))
        return soft_border(np.minimum(ray - 24, far - 6), 4.0), (255, 250, 200)

    def moon(x: Plane, y: Plane, _: int) -> tuple[Plane, RGB]:
        bite = np.sqrt((x - 26) * (x - 26) + (y + 12) * (y + 12)) - 52
        return soft_border(np.maximum(np.sqrt(x * x + y * y) - 62, -bite), 3.0), (250, 236, 170)

    scatter_stamps(picture, 130, 11, 26, star)
    scatter_stamps(picture, 3, 13, 70, moon)
    return picture


BACKGROUND_TILES: Mapping[str, Callable[[], Float[np.ndarray, "3 h w"]]] = MappingProxyType(
    {
        "grass": _grass_tile,
        "sand": _sand_tile,
        "water": _water_tile,
        "sky": _sky_tile,
        "bricks": _brick_tile,
        "snow": _snow_tile,
        "wood": _wood_tile,
        "night": _night_tile,
    }
)
"""What draws the tile of every background, in [0, 1]."""


@cache
def tile_ladder(background: str) -> tuple[UInt8[np.ndarray, "3 h w"], ...]:
    """Return the tile of a background and its halvings down to 8 texels."""
    levels = [np.ascontiguousarray(to_bytes(BACKGROUND_TILES[background]()))]
    while levels[-1].shape[1] > 8:
        fine = levels[-1].astype(np.uint16)
        total = fine[:, ::2, ::2] + fine[:, 1::2, ::2] + fine[:, ::2, 1::2] + fine[:, 1::2, 1::2]
        levels.append(((total + 2) >> 2).astype(np.uint8))
    return tuple(levels)


def looked_up(
    background: str, x: Float[np.ndarray, " w"], y: Float[np.ndarray, " h"], width: float
) -> Float[np.ndarray, "3 h w"]:
    """Background levels 0 to 255 at the crossings of world columns `x` and rows `y`.

    A pixel is `width` world units wide; finer detail is left out.
    """
    levels = tile_ladder(background)
    texels = width * (TILE / SPAN)
    rung = 0
    while texels > 2 and rung < len(levels) - 2:
        texels /= 2
        rung += 1
    blend = np.float32(min(max(texels - 1, 0.0), 1.0))
    near = _sample_level(levels[rung], x, y)
    if blend == 0:
        return near
    both: Float[np.ndarray, "3 h w"] = near + blend * (_sample_level(levels[rung + 1], x, y) - near)
    return both


def _sample_level(
    level: UInt8[np.ndarray, "3 v u"], x: Float[np.ndarray, " w"], y: Float[np.ndarray, " h"]
) -> Float[np.ndarray, "3 h w"]:
    size = level.shape[1]
    (left, right, across), (top, bottom, down) = _wrapped_neighbours(x, size), _wrapped_neighbours(y, size)
    rows = level[:, top].astype(np.float32)
    rows = rows + down[:, None] * (level[:, bottom].astype(np.float32) - rows)  # 3 h u
    near = rows[:, :, left]
    both: Float[np.ndarray, "3 h w"] = near + across * (rows[:, :, right] - near)
    return both


def _wrapped_neighbours(
    place: Float[np.ndarray, " n"], size: int
) -> tuple[Shaped[np.ndarray, " n"], Shaped[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    texel = place * (size / SPAN) - 0.5
    low = np.floor(texel)
    index = low.astype(np.int64)
    return index % size, (index + 1) % size, (texel - low).astype(np.float32)


PATTERN_PERIOD = 0.42


def second_share(pattern: str, u: Plane, v: Plane, width: float) -> Plane | None:
    """Return where an object's second colour shows, in [0, 1]; `None` for a plain object."""
    period = np.float32(PATTERN_PERIOD)
    if pattern == "plain":
        return None
    if pattern == "striped":
        return clamp_unit(
            np.float32(0.5)
            + (np.abs(_centred_phase(u, period)) - np.float32(0.29) * period) / np.float32(width)
        )
    if pattern == "dotted":
        turned = (u + v, u - v)
        a, b = (_centred_phase(place, np.float32(1.35) * period) for place in turned)
        return clamp_unit(
            np.float32(0.5) + (np.float32(0.125) - np.sqrt((a * a + b * b) / 2)) / np.float32(width)
        )
    a, b = (
        np.abs(_centred_phase(place, period * np.float32(1.2))) - period * np.float32(0.3) for place in (u, v)
    )
    nearer = np.minimum(np.abs(a), np.abs(b))
    same = (a < 0) == (b < 0)
    return clamp_unit(np.float32(0.5) + np.where(same, -nearer, nearer) / np.float32(width))


def _centred_phase(place: Plane, period: np.float32) -> Plane:
    turns = place / period
    return (turns - np.floor(turns + np.float32(0.5))) * period
