"""A worker: jobs and events over its pipes, stopping it ever more firmly, and what is left when it dies."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from retouch.apps.run_folder import new_folder, state_of
from retouch.apps.runner import edit
from retouch.apps.worker import PROTOCOL, Worker
from retouch.errors import Cancelled, ParamsError, RequestError, WorkerEnded
from retouch.events import Advanced, Event
from retouch.media.io import write
from retouch.testing import Bouncing

pytestmark = pytest.mark.slow  # whichever comes first waits for torch to be imported

LONG = 60.0
"""Seconds that one step of an edit would take that is not to end by itself."""


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    made = Worker(
        environment={"RETOUCH_HOME": str(tmp_path_factory.mktemp("home")), "OMP_NUM_THREADS": "1"},
        interrupt_after=0.3,
        end_after=0.6,
    )
    yield made
    made.close()


@pytest.fixture
def clip(tmp_path: Path, bouncing: Bouncing) -> Path:
    return write(bouncing.video, tmp_path / "clip.mp4")


def pid(worker: Worker) -> int:
    """The number of its process, which must be there."""
    assert worker.process
    assert worker.process.poll() is None
    return worker.process.pid


def given(clip: Path, **params: object) -> dict[str, object]:
    request = {"video": str(clip), "method": "tint", "params": params, "compute": {"threads": 1}}
    return {"folder": str(new_folder("tint")), "request": request}


def at_work(said: list[Event], act: Callable[[], object]) -> threading.Thread:
    """Act as soon as the job has told of its first step."""

    def wait() -> None:
        until = time.monotonic() + 300
        while not said and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(0.2)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_job_gives_the_same_frames_as_the_edit_itself_and_tells_its_events(
    worker: Worker, clip: Path
) -> None:
    said: list[Event] = []
    done = worker.call("edit", given(clip, steps=3), listen=said.append)
    alone = edit("tint", clip, steps=3)
    assert done["report"]["result_digest"] == alone.report["result_digest"]
    assert [event for event in said if isinstance(event, Advanced) and event.stage == "tint"] == [
        Advanced("tint", step, 3) for step in (1, 2, 3)
    ]


def test_what_goes_wrong_in_a_job_is_raised_here_with_its_hint(worker: Worker, clip: Path) -> None:
    with pytest.raises(ParamsError, match="steps is 0") as caught:
        worker.call("edit", given(clip, steps=0))
    assert caught.value.hint == "Denoising steps."
    with pytest.raises(RequestError, match="there is no job 'bake'"):
        worker.call("bake", {})


def test_a_job_that_is_asked_stops_at_its_next_step(worker: Worker, clip: Path) -> None:
    said: list[Event] = []
    wanted = given(clip, steps=1000, pause=0.01)
    with pytest.raises(Cancelled):
        worker.call("edit", wanted, listen=said.append, stopped=lambda: bool(said))
    assert pid(worker)
    assert state_of(Path(str(wanted["folder"]))) == "stopped"


def test_a_job_that_does_not_hear_is_interrupted_and_its_worker_lives_on(worker: Worker, clip: Path) -> None:
    said: list[Event] = []
    wanted = given(clip, steps=2, pause=LONG)
    with pytest.raises(Cancelled):
        worker.call("edit", wanted, listen=said.append, stopped=lambda: bool(said))
    assert pid(worker)
    assert state_of(Path(str(wanted["folder"]))) == "stopped"


def test_a_worker_that_does_not_even_hear_an_interrupt_is_ended(worker: Worker, clip: Path) -> None:
    said: list[Event] = []
    worker.call("edit", given(clip, steps=1))
    frozen = pid(worker)
    thread = at_work(said, lambda: os.kill(frozen, signal.SIGSTOP))
    wanted = given(clip, steps=2, pause=LONG)
    with pytest.raises(Cancelled):
        worker.call("edit", wanted, listen=said.append, stopped=lambda: not thread.is_alive())
    assert worker.process is None
    assert state_of(Path(str(wanted["folder"]))) == "stopped"


def test_a_worker_that_dies_is_told_of_and_the_next_job_has_a_new_one(worker: Worker, clip: Path) -> None:
    whole = worker.call("edit", given(clip, steps=9, pause=0.02))
    victim, said = pid(worker), list[Event]()
    at_work(said, lambda: os.kill(victim, signal.SIGKILL))
    wanted = given(clip, steps=9, pause=0.3)
    with pytest.raises(WorkerEnded, match="the worker ended by SIGKILL"):
        worker.call("edit", wanted, listen=said.append)
    request = {**wanted["request"], "params": {"steps": 9, "pause": 0.02}}  # type: ignore[dict-item]
    again = worker.call("edit", {**wanted, "request": request})
    assert again["report"]["result_digest"] == whole["report"]["result_digest"]


def test_a_worker_that_is_closed_at_work_tells_whoever_waits(worker: Worker, clip: Path) -> None:
    said, waited = list[Event](), list[str]()

    def wait() -> None:
        with pytest.raises(WorkerEnded) as ended:
            worker.call("device", {"word": "cpu"})
        waited.append(str(ended.value))

    waiter = threading.Thread(target=wait)

    def close() -> None:
        waiter.start()
        while "before" not in sys._current_frames()[waiter.ident or 0].f_locals:
            time.sleep(0.01)
        worker.close()

    closer = at_work(said, close)
    with pytest.raises(WorkerEnded, match="SIGKILL"):
        worker.call("edit", given(clip, steps=2, pause=LONG), listen=said.append)
    closer.join()
    waiter.join()
    assert waited == ["the worker was closed"]
    assert worker.process is None


def test_a_job_beyond_patience_ends_its_worker(worker: Worker, clip: Path) -> None:
    with pytest.raises(WorkerEnded, match="it took more than"):
        worker.call("edit", given(clip, steps=2, pause=LONG), patience=0.5)


def test_the_protocol_says_its_version_and_ends_with_its_input() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "from retouch.apps.worker import main; main()", "0"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    out, _ = child.communicate('{"id": 1, "job": "nothing", "given": {}}\n', timeout=60)
    hello, answer = map(json.loads, out.splitlines()[:2]) if "\n{" in out else (json.loads(out), None)
    assert (hello["protocol"], hello["pid"]) == (PROTOCOL, child.pid)
    assert child.returncode == 0
    assert answer is None or answer["error"] == "RequestError"
