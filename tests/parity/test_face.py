"""The face method against tensors that the authors' own code produced on small random weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from safetensors.torch import load_file, save_file

from retouch.models.face import FaceUnit

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(__file__).parent / "data" / "face"
SHARED = os.environ.get("RETOUCH_PARITY", "")
CLOSE = 2e-5
"""Rounding of two convolutions in a row, at features up to 20."""


def parity(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "parity.py"), "face", str(folder), *more],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_every_tensor_of_the_released_code_is_met() -> None:
    done = parity(DATA)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "ok: 62 passed, 0 failed, 3 not shipped"


def test_tensors_off_by_a_few_percent_fail_and_what_is_absent_does_not_pass(tmp_path: Path) -> None:
    (tmp_path / "fixture.json").symlink_to(DATA / "fixture.json")
    for group, tensor in (
        ("alignment", "frame"),
        ("classifier", "conds_std"),
        ("irse_block", "b.w.res_layer.1.weight"),
    ):
        tensors = load_file(DATA / f"{group}.safetensors")
        tensors[tensor] = (tensors[tensor] * 0.97).to(tensors[tensor].dtype)
        save_file(tensors, tmp_path / f"{group}.safetensors")
    done = parity(tmp_path)
    assert done.returncode == 1, done.stdout
    for name in ("alignment/crops128", "classifier/normalized", "irse_block/b.out"):
        assert f"failed: {name}\n" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("5 not shipped")


def test_the_residual_unit_answers_as_the_published_one() -> None:
    theirs = load_file(DATA / "res_plain.safetensors")
    names = {
        "in_layers.0": "norm1",
        "in_layers.2": "conv1",
        "emb_layers.1": "time_emb_proj",
        "out_layers.0": "norm2",
        "out_layers.2": "conv_mid",
        "out_layers.3": "norm3",
        "cond_emb_layers.1": "cond_proj",
        "out_layers.6": "conv2",
    }
    channels, width = theirs["in"].shape[1], theirs["emb"].shape[1]
    block = ResnetBlock2D(
        in_channels=channels, temb_channels=width, groups=32, eps=1e-5, time_embedding_norm="scale_shift"
    )
    unit = FaceUnit(block, width)
    weights = {k.removeprefix("weight."): v for k, v in theirs.items() if k.startswith("weight.")}
    unit.load_state_dict(
        {f"{names[k.rpartition('.')[0]]}.{k.rpartition('.')[2]}": v for k, v in weights.items()}
    )
    with torch.no_grad():
        ours = unit(theirs["in"], torch.cat([theirs["emb"], theirs["cond"]], dim=1))
        without = unit(theirs["in"], torch.cat([theirs["emb"], 0 * theirs["cond"]], dim=1))
    assert (ours - theirs["out"]).abs().max() < CLOSE
    assert (without - theirs["out"]).abs().max() > 0.1, "who it is does not reach the unit"


@pytest.mark.skipif(
    not SHARED, reason="RETOUCH_PARITY names no folder with the whole of the authors' tensors"
)
def test_the_whole_of_the_authors_tensors_is_met() -> None:
    done = parity(Path(SHARED) / "face")
    assert done.returncode == 0, done.stdout
