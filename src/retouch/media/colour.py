"""Decoded pictures to RGB bytes and back, with the matrix and the range that the file names.

The arithmetic is our own: swscale loses up to one step, always downwards, on full-range material, and it
truncates where 10 bits become 8. It is still asked to unpack what is not planar, which is exact.

Chroma that was stored at half size is brought up linearly, sited as MPEG-2 and H.264 say (left horizontally,
between the rows vertically). The way down is an exact left inverse of the way up (horizontally the low-pass
of the 5/3 wavelet): what is read and written again keeps its chroma, generation after generation.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

import av
import numpy as np
from jaxtyping import Float32, UInt8

PRIMARIES: Mapping[int, str] = MappingProxyType(
    {
        1: "bt709",
        4: "bt470m",
        5: "bt470bg",
        6: "smpte170m",
        7: "smpte240m",
        8: "film",
        9: "bt2020",
        10: "smpte428",
        11: "smpte431",
        12: "smpte432",
        22: "ebu3213",
    }
)
TRANSFERS: Mapping[int, str] = MappingProxyType(
    {
        1: "bt709",
        4: "gamma22",
        5: "gamma28",
        6: "smpte170m",
        7: "smpte240m",
        8: "linear",
        9: "log100",
        10: "log316",
        11: "iec61966-2-4",
        12: "bt1361",
        13: "srgb",
        14: "bt2020-10",
        15: "bt2020-12",
        16: "pq",
        17: "smpte428",
        18: "hlg",
    }
)
MATRICES: Mapping[int, str] = MappingProxyType(
    {
        0: "rgb",
        1: "bt709",
        4: "fcc",
        5: "bt470bg",
        6: "smpte170m",
        7: "smpte240m",
        8: "ycgco",
        9: "bt2020nc",
        10: "bt2020c",
        11: "smpte2085",
        14: "ictcp",
    }
)
# The weights of red and blue in luma; the constant-luminance form of BT.2020 is read with the plain one's.
_WEIGHTS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "bt709": (0.2126, 0.0722),
        "fcc": (0.30, 0.11),
        "bt470bg": (0.299, 0.114),
        "smpte170m": (0.299, 0.114),
        "smpte240m": (0.212, 0.087),
        "bt2020nc": (0.2627, 0.0593),
        "bt2020c": (0.2627, 0.0593),
    }
)
# Formats that are not planar, and the planar one of the same depth and chroma that holds the same numbers.
_UNPACKED: Mapping[str, str] = MappingProxyType(
    {
        "nv12": "yuv420p",
        "nv21": "yuv420p",
        "nv16": "yuv422p",
        "nv24": "yuv444p",
        "p010le": "yuv420p10le",
        "p210le": "yuv422p10le",
        "p410le": "yuv444p10le",
        "p012le": "yuv420p12le",
        "p016le": "yuv420p16le",
        "yuyv422": "yuv422p",
        "uyvy422": "yuv422p",
        "yvyu422": "yuv422p",
        "y210le": "yuv422p10le",
        "y212le": "yuv422p12le",
        "v30xle": "yuv444p10le",
        "xv30le": "yuv444p10le",
        "ayuv64le": "yuva444p16le",
        "ya8": "gbrap",
        "ya16le": "gbrap16le",
        "ya16be": "gbrap16le",
    }
)
_PLANAR = re.compile(
    r"(?:yuv(?P<alpha>a?)j?4\d\dp|(?P<rgb>gbr)(?P<rgba>a?)p|(?P<gray>gray))(?P<bits>\d+)?(?:le)?"
)


OPAQUE = 255


def can_convert(matrix: str) -> bool:
    """Whether pictures with this matrix can be brought to RGB; an empty name is one to guess, and can."""
    return matrix in _WEIGHTS or matrix in ("", "rgb")


def guessed_matrix(height: int) -> str:
    """The matrix that players take for untagged video: that of high definition from 720 lines on."""
    return "bt709" if height >= 720 else "smpte170m"


def to_rgb(
    frame: av.VideoFrame, *, matrix: str, full_range: bool
) -> tuple[UInt8[np.ndarray, "3 h w"], UInt8[np.ndarray, "1 h w"] | None]:
    """Gives a decoded picture as RGB bytes, and its alpha where its pixel format has one.

    Deeper samples are rounded to 8 bits, not cut, so that the tone stays. `matrix` is one that `can_convert`.
    """
    frame, kind = _to_planar(frame)
    bits = int(kind["bits"] or 8)
    planes = [_read_plane(plane, bits) for plane in frame.planes]
    top = float((1 << bits) - 1)
    alpha = (
        _round_to_depth(planes.pop().astype(np.float32) * (255 / top))[None]
        if kind["alpha"] or kind["rgba"]
        else None
    )
    if kind["rgb"]:
        return _from_gbr(planes, top), alpha
    height, width = planes[0].shape
    low, span, chroma = _depth_levels(bits, full=full_range)
    y = (planes[0].astype(np.float32) - low) * (255 / span)
    if kind["gray"]:
        return np.broadcast_to(_round_to_depth(y), (3, height, width)).copy(), alpha
    scale, middle = 255 / chroma, float(1 << (bits - 1))
    cb, cr = (
        (_double_chroma(plane.astype(np.float32), height, width) - middle) * scale for plane in planes[1:3]
    )
    red, blue = _WEIGHTS[matrix]
    green = 1 - red - blue
    rgb = np.empty((3, height, width), np.uint8)
    rgb[0] = _round_to_depth(y + (2 - 2 * red) * cr)
    rgb[1] = _round_to_depth(y - ((2 - 2 * red) * red / green) * cr - ((2 - 2 * blue) * blue / green) * cb)
    rgb[2] = _round_to_depth(y + (2 - 2 * blue) * cb)
    return rgb, alpha


def to_frame(
    rgb: UInt8[np.ndarray, "3 h w"],
    alpha: UInt8[np.ndarray, "1 h w"] | None,
    pixel_format: str,
    *,
    matrix: str,
    full_range: bool,
) -> av.VideoFrame:
    """Gives RGB bytes as a picture for an encoder, in a planar YUV or in an 8-bit RGB format.

    A format with alpha shows opaque pixels where `alpha` is None.
    """
    height, width = rgb.shape[1:]
    opaque = np.full((height, width), 255, np.uint8) if alpha is None else alpha[0]
    kind = _PLANAR.fullmatch(pixel_format)
    if kind is None or kind["rgb"]:
        with_alpha = "a" in pixel_format.removeprefix("gb")
        planar = _fill_plane(
            "gbrap" if with_alpha else "gbrp", [rgb[1], rgb[2], rgb[0], *([opaque] if with_alpha else [])]
        )
        return planar if planar.format.name == pixel_format else planar.reformat(format=pixel_format)
    bits = int(kind["bits"] or 8)
    low, span, chroma = _depth_levels(bits, full=full_range)
    red, blue = _WEIGHTS[matrix]
    r, g, b = rgb.astype(np.float32) / 255
    y = red * r + (1 - red - blue) * g + blue * b
    empty = av.VideoFrame(width, height, pixel_format)
    small = (empty.planes[1].height, empty.planes[1].width)
    middle, top = float(1 << (bits - 1)), float((1 << bits) - 1)
    differences = ((b - y) / (2 - 2 * blue), (r - y) / (2 - 2 * red))
    planes = [_round_to_depth(y * span + low, top)]
    planes += [_round_to_depth(_halve_chroma(part * chroma, *small) + middle, top) for part in differences]
    if kind["alpha"]:
        planes.append(_round_to_depth(opaque * np.float32(top / 255), top))
    return _fill_plane(pixel_format, planes)


def _to_planar(frame: av.VideoFrame) -> tuple[av.VideoFrame, re.Match[str]]:
    """The picture in a planar format of the same depth, and that format's name taken apart."""
    form = frame.format
    name = form.name.removesuffix("be") + "le" if form.name.endswith("be") else form.name
    if _PLANAR.fullmatch(name) is None:
        depth = max(part.bits for part in form.components)
        deep = "16le" if depth > 8 else ""
        clear = form.has_palette or any(part.is_alpha for part in form.components)
        rgb = form.is_rgb or form.has_palette
        name = _UNPACKED.get(name, f"gbr{'a' if clear else ''}p{deep}" if rgb else f"yuv444p{deep}")
    kind = _PLANAR.fullmatch(name)
    assert kind is not None
    return (frame if name == form.name else frame.reformat(format=name)), kind


def _read_plane(plane: av.video.plane.VideoPlane, bits: int) -> np.ndarray:
    kind = np.dtype("<u2" if bits > 8 else "u1")
    rows = np.frombuffer(memoryview(plane), kind).reshape(-1, plane.line_size // kind.itemsize)
    picture: np.ndarray = rows[: plane.height, : plane.width]
    return picture


def _from_gbr(planes: list[np.ndarray], top: float) -> UInt8[np.ndarray, "3 h w"]:
    ordered = (planes[2], planes[0], planes[1])
    if top == 255:
        return np.stack(ordered)
    return np.stack([_round_to_depth(plane.astype(np.float32) * (255 / top)) for plane in ordered])


def _fill_plane(pixel_format: str, planes: list[np.ndarray]) -> av.VideoFrame:
    height, width = planes[0].shape
    frame = av.VideoFrame(width, height, pixel_format)
    for plane, values in zip(frame.planes, planes, strict=True):
        rows = np.zeros(
            (plane.buffer_size // plane.line_size, plane.line_size // values.itemsize), values.dtype
        )
        rows[: plane.height, : plane.width] = values
        plane.update(rows.tobytes())
    return frame


def _depth_levels(bits: int, *, full: bool) -> tuple[float, float, float]:
    """Black, the span of luma, and the span of chroma, in steps of this depth."""
    if full:
        return 0.0, float((1 << bits) - 1), float((1 << bits) - 1)
    step = 1 << (bits - 8)
    return 16.0 * step, 219.0 * step, 224.0 * step


def _round_to_depth(values: np.ndarray, top: float = 255.0) -> np.ndarray:
    kind = np.dtype("u1" if top <= 255 else "<u2")
    steps: np.ndarray = np.clip(np.rint(values), 0, top).astype(kind)
    return steps


def _double_chroma(plane: Float32[np.ndarray, "y x"], height: int, width: int) -> Float32[np.ndarray, "h w"]:
    """Chroma at the size of luma, by doubling as often as it takes."""
    while plane.shape[1] < width:
        after = np.concatenate([plane[:, 1:], plane[:, -1:]], axis=1)
        plane = np.stack([plane, (plane + after) / 2], axis=2).reshape(len(plane), -1)
    while len(plane) < height:
        before = np.concatenate([plane[:1], plane[:-1]])
        after = np.concatenate([plane[1:], plane[-1:]])
        plane = np.stack([plane * 0.75 + before * 0.25, plane * 0.75 + after * 0.25], axis=1)
        plane = plane.reshape(-1, plane.shape[2])
    return plane[:height, :width]


def _halve_chroma(plane: Float32[np.ndarray, "h w"], height: int, width: int) -> Float32[np.ndarray, "y x"]:
    """Undo `_double_chroma`, taking from a picture only what chroma of that size can show."""
    while len(plane) > height:
        near = np.pad(plane, ((1, 1 + len(plane) % 2 + 1), (0, 0)), mode="edge")
        half = (len(plane) + 1) // 2
        outer, upper, lower, last = (near[i : i + 2 * half : 2] for i in range(4))
        plane = (upper + lower) * 0.75 - (outer + last) * 0.25
    while plane.shape[1] > width:
        near = np.pad(plane, ((0, 0), (2, 3)), mode="edge")
        half = (plane.shape[1] + 1) // 2
        a, b, c, d, e = (near[:, i : i + 2 * half : 2] for i in range(5))
        plane = c * 0.75 + (b + d) * 0.25 - (a + e) * 0.125
    return plane
