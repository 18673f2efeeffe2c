"""A process that owns models and does jobs: JSON lines go in, events come out.

A worker does one job at a time. It is asked to stop, then told by an interrupt, then ended; a run folder goes
on from what was finished in each case. When its input ends, because whoever started it is gone, it stops too.

Version 1 of the protocol, one JSON object a line:

    in   {"id": 7, "job": "edit", "given": {...}}           a job of `JOBS`, with its arguments
         {"stop": 7}                                        ask that job to stop
    out  {"protocol": 1, "retouch": "0.1.0", "pid": 4711}   before anything else
         {"id": 7, "event": {"event": "advanced", ...}}     as in events.jsonl
         {"id": 7, "done": ...}                             what the job gave back
         {"id": 7, "error": "VideoError", "message": "...", "hint": "..."}
"""

import contextlib
import importlib
import itertools
import json
import os
import queue
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Final, TextIO, TypeAlias, final

from retouch import __version__, errors
from retouch.errors import Cancelled, RequestError, RetouchError, WorkerEnded, error_as_json
from retouch.events import Listener, as_json, from_json, ignore
from retouch.files import known_error

PROTOCOL: Final = 1
_PAGE: Final = "look device plan proxy small still compose cutout carry coverage report"
_EDITS: Final = "editors check_frame_edit edit_frame"
JOBS: Mapping[str, str] = {
    "edit": "retouch.apps.worker:edit",
    "row": "retouch.apps.batch_attempt:attempt",
    **{name: f"retouch.apps.web.jobs:{name}" for name in _PAGE.split()},
    **{name: f"retouch.apps.web.edit_jobs:{name}" for name in _EDITS.split()},
}
"""Each job with its function: it takes `listen`, `stopped` and what was given, and returns plain values."""
NEVER: Final = float("inf")
Said: TypeAlias = dict[str, Any]


def edit(
    *,
    listen: Listener,
    stopped: Callable[[], bool],
    folder: str,
    request: Mapping[str, object] | None = None,
    force: bool = False,
) -> dict[str, object]:
    """Carry out a request, or the one in the run folder; return the result's place and the report."""
    from retouch.apps.runner import run_edit
    from retouch.request import EditRequest

    place = Path(folder)
    wanted = (
        EditRequest.from_json(json.dumps(request)) if request else EditRequest.read(place / "request.json")
    )
    result = run_edit(wanted, listen=listen, force=force, folder=place, stopped=stopped)
    return {"result": str(result.video), "report": dict(result.report)}


# --- who starts a worker


@final
class Worker:
    """A worker process as its owner sees it; one that died is started again at the next call."""

    def __init__(
        self,
        *,
        memory: int = 0,
        environment: Mapping[str, str] | None = None,
        interrupt_after: float = 10.0,
        end_after: float = 30.0,
    ) -> None:
        """Bound its address space by `memory` bytes; the last two are seconds after it was asked to stop."""
        self.memory = memory
        self.environment = environment or {}
        self.interrupt_after, self.end_after = interrupt_after, end_after
        self.process: subprocess.Popen[str] | None = None
        self._heard: queue.SimpleQueue[Said | None] = queue.SimpleQueue()
        self._numbers = itertools.count(1)
        self._hearing = threading.Thread()
        self._free = threading.Lock()
        self._closed = 0

    def call(
        self,
        job: str,
        given: Mapping[str, object],
        *,
        listen: Listener = ignore,
        stopped: Callable[[], bool] = lambda: False,
        patience: float = NEVER,
    ) -> Any:
        """Have a job done and return what it gives back; `stopped` is asked ten times a second.

        Raises:
            RetouchError: what the job raised.
            WorkerEnded: the process ended over it, or was ended after so many seconds of `patience`.
        """
        before = self._closed
        with self._free:
            self._start()
            if before != self._closed:  # while it waited for another to be done
                raise self._killed("the worker was closed", hint="Start again.")
            number = next(self._numbers)
            self._send({"id": number, "job": job, "given": given})
            firmer, due, until = self._stop(number), None, time.monotonic() + patience
            while True:
                now = time.monotonic()
                if due is None and stopped():
                    due = now
                if due is not None and now >= due:
                    due = now + next(firmer)
                if now >= until:
                    raise self._killed(
                        f"it took more than {patience:g} s", hint="Give a shorter or smaller clip."
                    )
                try:
                    said = self._heard.get(timeout=0.1)
                except queue.Empty:
                    continue
                if said is None:
                    raise self._ended(stopped=due is not None)
                if said.get("id") == number and "event" in said:
                    listen(from_json(said["event"]))
                elif said.get("id") == number:
                    return _outcome(said)

    def close(self) -> None:
        """End the process at once, if there is one; a run goes on from its last checkpoint another time."""
        self._closed += 1
        if process := self.process:
            process.kill()
        with self._free:  # whoever waits for an answer hears of the end first
            if self.process:
                self._wait()

    def _start(self) -> None:
        if self.process and self.process.poll() is None:
            return
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from retouch.apps.worker import main; main()", str(self.memory)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **self.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # an interrupt at the terminal is for its owner, who asks it to stop
        )
        self._heard = queue.SimpleQueue()
        self._hearing = threading.Thread(target=_hear, args=(self.process, self._heard), daemon=True)
        self._hearing.start()

    def _send(self, order: Mapping[str, object]) -> None:
        assert self.process
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # that it ended is heard on the other pipe
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()

    def _stop(self, number: int) -> Iterator[float]:
        """Stop a job more firmly at each step, and yield the seconds until the next."""
        assert self.process
        self._send({"stop": number})
        yield self.interrupt_after
        self.process.send_signal(signal.SIGINT)
        yield self.end_after - self.interrupt_after
        self.process.kill()
        yield NEVER

    def _killed(self, why: str, *, hint: str) -> WorkerEnded:
        assert self.process
        self.process.kill()
        self._wait()
        return WorkerEnded(why, hint=hint)

    def _ended(self, *, stopped: bool) -> RetouchError:
        code = self._wait()
        if stopped:
            return Cancelled("the run was stopped", hint="It can go on from where it was.")
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        return WorkerEnded(
            f"the worker ended {how}", hint="It can go on from there; was there memory enough?"
        )

    def _wait(self) -> int:
        """Return how the process ended, with nothing of it left open."""
        assert self.process
        with contextlib.suppress(BrokenPipeError), self.process as process:
            self._hearing.join()
        self.process = None
        return process.returncode


def _hear(process: "subprocess.Popen[str]", heard: "queue.SimpleQueue[Said | None]") -> None:
    """Pass on what a worker says, and None when it ends."""
    assert process.stdout
    first = process.stdout.readline()
    if first and json.loads(first).get("protocol") != PROTOCOL:
        process.kill()
    for line in process.stdout:
        heard.put(json.loads(line))
    heard.put(None)


def _outcome(said: Said) -> object:
    if "error" not in said:
        return said["done"]
    kind: type[RetouchError] = getattr(errors, said["error"], RetouchError)
    raise kind(said["message"], hint=said["hint"])


# --- the worker itself


def main() -> None:
    """Do the jobs that the input names, one after another, until it ends."""
    if memory := int(sys.argv[1]):
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    Jobs(sys.stdin, os.fdopen(os.dup(1), "w", buffering=1)).carry_out()


@final
class Jobs:
    """The jobs that come in and what is said of them."""

    def __init__(self, orders: TextIO, said: TextIO) -> None:
        os.dup2(2, 1)  # what others print is no word of ours
        self.said = said
        self.waiting: queue.SimpleQueue[Said | None] = queue.SimpleQueue()
        self.stopped: set[int] = set()
        self.ending = self.busy = False
        signal.signal(signal.SIGINT, self._interrupt)
        signal.signal(signal.SIGTERM, self._end)
        threading.Thread(target=self._hear, args=(orders,), daemon=True).start()

    def carry_out(self) -> None:
        """Do one job after another."""
        self._say({"protocol": PROTOCOL, "retouch": __version__, "pid": os.getpid()})
        while (order := self.waiting.get()) and not self.ending:
            number = order["id"]
            try:
                self._say({"id": number, "done": self._do(number, order["job"], order["given"])})
            except RetouchError as error:
                self._say({"id": number, **error_as_json(error)})

    def _do(self, number: int, job: str, given: Said) -> object:
        """Return what a job gives back; whatever goes wrong in it is told as ours."""
        if job not in JOBS:
            raise RequestError(f"there is no job {job!r}", hint=f"jobs: {', '.join(JOBS)}")
        module, _, name = JOBS[job].partition(":")
        try:
            self.busy = True
            function = getattr(importlib.import_module(module), name)
            return function(
                listen=lambda event: self._say({"id": number, "event": as_json(event)}),
                stopped=lambda: self.ending or number in self.stopped,
                **given,
            )
        except KeyboardInterrupt:
            raise Cancelled("the run was stopped", hint="It can go on from where it was.") from None
        except RetouchError:
            raise
        except MemoryError:
            raise WorkerEnded("not enough memory", hint="Give a shorter or smaller clip.") from None
        except Exception as error:
            raise known_error(error) from error
        finally:
            self.busy = False

    def _hear(self, orders: TextIO) -> None:
        for line in orders:
            order = json.loads(line)
            if "stop" in order:
                self.stopped.add(order["stop"])
            else:
                self.waiting.put(order)
        self._end()

    def _end(self, number: int = 0, frame: FrameType | None = None) -> None:
        del number, frame
        self.ending = True
        self.waiting.put(None)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self.busy:
            raise KeyboardInterrupt

    def _say(self, said: Mapping[str, object]) -> None:
        with contextlib.suppress(BrokenPipeError):  # nobody listens; the input ends too
            self.said.write(json.dumps(said) + "\n")
