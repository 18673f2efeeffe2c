"""What a file is, told without decoding more than one frame of it; and what differs between two files.

Imports no torch, so that `retouch probe` answers at once.
"""

import hashlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import final

import av
import numpy as np
from av.buffer import Buffer
from av.container import InputContainer
from jaxtyping import UInt8

from retouch.errors import VideoError
from retouch.media.colour import MATRICES, OPAQUE, PRIMARIES, TRANSFERS, to_rgb
from retouch.media.opening import (
    PICTURES_A_SECOND,
    check_length,
    check_part,
    frames_said,
    open_by_content,
    pictures_at,
    the_video,
)
from retouch.media.pictures import animation_times, is_animation, is_picture, read_header

# Fields that say how the pictures are stored, not what they are: another codec may change them.
CODEC_FIELDS = frozenset({"codec", "profile", "pixel format", "bits"})


# Pixel formats of brightness and two colour differences, for which a matrix and a range mean something.
_LUMA = re.compile(r"yuv|nv|p[024]1|y2|uyvy|yvyu|gray|ya")


@final
@dataclass(frozen=True)
class UprightTurn:
    """How stored pictures are brought upright: swap rows and columns first, then mirror."""

    swap: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @property
    def degrees(self) -> int:
        """The turn clockwise, from 0 to 270; a mirror left to right beside it is not told."""
        if self.swap:
            return 90 if self.mirror_x else 270
        return 180 if self.mirror_y else 0

    def applied(self, picture: UInt8[np.ndarray, "c h w"]) -> UInt8[np.ndarray, "c y x"]:
        """The picture brought upright."""
        if self.swap:
            picture = picture.swapaxes(1, 2)
        if self.mirror_x:
            picture = picture[:, :, ::-1]
        if self.mirror_y:
            picture = picture[:, ::-1]
        return picture


@final
@dataclass(frozen=True)
class PictureStream:
    """The video in a file. `width` and `height` are those of the upright picture, as is `sample_aspect`."""

    codec: str
    profile: str
    pixel_format: str
    bits: int
    alpha: bool
    width: int
    height: int
    rotation: int
    sample_aspect: Fraction
    fps: Fraction
    variable_rate: bool
    frames: int
    time_base: Fraction
    timestamps: tuple[int, ...]
    end: int
    primaries: str
    transfer: str
    matrix: str
    full_range: bool | None
    first: int = 0
    """The number that the file gives the first of these frames."""

    def times_apart(self, other: "PictureStream") -> tuple[str, str]:
        """Return the first timestamps in which two clips differ by more than a clock's tick, or nothing."""
        clock = max(self.time_base, other.time_base)
        for i, (one, its) in enumerate(zip(self.timestamps, other.timestamps, strict=False)):
            ours, theirs = one * self.time_base, its * other.time_base
            if abs(ours - theirs) > clock:
                return f"frame {i} at {float(ours):.6f} s", f"frame {i} at {float(theirs):.6f} s"
        return "", ""


@final
@dataclass(frozen=True)
class SoundStream:
    """An audio stream. `digest` is over its packets' bytes, so a copied stream has the same one."""

    codec: str
    rate: int
    channels: int
    layout: str
    language: str
    packets: int
    digest: str
    start: Fraction
    tick: Fraction


@final
@dataclass(frozen=True)
class ClipFacts:
    """All that `probe` finds out about a file or a folder of pictures."""

    path: Path
    container: str
    size: int
    duration: Fraction
    video: PictureStream
    sounds: tuple[SoundStream, ...] = ()
    others: tuple[str, ...] = ()

    def part(self, part: range) -> "ClipFacts":
        """Return what is said of the pictures, for a part of the frames; the sound is told of as a whole.

        Raises:
            VideoError: the clip has no such part.
        """
        video = self.video
        check_part(self.path, part, video.frames)
        times = (*video.timestamps, video.end)[part.start : part.stop + 1]
        shown = replace(video, frames=len(part), first=part.start, timestamps=times[:-1], end=times[-1])
        return replace(self, video=shown, duration=(times[-1] - times[0]) * video.time_base)

    def differences(self, other: "ClipFacts") -> list[str]:
        """Say field by field what differs, as `field: left -> right`; nothing for files that agree.

        Names, sizes in bytes and containers are not compared. Times agree when they are as near as the
        coarser of the two clocks can tell.
        """
        ours, theirs = dict(self._compared_fields()), dict(other._compared_fields())
        ours["timestamps"], theirs["timestamps"] = self.video.times_apart(other.video)
        names = list(dict.fromkeys([*ours, *theirs]))
        lines = [
            f"{name}: {ours.get(name, 'none')} -> {theirs.get(name, 'none')}"
            for name in names
            if ours.get(name, "none") != theirs.get(name, "none")
        ]
        clock = max(self.video.time_base, other.video.time_base)
        # The end of the last frame is stored by some containers only, and rounded by others.
        slack = max(2 * clock, min(1 / self.video.fps, 1 / other.video.fps))
        if abs(self.duration - other.duration) > slack:
            lines.append(f"duration: {float(self.duration):.6f} s -> {float(other.duration):.6f} s")
        for i, (one, its) in enumerate(zip(self.sounds, other.sounds, strict=False)):
            if abs(one.start - its.start) > max(one.tick, its.tick):
                lines.append(f"audio {i} start: {float(one.start):.6f} s -> {float(its.start):.6f} s")
        return lines

    def _compared_fields(self) -> Iterator[tuple[str, str]]:
        """Yield the fields that are held against each other, in words."""
        video = self.video
        yield "codec", video.codec
        yield "profile", video.profile
        yield "pixel format", video.pixel_format
        yield "bits", str(video.bits)
        yield "alpha", "yes" if video.alpha else "no"
        yield "size", f"{video.width}x{video.height}"
        yield "rotation", str(video.rotation)
        yield "sample aspect", str(video.sample_aspect)
        yield "frames", str(video.frames)
        yield (
            "rate",
            f"variable, {float(video.fps):.3f} on average" if video.variable_rate else str(video.fps),
        )
        yield "timestamps", ""
        yield "primaries", video.primaries or "untagged"
        yield "transfer", video.transfer or "untagged"
        is_rgb = not _LUMA.match(video.pixel_format)
        yield "matrix", "rgb" if is_rgb else video.matrix or "untagged"
        # Luma without a range is limited by common consent, so a codec that says so says nothing new.
        yield "range", "none" if is_rgb else "full" if video.full_range else "limited"
        for i, sound in enumerate(self.sounds):
            yield f"audio {i}", f"{sound.codec} {sound.rate} Hz {sound.layout}"
            yield f"audio {i} language", sound.language or "none"
            yield f"audio {i} packets", f"{sound.packets} ({sound.digest})"


def probe(path: Path | str) -> ClipFacts:
    """Finds out what is in a video file, a picture, or a folder of pictures.

    Raises:
        VideoError: if it cannot be opened or has no pictures.
    """
    path = Path(path)
    listed = pictures_at(path)
    if listed:
        return _facts_of_pictures(path, listed)
    if is_animation(path) or is_picture(path):
        return _facts_of_pictures(path, [path])
    with open_by_content(path) as container:
        return _facts_of_container(path, container)


def turn_of(frame: av.VideoFrame) -> UprightTurn:
    """The turn that a decoded frame asks for; one by other than quarter turns is left alone."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, Buffer):
        return UprightTurn()
    a, b, _, c, d = struct.unpack("=9i", bytes(matrix))[:5]
    if a == 0 and d == 0 and b and c:
        return UprightTurn(swap=True, mirror_x=c < 0, mirror_y=b < 0)
    if b == 0 and c == 0 and a and d:
        return UprightTurn(mirror_x=a < 0, mirror_y=d < 0)
    return UprightTurn()


def is_steady(timestamps: tuple[int, ...], fps: Fraction, time_base: Fraction) -> bool:
    """Whether the timestamps are those of a constant rate, as near as their clock can tell."""
    if not timestamps or fps <= 0:
        return False
    step = 1 / (fps * time_base)
    return all(abs(t - timestamps[0] - i * step) <= 1 for i, t in enumerate(timestamps))


def rate_of(stream: av.VideoStream, timestamps: tuple[int, ...], lasting: int) -> tuple[Fraction, bool, int]:
    """The rate of a stream, whether its timestamps vary from it, and when its last frame ends.

    How long the last one is shown is known (`lasting`, else 0) only where frames are stored in the order in
    which they are shown; elsewhere it is taken to be as long as the one before.
    """
    time_base = stream.time_base or Fraction(1, 1000)
    rates = (stream.average_rate, stream.guessed_rate, stream.base_rate)
    claimed = [rate for rate in rates if rate and rate > 0]
    for rate in claimed:
        if is_steady(timestamps, rate, time_base):
            return rate, False, timestamps[-1] + max(1, round(1 / (rate * time_base)))
    if len(timestamps) > 1 and timestamps[-1] > timestamps[0]:
        in_order = stream.codec.canonical_name in ("gif", "apng")
        end = timestamps[-1] + (lasting if in_order and lasting else timestamps[-1] - timestamps[-2])
        return len(timestamps) / ((end - timestamps[0]) * time_base), True, end
    rate = claimed[0] if claimed else PICTURES_A_SECOND
    return rate, False, timestamps[-1] + max(1, round(1 / (rate * time_base)))


def from_start(
    container: InputContainer, timestamps: tuple[int, ...], time_base: Fraction
) -> tuple[int, ...]:
    """The timestamps as the container means them.

    AVI counts frames from 0; FFmpeg adds the delay that it supposes a codec to have, and supposes wrong.
    """
    begin = timestamps[0] if container.format.name == "avi" else round(clock_start(container) / time_base)
    return tuple(time - begin for time in timestamps) if begin else timestamps


def audible_streams(container: InputContainer) -> list[av.AudioStream]:
    """The audio streams whose codec is known; the others cannot be told about, nor copied."""
    return [stream for stream in container.streams.audio if stream.codec_context is not None]


def clock_start(container: InputContainer) -> Fraction:
    """The moment that counts as 0: clocks of broadcasts run on, those of files begin with them."""
    if container.format.name not in ("mpegts", "mpeg"):
        return Fraction(0)
    # Not the container's own start, which is rounded to microseconds: sound must not begin a little before 0.
    streams = [*container.streams.video, *container.streams.audio]
    starts = [s.start_time * s.time_base for s in streams if s.start_time is not None and s.time_base]
    return min(starts, default=Fraction(0))


def has_alpha(stream: av.VideoStream, pixel_format: str) -> bool:
    """Whether a stream shows through, in its own planes or (VP8, VP9) in blocks beside them."""
    beside = {key.lower(): value for key, value in stream.metadata.items()}.get("alpha_mode") == "1"
    return beside or any(part.is_alpha for part in av.VideoFormat(pixel_format).components)


def shows_through(frame: av.VideoFrame, stream: av.VideoStream) -> bool:
    """Whether a frame's alpha is meant: FFmpeg gives every GIF one, also where all of it is opaque."""
    if stream.codec.canonical_name != "gif":
        return True
    _, alpha = to_rgb(frame, matrix="rgb", full_range=True)
    return alpha is not None and int(alpha.min()) < OPAQUE


def _facts_of_container(path: Path, container: InputContainer) -> ClipFacts:
    stream = the_video(container, path)
    check_length(path, frames_said(path, stream), stream.width, stream.height, None)
    sounds = {sound.index: _PacketDigest(sound) for sound in audible_streams(container)}
    shown: list[tuple[int, int]] = []
    first: av.VideoFrame | None = None
    for packet in container.demux():
        if packet.stream.index in sounds:
            sounds[packet.stream.index].hear(packet)
        elif packet.stream.index == stream.index and packet.size and not packet.is_discard:
            time = packet.pts if packet.pts is not None else packet.dts
            shown.append((len(shown) if time is None else time, packet.duration or 0))
        if first is None and packet.stream.index == stream.index:
            first = next((f for f in packet.decode() if isinstance(f, av.VideoFrame)), None)
    if first is None:
        raise VideoError(f"no frame of {path} can be decoded", hint="The file is damaged; copy it again.")
    shown.sort()
    time_base = stream.time_base or Fraction(1, 1000)
    timestamps = from_start(container, tuple(time for time, _ in shown), time_base)
    fps, variable, end = rate_of(stream, timestamps, shown[-1][1])
    turn = turn_of(first)
    upright = (first.height, first.width) if turn.swap else (first.width, first.height)
    aspect = stream.sample_aspect_ratio or Fraction(1)
    name = first.format.name
    video = PictureStream(
        codec=stream.codec.canonical_name,
        profile=stream.profile or "",
        pixel_format=name,
        bits=max(part.bits for part in first.format.components),
        alpha=has_alpha(stream, name) and shows_through(first, stream),
        width=upright[0],
        height=upright[1],
        rotation=turn.degrees,
        sample_aspect=1 / aspect if turn.swap else aspect,
        fps=fps,
        variable_rate=variable,
        frames=len(shown),
        time_base=time_base,
        timestamps=timestamps,
        end=end,
        primaries=PRIMARIES.get(int(first.color_primaries), ""),
        transfer=TRANSFERS.get(int(first.color_trc), ""),
        matrix=MATRICES.get(int(first.colorspace), ""),
        full_range=full_range_of(first),
    )
    return ClipFacts(
        path,
        container.format.name.split(",")[0],
        path.stat().st_size,
        (video.end - timestamps[0]) * time_base,
        video,
        tuple(listening.heard(clock_start(container)) for listening in sounds.values()),
        tuple(s.type for s in container.streams if s.index not in (stream.index, *sounds)),
    )


def full_range_of(frame: av.VideoFrame) -> bool | None:
    """Whether a frame says that it uses all levels; None where it says nothing."""
    if frame.format.name.startswith("yuvj"):
        return True
    return {1: False, 2: True}.get(int(frame.color_range))


@final
class _PacketDigest:
    """An audio stream while its packets go by."""

    def __init__(self, stream: av.AudioStream) -> None:
        self.stream = stream
        self.seen = hashlib.sha256()
        self.packets = 0
        self.start: int | None = None

    def hear(self, packet: av.Packet) -> None:  # type: ignore[type-arg]  # generic for the checker only
        if not packet.size:
            return
        self.seen.update(bytes(packet))
        self.packets += 1
        if self.start is None:
            self.start = packet.pts

    def heard(self, zero: Fraction) -> SoundStream:
        context, tick = self.stream.codec_context, self.stream.time_base or Fraction(1, 1000)
        return SoundStream(
            codec=context.name,
            rate=context.sample_rate,
            channels=context.layout.nb_channels,
            layout=context.layout.name,
            language=self.stream.language or "",
            packets=self.packets,
            digest=self.seen.hexdigest()[:16],
            start=(self.start or 0) * tick - zero,
            tick=tick,
        )


def _facts_of_pictures(path: Path, listed: list[Path]) -> ClipFacts:
    first = read_header(listed[0])
    fps = first.fps or PICTURES_A_SECOND
    time_base, starts, end = 1 / fps, tuple(range(len(listed))), len(listed)
    if is_animation(listed[0]):
        starts, end = animation_times(path)
        time_base = Fraction(1, 1000)
        fps = len(starts) / (end * time_base)
    video = PictureStream(
        codec=first.codec,
        profile="",
        pixel_format=first.mode.lower(),
        bits=first.bits,
        alpha=first.alpha,
        width=first.width,
        height=first.height,
        rotation=0,
        sample_aspect=Fraction(1),
        fps=fps,
        variable_rate=not is_steady(starts, fps, time_base),
        frames=len(starts),
        time_base=time_base,
        timestamps=starts,
        end=end,
        primaries="",
        transfer="",
        matrix="rgb",
        full_range=None,
    )
    size = sum(picture.stat().st_size for picture in listed)
    return ClipFacts(path, "webp" if is_animation(listed[0]) else "pictures", size, end * time_base, video)
