"""Snapshots: what users and their scripts rely on, kept in files; RETOUCH_GOLDEN=update writes them anew."""

import os
from pathlib import Path
from typing import final

import pytest


@final
class Golden:
    """The snapshots in `tests/golden/snapshots`."""

    folder = Path(__file__).parent / "snapshots"

    def check(self, name: str, text: str) -> None:
        """Holds a text against its snapshot, or writes it."""
        path = self.folder / name
        if os.environ.get("RETOUCH_GOLDEN") == "update":
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"no snapshot {name}; write it with RETOUCH_GOLDEN=update"
        assert text == path.read_text(encoding="utf-8"), (
            f"{name} differs; if that is meant: RETOUCH_GOLDEN=update"
        )


@pytest.fixture
def golden() -> Golden:
    """The snapshots."""
    return Golden()
