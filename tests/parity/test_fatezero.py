"""FateZero against tensors that its authors' own code produced, on random weights, by the parity tool."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(__file__).parent / "data" / "fatezero"
SHARED = os.environ.get("RETOUCH_PARITY", "")


def parity(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "parity.py"), "fatezero", str(folder), *more],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture
def fixture(tmp_path: Path) -> Path:
    """The data as the tool wants it: the weights lie here as planes of bytes, which pack better."""
    folder = tmp_path / "fatezero"
    (folder / "unet").mkdir(parents=True)
    for name in (
        "fixture.json",
        "inputs.safetensors",
        "text_embeddings.safetensors",
        "scheduler",
        "f32",
        "f64",
    ):
        (folder / name).symlink_to(DATA / name)
    (folder / "unet" / "config.json").symlink_to(DATA / "unet" / "config.json")
    with np.load(DATA / "unet" / "weights.npz") as planes:
        flat = torch.from_numpy(
            np.stack([planes[f"byte{i}"] for i in range(4)], 1).reshape(-1).view(np.float32)
        )
    config = UNet2DConditionModel.load_config(folder / "unet")
    with torch.device("meta"):
        shapes = {
            name: tensor.shape
            for name, tensor in UNet2DConditionModel.from_config(config).state_dict().items()
        }
    parts = torch.split(flat, [shapes[name].numel() for name in sorted(shapes)])
    weights = {
        name: part.reshape(shapes[name]).clone() for name, part in zip(sorted(shapes), parts, strict=True)
    }
    save_file(weights, folder / "unet" / "diffusion_pytorch_model.safetensors")
    return folder


def test_words_are_aligned_as_in_the_released_code(fixture: Path) -> None:
    words = parity(fixture, "--only", "aligner/")
    assert words.returncode == 0, words.stdout
    assert words.stdout.count(" ok ") == 7


def test_a_table_off_by_a_percent_fails(fixture: Path) -> None:
    table = fixture / "f32" / "edit_b_style.safetensors"
    tensors = load_file(table)
    tensors["ctrl/equalizer"] *= 1.01
    (fixture / "f32").unlink()
    (fixture / "f32").mkdir()
    save_file(tensors, table)
    done = parity(fixture, "--only", "edit_b_style/ctrl/")
    assert done.returncode == 1
    assert "failed: f32/edit_b_style/ctrl/equalizer" in done.stdout


@pytest.mark.slow
def test_forward_in_double_and_a_whole_edit_in_single_precision_are_met(fixture: Path) -> None:
    done = parity(fixture)
    assert done.returncode == 0, done.stdout
    assert "f64/inversion_default/noise_pred/step00" in done.stdout
    assert "f32/edit_d_latent_blend/latents/step09" in done.stdout


def test_a_folder_without_tensors_does_not_pass(fixture: Path) -> None:
    for name in ("f32", "f64"):
        (fixture / name).unlink()
    done = parity(fixture, "--only", "inversion_")
    assert done.returncode == 1
    assert "nothing to compare" in done.stdout.splitlines()[-1]
    assert "not shipped" in done.stdout


@pytest.mark.skipif(
    not SHARED, reason="RETOUCH_PARITY names no folder with the whole of the authors' tensors"
)
def test_the_whole_of_the_authors_tensors_is_met() -> None:
    done = parity(Path(SHARED) / "fatezero")
    assert done.returncode == 0, done.stdout
