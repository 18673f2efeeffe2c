"""The page in Debian's Chromium: a person's way from clip to result, undo, reload, keys, and who is asked."""

import contextlib
import http.server
import io
import json
import os
import random
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Shell
from counted import FRAMES, write_kinds
from page_server import PageServer, page_server

for needed in ("starlette", "uvicorn", "playwright"):
    pytest.importorskip(needed, reason="the extra `web` or playwright is not installed")
from page_tasks import (
    PATIENCE,
    ByKeyboard,
    ByMouse,
    Job,
    Point,
    Stage,
    choose,
    do_tasks,
    heap,
    scrub,
    wait_until,
)
from PIL import Image
from playwright.sync_api import Browser, Dialog, Locator, Page, Route, expect, sync_playwright

from retouch.media.io import read, read_frame, read_picture, write
from retouch.testing import Bouncing
from retouch.video import Video
from retouch.world import Change, Clip, Scene, edited_clip

AXE = Path(__file__).parents[2] / ".venv/node/node_modules/axe-core/axe.min.js"
CHROMIUM = shutil.which("chromium")
MARKUP = "<img src=x onerror=alert(1)>.mp4"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
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
    write(bouncing.video[:6], made / MARKUP)
    return made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[PageServer]:
    with page_server(tmp_path_factory.mktemp("home"), folder / "clip.mp4", folder / MARKUP) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def clip_of(server: PageServer) -> dict[str, Any]:
    """What is told of the clip that every test begins with."""
    return next(clip for clip in server.ask("/api/clips").told if clip["name"] == "clip.mp4")


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
    page.set_default_timeout(1000 * PATIENCE)
    expect.set_options(timeout=1000 * PATIENCE)
    page.goto(f"{server.address}#{clip_of(server)['id']}")  # whatever was opened last
    expect(page.locator("#clip option:checked")).to_have_text("clip.mp4")
    expect(page.locator("#exact")).to_have_text("exact")
    wait_until(page, "async () => (await import('/static/store.js')).state.ready")
    page.locator("#method").select_option("paint")  # whatever was chosen last
    yield page
    assert not faults
    ours = f"http://127.0.0.1:{server.port}/"
    assert [url for url in asked if not url.startswith((ours, f"blob:{ours}"))] == []
    context.close()


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


def start_run(page: Page) -> Locator:
    """Run what is set, and return the row of that run."""
    with page.expect_response(
        lambda answer: answer.request.method == "POST" and "/runs" in answer.url
    ) as told:
        page.locator("#run").click()
    return page.locator(f"#runs li[data-run='{told.value.json()['run']}']")


def box_of(bouncing: Bouncing, frame: int) -> tuple[tuple[float, float], tuple[float, float]]:
    rows, columns = np.nonzero(bouncing.mask[frame, 0])
    return (columns.min() - 2.0, rows.min() - 2.0), (columns.max() + 2.0, rows.max() + 2.0)


def write_car(folder: Path, height: int, width: int, grain: float) -> tuple[Path, Point, Point]:
    """Write a clip of a car, and return a box around it in frame 4; with grain it also shakes."""
    still = 8 if grain else 0
    car = Clip.of(Scene.of("a red car on bricks", 3), 6, (height + 2 * still, width + 2 * still))
    draw = np.random.default_rng(4)
    shakes = still + draw.integers(-still, still + 1, (6, 2))
    mask = np.maximum.reduce(
        [m for m, layer in zip(car.masks, car.layers, strict=True) if "car" in layer.name]
    )
    frames, masks = (
        np.stack([
            each[:, v : v + height, u : u + width] for each, (v, u) in zip(clip, shakes, strict=True)
        ])
        for clip in (car.video.frames, mask)
    )  # fmt: skip
    noisy = np.clip(np.rint(frames + draw.normal(0, grain, frames.shape)), 0, 255).astype(np.uint8)
    rows, columns = np.nonzero(masks[4, 0])
    clip = write(Video(noisy, Fraction(12)), folder / f"car-{height}.mp4")
    return clip, (columns.min() - 2.0, rows.min() - 2.0), (columns.max() + 2.0, rows.max() + 2.0)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("height", "width", "grain"), [(64, 64, 0.0), (480, 854, 4.0)], ids=["drawn", "as filmed"]
)
def test_a_persons_way_ends_with_the_bytes_of_the_command_line(
    page: Page,
    shell: Shell,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    height: int,
    width: int,
    grain: float,
) -> None:
    clip, first, last = write_car(tmp_path, height, width, grain)
    choose(page, ByMouse(page), page.locator("#open"), clip)
    expect(page.locator("#clip option:checked")).to_have_text(clip.name)
    expect(page.locator("#exact")).to_have_text("exact")
    slider = page.get_by_role("slider", name="Frame")
    place = slider.bounding_box()
    assert place
    for share in (0.05, 0.3, 0.95, 4.5 / 6):
        page.mouse.move(place["x"] + share * place["width"], place["y"] + 20)
        page.mouse.down()  # held: scrubbing
    page.mouse.up()
    expect(slider).to_have_attribute("aria-valuetext", "frame 4 of 6")
    expect(page.locator("#exact")).to_have_text("exact")
    stage, (u, v) = Stage(page), ((first[0] + last[0]) / 2, (first[1] + last[1]) / 2)
    reach = (last[0] - first[0]) / 6
    page.locator("#brush input[type=range]").first.fill(str(round(reach)))
    stage.drag((u - reach, v), (u, v), (u + reach, v))
    expect(page.locator(".keys button")).to_have_text("◆4")
    page.keyboard.press("m")
    stage.drag(first, last)
    expect(page.locator("#marks li")).to_have_count(1)
    wait_until(page, "async () => (await import('/static/stage.js')).isCut()")
    expect(page.locator("#plan")).to_contain_text("Needs")
    page.evaluate(WATCH_PROGRESS)
    run = start_run(page)
    expect(run).to_have_class("done")
    shares: dict[str, list[float]] = page.evaluate("window.shares")
    assert any(len(set(seen)) > 2 and seen == sorted(seen) for seen in shares.values()), shares
    run.get_by_text("Compare").click()
    expect(page.locator("#comparing")).to_contain_text("bit for bit")
    with page.expect_download() as download:
        run.get_by_text("Download").click()
    download.value.save_as(tmp_path / "result.mp4")
    with page.expect_download() as saved:
        page.locator("#save-request").click()
    saved.value.save_as(tmp_path / "request.json")
    request = json.loads((tmp_path / "request.json").read_text())
    (tmp_path / "request.json").write_text(json.dumps({**request, "out": str(tmp_path / "again.mp4")}))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    again = shell("edit", "--from", tmp_path / "request.json")
    assert again.code == 0, again.err
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "result.mp4").read_bytes()
    page.keyboard.press("\\")
    page.locator("#carry").check()
    page.keyboard.press("Home")
    wait_until(page, "async () => (await import('/static/stage.js')).isCarried()")
    expect(page.locator("#cutout-note")).to_be_empty()


WATCH_PROGRESS = """() => {
  window.shares = {};
  new MutationObserver(() => {
    const bar = document.querySelector('#runs li progress');
    if (bar) (window.shares[bar.getAttribute('aria-label')] ??= []).push(bar.value);
  }).observe(document.getElementById('runs'), { childList: true, subtree: true });
}"""
"""Keeps how far the first run is said to be, by what it is at."""


def test_a_layer_with_no_paint_on_it_makes_no_edit(page: Page) -> None:
    told = """async () => {
      await (await import('/static/panels.js')).save();
      const { keyframe = [] } = (await import('/static/form.js')).request().params;
      return keyframe.some((each) => each.startsWith('2='));
    }"""
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.locator("#add-layer").click()
    expect(page.locator(".keys button", has_text="◆2")).to_have_count(1)
    assert not page.evaluate(told)
    page.keyboard.press("b")
    Stage(page).drag((20, 20), (24, 24))
    assert page.evaluate(told)
    page.keyboard.press("Control+z")
    assert not page.evaluate(told)
    page.keyboard.press("Control+z")
    expect(page.locator(".keys button", has_text="◆2")).to_have_count(0)
    assert not page.evaluate(told)


def test_two_hundred_operations_are_undone_and_redone_exactly(page: Page) -> None:
    page.keyboard.press("End")
    page.keyboard.press("b")
    Stage(page).drag((10, 10), (12, 12))
    first, last, back, again = page.evaluate(
        """async () => {
          const { state, layersHere } = await import('/static/store.js');
          const at = (id) => document.getElementById(id);
          const done = () => new Promise((go) => setTimeout(go, 0));
          at('stage').setPointerCapture = () => {};
          let seed = 11;
          const draw = (most) => (seed = seed * 48271 % 2147483647) % most;
          const point = (type) => {
            const box = at('stage').getBoundingClientRect();
            const [clientX, clientY] = [box.x + draw(box.width), box.y + draw(box.height)];
            const given = { pointerId: 1, bubbles: true, clientX, clientY };
            at('stage').dispatchEvent(new PointerEvent(type, given));
          };
          const stroke = (key) => {
            document.body.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
            for (const type of ['pointerdown', 'pointermove', 'pointerup']) point(type);
          };
          const OPERATIONS = [
            () => stroke('b'),
            () => stroke('e'),
            () => { if (layersHere().length < 8) at('add-layer').click(); else OPERATIONS[0](); },
            () => {
              const share = at('layers').querySelector('input[type=number]');
              share.value = draw(100);
              share.dispatchEvent(new Event('change'));
            },
            () => {
              at('mark-text').value = `${draw(8)}:${draw(20)},${draw(20)} ${40 + draw(20)},${40 + draw(20)}`;
              at('mark-by-numbers').requestSubmit();
            },
          ];
          const looks = async () => {
            const text = [JSON.stringify(state.marks)];
            const layers = [...state.keys].flatMap(([frame, all]) => all.map((layer) => [frame, layer]));
            for (const [frame, { canvas, name, opacity, visible }] of layers) {
              const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
              const hash = new Uint8Array(await crypto.subtle.digest('SHA-256', data));
              text.push([frame, name, opacity, visible, ...hash].join());
            }
            return text.join(';');
          };
          const told = [await looks()];
          for (let i = 0; i < 200; i++) { OPERATIONS[i < 9 ? i % 5 : draw(5)](); await done(); }
          told.push(await looks());
          for (const turn of ['undo', 'redo']) {
            for (let i = 0; i < 200; i++) { at(turn).click(); await done(); }
            told.push(await looks());
          }
          return told;
        }"""
    )
    assert first != last
    assert back == first
    assert again == last


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


def test_the_small_copy_is_shown_at_the_frame_that_is_asked_for(
    page: Page, server: PageServer, tmp_path: Path
) -> None:
    order = random.Random(3).sample(range(FRAMES), 50)
    for path in write_kinds(tmp_path):
        open_clip(page, server, path)
        shown = page.evaluate(
            """async (order) => {
              const { go } = await import('/static/timeline.js');
              const proxy = document.getElementById('proxy');
              const pen = new OffscreenCanvas(64, 64).getContext('2d', { willReadFrequently: true });
              const painted = () => new Promise((done) => requestAnimationFrame(done));
              const read = () => {
                pen.drawImage(proxy, 0, 0, 64, 64);
                const { data } = pen.getImageData(0, 8, 64, 1);
                const bits = [0, 1, 2, 3, 4, 5].map((bit) => (data[4 * (10 * bit + 5)] > 127) * 2 ** bit);
                return bits.reduce((sum, bit) => sum + bit);
              };
              const found = [];
              for (const frame of order) {
                go(frame);
                const until = performance.now() + 60000;
                do await painted(); while (read() !== frame && performance.now() < until);
                found.push(read());
              }
              return found;
            }""",
            order,
        )
        assert shown == order


def open_clip(page: Page, server: PageServer, path: Path) -> None:
    """Send a clip, and have the page show it once its small copy is there."""
    sent = server.ask("/api/clips", "POST", path.read_bytes(), {**server.own, "X-Filename": path.name})
    page.evaluate("id => { location.hash = id; }", sent.told["id"])
    page.reload()
    expect(page.locator("#clip option:checked")).to_have_text(path.name)
    page.wait_for_function("() => document.getElementById('proxy').readyState >= 2")
    expect(page.locator("#exact")).to_have_text("exact")


def test_a_picture_that_is_dropped_on_the_timeline_lies_on_the_frame_there(page: Page) -> None:
    page.evaluate(
        """async () => {
          const canvas = new OffscreenCanvas(64, 64);
          canvas.getContext('2d').fillRect(0, 0, 64, 64);
          const files = new DataTransfer();
          files.items.add(new File([await canvas.convertToBlob()], 'edited.png', { type: 'image/png' }));
          const slider = document.querySelector('[role=slider]');
          const box = slider.getBoundingClientRect();
          const [clientX, clientY] = [box.left + 5.5 / 8 * box.width, box.top + 9];
          const given = { dataTransfer: files, bubbles: true, clientX, clientY };
          slider.dispatchEvent(new DragEvent('drop', given));
        }"""
    )
    expect(page.locator(".keys button", has_text="◆5")).to_have_count(1)
    expect(page.get_by_role("slider", name="Frame")).to_have_attribute("aria-valuenow", "5")
    assert edges(page) == [0, 0, 64, 64]


def differs_in(clip: Clip, edited: Clip, frame: int) -> np.ndarray:
    """Return where a frame of the true edit is another one."""
    return np.asarray((clip.video.frames[frame] != edited.video.frames[frame]).any(0))


@pytest.mark.timeout(900)
def test_a_frame_that_is_edited_by_words_gets_a_layer_that_every_frame_follows(
    page: Page, server: PageServer, tmp_path: Path
) -> None:
    clip = Clip.of(Scene.sample(2 * 10**9 + 3), 4, 64)
    edited = edited_clip(clip, Change.parse("colour=green"))
    rows, columns = np.nonzero((clip.video.frames[1] != edited.video.frames[1]).any(0))
    left, top, right, bottom = columns.min() - 6, rows.min() - 6, columns.max() + 6, rows.max() + 6
    hand = ByKeyboard(page)
    choose(page, hand, page.locator("#open"), write(clip.video, tmp_path / "bird.mp4"))
    expect(page.locator("#clip option:checked")).to_have_text("bird.mp4")
    expect(page.locator("#exact")).to_have_text("exact")
    hand.go(1)
    hand.box((left, top), (right, bottom))
    page.locator("#stage").focus()
    page.keyboard.press("w")
    expect(page.locator("#words textarea")).to_be_focused()
    page.keyboard.type(edited.caption)
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.type("in the box")
    page.get_by_text("Seed, strength, steps").press("Enter")
    page.locator("#words").get_by_label("Steps").fill("4")
    page.locator("#words").get_by_label("Steps").press("Control+Enter")
    expect(page.locator("#edits li")).to_have_count(1)
    hand.go(0)  # it comes to its own frame wherever the playhead is
    expect(page.locator("#live")).to_have_text("frame 1 is edited; it has a new layer")
    expect(page.locator("#edits li")).to_have_count(0)
    expect(page.locator("#layers li")).to_have_count(0)
    expect(page.locator(".keys button")).to_have_text(["◆1"])
    hand.go(1)
    expect(page.locator("#layers li")).to_contain_text(edited.caption)
    shown = edges(page)
    assert left <= shown[0] < shown[2] <= right
    assert top <= shown[1] < shown[3] <= bottom
    [told] = (each for each in server.ask("/api/clips").told if each["name"] == "bird.mp4")
    changed = (read_picture(told["painted"]["1"]) != read_frame(tmp_path / "bird.mp4", 1)).any(2)
    assert changed.any()
    changed[top:bottom, left:right] = False
    assert not changed.any()
    made = bitmap(page)
    page.locator("#undo").click()
    expect(page.locator("#layers li")).to_have_count(0)
    page.locator("#redo").click()
    expect(page.locator("#layers li")).to_have_count(1)
    assert bitmap(page) == made
    page.get_by_role("button", name="Remove the box on frame 1").click()
    page.locator("#mark-kind").select_option("polygon")
    page.locator("#mark-text").fill(f"1:{left},{top} {right},{top} {right},{bottom} {left},{bottom}")
    page.locator("#mark-text").press("Enter")
    expect(page.locator("#plan")).to_contain_text("Needs")
    run = start_run(page)
    expect(run).to_have_class("done")
    page.locator("#carry").check()
    hand.go(3)
    wait_until(page, "async () => (await import('/static/stage.js')).isCarried()")
    [told] = (each for each in server.ask("/api/clips").told if each["name"] == "bird.mp4")
    request = server.ask(f"/api/runs/{run.get_attribute('data-run')}/request").told
    answer = server.ask(f"/api/clips/{told['id']}/carry", "POST", {"frame": 3, **request["params"]})
    carried = np.asarray(Image.open(io.BytesIO(answer.body))).astype(float)
    (tmp_path / "result.mp4").write_bytes(
        server.ask(f"/api/runs/{run.get_attribute('data-run')}/result").body
    )
    source, result = read(tmp_path / "bird.mp4").frames, read(tmp_path / "result.mp4").frames
    key = np.moveaxis(read_picture(told["painted"]["1"]), -1, 0)[:, differs_in(clip, edited, 1)].mean(1)
    for frame in (0, 2, 3):
        means = [video[frame][:, differs_in(clip, edited, frame)].mean(1) for video in (source, result)]
        before, after = (np.abs(mean - key).mean() for mean in means)
        assert after < 0.5 * before
    assert np.abs(carried.transpose(2, 0, 1) - result[3]).mean() < 6  # both have lost a little


def test_what_words_cannot_do_is_said_below_them(page: Page) -> None:
    page.locator("#by-words summary").first.click()
    words, steps = page.locator("#words textarea"), page.locator("#words").get_by_label("Steps")
    words.fill("a cat")
    words.press("Enter")
    expect(page.locator("#words-fault")).to_contain_text("does not know the word 'cat'")
    words.fill("a red car on bricks")
    page.get_by_text("Seed, strength, steps").click()
    steps.fill("0")
    words.press("Enter")
    expect(page.locator("#words-fault")).to_contain_text("steps is 0")
    expect(steps).to_have_attribute("aria-invalid", "true")
    steps.fill("")
    page.locator("#words").get_by_label("Where").select_option("box")
    words.press("Enter")
    expect(page.locator("#words-fault")).to_contain_text("no box lies on this frame")
    expect(steps).to_have_attribute("aria-invalid", "false")
    expect(page.locator("#edits li")).to_have_count(0)


def test_a_null_edit_asks_for_what_is_there_already(page: Page) -> None:
    sent: list[Any] = []

    def answer(route: Route) -> None:
        if route.request.method == "POST":
            sent.append(route.request.post_data_json)
            route.fulfill(status=201, json={"run": "20260101-000000-fatezero"})
        else:
            route.continue_()

    page.route("**/api/runs", answer)
    page.locator("#method").select_option("fatezero")
    for field, text in (("prompt", "a blue car"), ("source_prompt", "a red car"), ("model", "tiny:sd")):
        page.locator(f"#f-{field}").fill(text)
        page.locator(f"#f-{field}").press("Tab")
    with page.expect_response(lambda answer: answer.request.method == "POST" and "runs" in answer.url):
        page.locator("#null-edit").click()
    with page.expect_response(lambda answer: answer.request.method == "POST" and "runs" in answer.url):
        page.keyboard.press("Control+Enter")
    page.unroute("**/api/runs")
    told = [(each["params"]["source_prompt"], each["params"]["prompt"]) for each in sent]
    assert told == [("a red car", "a red car"), ("a red car", "a blue car")]


REDNESS = """async () => {
  const { view } = await import('/static/stage.js');
  const { clip } = (await import('/static/store.js')).state;
  const pen = document.getElementById('stage').getContext('2d');
  const { scale, x, y } = view();
  const mean = (u) => {
    const place = [x + u * clip.width * scale, y + 0.45 * clip.height * scale, 0.3 * clip.width * scale,
      0.1 * clip.height * scale].map(Math.round);
    const { data } = pen.getImageData(...place);
    return [0, 1].map((channel) => data.filter((_, i) => i % 4 === channel))
      .map((values) => values.reduce((sum, value) => sum + value, 0) / values.length);
  };
  return [mean(0.1), mean(0.6)].flat();
}"""
"""Mean red and green on the left, and on the right, of the frame that the stage shows."""


def test_any_two_of_source_and_results_are_compared_in_four_ways(page: Page, server: PageServer) -> None:
    video = clip_of(server)["path"]
    more, less = (
        server.ask("/api/runs", "POST", {"video": video, "method": "tint", "params": params}).told["run"]
        for params in ({"steps": 1, "rows": 1, "red": 1}, {"steps": 1, "rows": 1, "red": -1})
    )
    page.evaluate("() => { document.dispatchEvent(new Event('runs')); }")
    for run in (more, less):
        expect(page.locator(f"#runs li[data-run='{run}']")).to_have_class("done")

    def shows(told: str) -> None:
        """Wait until what is seen is so; r and g are the left side's colours, R and G the right side's."""
        wait_until(page, f"async () => {{ const [r, g, R, G] = await ({REDNESS})(); return {told}; }}")

    page.locator(f"#runs li[data-run='{more}']").get_by_role("button", name="Compare").click()
    shows("R > r + 40")  # the source on the left
    page.locator("#over").select_option(value=less)
    shows("r < 20 && R > 200")
    modes = page.locator("#comparing")
    modes.get_by_role("button", name="side").click()
    shows("r < 20 && R > 200")
    modes.get_by_role("button", name="difference").click()
    page.locator("#gain").fill("1")
    page.locator("#gain").press("Enter")
    shows("Math.min(r, R) > 200 && Math.max(g, G) < 20")
    modes.get_by_role("button", name="flicker").click()
    shows("Math.abs(r - R) < 20")
    before = page.evaluate(REDNESS)[0]
    modes.get_by_role("button", name="Other").click()
    shows(f"Math.abs(r - {before}) > 150 && Math.abs(r - R) < 20")
    page.locator("#over").select_option(value="")
    modes.get_by_role("button", name="divider").click()
    shows("r > 20 && R > r + 40")
    modes.get_by_role("button", name="Close").click()
    expect(modes).to_be_hidden()


def test_a_run_goes_on_from_the_page_whatever_ended_it(page: Page, server: PageServer) -> None:
    wanted = {"video": clip_of(server)["path"], "method": "tint", "params": {"steps": 250, "pause": 0.1}}
    run = server.ask("/api/runs", "POST", wanted).told["run"]
    row = page.locator(f"#runs li[data-run='{run}']")
    page.evaluate("() => { document.dispatchEvent(new Event('runs')); }")
    expect(row).to_have_class("running")
    row.get_by_role("button", name="Stop").click()
    expect(row).to_have_class("stopped")
    row.get_by_role("button", name="Go on").click()
    expect(row).to_have_class("running")
    for worker in server.workers():
        os.kill(worker, signal.SIGKILL)
    expect(row).to_have_class("failed")
    expect(row).to_contain_text("the worker ended by SIGKILL")
    tab = page.context.new_page()
    tab.set_default_timeout(1000 * PATIENCE)
    tab.goto(server.address)
    tab.locator(f"#runs li[data-run='{run}']").get_by_role("button", name="Go on").click()
    expect(tab.locator(f"#runs li[data-run='{run}']")).to_have_class(re.compile("running|queued"))
    tab.close()
    page.evaluate("() => { document.dispatchEvent(new Event('runs')); }")
    expect(row).to_have_class("done")
    unbroken = server.ask(f"/api/runs/{run}/replay", "POST").told["run"]
    page.evaluate("() => { document.dispatchEvent(new Event('runs')); }")
    expect(page.locator(f"#runs li[data-run='{unbroken}']")).to_have_class("done")
    told = [server.ask(f"/api/runs/{each}").told["report"]["result_digest"] for each in (run, unbroken)]
    assert told[0] == told[1]


def test_a_run_goes_on_from_the_next_servers_page_with_no_tab_and_after_a_killed_server(
    browser: Browser, folder: Path, tmp_path: Path
) -> None:
    home, steps = tmp_path / "home", {"steps": 40, "pause": 0.1}

    def tab_at(server: PageServer) -> Page:
        tab = browser.new_page()
        tab.set_default_timeout(1000 * PATIENCE)
        expect.set_options(timeout=1000 * PATIENCE)
        tab.goto(server.address)
        return tab

    def row(run: str) -> Locator:
        return tab.locator(f"#runs li[data-run='{run}']")

    with page_server(home, folder / "clip.mp4") as first:
        wanted = {"video": clip_of(first)["path"], "method": "tint", "params": steps}
        run, waiting = (first.ask("/api/runs", "POST", wanted).told["run"] for _ in range(2))
        tab = tab_at(first)
        expect(row(run)).to_have_class("running")
        tab.close()
        told = home / "runs" / run / "events.jsonl"
        before = told.stat().st_size if told.exists() else 0
        while not told.exists() or told.stat().st_size == before:
            assert first.ask(f"/api/runs/{run}").told["state"] == "running"
        first.process.kill()
        first.process.wait()
    with page_server(home) as second:
        tab = tab_at(second)
        expect(row(run)).to_have_class("stopped")
        row(run).get_by_role("button", name="Go on").click()
        expect(row(waiting)).to_have_class("done")  # unbroken, by the second server alone
        expect(row(run)).to_have_class("done")
        tab.close()
        results = [second.ask(f"/api/runs/{each}/result").body for each in (run, waiting)]
        assert results[0] == results[1]


def test_frames_that_were_looked_at_are_not_kept_in_memory(browser: Browser, tmp_path: Path) -> None:
    grain = np.random.default_rng(5).integers(0, 256, (600, 3, 90, 160), np.uint8)
    clip = write(Video(grain, Fraction(25)), tmp_path / "long.mp4")
    with page_server(tmp_path / "home", clip) as server:
        tab = browser.new_page()
        tab.set_default_timeout(1000 * PATIENCE)
        expect.set_options(timeout=1000 * PATIENCE)
        tab.goto(server.address)
        tab.wait_for_function("() => document.getElementById('proxy').readyState >= 2")
        scrub(tab, 60, every=6)
        before = server.resident(), heap(tab)
        scrub(tab, 600, every=30)
        path = f"/api/clips/{server.ask('/api/clips').told[0]['id']}/frames"
        sizes = [len(server.ask(f"{path}/{frame}.png").body) for frame in (1, 211) * 250]
        after = server.resident(), heap(tab)
        tab.close()
    assert sum(sizes) > 20e6
    assert after[0] - before[0] < 15
    assert after[1] - before[1] < 15


def test_a_page_on_another_port_can_neither_read_nor_change_anything(page: Page, server: PageServer) -> None:
    before = [each["run"] for each in server.ask("/api/runs").told]
    with foreign_page(f"http://127.0.0.1:{server.port}", clip_of(server)["id"]) as address:
        tab = page.context.new_page()
        tab.set_default_timeout(1000 * PATIENCE)
        tab.goto(address)
        tab.wait_for_function("() => document.title")
        assert json.loads(tab.title()) == {"read": "refused", "write": "refused", "picture": "refused"}
        with tab.expect_navigation():
            tab.evaluate("() => { document.querySelector('form').submit(); }")
        assert "comes from another page" in (tab.text_content("body") or "")
        tab.goto(f"{address}frame")
        tab.wait_for_load_state()
        assert not [frame for frame in tab.frames[1:] if frame.locator("#stage").count()]
        tab.close()
    assert [each["run"] for each in server.ask("/api/runs").told] == before


@contextlib.contextmanager
def foreign_page(target: str, clip: str) -> Iterator[str]:
    """A page of somebody else's on this machine, which asks ours for all that a browser lets it ask."""
    asking = """
      const seen = {};
      const tell = async (name, work) => {
        try { seen[name] = await work(); } catch { seen[name] = 'refused'; }
      };
      const options = { method: 'POST', mode: 'no-cors', credentials: 'include', body: '{}' };
      await tell('read', async () => (await fetch(`${target}/api/clips`, { credentials: 'include' })).text());
      await tell('write', async () => (await fetch(`${target}/api/runs`, options)).type);
      await tell('picture', async () => {
        const image = new Image();
        image.src = `${target}/api/clips/${clip}/frames/0.png`;
        await image.decode();
        return 'seen';
      });
      document.title = JSON.stringify(seen);"""
    form = f"<form method=post action={target}/api/runs enctype=text/plain><input name=a value=b></form>"
    script = f"<script type=module>const target = {target!r}, clip = {clip!r};{asking}</script>"

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f"<iframe src={target}></iframe>" if self.path == "/frame" else form + script
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{other.server_address[1]}/"
        other.shutdown()
        thread.join()


def test_a_name_that_is_markup_is_shown_as_text(page: Page) -> None:
    shown: list[str] = []

    def dismiss(dialog: Dialog) -> None:
        shown.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", dismiss)
    page.locator("#clip").select_option(label=MARKUP)
    expect(page.locator("#stage-text")).to_contain_text(MARKUP)
    assert page.locator("img").count() == 0
    assert shown == []


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


@pytest.mark.parametrize("hand", [ByMouse, ByKeyboard])
def test_ten_tasks_are_done_by_the_mouse_or_by_the_keyboard_alone(
    page: Page, bouncing: Bouncing, tmp_path: Path, hand: type[ByMouse | ByKeyboard]
) -> None:
    logo = tmp_path / "logo.png"
    Image.fromarray(np.full((8, 8, 3), (200, 30, 30), np.uint8)).save(logo)
    first = 0 if hand is ByMouse else 1
    clip = write(bouncing.video[first : first + 7], tmp_path / f"{hand.__name__}.mp4")
    job = Job(clip, logo, 3, box_of(bouncing, first + 3), 5)
    done = list(do_tasks(page, hand(page), job, tmp_path / "result.mp4"))
    assert len(done) == 10
    assert len(read(tmp_path / "result.mp4")) == 7


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


def reopen(page: Page, clip: str) -> None:
    """Choose a clip by its digest, and wait until it is the one that is open."""
    page.locator("#clip").select_option(value=clip)
    page.wait_for_function("clip => location.hash.slice(1) === clip", arg=clip)
    page.locator("#stage").focus()


def open_part(page: Page, bouncing: Bouncing, start: int, folder: Path) -> str:
    """Open a clip that no other test knows; return its digest."""
    name = f"from-{start}.mp4"
    with page.expect_file_chooser() as chooser:
        page.locator("#open").click()
    chooser.value.set_files(write(bouncing.video[start:], folder / name))
    expect(page.locator("#clip option:checked")).to_have_text(name)
    expect(page.locator("#layers li")).to_have_count(0)
    wait_until(page, "async () => (await import('/static/store.js')).state.ready")
    return str(page.evaluate("() => location.hash.slice(1)"))


def test_the_paint_of_a_clip_outlasts_going_to_another_at_once(
    page: Page, bouncing: Bouncing, tmp_path: Path
) -> None:
    page.keyboard.press("End")
    page.keyboard.press("b")
    Stage(page).drag((20, 20), (24, 24))
    before = bitmap(page)
    mine = page.evaluate("() => location.hash.slice(1)")
    open_part(page, bouncing, 2, tmp_path)
    reopen(page, mine)
    page.keyboard.press("End")
    expect(page.locator("#layers li")).to_have_count(1)
    assert bitmap(page) == before


def test_a_clip_whose_paint_cannot_be_saved_is_not_left(
    page: Page, bouncing: Bouncing, tmp_path: Path
) -> None:
    first = page.evaluate("() => location.hash.slice(1)")
    second = open_part(page, bouncing, 3, tmp_path)
    page.keyboard.press("b")
    page.route(
        "**/draft", lambda route: route.abort() if route.request.method == "PUT" else route.continue_()
    )
    Stage(page).drag((20, 20), (24, 24))
    before = bitmap(page)
    page.locator("#clip").select_option(value=first)
    expect(page.locator("#clip option:checked")).to_have_text("from-3.mp4")
    expect(page.locator("#fault")).to_contain_text("the server does not answer")
    assert page.evaluate("() => location.hash.slice(1)") == second
    page.unroute("**/draft")
    reopen(page, first)
    reopen(page, second)
    expect(page.locator("#layers li")).to_have_count(1)
    assert bitmap(page) == before


def test_a_clip_that_is_another_one_by_now_can_be_left(
    page: Page, server: PageServer, bouncing: Bouncing, tmp_path: Path
) -> None:
    first = page.evaluate("() => location.hash.slice(1)")
    second = open_part(page, bouncing, 1, tmp_path)
    [told] = (clip for clip in server.ask("/api/clips").told if clip["id"] == second)
    Path(told["path"]).write_bytes(b"another")
    page.keyboard.press("b")
    Stage(page).drag((20, 20), (24, 24))
    expect(page.locator("#fault")).to_contain_text("is not what it was")
    reopen(page, first)
    expect(page.locator("#clip option:checked")).to_have_text("clip.mp4")


def test_a_layer_that_was_hidden_and_is_shown_again_is_painted(
    page: Page, bouncing: Bouncing, tmp_path: Path
) -> None:
    open_part(page, bouncing, 4, tmp_path)
    expect(page.locator("#plan")).to_contain_text("Paint on a frame")
    expect(page.locator("#fault")).to_have_text("")
    page.keyboard.press("b")
    Stage(page).drag((20, 20), (24, 24))
    painted = "async () => Object.keys((await import('/static/store.js')).state.clip.painted).length"
    before = bitmap(page)
    for wanted in (1, 0, 1):
        wait_until(page, f"async wanted => await ({painted})() === wanted", wanted)
        if wanted == 0:  # its bitmap outlasts that the frame has no paint
            page.reload()
            expect(page.locator("#layers li")).to_have_count(1)
            assert bitmap(page) == before
        page.get_by_label("Show layer 1").click()


def test_carried_paint_is_shown_as_soon_as_a_run_has_made_the_atlas(
    page: Page, bouncing: Bouncing, tmp_path: Path
) -> None:
    open_part(page, bouncing, 5, tmp_path)
    ByMouse(page).box(*box_of(bouncing, 5))
    page.keyboard.press("b")
    Stage(page).drag((20, 20), (24, 24))
    expect(page.locator("#plan")).to_contain_text("Needs")
    page.locator("#carry").check()
    ByMouse(page).go(2)
    expect(page.locator("#cutout-note")).to_contain_text("atlas of that object")
    page.locator("#run").click()
    wait_until(page, "async () => (await import('/static/stage.js')).isCarried()")


@pytest.mark.parametrize("passed", [0, 1, 2])
def test_paint_that_was_taken_back_is_whole_or_gone_wherever_saving_was_cut_off(
    page: Page, server: PageServer, bouncing: Bouncing, tmp_path: Path, passed: int
) -> None:
    clip = write(bouncing.video[: 3 + passed], tmp_path / f"cut-{passed}.mp4")
    open_clip(page, server, clip)
    page.keyboard.press("b")
    Stage(page).drag((20, 20), (24, 24))
    before, save = bitmap(page), "async () => (await import('/static/panels.js')).save().catch(() => 0)"
    page.evaluate(save)
    sent: list[str] = []

    def let_some_through(route: Route) -> None:
        sent.append(route.request.method)
        if len(sent) > passed:
            route.abort()
        else:
            route.continue_()

    page.route(re.compile("/(paint|draft)"), let_some_through)
    page.evaluate("async () => { const { undo } = await import('/static/history.js'); undo(); undo(); }")
    page.evaluate(save)
    assert len(sent) >= min(passed + 1, 2)
    tab = page.context.new_page()
    tab.set_default_timeout(1000 * PATIENCE)
    tab.goto(page.url)
    expect(tab.locator("#clip option:checked")).to_have_text(clip.name)
    wait_until(tab, "async () => (await import('/static/store.js')).state.ready")
    assert bitmap(tab) == ("none" if passed else before)
    tab.evaluate(save)
    [told] = (each for each in server.ask("/api/clips").told if each["name"] == clip.name)
    assert list(told["painted"]) == ([] if passed else ["0"])


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


@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not here; `make page-types` brings it")
@pytest.mark.parametrize("theme", ["dark", "light"])
def test_axe_finds_no_serious_fault(page: Page, server: PageServer, theme: str) -> None:
    page.emulate_media(reduced_motion="reduce")  # so that no colour is seen half way to another
    page.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)
    wanted = {"video": clip_of(server)["path"], "method": "tint", "params": {"steps": 1}}
    run = server.ask("/api/runs", "POST", wanted).told["run"]
    page.evaluate("() => { document.dispatchEvent(new Event('runs')); }")
    row = page.locator(f"#runs li[data-run='{run}']")
    expect(row).to_have_class("done")
    Stage(page).drag((20, 20), (24, 24))
    page.locator("#mark-text").fill("0:10,10 30,30")
    page.locator("#mark-text").press("Enter")
    expect(page.locator("#marks li").first).to_be_visible()
    page.locator("#f-feather").fill("-1")
    page.locator("#f-feather").press("Tab")
    expect(page.locator("[data-option=feather] .fault")).to_contain_text("feather is -1")
    for summary in page.locator("#form summary, #by-words summary").all():
        summary.click()
    page.evaluate(AXE.read_text())
    assert serious(page) == []
    page.locator("#f-feather").fill("")
    row.get_by_role("button", name="Compare").click()
    expect(page.locator("#split")).to_be_visible()
    assert serious(page) == []
    page.locator("#help").click()
    expect(page.locator("#keys")).to_be_visible()
    assert serious(page) == []


def serious(page: Page) -> list[str]:
    """What axe-core calls serious or worse, with the size of what is pressed."""
    found: list[str] = page.evaluate(
        """async () => (await axe.run({ rules: { 'target-size': { enabled: true } } })).violations
          .filter((each) => ['serious', 'critical'].includes(each.impact))
          .map((each) => `${each.id}: ${each.nodes.map((node) => node.html.slice(0, 120)).join(' | ')}`)"""
    )
    return found


@pytest.mark.parametrize(("width", "zoom"), [(1024, 1), (1280, 2)])
def test_the_page_needs_no_scrolling_sideways(page: Page, width: int, zoom: int) -> None:
    page.set_viewport_size({"width": width // zoom, "height": 800 // zoom})
    expect(page.locator("#run")).to_be_visible()
    wide, shown = page.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
    assert wide <= shown
