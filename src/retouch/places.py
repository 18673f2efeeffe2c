"""Where retouch keeps things, and whether it may use the network."""

import os
import tempfile
from pathlib import Path

from retouch.errors import ResourceError

_ELSEWHERE = "Set RETOUCH_HOME to a folder that you may write to."


def home() -> Path:
    """Return the folder of models, runs and kept results: RETOUCH_HOME, or `~/.retouch`.

    Raises:
        ResourceError: nobody says where the user's folder is.
    """
    try:
        return Path(os.environ.get("RETOUCH_HOME", "") or "~/.retouch").expanduser().absolute()
    except RuntimeError as error:
        raise ResourceError(f"there is no home folder here ({error})", hint=_ELSEWHERE) from None


def usable_home() -> Path:
    """Return `home`, made if need be, after making sure that it can be written to.

    Raises:
        ResourceError: it is no folder, or only to be read.
    """
    folder = home()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise ResourceError(
            f"{folder} cannot hold runs and results: {error.strerror or error}", hint=_ELSEWHERE
        ) from None


def offline() -> bool:
    """Whether the network is forbidden: RETOUCH_OFFLINE is set to anything but nothing, 0 or false."""
    return os.environ.get("RETOUCH_OFFLINE", "").lower() not in ("", "0", "false", "no")
