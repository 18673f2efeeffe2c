"""Where a layer's pixels lie in a painted frame, read off the pictures themselves.

The textures carry an object as one surface that hardly bends; what bends more, slides there. Here the atlas
only says about where a pixel lies in the painted frame, and the two frames' own pixels say exactly
(`tracking.mesh`), outwards from the painted frame.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np
import torch

from retouch.atlas.atlas import Atlas
from retouch.atlas.edit import TexturePatch, position_patches, read_positions
from retouch.tracking.flow import pixel_grid, remap
from retouch.tracking.mesh import (
    STIFF,
    SUPPLE,
    FrameMap,
    KeyLayer,
    Mask,
    PassState,
    Picture,
    Plane,
    Positions,
    carry_on,
)
from retouch.video import Video, release_pages

FRAYED: Final = 0.75
"""Pixels by which lines may bend from node to node, in nineteen of twenty places of the nearest frames.

The whole layer is asked: a part that hides another bends at its edge, and says nothing. Larger pictures than
512 pixels may bend by more, as all in them moves by more.
"""
LOOKED_AT: Final = 2
"""Frames on either side that say whether a layer bends or frays."""
FEWEST: Final = 20
"""Pixels of a place that a frame must show to say where it lies."""


@torch.no_grad()
def transport_positions(
    atlas: Atlas,
    video: Video,
    frame: int,
    layer: int,
    *,
    wanted: Mask | None = None,
    within: tuple[int, int] | None = None,
    bending: tuple[float, float] | None = None,
) -> Iterator[FrameMap]:
    """Yield where the pixels of a layer lie in a painted frame: in itself, after it, then before it.

    Args:
        atlas: The decomposed clip.
        video: The clip.
        frame: The painted frame.
        layer: The layer that is followed.
        wanted: The places of the painted frame that matter; all, if None.
        within: The first frame and the one after the last.
        bending: How stiff the mesh is; found by looking at the nearest frames, if None.
    """
    picture, share = upright(video, frame), _share(atlas, frame, layer)
    wanted = np.ones(share.shape, bool) if wanted is None else wanted
    if bending is None:
        bending = find_bending(atlas, video, frame, layer)
    patches = position_patches(atlas, frame, layer, wanted)
    key, grid = KeyLayer.of(picture, share, wanted), pixel_grid(*share.shape)
    known = (share > 0.02) & wanted
    yield FrameMap(frame, grid, known, np.ones_like(share))
    start, stop = within or (0, len(video))
    for frames in (range(frame + 1, stop), range(frame - 1, start - 1, -1)):
        state = PassState.at_key(picture, known)
        for t in frames:
            share, near, told = _by_textures(atlas, patches, t, layer)
            yield carry_on(state, key, upright(video, t), t, share, near, told, bending)
            release_pages(video.frames)


@torch.no_grad()
def find_slips(
    atlas: Atlas, video: Video, frame: int, layer: int, place: Mask, around: Mask, frames: Iterable[int]
) -> Iterator[tuple[int, float]]:
    """Yield how many pixels off the textures carry a place of the painted frame, by the frames' own pixels.

    Each frame is held against the painted one by itself, whatever is between. It is nan where a frame shows
    too little of the place.

    Args:
        atlas: The decomposed clip.
        video: The clip.
        frame: The painted frame.
        layer: The layer that is followed.
        place: The place.
        around: The place and what lies around it, which is looked at as well.
        frames: The frames that are asked about.
    """
    picture, share = upright(video, frame), _share(atlas, frame, layer)
    bending = find_bending(atlas, video, frame, layer)
    patches = position_patches(atlas, frame, layer, around)
    key = KeyLayer.of(picture, share, around)
    for t in frames:
        state = PassState.at_key(picture, (share > 0.02) & around)
        own, near, told = _by_textures(atlas, patches, t, layer)
        found = carry_on(state, key, upright(video, t), t, own, near, told, bending)
        there = told & found.known & (found.shown > 0.5) & (remap(place.astype(np.float32), near) > 0.5)
        off = np.linalg.norm(found.positions - near, axis=2)[there]
        yield t, float(np.median(off)) if off.size >= FEWEST else float("nan")
        release_pages(video.frames)


def _by_textures(
    atlas: Atlas, patches: Sequence[TexturePatch], t: int, layer: int
) -> tuple[Plane, Positions, Mask]:
    """Return a layer's share of a frame's pixels, where the textures say that they lie, and where they do."""
    found, cover = read_positions(atlas, patches, t, t + 1)
    share = _share(atlas, t, layer)
    told = (cover[0, 0].cpu().numpy() > 0.5 * share) & (share > 0.02)
    return share, np.ascontiguousarray(found[0].movedim(0, 2).cpu().numpy()), told


def find_bending(atlas: Atlas, video: Video, frame: int, layer: int) -> tuple[float, float]:
    """Return how stiff a layer's mesh must be so that it bends with the surface and does not fray.

    What shines or is seen through moves by itself on a rigid surface: a supple mesh follows it, and frays
    within a few frames, where a surface that truly bends stays smooth.
    """
    within = (max(0, frame - LOOKED_AT), min(len(video), frame + LOOKED_AT + 1))
    maps = transport_positions(atlas, video, frame, layer, within=within, bending=SUPPLE)
    bends = [bend for m in maps if m.frame != frame and np.isfinite(bend := m.bend())]
    frayed = FRAYED * max(1.0, max(video.height, video.width) / 512)
    return STIFF if bends and float(np.median(bends)) > frayed else SUPPLE


def upright(video: Video, t: int) -> Picture:
    """Return a frame with its channels last."""
    return np.ascontiguousarray(video.frames[t].transpose(1, 2, 0))


def _share(atlas: Atlas, t: int, layer: int) -> Plane:
    return np.asarray(atlas.shares(t, t + 1)[layer][0, 0].cpu().numpy(), np.float32)
