"""`retouch face`, asked as a user does."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from retouch.apps.commands.face import clips_in, face
from retouch.errors import InputError, VideoError
from retouch.media.pictures import write_picture
from retouch.models.face_attributes import read_direction, save_direction
from retouch.world import Portrait, face_picture


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
