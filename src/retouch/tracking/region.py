"""An edit followed through a clip: where it may reach, what it looks like there, and where that is believed.

All of it is found from the edited frames and the source by optical flow. A frame's backward map says which
place of the key frame each of its pixels shows: so edges stay sharp however far the way, and whether the
map is right can be seen from the source's own colours at both of its ends. Where the edit is, a mesh that
bends with the surface keeps its lines straight, which flow frays.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, final

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8

from retouch.media.masks import grow
from retouch.run import Run
from retouch.tracking.flow import Flow, inside_frame, pixel_grid, remap, warp_picture
from retouch.tracking.mesh import SUPPLE, KeyLayer, PassState, carry_on
from retouch.video import Video

NOTICEABLE: Final = 10
"""Levels of 255: less than a picture program's own compression changes, more than rounding does."""
FLOW_BETTER: Final = 12
"""Levels of 255 by which flow must show a place better to be followed where the mesh leads elsewhere."""
PIECES: Final = 12
"""Pieces of an edit, at most, that are followed on meshes of their own."""
SAMPLED: Final = 4000
"""Pixels, at most, that say how an edit moves as a whole."""
FEWEST: Final = 30
"""Pixels that an edit must have to be followed on a mesh."""
SLACK: Final = 2.0
"""Pixels from the edit's move as a whole within which a pixel counts as moving so."""
ALIKE: Final = 40
"""Levels of 255 by which colours at both ends of a believed map may differ, over 3 x 3 pixels."""
HALF: Final = 0.5


@final
@dataclass(frozen=True, eq=False)
class Track:
    """An edit followed through a clip, in files.

    `region` is 255 where the clip may change. `warped` holds the source's frames with the edit warped along,
    and `confidence` is 255 where that is believed.
    """

    region: UInt8[np.ndarray, "f 1 h w"]
    warped: UInt8[np.ndarray, "f 3 h w"]
    confidence: UInt8[np.ndarray, "f 1 h w"]


def track_edit(
    video: Video,
    keyframes: Mapping[int, UInt8[np.ndarray, "3 h w"]],
    *,
    margin: int,
    flow: Flow,
    run: Run,
) -> Track:
    """Follow edited frames through `video`, each until the next one; regions have a margin in pixels."""
    one_channel = (len(video), 1, video.height, video.width)
    region, confidence = run.scratch("region", one_channel), run.scratch("confidence", one_channel)
    warped = run.scratch("warped", video.frames.shape)
    changes = {at: find_changes(new, np.asarray(video.frames[at]), margin) for at, new in keyframes.items()}
    followed = list[FollowedPiece]()
    for at, (key, backward_map) in enumerate(backward_maps(video, keyframes, flow, run)):
        then, now = _upright(video.frames[key]), _upright(video.frames[at])
        if at == key:
            whole = KeyLayer.of(then, changes[key].astype(np.float32), changes[key])
            followed = [FollowedPiece.of(then, whole, piece) for piece in pieces_of(changes[key])]
        else:
            backward_map = straightened(backward_map, followed, at, now)
        edit = warp_edit(then, _upright(keyframes[key]), now, backward_map)
        warped[at] = edit.transpose(2, 0, 1)
        region[at, 0] = np.where(warp_mask(changes[key], backward_map), 255, 0)
        confidence[at, 0] = np.where(photo_consistent(then, now, backward_map), 255, 0)
    return Track(region, warped, confidence)


def find_changes(
    edited: UInt8[np.ndarray, "3 h w"], source: UInt8[np.ndarray, "3 h w"], margin: int
) -> Bool[np.ndarray, "h w"]:
    """Mark where two pictures differ noticeably, with a margin; single pixels do not count."""
    differs = cv2.absdiff(edited, source).max(axis=0) > NOTICEABLE
    areas = cv2.morphologyEx(differs.astype(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
    return np.asarray(grow(areas[None, None], margin)[0, 0] > 0)


def backward_maps(
    video: Video, keyframes: Collection[int], flow: Flow, run: Run
) -> Iterator[tuple[int, Float32[np.ndarray, "h w 2"]]]:
    """Yield for every frame the key frame before it, and which place there each of its pixels shows.

    At every step the map from frame to frame is corrected by the flow to the key frame itself, so that
    nothing drifts.
    """
    key, backward_map = 0, pixel_grid(video.height, video.width)
    for step in run.steps("track the edit", range(len(video))):
        at = step.index
        if at in keyframes:
            key, backward_map = at, pixel_grid(video.height, video.width)
        else:
            now = _upright(video.frames[at])
            backward_map = _compose(backward_map, flow.pair(now, _upright(video.frames[at - 1])))
            expected = remap(_upright(video.frames[key]), backward_map)
            backward_map = _compose(backward_map, flow.pair(now, expected))
        yield key, backward_map


@final
@dataclass(frozen=True, eq=False)
class FollowedPiece:
    """A piece of what was edited on a key frame, as it is followed on a mesh."""

    then: UInt8[np.ndarray, "h w 3"]
    key: KeyLayer
    state: PassState

    @classmethod
    def of(
        cls, then: UInt8[np.ndarray, "h w 3"], whole: KeyLayer, piece: Bool[np.ndarray, "h w"]
    ) -> "FollowedPiece":
        """Begin at the key frame; its pictures are shared by all pieces."""
        key = replace(whole, own=piece.astype(np.float32), wanted=piece)
        return cls(then, key, PassState.at_key(then, piece))

    def straighten(
        self, at: int, now: UInt8[np.ndarray, "h w 3"], flow_map: Float32[np.ndarray, "h w 2"]
    ) -> tuple[Float32[np.ndarray, "h w 2"], Bool[np.ndarray, "h w"]]:
        """Return a backward map that keeps lines of the piece straight, and where flow is no better."""
        share = remap(self.key.own, flow_map)
        told = share > HALF
        whole = move_as_a_whole(flow_map, told)
        if whole is None:
            return flow_map, np.zeros_like(told)
        found = carry_on(self.state, self.key, now, at, share, whole, told, SUPPLE)
        on_mesh, by_flow = (
            cv2.blur(np.abs(remap(self.then, places).astype(np.float32) - now).max(axis=2), (5, 5))
            for places in (found.positions, flow_map)
        )
        shown = found.known & (found.shown > HALF)
        return found.positions, shown & (on_mesh <= by_flow + FLOW_BETTER)


def pieces_of(changed: Bool[np.ndarray, "h w"]) -> list[Bool[np.ndarray, "h w"]]:
    """Return the pieces of an edit that may move by themselves: the largest, if there are many."""
    count, piece = cv2.connectedComponents(changed.astype(np.uint8))
    sizes = np.bincount(piece.ravel(), minlength=count)[1:]
    return [piece == which + 1 for which in np.argsort(-sizes, kind="stable")[:PIECES]]


def straightened(
    flow_map: Float32[np.ndarray, "h w 2"],
    followed: Sequence[FollowedPiece],
    at: int,
    now: UInt8[np.ndarray, "h w 3"],
) -> Float32[np.ndarray, "h w 2"]:
    """Return a frame's backward map as the pieces' meshes say, and elsewhere as flow does."""
    made = flow_map
    for piece in followed:
        places, use = piece.straighten(at, now, flow_map)
        made = np.where(use[..., None], places, made)
    return made


def move_as_a_whole(
    backward_map: Float32[np.ndarray, "h w 2"], told: Bool[np.ndarray, "h w"]
) -> Float32[np.ndarray, "h w 2"] | None:
    """Return the affine map that most of some pixels follow; None if they are too few."""
    y, x = np.nonzero(told)
    every = max(1, len(x) // SAMPLED)
    here = np.ascontiguousarray(np.stack([x, y], 1)[::every], np.float32)
    there = np.ascontiguousarray(backward_map[y, x][::every])
    if len(here) < FEWEST:
        return None
    matrix, _ = cv2.estimateAffine2D(here, there, ransacReprojThreshold=SLACK)
    if matrix is None:
        return None
    grid = pixel_grid(*told.shape)
    return np.asarray(grid @ matrix[:, :2].T + matrix[:, 2], np.float32)


def _compose(
    backward_map: Float32[np.ndarray, "h w 2"], flow: Float32[np.ndarray, "2 h w"]
) -> Float32[np.ndarray, "h w 2"]:
    """Look a map up where the flow points; beyond the frame's edge it goes on as it is at the edge."""
    target = pixel_grid(*flow.shape[1:]) + flow.transpose(1, 2, 0)
    last = np.array([flow.shape[2] - 1, flow.shape[1] - 1], np.float32)
    return np.asarray(warp_picture(backward_map, flow) + target - np.clip(target, 0, last), np.float32)


def warp_edit(
    then: UInt8[np.ndarray, "h w 3"],
    edited: UInt8[np.ndarray, "h w 3"],
    now: UInt8[np.ndarray, "h w 3"],
    backward_map: Float32[np.ndarray, "h w 2"],
) -> UInt8[np.ndarray, "h w 3"]:
    """Return a frame with what was edited `then` in the place where it is `now`."""
    changed = (edited != then).any(axis=2).astype(np.float32)
    shows = remap(changed, backward_map)[..., None] > HALF
    return np.asarray(np.where(shows, remap(edited, backward_map), now))


def warp_mask(
    mask: Bool[np.ndarray, "h w"], backward_map: Float32[np.ndarray, "h w 2"]
) -> Bool[np.ndarray, "h w"]:
    """Mark the pixels that show a marked place; what has come in over the edge since is not marked."""
    shows = remap(mask.astype(np.float32), backward_map) > HALF
    return np.asarray(shows & inside_frame(backward_map, HALF))


def photo_consistent(
    then: UInt8[np.ndarray, "h w 3"],
    now: UInt8[np.ndarray, "h w 3"],
    backward_map: Float32[np.ndarray, "h w 2"],
) -> Bool[np.ndarray, "h w"]:
    """Mark pixels that show now what their places showed then: neither uncovered, hidden nor lost."""
    error = np.abs(remap(then, backward_map).astype(np.float32) - now).max(axis=2)
    return np.asarray(inside_frame(backward_map, HALF) & (cv2.blur(error, (3, 3)) < ALIKE))


def _upright(frame: UInt8[np.ndarray, "3 h w"]) -> UInt8[np.ndarray, "h w 3"]:
    return np.ascontiguousarray(frame.transpose(1, 2, 0))
