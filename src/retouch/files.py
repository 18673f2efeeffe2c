"""Files and folders that are there whole or not at all, and what they may take the place of.

A draft is written beside its place under another name, brought to the disk, and linked or renamed into place.
What was there before stays until then. Imports no torch.
"""

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from retouch.errors import ResourceError, RetouchError, VideoError

LISTING = ".retouch"
"""The file in a folder of ours that lists what we wrote into it; a folder that holds more is the user's."""
FULL = {
    errno.ENOSPC: "no space is left",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "no file may be that large",
}
"""What a disk that takes no more says, in words."""


def check_free(path: Path, *, force: bool, folder: bool = False) -> None:
    """Refuse a place that is taken, unless what lies there may go, or that cannot be written to.

    Raises:
        VideoError: something lies there that may not be replaced, or there is no folder to write in.
    """
    if path.name in ("", "..") or Path.cwd().is_relative_to(path.absolute()):
        raise VideoError(f"{str(path)!r} is no name for an output", hint="Give one such as result.mp4.")
    parent = path.absolute().parent
    try:
        if not parent.is_dir():
            raise VideoError(f"there is no folder {parent}", hint="Make it first, or write elsewhere.")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise VideoError(f"no permission to write in {parent}", hint="Write to another folder.")
        there = path.lstat()
        if folder and stat.S_ISDIR(there.st_mode) and not any(path.iterdir()):
            return
        if not force:
            raise taken(path)
        if path.is_dir():
            if not folder:
                raise VideoError(f"{path} is a folder", hint="Choose another name.")
            if other := _not_ours(path):
                raise VideoError(
                    f"{path} holds {other}, which retouch did not write", hint="Choose another name."
                )
        elif not (stat.S_ISREG(there.st_mode) or stat.S_ISLNK(there.st_mode)):
            raise VideoError(f"{path} is a device or a pipe", hint="Write to a file.")
    except FileNotFoundError:
        return
    except OSError as error:
        raise system_error(error, path) from error


def taken(path: Path) -> VideoError:
    """Return the error for a place where something lies."""
    return VideoError(f"{path} exists", hint="Choose another name, or add --force (force=True).")


@contextlib.contextmanager
def replace_whole(path: Path, *, force: bool = False, folder: bool = False) -> Iterator[Path]:
    """Give a name beside `path` to write a file or a folder to; it takes its place when the block ends well.

    When the block fails, the draft is removed and what was at `path` is as it was. Without `force` nothing is
    replaced, even if it appears while the block is at work.

    Raises:
        VideoError: as `check_free`, before anything is written and again if somebody came first.
        ResourceError: the disk is full.
    """
    check_free(path, force=force, folder=folder)
    path = path.absolute()
    draft = beside(path)
    try:
        yield draft
        if folder:
            listing = json.dumps(sorted(_contents(draft)), indent=0)
            (draft / LISTING).write_text(listing + "\n", encoding="utf-8")
        sync(draft)
        if force:
            check_free(path, force=True, folder=folder)
            _replace(draft, path)
        else:
            _put(draft, path)
    except OSError as error:
        raise system_error(error, path) from error
    finally:
        remove(draft)


def write_whole(path: Path, content: str) -> None:
    """Write a small text of ours; what was there before is there until all of the new is on the disk.

    Raises:
        ResourceError: the disk is full.
    """
    with replace_whole(path, force=True) as draft:
        draft.write_text(content, encoding="utf-8")


def _put(draft: Path, path: Path) -> None:
    """Give a draft its place where nothing lies: both calls are refused by the system if something does."""
    try:
        if draft.is_dir():
            draft.rename(path)
            return
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            raise
        except OSError:  # a file system without links: the empty file keeps the place
            path.touch(exist_ok=False)
            draft.replace(path)
    except OSError as error:
        if error.errno not in OCCUPIED:
            raise
        raise taken(path) from None


def _replace(draft: Path, path: Path) -> None:
    """Give a draft the place of what lies there, which comes back if that fails."""
    if not (draft.is_dir() and os.path.lexists(path)):
        draft.replace(path)
        return
    old = beside(path)
    path.rename(old)
    try:
        draft.rename(path)
    except OSError:
        old.rename(path)
        raise
    remove(old)


OCCUPIED = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
"""What a link or a rename onto something that is there fails with, even if that is gone a moment later."""


def beside(path: Path) -> Path:
    """Return a hidden name beside a path, for what is not whole yet or not whole any more.

    The suffix stays, for writers that go by it; the name is cut, so that the longest one still has a draft.
    """
    return path.with_name(f".{path.stem[:60]}.{secrets.token_hex(4)}.draft{path.suffix}")


def sync(path: Path) -> None:
    """Wait until a file, or a folder and all in it, is on the disk, so that a power cut finds it whole."""
    if path.is_dir():
        for inner in path.iterdir():
            sync(inner)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def take_space(path: Path, size: int) -> None:
    """Make a file of zeros, with room on the disk for it where the system can promise that.

    Where files are written to as memory, a disk that fills up later would kill the process.

    Raises:
        ResourceError: the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # whoever has the file of that name from before keeps its bytes
    try:
        with path.open("wb") as stream:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(stream.fileno(), 0, size)
            else:
                os.truncate(stream.fileno(), size)
    except OSError as error:
        path.unlink()
        raise system_error(error, path) from None


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there, so that nobody ever sees a part of it."""
    with contextlib.suppress(OSError):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
            return
        aside = beside(path)
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def system_error(
    error: Exception, path: Path, *, done: str = "written", hint: str = "Look at what lies there."
) -> RetouchError:
    """Return our error for one of the system's about `path`, which could not be `done`."""
    number = getattr(error, "errno", None)
    if isinstance(error, MemoryError) or number == errno.ENOMEM:
        return ResourceError(f"not enough memory for {path}", hint="Scale the clip down, or cut it.")
    if number in FULL:
        return ResourceError(
            f"{FULL[number]} in {path.absolute().parent}, for {path.name}",
            hint="Free some space there (retouch cache prune), or write elsewhere; "
            "a run goes on with: retouch resume RUN",
        )
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return VideoError(f"no permission for {path}", hint="Change the permissions, or use another folder.")
    if number == errno.ENAMETOOLONG:
        return VideoError(f"the name {path.name[:40]}... is too long", hint="Use a shorter name.")
    said = (getattr(error, "strerror", None) or str(error) or type(error).__name__).strip().rstrip(".")
    return VideoError(f"{path} cannot be {done}: {said}", hint=hint)


def in_our_words(error: OSError) -> Exception:
    """Return our error for one of the system's that names a file or a full disk; any other as it is."""
    if error.filename is None and error.errno not in FULL:
        return error
    place = Path("an output") if error.filename is None else Path(os.fsdecode(error.filename))
    return system_error(error, place, done="used")


def known_error(error: Exception) -> RetouchError:
    """Return an error as ours, whatever it was that went wrong."""
    told = in_our_words(error) if isinstance(error, OSError) else error
    if isinstance(told, RetouchError):
        return told
    return RetouchError(f"unexpected {type(error).__name__}: {error}", hint="see: retouch doctor")


def _not_ours(folder: Path) -> str:
    """Return the name of something in a folder that we did not write into it; "" where there is nothing."""
    try:
        listed = set(json.loads((folder / LISTING).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        listed = set()
    return next((entry.partition(" ")[2] for entry in _contents(folder) if entry not in listed), "")


def _contents(folder: Path) -> Iterator[str]:
    """Yield what a folder holds, each with its kind or size, so that what was changed counts as another."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            about = path.lstat()
            size = about.st_size if stat.S_ISREG(about.st_mode) else stat.filemode(about.st_mode)[0]
            if path != folder / LISTING:
                yield f"{size} {path.relative_to(folder).as_posix()}"
