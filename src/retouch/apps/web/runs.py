"""The page's routes for requests and runs. A run's folder is all that is known of it."""

import asyncio
import contextlib
import json
import os
import re
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, final

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from retouch.apps.cli_fields import command_line
from retouch.apps.queue import Queue, enqueue, enqueue_again
from retouch.apps.run_folder import ERROR, REPORT, run_folders
from retouch.apps.web.answers import TYPES, file_answer, json_of
from retouch.apps.web.clips import Clips, NotThere
from retouch.apps.web.guard import inside
from retouch.errors import RequestError
from retouch.files import remove
from retouch.params import MODEL_ROLES, Role, given_as
from retouch.places import home
from retouch.request import EditRequest

RUN: Final = re.compile(r"[0-9]{8}-[0-9]{6}-[a-z_]+(-[0-9]+)?")
STREAMS: Final = 16
"""Event streams that may be open at once."""
STILL_HERE: Final = 14.5
"""Seconds after which a stream says that it is there, so that nobody takes it for dead after 15."""


@final
class Runs:
    """Requests that are checked and queued, and the runs that they become."""

    def __init__(self, clips: Clips, queue: Queue, roots: tuple[Path, ...]) -> None:
        self.clips, self.queue, self.roots = clips, queue, roots
        self.streams, self.ending = 0, False

    def routes(self) -> list[Route]:
        """Return the routes."""
        run = "/api/runs/{run}"
        return [
            Route("/api/plan", self.plan, methods=["POST"]),
            Route("/api/command", self.command, methods=["POST"]),
            Route("/api/runs", self.runs_list, methods=["GET"]),
            Route("/api/runs", self.run_start, methods=["POST"]),
            Route(run, self.run_about, methods=["GET"]),
            Route(run, self.run_forget, methods=["DELETE"]),
            Route(f"{run}/stop", self.run_stop, methods=["POST"]),
            Route(f"{run}/resume", self.run_resume, methods=["POST"]),
            Route(f"{run}/replay", self.run_replay, methods=["POST"]),
            Route(f"{run}/events", self.run_events),
            Route(f"{run}/preview/{{frame:int}}.jpg", self.run_preview),
            Route(f"{run}/extras/{{name}}", self.run_extra),
            Route(f"{run}/{{part:str}}", self.run_part),
        ]

    async def plan(self, request: Request) -> Response:
        """What an edit will need, or its first fault."""
        wanted = self._checked(await json_of(request))
        told = await self.clips.ask("plan", request=wanted.model_dump(mode="json"))
        return JSONResponse({**told, "seconds": await to_thread.run_sync(_last_seconds, wanted)})

    async def command(self, request: Request) -> Response:
        """The command that makes the same edit."""
        return JSONResponse({"command": command_line(self._checked(await json_of(request)))})

    async def runs_list(self, request: Request) -> Response:
        """All runs, the newest first."""
        del request
        return JSONResponse(await to_thread.run_sync(self._listed))

    async def run_start(self, request: Request) -> Response:
        """Queue a run."""
        wanted = self._checked(await json_of(request))
        return await self._queued(wanted, request.headers.get("idempotency-key", "")[:200])

    async def run_about(self, request: Request) -> Response:
        """One run, with its report."""
        folder = _folder(request)
        more = {"extras": sorted(_extras(folder)), "report": _read(folder / REPORT)}
        return JSONResponse({**self._run(folder), **more})

    async def run_forget(self, request: Request) -> Response:
        """Remove a run that is not at work."""
        folder = _folder(request)
        if self.queue.state_of(folder) in ("running", "queued"):
            raise RequestError(f"{folder.name} is not over", hint="Stop it first.")
        remove(folder)
        return Response(status_code=204)

    async def run_stop(self, request: Request) -> Response:
        """Stop a run."""
        folder = _folder(request)
        self.queue.stop(folder)
        return JSONResponse(self._run(folder), 202)

    async def run_resume(self, request: Request) -> Response:
        """Let a run go on."""
        folder = _folder(request)
        state = self.queue.state_of(folder)
        if state in ("done", "running"):
            raise RequestError(f"{folder.name} is {state} already", hint="Do it again instead.")
        await to_thread.run_sync(enqueue_again, folder)
        self.queue.wake()
        return JSONResponse(self._run(folder), 202)

    async def run_replay(self, request: Request) -> Response:
        """Do a run again in a folder of its own."""
        wanted = EditRequest.read(_folder(request) / "request.json").model_copy(update={"out": None})
        return await self._queued(wanted)

    async def _queued(self, wanted: EditRequest, key: str = "") -> Response:
        folder = await to_thread.run_sync(enqueue, wanted, key)
        self.queue.wake()
        return JSONResponse({"run": folder.name}, 201)

    async def run_preview(self, request: Request) -> Response:
        """A frame of a run's result, small."""
        folder, frame = _folder(request), request.path_params["frame"]
        out = folder / f"preview-{frame}.jpg"
        if not out.exists():
            given = {"path": str(_result(folder)), "frame": frame, "index": "", "out": str(out), "side": 640}
            await self.clips.ask("still", **given)
        return file_answer(out)

    async def run_extra(self, request: Request) -> Response:
        """One of the files that a method adds."""
        found = _extras(_folder(request)).get(request.path_params["name"])
        if found is None:
            raise NotThere("there is no such file in that run")
        return file_answer(found)

    async def run_part(self, request: Request) -> Response:
        """A run's result, request or report."""
        folder, part = _folder(request), request.path_params["part"]
        if part == "result":
            return file_answer(_result(folder), download=True)
        if part == "request":
            return file_answer(folder / "request.json")
        if part != "report":
            raise NotThere("a run has a result, a request and a report")
        content = await self.clips.made("report", ".html", folder=str(folder))
        policy = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"
        return Response(content, media_type="text/html", headers={"content-security-policy": policy})

    async def run_events(self, request: Request) -> Response:
        """A run's events as they come."""
        folder = _folder(request)
        last = request.headers.get("last-event-id", "0")
        if self.streams >= STREAMS:
            raise RequestError(f"{STREAMS} streams are open already", hint="Close another page.")
        stream = self._events(folder, int(last) if last.isdecimal() else 0)
        await anext(stream)  # from here on it has its place
        return StreamingResponse(stream, media_type="text/event-stream")

    async def _events(self, folder: Path, last: int) -> AsyncIterator[str]:
        """Yield the lines of events.jsonl after the `last`, and how the run stands whenever that changes."""
        self.streams += 1
        try:
            told, quiet = "", time.monotonic()
            yield ""
            yield "retry: 1000\n\n"
            while True:
                state = self.queue.state_of(folder)
                lines = await to_thread.run_sync(_lines, folder / "events.jsonl")
                for number, line in enumerate(lines[last:], last + 1):
                    yield f"id: {number}\ndata: {line}\n\n"
                last = max(last, len(lines))
                if state != told:
                    yield f"event: state\ndata: {json.dumps(state)}\n\n"
                    told, quiet = state, time.monotonic()
                if self.ending or state not in ("running", "queued"):
                    return
                if time.monotonic() - quiet > STILL_HERE:
                    yield ": still here\n\n"
                    quiet = time.monotonic()
                await asyncio.sleep(0.25)
        finally:
            self.streams -= 1

    def _run(self, folder: Path) -> dict[str, object]:
        """Return what a list of runs shows of one."""
        wanted, told, made = _read(folder / "request.json"), _read(folder / REPORT), _read(folder / ERROR)
        return {
            "run": folder.name,
            "state": self.queue.state_of(folder),
            "method": wanted.get("method", ""),
            "video": wanted.get("video", ""),
            "seconds": told.get("seconds"),
            "sentence": told.get("untouched", {}).get("sentence", ""),
            "hint": made.get("hint", ""),
            "notices": _lines(folder / "notices.txt"),
        }

    def _listed(self) -> list[dict[str, object]]:
        """Return what is said of every run, the newest first."""
        return [self._run(folder) for folder in reversed(run_folders()) if RUN.fullmatch(folder.name)]

    def _checked(self, given: Mapping[str, Any]) -> EditRequest:
        """Return a request whose every path lies where the page may read or write.

        Raises:
            RequestError: says which does not.
        """
        wanted = EditRequest.from_json(json.dumps(given))
        params = wanted.filled()
        inside(wanted.video, readable(self.roots))
        prompts = {name for name, _ in given_as(params, Role.PROMPT)}
        models = {name for role in MODEL_ROLES for name, _ in given_as(params, role)}
        for name in type(params).model_fields:
            if name not in prompts:
                check_inside(name, getattr(params, name), readable(self.roots), model=name in models)
        check_inside("out", wanted.out, self.roots)
        return wanted.model_copy(update={"params": params.model_dump(mode="json")})


def readable(roots: Iterable[Path]) -> list[Path]:
    """Return the folders from which the page may take files."""
    return [home() / "web", home() / "runs", *roots]


def check_inside(name: str, value: object, roots: Iterable[Path], *, model: bool = False) -> None:
    """Refuse a parameter that names anything on this machine outside some folders.

    Raises:
        RequestError: says which parameter it is.
    """
    for one in value if isinstance(value, tuple) else (value,):
        for path in _paths_in(one, model=model):
            try:
                inside(path, roots)
            except RequestError as error:
                raise RequestError(f"{name} is not allowed: {error}", hint=error.hint) from None


def _paths_in(value: object, *, model: bool) -> Iterator[Path]:
    """Yield what a parameter may name on this machine: a path, or a text with one in it, NAME=PICTURE."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, str):
        for text in (value, value.partition("=")[2], value.partition(":")[2]):
            named = "/" in text or (model and text == value)
            if text.startswith(("/", "~", ".")) or (named and os.path.lexists(text)):
                yield Path(text)


def _folder(request: Request) -> Path:
    """Return the folder of the run that a request is about."""
    name = str(request.path_params["run"])
    folder = home() / "runs" / name
    if not RUN.fullmatch(name) or not (folder / "request.json").is_file():
        raise NotThere("there is no such run", hint="It may have been removed.")
    return folder


def _read(path: Path) -> dict[str, Any]:
    """Return the object in a file of ours; an empty one where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _last_seconds(wanted: EditRequest) -> float | None:
    """Return how long the last run of that method on that clip took, if there is one."""
    for folder in reversed(run_folders()):
        was, told = _read(folder / "request.json"), _read(folder / REPORT)
        if told and (was.get("method"), was.get("video")) == (wanted.method, str(wanted.video)):
            return float(told["seconds"])
    return None


def _result(folder: Path) -> Path:
    """Return the clip that a run made."""
    path = folder / str(_read(folder / REPORT).get("result", ""))
    if path.parent != folder or path.suffix not in TYPES or not path.is_file():
        raise NotThere("this run has no result that can be sent", hint="It lies in the run's folder.")
    return path


def _extras(folder: Path) -> dict[str, Path]:
    """Return the files that a method added, by name."""
    found = (folder / "extras").glob("[!.]*")
    return {path.name: path for path in found if path.suffix in TYPES and path.is_file()}


def _lines(path: Path) -> list[str]:
    """Return the whole lines of a file that is being written."""
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    return []
