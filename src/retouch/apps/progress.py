"""Events as a person sees them in a terminal: bars with time left, notices as lines."""

import contextlib
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from retouch.events import Advanced, Ended, Event, Listener, Notice, Reused, Started, ignore


@contextlib.contextmanager
def shown(*, quiet: bool = False) -> Iterator[Listener]:
    """A listener that draws on the error stream while the block runs; elsewhere it prints notices only."""
    console = Console(stderr=True, highlight=False)
    if quiet:
        yield ignore
        return
    if not console.is_terminal:
        yield _plain
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

        yield draw


def _plain(event: Event) -> None:
    if isinstance(event, Notice):
        sys.stderr.write(f"notice: {event.text}\n")
