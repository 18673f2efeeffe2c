"""A batch on a Ray cluster of several nodes, of which workers, a node and the driver die."""

import contextlib
import functools
import importlib.util
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from batch_watch import at_work, digests, tint, write_clips, write_rows
from batch_watch import ended as ended_within
from batch_watch import until as until_within
from command_line import Shell
from ray_nodes import Nodes, NoNodes, start_nodes, variables_of

import retouch
from retouch import batch
from retouch.apps.batch_folder import BatchFolder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra `cluster`"),
]
PLUGINS = Path(__file__).parents[1] / "plugins"
PATIENCE = 400.0
"""Seconds: nodes and what they load take minutes where the machine is busy."""


def until(what: Callable[[], object]) -> None:
    until_within(what, PATIENCE)


def ended(process: "subprocess.Popen[str]") -> int:
    return ended_within(process, PATIENCE)


@pytest.fixture(scope="module")
def short() -> Iterator[Path]:
    """A folder whose name is short enough for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="r"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def variables(short: Path) -> dict[str, str]:
    return variables_of(short)


@pytest.fixture(scope="module")
def nodes(variables: dict[str, str]) -> Iterator[Nodes]:
    """A head without cores, and three nodes with one each, that know the method `tint`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PLUGINS))
        made = start(3, variables)
    yield made
    made.close()


def start(count: int, variables: dict[str, str]) -> Nodes:
    try:
        return start_nodes(count, variables)
    except NoNodes:
        pytest.skip("Ray does not start nodes on this machine")


@pytest.fixture
def on_cluster(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def end_a_worker(out: Path, draw: random.Random, count: int) -> bool:
    """End a worker by force, once so many rows have ended and another is at work; return whether it could."""
    busy = at_work(out)
    if len(list((out / "done").glob("*.json"))) < count or not busy:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(draw.choice(busy)[0], signal.SIGKILL)
    return True


def test_rows_on_a_cluster_survive_their_workers_a_node_and_the_driver(
    shell: Shell, plugins: Path, nodes: Nodes, on_cluster: None
) -> None:
    del plugins, on_cluster
    out, rows = (
        shell.folder / "out",
        [tint(clip, seed=s, pause=0.1) for clip in write_clips(shell) for s in range(4)],
    )
    whole = [
        retouch.edit(
            "tint", shell.folder / row["video"], seed=row["seed"], compute=retouch.Compute(threads=1),
            **row["params"],
        ).report["result_digest"]
        for row in rows
    ]  # fmt: skip
    words = ("batch", write_rows(shell, *rows), "--out", "out", "--quiet", "--cluster", nodes.address)
    driver, draw = shell.new(*words), random.Random(5)
    done = out / "done"
    for count in (1, 3):
        until(functools.partial(end_a_worker, out, draw, count))
    nodes.do("lose")
    until(lambda: len(list(done.glob("*.json"))) >= 4)
    driver.kill()
    ended(driver)
    before = {path.name: path.stat().st_mtime_ns for path in done.glob("*.json")}
    assert ended(shell.new(*words)) == 0
    assert digests(out) == whole
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in done.glob("*.json")}.items()
    nodes.do("add")


def test_rows_on_a_cluster_stop_at_a_checkpoint_and_go_on(
    shell: Shell, plugins: Path, nodes: Nodes, on_cluster: None
) -> None:
    del plugins, on_cluster
    rows, out = write_rows(shell, tint(steps=100, pause=0.2)), shell.folder / "out"
    words = ("batch", rows, "--out", "out", "--quiet", "--cluster", nodes.address)
    driver = shell.new(*words)
    until(lambda: any(out.glob("store/grain/.*.checkpoint.safetensors")))
    driver.terminate()
    _, said = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == batch.ROWS_LEFT, said
    assert not list((out / "done").iterdir())
    (log,) = out.glob("runs/*/events.jsonl")
    before = len(log.read_text().splitlines())
    assert ended(shell.new(*words)) == 0
    told = [json.loads(line) for line in log.read_text().splitlines()[before:]]
    fitted = [event["total"] for event in told if event["event"] == "started" and event["stage"] == "fit"]
    assert fitted[0] < 100
    leases = {lease.name for lease in out.glob("runs/*/lease-*.ended")}
    assert "lease-2.ended" in leases  # the first is missing where a busy machine had it ended by force
    assert BatchFolder(out).take(next(out.glob("runs/*")).name, "")


def test_a_cluster_without_tokens_is_refused(
    shell: Shell, plugins: Path, variables: dict[str, str], on_cluster: None
) -> None:
    del plugins, on_cluster
    rows = write_rows(shell, tint(pause=0))
    unguarded = start(0, {**variables, "RAY_AUTH_MODE": "disabled"})
    told = shell.new("batch", rows, "--out", "out", "--cluster", unguarded.address)
    _, said = told.communicate()
    unguarded.close()
    assert told.returncode == 2
    assert "asks nobody for a token" in said
    assert "--trust-network" in said


def test_a_cluster_that_is_started_here_listens_here_alone_and_keeps_its_token(
    shell: Shell, plugins: Path, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del plugins
    monkeypatch.setenv("RAY_TMPDIR", str(short / "l"))
    rows = write_rows(shell, tint(pause=0.5, steps=10))
    driver = shell.new("batch", rows, "--out", "out", "--quiet", "--cluster")
    until(lambda: at_work(shell.folder / "out"))
    found = of_the_home(shell.home)
    assert any(b"gcs_server" in words for words, _ in found.values())
    servers = [name for words, name in found.values() if b"raylet/raylet" in words or b"gcs_server" in words]
    assert all(b"RAY_USAGE_STATS_ENABLED=0" in variables for variables in servers)
    heard = addresses(found)
    assert heard
    assert {address for address, _ in heard} == {"127.0.0.1"}
    assert not addresses(number for number, (words, _) in found.items() if b"/dashboard.py" in words)
    assert ended(driver) == 0
    token = shell.home / "ray-token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    logs = [path for path in (short / "l").rglob("*") if path.is_file()]
    assert logs
    assert not [path for path in logs if token.read_bytes() in path.read_bytes()]


def of_the_home(home: Path) -> dict[int, tuple[bytes, bytes]]:
    """The words and the variables of the processes that have this home, by their numbers."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words, variables = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except OSError:
            continue
        if f"RETOUCH_HOME={home}".encode() in variables:
            found[int(process.name)] = (words, variables)
    return found


def addresses(processes: Iterable[int]) -> set[tuple[str, int]]:
    """The addresses and ports at which processes listen."""
    sockets = set()
    for process in processes:
        for link in Path(f"/proc/{process}/fd").glob("*"):
            try:
                sockets.add(str(link.readlink()))
            except OSError:
                continue
    heard = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in sockets:
                host, port = words[1].split(":")
                last = bytes.fromhex(host)[-4:][::-1]
                heard.add((".".join(map(str, last)), int(port, 16)))
    return heard
