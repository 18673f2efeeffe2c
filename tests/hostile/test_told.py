"""What a user is told: the truth, before it costs anything, and once."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import Shell

import retouch
from retouch.apps.preflight import check_prompts
from retouch.errors import ParamsError, VideoError
from retouch.events import ignore
from retouch.media.io import read, read_frame, write_picture
from retouch.media.probe import probe
from retouch.models.refs import resolve
from retouch.params import Params, Role, frame_range, given_as, of_part, renumbered
from retouch.registry import method, names

SAND = "a red car on sand"
TAUGHT = {"face": ("tiny:face", "a face with a hat")}
"""The model of a method, and words that it was taught, where these are not `tiny:sd` and `SAND`."""
TOLD = ("diffusion_atlas", "fatezero", "tune_a_video", "frame_by_frame", "videoshop")
TEXT = ("edit", "fatezero", "clip.mp4", "--source-prompt", SAND, "--steps", 1)


def asked(name: str, values: dict[str, object]) -> Params:
    """A method's parameters, whatever they say to each other, with a model that declares its words."""
    kind = method(name).params
    model, words = taught(name)
    usual = {
        field: words if info.is_required() else info.default for field, info in kind.model_fields.items()
    }
    params = kind.model_construct(None, **usual | {"model": model} | values)
    assert isinstance(params, Params)
    return params


def taught(name: str) -> tuple[str, str]:
    """A method's model here, and words that it knows."""
    return TAUGHT.get(name, ("tiny:sd", SAND))


def readers() -> list[tuple[str, str]]:
    """Every method with each of its parameters that a model reads."""
    told = {
        name: asked(name, dict.fromkeys(method(name).params.model_fields, taught(name)[1]))
        for name in names()
    }
    return [(name, prompt) for name, params in told.items() for prompt, _ in given_as(params, Role.PROMPT)]


def test_every_parameter_called_a_prompt_is_marked_as_one() -> None:
    assert set(readers()) == {
        (name, field)
        for name in names()
        for field in method(name).params.model_fields
        if field.endswith("prompt")
    }
    assert {name for name, _ in readers()} >= set(TOLD)


@pytest.mark.parametrize(("name", "prompt"), readers())
def test_no_method_takes_a_word_that_its_model_was_not_taught(name: str, prompt: str) -> None:
    model, words = taught(name)
    check_prompts(asked(name, {prompt: words}), anyway=False, tell=ignore)
    with pytest.raises(ParamsError, match=f"{model} does not know the word 'jeep'"):
        check_prompts(asked(name, {prompt: f"{words} and a jeep"}), anyway=False, tell=ignore)


@pytest.mark.parametrize("name", ["stablevideo", "diffusion_atlas"])
def test_an_editor_reads_the_words_in_place_of_the_model(name: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionInstructPix2PixPipeline"}')
    words: dict[str, object] = {"prompt": "make it a jeep", "editor": str(tmp_path)}
    check_prompts(asked(name, words), anyway=False, tell=ignore)
    with pytest.raises(ParamsError, match="tiny:sd does not know the word"):
        check_prompts(asked(name, words | {"editor": "tiny:sd"}), anyway=False, tell=ignore)


def test_a_strange_word_ends_an_edit_before_it_begins_and_anyway_goes_on(shell: Shell) -> None:
    ended = shell(*TEXT, "--prompt", "a bleu car on sand", "--json")
    assert ended.code == 2
    error = json.loads(ended.err.splitlines()[-1])
    assert error["error"] == "tiny:sd does not know the word 'bleu'"
    assert "bleu: blue" in error["hint"]
    assert not any((run / "events.jsonl").exists() for run in shell.runs)
    ended = shell(*TEXT, "--prompt", "a bleu car on sand", "--anyway")
    assert ended.code == 0
    assert ended.err.count("does not know the word 'bleu'; what it makes of that") == 1
    command = json.loads((shell.runs[-1] / "report.json").read_text())["command"]
    assert "--anyway" in command


def test_python_is_told_as_the_command_line_is(shell: Shell) -> None:
    with pytest.raises(ParamsError, match="'jeep'"):
        retouch.edit("fatezero", shell.folder / "clip.mp4", source_prompt=SAND, prompt="a red jeep on sand")


def test_models_show_names_the_words(shell: Shell) -> None:
    shown = shell("models", "show", "tiny:sd").out
    assert "watercolour, white, wood, yellow" in shown
    assert resolve("tiny:sd").name in shown


def test_a_part_of_a_clip_is_what_slicing_gives(shell: Shell) -> None:
    clip = shell.folder / "clip.mp4"
    part, cut = read(clip, part=range(3, 6)), read(clip)[3:6]
    np.testing.assert_array_equal(part.frames, cut.frames)
    assert (part.fps, part.origin) == (cut.fps, cut.origin)
    with pytest.raises(VideoError, match="frames 3 to 8 are not all in"):
        read(clip, part=range(3, 9))


def test_a_range_is_read_and_frames_outside_it_are_refused() -> None:
    assert frame_range("") is None
    assert frame_range("3-5") == range(3, 6)
    for wrong in ("5-3", "3", "a-b", "-3", "3-5-7"):
        with pytest.raises(ParamsError, match="is not FIRST-LAST"):
            frame_range(wrong)
    for text, within in {"4=k4.png": "1=k4.png", "car@5:1,2 3,4": "car@2:1,2 3,4", "3:7,8": "0:7,8"}.items():
        assert renumbered(text, range(3, 6), "it") == within
    with pytest.raises(ParamsError, match="it names frame 6; the range has frames 3 to 5"):
        renumbered("6=k.png", range(3, 6), "it")


def test_every_parameter_that_names_frames_is_counted_from_the_part(shell: Shell) -> None:
    given = {"keyframe": ("4=/k.png",), "box": ("5:1,1 9,9",), "drawn": ("car@3=/m.png",), "frames": "4-5"}
    inside = of_part(method("paint").fill(given), range(3, 6)).model_dump()
    assert (inside["keyframe"], inside["box"]) == (("1=/k.png",), ("2:1,1 9,9",))
    assert (inside["drawn"], inside["frames"]) == (("car@0=/m.png",), "1-2")
    del shell


def test_an_edit_of_a_range_keeps_its_numbers_times_and_says_so(shell: Shell) -> None:
    clip = shell.folder / "clip.mp4"
    picture = read_frame(clip, 4).copy()
    picture[20:30, 20:30] = 255
    write_picture(picture, shell.folder / "k4.png")
    words = ("edit", "paint", "clip.mp4", "--range", "3-5", "--keyframe", "4=k4.png", "--box", "4:8,8 56,56")
    ended = shell(*words, "-o", "part.mkv", "--lossless")
    assert ended.code == 0, ended.err
    assert ended.err.count("of clip.mp4, frames 3 to 5 alone are used and written") == 1
    made, source = read(shell.folder / "part.mkv"), read(clip)
    assert len(made) == 3
    assert made.frames[1, :, 25, 25].min() > 200
    report = json.loads((shell.runs[-1] / "report.json").read_text())
    assert report["range"] == "3-5"
    assert "--range 3-5" in report["command"]
    assert made.fps == source.fps
    page = shell("report", shell.runs[-1].name)
    assert page.code == 0, page.err
    assert "frames 3 to 5" in (shell.runs[-1] / "report.html").read_text()
    assert "names frame 7" in shell(*words, "--keyframe", "7=k4.png").err
    assert shell("edit", "paint", "clip.mp4", "--range", "3-9").code == 2


def test_masks_atlases_and_pictures_of_a_range_are_numbered_as_in_the_clip(shell: Shell) -> None:
    part = ("--range", "3-6")
    assert shell("mask", "clip.mp4", *part, "--box", "4:8,8 56,56", "-o", "mask.mkv").code == 0
    assert probe(shell.folder / "mask.mkv").video.frames == 4
    assert "names frame 1" in shell("mask", "clip.mp4", *part, "--box", "1:8,8 56,56", "-o", "m.mkv").err
    made = shell("atlas", "fit", "clip.mp4", *part, "--mask", "mask.mkv", "-o", "part.atlas")
    assert made.code == 0, made.err
    assert "4 frames from number 3 of the clip on" in shell("atlas", "show", "part.atlas").out
    assert shell("atlas", "report", "part.atlas", "clip.mp4", *part).code == 0
    assert "another clip" in shell("atlas", "report", "part.atlas", "clip.mp4").err
    assert shell("keyframe", "clip.mp4", *part, "-o", "frames").code == 0
    names = sorted(path.name for path in (shell.folder / "frames").glob("*.png"))
    assert names == [f"{t:06}.png" for t in range(3, 7)]
    assert "4 from number 3 on" in shell("probe", "clip.mp4", *part).out
    compared = shell("compare", "clip.mp4", "frames", *part, "--metrics", "--json")
    assert compared.code == 0, compared.err
    assert "which frame?" in shell("keyframe", "clip.mp4").err
