"""Everything that retouch raises on purpose.

A message says what is wrong with which value; the hint says what to do about it. The command line prints
the two and ends with the class's exit code; a library user catches `RetouchError`, or the branch that
concerns them.
"""

from typing import ClassVar


class RetouchError(Exception):
    """The root of what retouch raises on purpose.

    Example:
        >>> error = RetouchError("steps is 0; it must be at least 1", hint="try --steps 20")
        >>> print(error, "|", error.hint)
        steps is 0; it must be at least 1 | try --steps 20
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def error_as_json(error: Exception) -> dict[str, str]:
    """Return an error as run folders, outcomes of batches and workers tell it."""
    hint = error.hint if isinstance(error, RetouchError) else ""
    return {"error": type(error).__name__, "message": str(error), "hint": hint}


class InputError(RetouchError):
    """What the user gave cannot be used."""

    exit_code = 2


class VideoError(InputError):
    """A clip, picture or mask cannot be read or written."""


class ParamsError(InputError):
    """A parameter is unknown or out of its bounds."""


class RequestError(InputError):
    """An edit request cannot be read or does not fit together."""


class ModelError(RetouchError):
    """A model cannot be used."""

    exit_code = 3


class ModelNotFound(ModelError):
    """No model lies where the reference points."""


class ModelMismatch(ModelError):
    """The files are there, but are not the kind of model that is needed."""


class DownloadRefused(ModelError):
    """A download would be needed and was not allowed."""


class ResourceError(RetouchError):
    """The machine lacks what the work needs."""

    exit_code = 4


class DeviceUnavailable(ResourceError):
    """The device asked for is not there."""


class OutOfBudget(ResourceError):
    """The plan needs more memory than there is; raised before the first step."""


class WorkerEnded(ResourceError):
    """A process that did the work ended, or had to be ended, before it was done."""


class ArtifactError(RetouchError):
    """A kept result is damaged, or comes from somewhere else."""

    exit_code = 5


class MethodError(RetouchError):
    """The method cannot do this on that clip."""

    exit_code = 6


class NoFace(MethodError):
    """No face was found where one is needed."""


class EmptyMask(MethodError):
    """The mask selects nothing."""


class Diverged(MethodError):
    """Latents or loss became infinite or not a number."""


class PluginError(RetouchError):
    """A plug-in cannot be loaded or breaks the contract."""

    exit_code = 7


class Cancelled(RetouchError):
    """The user stopped the run; it can be resumed."""

    exit_code = 130
