"""Whole files and folders: put in place at once, and in the place of nothing that is not ours."""

import errno
import os
from pathlib import Path

import pytest

from retouch.errors import ResourceError, RetouchError, VideoError
from retouch.files import LISTING, check_free, in_our_words, remove, replace_whole, system_error, write_whole


def folder_of_ours(path: Path, *names: str, force: bool = False) -> Path:
    with replace_whole(path, force=force, folder=True) as draft:
        for name in names:
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            (draft / name).write_text(name)
    return path


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_there_when_the_block_has_ended_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with replace_whole(path) as draft:
        draft.write_text("new")
        assert draft.suffix == ".txt"
        assert not path.exists()
    assert (path.read_text(), names_in(tmp_path)) == ("new", ["a.txt"])


def test_a_block_that_fails_leaves_all_as_it_was(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.txt", "old")
    folder_of_ours(tmp_path / "out", "1.png")

    def fail(path: Path, *, folder: bool) -> None:
        with replace_whole(path, force=True, folder=folder) as draft:
            if folder:
                draft.mkdir()
            (draft / "2.png" if folder else draft).write_text("half")
            raise KeyboardInterrupt

    for path, folder in ((tmp_path / "a.txt", False), (tmp_path / "out", True)):
        with pytest.raises(KeyboardInterrupt):
            fail(path, folder=folder)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names_in(tmp_path / "out") == [LISTING, "1.png"]
    assert names_in(tmp_path) == ["a.txt", "out"]


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("there", ["file", "folder", "link"])
def test_what_appears_meanwhile_is_never_replaced_without_force(
    folder: bool, there: str, tmp_path: Path
) -> None:
    path = tmp_path / "out"

    def late() -> None:
        with replace_whole(path, folder=folder) as draft:
            if folder:
                draft.mkdir()
            (draft / "1.png" if folder else draft).write_text("ours")
            if there == "file":
                path.write_text("theirs")
            elif there == "link":
                path.symlink_to("nowhere")
            else:
                path.mkdir()
                (path / "letter").write_text("theirs")

    with pytest.raises(VideoError, match="exists"):
        late()
    assert names_in(tmp_path) == ["out"]
    assert (path.is_symlink(), path.is_file(), path.is_dir()) == (
        there == "link", there == "file", there == "folder",
    )  # fmt: skip
    assert there != "folder" or names_in(path) == ["letter"]


def test_a_folder_of_ours_is_replaced_by_force_and_an_empty_one_is_free(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    folder_of_ours(tmp_path / "out", "1.png", "st/car/1.png")
    with pytest.raises(VideoError, match="exists"):
        folder_of_ours(tmp_path / "out", "2.png")
    folder_of_ours(tmp_path / "out", "2.png", force=True)
    assert names_in(tmp_path / "out") == [LISTING, "2.png"]
    assert names_in(tmp_path) == ["out"]


@pytest.mark.parametrize("other", ["letter.txt", "9.png", "st/letter.txt", "notes/", "1.png", ".hidden"])
def test_a_folder_that_holds_anything_else_is_not_replaced(other: str, tmp_path: Path) -> None:
    out = folder_of_ours(tmp_path / "out", "1.png", "st/2.png")
    if other.endswith("/"):
        (out / other).mkdir()
    else:
        (out / other).write_text("years of work")
    with pytest.raises(VideoError, match=f"holds {other.rstrip('/')}, which retouch did not write"):
        folder_of_ours(out, "3.png", force=True)
    assert (out / other).exists()
    assert (out / "st" / "2.png").exists()


def test_a_link_in_the_place_is_replaced_and_what_it_points_to_stays(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("theirs")
    (tmp_path / "a.txt").symlink_to("letter")
    write_whole(tmp_path / "a.txt", "ours")
    assert ((tmp_path / "letter").read_text(), (tmp_path / "a.txt").read_text()) == ("theirs", "ours")
    kept = folder_of_ours(tmp_path / "kept", "1.png")
    (tmp_path / "out").symlink_to("kept")
    folder_of_ours(tmp_path / "out", "2.png", force=True)
    assert names_in(kept) == [LISTING, "1.png"]
    assert names_in(tmp_path / "out") == [LISTING, "2.png"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("", "'.' is no name for an output"),
        ("none/a.mp4", "there is no folder"),
        ("file/a.mp4", "there is no folder"),
        ("x" * 300 + ".mp4", "is too long"),
        ("folder", "folder is a folder"),
        ("pipe", "is a device or a pipe"),
        ("file", "exists"),
    ],
)
def test_a_place_that_will_not_do_is_refused(path: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(VideoError, match=said) as caught:
        check_free(tmp_path / path if path else Path(), force=path != "file")
    assert caught.value.hint


def test_a_full_disk_names_the_place_that_is_full(tmp_path: Path) -> None:
    told = system_error(OSError(errno.ENOSPC, "No space left on device"), tmp_path / "a.mp4")
    assert isinstance(told, ResourceError)
    assert str(told) == f"no space is left in {tmp_path}, for a.mp4"
    assert "retouch cache prune" in told.hint


def test_an_error_of_the_system_is_told_where_it_names_a_file_and_else_left_alone() -> None:
    told = in_our_words(OSError(errno.EROFS, "Read-only file system", "/there"))
    assert isinstance(told, RetouchError)
    assert str(told) == "no permission for /there"
    assert isinstance(in_our_words(OSError(errno.ENOSPC, "No space left on device")), ResourceError)
    unknown = OSError(errno.ECONNREFUSED, "Connection refused")
    assert in_our_words(unknown) is unknown


def test_removing_what_is_not_there_or_only_a_link_harms_nothing(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "1").touch()
    (tmp_path / "link").symlink_to("kept")
    for name in ("none", "link", "kept/1/under"):
        remove(tmp_path / name)
    assert names_in(tmp_path) == ["kept"]
    remove(tmp_path / "kept")
    assert names_in(tmp_path) == []
