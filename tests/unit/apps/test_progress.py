"""What a person is shown where there is no terminal."""

import pytest

from retouch.apps.progress import in_lines, show_progress
from retouch.events import Advanced, Notice, Started


def test_progress_is_a_line_every_ten_seconds_with_the_time_that_is_left() -> None:
    lines: list[str] = []
    now = [0.0]
    tell = in_lines(lines.append, lambda: now[0])
    tell(Started("edit", 50))
    for step in range(1, 9):
        now[0] = 4.0 * step
        tell(Advanced("edit", step, 50))
    assert lines == ["edit: 3 of 50, about 188 s left\n", "edit: 6 of 50, about 176 s left\n"]


def test_a_stage_that_goes_on_where_it_was_is_judged_by_its_new_steps() -> None:
    lines: list[str] = []
    now = [0.0]
    tell = in_lines(lines.append, lambda: now[0])
    tell(Started("fit", 100))
    for done in (90, 95):
        tell(Advanced("fit", done, 100))
        now[0] = 10.0
    assert lines == ["fit: 95 of 100, about 10 s left\n"]


def test_a_stage_that_begins_late_is_named_at_once() -> None:
    lines: list[str] = []
    now = [0.0]
    tell = in_lines(lines.append, lambda: now[0])
    now[0] = 11.0
    tell(Started("paint", 4))
    tell(Started("paint", 4))
    assert lines == ["paint: 0 of 4\n"]


def test_a_notice_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress() as listen:
        for _ in range(2):
            listen(Notice("guessed"))
    assert capsys.readouterr().err == "notice: guessed\n"


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress(quiet=True) as listen:
        listen(Notice("guessed"))
    assert capsys.readouterr().err == ""
