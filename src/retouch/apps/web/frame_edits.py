"""Frames that a model edits by words, each on its way to be a layer of paint.

What was asked lies in the clip's folder as `edits/FRAME.json`, and beside it the answer, `edits/FRAME.png`, a
layer of the clip's size, until the page has taken it. So a page that is closed meanwhile finds it again.
"""

import json
import threading
from pathlib import Path
from typing import Annotated, Any, Final, Literal, final

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from retouch.apps.queue import Queue
from retouch.apps.web.answers import file_answer, json_of, refusal_of
from retouch.apps.web.clips import Clips, check_frame
from retouch.apps.web.runs import check_inside, readable
from retouch.compute import Compute
from retouch.errors import RequestError, RetouchError
from retouch.events import Advanced, Event, Started
from retouch.fields import parse
from retouch.files import beside, remove, write_whole
from retouch.params import (
    Boxes,
    Control,
    FrameNumber,
    Guidance,
    Model,
    Outsides,
    Params,
    Polygons,
    Role,
    Steps,
    Strength,
    Strokes,
)

MOST: Final = 16
"""Frames that may be edited, or wait for it, at once."""


@final
class FrameEdit(Params):
    """What a model is to make of one frame."""

    frame: FrameNumber = Field(ge=0, description="The frame; the first is 0.")
    prompt: Annotated[
        str, Role.PROMPT, Field(min_length=1, description="What the model is to do, or to show.")
    ]
    model: Model = "tiny:sd"
    where: Literal["anywhere", "box", "cutout"] = Field(
        default="anywhere", description="Where the edit may be: in the frame's boxes, in what marks cut out."
    )
    box: Boxes = ()
    stroke: Strokes = ()
    outside: Outsides = ()
    polygon: Polygons = ()
    seed: int = Field(default=0, ge=0, lt=2**63, description="Another seed, another edit.")
    steps: Steps | None = None
    guidance: Guidance | None = None
    strength: Strength | None = None
    control: Control | None = None
    anyway: bool = Field(default=False, description="Go on with words that the model does not know.")
    compute: Compute = Field(default=Compute(), description="Device, precision and limits.")


@final
class FrameEdits:
    """The frames that are being edited, and those whose answers wait to be taken."""

    def __init__(self, clips: Clips, queue: Queue, roots: tuple[Path, ...]) -> None:
        self.clips, self.queue, self.roots = clips, queue, roots
        self.at_work: dict[Path, AtWork] = {}
        self.taking = threading.Lock()

    def routes(self) -> list[Route]:
        """Return the routes."""
        edits = "/api/clips/{clip}/edits"
        return [
            Route("/api/editors", self.editors),
            Route(edits, self.edits_list, methods=["GET"]),
            Route(edits, self.start, methods=["POST"]),
            Route(f"{edits}/{{frame:int}}.png", self.layer),
            Route(f"{edits}/{{frame:int}}", self.forget, methods=["DELETE"]),
        ]

    async def editors(self, request: Request) -> Response:
        """The models on this machine that edit pictures, and whether they read what to show or what to do."""
        del request
        return JSONResponse(await self.clips.ask("editors"))

    async def edits_list(self, request: Request) -> Response:
        """What was asked of a clip's frames and not yet taken, and how each stands."""
        places = sorted(self.clips.place(request.path_params["clip"]).glob("edits/[0-9]*.json"))
        return JSONResponse([self.about(place) for place in places])

    async def start(self, request: Request) -> Response:
        """Have a frame edited; what is known to be wrong is told at once."""
        wanted = parse(FrameEdit, await json_of(request))
        return JSONResponse(await self.begin(request.path_params["clip"], wanted), 202)

    async def begin(self, clip: str, wanted: FrameEdit) -> dict[str, Any]:
        """Begin to edit a frame, and return how that stands.

        Raises:
            RetouchError: it cannot be edited so, or not now.
        """
        about = self.clips.about(clip)
        check_frame(wanted.frame, about)
        for name in ("model", "control"):
            check_inside(name, getattr(wanted, name), readable(self.roots), model=True)
        index, asked = self.clips.place(clip) / "index.json", wanted.model_dump(mode="json")
        given = {"path": about["path"], "index": str(index), "asked": asked}
        await self.clips.ask("check_frame_edit", **given)
        place = self._place(clip, wanted.frame)
        at_work = [work.place for work in self.at_work.values() if not work.is_over]
        if place in at_work:
            raise RequestError(f"frame {wanted.frame} is being edited already", hint="Stop that first.")
        if len(at_work) >= MOST:
            raise RequestError(f"{MOST} frames are being edited already", hint="Wait for one, or stop it.")
        self.drop(place)
        place.parent.mkdir(exist_ok=True)
        write_whole(place, json.dumps(asked))
        work = self.at_work[place] = AtWork(place)
        threading.Thread(target=self._carry_out, args=(work, given), daemon=True).start()
        return self.about(place)

    async def layer(self, request: Request) -> Response:
        """The answer: transparent where the frame stays as it is."""
        return file_answer(self._place(**request.path_params).with_suffix(".png"))

    async def forget(self, request: Request) -> Response:
        """Stop an edit, or forget what came of it."""
        self.drop(self._place(**request.path_params))
        return Response(status_code=204)

    def _place(self, clip: str, frame: int) -> Path:
        return self.clips.place(clip) / f"edits/{frame}.json"

    def drop(self, place: Path) -> None:
        """Stop the edit of a frame, or forget what came of it."""
        with self.taking:
            if work := self.at_work.pop(place, None):
                work.stopped.set()
            for path in (place, place.with_suffix(".png")):
                path.unlink(missing_ok=True)

    def about(self, place: Path) -> dict[str, Any]:
        """Return what was asked of a frame, and how that stands."""
        asked = json.loads(place.read_text(encoding="utf-8"))
        if place.with_suffix(".png").exists():
            return {"asked": asked, "state": "done"}
        work = self.at_work.get(place)
        return {"asked": asked, **(work.told if work else {"state": "stopped"})}

    def _carry_out(self, work: "AtWork", given: dict[str, Any]) -> None:
        answer = work.place.with_suffix(".png")
        draft = beside(answer)
        try:
            self.queue.between_runs(
                given["asked"]["compute"]["device"],
                "edit_frame",
                {**given, "out": str(draft)},
                listen=work.hear,
                stopped=lambda: work.stopped.is_set() or not work.place.exists(),
            )
            with self.taking:
                if not work.stopped.is_set():
                    draft.replace(answer)
        except (RetouchError, OSError) as error:
            work.fail(error)
        finally:
            work.is_over = True
            remove(draft)


@final
class AtWork:
    """One frame that is being edited, or waits until its device is free."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.stopped = threading.Event()
        self.is_over = False
        self.told: dict[str, Any] = {"state": "waiting"}

    def hear(self, event: Event) -> None:
        """Take note of how far it is."""
        if isinstance(event, Started | Advanced):
            done = event.done if isinstance(event, Advanced) else 0
            self.told = {"state": "running", "stage": event.stage, "share": done / max(1, event.total)}

    def fail(self, error: RetouchError | OSError) -> None:
        """Take note of why it ended; of a clip that was forgotten nobody asks."""
        refusal = refusal_of(error) if isinstance(error, RetouchError) else {"error": str(error), "hint": ""}
        self.told = {"state": "failed", **refusal}
