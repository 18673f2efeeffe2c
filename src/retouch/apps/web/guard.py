"""Who may ask the page's server for what: hosts, origins, the token, sizes and waiting times. Plain ASGI.

A page on another site can make a browser send requests here. So the host must be ours, which stops a name
that was pointed at this machine; whatever changes something must come from our own page and carry the token
in a header, which no other site can send; and nothing here is shown inside, or read by, another site.
"""

import asyncio
import contextlib
import hmac
import json
import secrets
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any, Final, final
from urllib.parse import parse_qs

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from retouch.errors import RequestError

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    b"content-security-policy": POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
}
JSON_LIMIT: Final = 1 << 20
PICTURE_LIMIT: Final = 1 << 28
HEADER_SECONDS: Final = 30.0


@final
class Guard:
    """Lets through what our own page asks for, and answers everything else itself."""

    def __init__(self, app: ASGIApp, *, token: str, hosts: Iterable[str], upload_limit: int) -> None:
        """`hosts` are the names with their port under which a browser may know this server."""
        self.app, self.token = app, token
        self.hosts = frozenset(hosts)
        self.upload_limit = upload_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal:
            await _answer(send, *refusal)
            return
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["path"] == "/" and self._is_token(given):
            cookie = f"{self._cookie(headers)}={self.token}; HttpOnly; SameSite=Strict; Path=/"
            await _answer(send, 303, "", "", {b"location": b"/", b"set-cookie": cookie.encode()})
            return
        if not (self._is_token(headers.get("x-retouch", "")) or self._is_token(self._kept(headers))):
            await _answer(send, 401, "this page has a key", "Open the address that retouch web printed.")
            return
        try:
            await self.app(scope, _Bounded(receive, self._limit(scope)), _guarded(send))
        except asyncio.CancelledError:  # the server ends, and this took too long
            with contextlib.suppress(RuntimeError):  # the answer has begun already
                await _answer(send, 503, "the server was ended", "Start it again: retouch web")

    def _refusal(self, scope: Scope, headers: Mapping[str, str]) -> tuple[int, str, str] | None:
        """What is wrong with a request, before any route sees it."""
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or headers["host"].lower() not in self.hosts:
            return 421, "this server goes by another name", "Open the address that retouch web printed."
        if any(part in scope["path"] for part in ("\0", "\\", "/../", "//")) or scope["path"].endswith("/.."):
            return 400, "the path is none of ours", ""
        if scope["method"] in ("GET", "HEAD"):
            return None
        if headers.get("origin", "") != f"http://{headers['host'].lower()}":
            return 403, "the request comes from another page", "Use the page itself."
        if headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return 403, "the request comes from another site", "Use the page itself."
        if not self._is_token(headers.get("x-retouch", "")):
            return 403, "the request does not carry the page's token", "Send it in the header X-Retouch."
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._limit(scope):
            return 413, f"at most {self._limit(scope)} bytes are taken here", "Send less."
        return None

    def _limit(self, scope: Scope) -> int:
        is_json = dict(scope["headers"]).get(b"content-type", b"").startswith(b"application/json")
        if scope["path"] == "/api/clips" and not is_json:
            return self.upload_limit
        return PICTURE_LIMIT if "/paint/" in scope["path"] and not is_json else JSON_LIMIT

    def _cookie(self, headers: Mapping[str, str]) -> str:
        """The cookie's name, another one for each port, since browsers keep cookies by host alone."""
        return f"retouch-{headers['host'].rpartition(':')[2]}"

    def _kept(self, headers: Mapping[str, str]) -> str:
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self._cookie(headers))
        except CookieError:
            return ""
        return found.value if found else ""

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.token.encode())


@final
class _Bounded:
    """A request's body, cut off with an error when it grows past a limit."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self.receive, self.left = receive, limit

    async def __call__(self) -> Message:
        message = await self.receive()
        self.left -= len(message.get("body", b""))
        if self.left < 0:
            raise TooLarge("more bytes came than are taken here", hint="Send less.")
        return message


class TooLarge(RequestError):
    """A request whose body is too large."""


def _guarded(send: Send) -> Send:
    """Add what every answer carries, which may have a policy of its own; each refusal becomes JSON."""
    refused: dict[bytes, bytes] | None = None

    async def guarded(message: Message) -> None:
        nonlocal refused
        if message["type"] == "http.response.start":
            have = dict(message["headers"])
            if message["status"] >= 400 and have.get(b"content-type") != b"application/json":
                refused = {name: have[name] for name in (b"allow", b"content-range") if name in have}
                phrase = HTTPStatus(message["status"]).phrase.lower()
                await _answer(send, message["status"], phrase, "Use the page itself.", refused)
            message["headers"] += [(name, value) for name, value in HEADERS.items() if name not in have]
        if refused is None:
            await send(message)

    return guarded


async def _answer(
    send: Send, status: int, error: str, hint: str, more: Mapping[bytes, bytes] | None = None
) -> None:
    body = json.dumps({"error": error, "hint": hint}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    close = [(b"connection", b"close")] if status == 413 else []
    start = {"type": "http.response.start", "status": status}
    await send({**start, "headers": [*headers, *close, *HEADERS.items(), *(more or {}).items()]})
    await send({"type": "http.response.body", "body": body})


def new_token() -> str:
    """Return a secret that nobody guesses."""
    return secrets.token_urlsafe(24)


def inside(path: Path, roots: Iterable[Path]) -> Path:
    """Return a path with its links followed, if it lies in one of the folders, and what is in it does too.

    Raises:
        RequestError: it lies elsewhere.
    """
    try:
        found = path.expanduser().resolve()
        real = [root.resolve() for root in roots]
        inner = list(found.iterdir()) if found.is_dir() else []
    except (OSError, ValueError, RuntimeError):
        raise RequestError("a path cannot be followed", hint="Give another one.") from None
    for place in [found, *(link.resolve() for link in inner if link.is_symlink())]:
        if not any(place.is_relative_to(root) for root in real):
            raise RequestError(
                f"{path} lies outside the folders that this page may use",
                hint="Start it with: retouch web --root FOLDER",
            )
    return found


@final
class Patient(asyncio.Protocol):
    """The server's own protocol, but whoever does not send a whole header in time is cut off."""

    def __init__(self, *given: Any, **named: Any) -> None:
        self.inner = H11Protocol(*given, **named)
        self.timer: asyncio.TimerHandle | None = None
        self.seen: object = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.inner.connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Pass it on."""
        self.inner.data_received(data)

    def eof_received(self) -> None:
        """Pass it on."""
        self.inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        if self.timer:
            self.timer.cancel()
        self.inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """Pass it on."""
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self.inner.resume_writing()

    def _wait(self) -> None:
        """Look again and again; a header that is no further than last time took too long."""
        cycle = self.inner.cycle
        if self.timer and self.seen is cycle and self.inner.conn.their_state is h11.IDLE:
            self.transport.abort()
            return
        self.seen = cycle
        self.timer = asyncio.get_running_loop().call_later(HEADER_SECONDS, self._wait)
