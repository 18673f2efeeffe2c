"""Which row a worker takes on next, and what a worker's environment says."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from retouch.apps.batch_attempt import HELD, STARVED
from retouch.apps.batch_folder import BatchFolder
from retouch.apps.batch_pool import Schedule, environment_of, graphics_cards, staged
from retouch.apps.batch_rows import Row
from retouch.errors import WorkerEnded
from retouch.events import Advanced, Ended, Event, Started
from retouch.request import EditRequest

REQUEST = EditRequest(video=Path("/clip.mp4"), method="tint")


def rows(clip: str, model: str, *keys: str) -> list[Row]:
    return [Row(n, key, REQUEST, key, clip, (model,)) for n, key in enumerate(keys, 1)]


def schedule(tmp_path: Path, groups: Sequence[Sequence[Row]], *, silence: float = 100.0) -> Schedule:
    folder = BatchFolder(tmp_path)
    folder.prepare([], {})
    return Schedule(groups, folder, silence, lambda: False)


def key(row: Row | None) -> str:
    return row.key if row else ""


def test_a_worker_keeps_to_its_group_and_its_model_and_off_the_clips_of_others(tmp_path: Path) -> None:
    groups = [rows("c", "A", "ca1", "ca2"), rows("d", "A", "da"), rows("c", "B", "cb"), rows("d", "B", "db")]
    plan = schedule(tmp_path, groups)
    assert key(plan.take(1)) == "ca1"
    assert key(plan.take(2)) == "db"  # the other clip, and a model that no other has
    for worker, done, following in ((1, 0, "ca2"), (1, 1, "cb")):
        plan.end(worker, plan.at_work[worker][0])
        assert key(plan.take(worker)) == following, done
    plan.end(2, plan.at_work[2][0])
    assert key(plan.take(2)) == "da"


def test_an_idle_worker_takes_half_of_what_the_busiest_has_left(tmp_path: Path) -> None:
    plan = schedule(tmp_path, [rows("c", "A", *"abcdefg")])
    assert key(plan.take(1)) == "a"
    assert key(plan.take(2)) == "e"
    assert ["".join(key(row) for row in plan.taken[worker]) for worker in (1, 2)] == ["bcd", "fg"]


def test_a_row_that_lacked_something_waits_until_nothing_else_is_at_work(tmp_path: Path) -> None:
    plan = schedule(tmp_path, [rows("c", "A", "a", "b")])
    (a, b) = (plan.take(1), plan.take(2))
    assert a
    assert b
    plan.give_back(1, a, state=STARVED)
    taken: list[Row | None] = []
    thread = threading.Thread(target=lambda: taken.append(plan.take(1)))
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    plan.end(2, b)
    thread.join(10)
    assert taken == [a]


def test_a_row_that_another_process_has_is_looked_at_again(tmp_path: Path) -> None:
    plan = schedule(tmp_path, [rows("c", "A", "a")])
    row = plan.take(1)
    assert row
    plan.give_back(1, row, state=HELD)
    plan.folder.publish("a", {"state": "done"})
    assert plan.take(1) == row
    plan.end(1, row)
    assert plan.take(1) is None


def test_a_row_whose_worker_is_silent_is_taken_over_and_counted_once(tmp_path: Path) -> None:
    plan = schedule(tmp_path, [rows("c", "A", "a")], silence=0.05)
    row = plan.take(1)
    assert plan.take(2) == row
    assert row
    assert plan.end(2, row)
    assert plan.is_through()  # though worker 1 never came back
    assert not plan.end(1, row)


def test_a_worker_that_never_begins_is_not_started_for_ever(tmp_path: Path) -> None:
    plan, error = schedule(tmp_path, []), WorkerEnded("it ended with code 1")
    for _ in range(2):
        plan.count_start(1, error, begun=False)
    plan.count_start(1, error, begun=True)
    for _ in range(2):
        plan.count_start(1, error, begun=False)
    with pytest.raises(WorkerEnded):
        plan.count_start(1, error, begun=False)


def test_each_worker_has_a_card_or_its_share_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert graphics_cards() == ["2", "5"]
    cards = [environment_of(number, 3, ["2", "5"])["CUDA_VISIBLE_DEVICES"] for number in (1, 2, 3)]
    assert cards == ["2", "5", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert graphics_cards() == []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert environment_of(1, 1, []) == {}
    cores = len(os.sched_getaffinity(0))
    assert environment_of(1, cores, []) == {"OMP_NUM_THREADS": "1"}


def test_stages_bear_the_name_of_their_worker_and_none_stays_open() -> None:
    said: list[Event] = []
    with staged(said.append, "worker 1") as tell:
        for event in (Started("fit", 2), Ended("fit"), Started("tint", 2), Advanced("tint", 1, 2)):
            tell(event)
    assert said[0] == Started("worker 1: fit", 2)
    assert said[-1] == Ended("worker 1: tint")
    assert said.count(Ended("worker 1: fit")) == 1
