"""`retouch mask` and `retouch atlas`, from flags to files."""

import json
from fractions import Fraction
from pathlib import Path

import click
import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from retouch.apps.commands.atlas import atlas, mask
from retouch.errors import ArtifactError, ModelNotFound, ParamsError, RetouchError
from retouch.media.io import Encoding, read, write
from retouch.media.masks import read_masks
from retouch.media.pictures import write_picture
from retouch.models.flow_raft import LayerWidths, RaftNetwork
from retouch.video import Video

BOX = "2:18,14 64,58"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A textured red disc that moves over a green cloth, as a file."""
    rng = np.random.default_rng(2)
    cloth, skin = (cv2.GaussianBlur(rng.random((72, 96, 3)).astype(np.float32), (0, 0), 1.5) for _ in "ab")
    shots = []
    for t in range(5):
        disc = np.zeros((72, 96), np.uint8)
        cv2.circle(disc, (32 + 3 * t, 36), 18, 255, -1)
        ground = (cloth - 0.3) * (100, 300, 100) + (10, 60, 10)
        front = (np.roll(skin, 3 * t, axis=1) - 0.3) * (300, 200, 100) + (120, 10, 10)
        shots.append(
            np.where(disc[..., None] > 0, front, ground).clip(0, 255).astype(np.uint8).transpose(2, 0, 1)
        )
    video = Video(np.stack(shots), Fraction(10))
    return write(video, tmp_path_factory.mktemp("clip") / "clip.mkv", encoding=Encoding(lossless=True))


def ran(command: click.Command, *words: object) -> str:
    """The output of a command that must succeed."""
    result = CliRunner().invoke(command, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


def refused(command: click.Command, *words: object) -> RetouchError:
    """The error of a command that must fail with one of ours."""
    result = CliRunner().invoke(command, [str(word) for word in words])
    assert isinstance(result.exception, RetouchError), result.output
    return result.exception


def test_a_mask_is_written_and_reads_back_as_one(clip: Path, tmp_path: Path) -> None:
    ran(mask, clip, "--box", BOX, "-o", tmp_path / "mask.mkv", "--preview", tmp_path / "look.mp4")
    masks = read_masks(tmp_path / "mask.mkv", read(clip))
    inside = np.array([masks[t, 0, 36, 32 + 3 * t] for t in range(5)])
    assert inside.min() > 200
    assert masks[:, 0, :10].max() < 50
    assert len(read(tmp_path / "look.mp4")) == 5
    assert "exists" in str(refused(mask, clip, "--box", BOX, "-o", tmp_path / "mask.mkv"))


def test_the_preview_shows_the_object_in_the_colour_that_was_asked_for(clip: Path, tmp_path: Path) -> None:
    for name, words in {"own": (), "lime": ("--preview-colour", "lime")}.items():
        goals = ("-o", tmp_path / f"{name}-mask.mkv", "--preview", tmp_path / f"{name}.mkv")
        ran(mask, clip, "--box", BOX, *goals, *words)
    red, green, _ = read(tmp_path / "lime.mkv").frames[2, :, 36, 38].astype(int)
    assert green > red
    source, shown = (read(path).frames[2, :, 36, 38].astype(int) for path in (clip, tmp_path / "own.mkv"))
    assert np.abs(source - shown).max() > 50
    error = refused(mask, clip, "--box", BOX, "-o", tmp_path / "m.mkv", "--preview-colour", "limee")
    assert "'limee' is no colour" in str(error)


def test_a_mark_outside_the_picture_is_refused_and_one_half_outside_is_told(
    clip: Path, tmp_path: Path
) -> None:
    for words in (("--box", "2:100,14 160,58"), ("--box", BOX, "--outside", "2:20,90 30,95")):
        error = refused(mask, clip, *words, "-o", tmp_path / "m.mkv")
        assert "lies outside the picture of frame 2, which is 96x72" in str(error)
    said = CliRunner().invoke(mask, [str(clip), "--box", "2:18,14 164,58", "-o", str(tmp_path / "m.mkv")])
    assert said.stderr.count("the box reaches out of the picture of frame 2") == 1


def test_a_doubtful_frame_is_told_once(clip: Path, tmp_path: Path) -> None:
    video = read(clip)
    frames = np.concatenate([video.frames[:3], video.frames[:2, :, :1, :1].repeat(72, 2).repeat(96, 3)])
    write(video.like(frames), tmp_path / "gone.mkv", encoding=Encoding(lossless=True))
    for _ in ("followed", "taken from the store"):
        words = [str(tmp_path / "gone.mkv"), "--box", BOX, "-o", str(tmp_path / "m.mkv"), "--force"]
        assert CliRunner().invoke(mask, words).stderr.count("is lost in frames 3 to 4") == 1


def test_an_outline_and_a_drawn_mask_say_what_the_object_is(clip: Path, tmp_path: Path) -> None:
    drawn = np.zeros((72, 96, 3), np.uint8)
    cv2.circle(drawn, (41, 36), 18, (255, 255, 255), -1)  # as it lies in frame 3
    write_picture(drawn, tmp_path / "drawn.png")
    outline = "0:" + " ".join(
        f"{32 + 18 * np.cos(a):.1f},{36 + 18 * np.sin(a):.1f}" for a in np.arange(0, 6.28, 0.3)
    )
    for name, marks in {
        "outline": ("--polygon", outline),
        "drawn": ("--drawn", f"disc@3={tmp_path / 'drawn.png'}"),
        "both": ("--polygon", outline, "--drawn", f"3={tmp_path / 'drawn.png'}"),
    }.items():
        ran(mask, clip, *marks, "-o", tmp_path / f"{name}.mkv")
        masks = read_masks(tmp_path / f"{name}.mkv", read(clip))
        assert min(masks[t, 0, 36, 32 + 3 * t] for t in range(5)) > 200
        assert masks[:, 0, :10].max() < 50
    for text in (f"9={tmp_path / 'drawn.png'}", "drawn.png", "@3=drawn.png"):
        assert isinstance(refused(mask, clip, "--drawn", text, "-o", tmp_path / "m.mkv"), ParamsError)


def test_a_fit_within_a_deadline_is_an_atlas_that_the_next_fit_goes_on_from(
    clip: Path, tmp_path: Path
) -> None:
    words = ("fit", clip, "--box", BOX, "--set", "steps=1", "--set", "gain=2")
    ran(atlas, *words, "--deadline", "0.001", "-o", tmp_path / "soon.atlas")
    assert "solved up to 'flow'" in ran(atlas, "show", tmp_path / "soon.atlas")
    ran(atlas, *words, "-o", tmp_path / "whole.atlas")
    assert "solved up to 'light'" in ran(atlas, "show", tmp_path / "whole.atlas")


def test_a_fit_takes_its_flow_from_a_raft(clip: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = RaftNetwork(LayerWidths(4, (4, 6, 8), 8, 8, 8, 2, (8, 6), (6, 4), 10, 8)).state_dict()
    (tmp_path / "raft").mkdir()
    save_file({name: 0.1 * value for name, value in weights.items()}, tmp_path / "raft" / "model.safetensors")
    words = ("fit", clip, "--box", BOX, "--set", "steps=0", "--set", "gain=0", "--device", "cpu")
    ran(atlas, *words, "--flow", f"raft:{tmp_path / 'raft'}", "-o", tmp_path / "raft.atlas")
    ran(atlas, *words, "-o", tmp_path / "dis.atlas")
    assert (tmp_path / "raft.atlas").read_bytes() != (tmp_path / "dis.atlas").read_bytes()
    assert "no flow 'raftt:x'" in str(refused(atlas, *words, "--flow", "raftt:x", "-o", tmp_path / "a.atlas"))


def test_fit_show_report_export(clip: Path, tmp_path: Path) -> None:
    file = tmp_path / "clip.atlas"
    ran(atlas, "fit", clip, "--box", BOX, "--set", "steps=2", "-o", file)
    told = json.loads(ran(atlas, "show", file, "-o", tmp_path / "textures.png", "--json"))
    assert told["layers"] == ["object", "background"]
    assert (tmp_path / "textures.png").exists()
    assert "background" in ran(atlas, "show", file)
    found = json.loads(ran(atlas, "report", file, clip, "--json"))
    assert found["explained"] > 25
    assert "explained" in ran(atlas, "report", file, clip)
    assert "pictures" in ran(atlas, "export", file, "-o", tmp_path / "out")
    assert (tmp_path / "out" / "background.png").exists()


def test_what_cannot_be_is_refused_with_a_way_out(clip: Path, tmp_path: Path) -> None:
    assert isinstance(refused(atlas, "fit", clip, "-o", tmp_path / "a.atlas"), ParamsError)
    error = refused(atlas, "fit", clip, "--box", BOX, "--set", "stepps=2", "-o", tmp_path / "a.atlas")
    assert "steps" in f"{error} {error.hint}"
    assert isinstance(refused(atlas, "show", clip), ArtifactError)
    error = refused(mask, clip, "--box", BOX, "--object", "car", "-o", tmp_path / "m.mkv")
    assert "marked: object" in error.hint


def test_an_unknown_segmenter_or_one_without_its_model_is_refused(clip: Path, tmp_path: Path) -> None:
    words = (clip, "--box", BOX, "-o", tmp_path / "mask.mkv", "--segmenter")
    assert "no segmenter 'sam3:x'" in str(refused(mask, *words, "sam3:x"))
    assert isinstance(refused(mask, *words, f"sam2:{tmp_path / 'none'}"), ModelNotFound)
    assert not (tmp_path / "mask.mkv").exists()
