"""Many clips: a file of requests in, a file of results out; each row is done once, whatever dies meanwhile.

`run` reads the rows, leaves out what is done, and hands the rest to a pool of worker processes on this
machine, or to a cluster. What is true lies in the batch's folder alone: kill anything, start again, and only
missing rows run. Imports neither torch nor Ray.
"""

import contextlib
import dataclasses
import functools
import json
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, final

from retouch import __version__
from retouch.apps.batch_folder import SILENCE, BatchFolder
from retouch.apps.batch_pool import carry_out_here, one_by_one
from retouch.apps.batch_rows import (
    ROWS_PER_GROUP,
    Fault,
    Given,
    Row,
    check_all,
    estimate_row,
    groups_of,
    in_shard,
    parse_shard,
    read_rows,
    steps_of,
)
from retouch.apps.cluster import LOCAL, carry_out_there
from retouch.apps.run_folder import REPORT, run_folders
from retouch.errors import RequestError, RetouchError
from retouch.events import Advanced, Ended, Listener, Notice, Started, ignore
from retouch.files import check_free, replace_whole
from retouch.identity import file_digest
from retouch.request import EditRequest

ALL_DONE: Final = 0
SOME_FAILED: Final = 1
ROWS_LEFT: Final = 75
"""The exit code of a batch that was stopped: start it again, it goes on."""
RESULTS: Final = "results.jsonl"


@final
@dataclass(frozen=True)
class RowResult:
    """How a row ended."""

    line: int
    key: str
    state: str
    """done or failed."""
    result: Path | None = None
    """The edited clip."""
    report: Mapping[str, object] = field(default_factory=dict)
    error: str = ""
    message: str = ""
    hint: str = ""
    tags: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def of_row(cls, row: Row, outcome: Mapping[str, Any], folder: Path) -> Self:
        """Return what an outcome says of a row."""
        names = ("state", "report", "error", "message", "hint")
        told = {name: outcome[name] for name in names if name in outcome}
        result = folder / outcome["result"] if "result" in outcome else None
        return cls(line=row.line, key=row.key, result=row.request.out or result, tags=row.tags, **told)

    @classmethod
    def of_fault(cls, fault: Fault) -> Self:
        """Return what becomes of a row that cannot be used."""
        error = RequestError.__name__
        return cls(fault.line, "", "failed", error=error, message=fault.message, hint=fault.hint)

    def as_json(self) -> dict[str, object]:
        """Return it as plain values."""
        return {**dataclasses.asdict(self), "result": str(self.result) if self.result else ""}

    @property
    def done(self) -> bool:
        """Whether there is an edited clip."""
        return self.state == "done"


def run(
    rows: str | Path | Iterable[Given] | None,
    /,
    out: str | Path,
    *,
    workers: int | None = None,
    shard: str = "",
    cluster: str | None = None,
    gpus_per_row: float | None = None,
    trust_network: bool = False,
    rows_per_group: int = ROWS_PER_GROUP,
    keep_order: bool = False,
    limit: int | None = None,
    skip_bad: bool = False,
    force: bool = False,
    roots: Sequence[Path] | None = None,
    silence: float = SILENCE,
    listen: Listener = ignore,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[RowResult]:
    """Carry out all rows that are not done yet, and yield how each ended, in the order in which they end.

    What an earlier call did, in the same folder, comes first. A row that fails never stops the others. Of
    shards, the last one to end writes the results.

    Args:
        rows: A file of JSON lines, or requests; None goes on with those that the folder keeps.
        out: The folder of the batch.
        workers: Processes on this machine, of the pool or of a cluster that is started here; by default one a
            GPU, or one.
        shard: `I/N` takes the I-th of N parts, for N calls that share a folder.
        cluster: The Ray cluster that carries the rows out: `HOST:PORT`, `auto` for the one that Ray finds, or
            `local` for one that is started here. None does without Ray.
        gpus_per_row: The share of a graphics card that a row has on a cluster; a whole one by default.
        trust_network: Use a cluster too that asks nobody for a token.
        rows_per_group: Rows of one clip and model that one worker takes on together.
        keep_order: Take the rows in the file's order, not by model.
        limit: Carry out so many rows and no more.
        skip_bad: Leave out rows that cannot be used, as failed ones, instead of raising.
        force: Carry out rows anew that changed under their id, and replace outputs that exist.
        roots: Folders in which all files of rows from outside must lie; models then go by catalogue names.
        silence: Seconds after which a worker that shows no sign may be taken for gone.
        listen: Hears of progress.
        stopped: Is asked if the batch should stop; what is begun goes on at the next call.

    Raises:
        RequestError: rows cannot be used; the message lists lines and fields.
    """
    if workers and cluster not in (None, LOCAL):
        raise RequestError(
            "workers are those of this machine, and a cluster has its own", hint="leave it out"
        )
    folder, part = BatchFolder(Path(out).absolute()), parse_shard(shard) if shard else None
    if rows is None:
        everything = kept_rows(folder)
    else:
        source = Path(rows) if isinstance(rows, (str, Path)) else rows
        everything = _checked(source, folder, roots=roots, skip_bad=skip_bad, force=force)
        digest = file_digest(source) if isinstance(source, Path) else ""
        options = {"shard": shard, "rows_per_group": rows_per_group}
        folder.prepare(everything, {"retouch": __version__, "rows": digest, "options": options})
    for fault in everything:
        if isinstance(fault, Fault):
            yield RowResult.of_fault(fault)
    alike: dict[str, list[Row]] = defaultdict(list)
    for row in everything:
        if isinstance(row, Row) and (part is None or in_shard(row, part)):
            alike[row.key].append(row)
    missing = []
    for key, twins in alike.items():
        if outcome := folder.outcome(key):
            yield from _answers(twins, outcome, folder)
        else:
            missing.append(twins[0])
    groups = first_rows(groups_of(missing, largest=rows_per_group, keep_order=keep_order), limit)
    tell = _Teller(folder, shard, sum(map(len, groups)), listen)
    try:
        carry_out = carry_out_here
        if cluster:
            carry_out = functools.partial(
                carry_out_there, address=cluster, gpus=gpus_per_row, trust_network=trust_network
            )
        ended = carry_out(groups, folder, workers=workers, silence=silence, listen=listen, stopped=stopped)
        for row, outcome in ended:
            tell.row(row, outcome)
            yield from _answers(alike[row.key], outcome, folder)
    finally:
        tell.end()
        if part is None or folder.is_through(everything):  # a thousand shards would each read all outcomes
            write_results(folder, everything)


def _checked(
    source: Path | Iterable[Given],
    folder: BatchFolder,
    *,
    roots: Sequence[Path] | None,
    skip_bad: bool,
    force: bool,
) -> list[Row | Fault]:
    """Return the rows, and faults in place of those that cannot be used, for which it raises if asked."""
    rows, faults = read_rows(source, roots=roots)
    if force:
        for row in rows:
            if folder.identity(row.key) not in ("", row.identity):
                folder.discard(row.key)
    else:
        faults += [*_changed(rows, folder), *_occupied(rows, folder)]
    told: list[Row | Fault] = [*rows, *reversed(faults)]  # the first fault of a line is the one to tell
    by_line = {one.line: one for one in told}
    found = [by_line[line] for line in sorted(by_line)]
    if not skip_bad:
        check_all(
            [one for one in found if isinstance(one, Fault)],
            source.name if isinstance(source, Path) else "the batch",
        )
    return found


@final
class _Teller:
    """Progress of the whole batch, as events and in a file of the batch."""

    def __init__(self, folder: BatchFolder, shard: str, total: int, listen: Listener) -> None:
        name = f"events-{shard.replace('/', '-of-')}.jsonl" if shard else "events.jsonl"
        self.path = folder.path / name
        self.total, self.done, self.hear = total, 0, one_by_one(listen)
        self.hear(Started("rows", total))

    def row(self, row: Row, outcome: Mapping[str, Any]) -> None:
        """Tell that a row ended."""
        self.done += 1
        told = {"at": round(time.time(), 3), "event": "row", "key": row.key, "state": outcome["state"]}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")
        if outcome["state"] != "done":
            self.hear(Notice(f"line {row.line} failed: {outcome['message']}"))
        self.hear(Advanced("rows", self.done, self.total))

    def end(self) -> None:
        """Tell that no more rows will end."""
        self.hear(Ended("rows"))


def _changed(rows: Iterable[Row], folder: BatchFolder) -> Iterator[Fault]:
    """Yield the rows whose request is another than the one that was carried out, or begun, under their id."""
    for row in rows:
        if row.name and folder.identity(row.key) not in ("", row.identity):
            yield Fault(
                row.line,
                f"id {row.name!r} was given another request before, or the clip is another",
                "give it another id, or --force it to be done anew",
            )


def _occupied(rows: Iterable[Row], folder: BatchFolder) -> Iterator[Fault]:
    """Yield the rows whose output would replace something that is none of their own."""
    owners: dict[Path, Row] = {}
    for row in rows:
        if not (goal := row.request.out):
            continue
        owner = owners.setdefault(goal, row)
        if owner.key != row.key:
            yield Fault(row.line, f"out: {goal} is the output of line {owner.line} too")
        elif not folder.run(row.key).exists():
            try:
                check_free(goal, force=False)
            except RetouchError as error:
                yield Fault(row.line, f"out: {error}", error.hint)


def _answers(rows: Sequence[Row], outcome: Mapping[str, Any], folder: BatchFolder) -> Iterator[RowResult]:
    """Yield the result of rows that ask for the same; each has its output."""
    for row in rows:
        goal = row.request.out
        if goal and "result" in outcome and not goal.exists():
            with replace_whole(goal, force=True) as draft:
                shutil.copyfile(folder.path / outcome["result"], draft)
        yield RowResult.of_row(row, outcome, folder.path)


def first_rows(groups: list[list[Row]], limit: int | None) -> list[list[Row]]:
    """Return the first rows of groups, so many in all."""
    if limit is None:
        return groups
    taken, left = [], limit
    for group in groups:
        taken.append(group[:left])
        left -= len(taken[-1])
    return [group for group in taken if group]


def write_results(folder: BatchFolder, rows: Sequence[Row | Fault]) -> None:
    """Write the results, again if another process ended rows meanwhile."""
    count = -1
    while count != (count := sum(1 for _ in (folder.path / "done").glob("*.json"))):
        folder.write_results(rows)


def status(out: str | Path) -> dict[str, Any]:
    """Return how a batch stands, from its folder alone; `results.jsonl` is written anew.

    Raises:
        RequestError: there is no batch.
    """
    folder = BatchFolder(Path(out).absolute())
    rows = kept_rows(folder)
    results = folder.write_results(rows)
    states = [str(result["state"]) for result in results]
    missing = {str(result["key"]) for result in results if result["state"] == "missing"}
    work = [key for key in missing if folder.run(key).exists() and not folder.is_free(key)]
    failed = [result for result in results if result["state"] == "failed"]
    counts = {name: states.count(name) for name in ("done", "failed", "missing")}
    return {"rows": len(rows), **counts, "at_work": sorted(work), "failures": failed}


def kept_rows(folder: BatchFolder) -> list[Row | Fault]:
    """Return the rows of a batch from its own copy, taken as they were checked."""
    path = folder.path / "rows.jsonl"
    if not path.exists():
        raise RequestError(f"{folder.path} is no batch", hint="give the folder of a retouch batch")
    rows: list[Row | Fault] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        told = json.loads(line)
        rows.append(Row.from_json(told) if "key" in told else Fault(**told))
    return rows


def forgive(out: str | Path, *, only: str = "", failed: bool = True) -> list[str]:
    """Let rows that failed, or the one of a key, be carried out again; return their keys.

    Raises:
        RequestError: there is no batch, or no row of that key.
    """
    folder = BatchFolder(Path(out).absolute())
    keys = {row.key for row in kept_rows(folder) if isinstance(row, Row)}
    if only and only not in keys:
        raise RequestError(f"no row has the key {only!r}", hint=f"see: retouch batch status {out}")
    again = []
    for key in sorted({only} if only else keys):
        outcome = folder.outcome(key)
        if outcome and (only or (failed and outcome["state"] == "failed")):
            folder.forget(key)
            again.append(key)
    return again


def exit_code(results: Iterable[RowResult], out: str | Path, shard: str = "") -> int:
    """Return 0 where all rows of a shard are done, 1 where some failed, 75 where some are left."""
    ended = {result.key: result.done for result in results}
    part = parse_shard(shard) if shard else None
    rows = [row for row in kept_rows(BatchFolder(Path(out).absolute())) if isinstance(row, Row)]
    if any(row.key not in ended for row in rows if part is None or in_shard(row, part)):
        return ROWS_LEFT
    return ALL_DONE if all(ended.values()) else SOME_FAILED


def plan(
    rows: str | Path | Iterable[Given],
    *,
    workers: int = 1,
    roots: Sequence[Path] | None = None,
    skip_bad: bool = False,
) -> dict[str, Any]:
    """Return the groups that rows make, the hours and the memory that they will take, and what does not fit.

    Hours are those of earlier runs of the same methods on this machine, by pixels and steps; None where there
    were none.
    """
    source = Path(rows) if isinstance(rows, (str, Path)) else rows
    found, faults = read_rows(source, roots=roots)
    if not skip_bad:
        check_all(faults, source.name if isinstance(source, Path) else "the batch")
    groups = groups_of(found)
    seconds, estimates = _speeds(), [(row, estimate_row(row)) for group in groups for row in group]
    times = [seconds[row.request.method] * row.work for row, _ in estimates if row.request.method in seconds]
    known = len(times) == len(estimates)
    return {
        "rows": len(estimates),
        "workers": workers,
        "hours": sum(times) / 3600 / workers if known else None,
        "memory": max((size for _, (size, _) in estimates), default=0),
        "groups": [
            {
                "video": str(group[0].request.video),
                "models": group[0].models,
                "lines": [row.line for row in group],
            }
            for group in groups
        ],
        "refused": [{"line": row.line, "message": why} for row, (_, why) in estimates if why],
    }


def _speeds() -> dict[str, float]:
    """Return the seconds that earlier runs of each method took for a pixel and step."""
    spent: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for folder in run_folders():
        with contextlib.suppress(RetouchError, OSError, ValueError, KeyError):
            report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
            request = EditRequest.read(folder / "request.json")
            width, height = report["size"]
            work = width * height * report["frames"] * steps_of(request.filled())
            spent[request.method].append((report["seconds"], work))
    return {name: sum(s for s, _ in runs) / sum(w for _, w in runs) for name, runs in spent.items()}
