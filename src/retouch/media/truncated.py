"""Whether a file is all there, by the sizes that its own outermost boxes state.

FFmpeg reads what is left of a file that was cut short and says nothing; a clip that lost its end must not
pass for whole.
"""

from pathlib import Path

from retouch.errors import VideoError
from retouch.media.opening import file_error

_SEGMENT = 0x18538067
_LONG_BOX = 1


def check_whole(path: Path) -> None:
    """Refuses a file that ends before its container says.

    Formats that do not state their size (transport streams, recordings that were never closed) pass.

    Raises:
        VideoError: if the file is cut short.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            head = file.read(64)
        stated = _stated_size(path, head)
    except OSError as error:
        raise file_error(error, path) from error
    if head[:4] == b"GIF8" and not _ends_as_gif(path):
        raise VideoError(
            f"{path} is cut short: its end mark is missing", hint="Copy it again from where it came from."
        )
    if stated > size:
        raise VideoError(
            f"{path} is cut short: it has {size} bytes of the {stated} that it speaks of",
            hint="Copy it again from where it came from; `ffmpeg -i FILE -c copy OUT` saves what is there.",
        )


def _stated_size(path: Path, head: bytes) -> int:
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return _end_of_boxes(path)
    if head[:4] == b"RIFF":
        return int.from_bytes(head[4:8], "little") + 8 if head[8:12] == b"AVI " else 0
    if head[:4] == b"\x1aE\xdf\xa3":
        return _end_of_segment(path)
    return 0


def _ends_as_gif(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 64))
        return file.read().rstrip(b"\0").endswith(b";")


def _end_of_boxes(path: Path) -> int:
    """Where the last of the boxes of an MP4 or QuickTime file would end."""
    total, at = path.stat().st_size, 0
    with path.open("rb") as file:
        while at + 8 <= total:
            file.seek(at)
            box = file.read(16)
            length = int.from_bytes(box[:4], "big")
            if length == _LONG_BOX:
                length = int.from_bytes(box[8:16], "big")
            elif length == 0:
                return total
            if length < 8:
                return total
            at += length
    return at


def _end_of_segment(path: Path) -> int:
    """Where the segment of a Matroska file ends; 0 if it does not say."""
    with path.open("rb") as file:
        start = file.read(4096)
    at, length = _ebml_number(start, 4)
    at += length
    if int.from_bytes(start[at : at + 4], "big") != _SEGMENT:
        return 0
    at, length = _ebml_number(start, at + 4)
    return at + length if length >= 0 else 0


def _ebml_number(block: bytes, at: int) -> tuple[int, int]:
    """An EBML number: the place behind it and its value, -1 for an unknown one."""
    first = block[at] if at < len(block) else 0
    if first == 0:
        return at, -1
    width = 9 - first.bit_length()
    value = int.from_bytes(block[at : at + width], "big") & ((1 << 7 * width) - 1)
    return at + width, -1 if value == (1 << 7 * width) - 1 else value
