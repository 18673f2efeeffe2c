"""Opening files that strangers may have put there: regular ones only, at once or not at all.

A pipe, a socket or a device in place of a file would keep whoever opens it waiting; a link inside a folder of
ours would lead what is written there elsewhere. Imports nothing of ours.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO, Literal

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
}
_LARGE = 1 << 26
"""Bytes from which a file of holes matters."""


class UnfitFile(OSError):
    """What lies at a path is nothing to read from."""


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading.

    Raises:
        UnfitFile: it is a pipe, a socket, a device, a folder, or a large file of holes.
        OSError: it cannot be opened.
    """
    _check(path.stat())  # before it is opened, for opening a device may set it going
    return open(path, "rb", opener=_opener)


def check_regular(path: Path) -> None:
    """Refuse what `open_regular` refuses, before a library opens it by its name."""
    open_regular(path).close()


def read_regular(path: Path, most: int) -> bytes:
    """Read a file of at most so many bytes.

    Raises:
        UnfitFile: as `open_regular`, or it is larger.
        OSError: it cannot be opened.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UnfitFile(f"it is larger than {most} bytes")
    return content


def check_own(folder: Path) -> None:
    """Refuse a folder that should be ours alone, but holds a link or anything else but files and folders.

    Raises:
        UnfitFile: says what it holds.
    """
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise UnfitFile(f"{path} is {_KINDS.get(stat.S_IFMT(mode), 'something else')}")


def open_own(path: Path, mode: Literal["ab", "wb"]) -> BinaryIO:
    """Open a file that goes by this name alone to write to it: no link is followed.

    Raises:
        UnfitFile: it has another name too, or is no file.
        OSError: it is a link, or cannot be opened.
    """
    return open(path, mode, opener=_own_opener)


def _own_opener(path: str, flags: int) -> int:
    descriptor = _opener(path, (flags | os.O_NOFOLLOW) & ~os.O_TRUNC)
    if os.fstat(descriptor).st_nlink > 1:
        os.close(descriptor)
        raise UnfitFile(f"{path} has another name elsewhere")
    if flags & os.O_TRUNC:
        os.truncate(descriptor, 0)
    return descriptor


def _opener(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    try:
        _check(os.fstat(descriptor))
    except UnfitFile:
        os.close(descriptor)
        raise
    return descriptor


def _check(about: os.stat_result) -> None:
    if not stat.S_ISREG(about.st_mode):
        raise UnfitFile(f"it is {_KINDS.get(stat.S_IFMT(about.st_mode), 'something else')}, no file")
    if about.st_size > _LARGE and 0 < about.st_blocks * 512 < about.st_size // 64:
        raise UnfitFile(f"hardly any of its {about.st_size} bytes was ever written")
