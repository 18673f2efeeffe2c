"""What the page's worker does for it: it looks at clips, takes frames out, lays paint over them, cuts out.

Each job takes plain values and paths, writes files and returns plain values; the server does none of this.
"""

import functools
import json
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, TypeAlias

import av
import cv2
import numpy as np
from jaxtyping import UInt8

from retouch.apps.report import write_report
from retouch.apps.runner import plan as plan_of
from retouch.atlas.atlas import Atlas
from retouch.atlas.edit import (
    PaintedFrame,
    Period,
    TexturePatch,
    painted_key,
    patches_from_frames,
    render_frames,
)
from retouch.atlas.paint_report import examine_paint
from retouch.atlas.prepare import atlas_for, marks_from
from retouch.compute import Compute, in_words
from retouch.errors import Cancelled, EmptyMask, RequestError, VideoError
from retouch.events import Advanced, Ended, Event, Listener, Notice, Started
from retouch.files import replace_whole
from retouch.identity import file_stamp
from retouch.media.io import read, read_frame, read_picture, write_picture
from retouch.media.opening import pictures_at
from retouch.media.probe import probe
from retouch.media.reading import frame_at, timed_frames
from retouch.places import usable_home
from retouch.request import EditRequest
from retouch.run import Run
from retouch.tracking.segment import GrabCutSegmenter, ObjectMark
from retouch.video import Video

PROXY_SIDE: Final = 640
MARKS: Final = ("box", "stroke", "outside", "polygon")
Painting: TypeAlias = Mapping[str, Any]
"""The `path` of a clip, the pictures of its painted frames as `keys`, and what its object is, `object_of`."""


def look(*, path: str, **_: object) -> dict[str, object]:
    """Return what a clip is."""
    facts = probe(path)
    video = facts.video
    return {
        "frames": video.frames,
        "fps": float(video.fps),
        "rate": str(video.fps.limit_denominator(60000)),
        "width": video.width,
        "height": video.height,
        "facts": {
            "seconds": float(facts.duration),
            "codec": video.codec,
            "variable_rate": video.variable_rate,
            "rotation": video.rotation,
            "bits": video.bits,
            "sound": bool(facts.sounds),
            "bytes": facts.size,
        },
    }


def device(*, word: str, **_: object) -> str:
    """Return which device a request's word for it means here."""
    found = Compute(device=word).torch_device()
    return f"{found.type}:{found.index or 0}" if found.type == "cuda" else found.type


def plan(*, request: Mapping[str, object], **_: object) -> dict[str, object]:
    """Return what an edit will need, and what is to be known before it, or raise its first fault."""
    notices: list[str] = []
    wanted = EditRequest.from_json(json.dumps(request))
    needs = plan_of(wanted, lambda event: notices.append(event.text) if isinstance(event, Notice) else None)
    budget = wanted.compute.budget()
    return {
        "memory": needs.memory,
        "budget": budget,
        "fits": needs.memory <= budget,
        "sentence": f"{in_words(needs.memory)} of {in_words(budget)}" if needs.memory else "little memory",
        "notes": list(needs.notes),
        "notices": notices,
    }


def proxy(
    *,
    path: str,
    out: str,
    index: str,
    rate: str,
    frames: int,
    listen: Listener,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Write a small copy in which every frame is a key frame and frame n is shown at n / rate, and an index.

    The index has for each frame its time in the file and a checksum of its pixels, so that a frame that is
    found by a jump is known to be the right one.
    """
    times: list[tuple[int | None, int]] = []
    listen(Started("proxy", frames))
    with replace_whole(Path(out), force=True) as draft, av.open(str(draft), "w", format="mp4") as container:
        options = {"preset": "veryfast", "crf": "22", "g": "1", "bf": "0"}
        stream = container.add_stream("libx264", Fraction(rate), options=options)
        stream.pix_fmt, stream.gop_size = "yuv420p", 1
        for moment, rgb in timed_frames(Path(path)):
            if stopped():
                raise Cancelled("the small copy was not needed any more")
            picture = np.ascontiguousarray(np.moveaxis(rgb, 0, -1))
            if not times:
                stream.width, stream.height = proxy_size(picture.shape[1], picture.shape[0])
            small = cv2.resize(picture, (stream.width, stream.height), interpolation=cv2.INTER_AREA)
            frame = av.VideoFrame.from_ndarray(small)
            frame.pts, frame.time_base = len(times), 1 / Fraction(rate)
            container.mux(stream.encode(frame))
            times.append((moment, zlib.crc32(picture.data)))
            listen(Advanced("proxy", min(len(times), frames), frames))
        container.mux(stream.encode())
    with replace_whole(Path(index), force=True) as draft:
        draft.write_text(json.dumps(times))
    listen(Ended("proxy"))


def proxy_size(width: int, height: int) -> tuple[int, int]:
    """Return a size of even numbers with the same proportions, the longer side at most `PROXY_SIDE`."""
    share = min(1.0, PROXY_SIDE / max(width, height))
    return max(2, round(width * share / 2) * 2), max(2, round(height * share / 2) * 2)


def small(*, copy: str, rate: str, frame: int, out: str, side: int, **_: object) -> None:
    """Write a frame at most `side` pixels wide, from the small copy."""
    with av.open(copy) as container:
        tick = container.streams.video[0].time_base or Fraction(1)
    picture = frame_at(Path(copy), round(frame / Fraction(rate) / tick))
    if picture is None:
        raise VideoError(f"there is no frame {frame} in the small copy", hint="Forget it, open it anew.")
    _write_small(picture, side, out)


def _write_small(picture: UInt8[np.ndarray, "h w channels"], side: int, out: str) -> None:
    share = min(1.0, side / max(picture.shape[:2]))
    size = max(1, round(picture.shape[1] * share)), max(1, round(picture.shape[0] * share))
    shrunk = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)[..., :3]
    write_picture(np.ascontiguousarray(shrunk), Path(out), force=True)


def still(*, path: str, frame: int, index: str, out: str, side: int = 0, **_: object) -> None:
    """Write a frame as a picture, bit for bit as `retouch keyframe` does; or small, at most `side` wide."""
    picture = exact_frame(Path(path), frame, Path(index))
    if side:
        _write_small(picture, side, out)
    else:
        write_picture(picture, Path(out), force=True)


def exact_frame(path: Path, frame: int, index: Path) -> UInt8[np.ndarray, "h w channels"]:
    """Return a frame: by a jump where the index knows its time and pixels, else from the start."""
    if pictures := pictures_at(path):
        if frame >= len(pictures):
            raise VideoError(f"there is no frame {frame}", hint=f"frames are 0 to {len(pictures) - 1}")
        return read_picture(pictures[frame])
    times = _times(index, index.stat().st_mtime_ns) if index.is_file() else []
    moment, checksum = times[frame] if frame < len(times) else (None, 0)
    found = frame_at(path, moment) if moment is not None else None
    if found is not None and zlib.crc32(np.ascontiguousarray(found[..., :3]).data) == checksum:
        return found
    return read_frame(path, frame)


@functools.lru_cache(8)
def _times(index: Path, changed: int) -> list[tuple[int | None, int]]:
    del changed  # another file of that name
    times: list[tuple[int | None, int]] = json.loads(index.read_text())
    return times


def compose(*, still: str, layer: str, out: str, **_: object) -> None:
    """Lay paint over a frame; where the paint shows nothing the frame's own bytes stay."""
    below, above = read_picture(still)[..., :3], read_picture(layer)
    if above.shape[:2] != below.shape[:2]:
        sizes = [f"{picture.shape[1]}x{picture.shape[0]}" for picture in (above, below)]
        raise VideoError(f"the picture is {sizes[0]}, the clip {sizes[1]}", hint="Keep the clip's size.")
    if above.shape[2] == 4:
        share = above[..., 3:].astype(np.uint32)
        mixed = (above[..., :3] * share + below * (255 - share) + 127) // 255
        above = mixed.astype(np.uint8)
    write_picture(above, Path(out), force=True)


def cutout(*, still: str, frame: int, marks: Mapping[str, Sequence[str]], out: str, **_: object) -> None:
    """Write what the marks on a frame select: a white picture whose alpha is the object."""
    alpha = selected(read_picture(still), marks_in(marks, frame))
    white = np.full((*alpha.shape, 3), 255, np.uint8)
    write_picture(np.concatenate([white, alpha[..., None]], 2), Path(out), force=True)


def selected(
    picture: UInt8[np.ndarray, "h w channels"], marks: Sequence[ObjectMark]
) -> UInt8[np.ndarray, "h w"]:
    """Return what marks on a frame select of it.

    Raises:
        RequestError: there are none.
        EmptyMask: they select nothing.
    """
    if not marks:
        raise RequestError("no mark lies on this frame", hint="Draw a box around the object first.")
    video = Video(np.ascontiguousarray(np.moveaxis(picture[..., :3], -1, 0))[None], Fraction(1))
    found = GrabCutSegmenter().segment(video, [replace(mark, frame=0) for mark in marks])
    alpha = np.max([found.full(which, 0, 1)[0, 0] for which in range(len(found.names))], axis=0)
    if not alpha.any():
        raise EmptyMask("the marks select nothing", hint="Draw the box closer, or a stroke on the object.")
    return np.asarray(alpha)


def carry(*, painting: Painting, frame: int, out: str, **_: object) -> None:
    """Write a frame as the paint on the key frames will make it, small; the clip's atlas must be there."""
    video, atlas, patches, _shots = _read_painting(**painting)
    source = np.array(video.frames[frame : frame + 1])
    made = np.moveaxis(render_frames(atlas, source, frame, patches)[0][0], 0, -1)
    _write_small(np.ascontiguousarray(made), PROXY_SIDE, out)


def coverage(*, painting: Painting, **_: object) -> dict[str, object]:
    """Return in which frames the paint will slide, lean, be hidden or be out of sight, and that in words."""
    video, atlas, patches, shots = _read_painting(**painting)
    report = examine_paint(atlas, video, patches, [shot.frame for shot in shots], Period(0, len(video)))
    kinds = {"hidden": report.hidden(), "sliding": report.sliding(), "leaning": report.leaning()}
    return {**kinds, "unseen": report.out_of_sight(), "warnings": report.warnings()}


def report(*, folder: str, out: str, **_: object) -> None:
    """Write the page about a run."""
    write_report(Path(folder), Path(out), force=True)


def _read_painting(
    path: str, keys: Mapping[str, str], object_of: Mapping[str, Any]
) -> tuple[Video, Atlas, list[TexturePatch], list[PaintedFrame]]:
    scene = path, file_stamp(Path(path)), json.dumps(object_of, sort_keys=True)
    dated = tuple((int(at), name, Path(name).stat().st_mtime_ns) for at, name in sorted(keys.items()))
    return *_scene(*scene), *_patches(scene, dated)


@functools.lru_cache(2)
def _scene(path: str, stamp: str, object_of: str) -> tuple[Video, Atlas]:
    """Return a clip and its atlas, from a file or from the store; none is made here."""
    del stamp  # another clip at that place
    given = json.loads(object_of)
    video = read(path)
    compute = Compute(device="cpu").here()
    with tempfile.TemporaryDirectory() as folder, compute.repeatable():
        store = usable_home() / "store"
        run = Run.alone(Path(folder), compute=compute, store=store, listen=_refuse_work, stopped=lambda: True)
        try:
            atlas = atlas_for(
                video,
                run,
                file=Path(given["atlas"]) if given.get("atlas") else None,
                masks=[Path(given["mask"])] if given.get("mask") else [],
                marks=marks_in(given),
            )
        except Cancelled:  # another process is making it: that is not waited for
            raise RequestError(
                "this clip's atlas of that object is being made", hint="It is shown when the run has it."
            ) from None
    return video, atlas.to("cpu")


def _refuse_work(event: Event) -> None:
    if isinstance(event, Started):
        raise RequestError("this clip has no atlas of that object yet", hint="Run it once; then it is shown.")


@functools.lru_cache(4)
def _patches(
    scene: tuple[str, str, str], keys: tuple[tuple[int, str, int], ...]
) -> tuple[list[TexturePatch], list[PaintedFrame]]:
    video, atlas = _scene(*scene)
    sources = {at: np.ascontiguousarray(np.moveaxis(video.frames[at], 0, -1)) for at, _, _ in keys}
    shots = [painted_key(sources[at], read_picture(name), at) for at, name, _ in keys]
    return patches_from_frames(atlas, shots), shots


def marks_in(given: Mapping[str, Any], frame: int | None = None) -> list[ObjectMark]:
    """Return the marks that were given as texts, those on one frame if it is named."""
    marks = marks_from(**{kind: tuple(given.get(kind, ())) for kind in MARKS})
    return [mark for mark in marks if frame in (None, mark.frame)]
