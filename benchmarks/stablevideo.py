"""StableVideo against the truth: what handing on from key frame to key frame is worth, and what it costs.

Run:  python benchmarks/stablevideo.py measure FOLDER [colour object ...] [--clips 10]
      python benchmarks/stablevideo.py table FOLDER
      python benchmarks/stablevideo.py slip FOLDER
      python benchmarks/stablevideo.py sheet FOLDER sheet.webp
      python benchmarks/stablevideo.py painted FOLDER [--clips 10]
      python benchmarks/stablevideo.py cost FIXTURE

`measure` edits drawn clips, which no embedded model has seen, by words: with key frames that know nothing of
each other, that share their noise, that know the one before, and that know all before; beside them FateZero,
frame by frame, and doing nothing. It keeps a row for each clip and way in a folder, and goes on where it was
stopped. Three key frames are given, so that all ways edit the same.

`slip` reads the frames that are kept: how sharp what is edited is, and by how many pixels it slips along the
true motion, in which blur wins nothing; `sheet` draws them.

`painted` edits one key frame by words, as `retouch keyframe --edit` does, and paints with it; beside it the
model's answer is painted by hand: taken exactly where the true edit is.

`cost` says what aggregation costs beside the released way: see `aggregation.py`.

Seconds are processor seconds of one thread; the first way of a clip also takes it apart into an atlas.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import torch
from PIL import Image

from retouch.apps.bench import BenchPlan, BenchTrial, make_trials
from retouch.compute import Compute
from retouch.media.compare import draw_sheet
from retouch.media.io import read_picture, write_picture
from retouch.metrics.consistency import true_motion, warp_error
from retouch.metrics.fidelity import psnr
from retouch.metrics.uncertainty import bootstrap_interval, paired_interval
from retouch.registry import method
from retouch.run import Edited, Run

FIRST_SEED: Final = 2_400_000_000
FRAMES, SIZE, STEPS = 12, 64, 20
KEPT: Final = (0, FRAMES // 2, FRAMES - 1)
"""Frames of each result that are kept as a picture; they are the key frames."""
SURELY: Final = 0.99
"""Share of a place between pixels that must stay in view."""
WAYS: Final[Mapping[str, Mapping[str, object]]] = {
    "independent": {"carry": "none"},
    "same noise": {"carry": "noise"},
    "the one before": {"carry": "previous"},
    "all before": {"carry": "all"},
}
OTHERS: Final = ("fatezero", "frame_by_frame", "nothing")
FIGURES: Final = ("inside", "outside", "warp", "agreement", "seconds")
HEADS: Final = ("inside, dB", "outside, dB", "warp error", "key frames agree, dB", "CPU-s")


def trials(kinds: list[str], clips: int) -> Iterator[BenchTrial]:
    """Yield changes of clips, each clip with every kind of change."""
    plan = BenchPlan((), tuple(kinds), clips, FRAMES, SIZE, world_seed=FIRST_SEED)
    return make_trials(plan)


def box_of(trial: BenchTrial) -> tuple[str, ...]:
    """Return a box around the object in the middle frame."""
    middle = FRAMES // 2
    rows, columns = np.nonzero(trial.clip.masks[0, middle, 0])
    return (f"{middle}:{columns.min()},{rows.min()} {columns.max()},{rows.max()}",)


def edited(trial: BenchTrial, way: str, folder: Path) -> Edited:
    """Return what a way makes of a trial."""
    if way == "nothing":
        return Edited(trial.clip.video)
    told: dict[str, object] = {"prompt": trial.target.caption, "steps": STEPS}
    name = way if way in OTHERS else "stablevideo"
    if way == "fatezero":
        told["source_prompt"] = trial.clip.caption
    if name == "stablevideo":
        where = "background" if trial.kind == "background" else "object"
        told |= {"box": box_of(trial), "edits": where, "at": (FRAMES // 2, 0, FRAMES - 1), **WAYS[way]}
    preset = {"object": "shape"}.get(trial.kind, "attribute") if way == "fatezero" else None
    spec = method(name)
    run = Run.alone(folder, compute=Compute(device="cpu", threads=1))
    with run.compute.repeatable():
        found = spec.load(spec.edit)(trial.clip.video, spec.fill(told, preset=preset), run)
    assert isinstance(found, Edited)
    return found


def row_of(trial: BenchTrial, way: str, store: Path) -> tuple[dict[str, object], np.ndarray]:
    """Return the figures of a way on a trial, and its frames."""
    began = time.process_time()
    found = edited(trial, way, store)
    frames, truth = np.array(found.video.frames), trial.target.video.frames
    return {
        "trial": trial.name,
        "kind": trial.kind,
        "way": way,
        "seconds": time.process_time() - began,
        "inside": psnr(frames, truth, trial.inside),
        "outside": psnr(frames, trial.clip.video.frames, ~trial.inside),
        "warp": warp_error(frames, true_motion(trial.clip.forward, trial.clip.forward_seen)),
        "agreement": found.figures.get("agreement_db"),
    }, frames


def measure(folder: Path, kinds: list[str], clips: int) -> None:
    """Measure all ways on all trials that have no row yet."""
    folder.mkdir(parents=True, exist_ok=True)
    done = {(row["trial"], row["way"]) for row in rows_in(folder)}
    for trial in trials(kinds, clips):
        with tempfile.TemporaryDirectory() as store:
            for way in (*WAYS, *OTHERS):
                if (trial.name, way) in done:
                    continue
                row, frames = row_of(trial, way, Path(store))
                place = folder / "frames" / f"{trial.name} {way}.png"
                place.parent.mkdir(exist_ok=True)
                write_picture(np.ascontiguousarray(shown(frames)), place, force=True)
                with (folder / "rows.jsonl").open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(row) + "\n")
                print(trial.name, way, {k: row[k] for k in FIGURES}, flush=True)


def rows_in(folder: Path) -> list[dict[str, object]]:
    """Return the rows that are kept."""
    path = folder / "rows.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(folder: Path) -> str:
    """Return the tables in Markdown: means with intervals, then the differences from independent frames."""
    rows, lines = rows_in(folder), list[str]()
    for kind in dict.fromkeys(row["kind"] for row in rows):
        found = {(way, row["trial"]): row for row in rows if row["kind"] == kind for way in [str(row["way"])]}
        count = len({trial for _, trial in found})
        lines += [f"## {kind}, {count} clips", "", "| way | " + " | ".join(HEADS) + " |"]
        lines += ["|---" * (len(HEADS) + 1) + "|"]
        for way in (*WAYS, *OTHERS):
            mine = [row for (name, _), row in found.items() if name == way]
            lines.append(f"| {way} | " + " | ".join(cell(mine, figure) for figure in FIGURES) + " |")
        lines += ["", "All before, less:", ""]
        for way in (*WAYS, *OTHERS):
            both = [
                (row, found[way, trial])
                for (name, trial), row in found.items()
                if name == "all before" and (way, trial) in found
            ]
            if way != "all before" and both:
                lines.append(f"- {way}: " + ", ".join(apart(both, figure) for figure in FIGURES[:4]))
        lines.append("")
    return "\n".join(lines)


def cell(rows: list[dict[str, object]], figure: str) -> str:
    """Return a mean with its interval as text."""
    values = [float(str(row[figure])) for row in rows if row[figure] is not None]
    finite = [value for value in values if np.isfinite(value)]
    if not finite:
        return "exact" if values else "-"
    mean = bootstrap_interval(finite)
    digits = 4 if figure == "warp" else 1
    exact = f" ({len(values) - len(finite)} exact)" if len(finite) < len(values) else ""
    return f"{mean.mean:.{digits}f} ({mean.low:.{digits}f} to {mean.high:.{digits}f}){exact}"


def apart(
    both: Sequence[tuple[Mapping[str, object], Mapping[str, object]]], figure: str, digits: int = 1
) -> str:
    """Return a paired difference with its interval as text."""
    pairs = [(a[figure], b[figure]) for a, b in both if a[figure] is not None and b[figure] is not None]
    ours, theirs = (
        ([float(str(value)) for value in side] for side in zip(*pairs, strict=True)) if pairs else ([], [])
    )
    if len(ours) < 2 or not np.isfinite([*ours, *theirs]).all():
        return f"{figure} -"
    found, digits = paired_interval(ours, theirs), 4 if figure == "warp" else digits
    return f"{figure} {found.mean:+.{digits}f} ({found.low:+.{digits}f} to {found.high:+.{digits}f})"


def kept(folder: Path) -> Iterator[tuple[BenchTrial, dict[str, np.ndarray]]]:
    """Yield each trial that all ways have a row of, drawn again, and the kept frames of each way."""
    found = dict[str, set[str]]()
    for row in rows_in(folder):
        found.setdefault(str(row["trial"]), set()).add(str(row["way"]))
    kinds = list(dict.fromkeys(name.split("-")[1] for name in found))
    for trial in trials(kinds, max(int(name.split("-")[0]) for name in found) + 1):
        if len(found.get(trial.name, ())) == len(WAYS) + len(OTHERS):
            made = {
                way: read_picture(folder / "frames" / f"{trial.name} {way}.png")[..., :3]
                for way in found[trial.name]
            }
            made["the true edit"] = shown(np.array(trial.target.video.frames))
            yield trial, made


def shown(frames: np.ndarray) -> np.ndarray:
    """Return the frames that are kept of a clip, side by side."""
    return np.hstack(list(frames[list(KEPT)].transpose(0, 2, 3, 1)))


def slip(trial: BenchTrial, picture: np.ndarray) -> dict[str, float]:
    """Return how sharp what is edited in the kept frames is, and by how many pixels it slips.

    Sharpness is the mean gradient, over the true edit's. What slips is the difference of kept frames along
    the true motion, over the mean gradient: the pixels that would make such a difference. Blur lowers both.
    """
    truth = np.split(shown(np.array(trial.target.video.frames)), len(KEPT), 1)
    frames, steep, true_steep, differences = np.split(picture, len(KEPT), 1), [], [], list[np.ndarray]()
    for (a, b), (first, second), (true, _) in zip(
        pairwise(KEPT), pairwise(frames), pairwise(truth), strict=True
    ):
        where = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE))).astype(np.float32)
        seen = trial.inside[a, 0]
        for t in range(a, b):
            step = {"borderMode": cv2.BORDER_REPLICATE, "interpolation": cv2.INTER_LINEAR}
            there = cv2.remap(trial.clip.forward_seen[t, 0].astype(np.float32), *where, **step) > SURELY
            flow = np.stack([cv2.remap(plane, *where, **step) for plane in trial.clip.forward[t]])
            seen, where = seen & there, where + flow
        seen = seen & ((where >= 0) & (where <= SIZE - 1)).all(0)
        later = cv2.remap(second.astype(np.float32), *where, cv2.INTER_LINEAR)
        differences.append(np.abs(later - first)[seen])
        steep.append(steepness(first)[seen])
        true_steep.append(steepness(true)[seen])
    if not any(map(len, steep)):
        return {}
    mean = {"sharp": np.concatenate(steep).mean(), "true": np.concatenate(true_steep).mean()}
    return {
        "sharp": float(mean["sharp"] / mean["true"]),
        "slip": float(np.concatenate(differences).mean() / mean["sharp"]),
    }


def steepness(picture: np.ndarray) -> np.ndarray:
    """Return the length of the gradient at each pixel and channel, in levels a pixel."""
    down, across = np.gradient(picture.astype(np.float32), axis=(0, 1))
    return np.asarray(np.hypot(down, across))


def likeness(folder: Path) -> str:
    """Return a table in Markdown of how sharp the edited part is and how far it slips, of kept frames."""
    found = dict[tuple[str, str], list[dict[str, float]]]()
    for trial, pictures in kept(folder):
        for way, picture in pictures.items():
            found.setdefault((trial.kind, way), []).append(slip(trial, picture))
    lines = list[str]()
    for kind in dict.fromkeys(kind for kind, _ in found):
        count = len([row for row in found[kind, "all before"] if row])
        lines += [f"## {kind}, {count} clips", "", "| way | sharp | slip, pixels |", "|---|---|---|"]
        for way in ("the true edit", *WAYS, *OTHERS):
            rows = [row for row in found[kind, way] if row]
            cells = [bootstrap_interval([row[name] for row in rows]) for name in ("sharp", "slip")]
            figures = " | ".join(f"{c.mean:.2f} ({c.low:.2f} to {c.high:.2f})" for c in cells)
            lines.append(f"| {way} | {figures} |")
        lines += ["", "All before, less:", ""]
        for way in (*WAYS, *OTHERS):
            both = [
                (a, b) for a, b in zip(found[kind, "all before"], found[kind, way], strict=True) if a and b
            ]
            if way != "all before":
                lines.append(f"- {way}: " + ", ".join(apart(both, name, 2) for name in ("sharp", "slip")))
        lines.append("")
    return "\n".join(lines)


def sheet(folder: Path, path: Path) -> None:
    """Draw the first clip of each kind: first and last frame of the source, the true edit and the ways."""
    columns, kinds = dict[str, dict[str, np.ndarray]](), set[str]()
    for trial, pictures in kept(folder):
        if trial.kind not in kinds:
            kinds.add(trial.kind)
            ends = {way: np.delete(p, np.s_[SIZE : 2 * SIZE], 1) for way, p in pictures.items()}
            columns[trial.name.split("-")[2]] = ends
    ways = ("nothing", "the true edit", "independent", "all before", "fatezero", "frame_by_frame")
    cells = [[column[way] for column in columns.values()] for way in ways]
    drawn = draw_sheet(cells, list(columns), ["the source", *ways[1:]], height=SIZE)
    Image.fromarray(drawn).save(path, quality=80, method=6)


def painted(folder: Path, clips: int) -> None:
    """Measure key frames that words edited, and paint carried, against the same frame painted by hand."""
    from retouch.atlas.keyframes import edited_keyframes, editor_answer
    from retouch.diffusion.picture_editor import editor_named

    folder.mkdir(parents=True, exist_ok=True)
    paint, at = method("paint"), FRAMES // 2
    for trial in trials(["colour"], clips):
        with tempfile.TemporaryDirectory() as place:
            run = Run.alone(Path(place), compute=Compute(device="cpu", threads=1))
            editor = editor_named("tiny:sd", run, prompt=trial.target.caption, control="tiny:sd-canny")
            words = trial.target.caption
            made = dict(edited_keyframes(trial.clip.video, (at,), words, editor, run=run))[at]
            source = np.ascontiguousarray(trial.clip.video.frames[at].transpose(1, 2, 0))
            answer = editor_answer(
                source, words, editor=editor, mask=None, references=(), seed=0, run=run
            ).picture
            hand = np.where(trial.inside[at, 0, ..., None], answer, source)
            figures = {}
            for what, picture in (("words", made.picture), ("hand", hand)):
                key = write_picture(np.ascontiguousarray(picture), Path(place) / f"{what}.png", force=True)
                told = {"keyframe": (f"{at}={key}",), "box": box_of(trial)}
                carried = paint.load(paint.edit)(trial.clip.video, paint.fill(told), run)
                assert isinstance(carried, Edited)
                shown = np.array(carried.video.frames)
                figures[what] = psnr(shown, trial.target.video.frames, trial.inside)
            print(trial.name, {k: round(v, 2) for k, v in figures.items()}, flush=True)
            with (folder / "painted.jsonl").open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"trial": trial.name, **figures}) + "\n")


def main() -> None:
    """Do what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("measure", "table", "slip", "sheet", "painted", "cost"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("more", nargs="*", help="kinds of change to measure, or the picture to draw")
    parser.add_argument("--clips", type=int, default=10)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "measure":
        measure(given.folder, given.more or ["colour", "pattern", "object", "background"], given.clips)
    elif given.what == "painted":
        painted(given.folder, given.clips)
    elif given.what == "cost":
        from aggregation import cost

        cost(given.folder)
    elif given.what == "sheet":
        sheet(given.folder, Path(given.more[0]))
    elif given.what == "slip":
        print(likeness(given.folder))
    else:
        print(table(given.folder))


if __name__ == "__main__":
    main()
