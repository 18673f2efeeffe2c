"""Small clips and pictures of every kind, and ways to damage them: the same seed does the same damage."""

import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from retouch.media.io import Encoding, write
from retouch.video import Video


def clip(*, alpha: bool = False) -> Video:
    y, x = np.mgrid[:48, :64]
    frames = np.stack(
        [
            [128 + 60 * np.sin((x + 3 * i) / 9 + c) + 50 * np.cos((y - i) / 7 - 2 * c) for c in range(3)]
            for i in range(6)
        ]
    ).astype(np.uint8)
    return Video(frames, Fraction(10), frames[:, :1].copy() if alpha else None)


def sound_and_pictures(path: Path) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        sound = file.add_stream("libmp3lame", rate=48000)
        assert isinstance(stream, av.VideoStream)
        assert isinstance(sound, av.AudioStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for picture in clip().frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.moveaxis(picture, 0, -1).copy(), "rgb24")))
        file.mux(stream.encode(None))
        for i in range(12):
            frame = av.AudioFrame(format="fltp", layout="stereo", samples=1152)
            for plane in frame.planes:
                plane.update(np.full(1152, 0.1, np.float32).tobytes())
            frame.sample_rate, frame.pts = 48000, i * 1152
            file.mux(sound.encode(frame))
        file.mux(sound.encode(None))


def healthy(folder: Path) -> dict[str, bytes]:
    """One small file of every kind, by name."""
    plain, clear = clip(), clip(alpha=True)
    for name, video, encoding in [
        ("h264.mp4", plain, Encoding()),
        ("h264.mkv", plain, Encoding()),
        ("h264.avi", plain, Encoding()),
        ("rgb.mp4", plain, Encoding(lossless=True)),
        ("hevc.mov", plain, Encoding("hevc")),
        ("vp9.webm", plain, Encoding()),
        ("alpha.webm", clear, Encoding()),
        ("av1.mp4", plain, Encoding("av1")),
        ("alpha.mov", clear, Encoding("prores")),
        ("alpha.mkv", clear, Encoding("ffv1")),
        ("plain.gif", plain, Encoding()),
        ("alpha.apng", clear, Encoding()),
    ]:
        write(video, folder / name, encoding=encoding)
    pictures = [Image.fromarray(np.moveaxis(picture, 0, -1)) for picture in plain.frames]
    for suffix in ("png", "jpg", "tiff", "bmp", "webp"):
        pictures[0].save(folder / f"still.{suffix}")
    pictures[0].convert("CMYK").save(folder / "cmyk.jpg")
    pictures[0].quantize(16).save(folder / "palette.png")
    pictures[0].save(folder / "moving.webp", save_all=True, append_images=pictures[1:], duration=50)
    sound_and_pictures(folder / "sound.avi")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def flip(content: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 3, 10, 40))):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def cut_short(content: bytearray, chance: random.Random) -> None:
    del content[chance.randrange(1, len(content)) :]


def blank(content: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(content))
    stop = min(len(content), start + chance.choice((4, 16, 200)))
    content[start:stop] = bytes(stop - start)


def repeat(content: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(content))
    content[start:start] = content[start : start + chance.choice((8, 64, 500))]


def upset_the_header(content: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 4))):
        content[chance.randrange(min(len(content), 400))] = chance.choice(
            (0, 255, 127, 128, chance.randrange(256))
        )


DAMAGES: list[Callable[[bytearray, random.Random], None]] = [
    flip,
    flip,
    cut_short,
    blank,
    repeat,
    upset_the_header,
]


def damaged(content: bytes, chance: random.Random) -> bytes:
    spoilt = bytearray(content)
    for _ in range(chance.randint(1, 3)):
        chance.choice(DAMAGES)(spoilt, chance)
    return bytes(spoilt)
