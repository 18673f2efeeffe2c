"""Single pictures of every kind, as upright RGB bytes."""

import hashlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from retouch.errors import VideoError
from retouch.media.io import read_picture, write_picture


def picture(height: int = 20, width: int = 30, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, channels), np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".webp"])
@pytest.mark.parametrize("channels", [3, 4])
def test_lossless_pictures_come_back_to_the_byte(suffix: str, channels: int, tmp_path: Path) -> None:
    array = picture(channels=channels)
    if channels == 4:
        array[0, 0, 3] = 0
    path = write_picture(array, tmp_path / f"a{suffix}")
    assert np.array_equal(read_picture(path), array)


def test_jpeg_comes_back_near(tmp_path: Path) -> None:
    array = np.kron(picture(3, 4), np.ones((8, 8, 1), np.uint8))
    difference = np.abs(read_picture(write_picture(array, tmp_path / "a.jpg")).astype(int) - array)
    assert difference.mean() < 3
    with pytest.raises(VideoError, match="JPEG has no alpha"):
        write_picture(picture(channels=4), tmp_path / "b.jpg")


def test_a_picture_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = write_picture(picture(), tmp_path / "a.png")
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(VideoError, match="exists"):
        write_picture(picture(4, 4), path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    write_picture(picture(4, 4), path, force=True)
    assert read_picture(path).shape == (4, 4, 3)
    assert [inner.name for inner in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("pixels", ["rgb48be", "rgba64be", "gray16be"])
def test_sixteen_bits_are_rounded_not_cut(pixels: str, tmp_path: Path) -> None:
    channels = {"rgb48be": 3, "rgba64be": 4, "gray16be": 1}[pixels]
    deep = np.random.default_rng(2).integers(0, 65536, (16, 24, channels)).astype(">u2")
    frame = av.VideoFrame(24, 16, pixels)
    rows = np.zeros((16, frame.planes[0].line_size // 2), ">u2")
    rows[:, : 24 * channels] = deep.reshape(16, -1)
    frame.planes[0].update(rows.tobytes())
    codec = av.CodecContext.create("png", "w")
    assert isinstance(codec, av.VideoCodecContext)
    codec.width, codec.height, codec.pix_fmt = 24, 16, pixels
    codec.time_base = Fraction(1, 25)
    (tmp_path / "a.png").write_bytes(b"".join(bytes(packet) for packet in codec.encode(frame)))
    rounded = np.rint(deep.astype(np.float64) * 255 / 65535).astype(np.uint8)
    expected = rounded.repeat(3, axis=2) if channels == 1 else rounded
    assert np.array_equal(read_picture(tmp_path / "a.png"), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_from_a_camera_is_turned_upright(orientation: int, tmp_path: Path) -> None:
    array = picture()
    image = Image.fromarray(array)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    turns = {
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.swapaxes(0, 1),
        6: np.rot90(array, -1),
        7: array.swapaxes(0, 1)[::-1, ::-1],
        8: np.rot90(array, 1),
    }
    assert np.array_equal(read_picture(tmp_path / "a.png"), turns[orientation])


def test_palettes_greys_and_cmyk_become_rgb(tmp_path: Path) -> None:
    flat = Image.fromarray(np.kron(picture(3, 4), np.ones((4, 4, 1), np.uint8)))
    flat.quantize(12).save(tmp_path / "p.png")
    assert np.abs(read_picture(tmp_path / "p.png").astype(int) - np.asarray(flat)).max() <= 2
    flat.convert("L").save(tmp_path / "l.png")
    grey = read_picture(tmp_path / "l.png")
    assert grey.shape == (12, 16, 3)
    assert np.array_equal(grey[..., 0], np.asarray(flat.convert("L")))
    flat.convert("CMYK").save(tmp_path / "c.tiff")
    assert np.abs(read_picture(tmp_path / "c.tiff").astype(int) - np.asarray(flat)).max() <= 2
    clear = flat.quantize(12)
    clear.info["transparency"] = 0
    clear.save(tmp_path / "t.png", transparency=0)
    assert read_picture(tmp_path / "t.png").shape == (12, 16, 4)


@pytest.mark.parametrize(
    ("array", "name", "said"),
    [
        (np.zeros((4, 4, 2), np.uint8), "a.png", "cannot be uint8"),
        (np.zeros((0, 4, 3), np.uint8), "a.png", "cannot be uint8"),
        (np.zeros((4, 4, 3), np.uint8), "a.xyz", "no picture is written as"),
    ],
    ids=["two channels", "no rows", "unknown suffix"],
)
def test_what_is_no_picture_is_not_written(array: np.ndarray, name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=said):
        write_picture(array, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"no picture", b"\xff\xd8\xff\xe0 broken"])
def test_damaged_pictures_are_refused_with_a_hint(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(VideoError) as caught:
        read_picture(tmp_path / "a.png")
    assert caught.value.hint


def test_floats_are_refused_for_what_they_are(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 5), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(VideoError, match="floating-point"):
        read_picture(tmp_path / "a.tif")
