"""Measures the layered atlas: seconds, decibels, and whether paint sticks.

    python benchmarks/atlas.py                      the world clip and its gates
    python benchmarks/atlas.py --clips FOLDER       also real clips that lie there: car-turn, man-surfing
    python benchmarks/atlas.py --clips FOLDER --long    also memory at 70, 280 and 700 frames (ten minutes)

All times are CPU seconds of one thread. With --clips, contact sheets are written to --sheets.
"""

import argparse
import json
import resource
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Self

import cv2
import numpy as np
import torch

from retouch.atlas.atlas import Atlas, PackedMattes, pack_matte, reconstruction_decibels
from retouch.atlas.decompose import refine_stages
from retouch.atlas.edit import PaintedFrame, painted_key, patches_from_frames, render_edit
from retouch.atlas.prepare import kept_objects, objects_from_cutout
from retouch.atlas.pyramid import AtlasSettings
from retouch.atlas.report import examine_atlas
from retouch.compute import Compute
from retouch.media.io import read
from retouch.run import Run
from retouch.tracking.segment import GrabCutSegmenter, ObjectMark, parse_mark
from retouch.video import Video
from retouch.world import Actor, Camera, Clip, Motion, Scene

MARKS = {
    "car-turn": [
        parse_mark("box", "46:78,192 432,394"),
        parse_mark("stroke", "46:196,350 204,356"),
        parse_mark("stroke", "46:394,338 400,344"),
        parse_mark("stroke", "46:100,335 190,320 300,325 415,310"),
    ],
    "wolf": [
        parse_mark("box", "20:0,48 368,511"),
        parse_mark("stroke", "20:180,160 200,330 60,400"),
        parse_mark("stroke", "20:110,75 130,100 180,140"),
        parse_mark("stroke", "20:307,70 290,120"),
    ],
    "man-surfing": [
        parse_mark("box", "37:190,160 478,640"),
        parse_mark("stroke", "37:295,190 300,250 330,310 330,420 300,480 330,570"),
        parse_mark("stroke", "37:215,305 270,290"),
        parse_mark("stroke", "37:350,280 400,310 445,312"),
        parse_mark("not", "37:230,350 240,420 280,400"),
    ],
}
NAMES = ("object", "background")


def run_in(folder: str) -> Run:
    """A run on the CPU with its files in a folder."""
    return Run.alone(Path(folder), compute=Compute(device="cpu"))


def packed(masks: np.ndarray) -> tuple[PackedMattes, ...]:
    """Masks (f, h, w) as one object's mattes."""
    return (PackedMattes.pack([pack_matte(np.ascontiguousarray(m)) for m in masks], *masks.shape[1:]),)


def mean_db(decibels: Sequence[float]) -> float:
    """The dB of the mean error."""
    return float(-10 * np.log10(np.nanmean(10 ** (-np.array(decibels) / 10))))


def solved(video: Video, mattes: tuple[PackedMattes, ...], what: str) -> tuple[Atlas, float]:
    """The atlas and its CPU seconds; quality after each stage is printed, and its measuring not counted."""
    spent, atlas = 0.0, None
    with tempfile.TemporaryDirectory() as folder:
        stages = refine_stages(video, mattes, NAMES, AtlasSettings(), run=run_in(folder))
        while True:
            began = time.process_time()
            atlas_now = next(stages, None)
            spent += time.process_time() - began
            if atlas_now is None:
                break
            atlas = atlas_now
            off = {
                name: round(mean_db(values), 2)
                for name, values in reconstruction_decibels(atlas, video).items()
            }
            print(f"  {what} {atlas.stage:9} {spent:6.2f} s  {off}", flush=True)
    assert atlas is not None
    return atlas, spent


def world() -> Clip:
    """160x96, 24 frames: a car that travels, leans, grows and bends before a panning, zooming ground."""
    motion = Motion(swing=(0.35, 0.06), turn_swing=0.055, scale_swing=0.1, bend=0.08, period=8.0)
    actor = Actor("car", "red", "checked", motion)
    camera = Camera(pan=(0.2, 0.08), zoom_swing=0.06, period=7.0)
    return Clip.of(Scene((actor,), "bricks", camera=camera), 24, (96, 160), Fraction(12))


def drift(clip: Clip, atlas: Atlas, layer: int, frame: int) -> tuple[float, float]:
    """Rms and 95th percentile, in pixels, of how far points painted on one frame slide on the surface."""
    truth, alpha = clip.layers[layer].coordinates, clip.shares[:, layer] / 255
    y, x = np.mgrid[4:92:3, 4:156:3].reshape(2, -1)
    own = alpha[frame, y, x] > 0.999
    x, y = x[own], y[own]
    chart = next(c for c in atlas.charts if c.layer == layer and c.covers(frame))
    uv = chart.mapping.uv_at(frame - chart.start, torch.tensor(np.stack([x, y], 1)).float())
    off = []
    for t in range(chart.start, chart.stop):
        points = chart.mapping.invert(t - chart.start, uv)[0].numpy().astype(np.float32)
        px, py = points.T
        found = np.stack([cv2.remap(c, px[None], py[None], cv2.INTER_LINEAR)[0] for c in truth[t]])
        slope = np.stack([np.gradient(truth[t, i], axis=(1, 0)) for i in (0, 1)])  # component, axis
        at = px.round().astype(int).clip(0, 159), py.round().astype(int).clip(0, 95)
        jacobian = np.moveaxis(slope[:, :, at[1], at[0]], 2, 0).astype(np.float64)
        seen = (
            cv2.remap(cv2.erode(alpha[t], np.ones((3, 3))), px[None], py[None], cv2.INTER_LINEAR)[0] > 0.999
        )
        inside = seen & (px > 2) & (px < 157) & (py > 2) & (py < 93)
        inside &= np.abs(np.linalg.det(jacobian)) > 1e-9
        wrong = (found - truth[frame][:, y, x]).T[inside]
        off.append(np.linalg.norm(np.linalg.solve(jacobian[inside], wrong[..., None])[..., 0], axis=1))
    together = np.concatenate(off)
    return float(np.sqrt(np.mean(together**2))), float(np.percentile(together, 95))


def edit_fidelity(clip: Clip, atlas: Atlas, layer: int, frame: int) -> tuple[float, float]:
    """Decibels of a decal painted on one frame and carried by the atlas, and by the true coordinates.

    Both are held against the decal drawn on the surface in every frame. The oracle reads the painted frame
    once, at the place that the true coordinates name; a gap to it is the mapping's and the texture's fault.
    """
    truth, share = clip.layers[layer].coordinates, clip.shares[:, layer, :, :, None] / 255
    sure = clip.shares[frame, layer] == 255
    room = cv2.distanceTransform(np.pad(sure, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = np.unravel_index(room.argmax(), room.shape)
    middle = truth[frame][:, row, column]
    pitch = np.hypot(*(truth[frame][:, row, column + 1] - middle))
    reach = 0.7 * min(float(room.max()), 18.0) * pitch

    def decal(t: int) -> tuple[np.ndarray, np.ndarray]:
        away = (truth[t] - middle[:, None, None]) / reach
        radius = np.hypot(*away)
        edge = np.hypot(*np.gradient(radius)) + 1e-6
        cover = np.clip((1 - radius) / edge + 0.5, 0, 1) * (share[t, ..., 0] > 0)
        waves = 0.5 + 0.5 * np.sin(away * 6.0)
        return np.stack([waves[0], 0.2 + 0 * radius, waves[1]], -1), cover[..., None]

    frames = clip.video.frames.transpose(0, 2, 3, 1) / 255
    decals = [decal(t) for t in range(len(frames))]
    wanted = np.stack([f + s * c * (d - f) for f, s, (d, c) in zip(frames, share, decals, strict=True)])
    painted = (wanted[frame] * 255).round().astype(np.uint8)
    source = np.ascontiguousarray(clip.video.frames[frame].transpose(1, 2, 0))
    key = painted_key(source, painted, frame)
    only = PaintedFrame(frame, key.colours, key.cover)
    patches = patches_from_frames(atlas, [only], [layer])
    ours = (
        np.concatenate([made for _, made, _ in render_edit(atlas, clip.video, patches)]).transpose(0, 2, 3, 1)
        / 255
    )

    region = [(c * s)[..., 0] > 0.01 for (_, c), s in zip(decals, share, strict=True)]
    reachable = cv2.dilate(region[frame].astype(np.uint8), np.ones((3, 3), np.uint8))
    y, x = np.nonzero(sure & (reachable > 0))
    tree = truth[frame][:, y, x].T
    errors_ours, errors_oracle = [], []
    for t in range(len(frames)):
        if t == frame:
            continue
        own = region[t] & (clip.shares[t, layer] == 255)
        at = _pixels_of(truth[frame], tree, np.stack([x, y], 1), truth[t][:, own].T)
        near = np.isfinite(at).all(1)
        px, py = at[near].T.astype(np.float32)
        read_back = cv2.remap(painted.astype(np.float32) / 255, px[None], py[None], cv2.INTER_LINEAR)[0]
        goal = wanted[t][own][near]
        errors_oracle.append(np.square(read_back - goal).mean(1))
        errors_ours.append(np.square(ours[t][own][near] - goal).mean(1))
    ours_db, oracle_db = (-10 * np.log10(np.concatenate(e).mean()) for e in (errors_ours, errors_oracle))
    return float(ours_db), float(oracle_db)


def _pixels_of(surface: np.ndarray, known: np.ndarray, pixels: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The pixels of a frame that show given surface positions: the nearest known one, then Newton steps."""
    from scipy.spatial import cKDTree

    distance, nearest = cKDTree(known).query(wanted)
    at: np.ndarray = pixels[nearest].astype(np.float64)
    slope = np.stack([np.gradient(surface[i], axis=(1, 0)) for i in (0, 1)])
    for _ in range(3):
        px, py = at.T.astype(np.float32)
        found = np.stack([cv2.remap(c, px[None], py[None], cv2.INTER_LINEAR)[0] for c in surface]).T
        column = px.round().astype(int).clip(0, surface.shape[2] - 1)
        row = py.round().astype(int).clip(0, surface.shape[1] - 1)
        jacobian = np.moveaxis(slope[:, :, row, column], 2, 0)
        step = np.linalg.solve(jacobian + 1e-12 * np.eye(2), (wanted - found)[..., None])[..., 0]
        at += np.clip(step, -2, 2)
    pitch = np.median(np.linalg.norm(slope, axis=(0, 1)))
    at[distance > 1.5 * pitch] = np.nan
    return at


def benchmark_world(figures: dict[str, float]) -> None:
    """The world clip, whose truth is known."""
    clip = world()
    atlas, seconds = solved(clip.video, packed(clip.shares[:, 0]), "world")
    figures |= {
        "world seconds": seconds,
        "world dB": mean_db(reconstruction_decibels(atlas, clip.video)["all"]),
    }
    report = examine_atlas(atlas, clip.video)
    for layer, name in enumerate(NAMES):
        figures[f"world {name} drift px"], figures[f"world {name} drift p95"] = drift(clip, atlas, layer, 12)
        ours, oracle = edit_fidelity(clip, atlas, layer, 12)
        figures |= {f"world {name} edit dB": ours, f"world {name} oracle dB": oracle}
        figures[f"world {name} folds"] = report.layers[layer].folds


def small_clip(folder: Path) -> tuple[Video, tuple[PackedMattes, ...], float]:
    """Frames 36 to 59 of car-turn at 144x144, its mask from one box and three strokes at that size."""
    whole = read(folder / "car-turn.mp4")[36:60]
    shots = [cv2.resize(f.transpose(1, 2, 0), (144, 144), interpolation=cv2.INTER_AREA) for f in whole.frames]
    video = Video(np.stack(shots).transpose(0, 3, 1, 2).copy(), whole.fps)
    marks = [
        ObjectMark(m.kind, m.frame - 36, tuple((x * 0.3, y * 0.3) for x, y in m.points))
        for m in MARKS["car-turn"]
    ]
    began = time.process_time()
    objects = objects_from_cutout(GrabCutSegmenter().segment(video, marks))
    return video, objects.mattes, time.process_time() - began


def benchmark_clip(
    name: str, video: Video, mattes: tuple[PackedMattes, ...], figures: dict[str, float]
) -> Atlas:
    """A real clip, which has no truth."""
    atlas, seconds = solved(video, mattes, name)
    figures[f"{name} seconds"] = figures.get(f"{name} mask seconds", 0.0) + seconds
    report = examine_atlas(atlas, video)
    figures[f"{name} dB"] = report.explained
    for layer in report.layers:
        figures |= {
            f"{name} {layer.name} dB": layer.explained,
            f"{name} {layer.name} propagated dB": layer.propagated,
            f"{name} {layer.name} reached": layer.reached,
            f"{name} {layer.name} stretch p95": layer.stretch,
            f"{name} {layer.name} folds": layer.folds,
            f"{name} {layer.name} pictures": layer.pictures,
        }
    began = time.process_time()
    for _ in render_edit(atlas, video, patches_from_frames(atlas, [sticker(video, len(video) // 2)])):
        pass
    figures[f"{name} rendered frames a second"] = len(video) / (time.process_time() - began)
    print(report.words(), flush=True)
    return atlas


def sticker(video: Video, t: int, at: tuple[float, float] = (0.5, 0.65)) -> PaintedFrame:
    """A disc with letters, painted on a frame."""
    source = np.ascontiguousarray(video.frames[t].transpose(1, 2, 0))
    picture = source.copy()
    centre = (int(at[0] * video.width), int(at[1] * video.height))
    radius = max(6, video.width // 20)
    cv2.circle(picture, centre, radius, (220, 30, 40), -1, cv2.LINE_AA)
    place = (centre[0] - radius // 2, centre[1] + radius // 2)
    cv2.putText(picture, "R", place, 0, radius / 18, (255, 255, 255), max(1, radius // 8), cv2.LINE_AA)
    return painted_key(source, picture, t)


def whole_clip(folder: Path, name: str, frames: int | None) -> tuple[Video, tuple[PackedMattes, ...], float]:
    """A real clip with the mask that its marks give."""
    video = read(folder / f"{name}.mp4")
    video = video if frames is None else video[:frames]
    began = time.process_time()
    objects = objects_from_cutout(GrabCutSegmenter().segment(video, MARKS[name]))
    return video, objects.mattes, time.process_time() - began


def sheet(atlas: Atlas, video: Video, keys: Sequence[PaintedFrame], path: Path) -> None:
    """A contact sheet of the clip with what was painted."""
    chosen = {int(t) for t in np.linspace(0, len(video) - 1, 18).round()}
    shots = []
    for start, frames, _ in render_edit(atlas, video, patches_from_frames(atlas, keys)):
        for t in sorted(chosen & set(range(start, start + len(frames)))):
            picture = cv2.resize(
                frames[t - start].transpose(1, 2, 0), (256, 256), interpolation=cv2.INTER_AREA
            )
            shots.append(picture)
    shots += [np.zeros_like(shots[0])] * (-len(shots) % 6)
    rows = [np.hstack(shots[i : i + 6]) for i in range(0, len(shots), 6)]
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.vstack(rows)[..., ::-1])


def benchmark_memory(folder: Path, lengths: Sequence[int], figures: dict[str, float]) -> None:
    """Peak memory for several lengths of one clip, which goes to and fro, each in a process of its own."""
    import subprocess
    import sys

    for frames in lengths:
        command = [sys.executable, __file__, "--clips", str(folder), "--only-memory", str(frames)]
        made = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        figures |= {f"{frames} frames {name}": value for name, value in json.loads(made).items()}


class PeakMemory:
    """The most memory of this process, in MB, that no file stands behind, looked at a hundred times a second.

    Pages of files, such as the clip and scratch space, are left out: the system takes them back at will.
    """

    def __enter__(self) -> Self:
        """Begin to look."""
        self.most, self.over = 0.0, threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop looking."""
        self.over.set()
        self.thread.join()

    def _look(self) -> None:
        while not self.over.wait(0.01):
            status = Path("/proc/self/status").read_text()
            kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon"))
            self.most = max(self.most, int(kilobytes) / 1024)


def memory_of(folder: Path, frames: int) -> dict[str, float]:
    """Peak memory and CPU seconds of masks, decomposition and one painted clip, so many frames long."""
    with tempfile.TemporaryDirectory() as place:
        whole = read(folder / "car-turn.mp4")
        shape = (frames, *whole.frames.shape[1:])
        pictures = np.memmap(Path(place) / "clip", np.uint8, "w+", shape=shape)
        order = [t if (k // 70) % 2 == 0 else 69 - t for k in range(frames) for t in [k % 70]]
        for k, t in enumerate(order):
            pictures[k] = whole.frames[t]
        pictures.flush()
        stored = np.memmap(Path(place) / "clip", np.uint8, "r", shape=shape)
        del pictures, whole
        video, run = Video(stored, Fraction(10)), run_in(place)
        marked = [replace(m, frame=k) for k, t in enumerate(order) for m in MARKS["car-turn"] if m.frame == t]
        began = time.process_time()
        with PeakMemory() as memory:
            mattes = kept_objects(video, tuple(marked), run=run).mattes
            print("masks", round(time.process_time() - began), round(memory.most), flush=True)
            for atlas in refine_stages(video, mattes, NAMES, AtlasSettings(), run=run):
                print(atlas.stage, round(time.process_time() - began), round(memory.most), flush=True)
            for _ in render_edit(atlas, video, patches_from_frames(atlas, [sticker(video, 40)])):
                pass
        return {
            "own memory MB": memory.most,
            "with pages of files MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "seconds": time.process_time() - began,
            "object dB": mean_db(reconstruction_decibels(atlas, video)["object"]),
        }


def main() -> None:
    """Measure, print, and write the figures as JSON if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=Path, help="folder with car-turn.mp4, wolf.mp4, man-surfing.mp4")
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--long", action="store_true", help="also memory at 70, 280 and 700 frames")
    parser.add_argument("--only", default="", help="one of: small, car-turn, wolf, man-surfing")
    parser.add_argument("--only-memory", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if given.only_memory:
        print(json.dumps(memory_of(given.clips, given.only_memory)))
        return
    figures: dict[str, float] = {}
    if not given.only:
        benchmark_world(figures)
    if given.clips:
        if given.only in ("", "small"):
            video, mattes, figures["small mask seconds"] = small_clip(given.clips)
            benchmark_clip("small", video, mattes, figures)
        for name, frames, stickers in (
            ("car-turn", 70, {14: (0.82, 0.545), 40: (0.71, 0.58), 62: (0.76, 0.57)}),
            ("wolf", None, {20: (0.5, 0.65)}),
            ("man-surfing", None, {37: (0.5, 0.65)}),
        ):
            if given.only in ("", name) and (given.clips / f"{name}.mp4").exists():
                video, mattes, figures[f"{name} mask seconds"] = whole_clip(given.clips, name, frames)
                atlas = benchmark_clip(name, video, mattes, figures)
                figures[f"{name} peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                if given.sheets:
                    keys = [sticker(video, t, at) for t, at in stickers.items()]
                    sheet(atlas, video, keys, given.sheets / f"{name}.png")
        if given.long:
            benchmark_memory(given.clips, (70, 280, 700), figures)
    for name, value in figures.items():
        print(f"{name:45} {value:10.3f}")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
