"""The page's clips when requests come side by side: nobody gets another's picture, nothing is made twice."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, final

import anyio
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="the extra `web` is not installed")

from retouch.apps.web.clips import Clips
from retouch.events import Advanced, Listener
from retouch.identity import file_stamp
from retouch.media.io import write_picture

CLIP = "a" * 64
PATIENCE = 120
"""Seconds that a busy machine may take."""


@final
class Hand:
    """A worker of which a test says what each job does."""

    def __init__(self, **jobs: Callable[..., object]) -> None:
        self.jobs = jobs
        self.asked: list[str] = []

    def call(self, job: str, given: Mapping[str, Any], **how: Any) -> object:
        self.asked.append(job)
        return self.jobs[job](given, **how)

    def close(self) -> None:
        """Hold nothing."""


@pytest.fixture
def clips() -> Iterator[Clips]:
    made = Clips()
    place = made.folder / CLIP
    place.mkdir()
    facts = {"id": CLIP, "name": "clip.mp4", "rate": "25", "frames": 8, "width": 4, "height": 4}
    (place / "source").touch()
    facts |= {"path": str(place / "source"), "stamp": file_stamp(place / "source")}
    (place / "clip.json").write_text(json.dumps(facts))
    yield made
    made.close()


def set_hands(clips: Clips, hand: Hand) -> Hand:
    clips.eyes.close()
    clips.eyes = clips.copier = hand  # type: ignore[assignment]
    return hand


def until(true: Callable[[], object]) -> None:
    assert any(true() or threading.Event().wait(0.01) for _ in range(100 * PATIENCE))


def test_pictures_that_are_asked_for_at_once_each_reach_whoever_asked(clips: Clips) -> None:
    together = threading.Barrier(4, timeout=PATIENCE)

    def carry(given: Mapping[str, Any], **_: object) -> None:
        together.wait()
        Path(given["out"]).write_text(str(given["frame"]))
        together.wait()

    set_hands(clips, Hand(carry=carry))
    found: dict[int, bytes] = {}

    async def ask(frame: int) -> None:
        found[frame] = await clips.carry(CLIP, frame, {})

    async def ask_all() -> None:
        async with anyio.create_task_group() as group:
            for frame in range(4):
                group.start_soon(ask, frame)

    anyio.run(ask_all)
    assert found == {frame: str(frame).encode() for frame in range(4)}
    assert [path.name for path in clips.folder.iterdir()] == [CLIP]


def test_a_copy_is_made_once_however_many_ask_and_is_not_made_again(clips: Clips) -> None:
    go_on = threading.Event()

    def proxy(given: Mapping[str, Any], *, listen: Listener, **_: object) -> None:
        listen(Advanced("proxy", 1, 2))
        assert go_on.wait(PATIENCE)
        Path(given["out"]).touch()

    hand = set_hands(clips, Hand(proxy=proxy))
    askers = [threading.Thread(target=clips.start_proxy, args=(CLIP,)) for _ in range(8)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    until(lambda: clips.start_proxy(CLIP) == 0.5)
    go_on.set()
    until(lambda: clips.start_proxy(CLIP) is None)
    assert hand.asked == ["proxy"]


def test_a_clip_that_is_forgotten_is_not_copied_on(clips: Clips) -> None:
    begun, stopped_at_last = threading.Event(), threading.Event()

    def proxy(given: Mapping[str, Any], *, stopped: Callable[[], bool], **_: object) -> None:
        del given
        begun.set()
        until(stopped)
        stopped_at_last.set()

    set_hands(clips, Hand(proxy=proxy))
    assert clips.start_proxy(CLIP) == 0
    assert begun.wait(PATIENCE)
    clips.forget(CLIP)
    assert stopped_at_last.wait(PATIENCE)
    until(lambda: not clips.progress)


def test_what_is_being_written_or_forgotten_is_in_no_list(clips: Clips) -> None:
    (clips.folder / ".aside.draft").mkdir()
    (clips.folder / ".aside.draft/clip.json").write_text("{}")
    keys = clips.folder / CLIP / "keys"
    keys.mkdir()
    (keys / "3.png").touch()
    (keys / ".3.0f0f.draft.png").touch()
    assert [clip["id"] for clip in clips.listed()] == [CLIP]
    assert list(clips.about(CLIP)["painted"]) == [3]


def test_a_clip_is_listed_while_its_file_is_the_same_and_what_earlier_versions_kept_too(clips: Clips) -> None:
    about = clips.folder / CLIP / "clip.json"
    facts = json.loads(about.read_text())
    about.write_text(json.dumps({name: fact for name, fact in facts.items() if name != "stamp"}))
    assert [clip["id"] for clip in clips.listed()] == [CLIP]
    about.write_text(json.dumps(facts))
    Path(facts["path"]).write_bytes(b"another clip")
    assert clips.listed() == []


def test_paint_that_is_forgotten_while_it_is_laid_stays_forgotten(clips: Clips, tmp_path: Path) -> None:
    begun = threading.Event()

    def compose(given: Mapping[str, Any], **_: object) -> None:
        begun.set()
        Path(given["out"]).touch()

    set_hands(clips, Hand(compose=compose, still=lambda given, **_: Path(given["out"]).touch()))
    layer = write_picture(np.zeros((4, 4, 4), np.uint8), tmp_path / "layer.png")

    async def both() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(clips.paint, CLIP, 2, layer.read_bytes(), "")
            while not begun.is_set():
                await anyio.sleep(0.001)
            group.start_soon(clips.unpaint, CLIP, 2)

    anyio.run(both)
    assert clips.about(CLIP)["painted"] == {}


def test_a_still_that_was_looked_at_again_is_kept_longer(
    clips: Clips, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retouch.apps.web.clips.STILLS", 4)

    def still(given: Mapping[str, Any], **_: object) -> None:
        Image.new("RGB", (4, 4)).save(given["out"])

    set_hands(clips, Hand(still=still))
    for frame in (0, 1, 2, 3, 0, 4):
        path = anyio.run(clips.still, CLIP, frame)
        assert path.exists()
    kept = sorted(int(path.stem) for path in (clips.folder / CLIP / "stills").iterdir())
    assert kept == [0, 2, 3, 4]
