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
from pathlib import Path

import av
import pytest
from damage import clip, damaged, healthy

from retouch.errors import RetouchError
from retouch.media.io import Encoding, read, write
from retouch.media.probe import probe

PATIENCE = 10.0
# What stays in memory after a thousand files that all failed: caches of libraries, not the files.
GROWTH = 64 << 20


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
    paths = os.pathsep.join(
        filter(None, (str(Path(__file__).parents[1] / "plugins"), os.environ.get("PYTHONPATH")))
    )
    environment = {**os.environ, "TMPDIR": str(temporary), "SVT_LOG": "1", "PYTHONPATH": paths}
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
