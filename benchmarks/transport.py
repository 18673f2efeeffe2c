"""Measures how well paint is carried over real clips, by coordinates: methods side by side in one run.

    python benchmarks/transport.py                               drawn scenes, whose truth is known
    python benchmarks/transport.py --clips FOLDER                also the clips of the table that lie there
    python benchmarks/transport.py --clips FOLDER --fits PLACE   keeps the atlases there, for the next run

A row holds a painted frame's own pixels, carried to frames at some distance on both sides, against those
frames, in dB: each layer without three pixels along its edge, and only pixels that every method reaches.
`nothing` leaves the paint where it was; `planar` is one homography per layer from SIFT matches; `dis` chains
dense inverse search from neighbour to neighbour; `atlas` is the textures; `direct` goes straight from the
painted frame, as `--transport direct` does.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import torch

from atlas import MARKS, NAMES, drift, packed, run_in
from retouch.atlas.atlas import Atlas
from retouch.atlas.decompose import decompose_clip
from retouch.atlas.edit import painted_key, position_patches, read_positions
from retouch.atlas.file import load_atlas, save_atlas
from retouch.atlas.prepare import objects_from_cutout
from retouch.atlas.pyramid import AtlasSettings
from retouch.atlas.transport import transport_positions
from retouch.atlas.transported_paint import transport_paint
from retouch.media.io import read
from retouch.metrics.propagation import position_flicker, propagation_decibels, straightness
from retouch.tracking.flow import DisFlow, inside_frame, pixel_grid, warp_picture
from retouch.tracking.segment import GrabCutSegmenter
from retouch.video import Video
from retouch.world import Actor, Camera, Clip, Motion, Scene

CLIPS = {"wolf": (None, 20), "car-turn": (70, 46), "man-surfing": (None, 37)}
"""How many frames of each clip are taken, and which one is painted."""
SCENES = {
    "bare cup": (
        Actor("cup", "red", "plain", Motion(swing=(0.3, 0.06), turn_swing=0.1, scale_swing=0.1, period=8.0)),
        Camera(pan=(0.2, 0.08), zoom_swing=0.06, period=7.0),
    ),
    "still camera": (Actor("house", "red", "plain", Motion(swing=(0.3, 0.06), period=8.0)), Camera()),
}
"""Drawn scenes of 12 frames at 160x96: what moves, and the camera."""
DISTANCES = (5, 10, 20, 30, 40)
Maps = Iterator[tuple[int, np.ndarray, np.ndarray]]
"""Frame numbers, position maps, and where these are known."""


def fitted(folder: Path, name: str, fits: Path | None) -> tuple[Video, Atlas, float]:
    """Return a clip, its atlas, and the CPU seconds of the fit; zero if it was kept."""
    frames, _ = CLIPS[name]
    video = read(folder / f"{name}.mp4")
    video = video if frames is None else video[:frames]
    kept = fits / f"{name}.atlas" if fits else None
    if kept and kept.exists():
        return video, load_atlas(kept, video), 0.0
    began = time.process_time()
    objects = objects_from_cutout(GrabCutSegmenter().segment(video, MARKS[name]))
    with tempfile.TemporaryDirectory() as place:
        atlas = decompose_clip(video, objects.mattes, NAMES, AtlasSettings(), run=run_in(place))
    seconds = time.process_time() - began
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_atlas(atlas, kept)
    return video, atlas, seconds


def upright(video: Video, t: int) -> np.ndarray:
    """Return a frame with its channels last."""
    return np.ascontiguousarray(video.frames[t].transpose(1, 2, 0))


def solid(atlas: Atlas, t: int, layer: int) -> np.ndarray:
    """Mark the pixels that are a layer's alone, three pixels from its edge or more."""
    share = atlas.shares(t, t + 1)[layer][0, 0].numpy()
    return cv2.erode((share > 0.5).astype(np.uint8), np.ones((7, 7), np.uint8)) > 0


def nothing(video: Video, atlas: Atlas, key: int, layer: int) -> Maps:
    """Leave the paint where it was."""
    del atlas, key, layer
    for t in range(len(video)):
        yield t, pixel_grid(video.height, video.width), np.ones((video.height, video.width), bool)


def textures(video: Video, atlas: Atlas, key: int, layer: int) -> Maps:
    """Carry through the textures of the atlas."""
    patches = position_patches(atlas, key, layer)
    for t in range(len(video)):
        places, cover = read_positions(atlas, patches, t, t + 1)
        share = atlas.shares(t, t + 1)[layer]
        yield t, places[0].movedim(0, 2).numpy(), (cover > 0.5 * share)[0, 0].numpy()


def dis_chain(video: Video, atlas: Atlas, key: int, layer: int) -> Maps:
    """Chain the flow from neighbour to neighbour."""
    del atlas, layer
    flow, here = DisFlow(), pixel_grid(video.height, video.width)
    yield key, here, inside_frame(here)
    for frames in (range(key + 1, len(video)), range(key - 1, -1, -1)):
        places, before = here, key
        for t in frames:
            step = flow.pair(upright(video, t), upright(video, before))
            places = warp_picture(places, step)
            # What comes in over the frame's edge was never seen.
            places[~inside_frame(here + step.transpose(1, 2, 0))] = -1e4
            yield t, places, inside_frame(places)
            before = t


def direct(video: Video, atlas: Atlas, key: int, layer: int) -> Maps:
    """Go straight from the painted frame."""
    for found in transport_positions(atlas, video, key, layer):
        yield found.frame, found.positions, found.known


def planar(video: Video, atlas: Atlas, key: int, layer: int) -> Maps:
    """Fit one homography per layer to matches of SIFT features."""
    sift, matcher = cv2.SIFT.create(4000), cv2.BFMatcher(crossCheck=False)
    grid = pixel_grid(video.height, video.width)

    def features(t: int) -> tuple[tuple[cv2.KeyPoint, ...], np.ndarray | None]:
        own = (atlas.shares(t, t + 1)[layer][0, 0].numpy() > 0.9).astype(np.uint8)
        return sift.detectAndCompute(upright(video, t), own)  # type: ignore[return-value]

    points, words = features(key)
    for t in range(len(video)):
        there, found = features(t)
        matrix = None
        if words is not None and found is not None and len(words) > 1 and len(found) > 1:
            pairs = [m for m, n in matcher.knnMatch(found, words, k=2) if m.distance < 0.75 * n.distance]
            if len(pairs) >= 8:
                a = np.float32([there[m.queryIdx].pt for m in pairs])
                b = np.float32([points[m.trainIdx].pt for m in pairs])
                matrix, _ = cv2.findHomography(a, b, cv2.RANSAC, 2.0)
        if matrix is not None:
            places = cv2.perspectiveTransform(grid.reshape(1, -1, 2), matrix).reshape(grid.shape)
            yield t, places, inside_frame(places)


METHODS: dict[str, Callable[[Video, Atlas, int, int], Maps]] = {
    "nothing": nothing,
    "planar": planar,
    "dis": dis_chain,
    "atlas": textures,
    "direct": direct,
}


def wanted_frames(video: Video, key: int) -> list[int]:
    """Return the frames at the distances of the table, and their neighbours, for flicker."""
    apart = [key + sign * d + k for d in DISTANCES for sign in (-1, 1) for k in (-1, 0, 1)]
    return sorted({t for t in apart if 0 <= t < len(video)})


def measure_layer(video: Video, atlas: Atlas, key: int, layer: int) -> dict[str, float]:
    """Return the figures of all methods for one layer."""
    wanted, kept, figures = wanted_frames(video, key), {}, {}
    for name, method in METHODS.items():
        began = time.process_time()
        for t, places, known in method(video, atlas, key, layer):
            if t in wanted:
                kept[name, t] = places.astype(np.float32), known
        figures[f"{name} seconds a frame"] = (time.process_time() - began) / len(video)
    picture, flow = upright(video, key), DisFlow()
    for distance in DISTANCES:
        rows: dict[tuple[str, str], list[float]] = {}
        for t in (key - distance, key + distance):
            names = [name for name in METHODS if (name, t) in kept]
            both = solid(atlas, t, layer) if 0 <= t < len(video) else np.zeros((1, 1), bool)
            for name in names:
                both = both & kept[name, t][1] & inside_frame(kept[name, t][0])
            if both.sum() < 200:
                continue
            for name in names:
                places = kept[name, t][0]
                rows.setdefault((name, "dB"), []).append(
                    propagation_decibels(upright(video, t), picture, places, both)
                )
                rows.setdefault((name, "straight"), []).append(straightness(places, both))
                near = [kept.get((name, t + k)) for k in (-1, 1)]
                if all(near) and both.any():
                    now = upright(video, t)
                    flows = [flow.pair(now, upright(video, t + k)) for k in (-1, 1)]
                    maps = (near[0][0], places, near[1][0])
                    rows.setdefault((name, "flicker"), []).append(position_flicker(maps, flows, both))
        figures |= {f"{name} {what} {distance}": float(np.mean(v)) for (name, what), v in rows.items()}
    return figures


def sticker_seconds(video: Video, atlas: Atlas, key: int) -> float:
    """Return the CPU seconds that `auto` takes to carry a disc painted on the middle of the object."""
    own = cv2.distanceTransform(solid(atlas, key, 0).astype(np.uint8), cv2.DIST_L2, 5)
    canvas, at = upright(video, key), np.unravel_index(own.argmax(), own.shape)[::-1]
    cv2.circle(canvas, at, video.width // 16, (30, 60, 170), -1, cv2.LINE_AA)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as place:
        shot = painted_key(upright(video, key), canvas, key)
        transport_paint(atlas, video, [shot], choose=True, run=run_in(place))
    return time.process_time() - began


def measure_scenes() -> dict[str, float]:
    """Return how far points painted on the middle frame of each drawn scene slide, rms, in pixels."""
    figures = {}
    for name, (actor, camera) in SCENES.items():
        clip = Clip.of(Scene((actor,), "bricks", camera=camera), 12, (96, 160), Fraction(12))
        with tempfile.TemporaryDirectory() as place:
            mattes = packed(clip.shares[:, 0])
            atlas = decompose_clip(clip.video, mattes, NAMES, AtlasSettings(), run=run_in(place))
        for layer, what in enumerate(NAMES):
            figures[f"{name}, {what}: drift px"] = drift(clip, atlas, layer, 6)[0]
    return figures


def table(figures: dict[str, float], what: str) -> str:
    """Return the figures of one kind, a line a method."""
    lines = []
    for name in METHODS:
        found = [figures.get(f"{name} {what} {d}") for d in DISTANCES]
        lines.append(f"  {name:10}" + "".join("     -" if f is None else f"{f:6.2f}" for f in found))
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write the figures as JSON if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=Path, help="folder with the clips")
    parser.add_argument("--fits", type=Path, help="folder that keeps the fitted atlases")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--only", default="", help=f"one of: {', '.join(CLIPS)}")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    everything = measure_scenes()
    for what, value in everything.items():
        print(f"{what:40} {value:8.3f}", flush=True)
    for name, (_, key) in CLIPS.items():
        if given.clips and given.only in ("", name) and (given.clips / f"{name}.mp4").exists():
            video, atlas, seconds = fitted(given.clips, name, given.fits)
            everything[f"{name} fit seconds"] = seconds
            everything[f"{name} sticker seconds"] = sticker = sticker_seconds(video, atlas, key)
            print(f"{name}: {seconds:.0f} CPU seconds for the fit, {sticker:.1f} for a sticker", flush=True)
            for layer, what in enumerate(NAMES):
                found = measure_layer(video, atlas, key, layer)
                everything |= {f"{name} {what} {k}": v for k, v in found.items()}
                for kind in ("dB", "straight", "flicker"):
                    print(f"{name} {what}, {kind} at {DISTANCES}\n{table(found, kind)}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main()
