"""The page's routes: thin, each a call of the clips; those of the runs are in `runs.py`."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final, final

from anyio import to_thread
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from retouch import registry
from retouch.apps.queue import Queue
from retouch.apps.web.answers import HANDLERS, TYPES, file_answer, json_of, number_in
from retouch.apps.web.clips import Clips, NotThere
from retouch.apps.web.frame_edits import FrameEdits
from retouch.apps.web.guard import inside
from retouch.apps.web.runs import Runs, readable
from retouch.apps.worker import Worker
from retouch.compute import Compute
from retouch.errors import RequestError, RetouchError
from retouch.fields import describe
from retouch.files import write_whole
from retouch.request import Output

STATIC: Final = Path(__file__).parent / "static"


@final
class Page:
    """Everything behind the page, for one person at one machine."""

    def __init__(
        self,
        *,
        token: str,
        roots: tuple[Path, ...] = (),
        clips: tuple[Path, ...] = (),
        allow_download: bool = False,
    ) -> None:
        """Open `clips` at the start; `roots` are where it may read and write besides its own folders."""
        self.token, self.first = token, clips
        self.opening: asyncio.Future[None]
        self.is_ending: Callable[[], bool] = bool
        self.roots = tuple(root.expanduser().resolve() for root in roots)
        self.clips = Clips()
        environment = {} if allow_download else {"RETOUCH_OFFLINE": "1"}
        self.queue = Queue(device_of=self._device, worker=partial(Worker, environment=environment))
        self.devices: dict[str, str] = {"cpu": "cpu"}
        self.runs = Runs(self.clips, self.queue, self.roots)
        self.edits = FrameEdits(self.clips, self.queue, self.roots)

    def app(self) -> Starlette:
        """Return the routes, unguarded."""
        clip = "/api/clips/{clip}"
        routes = [
            Route("/", self.index),
            Route("/static/{name}", self.static),
            Route("/api/methods", self.methods),
            Route("/api/clips", self.clips_list, methods=["GET"]),
            Route("/api/clips", self.clip_open, methods=["POST"]),
            Route(clip, self.clip_about, methods=["GET"]),
            Route(clip, self.clip_forget, methods=["DELETE"]),
            Route(f"{clip}/proxy", self.proxy),
            Route(f"{clip}/frames/{{frame:int}}.png", self.still),
            Route(f"{clip}/frames/{{frame:int}}.jpg", self.thumbnail),
            Route(f"{clip}/paint/{{frame:int}}", self.paint, methods=["PUT", "GET", "DELETE"]),
            Route(f"{clip}/draft", self.draft, methods=["PUT", "GET"]),
            Route(f"{clip}/cutout", self.cutout, methods=["POST"]),
            Route(f"{clip}/carry", self.carry, methods=["POST"]),
            Route(f"{clip}/coverage", self.coverage, methods=["POST"]),
            *self.edits.routes(),
            *self.runs.routes(),
        ]
        return Starlette(routes=routes, exception_handlers=HANDLERS, lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        del app
        self.queue.start()
        self.opening = asyncio.create_task(self._open_first())
        watching = asyncio.create_task(self._release_waiting())
        yield
        watching.cancel()
        self.opening.cancel()
        await to_thread.run_sync(self.queue.close)
        self.clips.close()

    async def _release_waiting(self) -> None:
        """Answer whoever waits as soon as the server is to end, which waits for them."""
        while not self.is_ending():
            await asyncio.sleep(0.1)
        self.runs.ending = True
        await to_thread.run_sync(self.clips.close)

    async def _open_first(self) -> None:
        for path in reversed(self.first):
            with contextlib.suppress(RetouchError):  # the page lists what could be opened
                await self.clips.open(path.expanduser().absolute())

    def _device(self, word: str) -> str:
        if word not in self.devices:
            self.devices[word] = self.clips.eyes.call("device", {"word": word})
        return self.devices[word]

    # --- the page and what it is drawn from

    async def index(self, request: Request) -> Response:
        """The page, with its token."""
        del request
        page = (STATIC / "index.html").read_text(encoding="utf-8").replace("{token}", self.token)
        return Response(page, media_type="text/html")

    async def static(self, request: Request) -> Response:
        """One of the page's own files."""
        names = {path.name: path for path in STATIC.iterdir() if path.suffix in (".js", ".css")}
        path = names.get(request.path_params["name"])
        if path is None:
            raise NotThere("there is no such file")
        return FileResponse(path, media_type=TYPES[path.suffix])

    async def methods(self, request: Request) -> Response:
        """All methods with their options, from which the form is drawn."""
        del request
        told = []
        for name in registry.names():
            try:
                told.append(_method(name))
            except RetouchError as error:
                told.append({"name": name, "error": str(error), "hint": error.hint})
        shared = {"compute": _options(Compute), "output": _options(Output)}
        return JSONResponse({"methods": told, **shared})

    # --- clips

    async def clips_list(self, request: Request) -> Response:
        """All clips, once those named at the start are open."""
        del request
        await asyncio.shield(self.opening)
        return JSONResponse(self.clips.listed())

    async def clip_open(self, request: Request) -> Response:
        """Take in a clip: its bytes, or its path."""
        if request.headers.get("content-type", "").startswith("application/json"):
            path = (await json_of(request)).get("path")
            if not isinstance(path, str):
                raise RequestError("no path is given", hint='Send {"path": "/folder/clip.mp4"}.')
            return JSONResponse(await self.clips.open(inside(Path(path), readable(self.roots))), 201)
        name = re.sub(r"[^\w .()-]", "_", request.headers.get("x-filename", ""))[:80]
        return JSONResponse(await self.clips.take(request.stream(), name or "clip"), 201)

    async def clip_about(self, request: Request) -> Response:
        """One clip."""
        return JSONResponse(self.clips.about(request.path_params["clip"]))

    async def clip_forget(self, request: Request) -> Response:
        """Forget a clip."""
        self.clips.forget(request.path_params["clip"])
        return Response(status_code=204)

    async def proxy(self, request: Request) -> Response:
        """The small copy; 202 while it is made."""
        clip = request.path_params["clip"]
        done = self.clips.start_proxy(clip)
        if done is not None:
            return JSONResponse({"done": done}, 202)
        return FileResponse(self.clips.place(clip) / "proxy.mp4", media_type="video/mp4")

    async def still(self, request: Request) -> Response:
        """One frame, exactly."""
        return FileResponse(await self.clips.still(**request.path_params), media_type="image/png")

    async def thumbnail(self, request: Request) -> Response:
        """One frame, small."""
        side = request.query_params.get("side", "96")
        if not side.isdecimal() or not 16 <= int(side) <= 640:
            raise RequestError(f"side is {side[:20]}; it must be 16 to 640")
        path = await self.clips.still(**request.path_params, side=int(side))
        return FileResponse(path, media_type="image/jpeg")

    async def paint(self, request: Request) -> Response:
        """What is painted on a frame: taken, given or forgotten."""
        clip, frame = request.path_params["clip"], request.path_params["frame"]
        layer = request.query_params.get("layer", "")
        if layer and not re.fullmatch("[0-7]", layer):
            raise RequestError(f"there is no layer {layer[:20]}", hint="layers are 0 to 7")
        if request.method == "PUT":
            return JSONResponse(await self.clips.paint(clip, frame, await request.body(), layer))
        if request.method == "DELETE":
            await self.clips.unpaint(clip, frame, layers=request.query_params.get("layers") != "keep")
            return Response(status_code=204)
        path = self.clips.place(clip) / (f"layers/{frame}-{layer}.png" if layer else f"paint/{frame}.png")
        return file_answer(path)

    async def draft(self, request: Request) -> Response:
        """Where the work on a clip stands, in the page's own words."""
        clip = request.path_params["clip"]
        path = self.clips.place(clip) / "draft.json"
        if request.method == "PUT":
            self.clips.about(clip)  # refused where the file is another one by now, and with it a run
            write_whole(path, json.dumps(await json_of(request)))
            return Response(status_code=204)
        return file_answer(path) if path.exists() else JSONResponse({})

    async def cutout(self, request: Request) -> Response:
        """What marks select on a frame."""
        given = await json_of(request)
        frame, marks = number_in(given, "frame"), given.get("marks", {})
        content = await self.clips.cutout(request.path_params["clip"], frame, _marks(marks))
        return Response(content, media_type="image/png")

    async def carry(self, request: Request) -> Response:
        """A frame as the paint will make it."""
        given = await json_of(request)
        clip, frame = request.path_params["clip"], number_in(given, "frame")
        content = await self.clips.carry(clip, frame, self._object(given))
        return Response(content, media_type="image/jpeg")

    async def coverage(self, request: Request) -> Response:
        """Where the paint will hold."""
        given = await json_of(request)
        return JSONResponse(await self.clips.coverage(request.path_params["clip"], self._object(given)))

    def _object(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What says what the object is: marks, and files that must lie where the page may read."""
        files = {
            name: str(inside(Path(given[name]), readable(self.roots)))
            for name in ("mask", "atlas")
            if given.get(name)
        }
        return {**_marks(given), **files}


def _marks(given: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the marks in what a page sent, spelled as on the command line.

    Raises:
        RequestError: they are no lists of texts.
    """
    marks = {kind: given[kind] for kind in ("box", "stroke", "outside", "polygon") if kind in given}
    for texts in marks.values():
        if not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
            raise RequestError("marks are lists of texts", hint='For example {"box": ["0:20,20 76,76"]}.')
    return marks


def _method(name: str) -> dict[str, object]:
    spec = registry.method(name)
    texts = {"name": spec.name, "title": spec.title, "summary": spec.summary, "needs": list(spec.needs)}
    paper = asdict(spec.paper) if spec.paper else None
    presets = {preset: dict(values) for preset, values in spec.presets.items()}
    return {**texts, "presets": presets, "paper": paper, "options": _options(spec.params)}


def _options(params: type[BaseModel]) -> list[dict[str, object]]:
    """Return the options of a class as plain values."""
    plain = json.loads(json.dumps([asdict(option) for option in describe(params)], default=str))
    return [{**told, "bounds": option.bounds} for told, option in zip(plain, describe(params), strict=True)]
