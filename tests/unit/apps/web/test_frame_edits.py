"""Frames that are edited by words: answers wait to be taken, and nothing of what was stopped comes back."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast, final

import anyio
import pytest

pytest.importorskip("starlette", reason="the extra `web` is not installed")

from retouch.apps.queue import Queue
from retouch.apps.web.clips import Clips, NotThere
from retouch.apps.web.frame_edits import MOST, FrameEdit, FrameEdits
from retouch.apps.worker import Worker
from retouch.errors import Cancelled, MethodError, RequestError
from retouch.events import Advanced, Listener
from retouch.identity import file_stamp

CLIP = "a" * 64
PATIENCE = 120
"""Seconds that a busy machine may take."""


@final
class Editor:
    """A worker that finds nothing to refuse, and writes or raises once it is let go."""

    def __init__(self) -> None:
        self.go_on, self.fault = threading.Event(), cast("Exception | None", None)

    def call(
        self,
        job: str,
        given: Mapping[str, Any],
        *,
        listen: Listener = print,
        stopped: Callable[[], bool] = bool,
        **_: object,
    ) -> object:
        if job != "edit_frame":
            return None
        listen(Advanced("edit picture", 1, 4))
        while not self.go_on.wait(0.01):
            if stopped():
                raise Cancelled("it was stopped")
        if self.fault:
            raise self.fault
        Path(given["out"]).write_text(given["asked"]["prompt"])
        return None

    def close(self) -> None:
        """Hold nothing."""


@pytest.fixture
def editor() -> Editor:
    return Editor()


@pytest.fixture
def edits(editor: Editor) -> Iterator[FrameEdits]:
    clips = Clips()
    for worker in (clips.eyes, clips.copier):
        worker.close()
    clips.eyes = clips.copier = editor  # type: ignore[assignment]
    place = clips.folder / CLIP
    place.mkdir()
    facts = {"id": CLIP, "name": "clip.mp4", "rate": "25", "frames": 40, "width": 4, "height": 4}
    (place / "source").touch()
    facts |= {"path": str(place / "source"), "stamp": file_stamp(place / "source")}
    (place / "clip.json").write_text(json.dumps(facts))
    made = FrameEdits(clips, Queue(worker=cast("Callable[[], Worker]", lambda: editor)), ())
    yield made
    editor.go_on.set()
    until(lambda: all(work.is_over for work in made.at_work.values()))


def until(true: Callable[[], object]) -> None:
    assert any(true() or threading.Event().wait(0.01) for _ in range(100 * PATIENCE))


def begin(edits: FrameEdits, frame: int = 3, prompt: str = "a blue car") -> Path:
    anyio.run(edits.begin, CLIP, FrameEdit(frame=frame, prompt=prompt))
    return edits.clips.folder / CLIP / f"edits/{frame}.json"


def test_an_answer_waits_until_it_is_taken_also_for_the_next_server(
    edits: FrameEdits, editor: Editor
) -> None:
    place = begin(edits)
    until(lambda: edits.about(place)["state"] == "running")
    told = edits.about(place)
    assert (told["stage"], told["share"]) == ("edit picture", 0.25)
    assert told["asked"]["prompt"] == "a blue car"
    editor.go_on.set()
    until(lambda: edits.about(place)["state"] == "done")
    assert place.with_suffix(".png").read_text() == "a blue car"
    assert FrameEdits(edits.clips, edits.queue, ()).about(place)["state"] == "done"
    edits.drop(place)
    assert list(place.parent.iterdir()) == []


def test_what_was_under_way_when_the_server_ended_is_told_as_stopped(edits: FrameEdits) -> None:
    place = begin(edits)
    told = FrameEdits(edits.clips, edits.queue, ()).about(place)
    assert (told["state"], told["asked"]["frame"]) == ("stopped", 3)


def test_an_edit_that_fails_says_why_and_may_be_tried_again(edits: FrameEdits, editor: Editor) -> None:
    editor.fault = MethodError("the edit changes nothing", hint="other words")
    editor.go_on.set()
    place = begin(edits)
    until(lambda: edits.about(place)["state"] == "failed")
    told = edits.about(place)
    assert (told["error"], told["hint"]) == ("the edit changes nothing", "other words")
    editor.fault = None
    begin(edits)
    until(lambda: edits.about(place)["state"] == "done")


def test_an_edit_that_was_stopped_leaves_nothing_to_one_that_follows(
    edits: FrameEdits, editor: Editor
) -> None:
    place = begin(edits, prompt="first")
    until(lambda: edits.about(place)["state"] == "running")
    first = edits.at_work[place]
    edits.drop(place)
    begin(edits, prompt="second")
    editor.go_on.set()
    until(lambda: edits.about(place)["state"] == "done")
    until(lambda: first.is_over)
    assert place.with_suffix(".png").read_text() == "second"
    assert len(list(place.parent.iterdir())) == 2


def test_an_edit_of_a_clip_that_is_forgotten_stops(edits: FrameEdits) -> None:
    place = begin(edits)
    until(lambda: edits.about(place)["state"] == "running")
    edits.clips.forget(CLIP)
    until(lambda: edits.at_work[place].is_over)
    assert not place.parent.exists()
    with pytest.raises(NotThere):
        begin(edits)


def test_a_frame_is_edited_once_at_a_time_and_no_more_than_sixteen_are(edits: FrameEdits) -> None:
    for frame in range(MOST):
        begin(edits, frame)
    with pytest.raises(RequestError, match="frame 2 is being edited already"):
        begin(edits, 2)
    with pytest.raises(RequestError, match="16 frames are being edited already"):
        begin(edits, MOST)
    edits.drop(edits.clips.folder / CLIP / "edits/2.json")
    begin(edits, MOST)
