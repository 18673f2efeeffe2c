"""Clips to files: drafts that take their place when whole, with the source's times, colour tags and audio."""

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, final

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from retouch.errors import RetouchError, VideoError
from retouch.events import Listener, Notice, ignore
from retouch.files import replace_whole, system_error
from retouch.media.colour import MATRICES, PRIMARIES, TRANSFERS, guessed_matrix, to_frame
from retouch.media.encoding import SILENT, EncoderSettings, Encoding, choose_settings
from retouch.media.pictures import encode_picture
from retouch.media.sound import Soundtrack, why_silent
from retouch.video import Origin, Video

_THREADS = 4
_TASKS = Path("/proc/self/task")
"""Where Linux lists a process' threads."""
_UNSPECIFIED = 2


def write(
    video: Video,
    path: Path | str,
    *,
    encoding: Encoding = Encoding(),  # noqa: B008 - frozen
    force: bool = False,
    listen: Listener = ignore,
) -> Path:
    """Writes a clip: a video file by its suffix, or a folder of PNG files where there is none.

    The file is there whole or not at all. Timestamps, sample aspect, colour tags and the audio packets of the
    clip's origin go with it; what cannot go is told to `listen`.

    Raises:
        VideoError: if the place is taken and not given up by `force`, or the container cannot hold this.
        ParamsError: if the codec cannot do what `encoding` asks.
        ResourceError: if the disk is full.
    """
    with Writer(path, like=video, encoding=encoding, force=force, listen=listen) as out:
        for _, part in video.chunks():
            out.add(part)
    return Path(path)


@final
class Writer:
    """Writes a clip piece by piece, for results that never are in memory whole.

    Rate, timestamps, colour tags and audio are those of `like`; the size is that of the first frames added.

    Example:
        with Writer("out.mp4", like=video) as out:
            for _, part in video.chunks():
                out.add(part.like(-part.pixels()))
    """

    def __init__(
        self,
        path: Path | str,
        *,
        like: Video,
        encoding: Encoding = Encoding(),  # noqa: B008 - frozen
        force: bool = False,
        listen: Listener = ignore,
    ) -> None:
        self._path = Path(path)
        self._like = like
        self._encoding = encoding
        self._force = force
        self._listen = listen
        self._stack = ExitStack()
        self._draft = Path()
        self._sink: _FrameSink | None = None
        self._count = 0
        self._size: tuple[int, int] = (0, 0)

    def __enter__(self) -> Self:
        planned = self._planned(self._like.width, self._like.height, alpha=self._like.alpha is not None)
        origin = self._like.origin
        sounds = [sound.codec for sound in origin.sounds] if self._encoding.sound else []
        planned.check_source(
            self._path, fps=self._like.fps, variable_rate=origin.variable_rate, sounds=sounds
        )
        self._draft = self._stack.enter_context(
            replace_whole(self._path, force=self._force, folder=not planned.container)
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            if self._sink is not None:
                self._sink.abandon()
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            if self._sink is None:
                raise VideoError(f"no frames came for {self._path}", hint="Add at least one.")
            with _in_our_words(self._path):
                self._sink.close()

    def add(
        self, frames: Video | UInt8[np.ndarray, "f 3 h w"], alpha: UInt8[np.ndarray, "f 1 h w"] | None = None
    ) -> None:
        """Takes the next frames.

        Raises:
            VideoError: if their size is another than that of the frames before, or they are more than there
                are timestamps for.
            ResourceError: if the disk is full.
        """
        if isinstance(frames, Video):
            alpha, frames = frames.alpha, frames.frames
        size = (int(frames.shape[3]), int(frames.shape[2]))
        if self._sink is None:
            self._size = size
            self._sink = self._opened(*size, alpha=alpha is not None)
        if size != self._size:
            raise VideoError(
                f"frame {self._count} is {size[0]}x{size[1]}, others are {self._size[0]}x{self._size[1]}",
                hint="Bring all frames to one size.",
            )
        timestamps = self._like.origin.timestamps
        if timestamps and self._count + len(frames) > len(timestamps):
            raise VideoError(
                f"more frames than the {len(timestamps)} that {self._path} has times for",
                hint="Write like a video without timestamps: video.like(frames).",
            )
        with _in_our_words(self._path):
            for i in range(len(frames)):
                self._sink.add(frames[i], None if alpha is None else alpha[i], self._count)
                self._count += 1

    def _opened(self, width: int, height: int, *, alpha: bool) -> "_FrameSink":
        planned = self._planned(width, height, alpha=alpha)
        origin = self._like.origin
        for remark in planned.remarks:
            self._listen(Notice(remark))
        if origin.guessed_matrix:
            taken = f"{origin.guessed_matrix} is taken, by its height"
            self._listen(Notice(f"{origin.path} does not say its colour matrix; {taken}"))
        if origin.bits > 8:
            rounded = f"the source has {origin.bits} bits a colour; its frames are rounded to 8"
            more = f"{self._path} is written with {self._encoding.bits}"
            self._listen(Notice(f"{rounded}, and {more}"))
        if not planned.container:
            if origin.variable_rate:
                self._listen(Notice("a folder of pictures does not keep the times of a variable rate"))
            return _PictureFolder(self._draft, self._like.fps, origin.first)
        sounding = self._sounding(planned)
        silence = why_silent(origin) if sounding else ""
        if silence:
            self._listen(Notice(silence))
        if origin.sounds and self._encoding.sound and planned.container in SILENT:
            self._listen(Notice(f"{self._path.suffix} has no audio; that of the source is left out"))
        with _in_our_words(self._path):
            return _VideoContainer(
                self._draft, planned, self._like, width, height, sound=sounding and not silence
            )

    def _planned(self, width: int, height: int, *, alpha: bool) -> EncoderSettings:
        return choose_settings(self._path, self._encoding, width=width, height=height, alpha=alpha)

    def _sounding(self, planned: EncoderSettings) -> bool:
        return bool(self._like.origin.sounds) and self._encoding.sound and planned.container not in SILENT


class _FrameSink(Protocol):
    """Where frames go one by one: a container or a folder."""

    def add(self, rgb: np.ndarray, alpha: np.ndarray | None, index: int) -> None: ...

    def close(self) -> None: ...

    def abandon(self) -> None: ...


@final
class _PictureFolder:
    """A folder of PNG files, numbered as in the source, whose text says at which rate they are shown."""

    def __init__(self, draft: Path, fps: Fraction, first: int) -> None:
        draft.mkdir()
        self._draft = draft
        self._fps = fps
        self._first = first

    def add(self, rgb: np.ndarray, alpha: np.ndarray | None, index: int) -> None:
        planes = rgb if alpha is None else np.concatenate([rgb, alpha])
        (self._draft / f"{self._first + index:06}.png").write_bytes(
            encode_picture(np.moveaxis(planes, 0, -1), ".png", fps=self._fps)
        )

    def close(self) -> None:
        pass

    def abandon(self) -> None:
        pass


@contextmanager
def _same_priority() -> Iterator[None]:
    """Keep the threads of an encoder from going before all else on the machine.

    SVT-AV1 makes itself and its caller real-time where it may, which is as root and in most containers.
    """
    if not hasattr(os, "sched_getscheduler") or not _TASKS.is_dir():
        yield
        return
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    yield
    for thread in _TASKS.iterdir():
        with suppress(OSError):  # it has ended
            if os.sched_getscheduler(int(thread.name)) in (os.SCHED_FIFO, os.SCHED_RR):
                os.sched_setscheduler(int(thread.name), policy, priority)


@final
class _VideoContainer:
    """A video file under way at FFmpeg, with the audio copied in between."""

    def __init__(
        self, draft: Path, planned: EncoderSettings, like: Video, width: int, height: int, *, sound: bool
    ) -> None:
        self._recipe = planned
        self._clock = _FrameClock(like, planned.container)
        self._matrix, self._full_range = _colour_levels(like.origin, planned.pixel_format, height)
        options = {"fflags": "+bitexact"}  # no identifiers of chance: the same clip is the same bytes
        if planned.container in ("mp4", "mov"):
            options["movflags"] = "+faststart"
        if planned.container in ("mp4", "mov") and self._clock.unit.numerator == 1:
            options["video_track_timescale"] = str(self._clock.unit.denominator)
            # In which late starts are kept: those of the pictures, and where it can be of the usual sound.
            both = math.lcm(self._clock.unit.denominator, 48_000)
            options["movie_timescale"] = str(both if both < 1 << 31 else self._clock.unit.denominator)
        if planned.container in ("gif", "apng"):
            options["plays" if planned.container == "apng" else "loop"] = "0"
        if planned.container == "apng":
            options["final_delay"] = str(self._clock.last)
        if planned.encoder == "libsvtav1":
            os.environ.setdefault("SVT_LOG", "1")  # its only way to be quiet; it does not ask FFmpeg's log
        self._file = av.open(str(draft), "w", format=planned.container, container_options=options)
        self._sound: Soundtrack | None = None
        try:
            rate = like.fps.limit_denominator(100_000)
            stream = self._file.add_stream(planned.encoder, rate=rate, options=dict(planned.options))
            assert isinstance(stream, av.VideoStream)
            self._stream = stream
            self._settle(like, width, height)
            if sound:
                self._sound = Soundtrack(like.origin, self._file)
            with _same_priority():
                self._file.start_encoding()
        except BaseException:
            self.abandon()
            raise

    def add(self, rgb: np.ndarray, alpha: np.ndarray | None, index: int) -> None:
        frame = self._frame(rgb, alpha)
        frame.pts, frame.duration = self._clock.at(index)
        frame.time_base = self._clock.unit
        self._mux(self._stream.encode(frame))

    def close(self) -> None:
        self._mux(self._stream.encode(None))
        if self._sound is not None:
            for packet in self._sound.rest():
                self._file.mux_one(packet)
            self._sound.close()
        self._file.close()

    def abandon(self) -> None:
        """Lets go of the files; the draft is whoever made it's to remove."""
        if self._sound is not None:
            self._sound.close()
        # The draft is thrown away, whatever is still wrong with it.
        with suppress(OSError, ValueError):
            self._file.close()

    def _settle(self, like: Video, width: int, height: int) -> None:
        context, origin = self._stream.codec_context, like.origin
        context.width, context.height = width, height
        context.pix_fmt = self._recipe.pixel_format
        context.time_base = self._clock.unit
        context.thread_count = _THREADS  # the bytes depend on it at x264, so it is the same on all machines
        if self._recipe.tag:
            context.codec_tag = self._recipe.tag
        if origin.sample_aspect != 1:
            context.sample_aspect_ratio = origin.sample_aspect
        matrix, full = self._tags(origin)
        context.colorspace = matrix
        context.color_range = {None: 0, False: 1, True: 2}[full]
        made_here = origin.path is None
        context.color_primaries = 1 if made_here else _frame_number(PRIMARIES, origin.primaries)
        context.color_trc = 1 if made_here else _frame_number(TRANSFERS, origin.transfer)

    def _tags(self, origin: Origin) -> tuple[int, bool | None]:
        """The matrix and the range to write down, which for an untagged source are none."""
        if not self._recipe.pixel_format.startswith("yuv"):
            return (0 if self._recipe.pixel_format == "gbrp" else _UNSPECIFIED), None
        if origin.path is not None and origin.matrix == "" and origin.full_range is None:
            return _UNSPECIFIED, None
        if origin.path is not None and origin.matrix == "":
            return _UNSPECIFIED, origin.full_range
        return _frame_number(MATRICES, self._matrix), self._full_range

    def _frame(self, rgb: np.ndarray, alpha: np.ndarray | None) -> av.VideoFrame:
        if self._recipe.pixel_format == "pal8":
            return _reduce_palette(rgb, alpha)
        return to_frame(
            rgb, alpha, self._recipe.pixel_format, matrix=self._matrix, full_range=self._full_range
        )

    def _mux(self, packets: list[av.Packet]) -> None:  # type: ignore[type-arg]  # generic for the checker only
        for packet in packets:
            packet.duration = self._clock.lasting(packet)
            if self._sound is not None and packet.dts is not None:
                for heard in self._sound.until(packet.dts * packet.time_base):
                    self._file.mux_one(heard)
            self._file.mux_one(packet)


@final
class _FrameClock:
    """When each frame is shown, in whole `unit`s of a second."""

    def __init__(self, like: Video, container: str) -> None:
        self._fps = like.fps
        self._durations: dict[int, int] = {}
        self._origin = like.origin
        exact = like.origin.time_base if like.origin.timestamps else 1 / like.fps
        self.unit = Fraction(1, exact.denominator) if exact.denominator < 1 << 30 else Fraction(1, 90_000)
        if container == "avi":
            self.unit = 1 / like.fps
        elif container == "gif":
            self.unit = Fraction(1, 100)

    @property
    def last(self) -> Fraction:
        """How many seconds the clip's last frame is shown."""
        times = self._origin.timestamps
        return (self._origin.end - times[-1]) * self._origin.time_base if times else 1 / self._fps

    def at(self, index: int) -> tuple[int, int]:
        """When frame `index` is shown and for how long."""
        start, end = (round(self._moment(i) / self.unit) for i in (index, index + 1))
        self._durations[start] = max(1, end - start)
        return start, self._durations[start]

    def lasting(self, packet: av.Packet) -> int:  # type: ignore[type-arg]  # generic for the checker only
        """How long the frame in a packet is shown, in the packet's unit; encoders lose it on the way."""
        assert packet.pts is not None
        return round(
            self._durations.pop(round(packet.pts * packet.time_base / self.unit))
            * self.unit
            / packet.time_base
        )

    def _moment(self, index: int) -> Fraction:
        times = self._origin.timestamps
        if not times:
            return index / self._fps
        begin = 0 if self._origin.is_whole else times[0]
        time = times[index] if index < len(times) else self._origin.end
        return (time - begin) * self._origin.time_base


def _colour_levels(origin: Origin, pixel_format: str, height: int) -> tuple[str, bool]:
    """The matrix and range to convert with: the source's, or what a reader will guess; for ours, HD's."""
    if not pixel_format.startswith("yuv"):
        return "bt709", False
    if origin.path is None or origin.matrix == "rgb":
        return "bt709", False
    return origin.matrix or guessed_matrix(height), bool(origin.full_range)


def _frame_number(names: "dict[int, str] | object", name: str) -> int:
    assert hasattr(names, "items")
    return next((number for number, known in names.items() if known == name), _UNSPECIFIED)


def _reduce_palette(rgb: np.ndarray, alpha: np.ndarray | None) -> av.VideoFrame:
    """A picture in its own 256 colours, one of them clear where the clip has alpha."""
    colours = 256 if alpha is None else 255
    small = Image.fromarray(np.moveaxis(rgb, 0, -1).copy()).quantize(
        colours, dither=Image.Dither.FLOYDSTEINBERG
    )
    table = np.zeros((256, 4), np.uint8)
    palette = np.array(small.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    table[: len(palette), :3] = palette[:, ::-1]
    table[:, 3] = 255  # also where no colour is: FFmpeg takes a clear one for the mark of unchanged pixels
    values = np.asarray(small).copy()
    if alpha is not None:
        values[alpha[0] < 128] = 255
        table[255] = 0
    frame = av.VideoFrame(values.shape[1], values.shape[0], "pal8")
    rows = np.zeros((values.shape[0], frame.planes[0].line_size), np.uint8)
    rows[:, : values.shape[1]] = values
    frame.planes[0].update(rows.tobytes())
    frame.planes[1].update(table.tobytes())
    return frame


@final
class _in_our_words:  # noqa: N801 - reads as what it does: with _in_our_words(path)
    """Turns FFmpeg's and the system's errors while a file is written into ours."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, RetouchError):
            raise system_error(error, self._path) from error
