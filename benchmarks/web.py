"""Measures the page in Chromium: ten tasks by hand, strokes, carried paint, cut-outs, and memory.

    python benchmarks/web.py tasks CLIP                     by the mouse, and by the keyboard alone
    python benchmarks/web.py tasks CLIP --pictures FOLDER   also pictures of each, dark and light
    python benchmarks/web.py strokes                        on 1920x1080 and on 3840x2160
    python benchmarks/web.py carry                          paint shown in another frame, and a cut-out
    python benchmarks/web.py docs --pictures docs/images    the pictures of the page in the docs
    python benchmarks/web.py memory                         of server and page: 3,000 frames, 100 strokes
    python benchmarks/web.py start                          until the page is there and can be worked with

CLIP has 61 frames or more; a box over its middle is the object. Needs what the tests of the page need.
"""

import argparse
import io
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "plugins")]

from page_server import PageServer, page_server, resident  # noqa: E402 - what lies there
from page_tasks import ByKeyboard, ByMouse, Hand, Job, Stage, do_tasks, heap, wait_until  # noqa: E402

from retouch.media.io import read, write  # noqa: E402
from retouch.testing import bouncing  # noqa: E402
from retouch.video import Video  # noqa: E402
from retouch.world import Clip, Scene  # noqa: E402

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
SIZES = ((1280, 800), (1920, 1080))
MOVES = 200
CARRIED = (640, 1920, 3840)
"""Widths of the clips through which paint is carried."""
SHOWN = (1440, 810)
"""The largest size of a picture in the docs."""
PATIENCE = 1_800_000


@contextmanager
def opened(browser: Browser, folder: Path, *clips: Path) -> Iterator[tuple[Page, PageServer]]:
    """Start a server with some clips, and a page that shows the first."""
    with page_server(folder / clips[0].stem, *clips) as server:
        context = browser.new_context(viewport={"width": SIZES[0][0], "height": SIZES[0][1]})
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        page.goto(server.address)
        expect(page.locator("#exact")).to_have_text("exact")
        yield page, server
        context.close()


def resized(video: Video, width: int, height: int) -> Video:
    """Return a clip at another size."""
    frames = [cv2.resize(np.moveaxis(frame, 0, -1), (width, height)) for frame in video.frames]
    return Video(np.ascontiguousarray(np.moveaxis(np.stack(frames), -1, 1)), video.fps)


def tasks(browser: Browser, folder: Path, clip: Path, pictures: Path | None) -> None:
    """Time the ten tasks, each hand on a home of its own."""
    video = read(clip)
    logo, first = folder / "logo.png", write(video[:2], folder / "first.mp4")
    Image.fromarray(drawn_logo(video.width // 8)).save(logo)
    box = ((0.16 * video.width, 0.4 * video.height), (0.9 * video.width, 0.82 * video.height))
    job = Job(clip, logo, 40, box, 60)
    told: dict[str, list[float]] = {}
    for kind in (ByMouse, ByKeyboard):
        place = folder / kind.__name__
        place.mkdir()
        with opened(browser, place, first) as (page, _):
            hand: Hand = kind(page)
            began = time.monotonic()
            for name in do_tasks(page, hand, job, place / "result.mp4"):
                told.setdefault(name, []).append(time.monotonic() - began)
                if pictures and kind is ByMouse:
                    photograph(page, pictures, f"{len(told):02}-{name.replace(' ', '-')}")
                began = time.monotonic()
    print("| task | mouse, s | keyboard, s |\n|---|---|---|")
    for name, seconds in told.items():
        print(f"| {name} | {' | '.join(f'{value:.1f}' for value in seconds)} |")


def drawn_logo(side: int) -> np.ndarray:
    """Return a ring on a disc, with nothing around it."""
    v, u = np.mgrid[:side, :side] / (side - 1) * 2 - 1
    reach = np.hypot(u, v)
    colour = np.where((np.abs(reach - 0.6) < 0.15)[..., None], (255, 255, 255), (214, 40, 57))
    return np.concatenate([colour, 255 * (reach < 1)[..., None]], 2).astype(np.uint8)


def photograph(page: Page, folder: Path, name: str) -> None:
    """Keep how the page looks, at both sizes, dark and light."""
    folder.mkdir(parents=True, exist_ok=True)
    for width, height in SIZES[::-1]:
        page.set_viewport_size({"width": width, "height": height})
        for theme in ("light", "dark"):
            page.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)
            page.wait_for_timeout(400)
            page.screenshot(path=folder / f"{name}-{width}-{theme}.png")


def strokes(browser: Browser, folder: Path) -> None:
    """Time moves of the brush until they are painted, and what the move itself keeps the page from doing."""
    print(f"| clip | until the next paint, ms, median of {MOVES} moves | of that by the page's own work |")
    print("|---|---|---|")
    for width, height in ((1920, 1080), (3840, 2160)):
        clip = write(resized(bouncing().video[:2], width, height), folder / f"{width}.mp4")
        with opened(browser, folder, clip) as (page, _):
            page.keyboard.press("b")
            shown, worked = page.evaluate(
                """async (moves) => {
                  const stage = document.getElementById('stage');
                  const box = stage.getBoundingClientRect();
                  stage.setPointerCapture = () => {};
                  const painted = () => new Promise((done) => requestAnimationFrame(() => {
                    const { port1, port2 } = new MessageChannel();
                    port1.onmessage = done;
                    port2.postMessage(0);
                  }));
                  const point = (type, i) => stage.dispatchEvent(new PointerEvent(type, { pointerId: 1,
                    bubbles: true, clientX: box.x + 100 + 2 * i, clientY: box.y + box.height / 2 + i % 40 }));
                  const took = [[], []];
                  point('pointerdown', 0);
                  for (let i = 1; i <= moves; i++) {
                    const start = performance.now();
                    point('pointermove', i);
                    took[1].push(performance.now() - start);
                    await painted();
                    took[0].push(performance.now() - start);
                  }
                  point('pointerup', moves);
                  return took;
                }""",
                MOVES,
            )
            print(f"| {width}x{height} | {statistics.median(shown):.1f} | {statistics.median(worked):.2f} |")


def carry(browser: Browser, folder: Path) -> None:
    """Time how long carried paint and a cut-out take to come, once the clip's atlas is there."""
    print("| clip | paint carried into a frame, ms: median, longest | cut-out, ms: median, longest |")
    print("|---|---|---|")
    for side in CARRIED:
        clip = write(resized(bouncing().video, side, side * 9 // 16), folder / f"carry-{side}.mp4")
        rows, columns = np.nonzero(cv2.resize(bouncing().mask[3, 0].astype(np.uint8), (side, side * 9 // 16)))
        first, last = (columns.min() - 9, rows.min() - 9), (columns.max() + 9, rows.max() + 9)
        with opened(browser, folder, clip) as (page, server):
            ByMouse(page).go(3)
            Stage(page).drag(((first[0] + last[0]) / 2, rows.mean()), (last[0] - 20.0, rows.mean()))
            ByKeyboard(page).box((float(first[0]), float(first[1])), (float(last[0]), float(last[1])))
            expect(page.locator("#plan")).to_contain_text("Needs")
            page.locator("#run").click()
            expect(page.locator("#runs li").first).to_have_class("done")
            told = server.ask("/api/clips").told[0]
            marks = {"box": [f"3:{first[0]},{first[1]} {last[0]},{last[1]}"]}
            path = f"/api/clips/{told['id']}"
            carried = [
                asked(server, f"{path}/carry", {"frame": n, **marks}) for n in (0, 1, 2, 4, 5, 6, 7) * 3
            ]
            cut = [asked(server, f"{path}/cutout", {"frame": 3, "marks": marks}) for _ in range(9)]
            cells = [f"{statistics.median(each):.0f}, {max(each):.0f}" for each in (carried[1:], cut)]
            print(f"| {side}x{side * 9 // 16} | {' | '.join(cells)} |")


def docs(browser: Browser, folder: Path, pictures: Path) -> None:
    """Take the pictures of the page for the docs: a star painted on a car, then run, compared and carried."""
    car = Clip.of(Scene.of("a red car on bricks", 3), 24, (216, 384), Fraction(12))
    clip = write(car.video, folder / "car.mp4")
    which = next(k for k, layer in enumerate(car.layers) if "car" in layer.name)
    rows, columns = np.nonzero(car.masks[which, 12, 0])
    first, last = (columns.min() - 6.0, rows.min() - 6.0), (columns.max() + 6.0, rows.max() + 6.0)
    with opened(browser, folder, clip) as (page, _):
        hand = ByMouse(page)
        hand.go(12)
        expect(page.locator("#exact")).to_have_text("exact")
        page.locator("#brush input[type=color]").fill("#fff4d6")
        page.locator("#brush input[type=range]").first.fill("4")
        middle, turns = (np.mean(columns), np.mean(rows) + 6), np.arange(6) * 0.8 * np.pi - 0.5 * np.pi
        Stage(page).drag(*[(middle[0] + 13 * np.cos(at), middle[1] + 13 * np.sin(at)) for at in turns])
        hand.box(first, last)
        wait_until(page, "async () => (await import('/static/stage.js')).isCut()")
        page.locator("#by-words summary").first.click()
        page.locator("#words textarea").fill("a blue car on bricks")
        page.locator("#edits").focus()
        keep_picture(page, pictures / "page-dark.webp", "dark", SIZES[0])
        page.locator("#by-words summary").first.click()
        page.locator("#run").click()
        run = page.locator("#runs li").first
        expect(run).to_have_class("done")
        run.get_by_role("button", name="Compare").click()
        wait_until(page, "async () => (await import('/static/stage.js')).isCompared()")
        keep_picture(page, pictures / "page-compare.webp", "dark", SIZES[0])
        page.locator("#comparing").get_by_role("button", name="Close").click()
        page.locator("#carry").check()
        page.set_viewport_size({"width": SIZES[1][0], "height": SIZES[1][1]})
        hand.go(23)
        wait_until(page, "async () => (await import('/static/stage.js')).isCarried()")
        keep_picture(page, pictures / "page-light.webp", "light", SIZES[1])


def keep_picture(page: Page, place: Path, theme: str, size: tuple[int, int]) -> None:
    """Keep how the page looks, small enough for the docs."""
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)
    page.mouse.move(0, 0)
    expect(page.locator("#copying")).to_be_empty()
    expect(page.locator("#plan")).to_contain_text("Needs")
    expect(page.locator("#exact")).to_have_text("exact")
    page.wait_for_timeout(2500)  # for the thumbnails, and what comes once the playhead rests
    shown = Image.open(io.BytesIO(page.screenshot()))
    shown.thumbnail(SHOWN, Image.Resampling.LANCZOS)
    shown.convert("RGB").save(place, quality=76, method=6)


def asked(server: PageServer, path: str, body: dict[str, object]) -> float:
    """Return the milliseconds until an answer is here."""
    began = time.monotonic()
    answer = server.ask(path, "POST", body)
    if answer.status != 200:
        raise SystemExit(str(answer.told))
    return 1000 * (time.monotonic() - began)


def memory(browser: Browser, folder: Path) -> None:
    """Look at 3,000 frames for two minutes, and paint 100 strokes and take them back: what stays taken."""
    print("| what is done | server, MB | page's process, MB | page's heap, MB |\n|---|---|---|---|")
    v, u = np.mgrid[:90, :160]
    waves = [128 + 100 * np.sin((u + n) / 9) * np.cos((v + n) / 7) for n in range(3000)]
    frames = np.stack(waves)[:, None].repeat(3, 1).astype(np.uint8)
    long = write(Video(frames, Fraction(25)), folder / "long.mp4")
    with opened(browser, folder, long) as (page, server):
        page.wait_for_function("() => document.getElementById('proxy').readyState >= 2")
        before, until, n = taken(page, server), time.monotonic() + 120, 0
        while time.monotonic() < until:
            n += 1
            page.keyboard.press("Shift+ArrowRight" if n % 290 else "Home")
            page.wait_for_timeout(250 if n % 3 == 0 else 20)
        print(row(f"3,000 frames, {n} looked at in 120 s", before, taken(page, server)))
    large = write(resized(bouncing().video[:2], 1920, 1080), folder / "large.mp4")
    with opened(browser, folder, large) as (page, server):
        stage, draw = Stage(page), np.random.default_rng(3)
        stage.drag((100, 100), (110, 110))
        before = taken(page, server)
        for _ in range(100):
            x, y = draw.uniform((40, 40), (1700, 900))
            stage.drag(*[(x + draw.uniform(0, 200), y + draw.uniform(0, 150)) for _ in range(8)])
        print(row("100 strokes on 1920x1080", before, taken(page, server)))
        for _ in range(100):
            page.keyboard.press("Control+z")
        print(row("and all taken back", before, taken(page, server)))


def start(browser: Browser, folder: Path) -> None:
    """Time how long it takes until the page is there, and until a first clip is shown exactly."""
    clip = write(bouncing().video, folder / "clip.mp4")
    told: dict[str, list[float]] = {}
    for number in range(5):
        for what, mark, given in (("the page", "#form .summary", ()), ("a clip", "#exact", (clip,))):
            began = time.monotonic()
            with page_server(folder / f"{what}-{number}", *given) as server:
                page = browser.new_page()
                page.goto(server.address)
                expect(page.locator(mark)).to_have_text(
                    "exact" if given else re.compile("."), timeout=PATIENCE
                )
                told.setdefault(what, []).append(time.monotonic() - began)
                page.close()
    for what, seconds in told.items():
        print(f"{what}: {statistics.median(seconds):.1f} s, at most {max(seconds):.1f} s")


def taken(page: Page, server: PageServer) -> tuple[float, float, float]:
    """Return the megabytes of the server, of the page's process and of its scripts, after a collection."""
    scripts = heap(page)
    processes = page.context.browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")[
        "processInfo"
    ]
    renderers = [each["id"] for each in processes if each["type"] == "renderer"]
    return server.resident(), max(map(resident, renderers)), scripts


def row(name: str, before: tuple[float, ...], after: tuple[float, ...]) -> str:
    """Return a row of how much more is taken."""
    return f"| {name} | {' | '.join(f'{b - a:+.0f}' for a, b in zip(before, after, strict=True))} |"


def main() -> None:
    """Measure what is named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("tasks", "strokes", "carry", "memory", "start", "docs"))
    parser.add_argument("clip", nargs="?", type=Path)
    parser.add_argument("--pictures", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        folder = Path(name)
        if given.what == "tasks":
            tasks(browser, folder, given.clip, given.pictures)
        elif given.what == "docs":
            docs(browser, folder, given.pictures)
        else:
            {"strokes": strokes, "carry": carry, "memory": memory, "start": start}[given.what](
                browser, folder
            )
        browser.close()


if __name__ == "__main__":
    main()
