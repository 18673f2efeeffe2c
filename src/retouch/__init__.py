"""retouch edits video with diffusion models so that the edit holds still from frame to frame.

The public names are loaded on first use, so that `import retouch` stays fast and imports no torch.
"""

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retouch.apps import batch
    from retouch.apps.runner import Result, edit, run_edit
    from retouch.compute import Compute
    from retouch.errors import RetouchError
    from retouch.media.io import read, write
    from retouch.request import EditRequest
    from retouch.run import Edited, Run
    from retouch.spec import MethodSpec
    from retouch.video import Video

__version__ = "0.1.0"

# MKL chooses its kernels by where tensors lie in memory, unless it is told not to before its first call.
os.environ.setdefault("MKL_CBWR", "AUTO")

__all__ = [
    "Compute",
    "EditRequest",
    "Edited",
    "MethodSpec",
    "Result",
    "RetouchError",
    "Run",
    "Video",
    "__version__",
    "batch",
    "edit",
    "read",
    "run_edit",
    "write",
]

_HOMES = {
    "Compute": "retouch.compute",
    "EditRequest": "retouch.request",
    "Edited": "retouch.run",
    "MethodSpec": "retouch.spec",
    "Result": "retouch.apps.runner",
    "RetouchError": "retouch.errors",
    "Run": "retouch.run",
    "Video": "retouch.video",
    "batch": "retouch.apps.batch",
    "edit": "retouch.apps.runner",
    "read": "retouch.media.io",
    "run_edit": "retouch.apps.runner",
    "write": "retouch.media.io",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'retouch' has no attribute {name!r}")
    module = importlib.import_module(_HOMES[name])
    return module if module.__name__.endswith(f".{name}") else getattr(module, name)


def __dir__() -> list[str]:
    return __all__
