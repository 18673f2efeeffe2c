"""Tiles of a picture, and editing in them with the embedded model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from retouch.diffusion.image_edit import Goal, descent, edit_picture
from retouch.diffusion.tiles import OVERLAP, Tile, cover_with_tiles
from retouch.models.annotate import canny
from retouch.models.image import Control, StableDiffusion
from retouch.run import Run

EXACT = 1e-6
STEP_HELD = 0.5
"""Part of the step between tiles edited one by one that may be left where they agree at every level."""


@pytest.mark.parametrize("size", [(16, 16), (16, 20), (33, 16), (24, 50), (9, 40)])
def test_shares_add_up_to_one_and_every_tile_is_as_large(size: tuple[int, int]) -> None:
    tiles = cover_with_tiles(size, 16)
    total = torch.zeros(1, 1, *size)
    for tile in tiles:
        tile.add(total, torch.ones(1, 1, min(16, size[0]), min(16, size[1])))
    torch.testing.assert_close(total, torch.ones_like(total), atol=EXACT, rtol=0)


def test_neighbours_overlap_enough_and_say_little_at_their_edge() -> None:
    tiles = cover_with_tiles((16, 60), 16)
    starts = [tile.columns.start for tile in tiles]
    assert max(np.diff(starts)) <= 16 * (1 - OVERLAP)
    assert (starts[0], tiles[-1].columns.stop) == (0, 60)
    assert all(tile.share[:, 0].max() < 0.05 for tile in tiles[1:])
    assert all(tile.share[:, -1].max() < 0.05 for tile in tiles[:-1])


def test_a_tile_cuts_of_a_picture_what_its_latents_show() -> None:
    tile = cover_with_tiles((16, 24), 16)[-1]
    picture = torch.arange(24.0).repeat_interleave(4).expand(1, 3, 64, 96)
    assert torch.equal(tile.cut(picture, 4)[0, 0, 0, ::4], torch.arange(8.0, 24.0))


def edited(sd: StableDiffusion, control: Control, pixels: Tensor, tiles: Sequence[Tile], run: Run) -> Tensor:
    """A picture edited in parts, two steps from nearly nothing."""
    shown = ((pixels + 1) * 127.5).round().to(torch.uint8).numpy()
    inner = (pixels.shape[2] // sd.factor, pixels.shape[3] // sd.factor)
    return edit_picture(
        pixels,
        torch.randn(1, 4, *inner, generator=torch.Generator().manual_seed(3)),
        Goal(sd.embed("sand"), sd.embed(""), 5.0),
        sd,
        run.steps("edit", descent(sd.schedule(4), 1.0)),
        edges=canny(shown),
        control=control,
        tiles=tiles,
    )


@pytest.fixture
def control(run: Run) -> Control:
    return run.load("tiny:sd-canny", Control)


@pytest.fixture
def tiny_sd(run: Run) -> StableDiffusion:
    return run.load("tiny:sd", StableDiffusion)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.alone(tmp_path)


def picture(width: int) -> Tensor:
    """Soft stripes and spots."""
    noise = torch.rand(1, 3, 8, width // 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return torch.nn.functional.interpolate(noise, (64, width), mode="bilinear").clamp(-1, 1)


def test_one_tile_is_the_picture_edited_whole(tiny_sd: StableDiffusion, control: Control, run: Run) -> None:
    tiles = cover_with_tiles((16, 16), 16)
    assert len(tiles) == 1
    whole, tiled = (edited(tiny_sd, control, picture(64), each, run) for each in ((), tiles))
    assert torch.equal(whole, tiled)


def test_tiles_agree_where_they_overlap_and_no_step_shows_between_them(
    tiny_sd: StableDiffusion, control: Control, run: Run
) -> None:
    """Beside it the same picture in two parts that know nothing of each other, laid side by side."""
    pixels, tiles = picture(128), cover_with_tiles((16, 32), 16)
    asked: list[int] = []
    hook = tiny_sd.unet.register_forward_hook(lambda _, given, __: asked.append(given[0].shape[-1]))
    try:
        tiled = edited(tiny_sd, control, pixels, tiles, run)
    finally:
        hook.remove()
    assert asked == [16] * (4 * 2 * len(tiles))
    apart = torch.cat(
        [edited(tiny_sd, control, part, (), run) for part in (pixels[..., :64], pixels[..., 64:])], 3
    )
    held, split = (step_at(made, 64) for made in (tiled, apart))
    assert held < STEP_HELD * split


def step_at(made: Tensor, column: int) -> float:
    """The mean difference of a column from that before it, over that of the columns around."""
    steps = made.diff(dim=3).abs().mean((0, 1, 2))
    around = torch.cat([steps[column - 9 : column - 2], steps[column + 1 : column + 8]])
    return float(steps[column - 1] - around.mean())
