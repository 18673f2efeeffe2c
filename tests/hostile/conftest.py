"""What the tests against strangers share."""

from pathlib import Path

import pytest
from command_line import Shell

from retouch.media.io import write
from retouch.testing import Bouncing


@pytest.fixture
def shell(tmp_path: Path, home: Path, bouncing: Bouncing) -> Shell:
    """A shell in a folder with `clip.mp4`."""
    write(bouncing.video, tmp_path / "clip.mp4")
    return Shell(tmp_path, home)
