"""Damaged files end in a clean error or a clean read: no other exception, no hang, nothing left behind.

Run as a script, this file is the child that reads them, so that a hang or a crash is seen from outside.
"""

import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from retouch.errors import RetouchError
from retouch.media.io import Encoding, read, write
from retouch.media.probe import probe
from retouch.video import Video

PATIENCE = 10.0
# What stays in memory after a thousand files that all failed: caches of libraries, not the files.
GROWTH = 64 << 20


def clip(*, alpha: bool = False) -> Video:
    y, x = np.mgrid[:48, :64]
    frames = np.stack(
        [
            [128 + 60 * np.sin((x + 3 * i) / 9 + c) + 50 * np.cos((y - i) / 7 - 2 * c) for c in range(3)]
            for i in range(6)
        ]
    ).astype(np.uint8)
    return Video(frames, Fraction(10), frames[:, :1].copy() if alpha else None)


def sound_and_pictures(path: Path) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        sound = file.add_stream("libmp3lame", rate=48000)
        assert isinstance(stream, av.VideoStream)
        assert isinstance(sound, av.AudioStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for picture in clip().frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.moveaxis(picture, 0, -1).copy(), "rgb24")))
        file.mux(stream.encode(None))
        for i in range(12):
            frame = av.AudioFrame(format="fltp", layout="stereo", samples=1152)
            for plane in frame.planes:
                plane.update(np.full(1152, 0.1, np.float32).tobytes())
            frame.sample_rate, frame.pts = 48000, i * 1152
            file.mux(sound.encode(frame))
        file.mux(sound.encode(None))


def healthy(folder: Path) -> dict[str, bytes]:
    """One small file of every kind, by name."""
    plain, clear = clip(), clip(alpha=True)
    for name, video, encoding in [
        ("h264.mp4", plain, Encoding()),
        ("h264.mkv", plain, Encoding()),
        ("h264.avi", plain, Encoding()),
        ("rgb.mp4", plain, Encoding(lossless=True)),
        ("hevc.mov", plain, Encoding("hevc")),
        ("vp9.webm", plain, Encoding()),
        ("alpha.webm", clear, Encoding()),
        ("av1.mp4", plain, Encoding("av1")),
        ("alpha.mov", clear, Encoding("prores")),
        ("alpha.mkv", clear, Encoding("ffv1")),
        ("plain.gif", plain, Encoding()),
        ("alpha.apng", clear, Encoding()),
    ]:
        write(video, folder / name, encoding=encoding)
    pictures = [Image.fromarray(np.moveaxis(picture, 0, -1)) for picture in plain.frames]
    for suffix in ("png", "jpg", "tiff", "bmp", "webp"):
        pictures[0].save(folder / f"still.{suffix}")
    pictures[0].convert("CMYK").save(folder / "cmyk.jpg")
    pictures[0].quantize(16).save(folder / "palette.png")
    pictures[0].save(folder / "moving.webp", save_all=True, append_images=pictures[1:], duration=50)
    sound_and_pictures(folder / "sound.avi")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def flip(content: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 3, 10, 40))):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def cut_short(content: bytearray, chance: random.Random) -> None:
    del content[chance.randrange(1, len(content)) :]


def blank(content: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(content))
    stop = min(len(content), start + chance.choice((4, 16, 200)))
    content[start:stop] = bytes(stop - start)


def repeat(content: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(content))
    content[start:start] = content[start : start + chance.choice((8, 64, 500))]


def upset_the_header(content: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 4))):
        content[chance.randrange(min(len(content), 400))] = chance.choice(
            (0, 255, 127, 128, chance.randrange(256))
        )


DAMAGES: list[Callable[[bytearray, random.Random], None]] = [
    flip,
    flip,
    cut_short,
    blank,
    repeat,
    upset_the_header,
]


def damaged(content: bytes, chance: random.Random) -> bytes:
    spoilt = bytearray(content)
    for _ in range(chance.randint(1, 3)):
        chance.choice(DAMAGES)(spoilt, chance)
    return bytes(spoilt)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def inside(folder: str) -> int:
    return len(list(Path(folder).iterdir()))


def child(folder: Path, first: int, count: int) -> None:
    """Reads damaged files one after the other and says a line about each."""
    files = healthy(folder)
    names = list(files)
    opened, left, memory = inside("/proc/self/fd"), inside(tempfile.gettempdir()), 0
    for seed in range(first, first + count):
        name = names[seed % len(names)]
        path = folder / f"damaged{Path(name).suffix}"
        path.write_bytes(damaged(files[name], random.Random(seed)))
        told = []
        for look in (read, probe):
            try:
                look(path)
                told.append("clean")
            except RetouchError as error:
                told.append("refused" if error.hint else "no hint")
            except Exception as error:
                told.append(f"{type(error).__name__}: {error}")
        sys.stdout.write(f"{seed} {name} {'; '.join(told)}\n")
        sys.stdout.flush()
        if seed == first + count // 4:
            memory = resident()
    sys.stdout.write(f"fds {inside('/proc/self/fd') - opened}\n")
    sys.stdout.write(f"files {inside(tempfile.gettempdir()) - left}\n")
    sys.stdout.write(f"growth {resident() - memory}\n")


def watched(folder: Path, first: int, count: int) -> list[str]:
    """The child's lines; it is stopped when it says nothing for longer than anybody should wait."""
    temporary = folder / "tmp"
    temporary.mkdir()
    (folder / "files").mkdir()
    command = [sys.executable, __file__, str(folder / "files"), str(first), str(count)]
    environment = {**os.environ, "TMPDIR": str(temporary), "SVT_LOG": "1"}
    lines: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        heard = time.monotonic()
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.5):
                # The first line takes the imports and the encoders with it.
                if time.monotonic() - heard > (PATIENCE if lines else 120):
                    process.kill()

        watcher = threading.Thread(target=watch)
        watcher.start()
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.strip())
            heard = time.monotonic()
        done.set()
        watcher.join()
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 0, f"ended by {process.returncode} after {lines[-1:]}: {said[-2000:]}"
    assert said == ""
    return lines


def check(lines: list[str], count: int) -> None:
    left = dict(line.split() for line in lines[count:])
    assert int(left["fds"]) == 0
    assert int(left["files"]) == 0
    assert int(left["growth"]) < GROWTH
    outcomes = [line.split(" ", 2) for line in lines[:count]]
    strange = [line for line in outcomes if not set(line[2].split("; ")) <= {"clean", "refused"}]
    assert strange == []
    assert len(outcomes) == count
    # The damage is neither so mild nor so hard that only one way out is ever taken.
    refused = sum("refused" in line[2] for line in outcomes)
    assert count // 4 < refused < count


def test_a_hundred_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    check(watched(tmp_path, 0, 100), 100)


@pytest.mark.slow
def test_two_thousand_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    check(watched(tmp_path, 100, 2000), 2000)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        (name, part)
        for name in ("a.mp4", "a.mov", "a.mkv", "a.webm", "a.avi", "a.gif", "a.apng")
        for part in (0.3, 0.8, 0.97)
    ],
)
def test_a_file_that_lost_its_end_is_never_taken_for_whole(name: str, part: float, tmp_path: Path) -> None:
    path = write(clip(), tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(RetouchError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert caught.value.hint


def test_damage_in_the_middle_is_told_with_its_frame(tmp_path: Path) -> None:
    path = write(clip(), tmp_path / "a.mov", encoding=Encoding(codec="prores"))
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as file:
        place = [packet.pos for packet in file.demux(video=0) if packet.size][3]
    assert place is not None
    content[place + 100 : place + 200] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(RetouchError, match="damaged at frame 3"):
        read(path)


if __name__ == "__main__":
    child(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
