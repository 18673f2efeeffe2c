"""RAFT behind our protocol, with a random network of its own kind that is a hundredth as wide."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from retouch.compute import Compute
from retouch.errors import ModelMismatch
from retouch.models.flow_raft import (
    CELL,
    LEVELS,
    CorrelationPyramid,
    LayerWidths,
    RaftFlow,
    RaftNetwork,
    upsample_flow,
)
from retouch.tracking.flow import Flow

TINY = LayerWidths(4, (4, 6, 8), 8, 8, 8, 2, (8, 6), (6, 4), 10, 8)
PUBLISHED = 5_257_536  # parameters of the authors' large model
CLOSE = 1e-5  # single precision, sums of a few dozen terms


@pytest.fixture(scope="module")
def model() -> RaftNetwork:
    torch.manual_seed(0)
    return RaftNetwork(TINY).eval()


def noise(seed: int, height: int = 40, width: int = 52) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_the_default_is_as_large_as_the_published_model() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in RaftNetwork().parameters()) == PUBLISHED


def test_weights_of_the_authors_layout_give_the_same_flow_from_a_folder(
    model: RaftNetwork, tmp_path: Path
) -> None:
    weights = {f"module.{name}": value.clone() for name, value in model.state_dict().items()}
    (tmp_path / "raft").mkdir()
    save_file(weights, tmp_path / "raft" / "model.safetensors")
    read = RaftFlow.from_pretrained(str(tmp_path / "raft"), Compute(device="cpu"))
    assert isinstance(read, Flow)
    assert read.model.widths == TINY
    a, b = noise(0), noise(1)
    found = read.pair(a, b)
    assert found.shape == (2, 40, 52)
    np.testing.assert_array_equal(found, RaftFlow(model).pair(a, b))
    assert np.abs(found - read.pair(a, a)).max() > CLOSE
    assert read.identity == RaftFlow.from_pretrained(str(tmp_path / "raft")).identity
    assert RaftFlow(model).identity != RaftFlow(model, rounds=3).identity


def test_products_are_read_where_the_flow_points_with_x_along_the_rows_of_the_window() -> None:
    torch.manual_seed(1)
    height, width, radius = 16, 24, 2
    a, b = torch.randn(2, 1, 5, height, width)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    near = CorrelationPyramid(a, b, radius).near(
        torch.stack([x, y])[None].float() + torch.tensor([3.0, -2.0])[:, None, None]
    )
    side = 2 * radius + 1
    window = near[0, : side * side].view(side, side, height, width)
    for i, j, row, column in ((0, 0, 8, 9), (4, 1, 8, 9), (2, 3, 5, 15)):
        at_x, at_y = column + 3 + i - radius, row - 2 + j - radius
        wanted = float(a[0, :, row, column] @ b[0, :, at_y, at_x]) / 5**0.5
        assert float(window[i, j, row, column]) == pytest.approx(wanted, abs=CLOSE)
    assert near.shape[1] == LEVELS * side * side
    half = near[0, side * side + radius * side + radius]  # the middle of the second level's window
    mean = b[0, :, 6:8, 12:14].mean((1, 2))  # around x 13 - 0.5, y 7 - 0.5, halved: 6, 3
    assert float(half[8, 9]) == pytest.approx(float(a[0, :, 8, 9] @ mean) / 5**0.5, abs=CLOSE)


def test_flow_is_raised_to_pixels_by_the_shares_of_its_neighbours() -> None:
    flow = torch.zeros(1, 2, 3, 4)
    flow[0, 0, 1, 2] = 1.0
    weights = torch.full((1, 9, CELL, CELL, 3, 4), -1e4)
    weights[:, 4] = 0  # every pixel takes its own cell
    weights[:, 4, 0, 0], weights[:, 5, 0, 0] = (
        -1e4,
        0,
    )  # but for the first of a cell, which takes the next one
    fine = upsample_flow(flow, weights.flatten(1, 3))
    assert fine.shape == (1, 2, 24, 32)
    assert float(fine[0, 0, 9, 17]) == CELL
    assert float(fine[0, 0, 8, 16]) == 0
    assert float(fine[0, 0, 8, 8]) == CELL
    assert float(fine[0, 1].abs().max()) == 0


def test_pictures_of_any_size_come_back_at_theirs(model: RaftNetwork) -> None:
    for height, width in ((9, 11), (64, 72), (65, 100)):
        assert RaftFlow(model, rounds=2).pair(noise(2, height, width), noise(3, height, width)).shape == (
            2,
            height,
            width,
        )


def test_foreign_weights_and_pickles_are_refused(model: RaftNetwork, tmp_path: Path) -> None:
    folder = tmp_path / "raft"
    folder.mkdir()
    torch.save(model.state_dict(), folder / "raft-things.pth")
    with pytest.raises(ModelMismatch, match="pickle"):
        RaftFlow.from_pretrained(str(folder))
    save_file({"weight": torch.zeros(3)}, folder / "model.safetensors")
    with pytest.raises(ModelMismatch, match="no RAFT"):
        RaftFlow.from_pretrained(str(folder))
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelMismatch, match="damaged"):
        RaftFlow.from_pretrained(str(folder))
