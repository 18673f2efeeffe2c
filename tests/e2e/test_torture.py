"""Files of every kind go through read and write; `probe --diff` has nothing to say but what the codec is."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from retouch.media.io import Encoding, read, write
from retouch.media.probe import CODEC_FIELDS, probe
from retouch.video import Video

RATE = Fraction(24000, 1001)
VARIABLE = (0, 25, 70, 90, 100, 150, 155, 200, 230, 300, 400, 433)
FRAMES = 12

# What one generation of a lossy codec at its usual quality keeps of a smooth, moving, coloured picture.
FAITHFUL = 33.0
# 256 colours a frame keep less of it.
FAITHFUL_IN_256_COLOURS = 24.0


@dataclass(frozen=True)
class Case:
    """How a source file is made, and how it is written again."""

    name: str
    suffix: str
    codec: str = "libx264"
    pixels: str = "yuv420p"
    size: tuple[int, int] = (64, 48)
    rate: Fraction = RATE
    frames: int = FRAMES
    times: tuple[int, ...] = ()
    first: int = 0
    rotation: int = 0
    aspect: Fraction | None = None
    tags: tuple[int, int, int, int] = (0, 2, 2, 2)  # range, matrix, primaries, transfer: unsaid
    audio: tuple[tuple[str, str], ...] = ()
    audio_at: int = 0
    options: Mapping[str, str] = field(default_factory=dict)
    encoding: Encoding = field(default_factory=Encoding)


CASES = [
    Case("h264-23.976-stereo", ".mp4", audio=(("aac", "stereo"),)),
    Case("h264-29.97-mono", ".mp4", rate=Fraction(30000, 1001), audio=(("aac", "mono"),)),
    Case("h264-25", ".mov", rate=Fraction(25)),
    Case("h264-120", ".mkv", rate=Fraction(120)),
    Case("variable-mp4", ".mp4", times=VARIABLE),
    Case("variable-mkv-opus", ".mkv", times=VARIABLE, audio=(("libopus", "stereo"),)),
    Case("variable-hevc", ".mp4", codec="libx265", times=VARIABLE, options={"x265-params": "log-level=none"}),
    Case("turned-90", ".mp4", rotation=90),
    Case("turned-180", ".mkv", rotation=180),
    Case("turned-270", ".mov", rotation=270),
    Case("turned-and-stretched", ".mp4", rotation=90, aspect=Fraction(4, 3)),
    Case("stretched", ".mp4", aspect=Fraction(16, 11)),
    Case("odd-h264-444", ".mkv", pixels="yuv444p", size=(63, 47)),
    Case("odd-vp9", ".webm", codec="libvpx-vp9", size=(63, 47), audio=(("libopus", "mono"),)),
    Case("alpha-vp9", ".webm", codec="libvpx-vp9", pixels="yuva420p", options={"auto-alt-ref": "0"}),
    Case("av1", ".mp4", codec="libsvtav1", size=(66, 66)),
    Case("av1-10-bit", ".mkv", codec="libsvtav1", pixels="yuv420p10le", size=(64, 64), tags=(1, 1, 1, 1)),
    Case("hevc", ".mov", codec="libx265", options={"x265-params": "log-level=none"}),
    Case(
        "hevc-10-bit-pq",
        ".mkv",
        codec="libx265",
        pixels="yuv420p10le",
        tags=(1, 9, 9, 16),
        options={"x265-params": "log-level=none"},
        encoding=Encoding(codec="hevc", bits=10),
    ),
    Case("h264-10-bit", ".mp4", pixels="yuv420p10le", encoding=Encoding(bits=10)),
    Case("full-range", ".mp4", tags=(2, 1, 1, 1)),
    Case("full-range-mkv", ".mkv", tags=(2, 5, 5, 6)),
    Case("bt601", ".mov", tags=(1, 6, 6, 6)),
    Case("bt709-srgb", ".mp4", tags=(1, 1, 1, 13)),
    Case("hlg", ".mp4", tags=(1, 9, 9, 18)),
    Case("prores-422-pcm", ".mov", codec="prores_ks", pixels="yuv422p10le", audio=(("pcm_s16le", "stereo"),)),
    Case(
        "alpha-prores",
        ".mov",
        codec="prores_ks",
        pixels="yuva444p10le",
        options={"profile": "4444"},
        encoding=Encoding(codec="prores"),
    ),
    Case("alpha-ffv1", ".mkv", codec="ffv1", pixels="bgra", encoding=Encoding(codec="ffv1")),
    Case("ffv1-422-10-bit", ".mkv", codec="ffv1", pixels="yuv422p10le", audio=(("flac", "stereo"),)),
    Case("mpeg4-mp3", ".avi", codec="mpeg4", audio=(("libmp3lame", "stereo"),)),
    Case("motion-jpeg", ".avi", codec="mjpeg", pixels="yuvj420p"),
    Case("one-frame", ".mp4", frames=1),
    Case("surround-aac", ".mp4", audio=(("aac", "5.1"),)),
    Case("surround-ac3", ".mkv", audio=(("ac3", "5.1(side)"),)),
    Case("two-languages", ".mkv", audio=(("aac", "stereo"), ("ac3", "stereo"))),
    Case("begins-late", ".mp4", first=12, audio=(("aac", "stereo"),)),
    Case("sound-begins-late", ".mkv", audio=(("libopus", "stereo"),), audio_at=9600),
    Case("sound-begins-late-mp4", ".mp4", rate=Fraction(25), audio=(("aac", "stereo"),), audio_at=4803),
    Case("gif", ".gif", codec="gif", pixels="bgr8", rate=Fraction(10)),
    Case("gif-variable", ".gif", codec="gif", pixels="bgr8", times=(0, 60, 90, 180, 210, 300), frames=6),
    Case("apng", ".apng", codec="apng", pixels="rgb24", rate=Fraction(10)),
    Case("alpha-apng", ".apng", codec="apng", pixels="rgba", rate=Fraction(10)),
]


def picture(index: int, width: int, height: int) -> np.ndarray:
    """A coloured gradient that moves, with a soft disc as its alpha; RGBA."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin((x + 3 * index) / 9 + c) + np.cos((y - index) / 7 - 2 * c) for c in range(3)]
    disc = np.clip(400 - (x - width / 2 - index) ** 2 - (y - height / 2) ** 2, 0, 255)
    return np.stack([*(128 + 55 * wave for wave in waves), disc], axis=-1).round().astype(np.uint8)


def make(case: Case, path: Path) -> None:
    """Writes the source file of a case, by PyAV alone."""
    os.environ.setdefault("SVT_LOG", "1")
    with av.open(str(path), "w") as file:
        stream = file.add_stream(case.codec, rate=case.rate, options=dict(case.options))
        assert isinstance(stream, av.VideoStream)
        context = stream.codec_context
        context.width, context.height = case.size
        context.pix_fmt = case.pixels
        unit = Fraction(1, 600) if case.times else 1 / case.rate
        context.time_base = unit
        if case.aspect:
            context.sample_aspect_ratio = case.aspect
        context.color_range, context.colorspace, context.color_primaries, context.color_trc = case.tags
        if case.rotation:
            stream.set_display_rotation(case.rotation)
        sounds = [add_sound(file, *audio) for audio in case.audio]
        for i in range(case.frames):
            frame = av.VideoFrame.from_ndarray(picture(i, *case.size), "rgba").reformat(format=case.pixels)
            frame.pts = case.times[i] if case.times else case.first + i
            frame.time_base = unit
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
        for sound in sounds:
            file.mux(play(sound, case.audio_at))


def add_sound(file: av.container.OutputContainer, codec: str, layout: str) -> av.AudioStream:
    stream = file.add_stream(codec, rate=48000)
    assert isinstance(stream, av.AudioStream)
    stream.codec_context.layout = layout
    stream.metadata["language"] = "ger" if codec == "ac3" else "eng"
    return stream


def play(stream: av.AudioStream, begin: int) -> list[av.Packet]:  # type: ignore[type-arg]
    context = stream.codec_context
    context.open(strict=False)
    samples = context.frame_size or 1024
    rng = np.random.default_rng(5)
    packets: list[av.Packet] = []  # type: ignore[type-arg]
    for i in range(20):
        frame = av.AudioFrame(format=context.format.name, layout=context.layout.name, samples=samples)
        for plane in frame.planes:
            wave = rng.normal(0, 0.05, plane.buffer_size // 4).astype(np.float32)
            plane.update(
                wave.tobytes() if "flt" in context.format.name else (wave * 3000).astype(np.int32).tobytes()
            )
        frame.sample_rate = 48000
        frame.pts, frame.time_base = begin + i * samples, Fraction(1, 48000)
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def likeness(left: np.ndarray, right: np.ndarray) -> float:
    """PSNR in dB."""
    error = float(np.mean((left.astype(np.float64) - right) ** 2))
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_file_read_and_written_differs_in_its_codec_only(case: Case, tmp_path: Path) -> None:
    source, target = tmp_path / f"source{case.suffix}", tmp_path / f"target{case.suffix}"
    make(case, source)
    video = read(source)
    write(video, target, encoding=case.encoding)
    before, after = probe(source), probe(target)
    told = {line.split(":")[0] for line in before.differences(after)}
    assert told <= CODEC_FIELDS | ({"rotation"} if case.rotation else set()), before.differences(after)
    assert after.video.rotation == 0
    assert len(video) == before.video.frames == after.video.frames == case.frames
    assert [(s.packets, s.digest) for s in after.sounds] == [(s.packets, s.digest) for s in before.sounds]
    assert len(before.sounds) == len(case.audio)
    again = read(target)
    least = FAITHFUL_IN_256_COLOURS if case.codec == "gif" else FAITHFUL
    assert likeness(again.frames, video.frames) > least
    assert (again.alpha is None) == (video.alpha is None) == ("alpha" not in case.name)
    if again.alpha is not None and video.alpha is not None:
        assert likeness(again.alpha, video.alpha) > FAITHFUL


@pytest.mark.parametrize("case", [case for case in CASES if case.rotation], ids=lambda case: case.name)
def test_a_turned_file_is_read_upright(case: Case, tmp_path: Path) -> None:
    path = tmp_path / f"source{case.suffix}"
    make(case, path)
    upright = np.rot90(picture(0, *case.size)[..., :3], case.rotation // 90)
    assert (
        likeness(read(path).frames[0], np.moveaxis(upright, -1, 0)) > 24
    )  # chroma at half size, and a codec


def test_an_animated_webp_comes_back_with_its_times(tmp_path: Path) -> None:
    pictures = [Image.fromarray(picture(i, 40, 30)) for i in range(5)]
    pictures[0].save(
        tmp_path / "a.webp",
        save_all=True,
        append_images=pictures[1:],
        duration=[40, 100, 60, 40, 80],
        lossless=True,
    )
    video = read(tmp_path / "a.webp")
    assert video.origin.timestamps == (0, 40, 140, 200, 240)
    assert video.duration == Fraction(320, 1000)
    # Where nothing shows, an encoder may put any colour.
    seen = np.stack([np.moveaxis(picture(i, 40, 30), -1, 0) for i in range(5)])
    assert video.alpha is not None
    assert np.array_equal(video.alpha[:, 0], seen[:, 3])
    assert np.array_equal(video.frames * (video.alpha > 0), seen[:, :3] * (video.alpha > 0))
    write(video, tmp_path / "b.apng")
    told = {line.split(":")[0] for line in probe(tmp_path / "a.webp").differences(probe(tmp_path / "b.apng"))}
    assert told <= CODEC_FIELDS


def test_a_folder_of_pictures_comes_back_with_its_rate(tmp_path: Path) -> None:
    make(CASES[0], tmp_path / "source.mp4")
    video = read(tmp_path / "source.mp4")
    write(video, tmp_path / "frames")
    again = read(tmp_path / "frames")
    assert again.fps == RATE
    assert again.digest == video.digest
    assert read(tmp_path / "frames" / "*.png").digest == video.digest
    write(again, tmp_path / "again")
    assert not probe(tmp_path / "frames").differences(probe(tmp_path / "again"))


@pytest.mark.parametrize("suffix", [".gif", ".apng", ".mp4", ".mkv", ".webm", ".avi", ""])
def test_frames_that_are_all_the_same_are_still_as_many(suffix: str, tmp_path: Path) -> None:
    still = np.broadcast_to(np.moveaxis(picture(3, 64, 48)[..., :3], -1, 0), (9, 3, 48, 64))
    write(Video(still, Fraction(10)), tmp_path / f"still{suffix}")
    again = read(tmp_path / f"still{suffix}")
    assert len(again) == 9
    assert again.fps == Fraction(10)


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [(".mkv", "auto"), (".mp4", "h264"), (".mkv", "hevc"), (".webm", "vp9"), (".avi", "ffv1"), ("", "png")],
)
def test_lossless_keeps_every_byte(suffix: str, codec: str, tmp_path: Path) -> None:
    make(CASES[0], tmp_path / "source.mp4")
    video = read(tmp_path / "source.mp4")
    encoding = Encoding(codec=codec, lossless=True, sound=False)  # type: ignore[arg-type]
    write(video, tmp_path / f"out{suffix}", encoding=encoding)
    assert np.array_equal(read(tmp_path / f"out{suffix}").frames, video.frames)


def test_a_broadcast_whose_clock_runs_on_begins_at_nothing(tmp_path: Path) -> None:
    case = Case("broadcast", ".ts", first=240, audio=(("aac", "stereo"),), audio_at=480_000)
    make(case, tmp_path / "source.ts")
    video = read(tmp_path / "source.ts")
    write(video, tmp_path / "target.mp4")
    before, after = probe(tmp_path / "source.ts"), probe(tmp_path / "target.mp4")
    assert 0 <= after.video.timestamps[0] * after.video.time_base < Fraction(1, 10)
    # AAC in a broadcast has a header before each packet, which MP4 does not want: the muxer takes it off.
    told = {line.split(":")[0] for line in before.differences(after)}
    assert told <= CODEC_FIELDS | {"audio 0 packets"}
    assert before.sounds[0].packets == after.sounds[0].packets
    # Sound stays where it was beside the pictures.
    apart = [
        facts.sounds[0].start - facts.video.timestamps[0] * facts.video.time_base for facts in (before, after)
    ]
    assert abs(apart[0] - apart[1]) < Fraction(1, 1000)


def test_a_source_can_be_replaced_by_its_edit_and_keeps_its_sound(tmp_path: Path) -> None:
    make(CASES[0], tmp_path / "source.mp4")
    before = probe(tmp_path / "source.mp4")
    video = read(tmp_path / "source.mp4")
    write(video.like(255 - video.frames), tmp_path / "source.mp4", force=True)
    assert probe(tmp_path / "source.mp4").sounds == before.sounds
    assert likeness(read(tmp_path / "source.mp4").frames, 255 - video.frames) > FAITHFUL


def test_a_slice_takes_its_times_and_the_sound_within(tmp_path: Path) -> None:
    case = Case("long", ".mp4", frames=48, audio=(("aac", "stereo"),))
    make(case, tmp_path / "source.mp4")
    part = read(tmp_path / "source.mp4")[8:16]
    write(part, tmp_path / "part.mp4")
    facts = probe(tmp_path / "part.mp4")
    assert facts.video.frames == 8
    assert facts.video.timestamps[0] == 0
    assert facts.duration == 8 / RATE
    packet = Fraction(1024, 48000)
    # Packets lie where they lie: none before the cut, none that begins behind it.
    assert 0 <= facts.sounds[0].start < packet
    heard = min(20 * packet, 16 / RATE) - 8 / RATE
    assert abs(facts.sounds[0].packets * packet - heard) <= packet


def test_probe_answers_fast_and_without_torch(tmp_path: Path) -> None:
    make(CASES[0], tmp_path / "a b ü.mp4")
    code = (
        "import sys; from retouch.apps.cli import run; code = run(sys.argv[1:]);"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    call = [sys.executable, "-c", code, "probe"]
    told = subprocess.run([*call, str(tmp_path / "a b ü.mp4")], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert "24000/1001" in told.stdout
    assert "aac" in told.stdout
    same = subprocess.run(
        [*call, "--diff", *[str(tmp_path / "a b ü.mp4")] * 2], capture_output=True, text=True, check=False
    )
    assert (same.returncode, same.stdout, same.stderr) == (0, "", "")
    write(read(tmp_path / "a b ü.mp4")[:5], tmp_path / "b.mp4")
    other = subprocess.run(
        [*call, "--diff", str(tmp_path / "a b ü.mp4"), str(tmp_path / "b.mp4")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert other.returncode == 1
    assert "frames: 12 -> 5" in other.stdout


def test_nothing_of_ffmpeg_or_its_encoders_reaches_the_terminal(tmp_path: Path) -> None:
    make(CASES[0], tmp_path / "source.mp4")
    code = (
        "from pathlib import Path; from retouch.media.io import *; import sys\n"
        "folder = Path(sys.argv[1]); video = read(folder / 'source.mp4')\n"
        "for codec, suffix in [('h264', '.mp4'), ('hevc', '.mp4'), ('vp9', '.mkv'), ('av1', '.mkv'),\n"
        "                      ('ffv1', '.mkv'), ('prores', '.mov'), ('hevc', '.mkv')]:\n"
        "    lossless = suffix == '.mkv' and codec in ('hevc', 'vp9')\n"
        "    write(video, folder / (codec + suffix), encoding=Encoding(codec=codec, lossless=lossless))\n"
        "broken = bytearray((folder / 'h264.mp4').read_bytes())\n"
        "broken[600:4000:50] = bytes(len(broken[600:4000:50])); (folder / 'x.mp4').write_bytes(broken)\n"
        "try: read(folder / 'x.mp4')\n"
        "except Exception: pass\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")


def test_the_same_clip_is_written_to_the_same_bytes(tmp_path: Path) -> None:
    # Of few macroblocks and with times of its own, where x264 is least steady.
    make(
        Case("small", ".mp4", size=(64, 64), times=VARIABLE, audio=(("aac", "stereo"),)),
        tmp_path / "source.mp4",
    )
    video = read(tmp_path / "source.mp4")
    written = {write(video, tmp_path / f"{i}.mp4").read_bytes() for i in range(12)}
    assert len(written) == 1
