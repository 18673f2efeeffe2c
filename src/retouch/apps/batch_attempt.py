"""One attempt at one row of a batch, as a worker makes it: take the row on, edit, say how it ended."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retouch.apps.batch_folder import MOST_DEATHS, SILENCE, BatchFolder, Lease
from retouch.apps.batch_rows import digest_of
from retouch.errors import Cancelled, InputError, ResourceError, WorkerEnded, error_as_json
from retouch.events import Listener, Notice
from retouch.files import known_error
from retouch.request import EditRequest

DROPPED = "dropped"
"""What an attempt says when another took the row over meanwhile."""
HELD = "held"
"""... when another is at work on it."""
STARVED = "starved"
"""... when the machine lacked something that it may have when nothing else runs."""


def attempt(
    *,
    listen: Listener,
    stopped: Callable[[], bool],
    batch: str,
    key: str,
    request: str,
    clip: str,
    identity: str,
    silence: float = SILENCE,
    session: str = "",
) -> dict[str, Any]:
    """Carry out a row, unless it is done or somebody else is at it; return its outcome, or why there is none.

    What the row itself is to blame for is its outcome. Raises Cancelled where the attempt was stopped, and
    ResourceError where the outcome could not be written.
    """
    folder = BatchFolder(Path(batch))
    if outcome := folder.outcome(key):
        return outcome
    lease = folder.take(key, identity, silence, session)
    if lease is None:
        return {"state": HELD}
    try:
        with lease.renewed(silence):
            _check_deaths(lease)
            _check_clip(EditRequest.from_json(request).video, clip)
            outcome = _edited(request, lease, folder, listen, stopped)
    except (Cancelled, KeyboardInterrupt):
        lease.end("stopped")
        raise
    except Exception as error:
        starving = ResourceError("not enough memory", hint="Give a shorter or smaller clip.")
        known = starving if isinstance(error, MemoryError) else known_error(error)
        if isinstance(known, ResourceError) and not isinstance(known, WorkerEnded) and not lease.starved:
            lease.end(STARVED)
            return {"state": STARVED}
        outcome = {"state": "failed", **error_as_json(known)}
    return _publish(folder, key, lease, {**outcome, "identity": identity}, listen)


def _edited(
    request: str, lease: Lease, folder: BatchFolder, listen: Listener, stopped: Callable[[], bool]
) -> dict[str, Any]:
    from retouch.apps.runner import run_edit

    result = run_edit(
        EditRequest.from_json(request),
        listen=listen,
        force=True,
        folder=lease.folder,
        stopped=stopped,
        store=folder.store,
    )
    where = lease.folder / str(result.report["result"])
    return {"state": "done", "result": str(where.relative_to(folder.path)), "report": dict(result.report)}


def _publish(
    folder: BatchFolder, key: str, lease: Lease, outcome: dict[str, Any], listen: Listener
) -> dict[str, Any]:
    """Say how a row ended, if this attempt may still say so; the lease ends in any case."""
    try:
        first = lease.holds and folder.publish(key, {**outcome, "key": key, "attempt": lease.number})
    finally:
        lease.end(outcome["state"])
    if not first:
        listen(Notice(f"{key} was taken over by another worker; what this one made is dropped"))
        return {"state": DROPPED}
    return outcome


def _check_deaths(lease: Lease) -> None:
    if lease.deaths >= MOST_DEATHS:
        raise WorkerEnded(
            f"it ended the worker {lease.deaths} times",
            hint="Look at its clip and the memory it takes; then: retouch batch retry",
        )


def _check_clip(path: Path, digest: str) -> None:
    """Refuse a clip that is another here than where the batch was started."""
    about = path.stat() if path.exists() else None
    found = _digest(path, about and about.st_mtime_ns, about and about.st_size)
    if found != digest:
        raise InputError(
            f"{path} is another clip here: its digest is {found[:16]}, that of the row's is {digest[:16]}",
            hint="Share one folder of clips among all machines, and leave the clips as they are meanwhile.",
        )


@functools.lru_cache(maxsize=1024)
def _digest(path: Path, changed: int | None, size: int | None) -> str:
    del changed, size
    return digest_of(path)
