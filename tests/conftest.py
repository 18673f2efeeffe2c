"""What every test stands on: a home of its own, one thread, a small clip, and repeatable properties."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings

from retouch.testing import Bouncing
from retouch.testing import bouncing as draw_bouncing

if TYPE_CHECKING:
    from command_line import Shell

PLUGINS = Path(__file__).parent / "plugins"

settings.register_profile("retouch", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("retouch")
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty RETOUCH_HOME for each test; the network is forbidden."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("RETOUCH_HOME", str(folder))
    monkeypatch.setenv("RETOUCH_OFFLINE", "1")
    return folder


@pytest.fixture(scope="session")
def bouncing() -> Bouncing:
    """Eight frames of 64 by 64 pixels, with mask and flow."""
    return draw_bouncing()


@pytest.fixture
def shell(tmp_path: Path, home: Path, bouncing: Bouncing) -> "Shell":
    """A command line in a folder with `clip.mp4`, that clip."""
    from command_line import Shell

    from retouch.media.io import write

    write(bouncing.video, tmp_path / "clip.mp4")
    return Shell(tmp_path, home)


@pytest.fixture
def plugins() -> Iterator[Path]:
    """The folder with the plug-in that adds the method `tint`, on the path while the test runs."""
    sys.path.insert(0, str(PLUGINS))
    yield PLUGINS
    sys.path.remove(str(PLUGINS))
