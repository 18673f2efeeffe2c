"""A PNG is all there or refused, whatever its depth, its colours and its order of rows."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from retouch.media.png import SIGNATURE, Header, check_rows, read_png_header


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(header: tuple[int, ...], rows: bytes, *, pieces: int = 1) -> bytes:
    packed = zlib.compress(rows)
    step = -(-len(packed) // pieces)
    parts = [chunk(b"IDAT", packed[at : at + step]) for at in range(0, len(packed), step)]
    return (
        SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", *header)) + b"".join(parts) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_what_pillow_writes_is_whole(mode: str) -> None:
    file = BytesIO()
    picture = Image.fromarray(np.arange(48 * 33, dtype=np.uint8).reshape(48, 33))
    (Image.new("I;16", (33, 48), 700) if mode == "I;16" else picture.convert(mode)).save(file, "PNG")
    file.seek(0)
    header = check_rows(file)
    assert (header.width, header.height, header.bits) == (33, 48, {"1": 1, "I;16": 16}.get(mode, 8))


def test_interlaced_rows_are_counted_pass_by_pass() -> None:
    # By hand, for 5x3 grey: 1x1, 1x1, no row, 1x1, 3x1, 2x2 and 5x1 pixels,
    # and a byte in front of each row.
    assert Header(5, 3, 8, 1, interlaced=True).unpacked == 2 + 2 + 0 + 2 + 4 + 6 + 6
    assert Header(5, 3, 8, 1, interlaced=False).unpacked == 3 * 6
    header = (5, 3, 8, 0, 0, 0, 1)
    check_rows(BytesIO(png(header, bytes(22))))
    with pytest.raises(ValueError, match="missing"):
        check_rows(BytesIO(png(header, bytes(21))))


def test_rows_in_many_pieces_and_a_long_run_of_one_colour_are_counted() -> None:
    check_rows(BytesIO(png((64, 48, 8, 2, 0, 0, 0), bytes(48 * 193), pieces=9)))
    check_rows(BytesIO(png((4096, 2048, 8, 0, 0, 0, 0), bytes(2048 * 4097))))


@pytest.mark.parametrize(
    ("bits", "kind", "row"), [(16, 2, 385), (8, 2, 193), (8, 0, 65), (1, 3, 9), (16, 6, 513)]
)
def test_missing_rows_are_refused(bits: int, kind: int, row: int) -> None:
    header = (64, 48, bits, kind, 0, 0, 0)
    check_rows(BytesIO(png(header, bytes(48 * row))))
    with pytest.raises(ValueError, match="rows of a PNG are missing"):
        check_rows(BytesIO(png(header, bytes(47 * row))))


def test_damage_and_a_lost_end_are_refused() -> None:
    whole = png((64, 48, 8, 2, 0, 0, 0), np.random.default_rng(0).bytes(48 * 193))
    for content in (whole[: len(whole) // 2], whole[:400] + b"?" + whole[401:], whole[:20]):
        with pytest.raises(ValueError, match="PNG"):
            check_rows(BytesIO(content))
    with pytest.raises(ValueError, match="it is no PNG"):
        read_png_header(BytesIO(b"%!PS-Adobe" + bytes(100)))


def test_more_than_the_rows_need_is_not_unpacked() -> None:
    check_rows(BytesIO(png((8, 8, 8, 0, 0, 0, 0), bytes(1 << 24))))
