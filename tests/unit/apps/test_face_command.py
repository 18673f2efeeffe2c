"""`retouch face`, asked as a user does."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from retouch.apps.commands.face import check_same, clips_in, face
from retouch.errors import InputError, NoFace, VideoError
from retouch.media.io import write
from retouch.media.pictures import write_picture
from retouch.models.face_attributes import read_direction, save_direction
from retouch.models.face_model import FaceModel
from retouch.world import FaceClip, Portrait, face_picture


def run(*words: object) -> Result:
    return CliRunner().invoke(face, [str(word) for word in words])


def folders(place: Path, people: int) -> tuple[Path, Path]:
    """Pictures of people with glasses, and of the same without."""
    made = place / "with", place / "without"
    for folder, word in zip(made, ("yes", "no"), strict=True):
        folder.mkdir()
        for seed in (5, 8, 13)[:people]:
            portrait = Portrait.sample(seed).changed(f"glasses={word}")
            write_picture(face_picture(portrait, size=64), folder / f"{seed}.png")
    return made


@pytest.mark.slow
def test_a_direction_is_learnt_from_two_folders_and_told_of(tmp_path: Path) -> None:
    showing, without = folders(tmp_path, 2)
    out = tmp_path / "glasses.safetensors"
    done = run("train-direction", showing, without, "-o", out)
    assert done.exit_code == 0, done.output
    assert "of 4 faces" in done.output
    assert read_direction(out, 64).norm() > 0.1
    (told,) = json.loads(run("directions", out, "--json").output)
    assert (told["model"], told["with"], told["without"]) == ("tiny:face", "2", "2")
    assert "from 2 faces with it and 2 without" in run("directions", out).output


def test_what_lies_there_is_not_replaced_and_an_empty_folder_is_refused(tmp_path: Path) -> None:
    showing, without = folders(tmp_path, 1)
    out = save_direction(tmp_path / "there.safetensors", torch.ones(1, 64), {})
    assert isinstance(run("train-direction", showing, without, "-o", out).exception, VideoError)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="no clips and no pictures"):
        clips_in(tmp_path / "none")


def test_a_file_of_something_else_is_no_direction(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_text("nothing")
    assert isinstance(run("directions", tmp_path / "a.safetensors").exception, InputError)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_model_is_trained_on_a_folder_of_clips_and_edits_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETOUCH_HOME", str(tmp_path / "home"))
    (tmp_path / "clips").mkdir()
    for seed in (5, 8, 12):
        write(FaceClip.of(Portrait.sample(seed), 4, 64).video, tmp_path / "clips" / f"{seed:02}.mkv")
    write_picture(np.zeros((64, 64, 3), np.uint8), tmp_path / "clips" / "nobody.png")
    command = (
        "train",
        tmp_path / "clips",
        "-o",
        tmp_path / "mine",
        "--fresh",
        "--batch",
        "4",
        "--every",
        "8",
    )
    done = run(*command, "--rate", "3e-3", "--images", "64", "--device", "cpu", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["clips"], told["faces"], told["held_out"]) == (4, 8, 4)
    assert told["after"]["own_600"] < 0.9 * told["before"]["own_600"]
    assert "nobody.png is left out" in done.stderr
    work = tmp_path / "mine.training"
    assert {path.suffix for path in work.glob("*.*")} >= {".svg", ".png", ".json"}
    model = FaceModel.from_pretrained(str(tmp_path / "mine"))
    assert model.attributes is not None
    assert model.words is not None
    other = run(*command, "--rate", "1e-3", "--images", "64", "--force")
    assert isinstance(other.exception, InputError)
    assert "mine.training was begun otherwise: rate" in str(other.exception)


def test_a_training_that_cannot_be_is_refused_before_it_begins(tmp_path: Path) -> None:
    showing, _ = folders(tmp_path, 1)
    out = ("-o", tmp_path / "mine")
    assert "holds no clips" in str(run("train", tmp_path / "none", *out).exception)
    assert "holds one clip" in str(run("train", showing, *out).exception)
    write_picture(np.zeros((64, 64, 3), np.uint8), showing / "a.png")
    write_picture(np.zeros((64, 64, 3), np.uint8), showing / "b.png")
    (showing / "5.png").unlink()
    assert isinstance(run("train", showing, *out).exception, NoFace)
    assert not (tmp_path / "mine").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    assert isinstance(run("train", showing, *out, "--force").exception, VideoError)


def test_a_training_goes_on_only_with_what_it_was_begun_with(tmp_path: Path) -> None:
    for _ in range(2):
        check_same(tmp_path / "mine.training", {"rate": 0.1, "clips": {"a.mkv": 5}})
    with pytest.raises(InputError, match="begun otherwise: clips"):
        check_same(tmp_path / "mine.training", {"rate": 0.1, "clips": {"a.mkv": 6}})
