"""The tree of errors: every one has an exit code of its branch, and a hint where one was given."""

import pytest

from retouch import errors
from retouch.errors import RetouchError

CODES = {
    "InputError": 2,
    "ModelError": 3,
    "ResourceError": 4,
    "ArtifactError": 5,
    "MethodError": 6,
    "PluginError": 7,
    "Cancelled": 130,
}


def kinds() -> list[type[RetouchError]]:
    return [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RetouchError)
    ]


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: str(kind.__name__))
def test_every_error_ends_with_the_code_of_its_branch(kind: type[RetouchError]) -> None:
    branch = [base.__name__ for base in kind.__mro__ if base.__name__ in CODES]
    assert kind.exit_code == (CODES[branch[0]] if branch else 1)
    assert kind is RetouchError or branch


def test_message_and_hint_are_what_was_given() -> None:
    error = errors.NoFace("no face in frame 3", hint="give a clip with a face")
    assert (str(error), error.hint) == ("no face in frame 3", "give a clip with a face")
    assert errors.NoFace("no face").hint == ""
