"""The page's event streams: one that has nothing to tell says so, and a closed one keeps no place."""

from collections.abc import AsyncGenerator
from typing import cast

import anyio
import pytest

pytest.importorskip("starlette", reason="the extra `web` is not installed")

from starlette.requests import Request
from starlette.responses import StreamingResponse

from retouch.apps.queue import Queue, enqueue
from retouch.apps.web.clips import Clips
from retouch.apps.web.runs import STILL_HERE, Runs
from retouch.request import EditRequest


def test_a_stream_with_nothing_to_tell_says_within_fifteen_seconds_that_it_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert STILL_HERE <= 14.5  # it looks four times a second
    monkeypatch.setattr("retouch.apps.web.runs.STILL_HERE", 0.0)
    folder = enqueue(EditRequest.model_validate({"video": "/clip.mp4", "method": "paint"}))
    runs = Runs(Clips(), Queue(), ())
    scope = {"type": "http", "headers": [], "path_params": {"run": folder.name}}
    heard = list[str]()

    async def listen() -> None:
        answer = await runs.run_events(Request(scope))
        assert isinstance(answer, StreamingResponse)
        lines = cast("AsyncGenerator[str]", answer.body_iterator)
        assert runs.streams == 1
        heard.extend([await anext(lines) for _ in range(4)])
        await lines.aclose()

    anyio.run(listen)
    assert heard == ["retry: 1000\n\n", 'event: state\ndata: "queued"\n\n', *2 * [": still here\n\n"]]
    assert runs.streams == 0
