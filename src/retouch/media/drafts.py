"""Files that are there whole or not at all: written beside their place under another name, then renamed.

Imports no torch.
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retouch.errors import VideoError
from retouch.media.opening import PICTURE_SUFFIXES, complaint


def check_free(path: Path, *, force: bool) -> None:
    """Refuses a place that is taken, unless what lies there may go, or that cannot be written to.

    Raises:
        VideoError: if there is something that `force` does not allow to replace, or no folder to write in.
    """
    if not path.name:
        raise VideoError(f"{str(path)!r} is no file name", hint="Give a name such as result.mp4.")
    folder = path.absolute().parent
    try:
        if not folder.is_dir():
            raise VideoError(f"there is no folder {folder}", hint="Make it first, or write elsewhere.")
        if not os.access(folder, os.W_OK):
            raise VideoError(f"no permission to write in {folder}", hint="Write to another folder.")
        if (path.exists() or path.is_symlink()) and not force:
            raise VideoError(f"{path} exists", hint="Choose another name, or add --force (force=True).")
        if path.is_dir() and any(inner.suffix.lower() not in PICTURE_SUFFIXES for inner in path.iterdir()):
            raise VideoError(
                f"{path} is a folder that holds other things than pictures", hint="Choose another name."
            )
    except OSError as error:
        raise complaint(error, path, done="written") from error


@contextmanager
def drafted(path: Path, *, force: bool) -> Iterator[Path]:
    """Gives a name beside `path` to write a file or a folder to; it takes its place when the block ends well.

    When the block fails, the draft is removed and what was at `path` is as it was.

    Raises:
        VideoError: as `check_free`, before anything is written and again if somebody came first.
        ResourceError: if the disk is full.
    """
    check_free(path, force=force)
    # The suffix stays, for writers that go by it; the name is cut, so that the longest one still has a draft.
    draft = path.absolute().with_name(f".{path.stem[:60]}.{secrets.token_hex(4)}.draft{path.suffix}")
    try:
        yield draft
        _settle(draft, path.absolute(), force=force)
    except OSError as error:
        raise complaint(error, path, done="written") from error
    finally:
        _remove(draft)


def _settle(draft: Path, path: Path, *, force: bool) -> None:
    if draft.is_dir():
        for inner in draft.iterdir():
            _flush(inner)
        check_free(path, force=force)
        old = draft.with_suffix(".old")
        if path.exists():
            path.rename(old)
        draft.rename(path)
        _remove(old)
        return
    _flush(draft)
    if force:
        if path.is_dir():
            raise VideoError(f"{path} is a folder", hint="Choose another name.")
        draft.replace(path)
        return
    try:
        # A link is refused where a rename would replace what somebody else has put there in the meantime.
        path.hardlink_to(draft)
    except FileExistsError:
        raise VideoError(f"{path} exists", hint="Choose another name, or add --force (force=True).") from None
    except OSError:
        check_free(path, force=force)
        draft.rename(path)


def _flush(file: Path) -> None:
    with file.open("rb") as written:
        os.fsync(written.fileno())


def _remove(draft: Path) -> None:
    if draft.is_dir():
        shutil.rmtree(draft, ignore_errors=True)
    else:
        draft.unlink(missing_ok=True)
