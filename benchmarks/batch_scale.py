"""Simulates batches of any size, event by event, from costs that can be measured on real ones.

    python benchmarks/batch_scale.py simulate [--rows 100000] [--minutes 1]   1 to 1,000 workers
    python benchmarks/batch_scale.py check                             against real runs, 1 and 2 workers
    python benchmarks/batch_scale.py measure                           the costs themselves

A worker takes a group, loads its model unless it is the one that it has, makes what its clip needs unless
somebody did, and carries out its rows. The driver and the shared folder are queues: what they are asked for
waits its turn. Workers die, some with their machine, some are slow. `simulate` prints for each number of
workers the hours, the share of them that workers computed, how busy driver and folder were, what was lost.
"""

import argparse
import heapq
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Self

HERE = Path(__file__).resolve().parents[1]
AHEAD = 2
"""Groups that a cluster is handed for each of its places."""
SHARDS = {"shards": 1, "shards, 10 each": 10}
"""Ways in which each job has a driver of its own, and how many jobs there are for each worker."""
SILENCE = 180.0
"""Seconds until the rows of a machine that is gone are free."""


@dataclass(frozen=True)
class Costs:
    """Seconds, and calls to the shared folder: assumed ones, for a model of the size of Stable Diffusion."""

    start: float = 2.6
    """A worker's start, until it is at its first row: Python, torch, the method."""
    load: float = 20.0
    """Loading a model of the size of Stable Diffusion from a shared disk."""
    row: float = 60.0
    """One row."""
    first: float = 60.0
    """What is made once for each clip: atlas, inversion, flow."""
    around: float = 0.12
    """What a worker does around the edit itself: reading, writing, reporting."""
    read: float = 0.0012
    """The driver reads, checks and keys a row."""
    hand: float = 0.004
    """The driver hands a group over."""
    tell: float = 0.0016
    """The driver hears of a row that ended, and tells it."""
    look: float = 0.00005
    """The driver looks whether the next row of a group has ended."""
    calls: int = 90
    """Calls to the shared folder for each row."""
    beats: float = 1 / 20
    """Signs of life that a worker gives in a second, a call each."""
    answers: float = 5_000.0
    """Calls that the shared folder answers in a second."""
    deaths: float = 1 / (100 * 3600)
    """Workers that die in a second, each."""
    gone: float = 0.2
    """The share of deaths that take the machine along."""
    checkpoint: float = 20.0
    """Seconds between checkpoints."""
    slow: float = 0.05
    """The share of workers that take `slower` times as long."""
    slower: float = 3.0
    spread: float = 0.3
    """How rows differ in length: the standard deviation of their logarithm."""


@dataclass
class Turns:
    """Whoever serves one call after another."""

    free_at: float = 0.0
    busy: float = 0.0

    def serve(self, now: float, seconds: float) -> float:
        """Return when a call is answered that takes so long and comes now."""
        self.free_at = max(now, self.free_at) + seconds
        self.busy += seconds
        return self.free_at


@dataclass
class Worker:
    """A worker: what it has loaded, what it has taken on, how slow it is, when it dies next."""

    pace: float
    dies: float
    model: int = -1
    shard: deque[deque[int]] = field(default_factory=deque)
    taken: deque[int] = field(default_factory=deque)
    begun: bool = False


class Simulation:
    """A batch of `clips` clips with `each` rows each, of a few models, by one of three ways."""

    def __init__(
        self, way: str, workers: int, clips: int, each: int, models: int, costs: Costs, *, largest: int = 32
    ) -> None:
        self.way, self.costs, self.draw = way, costs, random.Random(0)
        self.each, self.total = each, clips * each
        self.driver, self.folder, self.lost = Turns(), Turns(), Counter[str]()
        self.made: dict[int, float] = {}
        """When what a clip needs is there."""
        self.left, self.computed = self.total, 0.0
        self.workers = [Worker(self._pace(), self._death(0.0)) for _ in range(workers)]
        self.model_of = [clip * models // clips for clip in range(clips)]
        cut = [
            deque(range(clip * each + start, min(clip * each + start + largest, (clip + 1) * each)))
            for clip in range(clips)
            for start in range(0, each, largest)
        ]
        self.lists = deque(deque[deque[int]]() for _ in range(workers * SHARDS.get(way, 0) or 1))
        """What waits: of one driver, or of each shard."""
        for group in cut:
            self.lists[self.draw.randrange(len(self.lists))].append(group)
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.count = 0

    def _pace(self) -> float:
        return self.costs.slower if self.draw.random() < self.costs.slow else 1.0

    def _death(self, now: float) -> float:
        return now + self.draw.expovariate(self.costs.deaths) if self.costs.deaths else float("inf")

    def at(self, when: float, what: Callable[[float], None]) -> None:
        """Have something happen."""
        self.count += 1
        heapq.heappush(self.events, (when, self.count, what))

    def run(self) -> float:
        """Return the seconds until the last row has ended."""
        costs, ended = self.costs, 0.0
        for number in range(len(self.workers)):
            read = 0.0 if self.way in SHARDS or number else costs.read * self.total
            self.at(self.driver_time(number, 0.0, read) + costs.start, self._next(number))
        while self.events:
            now, _, what = heapq.heappop(self.events)
            what(now)
            ended = now
        assert self.left == 0, self.left
        return ended

    def driver_time(self, number: int, now: float, seconds: float) -> float:
        """Return when the driver is through with something; each shard has a driver of its own."""
        if self.way in SHARDS:
            self.driver.busy += seconds / len(self.workers)
            return now + seconds
        del number
        return self.driver.serve(now, seconds)

    def _next(self, number: int) -> Callable[[float], None]:
        return lambda now: self.take(number, now)

    def take(self, number: int, now: float) -> None:
        """Have a worker begin its next row, if there is one."""
        worker = self.workers[number]
        if not worker.taken:
            now = self._take_group(number, now)
        if not worker.taken:
            return
        row = worker.taken.popleft()
        worker.begun = True
        clip = row // self.each
        began, costs = now, self.costs
        if worker.model != self.model_of[clip]:
            worker.model = self.model_of[clip]
            now += costs.load * worker.pace
        if clip not in self.made:
            self.made[clip] = now + costs.first * worker.pace
        now = max(now, self.made[clip])
        length = costs.row * self.draw.lognormvariate(0, costs.spread) * worker.pace
        end = now + length + costs.around * worker.pace
        if worker.dies < end:
            self.at(worker.dies, lambda died: self._die(number, row, died))
        else:
            self.computed += length / worker.pace
            self.folder.busy += (end - began) * costs.beats / costs.answers
            self.at(end, lambda then: self._ask_folder(number, then))

    def _ask_folder(self, number: int, now: float) -> None:
        answered = self.folder.serve(now, self.costs.calls / self.costs.answers)
        self.at(answered, lambda then: self._end(number, then))

    def _end(self, number: int, now: float) -> None:
        self.left -= 1
        heard = self.driver_time(number, now, self.costs.tell)
        self.at(now if self.way == "cluster" else heard, self._next(number))

    def _die(self, number: int, row: int, died: float) -> None:
        """Have a worker die over a row; what it did since its last checkpoint is lost."""
        worker, costs = self.workers[number], self.costs
        machine = self.draw.random() < costs.gone
        self.lost["machines" if machine else "workers"] += 1
        self.lost["seconds"] += int(costs.checkpoint * self.draw.random() + costs.start + costs.load)
        worker.dies, worker.model = self._death(died), -1
        worker.taken.appendleft(row)
        if self.made.get(row // self.each, 0.0) > died:
            self.made.pop(row // self.each)
        self.at(died + costs.start + (SILENCE if machine else 0.0), self._next(number))

    def _take_group(self, number: int, now: float) -> float:
        """Give a worker a group, its own shard's, or the later half of the longest that another has."""
        worker = self.workers[number]
        worker.begun = False
        if self.way in SHARDS:
            while not worker.shard and self.lists:  # a job that ends makes room for the next
                worker.shard = self.lists.popleft()
                now += self.costs.start + self.costs.read * self.total
        waiting = worker.shard if self.way in SHARDS else self.lists[0]
        if waiting:
            worker.taken = self._best(waiting, worker.model)
        elif self.way not in SHARDS:
            longest = max(self.workers, key=lambda other: len(other.taken) if other.begun else 0)
            if longest.begun:
                worker.taken = deque(longest.taken.pop() for _ in range((len(longest.taken) + 1) // 2))
        if not worker.taken:
            return now
        return self.driver_time(number, now, self.costs.hand)

    def _best(self, waiting: deque[deque[int]], model: int) -> deque[int]:
        """Take the first group of a worker's own model from the next few, or the first."""
        for index in range(min(AHEAD * len(self.workers), len(waiting))):
            if self.model_of[waiting[index][0] // self.each] == model:
                group = waiting[index]
                del waiting[index]
                return group
        return waiting.popleft()


def simulate(rows: int, minutes: float, answers: float) -> None:
    """Print what batches of that many rows come to."""
    each = 10
    costs = replace(Costs(), row=60 * minutes, first=60 * minutes, answers=answers)
    print(
        f"{rows} rows of {minutes:g} min, 10 a clip, 3 models; the folder answers {answers:g} calls a second."
    )
    print("| way | workers | hours | efficiency | driver busy | folder busy | deaths | hours lost |")
    print("|---|---|---|---|---|---|---|---|")
    for count in (1, 10, 100, 1000):
        for way in (*SHARDS, "cluster") if count > 1 else ("pool", "cluster"):
            batch = Simulation(way, count, rows // each, each, 3, costs)
            if way == "cluster":  # looks at the next row of each group, a twentieth of the time at most
                batch.driver.busy = 0.0
            seconds = batch.run()
            looks = min(0.05, AHEAD * count * costs.look / 0.5) if way == "cluster" else 0.0
            driver = batch.driver.busy / seconds + looks
            deaths = batch.lost["workers"] + batch.lost["machines"]
            print(
                f"| {way} | {count} | {seconds / 3600:.1f} | {batch.computed / seconds / count:.0%} "
                f"| {driver:.1%} | {batch.folder.busy / seconds:.1%} | {deaths} "
                f"| {batch.lost['seconds'] / 3600:.1f} |",
                flush=True,
            )


# --- real runs


def real(rows: int, clips: int, pause: float, steps: int, workers: int) -> float:
    """Return the seconds that a pool takes for rows that mostly wait, as a busy machine lets them."""
    sys.path.insert(0, str(HERE / "tests" / "plugins"))
    from retouch import batch
    from retouch.media.io import write
    from retouch.testing import bouncing

    with TemporaryDirectory(prefix="b") as name:
        folder = Path(name)
        os.environ.update(RETOUCH_HOME=str(folder / "home"), OMP_NUM_THREADS="1")
        given = []
        for clip in range(clips):
            write(bouncing().video[: 8 - clip], folder / f"{clip}.mkv")
            params = {"steps": steps, "pause": pause}
            row = {"video": str(folder / f"{clip}.mkv"), "method": "tint", "params": params}
            given += [{**row, "compute": {"threads": 1}, "seed": seed} for seed in range(rows // clips)]
        began = time.perf_counter()
        assert all(result.done for result in batch.run(given, folder / "out", workers=workers))
        return time.perf_counter() - began


def check() -> None:
    """Take the costs from two short runs with one worker, and compare longer ones with their simulation."""
    step = 2.0
    short, long = real(2, 1, step / 4, 4, 1), real(6, 1, step / 4, 4, 1)
    waited = (2 + 1) * step  # two rows, and what is made once
    around = max(0.0, (long - short) / 4 - step)
    costs = Costs(
        start=max(0.0, short - waited - 2 * around), load=0.0, around=around, deaths=0.0, slow=0.0, spread=0.0
    )
    print(f"start {costs.start:.2f} s, around a row {around:.2f} s")
    print("| workers | rows, clips, seconds of each | measured | simulated | error |")
    print("|---|---|---|---|---|")
    for workers in (1, 2):
        for rows, clips, seconds in ((12, 2, 3.0), (24, 4, 2.0)):
            took = real(rows, clips, seconds / 5, 5, workers)
            told = Simulation(
                "pool", workers, clips, rows // clips, 1, replace(costs, row=seconds, first=seconds)
            ).run()
            row = f"{workers} | {rows}, {clips}, {seconds:g} | {took:.1f} | {told:.1f}"
            print(f"| {row} | {told / took - 1:+.0%} |", flush=True)


def measure() -> None:
    """Print the costs of this machine: of the driver in processor time, of the folder in calls."""
    sys.path.insert(0, str(HERE / "tests" / "plugins"))
    from retouch.apps.batch_folder import BatchFolder
    from retouch.apps.batch_rows import groups_of, read_rows
    from retouch.apps.cluster import GroupTasks
    from retouch.events import ignore
    from retouch.media.io import write
    from retouch.testing import bouncing

    count = 2_000
    with TemporaryDirectory(prefix="b") as name:
        folder = BatchFolder(Path(name) / "out")
        write(bouncing().video, Path(name) / "c.mkv")
        row = {"video": str(Path(name) / "c.mkv"), "method": "tint", "params": {"steps": 3}}
        with Clock() as read:
            rows, faults = read_rows([{**row, "seed": seed} for seed in range(count)])
            groups = groups_of(rows)
            folder.prepare(rows, {})
        assert not faults
        with Clock() as looks:
            for one in rows:
                folder.outcome(one.key)
        for one in rows:
            outcome = {"state": "done", "result": "x", "report": {"method": "tint"}, "identity": "i"}
            (folder.path / "done" / f"{one.key}.json").write_text(json.dumps(outcome))
        with Clock() as told:
            folder.write_results(rows)
        tasks = GroupTasks(nothing(), groups, folder, gpus=0.0, silence=SILENCE, listen=ignore)
        tasks._see_nodes()
        with Clock() as handed:
            for group in groups:
                tasks._hand_over(group)
        for name, used in (("read", read), ("look", looks), ("tell", told), ("hand", handed)):
            size = len(groups) if name == "hand" else count
            print(f"{name} {1000 * used.seconds / size:.3f} ms of processor", flush=True)
        print(f"calls to the folder: {calls(Path(name), row)} a row")


class Clock:
    """Processor seconds of a block."""

    seconds = 0.0

    def __enter__(self) -> Self:
        """Begin."""
        self.seconds = -time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self.seconds += time.process_time()


def nothing() -> SimpleNamespace:
    """A cluster that takes tasks and does nothing."""
    numbers = iter(range(1_000_000))
    task = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *_: next(numbers)))
    nodes = [{"Alive": True, "Resources": {"CPU": 1.0}}]
    return SimpleNamespace(remote=lambda **_: lambda _: task, nodes=lambda: nodes)


def calls(folder: Path, row: dict[str, object]) -> str:
    """Return how many calls on files of the batch's folder a row costs, as strace counts them."""
    code = (
        "import sys; from retouch import batch; given = eval(sys.argv[2]);"
        "rows = [{**given, 'seed': seed} for seed in range(int(sys.argv[3]))];"
        "assert all(result.done for result in batch.run(rows, sys.argv[1], workers=1))"
    )
    found = []
    for number in (2, 12):
        log, out = folder / f"calls-{number}", folder / f"calls-of-{number}"
        words = [
            "strace",
            "-f",
            "-qq",
            "-e",
            "trace=file",
            "-o",
            log,
            sys.executable,
            "-c",
            code,
            out,
            repr(row),
            number,
        ]
        variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RETOUCH_HOME": str(folder / "h")}
        try:
            subprocess.run([str(word) for word in words], check=True, env=variables)
        except FileNotFoundError:
            return "not counted: strace is missing,"
        found.append(sum(str(out) in line for line in lines_of(log)))
    return f"{(found[1] - found[0]) / 10:.0f}"


def lines_of(path: Path) -> Iterator[str]:
    """Yield the lines of a log."""
    with path.open(errors="replace") as file:
        yield from file


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("simulate", "check", "measure"))
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--answers", type=float, default=Costs.answers)
    asked = parser.parse_args()
    if asked.what == "simulate":
        simulate(asked.rows, asked.minutes, asked.answers)
    elif asked.what == "check":
        check()
    else:
        measure()


if __name__ == "__main__":
    main()
