"""Where retouch keeps things, and whether it may use the network."""

import os
from pathlib import Path


def home() -> Path:
    """The folder of models, runs and kept results: RETOUCH_HOME, or `~/.retouch`."""
    return Path(os.environ.get("RETOUCH_HOME", "") or "~/.retouch").expanduser().absolute()


def offline() -> bool:
    """Whether the network is forbidden: RETOUCH_OFFLINE is set to anything but nothing, 0 or false."""
    return os.environ.get("RETOUCH_OFFLINE", "").lower() not in ("", "0", "false", "no")
