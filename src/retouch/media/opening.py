"""Opening files: what lies at a path, limits before memory is taken, FFmpeg's complaints in our words.

Imports no torch, so that `retouch probe` answers at once.
"""

import difflib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer

from retouch.errors import ResourceError, RetouchError, VideoError
from retouch.files import system_error
from retouch.regular import UnfitFile, open_regular

# A picture beyond these is a damaged header or a trap far more often than a clip: 8K video is half of it.
LARGEST_SIDE = 16384
LARGEST_PICTURE = 1 << 26
# Pixels of all frames: a quarter of an hour in full HD.
LARGEST_CLIP = 1 << 35

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp"})
# The rate of pictures that say none.
PICTURES_A_SECOND = Fraction(25)

# What is opened. A playlist that calls itself a video must not make FFmpeg open other files or the network.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,apng,flv,mpegts,mpeg,ogg,asf,nut,ivf,h264,hevc,av1,obu,m4v,"
    "mpegvideo,yuv4mpegpipe,mxf,dv,png_pipe,tiff_pipe,jpeg_pipe,bmp_pipe,webp_pipe,ppm_pipe,pgm_pipe,"
    "mp3,wav,flac,aac,ac3"
)

_GLOB = re.compile(r"[*?\[]")


def pictures_at(path: Path) -> list[Path]:
    """The pictures in a folder, or that a pattern such as `shots/*.png` finds, in the order of their numbers.

    Anything else is no list of pictures and gives none.

    Raises:
        VideoError: if the folder or the pattern holds no picture.
    """
    try:
        if path.is_dir():
            inside = list(path.iterdir())
            wrong, hint = (
                f"{path} is a folder without pictures",
                "Give a folder of PNG, JPEG, TIFF or WebP files.",
            )
        elif _GLOB.search(path.name) and not path.exists():
            inside = list(path.parent.glob(path.name))
            wrong, hint = f"{path} matches no picture", "Put the pattern in quotes, and look into the folder."
        else:
            return []
    except OSError as error:
        raise file_error(error, path) from error
    found = [inner for inner in inside if inner.suffix.lower() in PICTURE_SUFFIXES]
    found = [inner for inner in found if not inner.name.startswith(".")]
    if not found:
        raise VideoError(wrong, hint=hint)
    return sorted(found, key=_natural_order)


def check_file(path: Path) -> None:
    """Refuse what is no readable file with something in it.

    Raises:
        VideoError: if it is missing, no file, empty, or not ours to read.
    """
    try:
        with open_regular(path) as file:
            if not file.read(1):
                raise VideoError(f"{path} is empty (0 bytes)", hint="Copy it again from where it came from.")
    except OSError as error:
        raise file_error(error, path) from error


def check_part(path: Path, part: range | None, frames: int) -> None:
    """Refuse a part that a clip does not have.

    Raises:
        VideoError: its last frame is behind the clip's.
    """
    if part and part.stop > frames:
        raise VideoError(
            f"frames {part[0]} to {part[-1]} are not all in {path}",
            hint=f"its {frames} frames are 0 to {frames - 1}",
        )


def check_size(path: Path, width: int, height: int) -> None:
    """Refuses pictures of absurd size before memory is asked for.

    Raises:
        VideoError: if a side or the area is beyond the limits, or 0.
    """
    if min(width, height) < 1:
        raise VideoError(f"{path} says that its pictures are {width}x{height}", hint="The file is damaged.")
    if max(width, height) > LARGEST_SIDE or width * height > LARGEST_PICTURE:
        raise VideoError(
            f"{path} says that its pictures are {width}x{height}; "
            f"the most that is read is {LARGEST_SIDE} a side and {LARGEST_PICTURE} pixels",
            hint="If that is not the size you expect, the file is damaged; if it is, scale it down first.",
        )


def check_length(path: Path, frames: int, width: int, height: int, folder: Path | None) -> None:
    """Refuse a clip that no disk here holds, by what it says of itself, before anything is decoded.

    Args:
        path: What an error calls it by.
        frames: How many there are.
        width: Of one.
        height: Of one.
        folder: Where they will lie; None for memory.

    Raises:
        VideoError: if it is absurdly long for its size.
        ResourceError: if the disk has no room for its frames.
    """
    said = f"{path} says that it has {frames} frames of {width}x{height}"
    if frames * width * height > LARGEST_CLIP:
        raise VideoError(
            f"{said}; the most that is read is {LARGEST_CLIP} pixels in all",
            hint="If that is not what you expect, the file is damaged; if it is, cut it or scale it down.",
        )
    while folder is not None and not folder.exists():
        folder = folder.parent
    if folder is not None and (free := shutil.disk_usage(folder).free) < 3 * frames * width * height:
        raise ResourceError(
            f"{said}, which take {3 * frames * width * height >> 20} MB; {folder} has {free >> 20} left",
            hint="Free some disk space, or cut or scale down the clip.",
        )


@contextmanager
def open_by_content(path: Path) -> Iterator[InputContainer]:
    """Gives the file at `path` opened by what it holds, whatever its suffix says.

    Errors of FFmpeg in the block become `VideoError`.

    Raises:
        VideoError: if the file cannot be opened or has no video in it.
    """
    check_file(path)
    try:
        # Some files' tags hold bytes that are no text; that is no reason to fail.
        with av.open(
            str(path.absolute()),
            options={
                "max_pixels": str(LARGEST_PICTURE),
                "format_whitelist": _FORMATS,
                "protocol_whitelist": "file",
            },
            metadata_errors="replace",
        ) as container:
            yield container
    except RetouchError:
        raise
    except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
        raise file_error(error, path) from error


def the_video(container: InputContainer, path: Path) -> av.VideoStream:
    """The stream to show: the first one that is no cover picture.

    Raises:
        VideoError: if there is none, or its size is absurd.
    """
    moving = [
        stream
        for stream in container.streams.video
        if not stream.disposition & av.stream.Disposition.attached_pic
    ]
    if not moving:
        held = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise VideoError(f"{path} has no video in it, only {held}", hint="Give a file that has pictures.")
    stream = moving[0]
    if stream.codec_context is None:
        raise VideoError(f"{path} is in a codec that nothing here decodes", hint=_CONVERT)
    check_size(path, stream.width, stream.height)
    return stream


def frames_said(path: Path, stream: av.VideoStream) -> int:
    """Give how many frames a stream says that it has; the packets are counted where it says nothing."""
    if stream.frames:
        return stream.frames
    with open_by_content(path) as container:
        return sum(packet.size > 0 for packet in container.demux(the_video(container, path)))


def file_error(error: Exception, path: Path, *, done: str = "read as video") -> RetouchError:
    """Our error for one of FFmpeg, Pillow or the system about `path`, which could not be `done`."""
    if isinstance(error, UnfitFile):
        return VideoError(f"{path}: {error}", hint="Give a video file, or a folder of pictures.")
    if isinstance(error, FileNotFoundError):
        return VideoError(f"{path} does not exist", hint=_near_names(path))
    hint = "The file is damaged or of another kind; copy it again from where it came from."
    return system_error(error, path, done=done, hint=hint)


_CONVERT = "Convert it, for example: ffmpeg -i FILE -c:v libx264 -crf 14 -c:a copy OUT.mp4"


def _natural_order(path: Path) -> list[tuple[int, int, str]]:
    """Orders `shot2` before `shot10`."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def _near_names(path: Path) -> str:
    try:
        names = [inner.name for inner in path.parent.iterdir()]
    except OSError:
        return f"There is no readable folder {path.parent} either."
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    return f"Did you mean {path.parent / close[0]}?" if close else f"Look into {path.parent.absolute()}."
