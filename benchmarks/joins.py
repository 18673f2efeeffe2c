"""Where one key frame of a panned ground ends and the next begins: how much of a line shows there.

Run:  python benchmarks/joins.py measure FOLDER [--choose] [--size 64] [--clips 6] [--tell NAME=VALUE ...]

A camera pans over a ground two frames wide, and an object goes with it; the ground becomes another in four
key frames. Every join lies near where a key frame's edge was, which is known. *Step* is the largest mean
difference of neighbouring columns near a join, in levels; *line* is how far the mean colour of a column near
it departs from the columns around it, at most. The same is measured far from any join, and of the source and
the clip whose ground is truly another. Frames and key frames are kept in the folder.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch

from retouch.compute import Compute
from retouch.media.io import write, write_picture
from retouch.registry import method
from retouch.run import Edited, Run
from retouch.video import Video
from retouch.world import Camera, Clip, Motion, Scene

FIRST_SEED, CHOOSE_SEED = 2_500_000_000, 2_600_000_000
FRAMES, STEPS = 32, 20
KEYS: Final = (4, 13, 19, 28)
"""Key frames, in the order of their editing."""
PAN, PERIOD = 1.5, 8.0
"""World units to either side that the camera swings, and in how many seconds; a frame shows 2 units."""
NEAR: Final = 0.19
"""World units around a join in which it is looked for."""
GROUNDS: Final = ("sand", "snow", "grass", "wood")


def panned(seed: int, size: int) -> tuple[Clip, Clip, str]:
    """Return a clip whose camera pans, the same on another ground, and the ground's name."""
    scene = Scene.sample(seed)
    swing = {"period": PERIOD, "phase": -0.25}
    actor = replace(scene.actors[0], motion=Motion(centre=(0.0, 0.1), swing=(PAN, 0.0), scale=0.4, **swing))
    scene = replace(scene, actors=(actor,), style="none", camera=Camera((PAN, 0.0), **swing))
    others = [ground for ground in GROUNDS if ground != scene.background]
    ground = others[seed % len(others)]
    clip, target = (Clip.of(made, FRAMES, size) for made in (scene, replace(scene, background=ground)))
    return clip, target, ground


def edited(clip: Clip, ground: str, folder: Path, told: dict[str, object]) -> Edited:
    """Return the clip on another ground."""
    folder.mkdir(parents=True, exist_ok=True)
    mask = np.repeat((clip.masks[0] > 0).astype(np.uint8) * 255, 3, axis=1)
    path = write(Video(mask, clip.video.fps), folder / "mask", force=True)
    given = {"prompt": clip.caption, "background_prompt": ground, "edits": "background", "mask": path}
    spec = method("stablevideo")
    run = Run.alone(folder / "store", compute=Compute(device="cpu", threads=1))
    with run.compute.repeatable():
        filled = spec.fill({**given, "at": KEYS, "steps": STEPS, **told})
        found = spec.load(spec.edit)(clip.video, filled, run)
    assert isinstance(found, Edited)
    return found


def joins_and_far(clip: Clip) -> tuple[list[float], list[float]]:
    """Return the world x of each join, and of places between that are as far from any as can be."""
    views = [clip.scene.camera.at(t / float(clip.video.fps)).x for t in range(FRAMES)]
    shown = list[tuple[float, float]]()
    joins = list[float]()
    for t in KEYS:
        shown.append((views[t] - 1, views[t] + 1))
    ends = [x for a, b in shown for x in (a, b)]
    # A key frame draws up to where those before it end; its own ends join where a later one goes on.
    for i, (a, b) in enumerate(shown):
        for x in (a, b):
            before = any(c < x < d for c, d in shown[:i])
            after = any(c < x < d for c, d in shown[i + 1 :])
            if after and not before:
                joins.append(x)
    inside = np.linspace(min(ends) + 2 * NEAR, max(ends) - 2 * NEAR, 200)
    far = [x for x in inside if min(abs(x - j) for j in joins) > 2 * NEAR]
    return sorted(joins), [float(x) for x in far[:: max(1, len(far) // 12)]]


def lines_of(frames: np.ndarray, clip: Clip, places: Sequence[float]) -> tuple[float, float]:
    """Return the mean step and line of frames near places of the ground, in levels."""
    steps, lines = list[float](), list[float]()
    size = frames.shape[2]
    for t in range(FRAMES):
        view = clip.scene.camera.at(t / float(clip.video.fps))
        ground = clip.shares[t, -1] > 250
        picture = np.where(ground, frames[t].astype(np.float32), np.nan)
        with np.errstate(all="ignore"):
            step = np.nanmean(np.abs(np.diff(picture, axis=2)), axis=(0, 1))
            column = np.nanmean(picture, axis=1)  # 3 w
        reach = round(NEAR * size / 2)
        for x in places:
            at = round((x - view.x) * size / 2 + (size - 1) / 2)
            if 2 * reach < at < size - 2 * reach - 1:
                steps.append(float(np.nanmax(step[at - reach : at + reach])))
                around = np.r_[at - 2 * reach - 1 : at - reach, at + reach : at + 2 * reach + 1]
                mean = np.nanmean(column[:, around], axis=1, keepdims=True)
                lines.append(float(np.nanmax(np.abs(column[:, at - reach : at + reach] - mean).mean(0))))
    return float(np.mean(steps)), float(np.mean(lines))


def rows(
    folder: Path, first: int, clips: int, size: int, told: dict[str, object]
) -> Iterator[dict[str, object]]:
    """Yield the figures of clip after clip, and keep its frames."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(clips):
        clip, target, ground = panned(first + number, size)
        joins, far = joins_and_far(clip)
        found = edited(clip, ground, folder.parent / "work", told)
        made = np.array(found.video.frames)
        keys = [np.asarray(found.extras[name]) for name in sorted(found.extras)]
        np.save(folder / f"{number}.npy", made)
        shown = np.hstack(list(made[::4].transpose(0, 2, 3, 1)))
        write_picture(np.ascontiguousarray(shown), folder / f"{number}.png", force=True)
        write_picture(np.ascontiguousarray(np.hstack(keys)), folder / f"{number}-keys.png", force=True)
        row: dict[str, object] = {"clip": number, "from": clip.caption, "to": ground}
        for name, frames in {"made": made, "truth": target.video.frames, "source": clip.video.frames}.items():
            for where, places in {"join": joins, "far": far}.items():
                step, line = lines_of(np.array(frames), clip, places)
                row |= {f"{name} {where} step": round(step, 2), f"{name} {where} line": round(line, 2)}
        yield row


def main() -> None:
    """Do what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("measure",))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--choose", action="store_true", help="clips to choose settings by")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--tell", action="append", default=[], metavar="NAME=VALUE")
    given = parser.parse_args()
    torch.set_num_threads(1)
    told = {name: json.loads(value) for name, _, value in (text.partition("=") for text in given.tell)}
    found = list[dict[str, object]]()
    for row in rows(given.folder, CHOOSE_SEED if given.choose else FIRST_SEED, given.clips, given.size, told):
        found.append(row)
        print(json.dumps(row), flush=True)
    figures = [name for name in found[0] if name.endswith(("step", "line"))]
    means = {name: round(float(np.mean([float(str(row[name])) for row in found])), 2) for name in figures}
    print(json.dumps(means))


if __name__ == "__main__":
    main()
