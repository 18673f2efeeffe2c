"""`retouch web`: the page, for one person at one machine."""

import importlib.util
import resource
import socket
import webbrowser
from pathlib import Path

import click

from retouch.errors import RequestError, ResourceError
from retouch.files import system_error

PORT = 8327
HERE = ("127.0.0.1", "localhost", "::1")
UPLOAD = 8 << 30
"""Bytes that a clip may have that is sent to the page."""


@click.command()
@click.argument("clips", nargs=-1, type=click.Path(path_type=Path), metavar="[CLIP]...")
@click.option(
    "--root",
    "roots",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A folder that the page may read clips from and write results to. Repeatable.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="0 takes any.")
@click.option("--open", "show", is_flag=True, help="Open the page in the browser.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Listen here; needs --token elsewhere.")
@click.option("--public-name", default="", metavar="NAME[:PORT]", help="The name that others call it by.")
@click.option("--token", default="", help="The page's key; a new one at each start if not given.")
@click.option("--allow-download", is_flag=True, help="Let runs fetch the models that they name.")
def web(
    clips: tuple[Path, ...],
    roots: tuple[Path, ...],
    port: int,
    host: str,
    public_name: str,
    token: str,
    *,
    show: bool,
    allow_download: bool,
) -> None:
    """Open a page to paint on clips, mark objects, run any method and compare.

    It answers to this machine only, and to whoever has the address that it prints.
    """
    if not all(importlib.util.find_spec(name) for name in ("starlette", "uvicorn")):
        raise ResourceError("the page needs two more packages", hint="pip install 'retouch[web]'")
    if host not in HERE and len(token) < 16:
        raise RequestError(
            f"others could reach {host}, and the page runs edits for whoever asks",
            hint="give --token with 16 characters or more, or leave --host out",
        )
    for place in (*clips, *roots):
        if not place.exists():
            raise RequestError(f"there is no {place}", hint="name a clip or a folder that exists")
    import uvicorn

    from retouch.apps.web.guard import Guard, Patient, new_token
    from retouch.apps.web.server import Page

    _take_files()
    bound = _bound(host, port)
    port = bound.getsockname()[1]
    token = token or new_token()
    names = [f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]", *([host] * (host not in HERE)))]
    hosts = [*names, *([public_name.lower()] * bool(public_name))]
    page = Page(token=token, roots=(*roots, *clips), clips=clips, allow_download=allow_download)
    app = Guard(page.app(), token=token, hosts=hosts, upload_limit=UPLOAD)
    address = f"http://{public_name or names[0]}/?token={token}"
    click.echo(f"retouch is at {address}")
    click.echo("  press Ctrl-C to end it; runs can go on another time", err=True)
    if show:
        webbrowser.open(address)
    config = uvicorn.Config(
        app, http=Patient, ws="none", log_level="warning", access_log=False, server_header=False,
        timeout_keep_alive=10, timeout_graceful_shutdown=2,
    )  # fmt: skip
    server = uvicorn.Server(config)
    page.is_ending = lambda: server.should_exit
    server.run(sockets=[bound])


def _bound(host: str, port: int) -> socket.socket:
    """Return a socket at a place, or at one of the next ports if the usual one is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for at in range(port, port + 20) if port == PORT else [port]:
        bound = socket.socket(family)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((host, at))
            bound.listen(2048)  # whoever follows the printed address at once waits, and is not refused
        except OSError as error:
            bound.close()
            last = error
            continue
        return bound
    raise system_error(last, Path(f"{host}:{port}"), done="used", hint="Choose another --port.")


def _take_files() -> None:
    """Let this process hold as many connections as the system allows it, so that idle ones stop nobody."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65536), most) if most > 0 else (65536, most))
