"""What a run tells the world while it works: frozen values through one `listen` callable.

The command line draws bars from them, the page moves them, the run folder keeps them in `events.jsonl`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, final, get_args


@final
@dataclass(frozen=True)
class Notice:
    """Something the user should know, in a sentence."""

    text: str


@final
@dataclass(frozen=True)
class Started:
    """A stage of `total` steps begins."""

    stage: str
    total: int


@final
@dataclass(frozen=True)
class Advanced:
    """`done` of `total` steps of a stage are behind us."""

    stage: str
    done: int
    total: int

    def seconds_left(self, spent: float, before: int = 0) -> float | None:
        """Return the time that is left, by the steps since `before`; None until there are any."""
        steps = self.done - before
        return spent / steps * (self.total - self.done) if steps > 0 else None


@final
@dataclass(frozen=True)
class Ended:
    """A stage is through."""

    stage: str


@final
@dataclass(frozen=True)
class Reused:
    """A kept result spared the work."""

    kind: str
    key: str


@final
@dataclass(frozen=True)
class Kept:
    """A result was made and kept for the next time."""

    kind: str
    key: str


@final
@dataclass(frozen=True)
class Loaded:
    """A model was loaded; this process will not load it again."""

    model: str
    seconds: float


Event: TypeAlias = Notice | Started | Advanced | Ended | Reused | Kept | Loaded
Listener: TypeAlias = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Listen to nothing; for callers who want silence."""


def told_once(listen: Listener) -> Listener:
    """Return a listener that passes everything on, but no notice a second time."""
    told: set[str] = set()

    def tell(event: Event) -> None:
        if not (isinstance(event, Notice) and event.text in told):
            told.update([event.text] if isinstance(event, Notice) else [])
            listen(event)

    return tell


def as_json(event: Event) -> dict[str, object]:
    """Return an event as plain values, its class under `event`."""
    return {"event": type(event).__name__.lower(), **dataclasses.asdict(event)}


def from_json(told: Mapping[str, Any]) -> Event:
    """Return the event that `as_json` made these values of."""
    kinds = {kind.__name__.lower(): kind for kind in get_args(Event)}
    event: Event = kinds[told["event"]](**{name: value for name, value in told.items() if name != "event"})
    return event
