"""Whether a PNG is all there: its size, its depth and every row, found without keeping a pixel.

Some decoders fill what is missing with black and say nothing.
"""

import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO, Final, final

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Where the passes of an interlaced picture begin, and how far their pixels lie apart: x, y, x, y.
_PASSES: Final = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
_PIECE: Final = 1 << 18


@final
@dataclass(frozen=True)
class Header:
    """What a PNG says of itself first."""

    width: int
    height: int
    bits: int
    channels: int
    interlaced: bool

    @property
    def unpacked(self) -> int:
        """Bytes of all rows, with the one in front of each that names its filter."""
        passes = _PASSES if self.interlaced else ((0, 0, 1, 1),)
        total = 0
        for x, y, across, down in passes:
            width, height = -(-(self.width - x) // across), -(-(self.height - y) // down)
            if width > 0 and height > 0:
                total += height * (1 + (width * self.channels * self.bits + 7) // 8)
        return total


def read_png_header(file: BinaryIO) -> Header:
    """Read the header of a PNG.

    Raises:
        ValueError: it is no PNG, or damaged.
    """
    start = file.read(33)
    if len(start) < 33 or start[:8] != SIGNATURE or start[8:16] != b"\0\0\0\rIHDR":
        raise ValueError("it is no PNG")
    width, height, bits, kind, packing, filtering, interlace = struct.unpack(">IIBBBBB", start[16:29])
    known = kind in _CHANNELS and bits in (1, 2, 4, 8, 16) and interlace in (0, 1) and width and height
    if not known or packing or filtering or zlib.crc32(start[12:29]) != int.from_bytes(start[29:], "big"):
        raise ValueError("the header of a PNG is damaged")
    return Header(width, height, bits, _CHANNELS[kind], bool(interlace))


def check_rows(file: BinaryIO) -> Header:
    """Refuse a PNG of which rows are missing or damaged, and give its header.

    Raises:
        ValueError: it is no PNG, damaged, or cut short.
    """
    header, inflater, rows = read_png_header(file), zlib.decompressobj(), 0
    while len(start := file.read(8)) == 8 and start[4:] != b"IEND":
        left = int.from_bytes(start[:4], "big")
        if start[4:] != b"IDAT":
            file.seek(left + 4, 1)
            continue
        seal = zlib.crc32(start[4:])
        while left and (piece := file.read(min(left, _PIECE))):
            left, seal = left - len(piece), zlib.crc32(piece, seal)
            full = True
            while (piece or full) and rows < header.unpacked:
                try:
                    made = len(inflater.decompress(piece, _PIECE))
                except zlib.error as error:
                    raise ValueError(f"rows of a PNG are damaged ({error})") from None
                rows, piece, full = rows + made, inflater.unconsumed_tail, made == _PIECE
        if left or seal != int.from_bytes(file.read(4), "big"):
            raise ValueError("rows of a PNG are damaged")
    if rows < header.unpacked:
        raise ValueError("rows of a PNG are missing")
    return header
