"""Writing: whole or not at all, nothing replaced unasked, and what cannot go along is told."""

import os
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from retouch.errors import ParamsError, VideoError
from retouch.events import Event, Notice
from retouch.identity import file_digest
from retouch.media.encoding import Codec, choose_settings
from retouch.media.io import Encoding, Writer, read, write
from retouch.media.probe import probe
from retouch.video import Origin, Video


def clip(frames: int = 5, height: int = 32, width: int = 48, *, alpha: bool = False) -> Video:
    y, x = np.mgrid[:height, :width]
    waves = [
        [128 + 60 * np.sin((x + 3 * i) / 9 + c) + 50 * np.cos((y - i) / 7 - 2 * c) for c in range(3)]
        for i in range(frames)
    ]
    pictures = np.array(waves).astype(np.uint8)
    return Video(pictures, Fraction(25), pictures[:, :1].copy() if alpha else None)


def with_sound(path: Path, codec: str) -> Path:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        sound = file.add_stream(codec, rate=48000)
        assert isinstance(stream, av.VideoStream)
        assert isinstance(sound, av.AudioStream)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for picture in clip().frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.moveaxis(picture, 0, -1).copy(), "rgb24")))
        file.mux(stream.encode(None))
        for i in range(6):
            frame = av.AudioFrame(format=sound.codec_context.format.name, layout="stereo", samples=960)
            for plane in frame.planes:
                plane.update(bytes(plane.buffer_size))
            frame.sample_rate, frame.pts = 48000, 960 * i
            file.mux(sound.encode(frame))
        file.mux(sound.encode(None))
    return path


def told(heard: list[Event]) -> str:
    return "\n".join(event.text for event in heard if isinstance(event, Notice))


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "frames"])
def test_what_exists_is_replaced_only_when_asked(name: str, tmp_path: Path) -> None:
    path = write(clip(), tmp_path / name)
    before = probe(path)
    with pytest.raises(VideoError, match="exists") as caught:
        write(clip(9), path)
    assert "--force" in caught.value.hint
    assert probe(path) == before
    write(clip(9), path, force=True)
    assert len(read(path)) == 9
    assert [inner.name for inner in tmp_path.iterdir()] == [name]


def test_a_folder_that_holds_other_things_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").write_text("years")
    with pytest.raises(VideoError, match=r"holds thesis.tex, which retouch did not write"):
        write(clip(), tmp_path / "work", force=True)
    assert (tmp_path / "work" / "thesis.tex").read_text() == "years"


@pytest.mark.parametrize("name", ["a.mp4", "frames"])
def test_a_writer_that_fails_leaves_everything_as_it_was(name: str, tmp_path: Path) -> None:
    path = write(clip(), tmp_path / name)
    before = read(path).digest

    def fail() -> None:
        with Writer(path, like=clip(), force=True) as out:
            out.add(clip())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert read(path).digest == before
    assert [inner.name for inner in tmp_path.iterdir()] == [name]


def test_what_came_first_while_writing_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"

    def late() -> None:
        with Writer(path, like=clip()) as out:
            out.add(clip())
            path.write_text("somebody was faster")

    with pytest.raises(VideoError, match="exists"):
        late()
    assert path.read_text() == "somebody was faster"
    assert [inner.name for inner in tmp_path.iterdir()] == ["a.mp4"]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    # A bound on the size of files meets the writer as a full disk does, at whichever byte.
    code = (
        "import resource, sys; import numpy as np; from fractions import Fraction\n"
        "from retouch.video import Video; from retouch.media.io import *; from retouch.errors import *\n"
        "noise = Video(np.random.default_rng(0).integers(0, 256, (8, 3, 64, 96), np.uint8), Fraction(25))\n"
        "for name in ['a.mp4', 'a.mkv', 'a.avi', 'a.gif', 'frames']:\n"
        "    for limit in [1, 900, 5000, 15000]:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))\n"
        "        try: write(noise, sys.argv[1] + '/' + name)\n"
        "        except ResourceError as error: print('told', error.exit_code, bool(error.hint))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.stdout.split("\n")[:-1], done.stderr) == (["told 4 True"] * 20, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "encoding", "error", "said"),
    [
        ("a.mpg", Encoding(), VideoError, "no clip is written as .mpg"),
        ("a.png", Encoding(), VideoError, "no clip is written as .png"),
        ("a.webm", Encoding("h264"), VideoError, "does not hold h264"),
        ("a.mp4", Encoding("ffv1"), VideoError, "does not hold ffv1"),
        ("a.mp4", Encoding("png"), VideoError, "does not hold png"),
        ("a.mov", Encoding("prores", lossless=True), ParamsError, "does not keep every RGB byte"),
        ("a.mp4", Encoding("h264", crf=52), ParamsError, "h264 takes 0 to 51"),
        ("a.gif", Encoding(crf=5), ParamsError, "gif has no crf"),
        ("a.webm", Encoding("vp9", bits=10), ParamsError, "not written with 10 bits"),
        ("nowhere/a.mp4", Encoding(), VideoError, "there is no folder"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    name: str, encoding: Encoding, error: type[Exception], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said) as caught:
        write(clip(), tmp_path / name, encoding=encoding)
    assert getattr(caught.value, "hint", "")
    assert list(tmp_path.iterdir()) == []


def test_sound_that_the_container_does_not_take_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    video = read(with_sound(tmp_path / "a.mp4", "aac"))
    with pytest.raises(VideoError, match="does not hold the source's aac audio") as caught:
        write(video, tmp_path / "b.webm")
    assert ".mkv" in caught.value.hint
    write(video, tmp_path / "b.webm", encoding=Encoding(sound=False))
    assert probe(tmp_path / "b.webm").sounds == ()
    write(video, tmp_path / "b.mkv")
    assert probe(tmp_path / "b.mkv").sounds[0].digest == probe(tmp_path / "a.mp4").sounds[0].digest


def test_sound_that_cannot_come_along_is_never_dropped_in_silence(tmp_path: Path) -> None:
    source = with_sound(tmp_path / "a.mkv", "libopus")
    video = read(source)
    heard: list[Event] = []
    write(video, tmp_path / "b.gif", listen=heard.append)
    assert "has no audio" in told(heard)
    source.write_bytes(source.read_bytes() + b"\0")
    write(video, tmp_path / "c.mkv", listen=heard.append)
    assert "has changed since it was read" in told(heard)
    source.unlink()
    write(video, tmp_path / "d.mkv", listen=heard.append)
    assert "the file is gone" in told(heard)
    assert probe(tmp_path / "d.mkv").sounds == ()


def test_more_or_fewer_frames_than_the_source_keep_its_sound(tmp_path: Path) -> None:
    video = read(with_sound(tmp_path / "a.mp4", "aac"))
    write(video.like(video.frames.repeat(2, axis=0)), tmp_path / "b.mp4")
    facts = probe(tmp_path / "b.mp4")
    assert facts.video.frames == 10
    assert facts.sounds[0].digest == probe(tmp_path / "a.mp4").sounds[0].digest


def test_what_is_lost_is_told(tmp_path: Path) -> None:
    heard: list[Event] = []
    deep = replace(clip(7, 31, 47, alpha=True), origin=Origin(bits=10))
    write(deep, tmp_path / "a.mp4", listen=heard.append)
    assert "has no alpha here" in told(heard)
    assert "10 bits a colour; its frames are rounded to 8" in told(heard)
    assert "47x31 has an odd side" in told(heard)
    uneven = Origin(time_base=Fraction(1, 100), timestamps=(0, 4, 9), end=12, frames=3, variable_rate=True)
    write(replace(clip(3), origin=uneven), tmp_path / "frames", listen=heard.append)
    assert "does not keep the times" in told(heard)
    with pytest.raises(VideoError, match="AVI has no variable rate"):
        write(replace(clip(3), origin=uneven), tmp_path / "a.avi")
    with pytest.raises(VideoError, match="at most 50 frames a second"):
        write(replace(clip(3), fps=Fraction(60)), tmp_path / "a.gif")


def test_a_guessed_matrix_is_told_where_a_clip_is_written_and_not_where_it_is_read(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        file.mux(stream.encode(av.VideoFrame(48, 32, "yuv420p")))
        file.mux(stream.encode(None))
    heard: list[Event] = []
    video = read(tmp_path / "a.mp4", listen=heard.append)
    assert heard == []
    write(video, tmp_path / "b.mp4", listen=heard.append)
    assert "does not say its colour matrix; smpte170m is taken" in told(heard)


def test_the_writer_takes_pieces_and_another_size(tmp_path: Path) -> None:
    video = clip(6)
    bigger = video.frames.repeat(2, axis=2).repeat(2, axis=3)
    with Writer(tmp_path / "a.mkv", like=video, encoding=Encoding(lossless=True)) as out:
        out.add(bigger[:1])
        out.add(bigger[1:6])
    assert np.array_equal(read(tmp_path / "a.mkv").frames, bigger)


def test_the_writer_refuses_frames_that_do_not_belong_together(tmp_path: Path) -> None:
    timed = read(write(clip(), tmp_path / "a.mp4"))

    def add(like: Video, *pieces: Video) -> None:
        with Writer(tmp_path / "b.mp4", like=like) as out:
            for piece in pieces:
                out.add(piece)

    with pytest.raises(VideoError, match="more frames than the 5"):
        add(timed, clip(6))
    with pytest.raises(VideoError, match="frame 5 is 32x32"):
        add(clip(), clip(), clip(1, 32, 32))
    with pytest.raises(VideoError, match="no frames came"):
        add(clip())
    assert not (tmp_path / "b.mp4").exists()


def test_ten_bits_are_written_when_asked_for(tmp_path: Path) -> None:
    for name, codec in [("a.mp4", "h264"), ("b.mp4", "hevc"), ("c.mp4", "av1"), ("d.mov", "prores")]:
        write(clip(3, 64, 64), tmp_path / name, encoding=Encoding(codec, bits=10))  # type: ignore[arg-type]
        assert probe(tmp_path / name).video.bits == 10


def test_a_better_crf_is_nearer_and_larger(tmp_path: Path) -> None:
    video = clip(8, 64, 96)
    sizes, errors = [], []
    for crf in (4, 20, 40):
        path = write(video, tmp_path / f"{crf}.mp4", encoding=Encoding(crf=crf))
        sizes.append(path.stat().st_size)
        errors.append(float(np.mean((read(path).frames.astype(float) - video.frames) ** 2)))
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)


@pytest.mark.parametrize("codec", ["auto", "h264", "hevc", "vp9", "av1", "prores", "ffv1"])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".apng", ""])
def test_the_same_clip_becomes_the_same_bytes(suffix: str, codec: Codec, tmp_path: Path) -> None:
    try:
        choose_settings(tmp_path / f"a{suffix}", Encoding(codec=codec), width=64, height=48, alpha=False)
    except VideoError:
        return  # the container does not take that codec
    sounding = suffix in (".mp4", ".mkv") and codec != "hevc"
    source = read(with_sound(tmp_path / "source.mkv", "aac")) if sounding else clip(5, 48, 64)
    one, two = (write(source, tmp_path / f"{n}{suffix}", encoding=Encoding(codec=codec)) for n in "ab")
    assert file_digest(one) == file_digest(two)


def test_hevc_that_its_encoder_would_crash_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="64 pixels of width on; the clip has 62"):
        write(clip(3, 48, 62), tmp_path / "narrow.mp4", encoding=Encoding(codec="hevc"))
    write(clip(3, 48, 64), tmp_path / "wide.mp4", encoding=Encoding(codec="hevc"))


def test_generations_of_one_clip_stay_near_the_first(tmp_path: Path) -> None:
    # Chroma at half size and a codec: the first generation loses most, and the later ones next to nothing.
    video = clip(4, 64, 96)
    first = read(write(video, tmp_path / "0.mp4", encoding=Encoding(crf=4)))
    later = first
    for i in range(1, 5):
        later = read(write(later, tmp_path / f"{i}.mp4", encoding=Encoding(crf=4)))
    assert np.abs(later.frames.astype(int) - first.frames).mean() < 1.0


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are listed on Linux alone")
def test_no_encoder_makes_itself_more_urgent_than_the_machine(tmp_path: Path) -> None:
    def urgent() -> list[str]:
        tasks = [task.name for task in Path("/proc/self/task").iterdir()]
        return [task for task in tasks if os.sched_getscheduler(int(task)) in (os.SCHED_FIFO, os.SCHED_RR)]

    source = clip(3, 66, 66)
    with Writer(tmp_path / "a.mp4", like=source, encoding=Encoding(codec="av1")) as out:
        out.add(source)
        assert not urgent()
    assert not urgent()
