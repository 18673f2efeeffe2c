"""Paint on frames, carried straight from each painted frame to every other, without the textures between.

What belongs here: which layers are carried so, and how several painted frames share a pixel. Where a pixel
lies in a painted frame is found in `transport`.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, UInt8
from torch import Tensor

from retouch.atlas.atlas import Atlas
from retouch.atlas.edit import OWN, SCRAP, PaintedFrame, Period, without_scraps
from retouch.atlas.transport import find_bending, find_slips, transport_positions
from retouch.run import Run
from retouch.tracking.flow import remap
from retouch.tracking.mesh import QUIET, STIFF, FrameMap
from retouch.video import Video, release_pages

REACH: Final = 24
"""Pixels around the paint that are looked at as well: beneath it may be nothing that is seen to move."""
WINS: Final = 0.5
"""Decibels by which a painted frame's own pixels must fit the others better than through the textures."""
FADE: Final = 8
"""Frames in which one painted frame hands over to the next."""
TORN: Final = 8.0
"""Pixels of the painted frame from one pixel to the next at which these are no one surface."""
SAMPLES: Final = 12
"""Frames, evenly over those that show the edit, in which it is looked whether the textures let it slide."""
FAR: Final = 1e-3
"""Weight of painted frames that are farther off: they show what the nearer ones left alone."""


@final
@dataclass(frozen=True, eq=False)
class TransportedPaint:
    """The paint of some layers as every frame shows it, by painted frame and layer, in files."""

    pictures: Mapping[tuple[int, int], UInt8[np.ndarray, "f 4 h w"]]
    """Colours times cover, and cover."""

    @property
    def layers(self) -> set[int]:
        """The layers whose paint is here."""
        return {layer for _, layer in self.pictures}

    def at(self, atlas: Atlas, start: int, stop: int) -> Float[Tensor, "f 4 h w"]:
        """Return the paint on some frames, by what each layer makes up of a pixel."""
        shares = atlas.shares(start, stop)
        total = torch.zeros(stop - start, 4, atlas.height, atlas.width, device=atlas.device)
        for layer in sorted(self.layers):
            total += shares[layer] * self._merged(layer, start, stop).to(atlas.device)
        return total

    def _merged(self, layer: int, start: int, stop: int) -> Float[Tensor, "f 4 h w"]:
        """Return a layer's paint: of the nearest painted frame, or of others where that one has none."""
        keys = sorted(frame for frame, other in self.pictures if other == layer)
        read = []
        for frame in keys:
            picture = self.pictures[frame, layer]
            read.append(torch.tensor(picture[start:stop]).float() / 255)
            release_pages(picture)
        if len(read) == 1:
            return read[0]
        weights = torch.tensor([key_weights(keys, t) for t in range(start, stop)])
        found = torch.stack(read)
        weighted = weights.T[:, :, None, None, None] * found
        sums = weighted.sum(0)
        known = sums[:, 3:].clamp(min=1e-9)
        cover = (weighted[:, :, 3:] * found[:, :, 3:]).sum(0) / known
        return torch.cat([sums[:, :3] / known * cover, cover], 1)


def key_weights(keys: Sequence[int], t: int) -> list[float]:
    """Return how far a frame shows the paint of each of some painted frames, in order.

    >>> key_weights([0, 20], 10)
    [0.5, 0.5]
    """
    weights = [FAR] * len(keys)
    after = next((i for i, frame in enumerate(keys) if frame > t), len(keys))
    for i in (after - 1, after):
        if not 0 <= i < len(keys):
            continue
        other = after if i == after - 1 else after - 1
        if not 0 <= other < len(keys):
            return [1.0 if j == i else FAR for j in range(len(keys))]
        apart = abs(keys[other] - keys[i])
        ahead = abs(t - keys[other]) - abs(t - keys[i])
        weights[i] = min(1.0, max(FAR, 0.5 + 0.5 * ahead / min(FADE, apart)))
    return weights


def transport_paint(
    atlas: Atlas,
    video: Video,
    keys: Sequence[PaintedFrame],
    *,
    layers: Sequence[int] | None = None,
    period: Period | None = None,
    choose: bool = False,
    run: Run,
) -> TransportedPaint:
    """Carry painted frames to every frame.

    Args:
        atlas: The decomposed clip.
        video: The clip.
        keys: The painted frames.
        layers: Layers that may be edited; all if not given.
        period: The frames that show the edit.
        choose: Leave out the layers that the textures carry about as well.
        run: Progress and scratch space.
    """
    pictures, errors = dict[tuple[int, int], UInt8[np.ndarray, "f 4 h w"]](), dict[int, np.ndarray]()
    strokes = [(layer, stroke) for key in keys for layer, stroke in _by_layer(atlas, key, layers)]
    bendings = [
        find_bending(atlas, video, step.item[1].frame, step.item[0])
        for step in run.steps("look at the painted frames", strokes)
    ]
    rigid = {layer for (layer, _), found in zip(strokes, bendings, strict=True) if choose and found == STIFF}
    for (layer, stroke), bending in zip(strokes, bendings, strict=True):
        if layer in rigid:
            continue
        first, stop = _walked(stroke.frame, period, len(video))
        maps = transport_positions(
            atlas,
            video,
            stroke.frame,
            layer,
            wanted=_around(stroke),
            within=(first, stop),
            bending=bending,
        )
        shape = (len(video), 4, video.height, video.width)
        picture = run.scratch(f"transported-{stroke.frame}-{layer}", shape)
        stage = f"carry frame {stroke.frame}, {atlas.names[layer]}"
        found = [lay_on(picture, stroke, next(maps)) for _ in run.steps(stage, range(first, stop))]
        errors[layer] = errors.get(layer, np.zeros(3)) + np.sum(found, 0)
        pictures[stroke.frame, layer] = picture
    won = {layer for layer, sums in errors.items() if not choose or _wins(*sums)}
    return TransportedPaint({(frame, layer): p for (frame, layer), p in pictures.items() if layer in won})


def slips_in_textures(
    atlas: Atlas,
    video: Video,
    keys: Sequence[PaintedFrame],
    *,
    layers: Sequence[int] | None = None,
    period: Period,
    straight: Collection[int] = (),
    run: Run,
) -> dict[int, float]:
    """Return how many pixels off the paint lies in some frames, by their own pixels; the worst of its pieces.

    Each frame is held against the nearest painted one. Layers that are carried straight are not asked.
    """
    sampled = np.unique(np.linspace(period.start, period.stop - 1, SAMPLES).round().astype(int)).tolist()
    strokes = [pair for key in keys for pair in _by_layer(atlas, key, layers) if pair[0] not in straight]
    slips = dict.fromkeys((stroke.frame for _, stroke in strokes), 0.0)
    for step in run.steps("look where the paint may slide", strokes):
        layer, stroke = step.item
        painted = [other.frame for at, other in strokes if at == layer]
        nearest = [t for t in sampled if min(painted, key=lambda k: abs(k - t)) == stroke.frame != t]
        place = stroke.cover[0].cpu().numpy() > 0
        for t, slip in find_slips(atlas, video, stroke.frame, layer, place, _around(stroke), nearest):
            if np.isfinite(slip):
                slips[t] = max(slip, slips.get(t, 0.0))
    return slips


def _by_layer(
    atlas: Atlas, key: PaintedFrame, layers: Sequence[int] | None
) -> Iterator[tuple[int, PaintedFrame]]:
    """Yield what a painted frame says about each layer that it paints."""
    wholly = [key] * len(atlas.names) if layers else without_scraps(atlas, key)
    shares = atlas.shares(key.frame, key.frame + 1)
    for layer, (own, share) in enumerate(zip(wholly, shares, strict=True)):
        cover = own.cover * (share[0] > OWN).to(own.cover)
        if (layers is None or layer in layers) and bool(cover.any()):
            yield layer, PaintedFrame(key.frame, own.colours, cover)


def _wins(by_textures: float, straight: float, pixels: float) -> bool:
    """Return whether errors shrink by enough; what is within the noise of pictures counts for nothing."""
    noise = QUIET**2 * pixels
    return pixels > 0 and 10 * np.log10((by_textures + noise) / (straight + noise)) > WINS


def _around(stroke: PaintedFrame) -> Bool[np.ndarray, "h w"]:
    """Return the places of a stroke and around it."""
    reach = np.ones((2 * REACH + 1, 2 * REACH + 1), np.uint8)
    return np.asarray(cv2.dilate((stroke.cover[0].cpu().numpy() > 0).astype(np.uint8), reach) > 0)


def _walked(frame: int, period: Period | None, frames: int) -> tuple[int, int]:
    """Return the first frame and the one after the last, from the painted frame to all that show it."""
    start, stop = (period.start, period.stop) if period else (0, frames)
    return min(start, frame), max(stop, frame + 1)


def lay_on(
    picture: UInt8[np.ndarray, "f 4 h w"], stroke: PaintedFrame, found: FrameMap
) -> tuple[float, float, int]:
    """Write what one frame shows of a painted frame, without splinters; return the map's errors."""
    cover = stroke.cover.cpu().numpy()
    paint = np.concatenate([stroke.colours.cpu().numpy() * cover, cover]).transpose(1, 2, 0)
    shown = remap(np.ascontiguousarray(paint, np.float32), found.positions)
    shown *= (found.shown * (found.known & ~_torn(found.positions)))[..., None]
    _, strokes = cv2.connectedComponents((cover[0] > 0).astype(np.uint8))
    shown[_splinters(shown[..., 3] > 0, strokes, found.positions)] = 0
    picture[found.frame] = (shown.clip(0, 1) * 255).round().astype(np.uint8).transpose(2, 0, 1)
    release_pages(picture)
    return found.errors


def _torn(positions: Float32[np.ndarray, "h w 2"]) -> Bool[np.ndarray, "h w"]:
    """Mark pixels between which the map jumps: they would show all that lies between, in miniature."""
    torn = np.zeros(positions.shape[:2], bool)
    for whole, line in ((torn, positions), (torn.T, positions.transpose(1, 0, 2))):
        jumps = np.abs(np.diff(line, axis=1)).max(2) > TORN
        whole[:, 1:] |= jumps
        whole[:, :-1] |= jumps
    return torn


def _splinters(
    painted: Bool[np.ndarray, "h w"],
    strokes: Int[np.ndarray, "h w"],
    positions: Float32[np.ndarray, "h w 2"],
) -> Bool[np.ndarray, "h w"]:
    """Mark tiny pieces that have come off a stroke which a frame shows a far larger piece of."""
    made = np.zeros_like(painted)
    if not painted.any():
        return made
    _, pieces = cv2.connectedComponents(painted.astype(np.uint8))
    size = np.bincount(pieces[painted])[pieces[painted]]
    last = np.array([painted.shape[1], painted.shape[0]]) - 1
    x, y = positions[painted].round().astype(int).clip(0, last).T
    largest = np.zeros(strokes.max() + 1, int)
    np.maximum.at(largest, strokes[y, x], size)
    made[painted] = size < np.minimum(largest[strokes[y, x]] / 8, SCRAP)
    return made
