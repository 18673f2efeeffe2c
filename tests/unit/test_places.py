"""Where retouch keeps things, and what it says where it cannot."""

import os
import pwd
from pathlib import Path

import pytest

from retouch.errors import ResourceError
from retouch.places import home, offline, usable_home


def test_the_home_is_what_is_asked_for_and_else_in_the_users_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETOUCH_HOME", "some/where")
    assert home() == Path("some/where").absolute()
    monkeypatch.delenv("RETOUCH_HOME")
    monkeypatch.setenv("HOME", "/the/user")
    assert home() == Path("/the/user/.retouch")


def test_a_home_is_made_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETOUCH_HOME", str(tmp_path / "a" / "b"))
    assert usable_home().is_dir()
    assert list(usable_home().iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/under", "/proc/retouch", "x" * 300])
def test_a_home_that_cannot_be_is_told_with_a_way_out(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RETOUCH_HOME", str(tmp_path / place))
    with pytest.raises(ResourceError, match="cannot hold runs and results") as caught:
        usable_home()
    assert "RETOUCH_HOME" in caught.value.hint


def test_a_user_whom_nobody_knows_is_told_what_to_set() -> None:
    unknown = next(
        number for number in range(40_000, 60_000) if number not in {p.pw_uid for p in pwd.getpwall()}
    )
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.environ.pop("HOME", None)
        os.environ.pop("RETOUCH_HOME", None)
        try:
            os.setuid(unknown)
        except PermissionError:
            os._exit(3)
        try:
            home()
        except ResourceError as error:
            os.write(writing, error.hint.encode())
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) == 3:
        pytest.skip("only root can be somebody else")
    assert "RETOUCH_HOME" in os.read(reading, 1000).decode()


@pytest.mark.parametrize(("value", "forbidden"), [("", False), ("0", False), ("no", False), ("1", True)])
def test_the_network_is_forbidden_by_a_word(
    value: str, forbidden: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETOUCH_OFFLINE", value)
    assert offline() is forbidden
