"""Clips from files, upright and in RGB, in memory or in a file that the system maps."""

import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, final

import av
import numpy as np
from av.container import InputContainer
from jaxtyping import UInt8

from retouch.errors import VideoError
from retouch.events import Listener, Notice, ignore
from retouch.files import system_error
from retouch.identity import file_digest
from retouch.media.colour import MATRICES, PRIMARIES, TRANSFERS, can_convert, guessed_matrix, to_rgb
from retouch.media.opening import (
    PICTURES_A_SECOND,
    check_file,
    check_length,
    check_part,
    frames_said,
    open_by_content,
    pictures_at,
    the_video,
)
from retouch.media.pictures import (
    animation_times,
    is_animation,
    is_picture,
    read_animation,
    read_header,
    read_picture,
)
from retouch.media.probe import (
    audible_streams,
    from_start,
    full_range_of,
    has_alpha,
    rate_of,
    shows_through,
    turn_of,
)
from retouch.media.truncated import check_whole
from retouch.video import Origin, Sound, Video

# Codecs that give one frame for each packet, so that a packet without one is a frame that is lost.
_ONE_TO_ONE = frozenset({"h264", "hevc", "prores", "ffv1", "mjpeg", "png"})

# Clips above this many bytes lie in a mapped file.
IN_MEMORY = 1 << 28


def read(
    path: Path | str, *, part: range | None = None, scratch: Path | None = None, listen: Listener = ignore
) -> Video:
    """Reads a clip: a video file, a picture, a folder of pictures, or a pattern such as `shots/*.png`.

    What the file is goes by its content, not by its suffix. Frames come upright, in RGB, rounded to 8 bits.
    They lie in memory, or in a file without a name that is gone with the clip: in the folder `scratch` where
    one is given, in the system's temporary folder for clips above 256 MiB. Of a `part` only its frames are
    kept, with their times, and no others take space.

    Raises:
        VideoError: if there is no such file, or it is damaged, cut short, absurdly large, or has no pictures.
        ResourceError: if memory or disk run out.
    """
    path = Path(path)
    with _FrameSpool(scratch, part) as reel:
        listed = pictures_at(path)
        if listed:
            origin, fps = _from_pictures(path, listed, reel)
        elif is_animation(path):
            origin, fps = _from_animation(path, reel)
        elif is_picture(path):
            origin, fps = _from_pictures(path, [path], reel)
        else:
            origin, fps = _from_container(path, reel)
        check_part(path, part, origin.frames)
        frames, alpha = reel.developed()
    for remark in origin.remarks:
        listen(Notice(remark))
    if part:
        listen(Notice(f"of {path.name}, frames {part[0]} to {part[-1]} alone are used and written"))
    return Video(frames, fps, alpha, origin.between(part.start, part.stop) if part else origin)


def read_frame(path: Path | str, index: int) -> UInt8[np.ndarray, "h w channels"]:
    """Reads one frame, upright, as `read_picture` gives pictures; decodes no further than there.

    Raises:
        VideoError: as `read`, or if the clip has no such frame.
    """
    path = Path(path)
    count = 0
    for rgb, alpha in _shown_frames(path):
        if count == index:
            return np.moveaxis(rgb if alpha is None else np.concatenate([rgb, alpha]), 0, -1).copy()
        count += 1
    raise VideoError(
        f"{path} has no frame {index}: its {count} frames are 0 to {count - 1}",
        hint=f"Take --at {count - 1}.",
    )


def timed_frames(path: Path) -> "Iterator[tuple[int | None, UInt8[np.ndarray, '3 h w']]]":
    """Yield the frames of a clip, upright, each with the time that the file gives it, if it gives one."""
    if not _in_container(path):
        yield from ((None, rgb) for rgb, _ in _shown_frames(path))
        return
    with open_by_content(path) as container:
        for frame in _decode_frames(container, the_video(container, path), path):
            yield frame.pts, _turn_upright(frame, _FrameConverter(path, frame))[0]


def frame_at(path: Path, moment: int) -> UInt8[np.ndarray, "h w channels"] | None:
    """Return the frame at a time, by a jump to the key frame before it; None where that does not find it.

    Whether it is, bit for bit, the one that `read_frame` gives, is for the caller to see: some files do not
    take jumps well.
    """
    with open_by_content(path) as container:
        stream = the_video(container, path)
        if _alpha_decoder(stream):
            return None
        try:
            container.seek(moment, stream=stream)
            for frame in container.decode(stream):
                assert isinstance(frame, av.VideoFrame)
                if frame.pts is None or frame.pts > moment or frame.is_corrupt:
                    return None
                if frame.pts == moment:
                    rgb, alpha = _turn_upright(frame, _FrameConverter(path, frame))
                    both = rgb if alpha is None else np.concatenate([rgb, alpha])
                    return np.moveaxis(both, 0, -1).copy()
        except av.FFmpegError:
            return None
    return None


def _in_container(path: Path) -> bool:
    return not (pictures_at(path) or is_picture(path) or is_animation(path))


def _shown_frames(path: Path) -> "Iterator[_Shot]":
    listed = pictures_at(path) or ([path] if is_picture(path) else [])
    if listed:
        yield from (_split_alpha(read_picture(picture)) for picture in listed)
    elif is_animation(path):
        yield from map(_split_alpha, read_animation(path))
    else:
        with open_by_content(path) as container:
            for frame in _decode_frames(container, the_video(container, path), path):
                yield _turn_upright(frame, _FrameConverter(path, frame))


_Shot = tuple[UInt8[np.ndarray, "3 h w"], UInt8[np.ndarray, "1 h w"] | None]


def _split_alpha(picture: UInt8[np.ndarray, "h w channels"]) -> _Shot:
    planes = np.moveaxis(picture, -1, 0)
    return planes[:3], (planes[3:] if len(planes) > 3 else None)


# --- folders, patterns, pictures, animated WebP


def _from_pictures(path: Path, listed: list[Path], reel: "_FrameSpool") -> tuple[Origin, Fraction]:
    first = read_header(listed[0])
    reel.expect(len(listed), first.width, first.height, path)
    for picture in listed:
        if reel.wants_next():
            reel.add(*_split_alpha(read_picture(picture)), picture)
    fps = first.fps or PICTURES_A_SECOND
    remarks = (
        () if first.fps else (f"{path} does not say how fast it runs; {fps} pictures a second are taken",)
    )
    origin = Origin(
        path=path.absolute(),
        container="pictures",
        codec=first.codec,
        pixel_format=first.mode,
        frames=len(listed),
        time_base=1 / fps,
        timestamps=tuple(range(len(listed))),
        end=len(listed),
        bits=max(8, first.bits),
        matrix="rgb",
        remarks=remarks,
    )
    return origin, fps


def _from_animation(path: Path, reel: "_FrameSpool") -> tuple[Origin, Fraction]:
    (starts, end), first = animation_times(path), read_header(path)
    reel.expect(len(starts), first.width, first.height, path)
    for picture in read_animation(path):
        if reel.wants_next():
            reel.add(*_split_alpha(picture), path)
    time_base = Fraction(1, 1000)
    steps = {after - before for before, after in zip(starts, (*starts[1:], end), strict=True)}
    fps = len(starts) / (end * time_base)
    origin = Origin(
        path=path.absolute(),
        container="webp",
        codec="webp",
        pixel_format="rgba" if reel.has_alpha else "rgb",
        frames=len(starts),
        time_base=time_base,
        timestamps=starts,
        end=end,
        variable_rate=len(steps) > 1,
        matrix="rgb",
    )
    return origin, fps


# --- what FFmpeg opens


def _from_container(path: Path, reel: "_FrameSpool") -> tuple[Origin, Fraction]:
    check_file(path)
    check_whole(path)
    times: list[tuple[int | None, int]] = []
    with open_by_content(path) as container:
        stream = the_video(container, path)
        reel.expect(frames_said(path, stream), stream.width, stream.height, path)
        colour: _FrameConverter | None = None
        for frame in _decode_frames(container, stream, path):
            colour = colour or _FrameConverter(path, frame)
            times.append((frame.pts if frame.pts is not None else frame.dts, frame.duration or 0))
            if not reel.wants_next():
                continue
            rgb, alpha = _turn_upright(frame, colour)
            if alpha is not None and not reel.has_alpha and not shows_through(frame, stream):
                alpha = None
            reel.add(rgb, alpha, path)
        if colour is None:
            raise VideoError(
                f"{path} holds no frame that can be decoded", hint="The file is damaged; copy it again."
            )
        return _origin_of(path, container, stream, colour, times)


def _origin_of(
    path: Path,
    container: InputContainer,
    stream: av.VideoStream,
    colour: "_FrameConverter",
    times: list[tuple[int | None, int]],
) -> tuple[Origin, Fraction]:
    """The origin of a clip whose frames have all been decoded, and its rate."""
    remarks: list[str] = []
    timestamps = tuple(time for time, _ in times if time is not None)
    rising = all(before < after for before, after in pairwise(timestamps))
    if len(timestamps) == len(times) and rising:
        time_base = stream.time_base or Fraction(1, 1000)
        timestamps = from_start(container, timestamps, time_base)
        fps, variable, end = rate_of(stream, timestamps, times[-1][1])
    else:
        fps = stream.average_rate or stream.guessed_rate or PICTURES_A_SECOND
        variable, time_base = False, 1 / fps
        timestamps, end = tuple(range(len(times))), len(times)
        remarks.append(f"the timestamps of {path} do not rise; a constant rate of {fps} is taken instead")
    sounds = tuple(
        Sound(
            index=sound.index,
            codec=sound.codec_context.name,
            rate=sound.codec_context.sample_rate,
            channels=sound.codec_context.layout.nb_channels,
            layout=sound.codec_context.layout.name,
            language=sound.language or "",
        )
        for sound in audible_streams(container)
    )
    if len(sounds) < len(container.streams.audio):
        remarks.append(f"{path} has audio in a codec that is not known here; it will not be copied")
    aspect = stream.sample_aspect_ratio or Fraction(1)
    origin = Origin(
        path=path.absolute(),
        content=file_digest(path) if sounds else "",
        container=container.format.name.split(",")[0],
        codec=stream.codec.canonical_name,
        pixel_format=colour.pixel_format,
        frames=len(times),
        time_base=time_base,
        timestamps=timestamps,
        end=end,
        variable_rate=variable,
        rotation=colour.turn.degrees,
        sample_aspect=1 / aspect if colour.turn.swap else aspect,
        bits=colour.bits,
        primaries=colour.primaries,
        transfer=colour.transfer,
        matrix=colour.matrix,
        full_range=colour.tagged_range,
        guessed_matrix=colour.guessed_matrix,
        sounds=sounds,
        remarks=tuple(remarks),
    )
    return origin, fps


def _decode_frames(container: InputContainer, stream: av.VideoStream, path: Path) -> Iterator[av.VideoFrame]:
    """Gives the frames one by one; a stream that is damaged in the middle is an error that says where."""
    decoder = _alpha_decoder(stream)
    count, size = 0, None
    stored: list[int] = []
    shown: set[int] = set()
    try:
        for packet in container.demux(stream):
            if packet.size and packet.pts is not None and not packet.is_discard:
                stored.append(packet.pts)
            # The flush at the end of the stream reaches a decoder of our own as None.
            frames = decoder.decode(packet if packet.size else None) if decoder else packet.decode()
            for frame in frames:
                assert isinstance(frame, av.VideoFrame)
                if frame.is_corrupt:
                    raise _damaged_error(path, count, "its data do not fit together")
                if size not in (None, (frame.width, frame.height)):
                    raise _damaged_error(path, count, f"its size changes to {frame.width}x{frame.height}")
                size = (frame.width, frame.height)
                count += 1
                shown.add(frame.pts if frame.pts is not None else -1)
                yield frame
        if stream.codec.canonical_name in _ONE_TO_ONE and shown:
            # Pictures before the first that can be decoded belong to what was cut away in front of them.
            lost = sorted(time for time in stored if time > min(shown) and time not in shown)
            if lost:
                raise _damaged_error(path, sum(time < lost[0] for time in shown), "it cannot be decoded")
    except av.FFmpegError as error:
        raise _damaged_error(path, count, error.strerror or str(error)) from error


def _damaged_error(path: Path, frame: int, why: str) -> VideoError:
    return VideoError(
        f"{path} is damaged at frame {frame}: {why}",
        hint=f"Copy it again, or cut away what is broken: ffmpeg -i FILE -frames:v {frame} -c copy OUT",
    )


def _alpha_decoder(stream: av.VideoStream) -> av.VideoCodecContext | None:
    """A decoder that sees the alpha of VP8 and VP9, as FFmpeg's own do not; None where those will do."""
    names = {"vp9": "libvpx-vp9", "vp8": "libvpx"}
    name = names.get(stream.codec.canonical_name)
    if name is None or not has_alpha(stream, "yuv420p"):
        return None
    context = av.CodecContext.create(name, "r")
    assert isinstance(context, av.VideoCodecContext)
    context.extradata = stream.codec_context.extradata
    return context


@final
class _FrameConverter:
    """How the frames of a stream become upright RGB, decided by its first frame."""

    def __init__(self, path: Path, frame: av.VideoFrame) -> None:
        self.pixel_format = frame.format.name
        self.bits = max(part.bits for part in frame.format.components)
        self.turn = turn_of(frame)
        self.primaries = PRIMARIES.get(int(frame.color_primaries), "")
        self.transfer = TRANSFERS.get(int(frame.color_trc), "")
        self.matrix = MATRICES.get(int(frame.colorspace), "")
        self.tagged_range = full_range_of(frame)
        if not can_convert(self.matrix):
            raise VideoError(
                f"{path} keeps its colours by the matrix {self.matrix}, which is not read here",
                hint="Convert it, for example: ffmpeg -i FILE -vf colorspace=bt709 OUT",
            )
        is_yuv = bool(re.match("yuv|nv|p0|p2|p4|y2|uy|yv", self.pixel_format))
        named = self.matrix not in ("", "rgb")
        self.used_matrix = self.matrix if named else guessed_matrix(frame.height)
        self.guessed_matrix = self.used_matrix if is_yuv and not named else ""
        # Grey pictures use all levels unless they say otherwise; other video leaves head and foot room.
        self.used_range = not is_yuv if self.tagged_range is None else self.tagged_range


def _turn_upright(frame: av.VideoFrame, colour: _FrameConverter) -> _Shot:
    rgb, alpha = to_rgb(frame, matrix=colour.used_matrix, full_range=colour.used_range)
    return colour.turn.applied(rgb), (None if alpha is None else colour.turn.applied(alpha))


# --- where frames gather


@final
@dataclass
class _PictureSpool:
    """The pictures of one kind, in memory until there are too many of them, then in a file without a name."""

    scratch: Path | None
    in_memory: int
    """Bytes that may gather in memory; none where there is a folder for scratch."""
    kept: list[np.ndarray] = field(default_factory=list)
    file: BinaryIO | None = None
    count: int = 0
    shape: tuple[int, ...] = ()

    def put(self, picture: np.ndarray) -> None:
        """Take one more picture."""
        self.shape = picture.shape
        self.count += 1
        if self.file is None and self.scratch is None and self.count * picture.nbytes <= self.in_memory:
            self.kept.append(picture)
            return
        try:
            self._write(picture)
        except OSError as error:
            raise system_error(error, (self.scratch or Path(tempfile.gettempdir())) / "frames") from error

    def _write(self, picture: np.ndarray) -> None:
        if self.file is None:
            if self.scratch is not None:
                self.scratch.mkdir(parents=True, exist_ok=True)
            self.file = tempfile.TemporaryFile(dir=self.scratch)  # noqa: SIM115 - closed by `close`
            for earlier in self.kept:
                self.file.write(np.ascontiguousarray(earlier).data)
            self.kept.clear()
        self.file.write(np.ascontiguousarray(picture).data)

    def pictures(self) -> np.ndarray:
        """Return all that was taken, as one array."""
        if self.file is None:
            return np.stack(self.kept)
        self.file.flush()
        os.fsync(self.file.fileno())
        return np.memmap(self.file, np.uint8, "r+", shape=(self.count, *self.shape))

    def close(self) -> None:
        """Let go of the file; arrays that were given out keep it."""
        if self.file is not None:
            self.file.close()


@final
class _FrameSpool:
    """Gathers frames without knowing how many will come, and none of them in memory for long."""

    def __init__(self, scratch: Path | None, part: range | None = None, in_memory: int = IN_MEMORY) -> None:
        self._scratch = scratch
        self._part = part
        self._passed = 0
        self._in_memory = in_memory
        self._colours, self._alphas = (_PictureSpool(scratch, in_memory) for _ in range(2))
        self._names: list[Path] = []

    def __enter__(self) -> "_FrameSpool":
        return self

    def __exit__(self, *error: object) -> None:
        self._colours.close()
        self._alphas.close()

    @property
    def has_alpha(self) -> bool:
        """Whether any frame so far shows through."""
        return self._alphas.count > 0

    def expect(self, frames: int, width: int, height: int, name: Path) -> None:
        """Refuse what there is no room for; `name` is what an error calls it by."""
        frames = len(self._part) if self._part else frames
        in_memory = self._scratch is None and 3 * frames * width * height <= self._in_memory
        folder = None if in_memory else self._scratch or Path(tempfile.gettempdir())
        check_length(name, frames, width, height, folder)

    def wants_next(self) -> bool:
        """Count one more frame of the file, and say whether it is of the part that is read."""
        self._passed += 1
        return self._part is None or self._passed - 1 in self._part

    def add(
        self, rgb: UInt8[np.ndarray, "3 h w"], alpha: UInt8[np.ndarray, "1 h w"] | None, name: Path
    ) -> None:
        """Takes one more frame; `name` is what an error calls it by."""
        known = self._colours.shape
        if known and known != rgb.shape:
            raise VideoError(
                f"{name} is {rgb.shape[2]}x{rgb.shape[1]}, the frames before it are {known[2]}x{known[1]}",
                hint="Bring all pictures to one size first.",
            )
        if alpha is not None and not self.has_alpha:
            for _ in range(self._colours.count):
                self._alphas.put(np.full_like(alpha, 255))
        elif alpha is None and self.has_alpha:
            alpha = np.full((1, *rgb.shape[1:]), 255, np.uint8)
        self._colours.put(rgb)
        if alpha is not None:
            self._alphas.put(alpha)

    def developed(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The frames and their alpha as arrays."""
        return self._colours.pictures(), (self._alphas.pictures() if self.has_alpha else None)
