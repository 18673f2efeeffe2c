"""A page's server in a process of its own, and requests to it as any program would make them."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, final
from urllib.parse import urlsplit

CUT_OFF = Path(__file__).with_name("loopback_only")
"""A process with this folder first on its path reaches this machine only."""


class Answer(NamedTuple):
    """What came back."""

    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def told(self) -> Any:
        """The JSON in it."""
        return json.loads(self.body)


@final
class PageServer:
    """A running `retouch web`."""

    def __init__(self, process: "subprocess.Popen[str]", home: Path) -> None:
        assert process.stdout
        self.process, self.home = process, home
        self.address = process.stdout.readline().split()[-1]
        parts = urlsplit(self.address)
        self.port, self.token = parts.port or 0, parts.query.removeprefix("token=")

    def workers(self) -> list[int]:
        """The processes that it started."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it has just ended
                if path.read_text().rpartition(")")[2].split()[1] == str(self.process.pid):
                    found.append(int(path.parent.name))
        return found

    def resident(self) -> float:
        """The megabytes of main memory that it holds itself."""
        return resident(self.process.pid)

    @property
    def own(self) -> dict[str, str]:
        """The headers of a request from our own page."""
        host = f"127.0.0.1:{self.port}"
        return {"Host": host, "Origin": f"http://{host}", "X-Retouch": self.token}

    def ask(
        self, path: str, method: str = "GET", body: object = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """Send a request with exactly these headers, those of our own page unless others are given."""
        headers = dict(self.own if headers is None else headers)
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            given = bytes(body) if isinstance(body, bytes) else b""
            for name, value in {"Content-Length": str(len(given)), **headers}.items():
                connection.putheader(name, value)
            connection.endheaders()
            connection.send(given)
            answer = connection.getresponse()
            return Answer(answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()})


def resident(pid: int) -> float:
    """Return the megabytes of main memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextlib.contextmanager
def page_server(
    home: Path, *arguments: object, said: Path | None = None, **environment: str
) -> Iterator[PageServer]:
    """Run a server at any free port while the block does, with this home; its network is cut off.

    What it says on the error stream goes to the file `said`, if one is named.
    """
    strangers = home.with_name(f"{home.name}-strangers")
    with said.open("wb") if said else contextlib.nullcontext() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "retouch", "web", "--port", "0", *map(str, arguments)],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(CUT_OFF), *filter(None, sys.path)]),
                "RETOUCH_TEST_STRANGERS": str(strangers),
                "RETOUCH_HOME": str(home),
                "RETOUCH_OFFLINE": "1",
                "OMP_NUM_THREADS": "1",
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        yield PageServer(process, home)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        finally:
            process.kill()
            process.communicate()
    assert not strangers.exists(), strangers.read_text()
