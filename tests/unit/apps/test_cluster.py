"""Which groups go to a cluster when, what becomes of rows that end, wait or freeze; and who may join."""

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from retouch.apps import cluster
from retouch.apps.batch_attempt import HELD, STARVED
from retouch.apps.batch_folder import BatchFolder
from retouch.apps.batch_rows import Row
from retouch.apps.cluster import GroupTasks, versions_here
from retouch.errors import PluginError, RequestError, ResourceError
from retouch.events import Event, ignore
from retouch.request import EditRequest

REQUEST = EditRequest(video=Path("/clip.mp4"), method="paint")


class Lost(Exception):
    """What a cluster raises of itself."""


def near(node: str, *, soft: bool, _spill_on_unavailable: bool) -> str:
    assert soft
    assert _spill_on_unavailable
    return node


@dataclass
class Cluster:
    """As much of Ray as a batch uses; tasks end when they are waited for, as `carry` says."""

    carry: Callable[[int, Sequence[Mapping[str, Any]]], Any]
    cores: float = 1.0
    cards: float = 0.0
    handed: list[tuple[dict[str, Any], list[str]]] = field(default_factory=list)
    cancelled: list[tuple[int, bool]] = field(default_factory=list)
    orders: dict[int, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    frozen: set[int] = field(default_factory=set)
    util: Any = field(
        default_factory=lambda: SimpleNamespace(
            scheduling_strategies=SimpleNamespace(NodeAffinitySchedulingStrategy=near)
        )
    )
    exceptions: Any = field(default_factory=lambda: SimpleNamespace(RayError=Lost))

    def remote(self, **given: object) -> Callable[[object], "Cluster"]:
        assert given == {"max_calls": 0, "max_retries": -1, "retry_exceptions": False}
        return lambda _: self

    def options(self, **needs: Any) -> Any:
        def hand_over(_: object, orders: Sequence[Mapping[str, Any]]) -> int:
            self.handed.append((needs, [order["key"] for order in orders]))
            self.orders[number := len(self.handed)] = orders
            return number

        return SimpleNamespace(remote=hand_over)

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": self.cores, "GPU": self.cards, "memory": 1e9}}]

    def wait(
        self, references: list[int], *, num_returns: int = 1, timeout: float
    ) -> tuple[list[int], list[int]]:
        del timeout
        ready = [one for one in references if one not in self.frozen][:num_returns]
        return ready, [one for one in references if one not in ready]

    def get(self, reference: int) -> Any:
        return self.carry(reference, self.orders[reference])

    def cancel(self, reference: int, *, force: bool) -> None:
        self.cancelled.append((reference, force))


def done(key: str) -> dict[str, Any]:
    return {"key": key, "state": "done"}


def all_done(number: int, orders: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"node": f"node {number}", "outcomes": [done(order["key"]) for order in orders]}


def rows(keys: str, model: str = "A", clip: str = "c") -> list[Row]:
    return [Row(n, key, REQUEST, key, clip, (model,)) for n, key in enumerate(keys, 1)]


@pytest.fixture
def folder(tmp_path: Path) -> BatchFolder:
    folder = BatchFolder(tmp_path)
    folder.prepare([], {})
    return folder


def tasks(
    ray: Cluster,
    folder: BatchFolder,
    *groups: list[Row],
    said: list[Event] | None = None,
    silence: float = 90,
) -> GroupTasks:
    listen = ignore if said is None else said.append
    return GroupTasks(ray, groups, folder, gpus=None, silence=silence, listen=listen)


def ended(made: GroupTasks) -> dict[str, str]:
    return {row.key: outcome["state"] for row, outcome in made.carry_out(lambda: False)}


def test_each_place_has_two_groups_and_a_task_takes_what_its_rows_need(folder: BatchFolder) -> None:
    seen: list[int] = []

    def carry(number: int, orders: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        seen.append(len(ray.handed))
        return all_done(number, orders)

    ray = Cluster(carry, cards=1)
    assert ended(tasks(ray, folder, *(rows(key) for key in "abcde"))) == dict.fromkeys("abcde", "done")
    assert seen[0] == 2
    needs = ray.handed[0][0]
    assert (needs["num_gpus"], needs["num_cpus"]) == (1, 1)
    assert 0 <= needs["memory"] <= 1e9


def test_an_outcome_in_the_folder_is_told_while_its_group_goes_on(folder: BatchFolder) -> None:
    ray = Cluster(all_done, frozen={1})
    made = tasks(ray, folder, rows("ab"))
    folder.publish("a", done("a"))
    told = made.carry_out(lambda: False)
    made.look_at = 0.0
    ray.frozen.clear()
    assert [row.key for row, _ in told] == ["a", "b"]


def test_a_free_place_takes_the_later_half_of_a_group_that_has_begun(folder: BatchFolder) -> None:
    ray = Cluster(all_done, cores=2, frozen={1})
    made = tasks(ray, folder, rows("abcde"))
    told = made.carry_out(lambda: False)
    made._look()
    made._hand_over(made.waiting.popleft())
    made._split_longest()
    assert len(ray.handed) == 1  # its first row makes what the others find
    folder.publish("a", done("a"))
    made.look_at = 0.0
    assert next(told)[0].key == "a"
    assert next(told)[0].key == "e"
    assert ray.handed[1][1] == ["e", "d"]
    ray.frozen.clear()
    assert sorted(row.key for row, _ in told) == ["b", "c", "d"]


def test_a_row_that_another_is_at_work_on_is_asked_for_until_it_ends(folder: BatchFolder) -> None:
    def carry(*_: object) -> dict[str, Any]:
        folder.publish("a", done("a"))
        return {"node": "n", "outcomes": [{"key": "a", "state": HELD}, done("b")]}

    assert ended(tasks(Cluster(carry), folder, rows("ab"))) == {"a": "done", "b": "done"}


def test_a_row_that_starved_gets_all_cores_of_a_machine(folder: BatchFolder) -> None:
    def carry(number: int, _: object) -> dict[str, Any]:
        return {"node": "n", "outcomes": [{"key": "a", "state": STARVED if number == 1 else "done"}]}

    ray = Cluster(carry, cores=8)
    assert ended(tasks(ray, folder, rows("a"))) == {"a": "done"}
    assert [needs["num_cpus"] for needs, _ in ray.handed] == [1, 8]


def test_what_a_frozen_task_holds_goes_to_another(folder: BatchFolder) -> None:
    lease = folder.take("a", "a")
    assert lease
    lease.path.write_text(
        lease.path.read_text().replace(str(os.getpid()), "1").replace('"place": "', '"place": "x')
    )
    os.utime(lease.path, (0, 0))
    ray, said = Cluster(all_done, frozen={1}), list[Event]()
    made = tasks(ray, folder, rows("ab"), said=said)
    made._look()
    made._hand_over(made.waiting.popleft())
    made.look_at = made.silent_at = 0.0
    assert ended(made) == {"a": "done", "b": "done"}
    assert "shows no sign" in str(said[0])
    made.cancel()
    assert ray.cancelled == [(1, False), (1, True)]


def test_a_stop_cancels_what_is_handed_over_and_hands_over_no_more(folder: BatchFolder) -> None:
    ray = Cluster(all_done, frozen={1, 2})
    made = tasks(ray, folder, *(rows(key) for key in "abc"))
    asked = iter([False, True])
    assert list(made.carry_out(lambda: next(asked))) == []
    made.cancel()
    assert [keys for _, keys in ray.handed] == [["a"], ["b"]]
    assert (1, False) in ray.cancelled


def test_a_node_of_another_version_and_a_cluster_that_fails_are_refused(folder: BatchFolder) -> None:
    with pytest.raises(PluginError, match="a node of the cluster has"):
        ended(tasks(Cluster(lambda *_: {"foreign": {"retouch": "0.0.1"}}), folder, rows("a")))

    def fail(*_: object) -> None:
        raise Lost("Traceback\nModuleNotFoundError: No module named 'retouch'")

    with pytest.raises(ResourceError, match="No module named 'retouch'"):
        ended(tasks(Cluster(fail), folder, rows("a")))


def test_a_group_says_nothing_to_whoever_has_other_versions() -> None:
    assert cluster.carry_out_group({"retouch": "0.0.1"}, []) == {"foreign": versions_here()}


def test_the_token_of_a_new_cluster_is_for_its_owner_alone(home: Path) -> None:
    told = cluster._own_token()
    path = Path(told["RAY_AUTH_TOKEN_PATH"])
    assert path.parent == home
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_text()
    assert len(before) == 64
    assert cluster._own_token() == told
    assert path.read_text() == before


def test_variables_are_put_back_after_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    with cluster._environment({"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}):
        assert (os.environ["RAY_AUTH_MODE"], os.environ["RAY_USAGE_STATS_ENABLED"]) == ("token", "0")
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    assert "RAY_USAGE_STATS_ENABLED" not in os.environ


def test_a_cluster_that_does_not_ask_for_tokens_is_refused() -> None:
    with pytest.raises(RequestError, match="asks nobody for a token"):
        cluster.check_closed("127.0.0.1:9")  # nobody answers: then nobody says that tokens are asked for
