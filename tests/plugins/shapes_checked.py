"""The checker that the tests put on every function of retouch: shapes and kinds of arrays, by beartype."""

from collections.abc import Callable
from typing import TypeVar, get_args

from beartype import beartype
from jaxtyping import AbstractArray

F = TypeVar("F", bound=Callable[..., object])


def checked(function: F) -> F:
    """Checks the arrays that go in and come out; the rest, Protocols and Self above all, is mypy's."""
    if function.__qualname__ == "Video.__init__":  # it refuses what does not fit itself, in our words
        return function
    function.__annotations__ = {
        name: hint for name, hint in function.__annotations__.items() if _says_shape(hint)
    }
    return beartype(function)


def _says_shape(hint: object) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_says_shape(part) for part in get_args(hint))
