"""The page's server: its routes, exact frames, what it refuses, and runs that nothing can lose."""

import contextlib
import io
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from counted import FRAMES, number_in, write_kinds
from page_server import CUT_OFF, PageServer, page_server
from PIL import Image

pytest.importorskip("starlette", reason="the extra `web` is not installed")
pytest.importorskip("uvicorn", reason="the extra `web` is not installed")

from retouch import registry
from retouch.apps.cli import run as run_command
from retouch.apps.run_folder import state_of
from retouch.apps.web.guard import HEADERS, POLICY
from retouch.fields import describe
from retouch.media.io import read, read_frame, write
from retouch.testing import Bouncing
from retouch.video import Video
from retouch.world import Change, Clip, Scene, edited_clip

pytestmark = pytest.mark.slow  # the first look at a clip waits for torch to be imported


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory, bouncing: Bouncing) -> Path:
    """A folder that the page may use, with clips of every kind."""
    folder = tmp_path_factory.mktemp("root")
    write(bouncing.video, folder / "clip.mp4")
    write_kinds(folder)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, roots: Path) -> Iterator[PageServer]:
    with page_server(tmp_path_factory.mktemp("home"), "--root", roots) as running:
        yield running


@pytest.fixture(scope="module")
def clip(server: PageServer, roots: Path) -> dict[str, Any]:
    opened = server.ask("/api/clips", "POST", (roots / "clip.mp4").read_bytes())
    assert opened.status == 201, opened.body
    told: dict[str, Any] = opened.told
    return told


def until(true: Callable[[], Any], seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def tint(clip: dict[str, Any], **params: object) -> dict[str, object]:
    return {"video": clip["path"], "method": "tint", "params": params, "compute": {"threads": 1}}


def ended(server: PageServer, run: str) -> dict[str, Any]:
    def over() -> Any:
        told = server.ask(f"/api/runs/{run}").told
        return told if told["state"] not in ("queued", "running") else None

    found: dict[str, Any] = until(over)
    return found


# --- clips


def test_a_clip_that_is_sent_is_known_by_its_digest_and_listed(
    server: PageServer, clip: dict[str, Any]
) -> None:
    facts = {name: clip[name] for name in ("frames", "width", "height", "fps")}
    assert facts == {"frames": 8, "width": 64, "height": 64, "fps": pytest.approx(clip["fps"])}
    assert clip["facts"]["codec"] == "h264"
    assert [each["id"] for each in server.ask("/api/clips").told if each["id"] == clip["id"]] == [clip["id"]]


@pytest.mark.parametrize("name", ["constant.mp4", "varying.mp4", "turned.mp4", "deep.mp4"])
def test_fifty_stills_are_key_frames_bit_for_bit_and_the_copy_has_each_at_its_number(
    server: PageServer, roots: Path, name: str
) -> None:
    opened = server.ask("/api/clips", "POST", {"path": str(roots / name)}).told
    path, source = f"/api/clips/{opened['id']}", read(roots / name)
    assert opened["frames"] == len(source) == FRAMES
    before = random.Random(name).sample(range(FRAMES), 5)
    assert all(still_is(server, path, source, frame) for frame in before)  # by going through the clip
    until(lambda: server.ask(f"{path}/proxy").status == 200)
    for kept in (server.home / "web/clips" / opened["id"] / "stills").iterdir():
        kept.unlink()
    assert all(
        still_is(server, path, source, frame) for frame in random.Random(name).sample(range(FRAMES), 50)
    )
    assert (np.moveaxis(source.frames[7], 0, -1) == read_frame(roots / name, 7)).all()
    copy = roots / f"copy-{name}"
    copy.write_bytes(server.ask(f"{path}/proxy").body)
    small = read(copy)
    assert small.fps == Fraction(opened["rate"])
    assert [number_in(np.moveaxis(frame, 0, -1)) for frame in small.frames] == list(range(FRAMES))
    assert server.ask(f"{path}/proxy", headers={**server.own, "Range": "bytes=0-99"}).status == 206


def still_is(server: PageServer, path: str, source: Video, frame: int) -> bool:
    found = np.asarray(Image.open(io.BytesIO(server.ask(f"{path}/frames/{frame}.png").body)))
    return bool((np.moveaxis(found, -1, 0) == source.frames[frame]).all())


def test_what_is_not_painted_is_the_frames_own(server: PageServer, roots: Path, clip: dict[str, Any]) -> None:
    layer = np.zeros((64, 64, 4), np.uint8)
    layer[10:20, 10:20] = (255, 0, 0, 255)
    layer[30:40, 30:40] = (0, 255, 0, 128)
    put = server.ask(f"/api/clips/{clip['id']}/paint/3", "PUT", png(layer))
    key = np.asarray(Image.open(put.told["path"]))
    source = read_frame(roots / "clip.mp4", 3)
    outside = layer[..., 3] == 0
    assert (key[outside] == source[outside]).all()
    assert (key[10:20, 10:20] == (255, 0, 0)).all()
    assert (key[30:40, 30:40] != source[30:40, 30:40]).any()
    assert server.ask(f"/api/clips/{clip['id']}/paint/3").body == png(layer)
    assert server.ask(f"/api/clips/{clip['id']}/paint/3", "DELETE").status == 204
    assert server.ask(f"/api/clips/{clip['id']}/paint/3").status == 404


def test_marks_select_on_one_frame(server: PageServer, clip: dict[str, Any], bouncing: Bouncing) -> None:
    rows, columns = np.nonzero(bouncing.mask[2, 0])
    box = f"2:{columns.min() - 2},{rows.min() - 2} {columns.max() + 2},{rows.max() + 2}"
    cut = server.ask(f"/api/clips/{clip['id']}/cutout", "POST", {"frame": 2, "marks": {"box": [box]}})
    alpha = np.asarray(Image.open(io.BytesIO(cut.body)))[..., 3] > 127
    truth = np.asarray(bouncing.mask[2, 0]) > 0
    assert (alpha & truth).sum() / (alpha | truth).sum() > 0.7


def test_a_whole_picture_from_elsewhere_becomes_the_frame(server: PageServer, clip: dict[str, Any]) -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (10, 200, 30)).save(file, "JPEG")
    put = server.ask(f"/api/clips/{clip['id']}/paint/6", "PUT", file.getvalue())
    whole = np.asarray(Image.open(io.BytesIO(file.getvalue())))
    assert (np.asarray(Image.open(put.told["path"])) == whole).all()
    assert server.ask(f"/api/clips/{clip['id']}").told["painted"] == {"6": put.told["path"]}
    assert server.ask(f"/api/clips/{clip['id']}/paint/6", "DELETE").status == 204


def test_paint_that_shows_nothing_makes_no_edit(
    server: PageServer, roots: Path, clip: dict[str, Any]
) -> None:
    put = server.ask(f"/api/clips/{clip['id']}/paint/2", "PUT", png(np.zeros((64, 64, 4), np.uint8)))
    assert (np.asarray(Image.open(put.told["path"])) == read_frame(roots / "clip.mp4", 2)).all()
    server.ask(f"/api/clips/{clip['id']}/paint/2", "DELETE")


def test_a_clip_that_is_forgotten_stays_where_it_lies(server: PageServer, roots: Path) -> None:
    own = roots / "own.mp4"
    write(Video(read(roots / "clip.mp4").frames[:3], Fraction(5)), own)
    path = f"/api/clips/{server.ask('/api/clips', 'POST', {'path': str(own)}).told['id']}"
    small = Image.open(io.BytesIO(server.ask(f"{path}/frames/1.jpg?side=32").body))
    assert (small.format, small.size) == ("JPEG", (32, 32))
    assert server.ask(path, "DELETE").status == 204
    assert server.ask(path).status == 404
    assert own.exists()


def test_the_server_itself_loads_no_model(server: PageServer, clip: dict[str, Any]) -> None:
    assert server.ask(f"/api/clips/{clip['id']}/frames/0.png").status == 200
    assert "libtorch" not in Path(f"/proc/{server.process.pid}/maps").read_text()


def test_a_clip_that_is_written_anew_is_another_one(server: PageServer, roots: Path) -> None:
    place = roots / "changing.mp4"
    frames = read(roots / "clip.mp4").frames
    write(Video(frames, Fraction(6)), place)
    first = server.ask("/api/clips", "POST", {"path": str(place)}).told
    path = f"/api/clips/{first['id']}"
    assert still_is(server, path, read(place), 0)
    until(lambda: server.ask(f"{path}/proxy").status == 200)
    write(Video(np.ascontiguousarray(frames[::-1]), Fraction(6)), place, force=True)
    for part in ("", "/proxy", "/frames/0.png", "/frames/0.jpg", "/frames/1.png"):
        gone = server.ask(f"{path}{part}")
        assert (gone.status, gone.told["hint"]) == (404, "Open it again.")
    assert server.ask(f"{path}/draft", "PUT", {}).status == 404
    assert first["id"] not in [each["id"] for each in server.ask("/api/clips").told]
    again = server.ask("/api/clips", "POST", {"path": str(place)}).told
    assert again["id"] != first["id"]
    assert still_is(server, f"/api/clips/{again['id']}", read(place), 0)


# --- frames edited by words


@pytest.fixture(scope="module")
def drawn(server: PageServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, np.ndarray]:
    """The route to the edits of a world clip, words for another colour, and where that shows in frame 1."""
    clip = Clip.of(Scene.sample(2 * 10**9 + 3), 4, 64)
    edited = edited_clip(clip, Change.parse("colour=green"))
    path = write(clip.video, tmp_path_factory.mktemp("drawn") / "drawn.mp4")
    opened = server.ask("/api/clips", "POST", path.read_bytes()).told
    differs = (clip.video.frames[1] != edited.video.frames[1]).any(0)
    return f"/api/clips/{opened['id']}/edits", edited.caption, differs


def test_a_frame_that_is_edited_by_words_is_a_layer_that_shows_only_what_changed(
    server: PageServer, drawn: tuple[str, str, np.ndarray]
) -> None:
    assert {"name": "tiny:sd", "reads": "scene"} in server.ask("/api/editors").told
    edits, words, differs = drawn
    rows, columns = np.nonzero(differs)
    (left, right), (top, bottom) = ((side.min(), side.max() + 1) for side in (columns, rows))
    box = f"1:{left},{top} {right},{bottom}"
    wanted = {"frame": 1, "prompt": words, "where": "box", "box": [box], "steps": 4}
    begun = server.ask(edits, "POST", {**wanted, "compute": {"threads": 1}})
    assert begun.status == 202, begun.body
    until(lambda: server.ask(edits).told[0]["state"] in ("done", "failed"))
    assert server.ask(edits).told[0]["state"] == "done", server.ask(edits).told
    answer = server.ask(f"{edits}/1.png")
    layer = np.asarray(Image.open(io.BytesIO(answer.body)))
    assert layer.shape == (64, 64, 4)
    assert set(np.unique(layer[..., 3])) == {0, 255}
    shows = layer[..., 3] > 0
    inside = np.zeros_like(shows)
    inside[top:bottom, left:right] = True
    assert not (shows & ~inside).any()
    assert not layer[~shows].any()
    frame = f"{edits.removesuffix('edits')}frames/1.png"
    source = np.asarray(Image.open(io.BytesIO(server.ask(frame).body)))
    assert (layer[shows][:, :3] != source[shows]).any()
    assert server.ask(f"{edits}/1", "DELETE").status == 204
    assert server.ask(f"{edits}/1.png").status == 404
    assert server.ask(edits).told == []


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "frame is missing"),
        ({"prompt": ""}, "prompt is ''"),
        ({"prompt": ["a"]}, "prompt is"),
        ({"frame": -1}, "frame is -1"),
        ({"frame": 1e300}, "frame is"),
        ({"frame": 99}, "there is no frame 99"),
        ({"prompt": "a cat"}, "does not know the word 'cat'"),
        ({"model": "/etc"}, "outside the folders"),
        ({"model": "~root/model"}, "model is not allowed"),
        ({"model": "src"}, "outside the folders"),
        ({"model": "tiny:../../etc"}, "outside the folders"),
        ({"model": "hf:../../etc"}, "outside the folders"),
        ({"model": "tiny:svd"}, "no editor of pictures"),
        ({"control": "/etc/passwd"}, "control is not allowed"),
        ({"where": "everywhere"}, "where is"),
        ({"where": "box"}, "no box lies on this frame"),
        ({"where": "box", "box": ["0:1,1 9,9"]}, "no box lies on this frame"),
        ({"where": "box", "box": ["1:-9e300,9 -8e300,9"]}, "no box lies on this frame"),
        ({"where": "box", "box": ["1:nan,1 2,2"]}, "cannot be read"),
        ({"where": "cutout", "box": "1:1,1 9,9"}, "box is"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 10**9}, "steps is"),
        ({"strength": "Infinity"}, "strength is"),
        ({"seed": -1}, "seed is -1"),
        ({"out": "/etc/passwd"}, "no parameter 'out'"),
        ({"compute": {"device": "tpu"}}, "device is"),
    ],
)
def test_an_edit_that_cannot_be_is_refused_at_once_and_leaves_nothing(
    server: PageServer, drawn: tuple[str, str, np.ndarray], given: dict[str, object], says: str
) -> None:
    edits, words, _ = drawn
    refused = server.ask(edits, "POST", {"frame": 1, "prompt": words, **given} if given else {})
    assert 400 <= refused.status < 500, refused.body
    assert says in refused.told["error"]
    assert {"error", "hint"} <= set(refused.told) <= {"error", "hint", "field"}
    assert server.ask(edits).told == []
    assert not list((server.home / "web/clips" / edits.split("/")[3]).glob("edits/*"))


def test_an_edit_waits_for_its_device_and_is_stopped_there(
    server: PageServer, clip: dict[str, Any], drawn: tuple[str, str, np.ndarray]
) -> None:
    edits, words, _ = drawn
    run = server.ask("/api/runs", "POST", tint(clip, steps=600, pause=0.1)).told["run"]
    until(lambda: server.ask(f"/api/runs/{run}").told["state"] == "running")
    wanted = {"frame": 2, "prompt": words, "compute": {"device": "cpu"}}
    assert server.ask(edits, "POST", wanted).told["state"] == "waiting"
    assert "frame 2 is being edited already" in server.ask(edits, "POST", wanted).told["error"]
    assert [each["state"] for each in server.ask(edits).told] == ["waiting"]
    assert server.ask(f"{edits}/2.png").status == 404
    assert server.ask(f"{edits}/2", "DELETE").status == 204
    assert server.ask(edits).told == []
    server.ask(f"/api/runs/{run}/stop", "POST")
    assert ended(server, run)["state"] == "stopped"


# --- methods, plans, runs


def test_the_form_of_every_method_is_complete(server: PageServer) -> None:
    told = {method["name"]: method for method in server.ask("/api/methods").told["methods"]}
    assert list(told) == list(registry.names())
    assert "tint" in told  # a plug-in
    for name in registry.names():
        options = describe(registry.method(name).params)
        shown = [
            (each["name"], each["description"], each["bounds"], each["kind"])
            for each in told[name]["options"]
        ]
        assert shown == [(each.name, each.description, each.bounds, each.kind) for each in options]


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("strength", 1.5), ("red", -1.5)])
def test_a_wrong_value_is_told_at_its_field_as_the_command_line_tells_it(
    server: PageServer,
    clip: dict[str, Any],
    roots: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: object,
) -> None:
    refused = server.ask("/api/plan", "POST", tint(clip, **{name: value}))
    assert refused.status == 400
    assert refused.told["field"] == name
    assert run_command(["edit", "tint", str(roots / "clip.mp4"), f"--{name}", str(value)]) == 2
    assert capsys.readouterr().err.splitlines()[0] == f"error: {refused.told['error']}"


def test_a_request_becomes_one_run_whose_events_come_once_each(
    server: PageServer, clip: dict[str, Any]
) -> None:
    keyed = {**server.own, "Idempotency-Key": "k1"}
    first = server.ask("/api/runs", "POST", tint(clip, steps=30, pause=0.1), keyed)
    assert first.status == 201
    assert server.ask("/api/runs", "POST", tint(clip, steps=30, pause=0.1), keyed).told == first.told
    run = first.told["run"]
    seen: list[int] = []
    texts: list[str] = []
    for _ in range(10):
        seen, texts = followed(server, run, seen, texts)
    while ended(server, run)["state"] != "done" or len(seen) < len(lines_of(server, run)):
        seen, texts = followed(server, run, seen, texts)
    assert seen == list(range(1, len(seen) + 1))
    assert texts == lines_of(server, run)
    result = server.ask(f"/api/runs/{run}/result")
    assert result.headers["content-type"] == "video/mp4"
    report = server.ask(f"/api/runs/{run}/report")
    assert report.headers["content-security-policy"].startswith("sandbox")
    assert server.ask(f"/api/runs/{run}/extras/words.txt").body == b"tinted"
    assert server.ask(f"/api/runs/{run}/extras/request.json").status == 404


def lines_of(server: PageServer, run: str) -> list[str]:
    return (server.home / "runs" / run / "events.jsonl").read_text().splitlines()


def followed(server: PageServer, run: str, seen: list[int], texts: list[str]) -> tuple[list[int], list[str]]:
    """Read a stream after the last event that was seen until another is told, and cut it off."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=120) as line:
        last = {"Last-Event-ID": str(seen[-1])} if seen else {}
        headers = "".join(f"{name}: {value}\r\n" for name, value in {**server.own, **last}.items())
        line.sendall(f"GET /api/runs/{run}/events HTTP/1.1\r\n{headers}\r\n".encode())
        text = b""
        while not re.search(rb"id: \d+\ndata: .*\n\n", text) and (piece := line.recv(4096)):
            text += piece
    for block in text.decode().split("\n\n")[:-1]:  # the last may be half of one
        lines = [each for each in block.splitlines() if each.startswith(("id: ", "data: "))]
        if len(lines) == 2 and lines[0].startswith("id: "):
            seen.append(int(lines[0][4:]))
            texts.append(lines[1][6:])
    return seen, texts


def test_a_run_is_told_replayed_and_forgotten(server: PageServer, clip: dict[str, Any]) -> None:
    wanted = tint(clip, steps=1)
    run = server.ask("/api/runs", "POST", wanted).told["run"]
    assert ended(server, run)["state"] == "done"
    assert run in [each["run"] for each in server.ask("/api/runs").told]
    assert server.ask(f"/api/runs/{run}/request").told["params"]["steps"] == 1
    assert Image.open(io.BytesIO(server.ask(f"/api/runs/{run}/preview/3.jpg").body)).size == (64, 64)
    planned = server.ask("/api/plan", "POST", wanted).told
    assert set(planned) == {"memory", "budget", "fits", "seconds", "sentence", "notes", "notices"}
    assert planned["fits"]
    assert planned["seconds"] > 0
    again = server.ask(f"/api/runs/{run}/replay", "POST")
    assert again.status == 201
    assert again.told["run"] != run
    told = [ended(server, each)["report"]["result_digest"] for each in (run, again.told["run"])]
    assert told[0] == told[1]
    assert server.ask(f"/api/runs/{run}", "DELETE").status == 204
    assert server.ask(f"/api/runs/{run}").status == 404


def test_no_more_than_sixteen_streams_are_open_and_a_closed_one_makes_room(
    server: PageServer, clip: dict[str, Any]
) -> None:
    run = server.ask("/api/runs", "POST", tint(clip, steps=600, pause=0.1)).told["run"]
    headers = "".join(f"{name}: {value}\r\n" for name, value in server.own.items())
    lines: list[socket.socket] = []

    def has_room() -> bool:
        lines.append(socket.create_connection(("127.0.0.1", server.port), timeout=60))
        lines[-1].sendall(f"GET /api/runs/{run}/events HTTP/1.1\r\n{headers}\r\n".encode())
        answer = lines[-1].recv(200)
        assert b"200 OK" in answer or b"400 " in answer
        return b"200 OK" in answer

    for _ in range(3):  # 48 in all: if each kept a thread, of which there are 40, nobody would be answered
        for _ in range(16):
            until(has_room)
        assert not has_room()
        for line in lines:
            line.close()
        lines.clear()
    assert server.ask(f"/api/clips/{clip['id']}/frames/1.png").status == 200
    server.ask(f"/api/runs/{run}/stop", "POST")
    assert ended(server, run)["state"] == "stopped"


def test_a_stopped_run_and_one_whose_worker_was_killed_go_on_to_the_same_bytes(
    server: PageServer, clip: dict[str, Any]
) -> None:
    whole = ended(server, server.ask("/api/runs", "POST", tint(clip, steps=20, pause=0.1)).told["run"])
    run = server.ask("/api/runs", "POST", tint(clip, steps=20, pause=0.1)).told["run"]
    until((server.home / "runs" / run / "events.jsonl").exists)
    server.ask(f"/api/runs/{run}/stop", "POST")
    assert ended(server, run)["state"] == "stopped"
    assert server.ask(f"/api/runs/{run}/resume", "POST").status == 202
    until(lambda: server.ask(f"/api/runs/{run}").told["state"] == "running")
    for child in server.workers():
        os.kill(child, signal.SIGKILL)
    assert ended(server, run)["state"].startswith("failed: the worker ended by SIGKILL")
    server.ask(f"/api/runs/{run}/resume", "POST")
    assert ended(server, run)["report"]["result_digest"] == whole["report"]["result_digest"]


# --- beginning and ending


def test_a_page_is_there_before_anything_heavy_is_imported_or_any_worker_started(tmp_path: Path) -> None:
    said = tmp_path / "said"
    with page_server(tmp_path / "home", said=said, PYTHONPROFILEIMPORTTIME="1") as fresh:
        for path in ("/", "/static/app.js", "/api/methods", "/api/clips", "/api/runs"):
            assert fresh.ask(path).status == 200
        assert fresh.workers() == []
    lines = [line for line in said.read_text().splitlines() if line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert {"retouch", "uvicorn", "starlette"} <= imported
    assert imported & {"torch", "diffusers", "transformers", "cv2", "av"} == set()


def test_a_process_whose_network_is_cut_off_reaches_nobody_and_that_is_noted(tmp_path: Path) -> None:
    strangers = tmp_path / "strangers"
    code = "import socket; socket.create_connection(('192.0.2.1', 9), timeout=60)"
    environment = {**os.environ, "PYTHONPATH": str(CUT_OFF), "RETOUCH_TEST_STRANGERS": str(strangers)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert b"Network is unreachable" in ended.stderr
    assert "192.0.2.1" in strangers.read_text()


def test_an_interrupt_ends_whatever_is_under_way_and_each_is_told(tmp_path: Path, roots: Path) -> None:
    said, home = tmp_path / "said", tmp_path / "home"
    with page_server(home, "--root", roots, said=said) as server, contextlib.ExitStack() as stack:
        clip = server.ask("/api/clips", "POST", {"path": str(roots / "clip.mp4")}).told
        [looking] = server.workers()
        run = server.ask("/api/runs", "POST", tint(clip, steps=600, pause=0.1)).told["run"]
        until(lambda: server.ask(f"/api/runs/{run}").told["state"] == "running")
        os.kill(looking, signal.SIGSTOP)  # so that whoever asks for a frame waits
        asked = (
            ("GET", f"/api/clips/{clip['id']}/frames/3.png", ""),
            ("GET", f"/api/runs/{run}/events", ""),
            ("POST", "/api/clips", "Content-Length: 1000\r\n"),
        )
        lines = []
        for method, path, length in asked:
            headers = "".join(f"{name}: {value}\r\n" for name, value in server.own.items())
            lines.append(stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 120)))
            lines[-1].sendall(f"{method} {path} HTTP/1.1\r\n{headers}{length}\r\n".encode())
        lines[2].sendall(b"half of it")
        assert b"200 OK" in lines[1].recv(200)
        assert server.ask("/api/methods").status == 200  # all three are under way
        server.process.send_signal(signal.SIGINT)
        told = [b"".join(iter(partial(line.recv, 4096), b"")) for line in lines]
        server.process.wait(120)
    assert b'"hint"' in told[0]
    assert b"the server was ended" in told[2]
    assert "Traceback" not in said.read_text()
    assert state_of(home / "runs" / run) == "stopped"
    assert [path.name for path in (home / "web/clips").iterdir()] == [clip["id"]]


# --- strangers


def test_everything_carries_the_policy(server: PageServer) -> None:
    for path in ("/", "/static/app.js", "/api/methods", "/nothing"):
        answer = server.ask(path)
        assert all(answer.headers[name.decode()] == value.decode() for name, value in HEADERS.items())
    assert "unsafe" not in POLICY
    assert "access-control-allow-origin" not in server.ask("/api/clips").headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1"}, 421),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"X-Retouch": "guessed"}, 403),
        ({"X-Retouch": ""}, 403),
        ({"Content-Length": "10737418240"}, 413),
        ({"Content-Length": "-1"}, 400),
    ],
)
def test_what_does_not_come_from_the_page_is_refused_in_json(
    server: PageServer, headers: dict[str, str], status: int
) -> None:
    before = sorted(server.home.rglob("*"))
    refused = server.ask("/api/runs", "POST", headers={**server.own, **headers})
    assert refused.status == status
    if status != 400:  # that one is no HTTP at all
        assert set(refused.told) == {"error", "hint"}
    assert sorted(server.home.rglob("*")) == before


@pytest.mark.parametrize(
    ("path", "method", "headers", "status"),
    [
        ("/nothing", "GET", {}, 404),
        ("/api/clips", "PATCH", {}, 405),
        ("/api/clips/{clip}/frames/99.png", "GET", {}, 404),
        ("/api/clips/{clip}/frames/1.jpg?side=9999", "GET", {}, 400),
        ("/api/clips/{clip}/paint/99", "PUT", {}, 404),
        ("/api/clips/{clip}/paint/1?layer=8", "PUT", {}, 400),
        ("/api/clips/{clip}/cutout", "POST", {"Content-Type": "application/json"}, 400),
        ("/api/clips/{clip}/proxy", "GET", {"Range": "bytes=99999999-"}, 416),
        ("/api/clips/{clip}/proxy", "GET", {"Range": "lines=1"}, 400),
        ("/api/clips", "POST", {"Content-Length": "10737418240"}, 413),
        ("/api/plan", "POST", {}, 400),
        ("/api/runs/20260101-000000-paint/stop", "POST", {}, 404),
    ],
)
def test_every_refusal_is_json_and_leaves_nothing(
    server: PageServer, clip: dict[str, Any], path: str, method: str, headers: dict[str, str], status: int
) -> None:
    path = path.format(clip=clip["id"])
    until(lambda: server.ask(f"/api/clips/{clip['id']}/proxy").status == 200)
    before = sorted(server.home.rglob("*"))
    refused = server.ask(path, method, headers={**server.own, **headers})
    assert refused.status == status, refused.body
    assert {"error", "hint"} <= set(refused.told) <= {"error", "hint", "field"}
    assert sorted(server.home.rglob("*")) == before


def test_nobody_reads_without_the_key(server: PageServer) -> None:
    host = {"Host": f"127.0.0.1:{server.port}"}
    assert server.ask("/api/runs", headers=host).status == 401
    given = server.ask(f"/?token={server.token}", headers=host)
    cookie = given.headers["set-cookie"]
    assert given.status == 303
    assert given.headers["location"] == "/"
    assert "HttpOnly; SameSite=Strict" in cookie
    assert server.ask("/api/runs", headers={**host, "Cookie": cookie.partition(";")[0]}).status == 200
    assert server.ask("/", headers={**host, "Cookie": "retouch-1=\xff"}).status == 401


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py",
        "/static/%2e%2e/server.py",
        "/static/..%2fserver.py",
        "/static//etc/passwd",
        "/static/a%00.js",
        "/static/..%5cserver.py",
        "/api/clips/../../runs",
        "/api/clips/%2e%2e",
        "/api/runs/..%2f..",
        "/api/runs/20260101-000000-paint/result",
        "/api/runs/20260101-000000-paint%0a/events",
    ],
)
def test_names_are_never_paths(server: PageServer, path: str) -> None:
    answer = server.ask(path)
    assert 400 <= answer.status < 500
    assert b"def " not in answer.body


def test_paths_outside_the_roots_are_refused_links_followed(
    server: PageServer, roots: Path, clip: dict[str, Any], tmp_path: Path
) -> None:
    outside = tmp_path / "secret.mp4"
    outside.write_bytes((roots / "clip.mp4").read_bytes())
    link = roots / "link.mp4"
    link.unlink(missing_ok=True)
    link.symlink_to(outside)
    for path in (outside, link, Path("/etc/passwd"), roots / ".." / "secret.mp4"):
        refused = server.ask("/api/clips", "POST", {"path": str(path)})
        assert refused.status == 400
        assert "outside the folders" in refused.told["error"]
    for params in ({"keyframe": [f"0={outside}"]}, {"atlas": str(outside)}, {"mask": str(link)}):
        refused = server.ask(
            "/api/runs", "POST", {"video": clip["path"], "method": "paint", "params": params}
        )
        assert refused.status == 400
        assert "outside the folders" in refused.told["error"]
        assert refused.told["field"] == next(iter(params))
    out = {**tint(clip), "out": str(tmp_path / "o.mp4")}
    assert server.ask("/api/runs", "POST", out).told["field"] == "out"
    model = {"prompt": "a", "source_prompt": "a", "model": str(tmp_path)}
    asked = {"video": clip["path"], "method": "fatezero", "params": model}
    assert server.ask("/api/runs", "POST", asked).told["field"] == "model"


@pytest.mark.parametrize(
    "name",
    [
        "../../x.mp4",
        "/etc/passwd",
        "..\\..\\x.mp4",
        "C:\\x.mp4",
        "%2e%2e%2fx",
        "a%00b",
        "<img onerror=1>",
        ".",
    ],
)
def test_a_name_that_is_sent_with_a_clip_is_shown_and_never_followed(
    server: PageServer, clip: dict[str, Any], name: str
) -> None:
    before = sorted(server.home.rglob("*"))
    content = Path(clip["path"]).read_bytes()
    sent = server.ask("/api/clips", "POST", content, {**server.own, "X-Filename": name})
    assert sent.status == 201, sent.body
    assert sent.told["id"] == clip["id"]
    assert not set(sent.told["name"]) & set("/\\<>%\0")
    assert sorted(server.home.rglob("*")) == before


@pytest.mark.parametrize(
    "content",
    [
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        b"<html><img src=x onerror=alert(1)>",
        b"",
        b"\0" * 1000,
    ],
    ids=["svg", "html", "nothing", "zeros"],
)
def test_what_is_no_clip_is_refused_and_nothing_of_it_stays(server: PageServer, content: bytes) -> None:
    before = sorted(server.home.rglob("*"))
    named = {**server.own, "X-Filename": "<img onerror=1>"}
    refused = server.ask("/api/clips", "POST", content, named)
    assert 400 <= refused.status < 500, refused.body
    assert sorted(server.home.rglob("*")) == before


def test_paint_of_another_size_is_refused_by_its_header_alone(
    server: PageServer, clip: dict[str, Any]
) -> None:
    bomb = bytearray(png(np.zeros((1, 1, 4), np.uint8)))
    bomb[16:24] = (60000).to_bytes(4, "big") * 2
    for content in (bytes(bomb), png(np.zeros((65, 64, 4), np.uint8)), b"GIF89a", b"\x89PNG"):
        refused = server.ask(f"/api/clips/{clip['id']}/paint/1", "PUT", content)
        assert refused.status == 400, refused.body
    assert server.ask(f"/api/clips/{clip['id']}/paint/1").status == 404


def test_an_endless_body_is_cut_off(server: PageServer) -> None:
    headers = "".join(f"{name}: {value}\r\n" for name, value in server.own.items())
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as line:
        start = f"POST /api/plan HTTP/1.1\r\n{headers}Content-Type: application/json\r\n"
        line.sendall(f"{start}Transfer-Encoding: chunked\r\n\r\n".encode())
        sent = 0
        try:
            while sent < 1 << 25:
                line.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
                sent += 0x10000
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert sent < 1 << 25 or b"413" in line.recv(200)
    assert server.ask("/api/clips").status == 200


def test_a_thousand_connections_that_say_nothing_keep_nobody_out(server: PageServer) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < 2000:
        pytest.skip(f"a process may hold no more than {hard} files here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    lines = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(1000)]
    try:
        for line in lines:
            line.send(b"GET / HT")
        assert server.ask("/api/clips").status == 200
    finally:
        for line in lines:
            line.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_another_host_needs_a_key_of_its_own() -> None:
    from click.testing import CliRunner

    from retouch.apps.commands.web import web

    ended = CliRunner().invoke(web, ["--host", "0.0.0.0"])
    assert "others could reach 0.0.0.0" in str(ended.exception)
