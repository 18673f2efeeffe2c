"""What every test stands on: a home of its own, one thread, a small clip, and repeatable properties."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from retouch.testing import Bouncing
from retouch.testing import bouncing as draw_bouncing

PLUGINS = Path(__file__).parent / "plugins"

settings.register_profile("retouch", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("retouch")
torch.set_num_threads(1)


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
def plugins() -> Iterator[Path]:
    """The folder with the plug-in that adds the method `tint`, on the path while the test runs."""
    sys.path.insert(0, str(PLUGINS))
    yield PLUGINS
    sys.path.remove(str(PLUGINS))
