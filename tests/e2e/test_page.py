"""The page in Debian's Chromium: a person's way from clip to result, undo, reload, keys, and who is asked."""

import json
import os
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Shell
from page_server import PageServer, page_server

for needed in ("starlette", "uvicorn", "playwright"):
    pytest.importorskip(needed, reason="the extra `web` or playwright is not installed")
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from retouch.media.io import write
from retouch.testing import Bouncing

CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PATIENCE = 90_000
"""Milliseconds for what waits for a worker on a busy machine."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="there is no chromium here"),
    # Playwright's own loop is ended by the process's end.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, bouncing: Bouncing) -> Path:
    made = tmp_path_factory.mktemp("clips")
    write(bouncing.video, made / "clip.mp4")
    return made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[PageServer]:
    with page_server(tmp_path_factory.mktemp("home"), folder / "clip.mp4") as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def asked() -> list[str]:
    """Every address that the page asks for."""
    return []


@pytest.fixture
def page(browser: Browser, server: PageServer, asked: list[str]) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    page = context.new_page()
    faults: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    page.goto(server.address)
    expect(page.locator("#exact")).to_have_text("exact")
    yield page
    assert not faults
    context.close()


class Stage:
    """Places on the stage by pixels of the clip, which is 64 by 64."""

    def __init__(self, page: Page) -> None:
        self.mouse = page.mouse
        found = page.locator("#stage").bounding_box()
        assert found
        self.scale = min(found["width"], found["height"]) * 0.97 / 64
        self.left = found["x"] + (found["width"] - 64 * self.scale) / 2
        self.top = found["y"] + (found["height"] - 64 * self.scale) / 2

    def drag(self, *points: tuple[float, float]) -> None:
        """Press at the first, go to the others, let go at the last."""
        for number, (x, y) in enumerate(points):
            self.mouse.move(self.left + x * self.scale, self.top + y * self.scale)
            if not number:
                self.mouse.down()
        self.mouse.up()


def bitmap(page: Page) -> str:
    """The bytes of the layer that is painted on, as a digest."""
    found = page.evaluate(
        """async () => {
          const { layersHere } = await import('/static/store.js');
          const canvas = layersHere()[0]?.canvas;
          if (!canvas) return 'none';
          const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
          const hash = await crypto.subtle.digest('SHA-256', data);
          return [...new Uint8Array(hash)].map((byte) => byte.toString(16).padStart(2, '0')).join('');
        }"""
    )
    return str(found)


def first_run(page: Page) -> Locator:
    return page.locator("#runs li").first


def box_of(bouncing: Bouncing, frame: int) -> tuple[tuple[float, float], tuple[float, float]]:
    rows, columns = np.nonzero(bouncing.mask[frame, 0])
    return (columns.min() - 2.0, rows.min() - 2.0), (columns.max() + 2.0, rows.max() + 2.0)


def test_a_persons_way_ends_with_the_bytes_of_the_command_line(
    page: Page, server: PageServer, asked: list[str], bouncing: Bouncing, shell: Shell, tmp_path: Path
) -> None:
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    expect(page.get_by_role("slider", name="Frame")).to_have_attribute("aria-valuetext", "frame 4 of 8")
    expect(page.locator("#exact")).to_have_text("exact")
    stage, (first, last) = Stage(page), box_of(bouncing, 4)
    middle = ((first[0] + last[0]) / 2, (first[1] + last[1]) / 2)
    page.locator("#brush input[type=range]").first.fill("5")
    stage.drag((middle[0] - 4, middle[1]), middle, (middle[0] + 4, middle[1]))
    expect(page.locator(".keys button")).to_have_text("◆4")
    page.keyboard.press("m")
    stage.drag(first, last)
    expect(page.locator("#marks li")).to_have_count(1)
    expect(page.locator("#plan")).to_contain_text("Needs")
    page.locator("#run").click()
    expect(first_run(page)).to_have_class("done")
    first_run(page).get_by_text("Compare").click()
    expect(page.locator("#comparing")).to_contain_text("bit for bit")
    with page.expect_download() as download:
        first_run(page).get_by_text("Download").click()
    download.value.save_as(tmp_path / "result.mp4")
    with page.expect_download() as saved:
        page.locator("#save-request").click()
    saved.value.save_as(tmp_path / "request.json")
    request = json.loads((tmp_path / "request.json").read_text())
    (tmp_path / "request.json").write_text(json.dumps({**request, "out": str(tmp_path / "again.mp4")}))
    os.environ["OMP_NUM_THREADS"] = "1"
    again = shell("edit", "--from", tmp_path / "request.json")
    assert again.code == 0, again.err
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "result.mp4").read_bytes()
    page.keyboard.press("\\")
    page.locator("#carry").check()
    page.keyboard.press("Home")
    page.wait_for_timeout(1000)
    expect(page.locator("#cutout-note")).to_be_empty()
    ours = f"http://127.0.0.1:{server.port}/"
    assert [url for url in asked if not url.startswith((ours, f"blob:{ours}"))] == []


def test_undo_gives_the_first_bitmap_and_redo_the_last(page: Page) -> None:
    page.keyboard.press("End")
    stage, draw = Stage(page), random.Random(5)
    page.keyboard.press("b")
    stage.drag((10, 10), (12, 12))
    first = bitmap(page)
    steps = 60
    for number in range(steps):
        page.keyboard.press("e" if number % 7 == 3 else "b")
        stage.drag(*[(draw.uniform(0, 63), draw.uniform(0, 63)) for _ in range(3)])
    last = bitmap(page)
    for _ in range(steps):
        page.keyboard.press("Control+z")
    assert bitmap(page) == first != last
    for _ in range(steps):
        page.keyboard.press("Control+Shift+z")
    assert bitmap(page) == last


def test_paint_and_marks_are_there_again_after_a_reload(page: Page) -> None:
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("b")
    Stage(page).drag((30, 30), (40, 40))
    page.locator("#mark-text").fill("6:10,10 30,30")
    page.locator("#mark-text").press("Enter")
    marks = page.locator("#marks li").count()
    before = bitmap(page)
    page.wait_for_timeout(2500)
    page.reload()
    expect(page.locator("#marks li")).to_have_count(marks)
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#layers li")).to_have_count(1)
    assert bitmap(page) == before


def test_a_stroke_is_shown_within_thirty_milliseconds(page: Page) -> None:
    page.keyboard.press("b")
    median = page.evaluate(
        """async () => {
          const stage = document.getElementById('stage');
          const box = stage.getBoundingClientRect();
          const at = (type, x) => new PointerEvent(type, { pointerId: 1, bubbles: true, button: 0, buttons: 1,
            clientX: box.x + x, clientY: box.y + box.height / 2 });
          stage.setPointerCapture = () => {};
          stage.dispatchEvent(at('pointerdown', 100));
          const took = [];
          for (let i = 0; i < 200; i++) {
            const start = performance.now();
            stage.dispatchEvent(at('pointermove', 100 + i));
            took.push(performance.now() - start);
          }
          stage.dispatchEvent(at('pointerup', 300));
          return took.sort((a, b) => a - b)[100];
        }"""
    )
    assert median < 30


def test_a_wrong_value_shows_the_command_lines_words_at_its_field(page: Page) -> None:
    page.locator("#f-feather").fill("-1")
    page.locator("#f-feather").press("Tab")
    fault = page.locator("[data-option=feather] .fault")
    expect(fault).to_contain_text("feather is -1")
    expect(page.locator("#f-feather")).to_have_attribute("aria-invalid", "true")
    page.locator("#f-feather").fill("")
    page.locator("#f-feather").press("Tab")
    expect(fault).to_be_empty()


def test_every_option_of_every_method_has_a_field(page: Page, server: PageServer) -> None:
    for method in server.ask("/api/methods").told["methods"]:
        page.locator("#method").select_option(method["name"])
        expect(page.locator("#form .summary")).to_have_text(method["summary"])
        shown: list[Any] = page.locator("#form [data-option]").evaluate_all(
            "rows => rows.map((row) => [row.dataset.option, row.dataset.help, row.dataset.bounds])"
        )
        for option in method["options"]:
            assert [option["name"], option["description"], option["bounds"]] in shown


def test_the_whole_page_is_named_for_who_does_not_see_it(page: Page) -> None:
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, select, textarea, a')]
          .filter((each) => each.offsetParent && !each.closest('[hidden]'))
          .filter((each) => !(each.textContent.trim() || each.getAttribute('aria-label')
            || each.labels?.length || each.title))
          .map((each) => each.outerHTML)"""
    )
    assert nameless == []
    assert re.search("Frame 0 of clip.mp4", page.locator("#stage-text").text_content() or "")


def test_a_dropped_picture_is_moved_scaled_turned_and_then_paint(page: Page) -> None:
    page.keyboard.press("Home")
    page.evaluate(
        """async () => {
          const { layPicture } = await import('/static/pictures.js');
          const canvas = new OffscreenCanvas(16, 8);
          const pen = canvas.getContext('2d');
          pen.fillStyle = '#0f0';
          pen.fillRect(0, 0, 16, 8);
          await layPicture(await canvas.convertToBlob());
        }"""
    )
    stage, first = Stage(page), bitmap(page)
    assert edges(page) == [24, 28, 40, 36]
    stage.drag((32, 32), (25, 30), (20, 24))
    assert edges(page) == [12, 20, 28, 28]
    stage.drag((28, 28), (32, 30), (36, 32))
    assert edges(page) == [4, 16, 36, 32]
    page.get_by_label("Turn in degrees of picture").fill("90")
    page.get_by_label("Turn in degrees of picture").press("Enter")
    page.locator("#stage").focus()
    assert edges(page) == [12, 8, 28, 40]
    for _ in range(3):
        page.keyboard.press("Control+z")
    assert bitmap(page) == first
    page.keyboard.press("b")
    stage.drag((50, 50), (52, 52))
    expect(page.get_by_label("Turn in degrees of picture")).to_have_count(0)
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    expect(page.get_by_label("Turn in degrees of picture")).to_have_count(1)
    assert bitmap(page) == first


def edges(page: Page) -> list[int]:
    """Left, top, right and bottom of what is painted in solid colour on the first layer."""
    found = page.evaluate(
        """async () => {
          const { layersHere } = await import('/static/store.js');
          const { width, height } = layersHere()[0].canvas;
          const { data } = layersHere()[0].canvas.getContext('2d').getImageData(0, 0, width, height);
          const at = [...Array(width * height).keys()].filter((i) => data[4 * i + 3] > 127);
          const [u, v] = [at.map((i) => i % width), at.map((i) => Math.floor(i / width))];
          return [Math.min(...u), Math.min(...v), Math.max(...u) + 1, Math.max(...v) + 1];
        }"""
    )
    return [int(edge) for edge in found]


def test_the_paint_of_a_clip_outlasts_going_to_another_at_once(
    page: Page, bouncing: Bouncing, tmp_path: Path
) -> None:
    page.keyboard.press("End")
    page.keyboard.press("b")
    Stage(page).drag((20, 20), (24, 24))
    before = bitmap(page)
    mine = page.evaluate("() => location.hash.slice(1)")
    with page.expect_file_chooser() as chooser:
        page.locator("#open").click()
    chooser.value.set_files(write(bouncing.video[2:], tmp_path / "second.mp4"))
    expect(page.locator("#clip option:checked")).to_have_text("second.mp4")
    expect(page.locator("#layers li")).to_have_count(0)
    page.locator("#clip").select_option(value=mine)
    page.locator("#stage").focus()
    page.keyboard.press("End")
    expect(page.locator("#layers li")).to_have_count(1)
    assert bitmap(page) == before


def test_a_hundred_strokes_and_their_undo_keep_little(page: Page) -> None:
    kept = page.evaluate(
        """async () => {
          const { StrokeRecorder, bytesKept, newCanvas, pencil, undo } = await import('/static/history.js');
          const canvas = newCanvas(1920, 1080);
          let seed = 3;
          const draw = (most) => (seed = seed * 48271 % 2147483647) % most;
          for (let stroke = 0; stroke < 100; stroke++) {
            const recorder = new StrokeRecorder(canvas);
            let [x, y] = [draw(1920), draw(1080)];
            for (let step = 0; step < 20; step++) {
              recorder.touch(x - 15, y - 15, 30, 30);
              pencil(canvas).fillRect(x - 12, y - 12, 24, 24);
              [x, y] = [x + draw(31) - 15, y + draw(31) - 15];
            }
            recorder.end();
          }
          const most = bytesKept();
          for (let stroke = 0; stroke < 100; stroke++) undo();
          return [most, bytesKept()];
        }"""
    )
    assert 0 < max(kept) < 100 * 2**20
