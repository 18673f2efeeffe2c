import json
import math
import pickle
import runpy
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from retouch.atlas.file import load_atlas
from retouch.media.io import Encoding, write
from retouch.video import Video

SCRIPT = Path(__file__).parents[3] / "tools" / "convert" / "lna.py"
FRAMES, HEIGHT, WIDTH = 4, 40, 64
LEAST = 50.0
"""Decibels: textures are read between texels, mattes and colours are rounded, mappings are fitted."""
NEAR = 0.02
"""Pixels: what is left of two smooth mappings after a fit with 20 controls along the picture."""
State = dict[str, Tensor]


def layers(*pairs: tuple[Tensor, Tensor]) -> State:
    return {
        f"hidden.{i}.{part}": value
        for i, pair in enumerate(pairs)
        for part, value in zip(("weight", "bias"), pair, strict=True)
    }


def mapping(matrix: list[list[float]], offset: list[float]) -> State:
    """tanh of an affine function of x, y, t, which a ReLU lets through because it is lifted above zero."""
    w, b = torch.tensor(matrix), torch.tensor(offset)
    return layers((torch.eye(3), torch.full((3,), 2.0)), (w, b - 2 * w.sum(1)))


def released() -> dict[str, object]:
    """A checkpoint as the authors' training writes it: known motion, a soft blob, and random colours."""
    torch.manual_seed(3)
    alpha = torch.zeros(1, 30)
    alpha[0, 3:5] = 1.0  # the cosines of x and y in the lowest of five octaves
    octaves = torch.cat([torch.full((4,), 3.0 * 0.45**j) for j in range(3)])
    colour = (
        (torch.randn(24, 12) * octaves, torch.randn(24)),
        (torch.randn(24, 24) / 5, torch.randn(24) / 5),
        (torch.randn(3, 36) / 6 * torch.cat([torch.ones(24), octaves / 3]), torch.zeros(3)),
    )
    return {
        "iteration": 7,
        "F_atlas_state_dict": layers(*colour),
        "model_F_mapping1_state_dict": mapping([[0.7, 0.1, 0.05], [-0.08, 0.75, 0.1]], [0.02, 0.1]),
        "model_F_mapping2_state_dict": mapping([[0.6, 0.0, -0.1], [0.03, 0.6, 0.02]], [0.0, 0.2]),
        "model_F_alpha_state_dict": layers(
            (alpha, torch.tensor([4.0])), (torch.tensor([[6.0]]), torch.tensor([-33.0]))
        ),
        "optimizer_all_state_dict": {"state": {0: {"step": torch.tensor(7.0)}}, "param_groups": []},
    }


def answered(state: State, position: list[float], octaves: int) -> list[float]:
    """What a network says to one position: Kasten et al. in plain loops."""
    encoded = [
        wave(2.0**j * math.pi * value)
        for j in range(octaves)
        for wave in (math.sin, math.cos)
        for value in position
    ] or position
    values = torch.tensor(encoded)
    count = len(state) // 2
    for i in range(count):
        weight, bias = state[f"hidden.{i}.weight"], state[f"hidden.{i}.bias"]
        values = values.clamp(min=0) if i else values
        if len(values) != weight.shape[1]:
            values = torch.cat([values, torch.tensor(encoded)])
        values = weight.mv(values) + bias
    return [math.tanh(float(v)) for v in values]


def pixel(held: dict[str, object], x: int, y: int, t: int) -> list[float]:
    """A pixel of the clip as the four networks explain it."""
    states = {k: v for k, v in held.items() if isinstance(v, dict)}
    half = WIDTH / 2
    here = [x / half - 1, y / half - 1, t / (FRAMES / 2) - 1]
    share = 0.99 * (answered(states["model_F_alpha_state_dict"], here, 5)[0] + 1) / 2 + 0.001
    total = [0.0, 0.0, 0.0]
    for number, quadrant, part in ((1, 0.5, share), (2, -0.5, 1 - share)):
        uv = answered(states[f"model_F_mapping{number}_state_dict"], here, 0)
        seen = answered(states["F_atlas_state_dict"], [v / 2 + quadrant for v in uv], 3)
        total = [a + part * (c + 1) / 2 for a, c in zip(total, seen, strict=True)]
    return total


def laid_out(folder: Path, held: dict[str, object], **config: object) -> Path:
    """A results folder of the authors' training."""
    folder.mkdir(exist_ok=True)
    torch.save(held, folder / "checkpoint")
    sizes = {"resx": WIDTH, "resy": HEIGHT, "maximum_number_of_frames": FRAMES, "uv_mapping_scale": 0.8}
    (folder / "config.json").write_text(json.dumps(sizes | config))
    return folder


def clip(folder: Path, frames: int = FRAMES) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (frames, 3, HEIGHT, WIDTH), np.uint8)
    video = Video(noise, Fraction(10))
    return write(video, folder / f"clip{frames}.mkv", encoding=Encoding(lossless=True))


def convert(*arguments: object) -> tuple[int, str]:
    path = list(sys.path)
    try:
        result = CliRunner().invoke(runpy.run_path(str(SCRIPT))["main"], [str(a) for a in arguments])
    finally:
        sys.path[:] = path
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result.exit_code, result.output


def test_the_atlas_shows_what_the_networks_show(tmp_path: Path) -> None:
    held = released()
    code, output = convert(laid_out(tmp_path / "run", held), clip(tmp_path), "-o", tmp_path / "a.atlas")
    assert code == 0, output
    made = load_atlas(tmp_path / "a.atlas")
    shown = made.reconstruct(0, FRAMES)
    rng = np.random.default_rng(1)
    places = [
        (int(rng.integers(WIDTH)), int(rng.integers(HEIGHT)), t) for t in range(FRAMES) for _ in range(60)
    ]
    wanted = torch.tensor([pixel(held, *place) for place in places])
    assert float(wanted.std(0).min()) > 0.03  # or anything would do
    got = torch.stack([shown[t, :, y, x] for x, y, t in places])
    assert -10 * math.log10(float((got - wanted).square().mean())) > LEAST
    fits = [float(line.split("fitted to ")[1].split()[0]) for line in output.splitlines() if "fitted" in line]
    assert len(fits) == 2
    assert max(fits) < NEAR


def test_a_longer_clip_is_converted_as_far_as_it_was_trained(tmp_path: Path) -> None:
    code, output = convert(
        laid_out(tmp_path / "run", released()), clip(tmp_path, FRAMES + 2), "-o", tmp_path / "a.atlas"
    )
    assert code == 0, output
    assert load_atlas(tmp_path / "a.atlas").frames == FRAMES
    assert "retouch atlas extend" in output


def test_a_file_that_would_run_something_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.mkdir, (str(tmp_path / "pwned"),)

    folder = laid_out(tmp_path / "run", released())
    (folder / "checkpoint").write_bytes(pickle.dumps({"F_atlas_state_dict": Evil()}))
    code, output = convert(folder, clip(tmp_path), "-o", tmp_path / "a.atlas")
    assert code == 3
    assert "not a file of tensors" in output
    assert not (tmp_path / "pwned").exists()
    assert not (tmp_path / "a.atlas").exists()


def without(key: str) -> dict[str, object]:
    return {name: value for name, value in released().items() if name != key}


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (without("model_F_alpha_state_dict"), "has no model_F_alpha_state_dict"),
        (released() | {"F_atlas_state_dict": 5}, "holds no weights"),
        (released() | {"F_atlas_state_dict": {"conv.weight": torch.ones(2, 2)}}, "unknown layers"),
        (released() | {"F_atlas_state_dict": mapping([[1, 0, 0.0]], [0.0])}, "no network from 2 to 3"),
        (
            released() | {"model_F_mapping1_state_dict": mapping([[math.nan] * 3] * 2, [0.0, 0.0])},
            "no network from 3 to 2",
        ),
    ],
)
def test_foreign_checkpoints_are_refused(tmp_path: Path, held: dict[str, object], said: str) -> None:
    code, output = convert(laid_out(tmp_path / "run", held), clip(tmp_path), "-o", tmp_path / "a.atlas")
    assert code == 3
    assert said in output


@pytest.mark.parametrize("resx", [0, "wide", 1e9])
def test_odd_sizes_in_the_configuration_are_refused(tmp_path: Path, resx: object) -> None:
    folder = laid_out(tmp_path / "run", released(), resx=resx)
    code, output = convert(folder, clip(tmp_path), "-o", tmp_path / "a.atlas")
    assert code == 3
    assert "resx" in output


def test_the_number_of_frames_is_that_of_the_training_where_the_configuration_says_it() -> None:
    trained = Path(__file__).resolve().parents[2] / "parity" / "data" / "stablevideo" / "case_b" / "lna"
    assert '"maximum_number_of_frames": 70' in (trained / "config.json").read_text()
    assert runpy.run_path(str(SCRIPT))["read_checkpoint"](trained).most_frames == 3
