import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from retouch.models.check import inspect_model
from retouch.models.refs import resolve


def copied(folder: Path, into: Path) -> Path:
    shutil.copytree(folder, into)
    return into


def test_a_whole_pipeline_has_no_faults(small_sd: Path) -> None:
    found = inspect_model(small_sd)
    assert found.kind == "a StableDiffusionPipeline"
    assert found.faults == ()
    assert any(remark.startswith("unet (UNet2DConditionModel): ") for remark in found.remarks)


def test_a_single_network_is_named(small_control: Path, small_clip: Path) -> None:
    assert "ControlNet" in inspect_model(small_control).kind
    assert inspect_model(small_clip).kind == "a clip model"


def test_weights_that_were_cut_short_are_found(small_sd: Path, tmp_path: Path) -> None:
    folder = copied(small_sd, tmp_path / "cut")
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert any("vae" in fault and "cut short" in fault for fault in inspect_model(folder).faults)


def without_one(weights: Path) -> str:
    tensors = load_file(weights)
    name = max(tensors, key=lambda name: tensors[name].numel())
    save_file({other: value for other, value in tensors.items() if other != name}, weights, {"format": "pt"})
    return name


@pytest.mark.parametrize(
    "file", ["vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"]
)
def test_a_tensor_that_is_not_there_is_named(small_sd: Path, tmp_path: Path, file: str) -> None:
    folder = copied(small_sd, tmp_path / "less")
    name = without_one(folder / file).removeprefix("text_model.")
    (fault,) = inspect_model(folder).faults
    assert name in fault
    assert (folder / file).parent.name in fault


def test_a_single_network_that_lacks_a_tensor_is_found(small_control: Path, tmp_path: Path) -> None:
    folder = copied(small_control, tmp_path / "less")
    name = without_one(folder / "diffusion_pytorch_model.safetensors")
    assert any(name in fault for fault in inspect_model(folder).faults)


def test_pickles_and_missing_parts_are_faults(small_sd: Path, tmp_path: Path) -> None:
    folder = copied(small_sd, tmp_path / "other")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    shutil.rmtree(folder / "scheduler")
    faults = inspect_model(folder).faults
    assert any("pickle" in fault for fault in faults)
    assert "scheduler is missing" in faults


def test_a_folder_without_a_model_is_none(tmp_path: Path) -> None:
    assert inspect_model(tmp_path).kind == "no model"
    (tmp_path / "v1-5.ckpt").write_bytes(b"")
    assert inspect_model(tmp_path).kind == "a single-file checkpoint"
    assert inspect_model(tmp_path).faults


def test_a_face_model_is_known_as_one() -> None:
    found = inspect_model(resolve("tiny:face"))
    assert (found.kind, found.faults) == ("a face model", ())
