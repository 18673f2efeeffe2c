"""Where the pixels of one frame lie in another, on a mesh that bends with the surface and is else stiff.

What is known before says about where, and the two frames' own pixels say exactly.

The way to the next frame in four lines, and where to find them:
    where the frame before ended, moved along by the flow          `expected_offsets`
    how far that is off: a mesh that is stiff, but may crease      `solve_offsets`
    refined until the key frame's pixels lie on the frame's        `refine_offsets`
    what passes in front of a place hides it                       `find_hidden`

A flow chain alone shuffles pixels that look alike: near in decibels, but letters fray. The mesh keeps lines
straight, and since every frame is held against the key frame itself, nothing drifts.
"""

from dataclasses import dataclass
from typing import Final, TypeAlias, final

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Num, UInt8

from retouch.tracking.flow import DisFlow, pixel_grid, remap, round_trip

CELL: Final = 4
"""Pixels between two nodes of the mesh of offsets."""
SUPPLE, STIFF = (1.0, 1.0), (30.0, 9.0)
"""How much a mesh resists bending, and the bend, in pixels from node to node, at which it may crease."""
LEAN, PULL = 0.005, 1e-3
"""How much offsets resist changing from node to node, and being there at all."""
TRUST: Final = 1.0
"""Weight of what is expected beside that of the pictures, for an error of a pixel."""
LEVELS: Final = (1, 0)
"""How often the pictures are halved, one after the other."""
STEPS: Final = 2
"""Gauss-Newton steps at each size."""
SOLVER_STEPS, SOLVED = 8, 1e-7
"""The most steps of the solver, and the share of what is to be solved at which it stops."""
COARSEST, COARSEST_STEPS = 12, 40
"""Nodes along a side of a mesh that is solved by itself, and its steps; larger ones are halved first."""
QUIET, LOUD = 3.0, 15.0
"""The least and the most levels that count as noise."""
OUTLIER: Final = 5.0
"""Noises at which a pixel begins to say little; twice as many on halved pictures, which are farther off."""
SURE: Final = 1.0
"""Pixels by which flow may miss on its way back and still be believed."""
BETTER: Final = 0.5
"""Levels by which the flow must explain a place better than the atlas to be what is expected there."""
HIDES: Final = 14.0
"""Levels, above three noises, at which a pixel shows something else than its place."""
MOVES_APART: Final = 1.5
"""Pixels a frame by which what hides a place moves against it."""
RASTER: Final = 4
"""Pixels of the painted frame to a cell of what is remembered of its places."""
SETTLES: Final = 0.15
"""How fast the light that is remembered follows what is seen."""
MARGIN: Final = 12
"""Pixels around the places that matter that are looked at as well."""
LARGE: Final = 256
"""Pixels of a side above which the flow may be found on halved pictures: it only says what to expect."""

DIAGONAL: Final = np.array([1, 0, 1], np.float32)
"""The unit matrix, as xx, xy, yy."""

Offsets: TypeAlias = Float32[np.ndarray, "y x 2"]
Positions: TypeAlias = Float32[np.ndarray, "h w 2"]
Plane: TypeAlias = Float32[np.ndarray, "h w"]
Mask: TypeAlias = Bool[np.ndarray, "h w"]
Picture: TypeAlias = UInt8[np.ndarray, "h w 3"]


@final
@dataclass(frozen=True, eq=False)
class FrameMap:
    """Where the pixels of one frame lie in the painted frame."""

    frame: int
    positions: Positions
    known: Mask
    """The pixels of the layer whose place lies in the painted frame."""
    shown: Plane
    """How much of each pixel shows its place: 0 where something else is in front."""
    errors: tuple[float, float, int] = (0.0, 0.0, 0)
    """Squared errors of the painted frame's pixels by the textures and by these positions; their number."""

    def bend(self) -> float:
        """Return by how much lines bend from node to node, in nineteen of twenty places; nan for none."""
        reach = np.ones((4 * CELL + 1, 4 * CELL + 1), np.uint8)
        solid = cv2.erode(self.known.astype(np.uint8), reach, borderValue=0) > 0
        if not solid.any():
            return float("nan")
        here = self.positions
        bends = [np.roll(here, CELL, a) - 2 * here + np.roll(here, -CELL, a) for a in (0, 1)]
        return float(np.percentile(np.maximum(*(np.linalg.norm(b, axis=2) for b in bends))[solid], 95))


@final
@dataclass(frozen=True, eq=False)
class KeyLayer:
    """A layer of the painted frame, as the other frames are held against it."""

    colours: Float32[np.ndarray, "h w 3"]
    own: Plane
    """1 on the layer's own pixels."""
    wanted: Mask
    """The places that matter."""
    pyramid: tuple[Float32[np.ndarray, "_ _ 3"], ...]
    """Grey values and their slopes along x and y, halved from one to the next."""

    @classmethod
    def of(cls, picture: Picture, share: Plane, wanted: Mask) -> "KeyLayer":
        """Take a frame, how much of each pixel the layer makes up, and which places matter."""
        grey, levels = _grey(picture), []
        for _ in range(max(LEVELS) + 1):
            slopes = [cv2.Sobel(grey, cv2.CV_32F, *a, ksize=3, scale=1 / 8) for a in ((1, 0), (0, 1))]
            levels.append(np.dstack([grey, *slopes]))
            grey = _shrunk(grey, _halved(grey, 1))
        return cls(picture.astype(np.float32), (share > 0.5).astype(np.float32), wanted, tuple(levels))


@final
@dataclass(eq=False)
class PassState:
    """What is remembered from frame to frame: the last map, and of places their light and what hid them."""

    picture: Picture
    positions: Positions
    known: Mask
    light: Float32[np.ndarray, "y x"]
    hidden: Float32[np.ndarray, "y x"]

    @classmethod
    def at_key(cls, picture: Picture, known: Mask) -> "PassState":
        """Begin at the painted frame, of which some pixels matter."""
        places = tuple(-(-side // RASTER) for side in known.shape)
        light, hidden = np.ones(places, np.float32), np.zeros(places, np.float32)
        return cls(picture, pixel_grid(*known.shape), known, light, hidden)


def carry_on(
    state: PassState,
    key: KeyLayer,
    picture: Picture,
    t: int,
    share: Plane,
    near: Positions,
    told: Mask,
    bending: tuple[float, float],
) -> FrameMap:
    """Find the map of the next frame, and remember it.

    Args:
        state: What is remembered of the frame before.
        key: The painted frame.
        picture: The next frame.
        t: Its number.
        share: How much of its pixels the layer makes up.
        near: Where the textures say that its pixels lie in the painted frame.
        told: Where they say so.
        bending: How stiff the mesh is.
    """
    positions, known, shown = np.zeros_like(near), np.zeros_like(told), np.zeros_like(share)
    window = _window_around(told | state.known)
    if window is None:
        state.picture, state.positions, state.known = picture, positions, known
        return FrameMap(t, positions, known, shown)
    corner = np.array([window[1].start, window[0].start], np.float32)
    shot, own = np.ascontiguousarray(picture[window]), (share[window] > 0.5).astype(np.float32)
    base = _spread(near[window], told[window], corner)
    moved, sure = _along_flow(state, shot, window, corner)
    expected, trust = expected_offsets(shot, own, base, moved, sure, key)
    offsets, noise = refine_offsets(shot, own, base, expected, trust, key, bending)
    found = np.ascontiguousarray(base + _grown(offsets, own.shape), np.float32)
    hidden = find_hidden(state, key, shot, own, found, moved, sure, noise)
    close = remap(key.wanted.astype(np.float32), found) > 0.5
    inside = _inside(found, share.shape) & close & (share[window] > 0.02)
    positions[window], known[window], shown[window] = found, inside, 1 - hidden
    state.picture, state.positions, state.known = picture, positions, known
    counted = inside & told[window] & (own * remap(key.own, found) > 0.5) & (hidden < 0.5)
    off = [np.square(remap(key.colours, p)[counted] - shot[counted]).mean(1) for p in (base, found)]
    return FrameMap(
        t, positions, known, shown, (float(off[0].sum()), float(off[1].sum()), int(counted.sum()))
    )


def _along_flow(
    state: PassState, shot: Picture, window: tuple[slice, slice], corner: Float32[np.ndarray, " 2"]
) -> tuple[Positions, Plane]:
    """Return the last map moved along the flow into a window of the next frame, and how sure that is."""
    before, flow = (
        np.ascontiguousarray(state.picture[window]),
        DisFlow(finest_scale=int(max(shot.shape) > LARGE)),
    )
    there, back = flow.pair(shot, before), flow.pair(before, shot)
    at = pixel_grid(*shot.shape[:2]) + corner + there.transpose(1, 2, 0)
    sure = np.exp(-np.square(round_trip(there, back) / SURE)) * _inside(at, state.known.shape)
    return remap(state.positions, at), (sure * remap(state.known.astype(np.float32), at)).astype(np.float32)


def expected_offsets(
    shot: Picture, own: Plane, base: Positions, moved: Positions, sure: Plane, key: KeyLayer
) -> tuple[Positions, Plane]:
    """Return the offsets that are expected and how far: along the flow, or none where that is as good."""
    off = [np.minimum(np.abs(remap(key.colours, p) - shot).mean(2), 40) * own for p in (base, moved)]
    sums = _blurred(np.dstack([*off, own]), 5)
    means = sums[..., :2] / np.maximum(sums[..., 2:], 1e-3)
    still = 1 / (1 + np.exp(np.clip((means[..., 0] - means[..., 1] - BETTER) / 0.5, -30, 30)))
    trust = TRUST * np.maximum(sure, still) * own / np.square(1 + np.square(means.min(2) / HIDES))
    return (moved - base) * (1 - still)[..., None], trust.astype(np.float32)


def refine_offsets(
    shot: Picture,
    own: Plane,
    base: Positions,
    expected: Positions,
    trust: Plane,
    key: KeyLayer,
    bending: tuple[float, float],
) -> tuple[Offsets, float]:
    """Return offsets, on the mesh, under which the key frame's grey values lie on a frame's, and the noise.

    Gauss-Newton on halved pictures, then on the whole ones. The light may change by a factor, smoothly; of
    pixels that stay unlike, little is believed.
    """
    nodes = tuple(max(4, round(side / CELL)) for side in own.shape)
    pull = _shrunk(expected * trust[..., None], nodes)
    held = np.multiply.outer(_shrunk(trust, nodes) + PULL, DIAGONAL)
    offsets = solve_offsets(np.zeros_like(pull), 3 * held, 3 * pull, 0.1 * bending[0], bending[1])
    grey, noise = _grey(shot), LOUD
    for level in LEVELS:
        size, factor = _halved(own, level), 2.0**level
        there, mask, about = (_shrunk(x, size) for x in (grey, own, base))
        for _ in range(STEPS):
            at = ((about + _grown(offsets, size) + 0.5) / factor - 0.5).astype(np.float32)
            terms, found = _normal_terms(there, mask, at, key, level)
            noise = found if found is not None else noise
            normal, slope = _shrunk(terms[..., :3], nodes), _shrunk(terms[..., 3:], nodes)
            rhs = _times(normal, offsets) + slope + pull
            offsets = solve_offsets(offsets, normal + held, rhs, *bending)
    return offsets, noise


def _normal_terms(
    grey: Plane, mask: Plane, at: Positions, key: KeyLayer, level: int
) -> tuple[Float32[np.ndarray, "h w 5"], float | None]:
    """Return each pixel's part in the normal equations: xx, xy, yy and the right side; and the noise."""
    there = key.pyramid[level]
    seen, gx, gy = np.moveaxis(remap(there, at), 2, 0)
    own = remap(_shrunk(key.own, there.shape[:2]), at)
    weight = mask * own * ((mask * own > 0.5) & _inside(at, there.shape[:2]))
    use = weight > 0.5
    if use.sum() < 16:
        return np.zeros((*grey.shape, 5), np.float32), None
    sums = _blurred(np.dstack([(grey + 4) * weight, (seen + 4) * weight]), 10 / 2**level)
    gain = np.clip((sums[..., 0] + 1e-3) / (sums[..., 1] + 1e-3), 0.5, 2)
    off = grey + 4 - gain * (seen + 4)
    noise = float(np.clip(1.4826 * np.median(np.abs(off[use])), QUIET, LOUD))
    weight = weight / np.square((1 + np.square(off / (OUTLIER * noise * 2**level))) * noise)
    gx, gy = gain * gx / 2**level, gain * gy / 2**level
    return np.dstack(
        [weight * gx * gx, weight * gx * gy, weight * gy * gy, weight * gx * off, weight * gy * off]
    ), noise


def solve_offsets(
    offsets: Offsets, normal: Float32[np.ndarray, "y x 3"], rhs: Offsets, bend: float, crease: float
) -> Offsets:
    """Solve for the offsets on a mesh whose nodes resist bending, and less where they bend much already."""
    creases = [1 + np.square(b).sum(2, keepdims=True) / crease**2 for b in _bends(offsets)]
    weights = [np.float32(bend * twice) / c for twice, c in zip((1, 1, 2), creases, strict=True)]
    left = rhs - _applied(offsets, normal, weights)
    return np.asarray(offsets + _solved_mesh(normal, left, weights), np.float32)


def _solved_mesh(
    normal: Float32[np.ndarray, "y x 3"], rhs: Offsets, weights: list[Float32[np.ndarray, "_ _ 1"]]
) -> Offsets:
    """Solve for offsets on a mesh whose bends weigh so much: on one of half as many nodes a side, then here.

    Conjugate gradients, with each node's own two equations solved ahead; the coarser mesh bends what those
    are slow to bend.
    """
    found, left, steps = np.zeros_like(rhs), rhs, COARSEST_STEPS
    if min(rhs.shape[:2]) > COARSEST:
        nodes = _halved(rhs, 1)
        # A bend from node to node is four times as large on half as many.
        coarser = [
            _shrunk(w[..., 0], (nodes[0] - dy, nodes[1] - dx))[..., None] / 16
            for w, (dy, dx) in zip(weights, ((0, 2), (2, 0), (1, 1)), strict=True)
        ]
        found = _grown(_solved_mesh(_shrunk(normal, nodes), _shrunk(rhs, nodes), coarser), rhs.shape)
        left, steps = rhs - _applied(found, normal, weights), SOLVER_STEPS
    ahead = normal + np.multiply.outer(_own_weight(weights, rhs.shape[:2]), DIAGONAL)
    along = step = _solved(ahead, left)
    length, least = float(np.vdot(left, step)), SOLVED * float(np.vdot(rhs, _solved(ahead, rhs)))
    for _ in range(steps):
        if length <= least:
            break
        across = _applied(along, normal, weights)
        reach = length / float(np.vdot(along, across))
        found, left = found + reach * along, left - reach * across
        step = _solved(ahead, left)
        before, length = length, float(np.vdot(left, step))
        along = step + length / before * along
    return found


def _bends(x: np.ndarray) -> list[np.ndarray]:
    """Return the second differences along x, along y and across."""
    across = x[1:, 1:] - x[1:, :-1] - x[:-1, 1:] + x[:-1, :-1]
    return [x[:, 2:] - 2 * x[:, 1:-1] + x[:, :-2], x[2:] - 2 * x[1:-1] + x[:-2], across]


def _applied(x: np.ndarray, normal: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    """Return the left side of the equations of `solve_offsets`."""
    made = _times(normal, x)
    along, down, across = (w * b for w, b in zip(weights, _bends(x), strict=True))
    for part, bent in ((made, along), (made.transpose(1, 0, 2), down.transpose(1, 0, 2))):
        part[:, 2:] += bent
        part[:, 1:-1] -= 2 * bent
        part[:, :-2] += bent
    for y, x_, sign in ((1, 1, 1), (1, 0, -1), (0, 1, -1), (0, 0, 1)):
        made[y : y + across.shape[0], x_ : x_ + across.shape[1]] += sign * across
    for part, line in ((made, x), (made.transpose(1, 0, 2), x.transpose(1, 0, 2))):
        lean = np.float32(LEAN) * np.diff(line, axis=1)
        part[:, 1:] += lean
        part[:, :-1] -= lean
    return made


def _own_weight(weights: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Return what each node's own offset weighs in the stiffness of the mesh."""
    total = np.full(shape, 4 * LEAN, np.float32)
    along, down, across = (w[..., 0] for w in weights)
    for part, weight in ((total, along), (total.T, down.T)):
        part[:, 2:] += weight
        part[:, 1:-1] += 4 * weight
        part[:, :-2] += weight
    for y, x in ((1, 1), (1, 0), (0, 1), (0, 0)):
        total[y : y + across.shape[0], x : x + across.shape[1]] += across
    return total


def _times(normal: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the product of each node's symmetric matrix xx, xy, yy with its vector."""
    (a, b, c), (u, v) = np.moveaxis(normal, 2, 0), np.moveaxis(x, 2, 0)
    return np.dstack([a * u + b * v, b * u + c * v])


def _solved(normal: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the vectors that each node's symmetric matrix takes to `x`."""
    (a, b, c), (u, v) = np.moveaxis(normal, 2, 0), np.moveaxis(x, 2, 0)
    return np.asarray(np.dstack([c * u - b * v, a * v - b * u]) / (a * c - b * b)[..., None])


def find_hidden(
    state: PassState,
    key: KeyLayer,
    shot: Picture,
    own: Plane,
    found: Positions,
    moved: Positions,
    sure: Plane,
    noise: float,
) -> Plane:
    """Return how far each pixel is something else than its place, and remember it and the light.

    It must differ from its place, by more than light and noise, and move against it, or have been hidden
    in the frame before. The light is one factor a place, so that an occluder cannot pass for a shadow.
    """
    seen = remap(key.colours, found)
    places = np.ascontiguousarray((found + 0.5) / RASTER - 0.5, np.float32)
    light, was = remap(state.light, places), remap(state.hidden, places)
    off = 0.8 * np.abs(shot - light[..., None] * seen).max(2)
    mask = own * (remap(key.own, found) > 0.5)
    sums = _blurred(np.dstack([off * mask, mask]), 2, 1)
    unlike = sums[..., 0] / np.maximum(sums[..., 1], 1e-3) > HIDES + 3 * noise
    apart = (np.linalg.norm(moved - found, axis=2) > MOVES_APART) & (sure > 0.3)
    hidden = (unlike & (apart | (was > 0.5)) & (mask > 0)).astype(np.float32)
    gain = np.clip((shot.sum(2) + 12.0) / (seen.sum(2) + 12.0), 0.5, 2).astype(np.float32)
    free = (mask > 0) & (hidden == 0)
    _remember(state.light, places, gain, free & ~unlike, SETTLES)
    _remember(state.hidden, places, hidden, mask > 0, 1.0)
    return np.asarray(cv2.GaussianBlur(hidden, None, 1.5))


def _remember(
    memory: Float32[np.ndarray, "y x"], places: Positions, values: Plane, use: Mask, rate: float
) -> None:
    """Let the memory of places follow the mean of what is seen of them now."""
    x, y = np.moveaxis(places[use].round().astype(int), 1, 0)
    inside = (x >= 0) & (y >= 0) & (x < memory.shape[1]) & (y < memory.shape[0])
    cells = (y * memory.shape[1] + x)[inside]
    count = np.bincount(cells, minlength=memory.size).reshape(memory.shape)
    total = np.bincount(cells, values[use][inside], memory.size).reshape(memory.shape)
    memory += np.where(count > 0, rate * (total / np.maximum(count, 1) - memory), 0).astype(np.float32)


def _grey(picture: Picture) -> Plane:
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.float32)


def _halved(picture: np.ndarray, times: int) -> tuple[int, int]:
    return -(-picture.shape[0] // 2**times), -(-picture.shape[1] // 2**times)


def _shrunk(x: Num[np.ndarray, "h w *c"], size: tuple[int, ...]) -> Num[np.ndarray, "y x *c"]:
    """Return means of areas."""
    return x if x.shape[:2] == size else np.asarray(cv2.resize(x, size[::-1], interpolation=cv2.INTER_AREA))


def _grown(x: Offsets, size: tuple[int, ...]) -> Positions:
    """Return offsets for pixels from those of the mesh, without a kink at its nodes."""
    return np.asarray(cv2.resize(x, size[1::-1], interpolation=cv2.INTER_CUBIC))


def _blurred(x: Float32[np.ndarray, "h w c"], sigma: float, step: int = 2) -> Float32[np.ndarray, "h w c"]:
    """Return a picture blurred, by way of a smaller one."""
    size = tuple(max(1, side // step) for side in x.shape[:2])
    small = cv2.GaussianBlur(_shrunk(x, size), None, sigma / step)
    return np.asarray(cv2.resize(small, x.shape[1::-1], interpolation=cv2.INTER_LINEAR))


def _inside(places: Positions, size: tuple[int, ...]) -> Mask:
    """Mark the places that lie in a picture of a size."""
    x, y = places[..., 0], places[..., 1]
    return np.asarray((x >= 0) & (y >= 0) & (x <= size[1] - 1) & (y <= size[0] - 1))


def _window_around(mask: Mask) -> tuple[slice, slice] | None:
    """Return the rows and columns of marked pixels, with a margin; nothing if there are none."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return None
    sides = zip((rows, columns), mask.shape, strict=True)
    y, x = (slice(max(0, int(n[0]) - MARGIN), min(side, int(n[-1]) + MARGIN + 1)) for n, side in sides)
    return y, x


def _spread(places: Positions, told: Mask, corner: Float32[np.ndarray, " 2"]) -> Positions:
    """Return places for all pixels: where none are told, those nearby go on."""
    here = pixel_grid(*told.shape) + corner
    away = np.dstack([(places - here) * told[..., None], told]).astype(np.float32)
    found = np.zeros_like(here)
    for reach in (64, 16, 4):
        sums = _blurred(away, reach, max(1, reach // 2))
        near = np.clip(sums[..., 2:] / 0.05, 0, 1)
        found += near * (sums[..., :2] / np.maximum(sums[..., 2:], 1e-6) - found)
    return np.where(told[..., None], places, here + found).astype(np.float32)
