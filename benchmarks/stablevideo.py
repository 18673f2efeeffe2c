"""StableVideo against the truth: what handing on from key frame to key frame is worth, and what it costs.

Run:  python benchmarks/stablevideo.py measure FOLDER [colour object ...] [--clips 10]
      python benchmarks/stablevideo.py table FOLDER
      python benchmarks/stablevideo.py sheet FOLDER sheet.webp
      python benchmarks/stablevideo.py painted FOLDER [--clips 10]
      python benchmarks/stablevideo.py cost FIXTURE

`measure` edits drawn clips, which no embedded model has seen, by words: with key frames that know nothing of
each other, that share their noise, that know the one before, and that know all before; beside them FateZero,
frame by frame, and doing nothing. It keeps a row for each clip and way in a folder, and goes on where it was
stopped. Three key frames are given, so that all ways edit the same.

`painted` edits one key frame by words, as `retouch keyframe --edit` does, and paints with it; beside it the
model's answer is painted by hand: taken exactly where the true edit is.

`cost` says what aggregation costs beside the released way: see `aggregation.py`.

Seconds are processor seconds of one thread; the first way of a clip also takes it apart into an atlas.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

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
                shown = np.ascontiguousarray(frames[[0, FRAMES // 2, -1]].transpose(0, 2, 3, 1))
                place = folder / "frames" / f"{trial.name} {way}.png"
                place.parent.mkdir(exist_ok=True)
                write_picture(np.hstack(list(shown)), place, force=True)
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


def apart(both: list[tuple[dict[str, object], dict[str, object]]], figure: str) -> str:
    """Return a paired difference with its interval as text."""
    pairs = [(a[figure], b[figure]) for a, b in both if a[figure] is not None and b[figure] is not None]
    ours, theirs = (
        ([float(str(value)) for value in side] for side in zip(*pairs, strict=True)) if pairs else ([], [])
    )
    if len(ours) < 2 or not np.isfinite([*ours, *theirs]).all():
        return f"{figure} -"
    found = paired_interval(ours, theirs)
    digits = 4 if figure == "warp" else 1
    return f"{figure} {found.mean:+.{digits}f} ({found.low:+.{digits}f} to {found.high:+.{digits}f})"


def sheet(folder: Path, path: Path, most: int = 6) -> None:
    """Draw the first, middle and last frame of each way, a row a trial."""
    names = list(dict.fromkeys(str(row["trial"]) for row in rows_in(folder)))
    ways = ("nothing", *WAYS, "fatezero", "frame_by_frame")
    chosen = names[:: max(1, len(names) // most)][:most]
    pictures = [
        [read_picture(folder / "frames" / f"{name} {way}.png")[..., :3] for way in ways] for name in chosen
    ]
    Image.fromarray(draw_sheet(pictures, list(ways), chosen, height=SIZE)).save(path, quality=80, method=6)


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
    parser.add_argument("what", choices=("measure", "table", "sheet", "painted", "cost"))
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
    else:
        print(table(given.folder))


if __name__ == "__main__":
    main()
