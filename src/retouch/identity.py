"""The identity of a value: a hash of what it means, equal on every machine and in every process.

Kept results are found by it, so it must change when anything that decides a result changes, and never
otherwise.
"""

import dataclasses
import functools
import hashlib
import struct
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from retouch.regular import open_regular

_BLOCK = 1 << 22


def identity(value: object) -> str:
    """Return the hash of a value's meaning, as 64 hexadecimal digits.

    Knows plain values, paths (by the content of the file or folder), arrays, tensors, parameter classes,
    frozen dataclasses, and whatever says it itself by an `identity` property.

    Raises:
        TypeError: the value, or one inside it, is of another kind.

    Example:
        >>> identity((1, "a")) == identity([1, "a"]), identity(1) == identity(1.0)
        (True, False)
    """
    digest = hashlib.sha256()
    _feed_value(digest, value)
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """Return the hash of a file's bytes, or of a folder's names and bytes."""
    digest = hashlib.sha256()
    if path.is_dir():
        for inner in sorted(path.rglob("*")):
            if inner.is_file():
                digest.update(_text_bytes(f"{inner.relative_to(path).as_posix()}\0{file_digest(inner)}\0"))
        return digest.hexdigest()
    with open_regular(path) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def file_stamp(path: Path) -> str:
    """Return what another writing of a file, or of one in a folder, changes: found without reading any."""
    files = sorted(inner for inner in path.rglob("*") if inner.is_file()) if path.is_dir() else [path]
    states = [(str(file), file.stat()) for file in files]
    return identity([(name, state.st_size, state.st_mtime_ns) for name, state in states])


def _feed_value(digest: "hashlib._Hash", value: object) -> None:  # noqa: C901 - one arm a type is the clearest form
    """Add a value with its type and length in front, so that no two different values look alike."""
    if value is None or isinstance(value, bool):
        _add_content(digest, "const", repr(value).encode())
    elif isinstance(value, int):
        _add_content(digest, "int", str(value).encode())
    elif isinstance(value, float):
        _add_content(digest, "float", struct.pack("<d", value))
    elif isinstance(value, str):
        _add_content(digest, "str", _text_bytes(value))
    elif isinstance(value, bytes):
        _add_content(digest, "bytes", value)
    elif isinstance(value, Fraction):
        _add_content(digest, "fraction", f"{value.numerator}/{value.denominator}".encode())
    elif isinstance(value, Path):
        _add_content(
            digest, "file", _text_bytes(file_digest(value) if value.exists() else f"missing {value}")
        )
    elif isinstance(value, np.ndarray):
        _feed_array(digest, value)
    elif isinstance(value, np.generic):
        _feed_value(digest, value.item())
    elif isinstance(getattr(type(value), "identity", None), (property, functools.cached_property)):
        _add_content(digest, type(value).__name__, _text_bytes(str(value.identity)))  # type: ignore[attr-defined]
    elif isinstance(value, BaseModel):
        _feed_pairs(
            digest, type(value).__name__, {name: getattr(value, name) for name in type(value).model_fields}
        )
    elif isinstance(value, Mapping):
        # A key that is no text goes in as a hash, so that a number never looks like the text of it.
        texts = {key if isinstance(key, str) else identity(key): inner for key, inner in value.items()}
        _feed_pairs(digest, "map", texts)
    elif isinstance(value, (list, tuple, range)):
        _add_content(digest, "list", str(len(value)).encode())
        for inner in value:
            _feed_value(digest, inner)
    elif isinstance(value, (set, frozenset)):
        _feed_value(digest, sorted(identity(inner) for inner in value))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        _feed_pairs(digest, type(value).__name__, fields)
    elif callable(getattr(value, "detach", None)):
        _feed_tensor(digest, value)
    else:
        raise TypeError(f"a {type(value).__name__} has no identity; give it an `identity` property")


def _feed_pairs(digest: "hashlib._Hash", name: str, pairs: Mapping[str, object]) -> None:
    _add_content(digest, name, str(len(pairs)).encode())
    for key in sorted(pairs):
        _add_content(digest, "key", _text_bytes(key))
        _feed_value(digest, pairs[key])


def _text_bytes(text: str) -> bytes:
    """Return a text's bytes; file names that are no Unicode pass too."""
    return text.encode("utf-8", "surrogatepass")


def _feed_array(digest: "hashlib._Hash", array: np.ndarray) -> None:
    """Row by row, so that a memory-mapped array is never whole in memory."""
    if array.dtype.hasobject:
        raise TypeError("an array of Python objects has no identity; its bytes are addresses")
    _add_content(digest, "array", f"{array.dtype.str} {array.shape}".encode())
    if array.ndim == 0:
        digest.update(array.tobytes())
        return
    for row in array:
        digest.update(np.ascontiguousarray(row).tobytes())


def _feed_tensor(digest: "hashlib._Hash", tensor: object) -> None:
    import torch

    assert isinstance(tensor, torch.Tensor)
    _add_content(digest, "tensor", f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    plain = tensor.detach().cpu().contiguous()
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")


def _add_content(digest: "hashlib._Hash", kind: str, content: bytes) -> None:
    digest.update(f"{kind}:{len(content)}:".encode())
    digest.update(content)
