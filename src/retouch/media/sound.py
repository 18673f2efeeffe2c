"""The source's audio on its way into another file: packets are copied as they are, never decoded."""

from collections.abc import Generator, Iterator
from contextlib import ExitStack
from fractions import Fraction
from typing import final

from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.packet import Packet

from retouch.identity import file_digest
from retouch.media.opening import open_by_content
from retouch.media.probe import clock_start
from retouch.video import Origin


def why_silent(origin: Origin) -> str:
    """Why the audio that an origin speaks of cannot be copied any more; "" if it can."""
    if origin.path is None or not origin.path.is_file():
        return f"the audio of {origin.path} is not copied: the file is gone"
    if file_digest(origin.path) != origin.content:
        return f"the audio of {origin.path} is not copied: the file has changed since it was read"
    return ""


@final
class Soundtrack:
    """The audio packets of a file in the order of time, moved to where the written video begins.

    The whole of them for a whole clip; for a slice those that begin within it, which is as near as packets
    can be cut without decoding them.
    """

    def __init__(self, origin: Origin, output: OutputContainer) -> None:
        assert origin.path is not None
        self._open = ExitStack()
        source = self._open.enter_context(open_by_content(origin.path))
        known = {sound.index for sound in origin.sounds}
        streams = [stream for stream in source.streams.audio if stream.index in known]
        self._copies: dict[int, AudioStream] = {}
        for stream in streams:
            copy = output.add_stream_from_template(stream)
            copy.metadata.update({key: value for key, value in stream.metadata.items() if key == "language"})
            self._copies[stream.index] = copy
        self._packets = self._cut(source.demux(streams), origin, clock_start(source))
        self._next = next(self._packets, None)

    def until(self, seconds: Fraction) -> Iterator[Packet]:  # type: ignore[type-arg]  # generic for the checker only
        """Gives the packets before a moment of the written video that were not given yet."""
        while self._next is not None and self._next[0] < seconds:
            yield self._next[1]
            self._next = next(self._packets, None)

    def rest(self) -> Iterator[Packet]:  # type: ignore[type-arg]  # generic for the checker only
        """Gives all packets that were not given yet."""
        while self._next is not None:
            yield self._next[1]
            self._next = next(self._packets, None)

    def close(self) -> None:
        """Closes the source."""
        self._packets.close()
        self._open.close()

    def _cut(
        self,
        packets: Iterator[Packet],  # type: ignore[type-arg]
        origin: Origin,
        zero: Fraction,
    ) -> Generator[tuple[Fraction, Packet]]:  # type: ignore[type-arg]
        partly = bool(origin.timestamps) and not origin.is_whole
        begin = origin.timestamps[0] * origin.time_base if partly else Fraction(0)
        end = origin.end * origin.time_base
        for packet in packets:
            if not packet.size or packet.pts is None:
                continue
            moment = packet.pts * packet.time_base - zero
            if partly and not begin <= moment < end:
                continue
            shift = round((begin + zero) / packet.time_base)
            packet.pts -= shift
            if packet.dts is not None:
                packet.dts -= shift
            packet.stream = self._copies[packet.stream.index]
            yield moment - begin, packet
