"""OpenEXR pictures for compositors: one part, scan lines, 32-bit floats, packed without loss.

Written from the OpenEXR project's description of the layout; sixteen lines to a block, as its ZIP kind has.
Nothing here reads the format.
"""

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float32

_MAGIC, _VERSION = 20000630, 2
_FLOAT: Final = 2
_ZIP: Final = 3
_LINES: Final = 16


def write_exr(path: Path, channels: Mapping[str, Float32[np.ndarray, "h w"]]) -> Path:
    """Write a picture of named channels (`R`, `G`, `B`, or `Y` for grey); its folder must be there."""
    names = sorted(channels)  # the format wants them in this order
    planes = np.stack([channels[name] for name in names], 1).astype("<f4")  # h channels w
    height, _, width = planes.shape
    head = _write_header(names, height, width)
    blocks = []
    for y in range(0, height, _LINES):
        packed = _pack_block(planes[y : y + _LINES].tobytes())
        blocks.append(struct.pack("<ii", y, len(packed)) + packed)
    first = len(head) + 8 * len(blocks)
    offsets = first + np.cumsum([0, *(len(block) for block in blocks[:-1])])
    path.write_bytes(head + offsets.astype("<u8").tobytes() + b"".join(blocks))
    return path


def _write_header(names: list[str], height: int, width: int) -> bytes:
    listed = b"".join(name.encode() + b"\0" + struct.pack("<iB3xii", _FLOAT, 0, 1, 1) for name in names)
    window = struct.pack("<4i", 0, 0, width - 1, height - 1)
    attributes = (
        ("channels", "chlist", listed + b"\0"),
        ("compression", "compression", bytes([_ZIP])),
        ("dataWindow", "box2i", window),
        ("displayWindow", "box2i", window),
        ("lineOrder", "lineOrder", b"\0"),
        ("pixelAspectRatio", "float", struct.pack("<f", 1)),
        ("screenWindowCenter", "v2f", struct.pack("<2f", 0, 0)),
        ("screenWindowWidth", "float", struct.pack("<f", 1)),
    )
    rows = [
        name.encode() + b"\0" + kind.encode() + b"\0" + struct.pack("<i", len(value)) + value
        for name, kind, value in attributes
    ]
    return struct.pack("<ii", _MAGIC, _VERSION) + b"".join(rows) + b"\0"


def _pack_block(raw: bytes) -> bytes:
    """A block as the format packs it: every other byte first, then differences, then deflate."""
    flat = np.frombuffer(raw, np.uint8)
    apart = np.concatenate([flat[::2], flat[1::2]])
    steps = apart.copy()
    steps[1:] = apart[1:] - apart[:-1] + np.uint8(128)
    packed = zlib.compress(steps.tobytes(), 6)
    return packed if len(packed) < len(raw) else raw
