"""Measures batches: the same rows by every way, what dies meanwhile, and what the driver itself takes.

    python benchmarks/batch.py equal [--ways single pool shards cluster]   24 rows: results, loads and seconds
    python benchmarks/batch.py kills [--count 200]          workers, drivers and nodes killed at random
    python benchmarks/batch.py overhead [--rows 10000]      rows of a method that does nothing

Rows of `equal` are 3 embedded models x 4 clips of drawn faces x 2 seeds. The cluster is Ray's, of nodes with
a core each on this machine; without Ray that way is left out.
"""

import argparse
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE / "tests" / "plugins"))

from batch_watch import at_work  # noqa: E402
from ray_nodes import Nodes, start_nodes, variables_of  # noqa: E402

import retouch  # noqa: E402
from retouch import batch  # noqa: E402
from retouch.apps.batch_folder import MOST_DEATHS  # noqa: E402
from retouch.media.io import read, write, write_picture  # noqa: E402
from retouch.testing import bouncing  # noqa: E402
from retouch.world import FaceClip, Portrait  # noqa: E402

CLIPS, SEEDS, FRAMES = 4, 2, 4
WAYS = ("single", "pool", "shards", "cluster")


# --- the ways in which rows are carried out


def command(*words: object, variables: Mapping[str, str]) -> "subprocess.Popen[str]":
    """The command line in a process of its own."""
    code = "import sys; from retouch.apps.cli import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code, *map(str, words)],
        env={**os.environ, **variables, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def commands(way: str, rows: Path, out: Path, workers: int, address: str) -> list[list[object]]:
    """What starts the batch: a pool, shards, or a driver of a cluster."""
    words: list[object] = ["batch", rows, "--out", out, "--quiet"]
    if way == "shards":
        return [[*words, "--shard", f"{number}/{workers}"] for number in range(1, workers + 1)]
    return [[*words, *(("--cluster", address) if way == "cluster" else ("--workers", workers))]]


@contextmanager
def cluster(nodes: int, folder: Path) -> Iterator[tuple[dict[str, str], Nodes]]:
    """Give the variables of a cluster and the cluster."""
    variables = variables_of(folder)
    made = start_nodes(nodes, variables)
    try:
        yield variables, made
    finally:
        made.close()


# --- the same rows by every way


def face_rows(folder: Path, steps: int) -> Path:
    """Write the clips, an edited first frame for each, and the rows."""
    rows = []
    for number in range(CLIPS):
        clip = folder / f"face-{number}.mkv"
        write(FaceClip.of(Portrait.sample(number), FRAMES).video, clip)
        picture = read(clip).frames[0].transpose(1, 2, 0).copy()
        picture[8:40, 8:40] = (20, 60, 220)
        write_picture(picture, folder / f"first-{number}.png")
        methods: dict[str, dict[str, object]] = {
            "frame_by_frame": {"prompt": "a blue car", "steps": steps},
            "videoshop": {"first": f"first-{number}.png", "steps": steps},
            "face": {"attribute": ["glasses=1"], "steps": steps},
        }
        for seed in range(SEEDS):
            for method, params in methods.items():
                given = {"video": clip.name, "method": method, "seed": seed, "params": params}
                rows.append({**given, "compute": {"threads": 1}, "anyway": True})
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def told(out: Path) -> list[dict[str, Any]]:
    """The results, without what differs from time to time."""
    results = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    for result in results:
        result["report"].pop("seconds")
    return results


def single_edits(rows: Path) -> list[str]:
    """The digests of the rows, edited one by one without a batch."""
    digests = []
    for row in map(json.loads, rows.read_text().splitlines()):
        params, clip = row.pop("params"), rows.parent / row.pop("video")
        if "first" in params:
            params["first"] = rows.parent / params["first"]
        compute = retouch.Compute(**row.pop("compute"))
        result = retouch.edit(row.pop("method"), clip, compute=compute, **row, **params)
        digests.append(str(result.report["result_digest"]))
    return digests


def loads(out: Path) -> tuple[int, int, int]:
    """How many models workers loaded, the most that one worker loaded one model, and results made twice."""
    loaded, kept = Counter[tuple[int, str]](), Counter[tuple[str, str]]()
    for log in (out / "runs").glob("*/events.jsonl"):
        process = json.loads((log.parent / "lease-1").read_text())["process"]
        for line in log.read_text().splitlines():
            event = json.loads(line)
            if event["event"] == "loaded":
                loaded[process, event["model"]] += 1
            elif event["event"] == "kept":
                kept[event["kind"], event["key"]] += 1
    return sum(loaded.values()), max(loaded.values()), sum(count - 1 for count in kept.values())


def equal(ways: Sequence[str], workers: Sequence[int], steps: int) -> None:
    """Carry the rows out by every way and print seconds, loads, and whether results are equal."""
    with TemporaryDirectory(prefix="b") as name:
        folder = Path(name)
        os.environ["RETOUCH_HOME"] = str(folder / "home")
        rows, results = face_rows(folder, steps), dict[str, list[dict[str, Any]]]()
        print(
            "| way | workers | seconds | loads | most per worker and model | made twice | as the first way |"
        )
        print("|---|---|---|---|---|---|---|")
        digests: list[str] = []
        if "single" in ways:
            began = time.perf_counter()
            digests = single_edits(rows)
            print(
                f"| single edits | 1 | {time.perf_counter() - began:.1f} | - | - | - | - |",
                flush=True,
            )
        for way in ways:
            for count in workers if way != "single" else ():
                out = folder / f"{way}-{count}"
                seconds = timed(way, rows, out, count, folder)
                results[f"{way} {count}"] = told(out)
                found = [result["report"]["result_digest"] for result in results[f"{way} {count}"]]
                first = next(iter(results.values()))
                same = results[f"{way} {count}"] == first and found == (digests or found)
                columns = " | ".join(map(str, loads(out)))
                print(
                    f"| {way} | {count} | {seconds:.1f} | {columns} | {'equal' if same else 'OTHER'} |",
                    flush=True,
                )


def timed(way: str, rows: Path, out: Path, workers: int, folder: Path) -> float:
    """Carry the rows out and return the seconds, without those that a cluster takes to start."""
    if way == "cluster":
        with cluster(workers, folder) as (variables, nodes):
            return carried_out(commands(way, rows, out, workers, nodes.address), variables)
    return carried_out(commands(way, rows, out, workers, ""), {"OMP_NUM_THREADS": "1"})


def carried_out(lines: Sequence[Sequence[object]], variables: Mapping[str, str]) -> float:
    """Start commands at once, see that they end well, and return the seconds that they took."""
    began = time.perf_counter()
    running = [command(*words, variables=variables) for words in lines]
    for process in running:
        _, said = process.communicate()
        assert process.returncode == 0, said
    return time.perf_counter() - began


# --- what dies


def tint_rows(folder: Path) -> Path:
    """Twelve rows that mostly wait: three clips, four seeds."""
    video, rows = bouncing().video, []
    for frames in (8, 6, 4):
        write(video[:frames], folder / f"{frames}.mkv", force=True)
        for seed in range(4):
            given = {"video": f"{frames}.mkv", "method": "tint", "seed": seed, "compute": {"threads": 1}}
            rows.append({**given, "params": {"steps": 8, "pause": 0.15}})
    path = folder / "tint.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def busy(out: Path) -> list[int]:
    """The processes at work; none whose row would be given up if it died once more."""
    return [process for process, key, _ in at_work(out) if unsaid(out / "runs" / key) < MOST_DEATHS]


def unsaid(run: Path) -> int:
    """How many attempts at a row did not say how they ended."""
    names = [path.name for path in run.glob("lease-*")]
    return sum(f"{name}.ended" not in names for name in names if not name.endswith(".ended"))


class Fire:
    """What is killed while batches run, at random, and how their rows end."""

    def __init__(self, rows: Path, share: int, seed: int) -> None:
        self.rows, self.share, self.draw = rows, share, random.Random(seed)
        self.killed, self.seen = Counter[str](), Counter[str]()
        self.whole = rows.parent / "whole"

    def batch(self, way: str, variables: Mapping[str, str], nodes: Nodes | None = None) -> None:
        """Carry one batch out, kill what works on it, and count how its rows ended."""
        self.seen["batches"] += 1
        out = self.rows.parent / f"{way}-{self.seen['batches']}"
        lines = commands(way, self.rows, out, 2, nodes.address if nodes else "")
        running = [command(*words, variables=variables) for words in lines]
        outcomes: dict[Path, int] = {}
        lost = 0
        while any(process.poll() is None for process in running):
            time.sleep(self.draw.uniform(0.3, 2.0))
            for path in (out / "done").glob("*.json"):  # an outcome never changes again
                self.seen["doubled"] += outcomes.setdefault(path, path.stat().st_ino) != path.stat().st_ino
            if self.killed.total() < self.share and (processes := busy(out)):
                match self.kill(processes, nodes if not lost else None):
                    case "driver":
                        number = self.draw.randrange(len(running))
                        running[number].kill()
                        running[number].communicate()
                        running[number] = command(*lines[number], variables=variables)
                    case "node":
                        lost = 1
        for process in running:
            _, said = process.communicate()
            if process.returncode:
                print(f"exit code {process.returncode}: {said[-600:]}", file=sys.stderr, flush=True)
        if nodes and lost:
            nodes.do("add")
        self.count(out)

    def kill(self, processes: Sequence[int], nodes: Nodes | None) -> str:
        """Kill a worker, or a node, or say that a driver should be killed; return which."""
        roll = self.draw.random()
        kind = "driver" if roll < 0.08 else "node" if roll < 0.13 and nodes else "worker"
        if nodes and kind == "node":
            nodes.do("lose")
        elif kind == "worker":
            with suppress(ProcessLookupError):
                os.kill(self.draw.choice(processes), signal.SIGKILL)
        self.killed[kind] += 1
        return kind

    def count(self, out: Path) -> None:
        """Count rows that were lost or done twice, or whose bytes are not those of an unbroken batch."""
        batch.status(out)
        results = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
        for result, true in zip(results, told(self.whole), strict=True):
            self.seen["rows"] += 1
            self.seen["lost"] += result["state"] != "done"
            digest = result.get("report", {}).get("result_digest")
            self.seen["other"] += digest != true["report"]["result_digest"]
        self.seen["doubled"] += len(list((out / "done").iterdir())) - len(results)


def kills(count: int, ways: Sequence[str], seed: int) -> None:
    """Kill at random until so many are dead, and print what became of the rows."""
    print("| way | batches | workers killed | drivers | nodes | rows | lost | doubled | other bytes |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    with TemporaryDirectory(prefix="b") as name:
        folder = Path(name)
        os.environ.update(RETOUCH_HOME=str(folder / "home"), OMP_NUM_THREADS="1")
        rows = tint_rows(folder)
        carried_out(commands("pool", rows, folder / "whole", 1, ""), {})
        for number, way in enumerate(ways):
            fire = Fire(rows, count * (number + 1) // len(ways) - count * number // len(ways), seed + number)
            with cluster(3, folder) if way == "cluster" else nullcontext(({}, None)) as (variables, nodes):
                while fire.killed.total() < fire.share:
                    fire.batch(way, variables, nodes)
            dead = " | ".join(str(fire.killed[kind]) for kind in ("worker", "driver", "node"))
            ended = " | ".join(str(fire.seen[kind]) for kind in ("rows", "lost", "doubled", "other"))
            print(f"| {way} | {fire.seen['batches']} | {dead} | {ended} |", flush=True)


# --- the driver itself


def overhead(count: int, workers: int) -> None:
    """Print what the driver takes for each row of a method that does nothing."""
    with TemporaryDirectory(prefix="b") as name:
        folder = Path(name)
        os.environ.update(RETOUCH_HOME=str(folder / "home"), OMP_NUM_THREADS="1")
        write(bouncing(frames=1, side=16).video, folder / "c.mkv")
        given = {"video": "c.mkv", "method": "tint", "params": {"steps": 1}, "compute": {"threads": 1}}
        rows = folder / "rows.jsonl"
        rows.write_text("".join(json.dumps({**given, "seed": seed}) + "\n" for seed in range(count)))
        began = time.perf_counter()
        driver = command(*commands("pool", rows, folder / "out", workers, "")[0], variables={})
        ticks, peak = 0, 0.0
        while driver.poll() is None:
            with suppress(OSError, KeyError, IndexError):
                ticks, peak = taken(driver.pid)
            time.sleep(0.2)
        seconds = time.perf_counter() - began
        began = time.process_time()
        done = batch.status(folder / "out")["done"]
        status = time.process_time() - began
        print(f"{done} of {count} rows done by {workers} workers in {seconds:.0f} s")
        each = 1000 * ticks / os.sysconf("SC_CLK_TCK") / count
        print(f"driver: {each:.2f} ms of processor a row, {peak:.0f} MB at most; status {status:.2f} s")


def taken(process: int) -> tuple[int, float]:
    """The ticks of processor that a process took so far, and the megabytes that it had at most."""
    stat = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    memory = dict(line.split(":", 1) for line in lines)["VmHWM"]
    return int(stat[11]) + int(stat[12]), int(memory.split()[0]) / 1024


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("equal", "kills", "overhead"))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=2, help="of each row of `equal`: more, longer rows")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    ways = [way for way in asked.ways if way != "cluster" or importlib.util.find_spec("ray")]
    if asked.what == "equal":
        equal(ways, asked.workers, asked.steps)
    elif asked.what == "kills":
        kills(asked.count, [way for way in ways if way != "single"], asked.seed)
    else:
        overhead(asked.rows, max(asked.workers))


if __name__ == "__main__":
    main()
