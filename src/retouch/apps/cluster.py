"""A batch on a Ray cluster: a task a group, which any node may carry out, as often as nodes are lost.

The cluster has no logic of its own about editing: a task makes the same attempts as a worker of the pool, in
the same folder, which all nodes must see. What travels is JSON text and paths. Imports Ray when it is used.
"""

import contextlib
import importlib
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from retouch import __version__, registry
from retouch.apps.batch_attempt import DROPPED, HELD, STARVED, attempt
from retouch.apps.batch_folder import BatchFolder
from retouch.apps.batch_pool import END_AFTER, LOOK_AGAIN, RowEnded, order_of
from retouch.apps.batch_rows import Row, estimate_row
from retouch.errors import (
    Cancelled,
    PluginError,
    RequestError,
    ResourceError,
    RetouchError,
    VideoError,
    error_as_json,
)
from retouch.events import Listener, Notice, ignore
from retouch.files import replace_whole
from retouch.places import usable_home

LOCAL: Final = "local"
"""The cluster that is started here and ends with the batch."""
AHEAD: Final = 2
"""Groups that are handed over for each place where one can run; the rest waits here."""
SHARE: Final = 0.05
"""Share of the time that looks at the folder may take; with more groups they are rarer."""
_REPORTS: Final = {"RAY_USAGE_STATS_ENABLED": "0"}
_TOKENS: Final = {"RAY_AUTH_MODE": "token"}
_LOOPBACK: Final = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""What has Ray listen on this machine's own address alone, as it does where it knows no clusters."""
_KNOCK: Final = (
    "import sys, ray._raylet as r; r.GcsClient(sys.argv[1]).internal_kv_keys(b'', None, timeout=20)"
)
"""A call that a cluster answers only to those whom it trusts."""


def carry_out_there(
    groups: Sequence[Sequence[Row]],
    folder: BatchFolder,
    *,
    address: str,
    workers: int | None,
    gpus: float | None,
    trust_network: bool,
    silence: float,
    listen: Listener,
    stopped: Callable[[], bool],
) -> Iterator[RowEnded]:
    """Carry out rows on a cluster, and yield each with its outcome.

    Raises:
        RequestError: Ray is not installed, or the cluster lets anybody in who reaches it.
        PluginError: a node runs another version of retouch or of a plug-in.
    """
    with connected_ray(address, workers=workers, trust_network=trust_network) as ray:
        tasks = GroupTasks(ray, groups, folder, gpus=gpus, silence=silence, listen=listen)
        try:
            yield from tasks.carry_out(stopped)
        finally:
            tasks.cancel()


def carry_out_group(versions: Mapping[str, str], orders: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Carry out the rows of a group in a process of a node, and return their outcomes with the node's name.

    A task that is cancelled hears an interrupt, as an edit at the terminal does, and goes on another time.
    """
    here = versions_here()
    if here != dict(versions):
        return {"foreign": here}
    node = importlib.import_module("ray").get_runtime_context().get_node_id()
    return {"node": node, "outcomes": [_tried(order) for order in orders]}


def _tried(order: dict[str, Any]) -> dict[str, Any]:
    """Return the outcome of a row, or what an attempt said in its place, with the row's key."""
    try:
        outcome = attempt(listen=ignore, stopped=lambda: False, **order)
    except Cancelled:
        raise
    except RetouchError as error:  # what it is could not even be written down
        outcome = {"state": "failed", **error_as_json(error)}
    return {**outcome, "key": order["key"]}


def versions_here() -> dict[str, str]:
    """Return the versions of retouch and of the plug-ins of this process."""
    found = {entry.name: entry.dist for entry in registry.plugins().values()}
    return {"retouch": __version__, **{name: dist.version if dist else "" for name, dist in found.items()}}


# --- connecting


@contextlib.contextmanager
def connected_ray(address: str, *, workers: int | None = None, trust_network: bool = False) -> Iterator[Any]:
    """Give Ray, connected to a cluster: one at an address, one that it finds itself, or one that is started.

    One that is started listens here alone, has tokens, and neither dashboard nor reports of its use.
    """
    local = address == LOCAL
    with _environment({**_REPORTS, **(_TOKENS | _LOOPBACK | _own_token() if local else {})}):
        try:
            ray = importlib.import_module("ray")
        except ImportError:
            raise RequestError("Ray is not installed", hint="pip install 'retouch[cluster]'") from None
        started = {"include_dashboard": False, "num_cpus": workers}
        if ours := not ray.is_initialized():
            _connect(ray, started if local else {"address": address})
        try:
            if not (local or trust_network):
                check_closed(ray.get_runtime_context().gcs_address)
            yield ray
        finally:
            if ours:
                ray.shutdown()


def _connect(ray: Any, where: Mapping[str, object]) -> None:
    """Connect, and have whoever listened to signals before listen to them still: Ray takes them over."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(log_to_driver=False, logging_level="error", **where)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise RequestError(
            f"the cluster cannot be used: {_last_line(error)}",
            hint="Is it up, and are RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH set as on its nodes?",
        ) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, listener in before.items():
                signal.signal(number, listener)


def _last_line(error: Exception) -> str:
    said = str(error).strip().splitlines()
    return said[-1].strip() if said else type(error).__name__


def check_closed(address: str) -> None:
    """Refuse a cluster that answers whoever reaches it.

    Raises:
        RequestError: it asks for no token, or does not say that it does.
    """
    without = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    knocked = subprocess.run(
        [sys.executable, "-c", _KNOCK, address],
        env={**without, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        check=False,
    )
    if knocked.returncode == 0 or "InvalidAuthToken" not in knocked.stderr:
        raise RequestError(
            f"the cluster at {address} asks nobody for a token: whoever reaches it can use its machines",
            hint="Start its nodes with RAY_AUTH_MODE=token, or say --trust-network.",
        )


def _own_token() -> dict[str, str]:
    """Return where the token of clusters lies that are started here; nobody but its owner may read it."""
    path = usable_home() / "ray-token"
    if not path.exists():
        with contextlib.suppress(VideoError), replace_whole(path) as draft:  # another may be quicker
            draft.touch(mode=0o600)
            draft.write_text(secrets.token_hex(32), encoding="ascii")
    path.chmod(0o600)
    return {"RAY_AUTH_TOKEN_PATH": str(path)}


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables while the block runs, and put back what was there."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})


# --- handing groups over


@final
@dataclass(frozen=True)
class Handed:
    """A group that was handed over."""

    left: deque[Row]
    """Rows that are not known to have ended, in the order in which the task comes to them."""
    size: int

    @property
    def spare(self) -> int:
        """How many rows another task could do as well: none of a group that is at its first one."""
        return len(self.left) - 1 if 0 < len(self.left) < self.size else 0


@final
class GroupTasks:
    """The groups of a batch as tasks: what waits, what is handed over, and how rows end."""

    def __init__(
        self,
        ray: Any,
        groups: Sequence[Sequence[Row]],
        folder: BatchFolder,
        *,
        gpus: float | None,
        silence: float,
        listen: Listener,
    ) -> None:
        self.ray, self.folder, self.silence, self.listen = ray, folder, silence, listen
        # In the decorator: Ray ends the process after each task on a GPU unless it is told here not to.
        self.task = ray.remote(max_calls=0, max_retries=-1, retry_exceptions=False)(carry_out_group)
        self.session = secrets.token_hex(8)
        """Marks the attempts of this driver: when it dies its tasks do, and no row is to blame for that."""
        self.versions = versions_here()
        self.waiting = deque(groups)
        self.handed: dict[Any, Handed] = {}
        self.held: dict[str, Row] = {}
        """Rows that another process was at work on."""
        self.last_node: dict[tuple[str, ...], str] = {}
        """Where a group with these models ran last."""
        self.given_gpus = gpus
        self.look_at = self.silent_at = 0.0
        self.largest: dict[str, float] = {}
        self.places = 1

    def carry_out(self, stopped: Callable[[], bool]) -> Iterator[RowEnded]:
        """Hand groups over, a few at a time, and yield rows as they end."""
        while (self.waiting or self.held or self._busy()) and not stopped():
            if time.monotonic() >= self.look_at:
                yield from self._look()
            while self.waiting and self._busy() < AHEAD * self.places:
                self._hand_over(self.waiting.popleft())
            if not self.waiting and self._busy() < self.places:
                self._split_longest()
            if not self._busy():
                time.sleep(LOOK_AGAIN)
                continue
            self.ray.wait(list(self.handed), timeout=LOOK_AGAIN)
            ready, _ = self.ray.wait(list(self.handed), num_returns=len(self.handed), timeout=0)
            for reference in ready:
                yield from self._ended(reference)

    def cancel(self) -> None:
        """Have every task stop at a checkpoint, then by force; the rows are left to go on another time."""
        references = list(self.handed)
        with contextlib.suppress(self.ray.exceptions.RayError):  # a cluster that is gone does nothing more
            for force, patience in ((False, END_AFTER), (True, 1.0)):
                for reference in references:
                    self.ray.cancel(reference, force=force)
                if references:
                    _, references = self.ray.wait(references, num_returns=len(references), timeout=patience)
        for handed in self.handed.values():
            for row in handed.left:
                self.folder.excuse(row.key)

    def _busy(self) -> int:
        return sum(1 for handed in self.handed.values() if handed.left)

    def _look(self) -> list[RowEnded]:
        """Return the rows that ended meanwhile, and see what became of the cluster and of others' rows."""
        began, ended = time.monotonic(), list[RowEnded]()
        for handed in self.handed.values():
            while handed.left and (outcome := self.folder.outcome(handed.left[0].key)):
                ended.append((handed.left.popleft(), outcome))
        for key in list(self.held):
            if outcome := self.folder.outcome(key):
                ended.append((self.held.pop(key), outcome))
            elif self.folder.is_free(key, self.silence):
                self.waiting.appendleft([self.held.pop(key)])
        if began >= self.silent_at:
            self._pass_on_silent()
            self.silent_at = began + self.silence / 3
        self._see_nodes()
        now = time.monotonic()
        self.look_at = now + max(LOOK_AGAIN, (now - began) / SHARE)
        return ended

    def _see_nodes(self) -> None:
        """Count the places where a group can run now, and note what the largest node has of each kind."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        self.largest = {
            kind: max((n.get(kind, 0.0) for n in nodes), default=0.0) for kind in ("CPU", "GPU", "memory")
        }
        kind, share = ("GPU", self.gpus) if self.gpus else ("CPU", 1.0)
        self.places = max(1, int(sum(node.get(kind, 0.0) // share for node in nodes)))

    @property
    def gpus(self) -> float:
        """The share of a graphics card that a task has: a whole one, where there are any."""
        return float(self.largest["GPU"] > 0) if self.given_gpus is None else self.given_gpus

    def _pass_on_silent(self) -> None:
        """Hand over once more what a task has left that froze over a row; it may never end."""
        for handed in list(self.handed.values()):
            if handed.left and self.folder.is_silent(handed.left[0].key, self.silence):
                self.listen(Notice(f"{handed.left[0].key}: its worker shows no sign; another takes it over"))
                self.waiting.appendleft(list(handed.left))
                handed.left.clear()

    def _hand_over(self, group: Sequence[Row], *, alone: bool = False) -> None:
        """Make a task of a group; one that runs alone takes all cores of the largest machine."""
        widest = max(group, key=lambda row: row.work)
        most = max(1.0, self.largest["CPU"])
        needs: dict[str, Any] = {
            "num_gpus": self.gpus,
            "num_cpus": most if alone else min(most, max(1, widest.request.compute.threads)),
            "memory": min(estimate_row(widest)[0], int(self.largest["memory"])),
        }
        if node := self.last_node.get(widest.models):
            strategies = self.ray.util.scheduling_strategies
            needs["scheduling_strategy"] = strategies.NodeAffinitySchedulingStrategy(
                node, soft=True, _spill_on_unavailable=True
            )
        orders = [{**order_of(row, self.folder, self.silence), "session": self.session} for row in group]
        reference = self.task.options(**needs).remote(self.versions, orders)
        self.handed[reference] = Handed(deque(group), len(group))

    def _split_longest(self) -> None:
        """Hand the later half of a group over once more, from its end, where places are free."""
        longest = max(self.handed.values(), key=lambda handed: handed.spare, default=None)
        if longest and longest.spare:
            self._hand_over([longest.left.pop() for _ in range((longest.spare + 1) // 2)])

    def _ended(self, reference: Any) -> Iterator[RowEnded]:
        """Yield the rows of a task that ended; those without an outcome wait for one."""
        node, outcomes = self._told(reference)
        left = {row.key: row for row in self.handed.pop(reference).left}
        for outcome in outcomes:
            row = left.get(outcome["key"])
            if row is None:  # known already, or left to another task
                continue
            self.last_node[row.models] = node
            if outcome["state"] == DROPPED:
                self.listen(Notice(f"{row.key} was taken over by another worker"))
            if outcome["state"] in (HELD, DROPPED):
                self.held[row.key] = row
            elif outcome["state"] == STARVED:
                self._hand_over([row], alone=True)
            else:
                yield row, outcome

    def _told(self, reference: Any) -> tuple[str, list[dict[str, Any]]]:
        """Return the node on which a task ended, and the outcomes that it brought."""
        try:
            told = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            raise ResourceError(
                f"the cluster cannot carry out rows: {_last_line(error)}",
                hint="Is retouch installed on every node? Start the batch again when it is.",
            ) from None
        if "foreign" in told:
            raise PluginError(
                f"a node of the cluster has {told['foreign']}, and here is {self.versions}",
                hint="Install the same versions everywhere.",
            )
        return told["node"], told["outcomes"]
