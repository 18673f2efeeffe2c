"""Who says nothing is cut off, who asks is answered however long that takes, and a refusal is JSON."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("starlette", reason="the extra `web` is not installed")
pytest.importorskip("uvicorn", reason="the extra `web` is not installed")
import uvicorn
from starlette.types import Message, Receive, Scope, Send

from retouch.apps.web.guard import Guard, Patient, TooLarge

SECONDS = 1.0
"""What a header may take here."""
PATIENCE = 60.0
"""Seconds that a busy machine may take to cut a connection."""


async def answer_late(scope: Scope, receive: Receive, send: Send) -> None:
    del scope, receive
    await asyncio.sleep(2.5 * SECONDS)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"here it is"})


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retouch.apps.web.guard.HEADER_SECONDS", SECONDS)


@contextlib.contextmanager
def connection(first: bytes) -> Iterator[socket.socket]:
    """A connection on which something was sent before its server begins to look."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        server = uvicorn.Server(
            uvicorn.Config(answer_late, http=Patient, ws="none", lifespan="off", log_config=None)
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        with socket.create_connection(bound.getsockname(), timeout=PATIENCE) as line:
            line.sendall(first)
            thread.start()
            yield line
        server.should_exit = True
        thread.join()


def is_cut(line: socket.socket) -> bool:
    try:
        return line.recv(100) == b""
    except ConnectionResetError:
        return True


def test_half_a_header_is_waited_for_no_longer_than_it_may_take() -> None:
    with connection(b"GET / HT") as line:
        assert is_cut(line)


def test_a_header_that_comes_drop_by_drop_is_cut_off_too() -> None:
    with connection(b"GET / HTTP/1.1\r\n") as line:
        line.settimeout(0.05)
        until = time.monotonic() + PATIENCE
        cut = False
        while not cut and time.monotonic() < until:
            try:
                line.sendall(b"a: b\r\n")
                cut = line.recv(100) == b""
            except TimeoutError:
                continue
            except (ConnectionResetError, BrokenPipeError):
                cut = True
        assert cut


def test_an_answer_may_take_longer_than_a_header() -> None:
    with connection(b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n") as line:
        text = b""
        while piece := line.recv(1000):
            text += piece
    assert text.startswith(b"HTTP/1.1 200")
    assert b"here it is" in text


def test_a_body_is_cut_off_where_it_grows_past_what_is_taken_there() -> None:
    taken = 0

    async def take(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal taken
        del scope, send
        while True:
            taken += len((await receive())["body"])

    async def feed() -> Message:
        return {"type": "http.request", "body": b"1234", "more_body": True}

    async def ignore(message: Message) -> None:
        raise AssertionError(message)

    guard = Guard(take, token="secret", hosts=["here"], upload_limit=10)
    headers = [(b"host", b"here"), (b"x-retouch", b"secret"), (b"origin", b"http://here")]
    scope = {"type": "http", "method": "POST", "path": "/api/clips", "query_string": b"", "headers": headers}
    with pytest.raises(TooLarge):
        asyncio.run(guard(scope, feed, ignore))
    assert taken == 8


def test_a_refusal_that_is_no_json_becomes_it_and_keeps_what_browsers_go_by() -> None:
    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        headers = [(b"content-type", b"text/plain"), (b"allow", b"GET"), (b"x-other", b"1")]
        await send({"type": "http.response.start", "status": 405, "headers": headers})
        await send({"type": "http.response.body", "body": b"Method Not "})
        await send({"type": "http.response.body", "body": b"Allowed"})

    said: list[Message] = []

    async def keep(message: Message) -> None:
        said.append(message)

    async def nothing() -> Message:
        return {"type": "http.disconnect"}

    guard = Guard(refuse, token="secret", hosts=["here"], upload_limit=1)
    headers = [(b"host", b"here"), (b"x-retouch", b"secret")]
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": headers}
    asyncio.run(guard(scope, nothing, keep))
    start, body = said
    assert start["status"] == 405
    told = dict(start["headers"])
    assert (told[b"content-type"], told[b"allow"]) == (b"application/json", b"GET")
    assert json.loads(body["body"]) == {"error": "method not allowed", "hint": "Use the page itself."}
