"""Single pictures, and animated WebP, which Pillow reads and FFmpeg does not. Bytes in, bytes out.

Imports no torch.
"""

import logging
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import final

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from retouch.errors import RetouchError, VideoError
from retouch.files import replace_whole
from retouch.media.colour import to_rgb
from retouch.media.opening import check_file, check_size, file_error, open_by_content, the_video
from retouch.media.png import check_rows
from retouch.regular import open_regular

# Pillow says on the terminal what it finds wrong with a picture, unless somebody takes its word.
logging.getLogger("PIL").addHandler(logging.NullHandler())

# The text in a PNG that says how many of its kind are shown in a second.
_RATE = "Frame-Rate"
# What is opened as a picture. Pillow knows more: its reader of PostScript, for one, runs another program.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
_RGB_MODES = {
    "L": 8,
    "P": 8,
    "RGB": 8,
    "RGBA": 8,
    "LA": 8,
    "PA": 8,
    "1": 1,
    "CMYK": 8,
    "YCbCr": 8,
    "LAB": 8,
    "HSV": 8,
}
_TURNING = (5, 6, 7, 8)
_ORIENTATION = 0x0112
_BITS_A_SAMPLE = 258
_STRIP = 1 << 20
"""Pixels that are turned into bytes at once."""


@final
@dataclass(frozen=True)
class PictureHeader:
    """What a picture says before it is decoded; the size is the upright one."""

    codec: str
    mode: str
    bits: int
    alpha: bool
    width: int
    height: int
    fps: Fraction | None


def is_picture(path: Path) -> bool:
    """Whether a file holds one still picture, by its first bytes."""
    start = _file_start(path)
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return b"acTL" not in start.split(b"IDAT")[0]
    return start.startswith((b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"BM")) or (
        start[:4] == b"RIFF" and start[8:12] == b"WEBP" and not is_animation(path)
    )


def is_animation(path: Path) -> bool:
    """Whether a file is an animated WebP."""
    start = _file_start(path)
    return start[:4] == b"RIFF" and start[8:16] == b"WEBPVP8X" and bool(start[20] & 2)


def read_header(path: Path) -> PictureHeader:
    """Gives what a picture says about itself, without decoding it.

    Raises:
        VideoError: if it is no picture, or of absurd size.
    """
    with _decode_picture(path) as picture:
        width, height = picture.size
        if picture.getexif().get(_ORIENTATION) in _TURNING:
            width, height = height, width
        return PictureHeader(
            codec=(picture.format or "").lower(),
            mode=picture.mode,
            bits=_bit_depth(path, picture),
            alpha=picture.has_transparency_data,
            width=width,
            height=height,
            fps=_frame_rate(picture),
        )


def read_picture(path: Path | str) -> UInt8[np.ndarray, "h w channels"]:
    """Gives a picture upright as RGB bytes, with alpha as a fourth channel where it has one.

    Deeper pictures are rounded to 8 bits; palettes and greys become RGB; CMYK is converted, by its own
    profile where it carries one.

    Raises:
        VideoError: if the file is missing, damaged, no picture, of absurd size, or holds floats.
    """
    path = Path(path)
    check_file(path)
    with _decode_picture(path) as picture:
        if picture.mode == "F":
            raise _in_floats(path)
        if picture.format == "PNG":
            with open_regular(path) as file:
                check_rows(file)
        if _bit_depth(path, picture) > 8:
            return _turn_upright(_read_deep(path), picture.getexif().get(_ORIENTATION, 1))
        ImageOps.exif_transpose(picture, in_place=True)
        return _bytes_of(picture)


def read_rgb(path: Path) -> UInt8[np.ndarray, "3 h w"]:
    """Read a picture without its alpha, colours first."""
    return on_white(read_picture(path))


def on_white(picture: UInt8[np.ndarray, "h w channels"]) -> UInt8[np.ndarray, "3 h w"]:
    """Return a picture without its alpha, as it looks on paper."""
    if picture.shape[2] == 4:
        share = picture[..., 3:] / 255.0
        picture = np.rint(picture[..., :3] * share + 255 * (1 - share)).astype(np.uint8)
    return np.ascontiguousarray(picture.transpose(2, 0, 1))


def write_picture(
    array: UInt8[np.ndarray, "h w channels"] | UInt8[np.ndarray, "h w"],
    path: Path | str,
    *,
    force: bool = False,
) -> Path:
    """Writes grey, RGB or RGBA bytes as PNG, WebP or TIFF (all lossless) or JPEG, by the suffix.

    Raises:
        VideoError: if the array is no picture, the suffix unknown, or the place taken.
        ResourceError: if the disk is full.
    """
    path = Path(path)
    with replace_whole(path, force=force) as draft:
        draft.write_bytes(encode_picture(array, path.suffix))
    return path


def encode_picture(
    array: UInt8[np.ndarray, "h w channels"] | UInt8[np.ndarray, "h w"],
    suffix: str,
    *,
    fps: Fraction | None = None,
) -> bytes:
    """Gives a picture as the bytes of a file with this suffix; a PNG may say the rate that it is shown at.

    Raises:
        VideoError: if the array is no picture, or the suffix is unknown or cannot show it.
    """
    if (
        array.dtype != np.uint8
        or 0 in array.shape
        or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4)))
    ):
        raise VideoError(
            f"a picture cannot be {array.dtype} {array.shape}",
            hint="Give bytes of height, width and 1, 3 or 4.",
        )
    kind = check_suffix(suffix)
    if kind == "JPEG" and array.shape[2:] == (4,):
        raise VideoError("JPEG has no alpha", hint="Use .png, or give three channels.")
    options: dict[str, object] = {}
    if kind == "JPEG":
        options = {"quality": 95, "subsampling": 0}
    elif kind == "WEBP":
        options = {"lossless": True, "exact": True}
    elif kind == "TIFF":
        options = {"compression": "tiff_deflate"}
    elif fps is not None:
        text = PngImagePlugin.PngInfo()
        text.add_text(_RATE, str(fps))
        options = {"pnginfo": text}
    file = BytesIO()
    Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array).save(file, kind, **options)
    return file.getvalue()


def check_suffix(suffix: str) -> str:
    """Return Pillow's name for the kind of picture that a suffix asks for.

    Raises:
        VideoError: no picture is written under such a name.
    """
    kinds = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP"}
    if suffix.lower() not in kinds:
        raise VideoError(f"no picture is written as {suffix or 'a name without suffix'!r}", hint="Use .png.")
    return kinds[suffix.lower()]


def animation_times(path: Path) -> tuple[tuple[int, ...], int]:
    """The milliseconds at which the pictures of an animated WebP appear, and at which the last one ends.

    Raises:
        VideoError: if it holds no picture.
    """
    starts, now = [], 0
    with open_regular(path) as file:
        file.seek(12)
        while len(chunk := file.read(8)) == 8:
            size = int.from_bytes(chunk[4:], "little")
            behind = file.tell() + size + size % 2
            if chunk[:4] == b"ANMF":
                starts.append(now)
                now += max(1, int.from_bytes(file.read(15)[12:], "little"))
            file.seek(behind)
    if not starts:
        raise VideoError(f"{path} holds no picture", hint="The file is damaged; copy it again.")
    return tuple(starts), now


def read_animation(path: Path) -> Iterator[UInt8[np.ndarray, "h w channels"]]:
    """Gives the pictures of an animated WebP one after the other.

    Raises:
        VideoError: if the file is damaged.
    """
    with _decode_picture(path) as picture:
        for i in range(getattr(picture, "n_frames", 1)):
            picture.seek(i)
            yield np.asarray(picture if picture.mode == "RGBA" else picture.convert("RGB"))


@contextmanager
def _decode_picture(path: Path) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            # Damaged tags are none of our concern; sizes are checked below, with our own bound.
            warnings.simplefilter("ignore")
            with open_regular(path) as file, Image.open(file, formats=FORMATS) as picture:
                check_size(path, *picture.size)
                yield picture
    except RetouchError:
        raise
    except Exception as error:
        # Pillow's readers meet damaged files with whatever exception comes up in them.
        raise file_error(error, path, done="read as a picture") from error


def _file_start(path: Path) -> bytes:
    check_file(path)
    try:
        with open_regular(path) as file:
            return file.read(1 << 16)
    except OSError as error:
        raise file_error(error, path) from error


def _bit_depth(path: Path, picture: Image.Image) -> int:
    if picture.format == "PNG":
        with open_regular(path) as file:
            return file.read(25)[-1]
    if picture.format == "TIFF":
        bits = picture.getexif().get(_BITS_A_SAMPLE, 8)
        return int(max(bits)) if isinstance(bits, tuple) else int(bits)
    return _RGB_MODES.get(picture.mode, 16)


def _frame_rate(picture: Image.Image) -> Fraction | None:
    try:
        rate = Fraction(str(picture.info.get(_RATE, "0")))
    except (ValueError, ZeroDivisionError):
        return None
    return rate if rate > 0 else None


def _read_deep(path: Path) -> UInt8[np.ndarray, "h w channels"]:
    """A picture of more than 8 bits a channel, by FFmpeg."""
    with open_by_content(path) as container:
        stream = the_video(container, path)
        stream.codec_context.options = {"err_detect": "explode"}  # rows that are missing are no picture
        frame = next(iter(container.decode(stream)), None)
        if frame is None:
            raise VideoError(f"{path} holds no picture", hint="The file is damaged; copy it again.")
        if "f16" in frame.format.name or "f32" in frame.format.name:
            raise _in_floats(path)
        rgb, alpha = to_rgb(frame, matrix="rgb", full_range=True)
    return np.moveaxis(rgb if alpha is None else np.concatenate([rgb, alpha]), 0, -1).copy()


def _in_floats(path: Path) -> VideoError:
    return VideoError(f"{path} holds floating-point numbers", hint="Save it with 8 or 16 bits a channel.")


def _turn_upright(
    array: UInt8[np.ndarray, "h w channels"], orientation: int
) -> UInt8[np.ndarray, "y x channels"]:
    """Brings a picture upright; the eight cases are those of Exif."""
    if orientation in _TURNING:
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array.copy()


def _bytes_of(picture: Image.Image) -> UInt8[np.ndarray, "h w channels"]:
    """Return a picture's RGB or RGBA bytes; made in strips, since Pillow holds as many once more."""
    width, height = picture.size
    rows = max(1, _STRIP // width)
    tops = range(0, height, rows)
    strips = (picture.crop((0, top, width, min(top + rows, height))) for top in tops)
    whole = None
    for top, strip in zip(tops, strips, strict=True):
        part = np.asarray(_to_rgb(strip))
        if whole is None:
            whole = np.empty((height, *part.shape[1:]), np.uint8)
        whole[top : top + rows] = part
    assert whole is not None  # no picture without a row is opened
    return whole


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in ("RGB", "RGBA"):
        return picture
    profile = picture.info.get("icc_profile")
    if picture.mode == "CMYK" and isinstance(profile, bytes):
        try:
            converted = ImageCms.profileToProfile(
                picture,
                ImageCms.ImageCmsProfile(BytesIO(profile)),
                ImageCms.createProfile("sRGB"),
                outputMode="RGB",
            )
        except (ImageCms.PyCMSError, OSError, struct.error) as error:
            raise VideoError(
                f"the CMYK profile of a picture is damaged: {error}", hint="Save it as RGB."
            ) from error
        assert converted is not None
        return converted
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")
