"""How the page's server answers: files by a table of types, every refusal as `{error, hint, field?}`."""

import contextlib
import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from retouch import registry
from retouch.apps.web.clips import NotThere
from retouch.apps.web.guard import TooLarge
from retouch.compute import Compute
from retouch.errors import RequestError, ResourceError, RetouchError
from retouch.request import EditRequest, Output

TYPES: Final = {
    ".mp4": "video/mp4", ".mov": "video/quicktime", ".mkv": "video/x-matroska", ".webm": "video/webm",
    ".gif": "image/gif", ".png": "image/png", ".jpg": "image/jpeg", ".txt": "text/plain; charset=utf-8",
    ".json": "application/json", ".js": "text/javascript", ".css": "text/css", ".html": "text/html",
}  # fmt: skip
STATUS: Final = ((NotThere, 404), (TooLarge, 413), (ResourceError, 503), (RetouchError, 400))
"""The first that an error is decides its status."""


async def json_of(request: Request) -> dict[str, Any]:
    """Return the JSON object that came.

    Raises:
        RequestError: something else did.
    """
    try:
        found = json.loads(await request.body())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise RequestError("the request is no JSON object", hint="Send one.")
    return found


def number_in(given: Mapping[str, Any], name: str) -> int:
    """Return a whole number, not below 0, from what came.

    Raises:
        RequestError: there is none of that name.
    """
    found = given.get(name)
    if isinstance(found, bool) or not isinstance(found, int) or found < 0:
        raise RequestError(f"{name} is {str(found)[:20]}; it must be a whole number, 0 or more")
    return found


def file_answer(path: Path, *, download: bool = False) -> Response:
    """Return a file, of a type that no browser takes for a page or a program.

    Raises:
        NotThere: there is none.
    """
    if path.suffix not in TYPES or not path.is_file():
        raise NotThere("there is no such file")
    name = f"{path.parent.name}{path.suffix}" if download else None
    return FileResponse(path, media_type=TYPES[path.suffix], filename=name, content_disposition_type="inline")


def _refuse(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, RetouchError)
    status = next(code for kind, code in STATUS if isinstance(error, kind))
    return JSONResponse(refusal_of(error), status)


def refusal_of(error: RetouchError) -> dict[str, str]:
    """Return what a page is told of an error, with the field that it is about, if it is about one."""
    told = {"error": str(error), "hint": error.hint}
    word = re.match(r"(?:there is no parameter ')?([a-z_.]+)", str(error))
    field = word[1].rpartition(".")[2] if word else ""
    return {**told, "field": field} if field in _fields() else told


@functools.cache
def _fields() -> frozenset[str]:
    """Return the name of everything that a form can show."""
    kinds: list[type[BaseModel]] = [Compute, Output, EditRequest]
    for name in registry.names():
        with contextlib.suppress(RetouchError):  # a plug-in that cannot be loaded shows nothing
            kinds.append(registry.method(name).params)
    return frozenset(name for kind in kinds for name in kind.model_fields)


def _refuse_unknown(request: Request, error: Exception) -> Response:
    del request
    hint = "What it was stands where the server was started."
    return JSONResponse({"error": f"unexpected {type(error).__name__}", "hint": hint}, 500)


HANDLERS: Final = {RetouchError: _refuse, Exception: _refuse_unknown}
