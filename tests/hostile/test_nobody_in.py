"""Files, models and packages from strangers: refused at once, with a line that helps."""

import contextlib
import itertools
import os
import signal
import socket
import struct
import subprocess
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from command_line import Shell
from PIL import Image
from watched import watched

from retouch.apps.run_folder import find_folder
from retouch.errors import RequestError, ResourceError, RetouchError, VideoError
from retouch.media.io import read, read_picture, write
from retouch.media.masks import read_masks
from retouch.media.opening import check_length
from retouch.media.pictures import FORMATS
from retouch.media.probe import probe
from retouch.request import EditRequest
from retouch.testing import Bouncing
from retouch.video import Video


def noise(height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


# --- pictures


@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_of_each_promised_format_is_read(kind: str, tmp_path: Path) -> None:
    Image.fromarray(noise()).save(tmp_path / "k", kind)
    assert read_picture(tmp_path / "k").shape == (48, 64, 3)


@pytest.mark.parametrize("kind", ["EPS", "PCX", "TGA", "ICO", "SGI", "MSP", "JPEG2000", "PDF", "XBM"])
def test_a_picture_of_another_format_is_refused_whatever_its_name(kind: str, tmp_path: Path) -> None:
    picture = Image.fromarray(noise())
    (picture.convert("1") if kind in ("XBM", "MSP") else picture).save(tmp_path / "k", kind)
    path = (tmp_path / "k").rename(tmp_path / "k.png")
    for look in (read_picture, read, probe):
        with pytest.raises(VideoError):
            look(path)


def test_postscript_starts_no_other_program(tmp_path: Path) -> None:
    def refused(_: int) -> str:
        for look in (read_picture, read):
            with pytest.raises(VideoError):
                look("k.png")
        return "refused"

    (tmp_path / "in").mkdir()
    Image.fromarray(noise()).save(tmp_path / "in" / "k.png", "EPS")
    watched(refused, range(1), tmp_path / "in").check()


def test_the_watch_sees_what_reaches_out(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"x")
    reaches: list[Callable[[], object]] = [
        outside.read_bytes,
        lambda: outside.open("ab").close(),
        lambda: outside.rename("here"),
        lambda: Path("here").rename(outside),
        outside.unlink,
        lambda: subprocess.run(["true"], check=True),
        lambda: os.system("true"),
        lambda: socket.create_connection(("127.0.0.1", 9)),
    ]

    def work(piece: int) -> str:
        with contextlib.suppress(OSError):
            reaches[piece]()
        return "done"

    seen = watched(work, range(len(reaches)), tmp_path / "in")
    assert seen.said == ["done"] * len(reaches)
    told = " ".join(seen.strange)
    for event in ("open", "os.rename", "os.remove", "subprocess.Popen", "os.system", "socket.connect"):
        assert event in told


def test_the_watch_counts_memory_and_ends_what_hangs(tmp_path: Path) -> None:
    assert watched(lambda _: str(np.ones(1 << 24).mean()), range(1), tmp_path / "in").memory > 1 << 26
    with pytest.raises(AssertionError, match=f"ended by {-signal.SIGPROF}"):
        watched(lambda _: str(all(itertools.count(1))), range(1), tmp_path / "in", patience=0.2)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, bits: int, rows: int) -> bytes:
    """An RGB picture that says `height` and holds `rows`."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0))
    row = b"\0" + bytes(width * 3 * bits // 8)
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(row * rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [8, 16])
def test_a_png_without_all_its_rows_is_refused(bits: int, tmp_path: Path) -> None:
    (tmp_path / "whole.png").write_bytes(png(64, 4096, bits, 4096))
    assert read_picture(tmp_path / "whole.png").shape == (4096, 64, 3)
    (tmp_path / "k.png").write_bytes(png(64, 4096, bits, 300))
    for look in (read_picture, read):
        with pytest.raises(VideoError, match="rows of a PNG are missing"):
            look(tmp_path / "k.png")


# --- what is no file


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


LOOKS: dict[str, Callable[[Path, Video], object]] = {
    "clip": lambda path, _: read(path),
    "probe": lambda path, _: probe(path),
    "picture": lambda path, _: read_picture(path),
    "mask": read_masks,
    "request": lambda path, _: EditRequest.read(path),
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_pipe_in_place_of_a_file_is_refused_at_once(look: str, tmp_path: Path, bouncing: Bouncing) -> None:
    with pytest.raises(RetouchError, match="a named pipe") as caught:
        LOOKS[look](pipe(tmp_path / "p.png"), bouncing.video)
    assert caught.value.exit_code == 2
    with pytest.raises(RetouchError, match="a device"):
        LOOKS[look](Path("/dev/zero"), bouncing.video)


def test_a_pipe_among_pictures_is_refused_at_once(tmp_path: Path, bouncing: Bouncing) -> None:
    write(bouncing.video, tmp_path / "shots")
    inside = sorted((tmp_path / "shots").glob("*.png"))
    for member in (inside[0], inside[-1]):
        kept = member.read_bytes()
        member.unlink()
        with pytest.raises(VideoError, match="a named pipe"):
            read(pipe(member).parent)
        member.unlink()
        member.write_bytes(kept)
    assert len(read(tmp_path / "shots")) == len(bouncing.video)


def test_a_file_of_holes_is_refused_at_once(tmp_path: Path, bouncing: Bouncing) -> None:
    write(bouncing.video, tmp_path / "a.mp4")
    write(bouncing.video[:1], tmp_path / "shots")
    for path in (tmp_path / "a.mp4", *(tmp_path / "shots").glob("*.png")):
        os.truncate(path, 1 << 40)
        for look in LOOKS.values():
            with pytest.raises(RetouchError, match=r"hardly any of its|is larger than"):
                look(path, bouncing.video)


def test_a_request_larger_than_any_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "request.json").write_bytes(b" " * (1 << 23))
    with pytest.raises(RequestError, match="larger than"):
        EditRequest.read(tmp_path / "request.json")


# --- bombs


def gif(width: int, height: int, frames: int) -> bytes:
    """Few bytes a frame: each changes one pixel of a picture that is said to be large."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"\x21\xf9\x04\0\5\0\0\0\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    return head + frame * frames + b";"


def test_a_gif_of_many_huge_frames_is_refused_by_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "a.gif").write_bytes(gif(64, 48, 5))
    assert read(tmp_path / "a.gif").frames.shape == (5, 3, 48, 64)
    (tmp_path / "a.gif").write_bytes(gif(16384, 4096, 1000))
    for look in (read, probe):
        with pytest.raises(VideoError, match="1000 frames of 16384x4096"):
            look(tmp_path / "a.gif")


def test_a_clip_that_the_disk_has_no_room_for_is_refused_by_what_it_says(tmp_path: Path) -> None:
    check_length(tmp_path, 10, 1920, 1080, None)
    check_length(tmp_path, 10, 1920, 1080, tmp_path / "not" / "there")
    statistics = os.statvfs(tmp_path)
    room = statistics.f_bavail * statistics.f_frsize
    frames = room // (3 * 16384 * 4096) + 10
    with pytest.raises((ResourceError, VideoError)):
        check_length(tmp_path, frames, 16384, 4096, tmp_path)


def test_a_video_that_says_more_than_it_holds_is_refused_or_read_as_what_it_is(tmp_path: Path) -> None:
    frames = np.zeros((4, 3, 48, 64), np.uint8)
    path = write(Video(frames, Fraction(10)), tmp_path / "a.mp4")
    content = path.read_bytes()
    for box in (b"stsz", b"stts"):
        at = content.index(box) + (12 if box == b"stsz" else 8)
        path.write_bytes(content[:at] + b"\x7f\xff\xff\xff" + content[at + 4 :])
        with pytest.raises(RetouchError):
            read(path)


# --- run folders from strangers


def test_no_link_in_a_run_folder_is_followed(shell: Shell) -> None:
    outside = shell.folder / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"kept")
    folder = shell.home / "runs" / "foreign"
    folder.mkdir(parents=True)
    (folder / "request.json").write_text(shell("edit", "tint", "clip.mp4", "--dry-run").out)
    for place in (
        "lock",
        "events.jsonl",
        "notices.txt",
        "checkpoint.safetensors",
        ".part",
        "scratch",
        "extras",
    ):
        (folder / place).symlink_to(outside if place in ("scratch", "extras") else outside / "kept")
        with pytest.raises(RequestError, match=f"{place} is a link"):
            find_folder("foreign")
        ended = shell("resume", "foreign")
        assert (ended.code, f"{place} is a link" in ended.err) == (2, True), ended.err
        (folder / place).unlink()
    os.mkfifo(folder / "lock")
    assert shell("runs").code == 0
    assert shell("report", "foreign").code == 2
    (folder / "lock").unlink()
    assert [path.name for path in outside.iterdir()] == ["kept"]
    assert (outside / "kept").read_bytes() == b"kept"
    assert shell("resume", "foreign", "--quiet").code == 0
