"""A run as one web page that needs no other file: players, figures, notices, the request, and the command.

The page loads nothing from anywhere. A content security policy says so and admits exactly the style and the
script that are in it (`report.css`, `report.js`), by their hashes; every text from outside goes through
`html.escape`.
"""

import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Literal, cast, final
from urllib.parse import quote

import cv2
import numpy as np
from PIL import Image

from retouch.apps.run_folder import error_of
from retouch.errors import RequestError, RetouchError
from retouch.files import replace_whole
from retouch.media.compare import difference_sheet
from retouch.media.io import Writer, read
from retouch.media.probe import ClipFacts, probe
from retouch.params import frame_range
from retouch.registry import method
from retouch.spec import MethodSpec
from retouch.video import Video

EMBED_UP_TO = 24 * 2**20
"""Bytes of a clip or picture that still goes into the page; a larger one is linked from where it lies."""

PLAYABLE = {"h264", "vp8", "vp9", "av1"}
CONTAINERS = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm"}
PICTURES = {".gif": "image/gif", ".webp": "image/webp", ".png": "image/png", ".jpg": "image/jpeg"}
PREVIEW_HEIGHT = 480
SHEET_UP_TO = 2**31
"""Bytes of decoded frames, source and result together, for which frames are drawn into the page."""


@final
@dataclass(frozen=True)
class PageMedia:
    """A clip, picture or text as the page shows it; `url` is empty where there is nothing to play."""

    title: str
    kind: Literal["video", "picture", "text", "missing"]
    url: str = ""
    text: str = ""
    note: str = ""

    def figure(self) -> str:
        """Return the element that shows it."""
        title, note = escape(self.title), escape(self.note)
        caption = f"<figcaption><strong>{title}</strong>{' ' + note if note else ''}</figcaption>"
        if self.kind == "video":
            body = (
                f'<video controls loop muted playsinline preload="auto" aria-label="{title}" '
                f'src="{escape(self.url)}"></video>'
            )
        elif self.kind == "picture":
            body = f'<img alt="{title}" src="{escape(self.url)}">'
        elif self.kind == "text":
            body = f'<pre tabindex="0">{escape(self.text)}</pre>'
        else:
            body = ""
        return f"<figure>{body}{caption}</figure>"


@final
@dataclass(frozen=True)
class RunPage:
    """What a run folder says of itself; whatever is not there stays empty."""

    folder: Path
    request: Mapping[str, object]
    report: Mapping[str, object] = field(default_factory=dict)
    error: Mapping[str, object] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    stages: tuple[tuple[str, float], ...] = ()
    clips: tuple[PageMedia, ...] = ()
    extras: tuple[PageMedia, ...] = ()
    sheet: str = ""

    def as_html(self) -> str:
        """Return the page as text."""
        title, style, script = self._title(), _read_asset("report.css"), _read_asset("report.js")
        policy = (
            "default-src 'none'; img-src data: 'self' file:; media-src data: 'self' file:; "
            f"style-src '{_content_hash(style)}'; script-src '{_content_hash(script)}'; "
            "base-uri 'none'; form-action 'none'"
        )
        return "\n".join(
            [
                "<!DOCTYPE html>",
                '<html lang="en">',
                "<head>",
                '<meta charset="utf-8">',
                f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                '<meta name="color-scheme" content="light dark">',
                f"<title>{escape(title)}</title>",
                f"<style>{style}</style>",
                "</head>",
                "<body>",
                self._head(title),
                "<main>",
                self._failure_section(),
                self._player_section(),
                self._fact_section(),
                self._figure_section(),
                self._notice_section(),
                self._sheet_section(),
                self._extras_section(),
                self._request_section(),
                self._stage_section(),
                "</main>",
                self._foot(),
                f"<script>{script}</script>",
                "</body>",
                "</html>",
                "",
            ]
        )

    def _head(self, title: str) -> str:
        spec = _spec(self.request)
        summary = f"<p>{escape(spec.summary)}</p>" if spec else ""
        return f"<header><h1>{escape(title)}</h1>{summary}</header>"

    def _foot(self) -> str:
        version, name = escape(str(self.report.get("retouch_version", ""))), escape(self.folder.name)
        said = (
            f"Made by retouch {version} from <code>{name}</code>. This page loads nothing from the network."
        )
        return f"<footer><p>{said}</p></footer>"

    def _title(self) -> str:
        name, spec = str(self.request.get("method", "a run")), _spec(self.request)
        video = Path(str(self.request.get("video", ""))).name
        return f"{spec.title if spec else name}: {video}"

    def _failure_section(self) -> str:
        """Says loudly that the run did not end, and why."""
        if self.report:
            return ""
        message = str(self.error.get("message", "This run has not ended."))
        hint = str(self.error.get("hint", ""))
        more = f"<p>{escape(hint)}</p>" if hint else ""
        said = f"<h2>No result</h2><p>{escape(message)}</p>{more}"
        return f'<section class="failure" role="alert">{said}</section>'

    def _player_section(self) -> str:
        figures = "".join(shown.figure() for shown in self.clips)
        playing = sum(shown.kind == "video" for shown in self.clips)
        buttons = (
            '<p class="controls" hidden><button type="button" id="together">Play both</button>'
            '<button type="button" id="back">Back one frame</button>'
            '<button type="button" id="on">On one frame</button>'
            '<span id="moment" role="status"></span></p>'
        )
        rate = escape(str(self.report.get("fps", "25")))
        controls = buttons if playing == 2 else ""
        return _html_section("Clips", f'{controls}<div class="clips" data-rate="{rate}">{figures}</div>')

    def _fact_section(self) -> str:
        report = self.report
        if not report:
            return ""
        size = cast("Sequence[object]", report.get("size", ()))
        untouched = cast("Mapping[str, object]", report.get("untouched") or {})
        cards = [
            ("Frames", str(report.get("frames", ""))),
            ("Size", " x ".join(str(side) for side in size)),
            ("Rate", f"{report.get('fps', '')} fps"),
            ("Time", f"{_format_number(report.get('seconds', 0))} s"),
        ]
        if untouched:
            exact = untouched.get("bit_exact") is True
            share = cast("float", untouched.get("share", 0.0))
            cards.append(
                ("Out of the edit's reach, bit for bit" if exact else "Equal to the source", f"{share:.1%}")
            )
        items = "".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in cards
        )
        sentence = str(untouched.get("sentence", ""))
        said = f"<p>{escape(sentence[:1].upper() + sentence[1:])}.</p>" if sentence else ""
        return _html_section("At a glance", f"<dl>{items}</dl>{said}")

    def _figure_section(self) -> str:
        figures = cast("Mapping[str, object]", self.report.get("figures") or {})
        rows = [(name, _format_number(value)) for name, value in figures.items()]
        return _html_table("Figures", ("Figure", "Value"), rows)

    def _notice_section(self) -> str:
        if not self.notices:
            return ""
        items = "".join(f"<li>{escape(line)}</li>" for line in self.notices)
        return _html_section("Notices", f"<ul>{items}</ul>")

    def _sheet_section(self) -> str:
        if not self.sheet:
            return ""
        words = "Absolute difference of source and result, times four"
        picture = f'<img class="sheet" alt="Frames of both. {words}." src="{escape(self.sheet)}">'
        figure = f"<figure>{picture}<figcaption>{words}.</figcaption></figure>"
        return _html_section("Frames and differences", figure)

    def _extras_section(self) -> str:
        if not self.extras:
            return ""
        figures = "".join(shown.figure() for shown in self.extras)
        return _html_section("More from this run", f'<div class="clips">{figures}</div>')

    def _request_section(self) -> str:
        """The command, the parameters that are not at their defaults, and the whole request to unfold."""
        rows = [(name, _plain_number(value)) for name, value in _chosen_params(self.request).items()]
        rows += [
            (name, _plain_number(self.request[name])) for name in ("seed", "video") if name in self.request
        ]
        command = str(self.report.get("command", ""))
        said = f'<pre tabindex="0"><code>{escape(command)}</code></pre>' if command else ""
        whole = escape(json.dumps(self.request, indent=2, ensure_ascii=False))
        asked = f'<details><summary>All of request.json</summary><pre tabindex="0">{whole}</pre></details>'
        return _html_table("Request", ("Parameter", "Value"), rows, before=said, after=asked)

    def _stage_section(self) -> str:
        return _html_table(
            "Where the time went",
            ("Stage", "Seconds"),
            [(name, _format_number(s)) for name, s in self.stages],
        )


def write_report(
    folder: Path, out: Path | None = None, *, embed_up_to: int = EMBED_UP_TO, force: bool = False
) -> Path:
    """Writes the page of a run, into its folder as `report.html` unless `out` says otherwise.

    Raises:
        RequestError: the folder is no run.
        VideoError: `out` exists and `force` was not given.
    """
    target = out or folder / "report.html"
    with replace_whole(target, force=force or out is None) as draft:
        page = collect_page(folder, target.absolute().parent, embed_up_to=embed_up_to)
        draft.write_text(page.as_html(), encoding="utf-8")
    return target


def collect_page(folder: Path, beside: Path, *, embed_up_to: int = EMBED_UP_TO) -> RunPage:
    """Reads a run folder; links are relative to `beside`, where the page will lie."""
    request = _read_json(folder / "request.json")
    if not request:
        raise RequestError(f"{folder} holds no request.json", hint="name a run folder; see: retouch runs")
    report = _read_json(folder / "report.json")
    source = Path(str(request.get("video", "")))
    result = folder / str(report["result"]) if report.get("result") else None
    part = frame_range(str(request.get("range", "")))
    clips = [_playable_clip("Source", source, beside, embed_up_to, part)]
    if result:
        clips.append(_playable_clip("Result", result, beside, embed_up_to))
    extras = sorted((folder / "extras").iterdir()) if (folder / "extras").is_dir() else []
    return RunPage(
        folder=folder,
        request=request,
        report=report,
        error=error_of(folder),
        notices=_read_lines(folder / "notices.txt"),
        stages=_stage_seconds(_read_lines(folder / "events.jsonl")),
        clips=tuple(clips),
        extras=tuple(_extra_media(path, beside, embed_up_to) for path in extras),
        sheet=_difference_sheet(source, result, part) if result else "",
    )


def _spec(request: Mapping[str, object]) -> MethodSpec | None:
    """The method of a request, if it is known here."""
    try:
        return method(str(request.get("method", "")))
    except RetouchError:
        return None


def _chosen_params(request: Mapping[str, object]) -> dict[str, object]:
    """The parameters that differ from the method's defaults; all where the method is not known here."""
    params = cast("Mapping[str, object]", request.get("params") or {})
    spec = _spec(request)
    if spec is None:
        return dict(params)
    fields = spec.params.model_fields
    defaults = {
        name: info.get_default(call_default_factory=True)
        for name, info in fields.items()
        if not info.is_required()
    }
    usual = json.loads(json.dumps(defaults, default=str))  # as they look in a request
    return {name: value for name, value in params.items() if name not in usual or usual[name] != value}


def _html_table(
    title: str, head: tuple[str, str], rows: Sequence[tuple[str, str]], *, before: str = "", after: str = ""
) -> str:
    if not rows and not before + after:
        return ""
    body = "".join(f'<tr><th scope="row">{escape(a)}</th><td>{escape(b)}</td></tr>' for a, b in rows)
    heads = "".join(f'<th scope="col">{escape(word)}</th>' for word in head)
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>" if rows else ""
    return _html_section(title, before + table + after)


def _html_section(title: str, body: str) -> str:
    name = title.lower().replace(" ", "-")
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(title)}</h2>{body}</section>'


def _playable_clip(title: str, path: Path, beside: Path, limit: int, part: range | None = None) -> PageMedia:
    """A clip as a browser can play it: embedded, linked where it is large, or re-encoded where it must be."""
    try:
        facts = probe(path)
    except RetouchError as error:
        return PageMedia(title, "missing", note=f"{error}.")
    frames = f"frames {part[0]} to {part[-1]}" if part else f"{facts.video.frames} frames"
    told = f"{path.name}, {facts.video.width}x{facts.video.height}, {frames}"
    if path.is_file() and path.suffix.lower() in PICTURES:
        return PageMedia(
            title, "picture", _media_url(path, PICTURES[path.suffix.lower()], beside, limit), note=told
        )
    if not part and _can_play(path, facts):
        url = _media_url(path, CONTAINERS[path.suffix.lower()], beside, limit)
        return PageMedia(title, "video", url, note=told)
    with tempfile.TemporaryDirectory(prefix="retouch-") as folder:
        preview = _write_preview(path, Path(folder), part)
        embedded = preview.stat().st_size <= limit
        url = _data_url(preview.read_bytes(), "video/mp4") if embedded else ""
    if not url:
        return PageMedia(title, "missing", note=f"{told}; browsers do not play {facts.video.codec}.")
    return PageMedia(title, "video", url, note=f"{told}; shown as a smaller H.264 copy.")


def _can_play(path: Path, facts: ClipFacts) -> bool:
    video = facts.video
    known = path.is_file() and path.suffix.lower() in CONTAINERS and video.codec in PLAYABLE
    return known and video.pixel_format in {"yuv420p", "yuvj420p"}


def _write_preview(path: Path, folder: Path, part: range | None) -> Path:
    """A small H.264 copy without sound, frame by frame."""
    video = read(path, part=part)
    height = min(video.height, PREVIEW_HEIGHT) // 2 * 2
    width = max(2, round(video.width * video.origin.sample_aspect * height / video.height / 2) * 2)
    flat = Video(video.frames, video.fps)
    with Writer(folder / "preview.mp4", like=flat) as out:
        for _, chunk in video.chunks():
            for frame in chunk.frames:
                upright = np.ascontiguousarray(frame.transpose(1, 2, 0))
                small = np.asarray(cv2.resize(upright, (width, height), interpolation=cv2.INTER_AREA))
                out.add(np.ascontiguousarray(small.transpose(2, 0, 1))[None])
    return folder / "preview.mp4"


def _extra_media(path: Path, beside: Path, limit: int) -> PageMedia:
    suffix = path.suffix.lower()
    if suffix == ".txt":
        return PageMedia(path.stem, "text", text=path.read_text(encoding="utf-8", errors="replace")[:20_000])
    if suffix in PICTURES and path.is_file():
        return PageMedia(path.stem, "picture", _media_url(path, PICTURES[suffix], beside, limit))
    if suffix in CONTAINERS or suffix in {".mkv", ".avi"} or path.is_dir():
        return _playable_clip(path.stem, path, beside, limit)
    return PageMedia(path.stem, "missing", note=f"{path.name} lies in {path.parent.name}/.")


def _media_url(path: Path, kind: str, beside: Path, limit: int) -> str:
    """The file itself where it is small enough, else the way to it from the page."""
    if path.stat().st_size <= limit:
        return _data_url(path.read_bytes(), kind)
    return quote(os.path.relpath(path.absolute(), beside).replace(os.sep, "/"))


def _data_url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _difference_sheet(source: Path, result: Path, part: range | None) -> str:
    """Frames of both with their difference, embedded; nothing where one is gone or both are huge."""
    try:
        videos = [probe(path).video for path in (source, result)]
        if sum(3 * video.frames * video.width * video.height for video in videos) > SHEET_UP_TO:
            return ""
        clips = [read(source, part=part), read(result)]
        picture = difference_sheet(clips, ["source", "result"], frames=3)
    except RetouchError:
        return ""
    drawn = BytesIO()
    Image.fromarray(picture).save(drawn, "WEBP", quality=90)
    return _data_url(drawn.getvalue(), "image/webp")


def _stage_seconds(lines: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """Seconds a stage, summed over its turns, in the order in which the stages began."""
    began: dict[str, float] = {}
    spent: dict[str, float] = {}
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # the last line of a run that was killed may be cut
        stage, at = str(event.get("stage", "")), event.get("at")
        if event.get("event") == "started":
            began[stage] = float(at)
            spent.setdefault(stage, 0.0)
        elif event.get("event") == "ended" and stage in began:
            spent[stage] += float(at) - began.pop(stage)
    return tuple(spent.items())


def _read_json(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RequestError(f"{path} is damaged: {error}", hint="do the run again") from None
    return content if isinstance(content, dict) else {}


def _read_lines(path: Path) -> tuple[str, ...]:
    return tuple(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else ()


def _plain_number(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _format_number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _read_asset(name: str) -> str:
    return files("retouch.apps").joinpath(name).read_text(encoding="utf-8")


def _content_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
