"""Cuts the network off a Python process that has this folder on its path: it reaches this machine only."""

import errno
import os
import sys
from pathlib import Path

HERE = ("", "localhost", "::1")


def refuse_strangers(event: str, arguments: tuple[object, ...]) -> None:
    """Note where a process wants to go, and tell it that there is no way."""
    match event, arguments:
        case (("socket.connect" | "socket.sendto"), (_, (str(host), *_))):
            pass
        case "socket.getaddrinfo", (str(host), *_):
            pass
        case _:
            return
    if host not in HERE and not host.startswith("127."):
        with Path(os.environ["RETOUCH_TEST_STRANGERS"]).open("a", encoding="utf-8") as file:
            file.write(f"{event} {host}\n")
        raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH), host)


sys.addaudithook(refuse_strangers)
