"""The one use case behind every door: carry out a request, keep what it made, prove what it left alone."""

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, cast, final

import numpy as np

from retouch import __version__
from retouch.apps.cli_fields import command_line
from retouch.apps.preflight import check_clip_output, check_given, check_prompts
from retouch.apps.run_folder import ERROR, QUEUED, REPORT, check_ours, new_folder, note_error
from retouch.compute import Compute, heeds_alignment
from retouch.errors import Cancelled, PluginError, RequestError, RetouchError
from retouch.events import Event, Listener, Notice, as_json, ignore, told_once
from retouch.fields import parse, renamed
from retouch.files import in_our_words, replace_whole, system_error, write_whole
from retouch.identity import file_digest
from retouch.media.io import Encoding, read, write, write_picture
from retouch.media.opening import check_part
from retouch.media.probe import probe
from retouch.models.estimate import Estimate
from retouch.params import Params, frame_range, of_part
from retouch.places import home
from retouch.registry import method
from retouch.regular import open_own
from retouch.request import EditRequest
from retouch.run import Edited, OnStep, Run
from retouch.spec import MethodSpec
from retouch.video import Video

LOOKING: Final = 1.0
"""Seconds for which whoever only looks how a run stands may hold its lock."""
_SUFFIXES = {"gif": ".gif", "ffv1": ".mkv", "prores": ".mov", "vp9": ".webm", "png": ""}


@final
@dataclass(frozen=True)
class Result:
    """A finished run: its folder, the clip, and the report."""

    folder: Path
    video: Path
    report: Mapping[str, object]


def edit(
    method_name: str,
    video: str | Path,
    /,
    *,
    out: str | Path | None = None,
    preset: str | None = None,
    seed: int = 0,
    compute: Compute | None = None,
    listen: Listener = ignore,
    force: bool = False,
    range: str = "",  # noqa: A002 - as the flag and the request call it
    anyway: bool = False,
    **params: object,
) -> Result:
    """Edits a clip: the same request as `retouch edit METHOD CLIP`, made in Python."""
    filled = method(method_name).fill(params, preset=preset, tell=lambda text: listen(Notice(text)))
    values = {
        "video": Path(video).expanduser().absolute(),
        "method": method_name,
        "params": filled.model_dump(mode="json"),
        "seed": seed,
        "range": range,
        "anyway": anyway,
        "compute": compute or Compute(),
        "out": Path(out).expanduser().absolute() if out else None,
    }
    return run_edit(parse(EditRequest, values), listen=listen, force=force)


def run_edit(
    request: EditRequest,
    *,
    listen: Listener = ignore,
    force: bool = False,
    folder: Path | None = None,
    stopped: Callable[[], bool] = lambda: False,
    on_step: OnStep | None = None,
    store: Path | None = None,
) -> Result:
    """Carries out a request in a run folder, a new one unless one is given to go on with.

    Kept results lie in `store`, or in the home folder's.

    Raises:
        RetouchError: whatever went wrong, with a hint; the run folder says so too and can be resumed.
    """
    spec, former = method(request.method), list[str]()
    today = renamed(spec.params, request.params, former.append)
    request, params = request.model_copy(update={"params": today}), spec.fill(today)
    part = frame_range(request.range)
    output, encoding = request.out or Path(_result_name(request)), Encoding(**request.output.model_dump())
    replaces = force or not request.out or _handed_over(request, folder)
    check_clip_output(output, encoding, force=replaces)
    folder = folder or new_folder(request.method)
    request = request.model_copy(update={"compute": request.compute.here()})
    with lock_folder(folder), _record_run(folder, listen) as tell, request.compute.repeatable():
        (folder / ERROR).unlink(missing_ok=True)
        (folder / QUEUED).unlink(missing_ok=True)
        write_whole(folder / "request.json", request.as_json())
        for text in former:
            tell(Notice(text))
        started = time.perf_counter()
        _tell_device(request.compute, tell)
        _estimate(spec, params, request, encoding, tell).require(request.compute)
        params = of_part(params, part)
        source = read(request.video, part=part, scratch=folder / "scratch", listen=tell)
        run = Run.alone(
            folder,
            seed=request.seed,
            compute=request.compute,
            store=store or home() / "store",
            listen=tell,
            stopped=stopped,
            on_step=on_step,
        )
        edited = _call_method(spec, source, params, run)
        goal = folder / _result_name(request)
        result = write(edited.video, goal, encoding=encoding, force=True, listen=tell)
        _keep_extras(edited, folder / "extras")
        report = {
            "method": request.method,
            "retouch_version": __version__,
            "seconds": round(time.perf_counter() - started, 3),
            "frames": len(edited.video),
            "range": request.range,
            "size": [edited.video.width, edited.video.height],
            "fps": str(edited.video.fps),
            "source_digest": source.digest,
            "result_digest": edited.video.digest,
            "figures": {name: float(value) for name, value in edited.figures.items()},
            "untouched": edited.untouched(source),
            "result": result.name,
            "command": command_line(request),
        }
        refused = _hand_over(result, request.out, force=replaces) if request.out else None
        write_whole(folder / REPORT, json.dumps(report, indent=2) + "\n")
        run.draft.drop()
        if refused:
            raise refused
    return Result(folder, request.out or result, report)


def plan(request: EditRequest, listen: Listener = ignore) -> Estimate:
    """Return what an edit will need, after every check that costs little.

    Raises:
        RetouchError: what the edit itself would be refused for.
    """
    spec = method(request.method)
    params = spec.fill(renamed(spec.params, request.params, lambda text: listen(Notice(text))))
    encoding = Encoding(**request.output.model_dump())
    check_clip_output(request.out or Path(_result_name(request)), encoding, force=not request.out)
    return _estimate(spec, params, request, encoding, listen)


def _estimate(
    spec: MethodSpec, params: Params, request: EditRequest, encoding: Encoding, tell: Listener
) -> Estimate:
    """What the method says it will need, once words, clip, output and pictures are looked at."""
    part = frame_range(request.range)
    check_prompts(params, anyway=request.anyway, tell=tell)
    clip = probe(request.video)
    check_part(request.video, part, clip.video.frames)
    check_clip_output(request.out or Path(_result_name(request)), encoding, force=True, clip=clip)
    check_given(params, clip, part)
    if spec.preflight:
        spec.load(spec.preflight)(clip, params, tell)
    if not spec.estimate:
        return Estimate(0)
    frames = len(part) if part else clip.video.frames
    estimate = cast("Callable[..., Estimate]", spec.load(spec.estimate))
    return estimate(frames, clip.video.height, clip.video.width, params, request.compute)


def _call_method(spec: MethodSpec, video: Video, params: object, run: Run) -> Edited:
    """The method's edit, held to what every method promises."""
    edited = spec.load(spec.edit)(video, params, run)
    if not isinstance(edited, Edited):
        raise PluginError(f"{spec.name} gave back a {type(edited).__name__}, not an Edited")
    if len(edited.video) != len(video) or edited.video.fps != video.fps:
        got, given = (f"{len(clip)} frames at {clip.fps}" for clip in (edited.video, video))
        raise PluginError(
            f"{spec.name} gave {got} for {given}",
            hint="a method keeps length and rate; tell its authors",
        )
    fits = (len(video), 1, edited.video.height, edited.video.width)
    if edited.touched is not None and (edited.touched.dtype != bool or edited.touched.shape != fits):
        raise PluginError(
            f"{spec.name} says where it worked as {edited.touched.dtype} {edited.touched.shape}",
            hint=f"touched is bool {fits}; tell its authors",
        )
    return edited


def _tell_device(compute: Compute, tell: Listener) -> None:
    device = compute.torch_device()
    if device.type != "cpu":
        tell(Notice(f"computing on {device} in {str(compute.torch_dtype()).removeprefix('torch.')}"))
    if compute.deterministic and heeds_alignment():
        tell(Notice("matrices were multiplied before retouch was imported: last digits may not replay"))


def _result_name(request: EditRequest) -> str:
    codec = request.output.codec
    if request.out:
        return f"result{request.out.suffix}"
    if codec == "auto" and request.output.lossless:
        return "result.mkv"
    return f"result{_SUFFIXES.get(codec, '.mp4')}"


def _keep_extras(edited: Edited, folder: Path) -> None:
    for name, extra in edited.extras.items():
        folder.mkdir(exist_ok=True)
        if isinstance(extra, Video):
            write(extra, folder / f"{name}.mp4", force=True)
        elif isinstance(extra, np.ndarray):
            write_picture(extra, folder / f"{name}.png", force=True)
        else:
            (folder / f"{name}.txt").write_text(extra, encoding="utf-8")


def _handed_over(request: EditRequest, folder: Path | None) -> bool:
    """Whether what lies at the request's goal is this run's own result, from before it was stopped."""
    result = folder / _result_name(request) if folder else None
    if not (request.out and result and result.exists() and request.out.exists()):
        return False
    return result.is_dir() == request.out.is_dir() and file_digest(result) == file_digest(request.out)


def _hand_over(result: Path, out: Path, *, force: bool) -> RetouchError | None:
    """Copy the result to where the user wants it, in one step; return why it could not be done."""
    try:
        with replace_whole(out, force=force, folder=result.is_dir()) as draft:
            if result.is_dir():
                shutil.copytree(result, draft)
            else:
                shutil.copyfile(result, draft)
    except RetouchError as error:
        return type(error)(str(error), hint=f"the run is done; its result lies in {result}")
    return None


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Holds the folder, so that two processes never work in one; the lock dies with the process."""
    check_ours(folder)
    with open_own(folder / "lock", "wb") as handle:
        patience = time.monotonic() + LOOKING
        while not _is_locked_by_us(handle):
            if time.monotonic() > patience:
                raise RequestError(f"{folder.name} is running already", hint="see: retouch runs")
            time.sleep(0.02)
        yield


def _is_locked_by_us(handle: BinaryIO) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _record_run(folder: Path, listen: Listener) -> Iterator[Listener]:
    """Writes events and notices, each once, into the folder, and the error if the run ends in one."""
    notices = folder / "notices.txt"

    def tell(event: Event) -> None:
        _add_line(folder / "events.jsonl", json.dumps({"at": round(time.time(), 3), **as_json(event)}))
        if isinstance(event, Notice):  # a resumed run says again what it said before
            before = notices.read_text("utf-8", "replace").splitlines() if notices.exists() else []
            if event.text not in before:
                _add_line(notices, event.text)
        listen(event)

    try:
        yield told_once(tell)
    except KeyboardInterrupt:
        error = Cancelled("the run was stopped", hint=f"go on with: retouch resume {folder.name}")
        note_error(folder, error)
        raise error from None
    except OSError as error:
        told = in_our_words(error)
        note_error(folder, told)
        raise told from None
    except Exception as error:
        note_error(folder, error)
        raise
    finally:
        shutil.rmtree(folder / "scratch", ignore_errors=True)


def _add_line(path: Path, text: str) -> None:
    """Adds a line to a file; one that was cut off by a kill stays a line of its own."""
    try:
        with open_own(path, "ab") as file:
            file.write(b"" if _ends_whole(path) else b"\n")
            file.write(f"{text}\n".encode())
    except OSError as error:
        raise system_error(error, path) from error


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read(1) in (b"", b"\n")
