"""Events as a person sees them: bars with time left in a terminal, a line now and then elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from retouch.events import Advanced, Ended, Event, Listener, Notice, Reused, Started, ignore, told_once

EVERY: Final = 10.0
"""Seconds between two lines of progress where there is no terminal."""


@contextlib.contextmanager
def show_progress(*, quiet: bool = False) -> Iterator[Listener]:
    """Give a listener that shows events on the error stream while the block runs, each notice once."""
    console = Console(stderr=True, highlight=False)
    if quiet:
        yield ignore
        return
    if not console.is_terminal:
        yield told_once(in_lines())
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def draw(event: Event) -> None:
            if isinstance(event, Started):
                tasks[event.stage] = bars.add_task(event.stage, total=event.total)
            elif isinstance(event, Advanced) and event.stage in tasks:
                bars.update(tasks[event.stage], completed=event.done, total=event.total)
            elif isinstance(event, Ended) and event.stage in tasks:
                bars.remove_task(tasks.pop(event.stage))
            elif isinstance(event, Notice):
                console.print(f"notice: {event.text}", markup=False)
            elif isinstance(event, Reused):
                console.print(f"reused: {event.kind} of an earlier run", markup=False)

        yield told_once(draw)


def in_lines(
    write: Callable[[str], object] | None = None, clock: Callable[[], float] = time.monotonic
) -> Listener:
    """Return a listener that writes notices, and every ten seconds how far the work is and what is left."""
    write = write or sys.stderr.write
    said = clock()
    begun: dict[str, tuple[float, int]] = {}

    def tell(event: Event) -> None:
        nonlocal said
        now = clock()
        if isinstance(event, Notice):
            write(f"notice: {event.text}\n")
            return
        if isinstance(event, Started):
            begun.pop(event.stage, None)
            event = Advanced(event.stage, 0, event.total)
        if isinstance(event, Advanced):
            start, before = begun.setdefault(event.stage, (now, event.done)) if event.done else (now, 0)
            if now - said >= EVERY:
                said = now
                left = event.seconds_left(now - start, before)
                said_left = "" if left is None else f", about {left:.0f} s left"
                write(f"{event.stage}: {event.done} of {event.total}{said_left}\n")

    return tell
