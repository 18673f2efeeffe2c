"""The folder of a batch: who is at work on which row, and how rows ended; nothing is lost or done twice.

    rows.jsonl          a copy of the rows, with their keys        batch.json   versions and options
    runs/KEY/           the run folder of a row; a later attempt goes on in it
    runs/KEY/lease-N    made by the N-th attempt alone, touched while it is at work; `lease-N.ended` says how
    done/KEY.json       the outcome, linked into place: the first one counts
    results.jsonl       the outcomes in the order of the rows, built anew from `done/`
    store/              kept results, which all workers share

Many processes on many machines may work in one such folder. No lock is relied upon, and no clock but that of
the file system. Imports no torch.
"""

import contextlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, final

from retouch.apps.batch_rows import Fault, Row, write_rows
from retouch.errors import RetouchError, VideoError
from retouch.files import replace_whole, write_whole
from retouch.identity import identity

MOST_DEATHS: Final = 3
"""Attempts over which a worker may die before the row is given up."""
SILENCE: Final = 180.0
"""Seconds after which a worker that shows no sign may be taken for gone."""
_CHECKPOINT = "checkpoint.safetensors"
_ENDED = ".ended"


@final
@dataclass(frozen=True)
class Lease:
    """The right to work on a row, as long as no later attempt took it over."""

    path: Path
    number: int
    folder: Path
    """The run folder of this attempt."""
    deaths: int = 0
    """Earlier attempts over which their worker died."""
    starved: bool = False
    """Whether an earlier attempt lacked something that the machine may have now."""

    @property
    def holds(self) -> bool:
        """Whether no later attempt took the row over."""
        return max(_leases(self.path.parent), default=0) == self.number

    def end(self, how: str) -> None:
        """Say that the attempt is over; who looks later will not take it for a death."""
        with contextlib.suppress(RetouchError, OSError):  # a full disk must not hide what ended it
            _say_ended(self.path, how)

    @contextlib.contextmanager
    def renewed(self, silence: float = SILENCE) -> Iterator[None]:
        """Show signs of life while the block runs, nine times in the span of `silence`."""
        over = threading.Event()

        def renew() -> None:
            while not over.wait(silence / 9):
                with contextlib.suppress(OSError):
                    os.utime(self.path)

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@final
@dataclass(frozen=True)
class BatchFolder:
    """Where a batch lies."""

    path: Path

    @property
    def store(self) -> Path:
        """Where kept results lie."""
        return self.path / "store"

    def prepare(self, rows: Iterable[Row | Fault], about: Mapping[str, object]) -> None:
        """Make the folder and keep the rows in it, unless it keeps the same ones."""
        for name in ("runs", "done"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        kept, lines, rows = self.path / "batch.json", self.path / "rows.jsonl", list(rows)
        told = {**about, "keys": identity([row.as_json() for row in rows])}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if lines.exists() and json.loads(kept.read_text(encoding="utf-8"))["keys"] == told["keys"]:
                return
        write_rows(lines, rows)
        write_whole(kept, json.dumps(told, indent=2) + "\n")

    def run(self, key: str) -> Path:
        """Return the folder in which a row's attempts lie."""
        return self.path / "runs" / key

    def outcome(self, key: str) -> dict[str, Any] | None:
        """Return how a row ended; None where it did not, or where what says so was cut off."""
        try:
            told = json.loads((self.path / "done" / f"{key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return told if isinstance(told, dict) else None

    def publish(self, key: str, outcome: Mapping[str, object]) -> bool:
        """Say how a row ended; return whether this was the first to say so.

        Raises:
            ResourceError: the disk is full.
        """
        path = self.path / "done" / f"{key}.json"
        try:
            with replace_whole(path, force=path.exists() and self.outcome(key) is None) as draft:
                draft.write_text(json.dumps(outcome), encoding="utf-8")
        except VideoError:
            if self.outcome(key) is None:
                raise
            return False
        return True

    def identity(self, key: str) -> str:
        """Return the identity of what was done under a key, or begun; nothing where neither was."""
        leases = _leases(self.run(key))
        told = self.outcome(key) or (_holder(leases[max(leases)]) if leases else {})
        return str(told.get("identity", ""))

    def attempts(self, key: str) -> int:
        """Return how often a row was taken on."""
        return len(_leases(self.run(key)))

    def excuse(self, key: str) -> None:
        """Take the last attempt for one that was stopped, if it is over and did not say how."""
        leases = _leases(self.run(key))
        if leases and _is_gone(last := leases[max(leases)]) and not _how_ended(last):
            _say_ended(last, "stopped")

    def forget(self, key: str) -> None:
        """Let a row be carried out again, with all its attempts ahead of it."""
        (self.path / "done" / f"{key}.json").unlink(missing_ok=True)
        for lease in _leases(self.run(key)).values():
            _say_ended(lease, "forgiven")

    def discard(self, key: str) -> None:
        """Remove all of a row."""
        (self.path / "done" / f"{key}.json").unlink(missing_ok=True)
        shutil.rmtree(self.run(key), ignore_errors=True)

    def now(self) -> float:
        """Return the time by the clock of the file system, which is the one that dates leases."""
        path = self.path / f".clock-{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"
        path.touch()
        told = path.stat().st_mtime
        path.unlink(missing_ok=True)
        return told

    def is_free(self, key: str, silence: float = SILENCE) -> bool:
        """Whether nobody is at work on a row, or whoever is shows no sign of it."""
        leases = _leases(self.run(key))
        return not leases or self._is_over(leases[max(leases)], silence)

    def is_silent(self, key: str, silence: float = SILENCE) -> bool:
        """Whether somebody is at work on a row, for all that is known, and shows no sign of it."""
        leases = _leases(self.run(key))
        return bool(leases) and not _is_gone(last := leases[max(leases)]) and self._is_over(last, silence)

    def _is_over(self, lease: Path, silence: float) -> bool:
        if _is_gone(lease):
            return True
        with contextlib.suppress(FileNotFoundError):
            return self.now() - lease.stat().st_mtime > silence
        return True

    def take(self, key: str, identity: str, silence: float = SILENCE, session: str = "") -> Lease | None:
        """Take a row on; None where somebody else is at work on it.

        Deaths are counted in a session, whose end ends its workers too; three sessions' worth counts anyhow.

        An attempt goes on in the folder of the one before, if that one is known to be over. One that was only
        silent may come back: then the folder is a new one, with a copy of the last checkpoint. What was made
        of a request that decided something else, by its `identity`, is left aside.
        """
        run = self.run(key)
        run.mkdir(parents=True, exist_ok=True)
        while self.is_free(key, silence):
            leases = _leases(run)
            last = max(leases, default=0)
            ends = [_how_ended(path) for path in leases.values()]
            dead = [path for path, how in zip(leases.values(), ends, strict=True) if not how]
            here = sum(_holder(path).get("session", "") == session for path in dead)
            holder = _holder(leases[last]) if last else {"identity": identity}
            before, alike = run / holder.get("folder", ""), holder.get("identity") == identity
            on = alike and (not last or _is_gone(leases[last]))
            folder = before if on else run / f"attempt-{last + 1}"
            path = run / f"lease-{last + 1}"
            told = {**_myself(), "identity": identity, "folder": str(folder.relative_to(run))}
            told["session"] = session
            if not _made(path, json.dumps({**told, "host": socket.gethostname(), "at": time.time()})):
                continue
            folder.mkdir(exist_ok=True)
            if alike and not on and (before / _CHECKPOINT).exists():
                shutil.copyfile(before / _CHECKPOINT, folder / _CHECKPOINT)
            return Lease(path, last + 1, folder, deaths=max(here, len(dead) // 3), starved="starved" in ends)
        return None

    def is_through(self, rows: Iterable[Row | Fault]) -> bool:
        """Whether each row has an outcome, by their number."""
        keys = {row.key for row in rows if isinstance(row, Row)}
        return len(keys) <= sum(1 for _ in (self.path / "done").glob("*.json"))

    def write_results(self, rows: Iterable[Row | Fault]) -> list[dict[str, object]]:
        """Write `results.jsonl` anew and return what it says but for the reports, which are much."""
        results = []
        path = self.path / "results.jsonl"
        with replace_whole(path, force=True) as draft, draft.open("w", encoding="utf-8") as file:
            for row in rows:
                told = self._result(row)
                file.write(json.dumps(told, ensure_ascii=False) + "\n")
                results.append({name: value for name, value in told.items() if name != "report"})
        return results

    def _result(self, row: Row | Fault) -> dict[str, object]:
        if isinstance(row, Fault):
            told = {"error": "RequestError", "message": row.message, "hint": row.hint}
            return {"line": row.line, "key": "", "state": "failed", **told}
        outcome = self.outcome(row.key) or {"state": "missing"}
        names = ("state", "result", "report", "error", "message", "hint")
        told = {name: outcome[name] for name in names if name in outcome}
        tags = {"tags": dict(row.tags)} if row.tags else {}
        return {"line": row.line, "key": row.key, "video": str(row.request.video), **tags, **told}


def _leases(run: Path) -> dict[int, Path]:
    """Return the leases of a row by their numbers, the first one first."""
    found = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(run) as entries:
        for entry in entries:
            number = entry.name.removeprefix("lease-")
            if number != entry.name and number.isdecimal():
                found[int(number)] = Path(entry.path)
    return dict(sorted(found.items()))


def _say_ended(lease: Path, how: str) -> None:
    write_whole(lease.with_name(lease.name + _ENDED), how)


def _how_ended(lease: Path) -> str:
    """Return how an attempt said that it ended; nothing where it did not say."""
    with contextlib.suppress(OSError):
        return lease.with_name(lease.name + _ENDED).read_text(encoding="utf-8")
    return ""


def _holder(lease: Path) -> dict[str, Any]:
    """Return who holds a lease; nothing where that is not written yet."""
    try:
        told = json.loads(lease.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _myself() -> dict[str, Any]:
    return {"place": _place(), "process": os.getpid(), "born": _born(os.getpid())}


def _made(path: Path, text: str) -> bool:
    """Whether a file could be made that was not there; one that could not be written is not left."""
    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(text)
    except OSError:
        path.unlink()
        raise
    return True


def _is_gone(lease: Path) -> bool:
    """Whether an attempt is known to be over; of processes on other machines nothing is known."""
    holder = _holder(lease)
    if _how_ended(lease) or holder.items() >= _myself().items():
        return True
    return bool(holder) and holder["place"] == _place() != "" and _born(holder["process"]) != holder["born"]


@cache
def _place() -> str:
    """Return what tells this machine, since its start, and this container apart; nothing if nothing does."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _born(process: int) -> str:
    """Return when a process began, in the kernel's count; nothing where there is none, or it is ending."""
    try:
        words = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if words[0] in "ZX" else words[19]
