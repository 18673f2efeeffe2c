"""Run folders: what lies in them says how a run stands, and nothing else does. Imports no torch."""

import contextlib
import fcntl
import json
import time
from collections.abc import Mapping
from pathlib import Path

from retouch.errors import Cancelled, RequestError, RetouchError, error_as_json
from retouch.fields import near
from retouch.files import write_whole
from retouch.places import home, usable_home
from retouch.regular import UnfitFile, check_own, open_regular

REPORT = "report.json"
ERROR = "error.json"
QUEUED = "queued"
"""The file in a run folder that waits for a worker."""


def new_folder(name: str) -> Path:
    """A fresh run folder, named by time and method."""
    base = usable_home() / "runs"
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    for number in range(1, 10_000):
        folder = base / (stem if number == 1 else f"{stem}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError(f"ten thousand runs in one second under {base}")


def find_folder(name: str) -> Path:
    """The run folder of a name or path.

    Raises:
        RequestError: there is none, or a link lies in it.
    """
    candidates = [home() / "runs" / name, Path(name).expanduser().absolute()]
    for folder in candidates:
        if (folder / "request.json").is_file():
            check_ours(folder)
            return folder
    known = [folder.name for folder in run_folders()]
    raise RequestError(f"there is no run {name!r}", hint=near(name, known) or "see: retouch runs")


def run_folders() -> list[Path]:
    """Every run folder, the newest last."""
    return sorted(path.parent for path in (home() / "runs").glob("[!.]*/request.json"))


def state_of(folder: Path) -> str:
    """How a run stands: queued, running, done, failed or stopped, with the reason where there is one."""
    if is_running(folder):
        return "running"
    if (folder / QUEUED).exists():
        return "queued"
    if (folder / REPORT).exists():
        return "done"
    told = error_of(folder)
    stopped = told.get("error", Cancelled.__name__) == Cancelled.__name__
    return "stopped" if stopped else f"failed: {told['message']}"


def error_of(folder: Path) -> Mapping[str, str]:
    """Return what ended a run: `error`, `message` and `hint`; nothing where that is not told, or damaged."""
    try:
        told = json.loads((folder / ERROR).read_text(encoding="utf-8"))
        return {name: str(told[name]) for name in ("error", "message", "hint")}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}


def note_error(folder: Path, error: Exception) -> None:
    """Keep in a run folder what ended the run."""
    with contextlib.suppress(RetouchError):  # a full disk must not hide the error itself
        write_whole(folder / ERROR, json.dumps(error_as_json(error)) + "\n")


def is_running(folder: Path) -> bool:
    """Whether a process is at work in a run folder."""
    try:
        with open_regular(folder / "lock") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (FileNotFoundError, UnfitFile):
        return False
    return False


def check_ours(folder: Path) -> None:
    """Refuse a run folder with a link in it, through which a stranger would have us write elsewhere."""
    try:
        check_own(folder)
    except UnfitFile as error:
        raise RequestError(f"{error}; a run folder holds files", hint="remove it if you trust it") from None
