"""The page of a run: complete without any other file, closed to scripts from outside, honest about gaps."""

import base64
import hashlib
import json
import os
import subprocess
import sys
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import final
from urllib.parse import unquote

import numpy as np
import pytest

from retouch.apps.report import write_report
from retouch.apps.runner import edit
from retouch.errors import RequestError, VideoError
from retouch.media.io import Encoding, write, write_picture
from retouch.video import Video

EVIL = "</script><script>alert('x')</script> \"quoted\" & <b>bold</b>"


@final
class Read(HTMLParser):
    """What a browser would find: every tag with its attributes, and the text inside each kind of tag."""

    def __init__(self, text: str) -> None:
        HTMLParser.__init__(self)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.inner: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.inner.setdefault(self._open[-1] if self._open else "", []).append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def urls(self) -> list[str]:
        return [a[name] for _, a in self.tags for name in ("src", "href", "poster", "action") if name in a]

    @property
    def policy(self) -> str:
        return next(
            m["content"] for m in self.all("meta") if m.get("http-equiv") == "Content-Security-Policy"
        )


def clip(colour: int, frames: int = 3) -> Video:
    pixels = np.full((frames, 3, 48, 64), colour, dtype=np.uint8)
    return Video(pixels, Fraction(24))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run as the runner leaves it, in a folder with an awkward name."""
    folder = tmp_path / "a run #1 ü" / "20260101-000000-paint"
    (folder / "extras").mkdir(parents=True)
    source = write(clip(90), tmp_path / "sour ce%20.mp4")
    write(clip(120), folder / "result.mp4")
    write_picture(np.zeros((8, 8, 3), dtype=np.uint8), folder / "extras" / "mask.png")
    (folder / "extras" / "words.txt").write_text(EVIL)
    request = {"video": str(source), "method": EVIL, "params": {"prompt": EVIL, "steps": 5}, "seed": 3}
    report = {
        "method": EVIL,
        "retouch_version": "0.1.0",
        "seconds": 1.25,
        "frames": 3,
        "size": [64, 48],
        "fps": "24000/1001",
        "figures": {EVIL: 31.23456},
        "untouched": {"share": 0.5, "bit_exact": True, "sentence": "half of it"},
        "result": "result.mp4",
        "command": f"retouch edit paint --prompt '{EVIL}'",
    }
    events = [
        {"at": 1.0, "event": "started", "stage": EVIL, "total": 2},
        {"at": 3.5, "event": "ended", "stage": EVIL},
    ]
    (folder / "request.json").write_text(json.dumps(request))
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "notices.txt").write_text(EVIL + "\n")
    (folder / "events.jsonl").write_text("\n".join(map(json.dumps, events)) + '\n{"at": 4')
    return folder


def page_of(folder: Path) -> Read:
    return Read(write_report(folder).read_text(encoding="utf-8"))


def test_the_page_loads_nothing_and_holds_both_clips(run: Path) -> None:
    page = page_of(run)
    assert len(page.all("video")) == 2
    assert page.urls
    assert all(url.startswith("data:") for url in page.urls)
    held = [base64.b64decode(video["src"].partition(",")[2]) for video in page.all("video")]
    assert held[1] == (run / "result.mp4").read_bytes()
    assert "@import" not in page.inner["style"][0]
    assert "url(" not in page.inner["style"][0]


def test_the_policy_admits_only_the_style_and_script_that_are_there(run: Path) -> None:
    page = page_of(run)
    assert "default-src 'none'" in page.policy
    assert "unsafe" not in page.policy
    for tag in ("style", "script"):
        assert len(page.all(tag)) == 1
        digest = base64.b64encode(hashlib.sha256(page.inner[tag][0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in page.policy
    assert not [a for _, a in page.tags if "style" in a or any(name.startswith("on") for name in a)]


def test_text_from_outside_stays_text(run: Path) -> None:
    page = page_of(run)
    assert len(page.all("script")) == 1
    assert not page.all("b")
    for where in ("h1", "td", "th", "li", "code", "pre"):
        assert any(EVIL in text for text in ["".join(page.inner[where])]), where


def test_a_clip_above_the_bound_is_linked_and_the_link_leads_there(run: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "pages"
    elsewhere.mkdir()
    page = Read(write_report(run, elsewhere / "page.html", embed_up_to=0).read_text(encoding="utf-8"))
    links = [video["src"] for video in page.all("video")]
    assert [(elsewhere / unquote(link)).resolve().name for link in links] == ["sour ce%20.mp4", "result.mp4"]
    assert all((elsewhere / unquote(link)).is_file() for link in links)


def test_figures_share_notices_and_stages_are_told(run: Path) -> None:
    page = page_of(run)
    cells = page.inner["td"]
    assert {"31.23", "2.5", "5", "3"} <= set(cells)
    assert "50.0%" in page.inner["dd"]
    assert "Half of it." in page.inner["p"]


def test_every_table_player_and_picture_has_a_name_for_those_who_do_not_see(run: Path) -> None:
    page = page_of(run)
    assert page.all("html")[0]["lang"] == "en"
    assert all(image["alt"] for image in page.all("img"))
    assert all(video["aria-label"] and "controls" in video for video in page.all("video"))
    assert all(cell["scope"] for cell in page.all("th"))
    titles = {heading["id"] for heading in page.all("h2")}
    assert {section["aria-labelledby"] for section in page.all("section")} == titles


def test_a_clip_that_browsers_do_not_play_is_shown_as_a_copy(run: Path) -> None:
    write(clip(120), run / "result.mkv", encoding=Encoding(codec="ffv1"))
    report = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps({**report, "result": "result.mkv"}))
    page = page_of(run)
    assert len(page.all("video")) == 2
    assert "shown as a smaller H.264 copy" in "".join(page.inner["figcaption"])


def test_a_source_that_is_gone_is_said_and_the_rest_is_there(run: Path) -> None:
    Path(json.loads((run / "request.json").read_text())["video"]).unlink()
    page = page_of(run)
    assert len(page.all("video")) == 1
    assert "does not exist" in "".join(page.inner["figcaption"])


def test_a_source_of_many_pictures_is_shown_as_a_clip(run: Path, tmp_path: Path) -> None:
    write(clip(90), tmp_path / "shots")
    request = json.loads((run / "request.json").read_text())
    (run / "request.json").write_text(json.dumps({**request, "video": str(tmp_path / "shots" / "*.png")}))
    page = page_of(run)
    assert len(page.all("video")) == 2
    assert len(page.all("img")) == 2  # the frames with their differences, and the mask


def test_a_run_that_failed_says_why(run: Path) -> None:
    (run / "report.json").unlink()
    (run / "error.json").write_text(json.dumps({"error": "Diverged", "message": EVIL, "hint": "try less"}))
    page = page_of(run)
    assert [section for section in page.all("section") if section.get("role") == "alert"]
    assert EVIL in page.inner["p"]
    assert "try less" in page.inner["p"]


def test_a_page_that_exists_is_replaced_only_by_force_unless_it_is_the_run_s_own(
    run: Path, tmp_path: Path
) -> None:
    page_of(run)
    page_of(run)
    mine = tmp_path / "mine.html"
    mine.write_text("mine")
    with pytest.raises(VideoError, match="exists"):
        write_report(run, mine)
    assert mine.read_text() == "mine"


def test_a_folder_that_is_no_run_and_a_damaged_one_are_errors(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no request"):
        write_report(tmp_path)
    (run / "report.json").write_text('{"frames": ')
    with pytest.raises(RequestError, match="damaged"):
        write_report(run)
    assert not list(tmp_path.glob("*.html")) + list(run.glob("*.html"))


@pytest.mark.usefixtures("plugins")
def test_the_page_of_a_real_run_shows_what_was_chosen_and_folds_the_defaults_away(tmp_path: Path) -> None:
    done = edit("tint", write(clip(90), tmp_path / "clip.mp4"), red=0.25)
    page = page_of(done.folder)
    assert len(page.all("video")) == 2
    assert page.inner["h1"] == ["Tint: clip.mp4"]
    names = page.inner["th"]
    assert "red" in names
    assert "rows" not in names
    assert '"rows": 0.5' in "".join(page.inner["pre"])


def test_the_command_writes_the_page_and_prints_where(run: Path) -> None:
    call = [sys.executable, "-c", "from retouch.apps.cli import main; main()", "report", str(run), "--json"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=60, env={**os.environ}, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(json.loads(done.stdout)["report"]) == run / "report.html"
