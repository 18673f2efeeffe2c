"""Which run is next: runs wait in their own folders, and each device carries out one at a time.

A run is queued while the file `queued` lies in its folder; what the file says decides the order. Nothing is
kept elsewhere, so that whoever starts a queue finds what the one before left. Imports no torch.
"""

import contextlib
import fcntl
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import final

from retouch.apps.run_folder import (
    ERROR,
    QUEUED,
    check_ours,
    error_of,
    is_running,
    new_folder,
    note_error,
    run_folders,
    state_of,
)
from retouch.apps.worker import Worker
from retouch.errors import Cancelled, RequestError, RetouchError
from retouch.events import Listener, Started
from retouch.files import write_whole
from retouch.places import usable_home
from retouch.request import EditRequest

KEY = "key"
"""The file in a run folder with what its sender called it: the same key twice is one run."""
LONGEST = 50
"""Runs that may wait."""


def enqueue(request: EditRequest, key: str = "") -> Path:
    """Return a new run folder in which a request waits; that of the same `key` where there is one.

    Raises:
        RequestError: too many wait already.
    """
    with _alone():
        for folder in run_folders() if key else []:
            if _text_of(folder / KEY) == key:
                return folder
        check_room()
        folder = new_folder(request.method)
        write_whole(folder / KEY, key)
        write_whole(folder / QUEUED, str(time.time_ns()))
        write_whole(folder / "request.json", request.as_json())
        return folder


def enqueue_again(folder: Path) -> None:
    """Let a run that was stopped, or failed, wait for its turn to go on.

    Raises:
        RequestError: it is at work, a link lies in its folder, or too many wait already.
    """
    if is_running(folder):
        raise RequestError(f"{folder.name} is running already", hint="see: retouch runs")
    check_ours(folder)
    with _alone():
        check_room()
        (folder / ERROR).unlink(missing_ok=True)
        write_whole(folder / QUEUED, str(time.time_ns()))


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Let no other thread or process queue a run meanwhile: what is counted and compared stays so."""
    runs = usable_home() / "runs"
    runs.mkdir(exist_ok=True)
    descriptor = os.open(runs, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def check_room() -> None:
    """Raise RequestError where no further run may wait."""
    if len(queued()) >= LONGEST:
        raise RequestError(f"{LONGEST} runs wait already", hint="Wait for one, or take some out.")


def queued() -> list[Path]:
    """Return the folders of the runs that wait, first come first."""
    waiting = [folder for folder in run_folders() if (folder / QUEUED).exists() and not is_running(folder)]
    return sorted(waiting, key=lambda folder: (_text_of(folder / QUEUED).zfill(24), folder.name))


@final
class Queue:
    """Carries out the runs that wait, with one worker a device, until it is closed."""

    def __init__(
        self,
        *,
        device_of: Callable[[str], str] = str,
        worker: Callable[[], Worker] = Worker,
        every: float = 2.0,
    ) -> None:
        """Look for new runs `every` so many seconds, once started; `device_of` tells the device of a word."""
        self.device_of, self.every = device_of, every
        self.workers: defaultdict[str, Worker] = defaultdict(worker)
        self.busy: dict[str, Path] = {}
        self.waiting: Counter[str] = Counter()
        self.stops: defaultdict[str, threading.Event] = defaultdict(threading.Event)
        self.news = threading.Condition()
        self.closing = False
        self.threads: list[threading.Thread] = []
        self.looker = threading.Thread(target=self._look, daemon=True)

    def start(self) -> None:
        """Begin to look: apart from making the queue, because its owner may not be whole by then."""
        self.looker.start()

    def wake(self) -> None:
        """Look for runs now."""
        with self.news:
            self.news.notify_all()

    def stop(self, folder: Path) -> None:
        """Stop a run: one that waits leaves the queue; one at work is asked, then told, then ended.

        Raises:
            RequestError: it is at work in a process that is none of ours.
        """
        with self.news:
            if folder in self.busy.values():  # perhaps its worker has not begun yet: the file waits too
                self.stops[folder.name].set()
                return
            if not is_running(folder):
                (folder / QUEUED).unlink(missing_ok=True)
                return
        raise RequestError(
            f"{folder.name} runs in another process", hint="Press Ctrl-C where it was started."
        )

    def state_of(self, folder: Path) -> str:
        """Return how a run stands; one whose worker has just ended is at work until it is known why."""
        with self.news:
            busy = folder in self.busy.values()
        state = state_of(folder)
        return "running" if busy and state == "stopped" else state

    def between_runs(
        self,
        word: str,
        job: str,
        given: Mapping[str, object],
        *,
        listen: Listener,
        stopped: Callable[[], bool],
    ) -> object:
        """Have a device's worker do a short job before its next run, and return what the job gives back.

        When its turn has come, that it starts is told, though the worker may still load what it needs.

        Raises:
            Cancelled: it was stopped, perhaps before its turn came.
            RetouchError: what the job raised.
        """

        def is_over() -> bool:
            return self.closing or stopped()

        device = self.device_of(word)
        with self.news:
            self.waiting[device] += 1
            while device in self.busy and not is_over():
                self.news.wait(0.1)
            self.waiting[device] -= 1
            if is_over():
                raise Cancelled("it was stopped before its turn came", hint="Start it again.")
            self.busy[device] = Path(job)
        try:
            listen(Started("load", 1))
            return self.workers[device].call(job, given, listen=listen, stopped=is_over)
        finally:
            self._free(device)

    def close(self, patience: float = 40.0) -> None:
        """Ask the runs at work to stop, wait for them, and end the workers."""
        with self.news:
            self.closing = True
            for folder in self.busy.values():
                self.stops[folder.name].set()
            self.news.notify_all()
        until = time.monotonic() + patience
        for thread in [self.looker, *self.threads]:
            thread.join(max(0.0, until - time.monotonic()))
        for worker in self.workers.values():
            worker.close()

    def _look(self) -> None:
        """Start the first run that waits for each free device, again and again."""
        while not self.closing:
            for folder in queued():
                with contextlib.suppress(RetouchError):
                    self._begin(folder)
            with self.news:
                if not self.closing:
                    self.news.wait(self.every)

    def _begin(self, folder: Path) -> None:
        try:
            device = self.device_of(EditRequest.read(folder / "request.json").compute.device)
        except RetouchError as error:
            _give_up(folder, error)
            return
        with self.news:
            taken = device in self.busy or self.waiting[device]
            if self.closing or taken or not (folder / QUEUED).exists():
                return
            self.busy[device] = folder
            self.stops[folder.name].clear()
        self.threads = [thread for thread in self.threads if thread.is_alive()]
        self.threads.append(threading.Thread(target=self._carry_out, args=(folder, device), daemon=True))
        self.threads[-1].start()

    def _carry_out(self, folder: Path, device: str) -> None:
        try:
            self.workers[device].call("edit", {"folder": str(folder)}, stopped=self.stops[folder.name].is_set)
        except RetouchError as error:
            if not is_running(folder):
                _give_up(folder, error)
        finally:
            self._free(device)

    def _free(self, device: str) -> None:
        with self.news:
            del self.busy[device]
            self.news.notify_all()


def _give_up(folder: Path, error: RetouchError) -> None:
    """Take a run out of the queue; keep why, unless it says so itself."""
    if not error_of(folder):
        note_error(folder, error)
    (folder / QUEUED).unlink(missing_ok=True)  # last: until then it waits, and is not taken for stopped


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
