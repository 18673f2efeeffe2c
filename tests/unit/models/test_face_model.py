import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from retouch.errors import ModelMismatch
from retouch.models.face_model import FaceModel, SmallFaceReader, resized_parts
from retouch.models.face_parts import resized
from retouch.models.refs import resolve
from retouch.world import PARTS, FaceClip, Portrait


@pytest.fixture(scope="module")
def model() -> FaceModel:
    return FaceModel.from_pretrained("tiny:face")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(resolve("tiny:face"), tmp_path / "face"))


@pytest.mark.parametrize("part", ["identity", "reader"])
def test_a_part_that_lacks_a_tensor_is_refused_by_name(part: str, copied: Path) -> None:
    file = copied / part / "model.safetensors"
    tensors = load_file(file)
    tensors.pop(min(tensors))
    save_file(tensors, file)
    with pytest.raises(ModelMismatch, match=part):
        FaceModel.from_pretrained(str(copied))


@pytest.mark.parametrize("part", ["identity", "reader"])
def test_a_part_that_is_cut_short_or_holds_no_numbers_is_refused(part: str, copied: Path) -> None:
    file = copied / part / "model.safetensors"
    spoiled = {name: value * float("nan") for name, value in load_file(file).items()}
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ModelMismatch):
        FaceModel.from_pretrained(str(copied))
    save_file(spoiled, file)
    with pytest.raises(ModelMismatch, match="not numbers"):
        FaceModel.from_pretrained(str(copied))


def test_a_reader_of_other_points_is_refused(copied: Path) -> None:
    file = copied / "reader" / "config.json"
    file.write_text(file.read_text("utf-8").replace('"left eye"', '"left horn"'), "utf-8")
    with pytest.raises(ModelMismatch, match="no eyes and mouth"):
        FaceModel.from_pretrained(str(copied))


def test_a_part_of_another_kind_is_refused(copied: Path) -> None:
    shutil.copy(copied / "reader" / "config.json", copied / "identity" / "config.json")
    with pytest.raises(ModelMismatch, match="SmallIdentity"):
        FaceModel.from_pretrained(str(copied))


def test_the_middle_of_a_face_is_where_it_is_likeliest(model: FaceModel) -> None:
    reader = model.reader
    assert isinstance(reader, SmallFaceReader)
    clip = FaceClip.of(Portrait.sample(12), 1, 64)
    picture = torch.full((1, 3, 96, 128), -0.2)
    picture[..., 16:80, 48:112] = torch.tensor(clip.video.frames).float() / 127.5 - 1
    likely = reader.likely_middles(picture)
    row, column = divmod(int(likely.argmax()), likely.shape[1])
    middle = clip.landmarks[0].mean(0) + np.array([48, 16])
    assert np.hypot(column - middle[0], row - middle[1]) < 12
    assert likely[:, :24].max() < likely.max() / 2


def test_the_score_is_high_on_a_face_and_low_beside_it(model: FaceModel) -> None:
    clip = FaceClip.of(Portrait.sample(12), 1, 64)
    crops = torch.stack([torch.tensor(clip.video.frames[0]).float() / 127.5 - 1, torch.zeros(3, 64, 64)])
    reading = model.reader.read(crops)
    assert reading.score[0] > 0.5 > reading.score[1]
    assert PARTS.index("skin") in reading.parts[0]


def test_crops_and_parts_of_the_size_asked_for_are_the_same_again() -> None:
    crops = torch.rand(1, 3, 8, 8)
    assert resized(crops, 8) is crops
    parts = torch.arange(4).reshape(1, 2, 2)
    assert torch.equal(resized_parts(parts, 4)[0, ::2, ::2], parts[0])
