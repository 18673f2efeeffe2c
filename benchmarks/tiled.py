"""A background larger than the model: shrunk to it, and drawn in tiles.

Run:  python benchmarks/tiled.py FOLDER [--choose] [--clips 4] [--size 128]

Drawn clips twice as large as the pictures that `tiny:sd` knows, put on another ground by its name alone, in
three key frames. The figures are those of `stablevideo.py`; kept frames are drawn in FOLDER, a picture for
each clip: the source, the true edit, shrunk, and in tiles.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import stablevideo as ways
from retouch.apps.bench import BenchPlan, make_trials
from retouch.metrics.uncertainty import bootstrap_interval

FIRST_SEED, CHOOSE_SEED = 2_800_000_000, 2_700_000_000
SCALES = (1, 2)
FIGURES = ("inside", "outside", "warp", "agreement", "sharp", "slip", "seconds")


def main() -> None:
    """Measure clip after clip, and print the means with their intervals."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--choose", action="store_true", help="clips to choose settings by")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--size", type=int, default=128)
    given = parser.parse_args()
    torch.set_num_threads(1)
    (given.folder / "store").mkdir(parents=True, exist_ok=True)
    seed = CHOOSE_SEED if given.choose else FIRST_SEED
    plan = BenchPlan((), ("background",), given.clips, ways.FRAMES, given.size, world_seed=seed)
    found: dict[int, list[dict[str, float]]] = {scale: [] for scale in SCALES}
    ways.SIZE = given.size
    for number, trial in enumerate(make_trials(plan)):
        pictures = [ways.shown(np.array(clip.video.frames)) for clip in (trial.clip, trial.target)]
        for scale, rows in found.items():
            told = {"background_scale": scale, "background_prompt": trial.target.scene.background}
            ways.WAYS = {"all before": told}
            row, frames = ways.row_of(trial, "all before", given.folder / "store")
            pictures.append(ways.shown(frames))
            row |= ways.slip(trial, pictures[-1])
            rows.append({name: float(str(row[name])) for name in FIGURES})
            print(trial.name, scale, {name: round(rows[-1][name], 4) for name in FIGURES}, flush=True)
        Image.fromarray(np.vstack(pictures)).save(given.folder / f"{number}.png")
    for scale, rows in found.items():
        for name in FIGURES:
            mean = bootstrap_interval([row[name] for row in rows])
            print(scale, name, f"{mean.mean:.4f} ({mean.low:.4f} to {mean.high:.4f})")


if __name__ == "__main__":
    main()
