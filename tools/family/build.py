"""Trains the whole family, one model after another, and puts it into the package.

Every stage goes on where it was stopped, so this may be killed and started again at any time. The numbers of
images are plans; a GPU goes through them in minutes, a CPU core in a night.

    python tools/family/build.py                        # everything, on the CPU
    python tools/family/build.py --device cuda
    python tools/family/build.py --only unet --scale 2  # the UNet alone, twice as long as planned
    python tools/family/build.py --minutes 60           # as far as an hour goes
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
STAGES: Final[Mapping[str, tuple[Sequence[str], int]]] = {
    "vae": (("train_vae.py",), 250_000),
    "clip": (("train_clip.py",), 600_000),
    "judge": (("judge.py",), 400_000),
    "unet": (("train_unet.py",), 3_000_000),
    "decoder": (("train_decoder.py",), 300_000),
    "canny": (("train_control.py",), 300_000),
    "ip": (("train_ip.py",), 150_000),
    "svd-vae": (("train_svd.py", "autoencoder"), 250_000),
    "svd": (("train_svd.py", "unet"), 400_000),
    "face-identity": (("train_face_identity.py",), 60_000),
    "face-reader": (("train_face_reader.py",), 100_000),
    "face-unet": (("train_face_unet.py",), 300_000),
    "face-words": (("train_face_words.py",), 300_000),
}
"""Script and number of images of each stage, in the order in which they build on each other."""


def seconds_left(end: float | None) -> float | None:
    """Until `end`, or `None` for no limit."""
    return None if end is None else end - time.monotonic()


def build(
    work: Path, *, size: int, device: str, scale: float, only: Sequence[str], minutes: float | None
) -> bool:
    """Run the stages that are asked for; says whether all came to their end in time."""
    end = None if minutes is None else time.monotonic() + 60 * minutes
    for name in only or STAGES:
        script, images = STAGES[name]
        command = [sys.executable, str(HERE / script[0]), *script[1:], "--images", str(int(images * scale))]
        command += ["--work", str(work), "--size", str(size), "--device", device]
        left = seconds_left(end)
        if left is not None and left <= 0:
            return False
        print(f"== {name}", flush=True)
        try:
            subprocess.run(command, check=True, timeout=left)
        except subprocess.TimeoutExpired:
            print(f"time is up during {name}; call again to go on", flush=True)
            return False
    return True


def main() -> None:
    """Train and export from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path(".family"))
    parser.add_argument("--size", type=int, default=64, choices=(64, 128))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scale", type=float, default=1.0, help="times the planned number of images")
    parser.add_argument("--only", nargs="*", choices=STAGES, default=[])
    parser.add_argument("--minutes", type=float)
    parser.add_argument(
        "--keep", action="store_true", help="train only, do not put the result into the package"
    )
    asked = parser.parse_args()
    finished = build(
        asked.work,
        size=asked.size,
        device=asked.device,
        scale=asked.scale,
        only=asked.only,
        minutes=asked.minutes,
    )
    if finished and not asked.keep:
        ship = [sys.executable, str(HERE / "export.py"), "--work", str(asked.work), "--size", str(asked.size)]
        subprocess.run(ship, check=True)


if __name__ == "__main__":
    main()
