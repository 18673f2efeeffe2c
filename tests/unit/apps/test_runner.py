"""What keeps two processes from working in one run folder, and whom it does not keep out."""

import fcntl
import threading
from pathlib import Path

import pytest

from retouch.apps.run_folder import is_running
from retouch.apps.runner import lock_folder
from retouch.errors import RequestError


def test_whoever_only_looks_at_a_run_keeps_nobody_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    with (tmp_path / "lock").open("rb") as looked_at:
        fcntl.flock(looked_at, fcntl.LOCK_SH)
        threading.Timer(0.2, fcntl.flock, (looked_at, fcntl.LOCK_UN)).start()
        with lock_folder(tmp_path):
            assert is_running(tmp_path)
    assert not is_running(tmp_path)


def test_a_folder_that_is_worked_in_is_refused(tmp_path: Path) -> None:
    with (
        lock_folder(tmp_path),
        pytest.raises(RequestError, match="is running already"),
        lock_folder(tmp_path),
    ):
        pass
