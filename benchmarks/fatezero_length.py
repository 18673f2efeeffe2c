"""A real clip of growing length through the whole of FateZero, at its own size: memory and time.

Run:  python benchmarks/fatezero_length.py CLIP [--frames 16 32 64] [--steps 2] [--dtype bfloat16]

Each length runs in a process of its own, on one thread. Memory is anonymous memory (what a machine cannot
take back; files that are mapped it can), its peak sampled fifty times a second, less what was there when
model and clip had been opened. The embedded model knows nothing of a real clip, so the picture says
nothing; that frames come back in number and size, and that all of them are numbers, is checked.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from retouch.compute import Compute
from retouch.media.io import read
from retouch.methods.fatezero.edit import edit_with
from retouch.methods.fatezero.spec import SPEC, FateZeroParams
from retouch.models.image import StableDiffusion
from retouch.run import Run

SAMPLES_A_SECOND = 50


def one(path: Path, frames: int, steps: int, dtype: str) -> dict[str, float]:
    """So many frames of a clip through the method, in this process."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        video = read(path, scratch=Path(name))[:frames]
        assert len(video) == frames, f"the clip has {len(video)} frames"
        compute = Compute.model_validate({"device": "cpu", "dtype": dtype})
        sd = StableDiffusion.from_pretrained("tiny:sd", compute)
        params = SPEC.fill(
            {
                "source_prompt": "a red car on grass",
                "prompt": "a blue car on grass",
                "size": "clip",
                "steps": steps,
                "fixed_point": 1,
            },
            preset="attribute",
        )
        assert isinstance(params, FateZeroParams)
        before, started = anonymous(), time.process_time()
        with peak_memory() as peak:
            result = edit_with(sd, video, params, Run.alone(Path(name), compute=compute)).video
        assert result.frames.shape == video.frames.shape
        cpu = time.process_time() - started
        return {"cpu": cpu, "before": before, "peak": max(peak), "height": video.height, "width": video.width}


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Collects how much anonymous memory this process has, while the block runs."""
    seen, over = [anonymous()], threading.Event()

    def watch() -> None:
        while not over.wait(1 / SAMPLES_A_SECOND):
            seen[:] = [max(seen[0], anonymous())]

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


def anonymous() -> int:
    """Bytes of memory that belong to no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def main() -> None:
    """Prints the table of `fatezero.md`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("clip", type=Path)
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--here", action="store_true", help="One length, in this process.")
    asked = parser.parse_args()
    if asked.here:
        print(json.dumps(one(asked.clip, asked.frames[0], asked.steps, asked.dtype)))
        return
    print("| frames | size | memory before MB | peak MB | CPU s | CPU s a frame |\n|---|---|---|---|---|---|")
    for frames in asked.frames:
        given = ["--frames", str(frames), "--steps", str(asked.steps), "--dtype", asked.dtype, "--here"]
        done = subprocess.run(
            [sys.executable, __file__, str(asked.clip), *given], capture_output=True, text=True, check=True
        )
        got = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {frames} | {got['width']}x{got['height']} | {got['before'] / 2**20:.0f} "
            f"| {got['peak'] / 2**20:.0f} | {got['cpu']:.0f} | {got['cpu'] / frames:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
