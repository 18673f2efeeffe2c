import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file

from retouch.apps.commands.world import world
from retouch.errors import InputError, OutOfBudget
from retouch.media.io import read
from retouch.world import Clip, Scene


def run(*words: object) -> Result:
    return CliRunner().invoke(world, [str(word) for word in words])


def refused(*words: object) -> InputError:
    result = run(*words)
    assert isinstance(result.exception, InputError)
    assert result.exception.hint
    return result.exception


def test_a_sample_holds_the_clip_the_edit_and_the_truth(tmp_path: Path) -> None:
    out = tmp_path / "a sample"
    result = run("sample", out, "--seed", 3, "--size", 32, "--frames", 3, "--edit", "color=blue", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.output)
    assert told["caption"] == Scene.sample(3).caption
    assert "blue" in told["target"]
    clip = Clip.of(Scene.sample(3), 3, 32)
    assert np.array_equal(read(out / "clip").frames, clip.video.frames)
    assert not np.array_equal(read(out / "edited").frames, clip.video.frames)
    assert len(read(out / "clip.mp4")) == 3
    truth = load_file(out / "truth.safetensors")
    assert np.array_equal(truth["forward"], clip.forward)
    assert np.array_equal(truth["layer.0.alpha"], clip.layers[0].alpha)
    assert truth["reached"].any()
    mask = read(next(out.glob("mask-0-*"))).frames[:, :1] > 0
    assert np.array_equal(mask, clip.masks[0])
    assert (out / "sheet.png").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["a sample"]


def test_a_face_sample_names_its_landmarks(tmp_path: Path) -> None:
    result = run("sample", tmp_path / "face", "--faces", "--size", 32, "--frames", 2, "--edit", "beard=yes")
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "face" / "caption.json").read_text())
    assert "beard" in told["target"]
    truth = load_file(tmp_path / "face" / "truth.safetensors")
    assert truth["landmarks"].shape == (2, len(told["landmarks"]), 2)
    assert truth["edited.parts"].max() < len(told["parts"])


def test_one_frame_of_a_caption_can_be_sampled(tmp_path: Path) -> None:
    result = run("sample", tmp_path / "one", "--caption", "a red car on sand", "--frames", 1, "--size", 24)
    assert result.exit_code == 0, result.output
    assert "a red car on sand" in result.output
    assert "forward" not in load_file(tmp_path / "one" / "truth.safetensors")


def test_a_folder_that_exists_is_replaced_only_if_asked_and_ours(tmp_path: Path) -> None:
    small = ("--size", 16, "--frames", 1)
    assert run("sample", tmp_path / "out", *small).exit_code == 0
    assert "exists" in str(refused("sample", tmp_path / "out", *small))
    assert run("sample", tmp_path / "out", *small, "--seed", 9, "--force").exit_code == 0
    assert json.loads((tmp_path / "out" / "caption.json").read_text())["seed"] == 9
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    assert "holds letter.txt, which retouch did not write" in str(
        refused("sample", tmp_path / "mine", *small, "--force")
    )
    assert (tmp_path / "mine" / "letter.txt").read_text() == "keep"


@pytest.mark.parametrize(
    "words",
    [
        ("--edit", "colour=fish"),
        ("--edit", "1.colour=red", "--caption", "a red car on sand"),
        ("--caption", "a dragon"),
        ("--faces", "--edit", "nose=big"),
        ("--fps", "fast"),
        ("--fps", "1/0"),
        ("--fps", "0"),
    ],
)
def test_wrong_wishes_are_refused_and_leave_nothing(tmp_path: Path, words: tuple[str, ...]) -> None:
    refused("sample", tmp_path / "out", *words)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_parent_is_refused(tmp_path: Path) -> None:
    assert "no folder" in str(refused("sample", tmp_path / "a" / "b"))


@pytest.mark.parametrize("faces", [(), ("--faces",)])
def test_the_vocabulary_is_drawn_into_a_picture(tmp_path: Path, faces: tuple[str, ...]) -> None:
    result = run("sheet", tmp_path / "words.png", "--size", 16, *faces)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "words.png").stat().st_size > 1000


def test_words_are_listed_for_people_and_machines() -> None:
    assert "watercolour" in run("words").output
    assert json.loads(run("words", "--json").output)["object"][0] == "ball"


def test_a_sample_larger_than_memory_is_refused_before_it_is_drawn(tmp_path: Path) -> None:
    result = run("sample", tmp_path / "out", "--size", 4096, "--frames", 100_000)
    assert isinstance(result.exception, OutOfBudget)
    assert list(tmp_path.iterdir()) == []
