"""Only regular files are opened, and nothing is waited for."""

import os
import socket
from pathlib import Path

import pytest

from retouch.regular import UnfitFile, check_own, check_regular, open_own, open_regular, read_regular


def test_a_file_is_opened_and_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"four")
    with open_regular(path) as file:
        assert file.read() == b"four"
    assert read_regular(path, 4) == b"four"
    check_regular(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"fours")
    with pytest.raises(UnfitFile, match="larger than 4 bytes"):
        read_regular(path, 4)


def test_a_pipe_a_socket_a_device_and_a_folder_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        kinds = [
            (tmp_path / "pipe", "a named pipe"),
            (tmp_path / "socket", "a socket"),
            (Path("/dev/zero"), "a device"),
            (tmp_path, "a folder"),
        ]
        for path, said in kinds:
            with pytest.raises(UnfitFile, match=said):
                open_regular(path)


def test_a_link_to_a_pipe_is_refused_and_one_to_a_file_is_followed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"x")
    for name in ("pipe", "file"):
        (tmp_path / f"to {name}").symlink_to(tmp_path / name)
    with pytest.raises(UnfitFile):
        check_regular(tmp_path / "to pipe")
    check_regular(tmp_path / "to file")


def test_a_large_file_of_holes_is_refused_and_a_small_one_is_not(tmp_path: Path) -> None:
    for name, size in (("large", 1 << 40), ("small", 1 << 20)):
        with (tmp_path / name).open("wb") as file:
            file.write(b"begins well" * 1000)
            file.truncate(size)
    with pytest.raises(UnfitFile, match="hardly any of its 1099511627776 bytes"):
        check_regular(tmp_path / "large")
    check_regular(tmp_path / "small")


def test_a_folder_of_ours_holds_files_and_folders_only(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "extras").mkdir(parents=True)
    (folder / "extras" / "a").write_bytes(b"")
    check_own(folder)
    for place, target in (("lock", tmp_path / "a"), ("extras/b", tmp_path), ("scratch", tmp_path)):
        (folder / place).symlink_to(target)
        with pytest.raises(UnfitFile, match=f"{place} is a link"):
            check_own(folder)
        (folder / place).unlink()
    os.mkfifo(folder / "lock")
    with pytest.raises(UnfitFile, match="lock is a named pipe"):
        check_own(folder)


def test_a_file_of_ours_is_written_where_it_lies_and_nowhere_else(tmp_path: Path) -> None:
    with open_own(tmp_path / "log", "ab") as file:
        file.write(b"one")
    with open_own(tmp_path / "log", "ab") as file:
        file.write(b"two")
    assert (tmp_path / "log").read_bytes() == b"onetwo"
    with open_own(tmp_path / "log", "wb") as file:
        file.write(b"3")
    assert (tmp_path / "log").read_bytes() == b"3"
    (tmp_path / "link").symlink_to(tmp_path / "log")
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    (tmp_path / "twin").hardlink_to(tmp_path / "log")
    for name in ("link", "gone", "twin"):
        with pytest.raises(OSError, match=r"name|Too many levels"):
            open_own(tmp_path / name, "wb")
    assert (tmp_path / "log").read_bytes() == b"3"
    assert not (tmp_path / "nothing").exists()
