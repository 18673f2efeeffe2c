"""The ten tasks of the page, by the mouse or the keyboard alone: tests do them, the benchmark times them."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, final

from playwright.sync_api import Locator, Page, expect

PLACES = "[...document.querySelectorAll('#layers .place input')].map((each) => each.value).join()"
"""The page's words for where a picture lies."""
Point: TypeAlias = tuple[float, float]
"""Pixels of the clip from its left and its top."""
PATIENCE: Final = 240.0
"""Seconds that a page may take for anything on a machine that has other work."""


class Job(NamedTuple):
    """What is done to which clip."""

    clip: Path
    logo: Path
    frame: int
    box: tuple[Point, Point]
    seen: int
    """The frame in which the carried paint is looked at, and which is painted second."""


class Hand(Protocol):
    """How a person reaches what is on the page."""

    def press(self, target: Locator) -> None:
        """Have a button, a link or a box do what it does."""

    def go(self, frame: int) -> None:
        """Put the playhead on a frame."""

    def box(self, first: Point, last: Point) -> None:
        """Draw a box around an object."""

    def put(self, middle: Point) -> None:
        """Move the picture that was laid over the frame."""

    def undo(self) -> None:
        """Take the last change back."""

    def split(self) -> None:
        """Move the divider of a comparison."""


class Stage:
    """Places on the stage by pixels of the clip."""

    def __init__(self, page: Page) -> None:
        self.mouse = page.mouse
        self.scale, self.left, self.top = page.evaluate(
            """async () => {
              const { scale, x, y } = (await import('/static/stage.js')).view();
              const box = document.getElementById('stage').getBoundingClientRect();
              return [scale, x, y].map((each) => each / devicePixelRatio)
                .map((each, i) => each + [0, box.left, box.top][i]);
            }"""
        )

    def drag(self, *points: Point) -> None:
        """Press at the first, go to the others, let go at the last."""
        for number, (x, y) in enumerate(points):
            self.mouse.move(self.left + x * self.scale, self.top + y * self.scale)
            if not number:
                self.mouse.down()
        self.mouse.up()


@final
class ByMouse:
    """Clicks and drags, and types nothing."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def press(self, target: Locator) -> None:
        target.click()

    def go(self, frame: int) -> None:
        slider = self.page.get_by_role("slider", name="Frame")
        found, frames = slider.bounding_box(), int(slider.get_attribute("aria-valuemax") or 0) + 1
        assert found
        self.page.mouse.click(found["x"] + (frame + 0.5) / frames * found["width"], found["y"] + 20)

    def box(self, first: Point, last: Point) -> None:
        self.page.get_by_role("radio", name="Box").click()
        Stage(self.page).drag(first, last)

    def put(self, middle: Point) -> None:
        width, height = self.page.evaluate(
            """async () => {
              const { clip } = (await import('/static/store.js')).state;
              return [clip.width, clip.height];
            }"""
        )
        Stage(self.page).drag((width / 2, height / 2), middle)

    def undo(self) -> None:
        self.page.locator("#undo").click()

    def split(self) -> None:
        stage, split = Stage(self.page), self.page.locator("#split")
        before = split.input_value()
        stage.drag((2, 2), (1, 1))
        expect(split).not_to_have_value(before)


@final
class ByKeyboard:
    """Presses keys; each thing that has the keyboard is seen to have it."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def reach(self, target: Locator) -> None:
        """Press Tab until the target has the keyboard."""
        target.wait_for()
        for _ in range(120):
            if outline := target.evaluate(
                "each => each === document.activeElement && getComputedStyle(each).outlineStyle"
            ):
                assert outline != "none"
                return
            self.page.keyboard.press("Tab")
        raise AssertionError("the keyboard does not get there")

    def press(self, target: Locator) -> None:
        self.reach(target)
        box = target.get_attribute("type") == "checkbox"
        self.page.keyboard.press("Space" if box else "Enter")

    def type(self, target: Locator, text: str) -> None:
        """Write into a field in place of what is there."""
        self.reach(target)
        self.page.keyboard.press("Control+a")
        self.page.keyboard.type(f"{text}\n")

    def go(self, frame: int) -> None:
        self.type(self.page.locator("#goto"), str(frame))

    def box(self, first: Point, last: Point) -> None:
        corners = " ".join(f"{x:g},{y:g}" for x, y in (first, last))
        frame = self.page.locator("#goto").input_value()
        self.type(self.page.locator("#mark-text"), f"{frame}:{corners}")

    def put(self, middle: Point) -> None:
        for side, value in zip(("left", "top"), middle, strict=True):
            self.type(self.page.get_by_label(f"Middle, pixels from the {side} of picture"), f"{value:g}")

    def undo(self) -> None:
        self.reach(self.page.locator("#stage"))
        self.page.keyboard.press("Control+z")

    def split(self) -> None:
        self.reach(self.page.locator("#split"))
        self.page.keyboard.press("ArrowRight")
        expect(self.page.locator("#split")).to_have_value("0.51")


def wait_until(page: Page, holds: str, given: Any = None) -> None:
    """Wait until a function of the page's, which may be async, returns what is true.

    `Page.wait_for_function` takes the promise of an async function for true, and waits for nothing.
    """
    last = time.monotonic() + PATIENCE
    while not page.evaluate(holds, given):
        assert time.monotonic() < last, f"in {PATIENCE:.0f} s it never became true: {holds}"
        page.wait_for_timeout(20)


def do_tasks(page: Page, hand: Hand, job: Job, result: Path) -> Iterator[str]:
    """Do one task after another, and yield the name of each once what it leads to is seen."""
    (left, top), (right, bottom) = job.box
    choose(page, hand, page.locator("#open"), job.clip)
    expect(page.locator("#clip option:checked")).to_have_text(job.clip.name)
    expect(page.locator("#exact")).to_have_text("exact")
    yield "open"
    hand.go(job.frame)
    rested(page, job.frame)
    yield "find a frame"
    hand.box((left, top), (right, bottom))
    expect(page.locator("#marks li")).to_have_count(1)
    wait_until(page, "async () => (await import('/static/stage.js')).isCut()")
    yield "box an object"
    choose(page, hand, page.locator("#add-picture"), job.logo)
    hand.put(((left + right) / 2, (top + bottom) / 2))
    expect(page.locator(".keys button")).to_have_text([f"◆{job.frame}"])
    yield "paint a logo"
    expect(page.locator("#plan")).to_contain_text("Needs")
    runs = page.locator("#runs li")
    before = runs.count()
    hand.press(page.locator("#run"))
    expect(runs).to_have_count(before + 1)
    run = runs.first
    expect(run).to_have_class("done")
    yield "run"
    hand.press(page.locator("#carry"))
    hand.go(job.seen)
    wait_until(page, "async () => (await import('/static/stage.js')).isCarried()")
    yield "see it in another frame"
    hand.press(run.get_by_role("button", name="Compare"))
    hand.split()
    wait_until(page, "async () => (await import('/static/stage.js')).isCompared()")
    yield "compare"
    hand.press(page.locator("#comparing").get_by_role("button", name="Close"))
    hand.go(job.frame)
    lies = page.evaluate(f"() => {PLACES}")
    hand.undo()
    page.wait_for_function(f"lies => {PLACES} !== lies && document.querySelector('.place')", arg=lies)
    yield "undo"
    hand.press(page.get_by_role("button", name="Copy picture"))
    hand.go(job.seen)
    hand.press(page.locator("#paste"))
    expect(page.locator(".keys button")).to_have_text([f"◆{at}" for at in sorted((job.frame, job.seen))])
    yield "second key frame"
    with page.expect_download() as download:
        hand.press(run.get_by_role("link", name="Download"))
    download.value.save_as(result)
    yield "download"


def scrub(page: Page, frames: int, every: int) -> None:
    """Go over so many frames of a clip, and rest on each of so many until it is shown exactly."""
    page.evaluate(
        """async ([frames, every]) => {
          const { go } = await import('/static/timeline.js');
          const { clip } = (await import('/static/store.js')).state;
          const painted = () => new Promise((done) => requestAnimationFrame(done));
          for (let n = 0; n < frames; n++) {
            go((7 * n + 1) % clip.frames);
            do await painted();
            while (n % every === 0 && document.getElementById('exact').textContent !== 'exact');
          }
        }""",
        [frames, every],
    )


def heap(page: Page) -> float:
    """Return the megabytes that the page's scripts hold, after a collection."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    session.send("Performance.enable")
    metrics = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
    return float(metrics["JSHeapUsedSize"]) / 1e6


def choose(page: Page, hand: Hand, button: Locator, path: Path) -> None:
    """Give a file to a button that asks for one."""
    with page.expect_file_chooser() as chooser:
        hand.press(button)
    chooser.value.set_files(path)


def rested(page: Page, frame: int) -> None:
    """Wait until a frame is shown exactly."""
    expect(page.get_by_role("slider", name="Frame")).to_have_attribute("aria-valuenow", str(frame))
    expect(page.locator("#exact")).to_have_text("exact")
