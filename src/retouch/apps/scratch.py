"""A run for commands that keep no run folder."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from retouch.compute import Compute

if TYPE_CHECKING:
    from retouch.run import Run


@contextmanager
def scratch_run(device: str = "auto", *, seed: int = 0) -> "Iterator[Run]":
    """Give a run with scratch space of its own, the common store, and progress in the terminal."""
    from retouch.apps.progress import show_progress
    from retouch.places import usable_home
    from retouch.run import Run

    with tempfile.TemporaryDirectory(prefix="retouch-") as folder, show_progress() as listen:
        compute = Compute(device=device)
        yield Run.alone(
            Path(folder), seed=seed, compute=compute, store=usable_home() / "store", listen=listen
        )
