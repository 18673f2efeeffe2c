"""What tests of batches look at: rows of the method `tint`, who is at work on which, and how rows ended."""

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from command_line import Shell

from retouch.media.io import write
from retouch.testing import bouncing

PATIENCE = 120.0
"""Seconds after which what a test waits for will not come; machines may be busy."""


def write_clips(shell: Shell) -> tuple[str, str]:
    """Put a second, shorter clip beside the first and return the names of both."""
    write(bouncing().video[:5], shell.folder / "five.mp4")
    return "clip.mp4", "five.mp4"


def tint(video: str = "clip.mp4", *, seed: int = 0, **params: object) -> dict[str, Any]:
    given = {"steps": 5, "pause": 0.03, **params}
    return {"video": video, "method": "tint", "seed": seed, "params": given, "compute": {"threads": 1}}


def write_rows(shell: Shell, *given: Mapping[str, object]) -> Path:
    path = shell.folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return path


def results(folder: Path) -> list[dict[str, Any]]:
    """The results of a batch, without what differs from time to time."""
    told = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for result in told:
        result.get("report", {}).pop("seconds", None)
    return told


def digests(folder: Path) -> list[object]:
    return [result["report"]["result_digest"] for result in results(folder)]


def at_work(folder: Path) -> list[tuple[int, str, int]]:
    """Who works on which row at this moment, in which attempt."""
    found = []
    for path in (folder / "runs").glob("*/lease-*"):
        if path.suffix == ".ended" or path.with_name(f"{path.name}.ended").exists():
            continue
        told = path.read_text()
        process = json.loads(told)["process"] if told.endswith("}") else 0
        if Path(f"/proc/{process}/stat").exists():
            found.append((process, path.parent.name, int(path.name.removeprefix("lease-"))))
    return found


def until(what: Callable[[], object], patience: float = PATIENCE) -> None:
    end = time.monotonic() + patience
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def ended(process: "subprocess.Popen[str]", patience: float = PATIENCE) -> int:
    process.communicate(timeout=patience)
    return process.returncode
