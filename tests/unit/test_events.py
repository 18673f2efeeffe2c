"""Events as JSON."""

import json

import pytest

from retouch.events import (
    Advanced,
    Ended,
    Event,
    Kept,
    Notice,
    Reused,
    Started,
    as_json,
    from_json,
    ignore,
    told_once,
)


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (Notice("slow"), {"event": "notice", "text": "slow"}),
        (Started("fit", 3), {"event": "started", "stage": "fit", "total": 3}),
        (Advanced("fit", 2, 3), {"event": "advanced", "stage": "fit", "done": 2, "total": 3}),
        (Ended("fit"), {"event": "ended", "stage": "fit"}),
        (Reused("atlas", "ab"), {"event": "reused", "kind": "atlas", "key": "ab"}),
        (Kept("atlas", "ab"), {"event": "kept", "kind": "atlas", "key": "ab"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_event_is_plain_json(event: Event, told: dict[str, object]) -> None:
    assert json.loads(json.dumps(as_json(event))) == told
    assert from_json(told) == event


def test_silence_takes_any_event() -> None:
    ignore(Notice("nobody hears"))


def test_a_notice_is_passed_on_once_and_everything_else_each_time() -> None:
    heard: list[Event] = []
    tell = told_once(heard.append)
    for event in (Notice("slow"), Ended("fit"), Notice("slow"), Ended("fit"), Notice("dark")):
        tell(event)
    assert heard == [Notice("slow"), Ended("fit"), Ended("fit"), Notice("dark")]
