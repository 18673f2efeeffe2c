"""Reading: what is refused and how it is said, where frames lie, and that colours are what the file says."""

import os
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from retouch.errors import VideoError
from retouch.events import Event, Notice
from retouch.media import reading
from retouch.media.io import Encoding, read, read_frame, read_picture, write
from retouch.media.probe import probe
from retouch.video import Video


def clip(frames: int = 5, height: int = 32, width: int = 48) -> Video:
    y, x = np.mgrid[:height, :width]
    waves = [
        [128 + 60 * np.sin((x + 3 * i) / 9 + c) + 50 * np.cos((y - i) / 7 - 2 * c) for c in range(3)]
        for i in range(frames)
    ]
    return Video(np.array(waves).astype(np.uint8), Fraction(25))


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return head + struct.pack(">I", 64) + b"IDAT" + bytes(68)


def test_a_missing_file_is_told_with_a_near_name(tmp_path: Path) -> None:
    write(clip(), tmp_path / "holiday.mp4")
    with pytest.raises(VideoError, match="does not exist") as caught:
        read(tmp_path / "holidya.mp4")
    assert "holiday.mp4" in caught.value.hint
    with pytest.raises(VideoError, match="does not exist") as caught:
        read(tmp_path / "nowhere" / "a.mp4")
    assert "no readable folder" in caught.value.hint


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    with pytest.raises(VideoError, match="0 bytes"):
        read(tmp_path / "a.mp4")


def test_text_that_calls_itself_a_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("not a video at all\n" * 50)
    with pytest.raises(VideoError, match="cannot be read as video"):
        read(tmp_path / "a.mp4")


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    write(clip(), tmp_path / "part.ts.mp4")
    (tmp_path / "a.mp4").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\npart.ts.mp4\n#EXT-X-ENDLIST\n"
    )
    with pytest.raises(VideoError, match="cannot be read as video"):
        read(tmp_path / "a.mp4")


def test_a_file_of_sound_alone_is_refused_by_what_it_holds(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=48000)
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame(format="fltp", layout="stereo", samples=1024)
        frame.sample_rate, frame.pts = 48000, 0
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    with pytest.raises(VideoError, match="no video in it, only audio"):
        read(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    "name", ["clip.avi", "clip.txt", "clip", "clip.png", "ein Film – ü 片.mp4", "100%03d.mp4"]
)
def test_a_file_is_read_by_what_it_holds_whatever_its_name(name: str, tmp_path: Path) -> None:
    video = clip()
    write(video, tmp_path / "a.mkv", encoding=Encoding(lossless=True))
    (tmp_path / "a.mkv").rename(tmp_path / name)
    assert np.array_equal(read(tmp_path / name).frames, video.frames)


def test_sound_in_an_unknown_codec_is_left_aside(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.avi"), "w") as file:
        stream = file.add_stream("mjpeg", rate=25)
        sound = file.add_stream("pcm_s16le", rate=48000)
        assert isinstance(stream, av.VideoStream)
        assert isinstance(sound, av.AudioStream)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuvj420p"
        file.mux(stream.encode(av.VideoFrame(48, 32, "yuvj420p")))
        file.mux(stream.encode(None))
        frame = av.AudioFrame(format="s16", layout="stereo", samples=1024)
        frame.planes[0].update(bytes(frame.planes[0].buffer_size))
        frame.sample_rate, frame.pts = 48000, 0
        file.mux(sound.encode(frame))
    content = (tmp_path / "a.avi").read_bytes()
    # The tag of plain samples, at the start of the format of the audio stream, becomes one that is nobody's.
    place = content.index(b"strf", content.index(b"auds")) + 8
    assert content[place : place + 2] == b"\x01\x00"
    (tmp_path / "a.avi").write_bytes(content[:place] + b"\xee\xbe" + content[place + 2 :])
    origin = read(tmp_path / "a.avi").origin
    assert origin.sounds == ()
    assert "will not be copied" in origin.remarks[-1]
    assert probe(tmp_path / "a.avi").others == ("audio",)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(VideoError, match="without pictures"):
        read(tmp_path)
    with pytest.raises(VideoError, match="matches no picture"):
        read(tmp_path / "*.png")


def test_pictures_of_two_sizes_are_refused_by_name(tmp_path: Path) -> None:
    for i, size in enumerate([(8, 6), (8, 6), (6, 8)]):
        Image.new("RGB", size).save(tmp_path / f"{i}.png")
    with pytest.raises(VideoError, match=r"2\.png is 6x8, the frames before it are 8x6"):
        read(tmp_path)


def test_pictures_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for i in (1, 2, 9, 10, 11, 100):
        Image.new("L", (4, 4), i).save(tmp_path / f"shot{i}.png")
    assert read(tmp_path).frames[:, 0, 0, 0].tolist() == [1, 2, 9, 10, 11, 100]
    assert read(tmp_path / "shot1*.png").frames[:, 0, 0, 0].tolist() == [1, 10, 11, 100]


def test_a_picture_of_absurd_size_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    # Pillow has a bound of its own on the area; ours is lower, and there is one on the sides.
    for size, said in [
        ((60000, 60000), "Image size"),
        ((20000, 10), "20000x10"),
        ((9000, 9000), "9000x9000"),
    ]:
        (tmp_path / "a.png").write_bytes(png_header(*size))
        with pytest.raises(VideoError, match=said):
            read(tmp_path / "a.png")
        with pytest.raises(VideoError, match=said):
            read_picture(tmp_path / "a.png")


def test_a_video_of_absurd_size_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    write(clip(), tmp_path / "a.gif")
    content = bytearray((tmp_path / "a.gif").read_bytes())
    content[6:10] = b"\xff\xff\xff\xff"
    (tmp_path / "a.gif").write_bytes(content)
    with pytest.raises(VideoError):
        read(tmp_path / "a.gif")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_told_so(tmp_path: Path) -> None:
    write(clip(), tmp_path / "a.mp4").chmod(0)
    with pytest.raises(VideoError, match="no permission"):
        read(tmp_path / "a.mp4")


def test_scratch_gets_a_mapped_file_that_leaves_nothing_behind(tmp_path: Path) -> None:
    path = write(clip(), tmp_path / "a.mkv", encoding=Encoding(lossless=True))
    video = read(path, scratch=tmp_path / "scratch")
    assert isinstance(video.frames, np.memmap)
    assert isinstance(video[1:3].frames, np.memmap)
    assert np.array_equal(video.frames, clip().frames)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_clip_too_big_for_memory_goes_to_a_mapped_file() -> None:
    big = np.zeros((3, 40, 40), np.uint8)
    with reading._FrameSpool(None, in_memory=3 * big.nbytes) as reel:
        for i in range(7):
            reel.add(big + np.uint8(i), big[:1] + np.uint8(i), Path("frame"))
        frames, alpha = reel.developed()
    assert isinstance(frames, np.memmap)
    assert frames.shape == (7, 3, 40, 40)
    assert frames[:, 0, 0, 0].tolist() == list(range(7))
    assert alpha is not None
    assert alpha[:, 0, 9, 9].tolist() == list(range(7))


def test_alpha_that_comes_late_makes_the_frames_before_it_opaque(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    Image.new("RGBA", (4, 4), (0, 0, 0, 9)).save(tmp_path / "2.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "3.png")
    alpha = read(tmp_path).alpha
    assert alpha is not None
    assert alpha[:, 0, 0, 0].tolist() == [255, 9, 255]


def test_one_frame_is_read_alone(tmp_path: Path) -> None:
    path = write(clip(), tmp_path / "a.mkv", encoding=Encoding(lossless=True))
    assert np.array_equal(np.moveaxis(read_frame(path, 3), -1, 0), clip().frames[3])
    with pytest.raises(VideoError, match="no frame 5: its 5 frames are 0 to 4"):
        read_frame(path, 5)


def test_a_picture_is_a_clip_of_one_frame(tmp_path: Path) -> None:
    heard: list[Event] = []
    Image.new("RGB", (6, 4), (1, 2, 3)).save(tmp_path / "a.png")
    video = read(tmp_path / "a.png", listen=heard.append)
    assert video.frames[0, :, 0, 0].tolist() == [1, 2, 3]
    assert [event for event in heard if isinstance(event, Notice) and "25 pictures a second" in event.text]


# Rounding to 8 bits: half a step in luma and both chroma, seen through the matrix.
STEPS_OF_ROUNDING = 2


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    ("matrix", "red", "blue"),
    [(1, 0.2126, 0.0722), (5, 0.299, 0.114), (6, 0.299, 0.114), (9, 0.2627, 0.0593)],
)
def test_colours_follow_the_tagged_matrix_and_range(
    matrix: int, red: float, blue: float, full: bool, bits: int, tmp_path: Path
) -> None:
    # The colours go in by the formula of the standards, stated here a second time.
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 128, 250], [128] * 3, [0] * 3, [255] * 3])
    r, g, b = (colours / 255).T
    y = red * r + (1 - red - blue) * g + blue * b
    cb, cr = (b - y) / (2 - 2 * blue), (r - y) / (2 - 2 * red)
    top, step = 2**bits - 1, 2 ** (bits - 8)
    planes = [y * top, cb * top + 128 * step, cr * top + 128 * step]
    if not full:
        planes = [(16 + 219 * y) * step, (128 + 224 * cb) * step, (128 + 224 * cr) * step]
    frame = av.VideoFrame(7 * 8, 16, "yuv444p" if bits == 8 else "yuv444p10le")
    for plane, values in zip(frame.planes, planes, strict=True):
        kind = np.uint8 if bits == 8 else np.uint16
        rows = np.zeros((16, plane.line_size // np.dtype(kind).itemsize), kind)
        rows[:, : 7 * 8] = np.clip(np.rint(values), 0, top).repeat(8)
        plane.update(rows.tobytes())
    with av.open(str(tmp_path / "a.mkv"), "w") as file:
        stream = file.add_stream("ffv1", rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 56, 16, frame.format.name
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    video = read(tmp_path / "a.mkv")
    read_back = video.frames[0, :, 8, 4::8].T.astype(int)
    assert np.abs(read_back - colours).max() <= (STEPS_OF_ROUNDING if bits == 8 else 0) + full
    assert (video.origin.full_range, video.origin.bits, video.origin.guessed_matrix) == (full, bits, "")


@pytest.mark.parametrize(("height", "matrix"), [(480, "smpte170m"), (720, "bt709")])
def test_an_untagged_file_is_told_to_be_guessed_by_its_height(
    height: int, matrix: str, tmp_path: Path
) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 32, height, "yuv420p"
        file.mux(stream.encode(av.VideoFrame(32, height, "yuv420p")))
        file.mux(stream.encode(None))
    origin = read(tmp_path / "a.mp4").origin
    assert origin.matrix == ""
    assert origin.guessed_matrix == matrix
