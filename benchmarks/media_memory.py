"""Peak memory of reading, walking and writing a clip, by its length.

Run:  python benchmarks/media_memory.py [--frames 100 1000 3000] [--size 512]

Each length is measured in a process of its own, by the kernel's mark of the most resident memory there was.
That counts mapped pages of the frames while they are there, and what the process allocated.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path


def kilobytes(name: str) -> int:
    """A figure of `/proc/self/status`."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name + ":")))


def measured(frames: int, size: int, folder: Path) -> dict[str, float]:
    """The peak while a clip of `frames` frames goes through, above what the process had when it began."""
    import numpy as np

    from retouch.media.io import Encoding, Writer, read
    from retouch.video import Video

    blocks = np.random.default_rng(0).integers(0, 256, (3, size // 16 + 4, size // 16 + 4), np.uint8)
    tile = np.kron(blocks, np.ones((1, 16, 16), np.uint8))
    one = Video(tile[None, :, :size, :size], Fraction(25))
    with Writer(folder / "source.mp4", like=one, encoding=Encoding(crf=40)) as out:
        for i in range(frames):
            out.add(tile[None, :, i % 64 : i % 64 + size, i % 48 : i % 48 + size])
    before = kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak of making the source
    started = time.process_time()
    video = read(folder / "source.mp4", scratch=folder)
    assert len(video) == frames
    read_peak = kilobytes("VmHWM")
    with Writer(folder / "result.mp4", like=video) as out:
        for _, part in video.chunks(16):
            out.add(part.like(-part.pixels()))
    return {
        "frames": frames,
        "read": (read_peak - before) / 1024,
        "all": (kilobytes("VmHWM") - before) / 1024,
        "cpu": time.process_time() - started,
    }


def main() -> None:
    """Measures each length in a fresh process and prints a table and the slope."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, nargs="+", default=[100, 1000, 3000])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.child:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measured(wanted.frames[0], wanted.size, Path(folder))))
        return
    rows = []
    print("| frames | peak of reading, MiB | peak of all, MiB | CPU, s |\n|---|---|---|---|")
    for frames in wanted.frames:
        call = [sys.executable, __file__, "--child", "--frames", str(frames), "--size", str(wanted.size)]
        row = json.loads(subprocess.run(call, capture_output=True, text=True, check=True).stdout)
        rows.append(row)
        print(f"| {frames} | {row['read']:.1f} | {row['all']:.1f} | {row['cpu']:.1f} |", flush=True)
    hundreds = (rows[-1]["frames"] - rows[0]["frames"]) / 100
    if hundreds:
        print(f"slope: {(rows[-1]['all'] - rows[0]['all']) / hundreds:.3f} MiB per 100 frames")


if __name__ == "__main__":
    main()
