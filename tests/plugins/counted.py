"""A clip whose frames bear their number in six blocks, black or white, which can be read in any copy."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8

from retouch.media.io import Encoding, write
from retouch.video import Origin, Video

FRAMES = 60


def counted() -> Video:
    """Return the clip, 64 pixels wide and high; below the blocks something moves."""
    v, u = np.mgrid[:64, :64]
    frames = np.stack(
        [
            [128 + 90 * np.sin((u + 2 * n + 9 * c) / 8) * np.cos(v / 9) for c in range(3)]
            for n in range(FRAMES)
        ]
    ).astype(np.uint8)
    for n in range(FRAMES):
        for bit in range(6):
            frames[n, :, :20, 10 * bit : 10 * bit + 10] = 255 * (n >> bit & 1)
    return Video(frames, Fraction(12))


def number_in(picture: UInt8[np.ndarray, "h w 3"]) -> int:
    """Return the number that a picture of any size bears."""
    unit = picture.shape[1] / 64
    centres = [round((10 * bit + 5) * unit) for bit in range(6)]
    return sum(int(picture[round(8 * unit), u].mean() > 127) << bit for bit, u in enumerate(centres))


def write_kinds(folder: Path) -> tuple[Path, ...]:
    """Write the clip at a constant and at a varying rate, turned, and with 10 bits."""
    video = counted()
    times = tuple(int(t) for t in np.cumsum([1 + t % 3 for t in range(FRAMES)]) - 1)
    varying = Origin(time_base=Fraction(1, 24), timestamps=times, end=times[-1] + 1, variable_rate=True)
    constant = write(video, folder / "constant.mp4")
    write(Video(video.frames, video.fps, origin=varying), folder / "varying.mp4")
    deep = write(video, folder / "deep.mp4", encoding=Encoding(codec="hevc", bits=10))
    with av.open(str(folder / "turned.mp4"), "w") as file:
        stream = file.add_stream("libx264", 12)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.set_display_rotation(90)
        for frame in video.frames:
            picture = np.rot90(np.moveaxis(frame, 0, -1), -1)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")))
        file.mux(stream.encode(None))
    return constant, folder / "varying.mp4", folder / "turned.mp4", deep
