"""The clips that the page knows, each in a folder named by its digest: facts, copy, frames, paint, draft.

What a browser sends lies here, and what is made of it; a clip that was opened by its path stays where it is.
Imports no torch: all looking is done by a worker, under limits of time and memory.
"""

import contextlib
import hashlib
import json
import re
import shutil
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from functools import partial
from io import BytesIO
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, final

from anyio import Lock, to_thread

from retouch.apps.worker import Worker
from retouch.errors import RequestError, ResourceError, RetouchError, VideoError
from retouch.events import Advanced, Event
from retouch.files import beside, remove, replace_whole, write_whole
from retouch.identity import file_digest, file_stamp
from retouch.media.png import read_png_header
from retouch.places import usable_home

MEMORY: Final = 16 << 30
"""Bytes of address space for a worker that looks at clips."""
PATIENCE: Final = 120.0
"""Seconds for one look at a clip."""
STILLS: Final = 96
"""Exact frames of a clip that are kept."""
SLOW: Final = ("carry", "coverage", "editors", "check_frame_edit")
"""Jobs that may keep a worker busy for long."""
SPARE: Final = 2 << 30
"""Bytes of the disk that an upload leaves free."""


class NotThere(RequestError):
    """There is no clip, run or file of that name."""


@final
class Clips:
    """Clips by digest, in `RETOUCH_HOME/web/clips`."""

    def __init__(self) -> None:
        self.folder = usable_home() / "web" / "clips"
        self.folder.mkdir(parents=True, exist_ok=True)
        for draft in self.folder.glob(".*.draft*"):  # of an upload that was cut off
            remove(draft)
        self.eyes, self.copier = (Worker(memory=MEMORY, environment=_ASK_THE_DRIVER) for _ in range(2))
        self.progress: dict[str, float | str] = {}
        self.painting: defaultdict[str, Lock] = defaultdict(Lock)
        self.uploading = threading.Lock()
        self.copying = threading.Lock()
        self.is_closed = False

    def close(self) -> None:
        """End the workers; whoever waits for one is told so."""
        self.is_closed = True
        for worker in (self.eyes, self.copier):
            worker.close()

    async def ask(self, job: str, **given: object) -> Any:
        """Have a worker do a job: what needs an atlas or a model keeps nobody from seeing a frame.

        Raises:
            ResourceError: the server is ending.
            RetouchError: what the job raised.
        """
        if self.is_closed:
            raise ResourceError("the server was ended", hint="Start it again: retouch web")
        worker = self.copier if job in SLOW else self.eyes
        return await to_thread.run_sync(partial(worker.call, job, given, patience=PATIENCE))

    async def made(self, job: str, suffix: str, **given: object) -> bytes:
        """Return what a job writes, which is kept nowhere: each request has a file of its own."""
        out = beside(self.folder / f"{job}{suffix}")
        try:
            await self.ask(job, out=str(out), **given)
            return out.read_bytes()
        finally:
            remove(out)

    def place(self, clip: str) -> Path:
        """Return the folder of a clip.

        Raises:
            NotThere: there is no such clip.
        """
        folder = self.folder / clip
        if not re.fullmatch("[0-9a-f]{64}", clip) or not (folder / "clip.json").is_file():
            raise NotThere("there is no such clip", hint="Open it again.")
        return folder

    def about(self, clip: str) -> dict[str, Any]:
        """Return what is known of a clip, with the numbers of its painted frames.

        Raises:
            NotThere: there is no such clip, or its file is another one by now.
        """
        folder = self.place(clip)
        facts: dict[str, Any] = json.loads((folder / "clip.json").read_text(encoding="utf-8"))
        path = Path(facts["path"])
        known = facts.get("stamp")  # what an earlier version kept has none
        if not path.exists() or known not in (None, file_stamp(path)):
            raise NotThere(f"{facts['name']} is not what it was when it was opened", hint="Open it again.")
        painted = sorted(int(path.stem) for path in folder.glob("keys/[0-9]*.png"))
        return {**facts, "painted": {at: str(folder / f"keys/{at}.png") for at in painted}}

    def listed(self) -> list[dict[str, Any]]:
        """Return all clips, the last opened first."""
        found = list[tuple[int, dict[str, Any]]]()
        for path in self.folder.glob("[0-9a-f]*/clip.json"):
            with contextlib.suppress(NotThere, OSError):  # forgotten meanwhile
                found.append((path.stat().st_mtime_ns, self.about(path.parent.name)))
        return [about for _, about in sorted(found, key=itemgetter(0), reverse=True)]

    async def open(self, path: Path, name: str = "") -> dict[str, Any]:
        """Take in a clip where it lies.

        Raises:
            VideoError: it is none.
        """
        stamp = await to_thread.run_sync(file_stamp, path)  # first: what is written meanwhile is seen later
        facts = await self.ask("look", path=str(path))
        digest = await to_thread.run_sync(file_digest, path)
        folder = self.folder / digest
        folder.mkdir(exist_ok=True)
        about = {"id": digest, "name": name or path.name, "path": str(path), "stamp": stamp, **facts}
        write_whole(folder / "clip.json", json.dumps(about))
        return self.about(digest)

    async def take(self, body: AsyncIterator[bytes], name: str) -> dict[str, Any]:
        """Take in a clip that is sent, and keep it if it is one.

        Raises:
            RequestError: another is being sent.
            ResourceError: the disk has no room for it.
            VideoError: it is no clip.
        """
        if not self.uploading.acquire(blocking=False):
            raise RequestError("another clip is being sent", hint="Wait until it is here.")
        draft = beside(self.folder / "clip")
        try:
            digest = hashlib.sha256()
            with draft.open("xb") as file:
                room = shutil.disk_usage(self.folder).free - SPARE
                async for block in body:
                    room -= len(block)
                    if room < 0:
                        raise ResourceError("the disk is nearly full", hint="Free some space, or send less.")
                    digest.update(block)
                    await to_thread.run_sync(file.write, block)
            await self.ask("look", path=str(draft))
            folder = self.folder / digest.hexdigest()
            folder.mkdir(exist_ok=True)
            draft.replace(folder / "source")
            return await self.open(folder / "source", name)
        finally:
            remove(draft)
            self.uploading.release()

    def forget(self, clip: str) -> None:
        """Forget a clip, its paint and its copy; what lies elsewhere stays."""
        remove(self.place(clip))

    def start_proxy(self, clip: str) -> float | None:
        """Begin to make the small copy, if it is not there; return how far it is, None when it is whole.

        Raises:
            VideoError: it cannot be made.
        """
        self.about(clip)
        folder = self.place(clip)
        with self.copying:
            if clip not in self.progress:
                if (folder / "proxy.mp4").exists():
                    return None
                self.progress[clip] = 0.0
                threading.Thread(target=self._copy, args=(clip, folder), daemon=True).start()
            found = self.progress[clip]
            if isinstance(found, str):
                del self.progress[clip]
                raise VideoError(found, hint="The clip may be damaged; retouch probe says more.")
            return found

    def _copy(self, clip: str, folder: Path) -> None:
        def heard(event: Event) -> None:
            if isinstance(event, Advanced):
                self.progress[clip] = event.done / event.total

        def forgotten() -> bool:
            return not (folder / "clip.json").exists()

        fault = ""
        try:
            about = self.about(clip)
            given = {name: about[name] for name in ("path", "rate", "frames")}
            given |= {"out": str(folder / "proxy.mp4"), "index": str(folder / "index.json")}
            self.copier.call("proxy", given, listen=heard, stopped=forgotten)
        except RetouchError as error:
            fault = "" if forgotten() else str(error)
        with self.copying:
            del self.progress[clip]
            if fault:
                self.progress[clip] = fault

    async def still(self, clip: str, frame: int, side: int = 0) -> Path:
        """Return the picture of a frame: exact, or at most `side` pixels.

        Raises:
            NotThere: the clip has no such frame.
        """
        about, folder = self.about(clip), self.place(clip)
        check_frame(frame, about)
        path = folder / (f"small/{frame}-{side}.jpg" if side else f"stills/{frame}.png")
        if path.exists():
            path.touch()  # so that what was looked at last stays longest
        else:
            path.parent.mkdir(exist_ok=True)
            copy, index = folder / "proxy.mp4", str(folder / "index.json")
            given = {"frame": frame, "out": str(path), "side": side}
            if side and copy.exists():
                await self.ask("small", copy=str(copy), rate=about["rate"], **given)
            else:
                await self.ask("still", path=about["path"], index=index, **given)
            self._drop_old(path)
        return path

    def _drop_old(self, kept: Path) -> None:
        """Keep no more than so many exact frames."""
        if kept.suffix == ".png" and len(pictures := list(kept.parent.glob("[0-9]*.png"))) > STILLS:
            pictures.sort(key=lambda path: path.stat().st_mtime)
            for path in pictures[: STILLS // 4]:
                path.unlink(missing_ok=True)

    async def paint(self, clip: str, frame: int, content: bytes, layer: str) -> dict[str, str]:
        """Keep what is painted on a frame; return where the frame lies with the paint over it.

        With a `layer`, a number, only that layer's own bitmap is kept, for going on with it.

        Raises:
            VideoError: it is no picture of the clip's size.
        """
        about, folder = self.about(clip), self.place(clip)
        check_frame(frame, about)
        if not content.startswith(b"\xff\xd8\xff"):  # a JPEG is looked at by the worker
            _check_size(content, about)
        place = folder / (f"layers/{frame}-{int(layer)}.png" if layer else f"paint/{frame}.png")
        place.parent.mkdir(exist_ok=True)
        async with self.painting[clip]:
            with replace_whole(place, force=True) as draft:
                draft.write_bytes(content)
            if layer:
                return {"path": str(place)}
            key = folder / f"keys/{frame}.png"
            key.parent.mkdir(exist_ok=True)
            try:
                still = await self.still(clip, frame)
                await self.ask("compose", still=str(still), layer=str(place), out=str(key))
            except RetouchError:
                place.unlink(missing_ok=True)
                raise
        return {"path": str(key)}

    async def unpaint(self, clip: str, frame: int, layers: bool = True) -> None:
        """Forget what is painted on a frame; its layers too, unless they are only hidden."""
        folder = self.place(clip)
        gone = [folder / f"{kind}/{frame}.png" for kind in ("keys", "paint")]
        async with self.painting[clip]:
            for path in (*gone, *(folder.glob(f"layers/{frame}-*.png") if layers else ())):
                path.unlink(missing_ok=True)

    async def cutout(self, clip: str, frame: int, marks: Mapping[str, Any]) -> bytes:
        """Return a picture whose alpha is what the marks select on a frame."""
        still = await self.still(clip, frame)
        return await self.made("cutout", ".png", still=str(still), frame=frame, marks=marks)

    def paint_of(self, clip: str, object_of: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is painted on which frames of a clip, and what its object is."""
        about = self.about(clip)
        return {"path": about["path"], "keys": about["painted"], "object_of": object_of}

    async def carry(self, clip: str, frame: int, object_of: Mapping[str, Any]) -> bytes:
        """Return the picture of a frame as the paint will make it."""
        return await self.made("carry", ".jpg", painting=self.paint_of(clip, object_of), frame=frame)

    async def coverage(self, clip: str, object_of: Mapping[str, Any]) -> Any:
        """Return where the paint will slide, lean, be hidden or be out of sight."""
        return await self.ask("coverage", painting=self.paint_of(clip, object_of))


_ASK_THE_DRIVER: Final = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
"""Whether there is a GPU is asked without taking any of its memory, which is for the runs."""


def check_frame(frame: int, about: Mapping[str, Any]) -> None:
    """Raise NotThere where a clip has no such frame."""
    if not 0 <= frame < about["frames"]:
        raise NotThere(f"there is no frame {frame}", hint=f"frames are 0 to {about['frames'] - 1}")


def _check_size(content: bytes, about: Mapping[str, Any]) -> None:
    """Refuse a picture of another size than the clip, by its header, before anything is kept or unpacked."""
    try:
        header = read_png_header(BytesIO(content))
    except ValueError as error:
        raise VideoError(f"the paint cannot be used: {error}", hint="Send a PNG or a JPEG.") from None
    sizes = [(header.width, header.height), (about["width"], about["height"])]
    if sizes[0] != sizes[1]:
        paint, clip = (f"{width}x{height}" for width, height in sizes)
        raise VideoError(f"the paint is {paint}, the clip {clip}", hint="Send a picture of the clip's size.")
