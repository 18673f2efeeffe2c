"""Frames made of a texture, held against a clip whose texture, map and mattes are known exactly."""

from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from retouch.atlas.atlas import Atlas, Chart, PackedMattes, pack_matte
from retouch.atlas.mapping import ChartMapping
from retouch.methods.diffusion_atlas.compose import (
    Crop,
    Look,
    View,
    change_mask,
    chart_matte,
    grown,
    outline,
)
from retouch.video import Video

BYTE = 1 / 255
SIDE, FRAMES = 32, 3


def chart(layer: int, colour: tuple[float, float, float]) -> Chart:
    """A texture of the frame's size that does not move."""
    controls = torch.zeros(FRAMES, 2, 4, 4)
    origins = torch.zeros(FRAMES, 2)
    mapping = ChartMapping(
        torch.eye(3).repeat(FRAMES, 1, 1), controls, origins, (float(SIDE), float(SIDE)), SIDE, SIDE
    )
    texture = torch.tensor(colour)[:, None, None].expand(3, SIDE, SIDE).contiguous()
    seen, gain = torch.ones(1, SIDE, SIDE), torch.ones(FRAMES, 3, 4, 4)
    return Chart(layer, 0, 0, mapping, 1.0, torch.ones(FRAMES), texture, seen, gain)


def square(low: int, high: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[low:high, low:high] = 255
    return mask


def known(mask: np.ndarray) -> tuple[Atlas, Video]:
    """A red object before blue ground, with a little noise that no atlas explains."""
    red, blue = (0.8, 0.2, 0.2), (0.2, 0.2, 0.8)
    share = (mask / 255.0)[None]
    drawn = share * np.array(red)[:, None, None] + (1 - share) * np.array(blue)[:, None, None]
    noise = np.random.default_rng(0).normal(0, 2, (FRAMES, 3, SIDE, SIDE))
    frames = np.rint(drawn * 255 + noise).clip(0, 255).astype(np.uint8)
    video = Video(frames, Fraction(8))
    mattes = (PackedMattes.pack([pack_matte(mask)] * FRAMES, SIDE, SIDE),)
    charts = (chart(0, red), chart(1, blue))
    names = ("object", "background")
    return Atlas(names, charts, mattes, FRAMES, SIDE, SIDE, Fraction(8), video.digest), video


def viewed(atlas: Atlas, video: Video, crop: Crop, old: Tensor) -> View:
    return View.of(atlas, video, crop, old, None, 0, FRAMES)


def test_the_crop_lies_around_the_object_and_its_pixels_find_their_texels() -> None:
    atlas, _ = known(square(10, 20))
    crop = Crop.around(0, chart_matte(atlas, 0), 27)
    back = crop.places(crop.texels())
    y, x = torch.meshgrid(torch.arange(27.0), torch.arange(27.0), indexing="ij")
    assert torch.allclose(back[0], torch.stack([x, y]), atol=1e-3)
    middle = crop.texels()[0, :, 13, 13]
    assert torch.allclose(middle, torch.tensor([14.5, 14.5]), atol=1e-3)
    assert crop.fineness == 27 / 13.5


def test_where_nothing_was_edited_the_frames_are_the_source_exactly() -> None:
    atlas, video = known(square(10, 20))
    crop = Crop.around(0, chart_matte(atlas, 0), 16)
    old = crop.cut(chart_matte(atlas, 0))
    view = viewed(atlas, video, crop, old)
    look = Look(crop, torch.zeros(1, 3, 16, 16), torch.zeros_like(old), old)
    frames, touched, _ = view.show(look)
    assert torch.equal(frames, view.source)
    assert not touched.any()


def test_a_colour_reaches_the_object_and_no_other_pixel() -> None:
    mask = square(10, 20)
    atlas, video = known(mask)
    crop = Crop.around(0, chart_matte(atlas, 0), 16)
    old = crop.cut(chart_matte(atlas, 0))
    green = torch.tensor([0.1, 0.9, 0.1])[None, :, None, None].expand(1, 3, 16, 16)
    frames, touched, _ = viewed(atlas, video, crop, old).show(Look(crop, green, torch.ones_like(old), old))
    inside = torch.from_numpy(mask > 127)
    assert torch.equal(touched, inside.expand(FRAMES, 1, SIDE, SIDE))
    assert float((frames[..., 12:18, 12:18] - green[..., :6, :6]).abs().max()) < BYTE
    source = torch.tensor(np.array(video.frames)).float() / 255
    assert torch.equal(frames[..., ~inside], source[..., ~inside])


def test_a_larger_outline_is_shown_whole_and_a_smaller_one_uncovers_the_ground() -> None:
    atlas, video = known(square(10, 20))
    crop = Crop.around(0, chart_matte(atlas, 0), 27)
    old = crop.cut(chart_matte(atlas, 0))
    view = viewed(atlas, video, crop, old)
    green = torch.tensor([0.1, 0.9, 0.1])[None, :, None, None].expand(1, 3, 27, 27)

    def shown(low: int, high: int) -> Tensor:
        new = torch.zeros(1, 1, 27, 27)
        new[..., low:high, low:high] = 1
        frames, touched, alpha = view.show(Look(crop, green, torch.ones_like(new), old, new))
        assert bool(touched[alpha > 0.1].all())
        return frames

    larger = shown(1, 26)
    assert float((larger[:, 1, 9:21, 9:21] - 0.9).abs().max()) < BYTE
    smaller = shown(11, 16)
    assert float((smaller[:, :, 11, 11] - torch.tensor([0.2, 0.2, 0.8])).abs().max()) < 4 * BYTE
    assert float((smaller[:, 1, 14, 14] - 0.9).abs().max()) < BYTE


def test_what_hides_the_object_hides_the_new_one_too() -> None:
    mask = square(10, 20)
    atlas, video = known(mask)
    hidden = mask.copy()
    hidden[10:20, 15:20] = 0
    mattes = PackedMattes.pack([pack_matte(mask), pack_matte(mask), pack_matte(hidden)], SIDE, SIDE)
    there = Crop.around(0, chart_matte(atlas, 0), 27)
    old = there.cut(chart_matte(atlas, 0))
    from dataclasses import replace

    view = viewed(replace(atlas, mattes=(mattes,)), video, there, old)
    _, _, alpha = view.show(Look(there, torch.zeros(1, 3, 27, 27), torch.ones_like(old), old, old))
    assert float(alpha[2, 0, 14, 17]) < 0.1
    assert float(alpha[0, 0, 14, 17]) > 0.9


def test_the_outline_is_that_of_what_stands_out_from_the_ground() -> None:
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    disc = ((x - 30).square() + (y - 34).square() < 16**2).float()[None, None]
    ground = (0.5 + 0.05 * torch.sin(x / 3))[None, None].expand(1, 3, 64, 64)
    red = torch.tensor([0.9, 0.1, 0.1])[None, :, None, None]
    found = outline(disc * red + (1 - disc) * ground, ground, torch.ones(1, 1, 64, 64))
    both, either = (found * disc).sum(), torch.maximum(found, disc).sum()
    assert float(both / either) > 0.95
    assert float(outline(ground, ground, torch.ones(1, 1, 64, 64)).sum()) == 0


def test_an_edit_may_go_a_little_beyond_the_object_and_fills_its_hull_if_the_outline_may_change() -> None:
    shape = torch.zeros(1, 1, 20, 20)
    shape[..., 5:15, 5:8] = shape[..., 12:15, 5:15] = 1
    near, hull = grown(shape, 1, hull=False), grown(shape, 1, hull=True)
    assert near[0, 0, 5, 4] == 1
    assert near[0, 0, 9, 10] == 0
    assert hull[0, 0, 9, 10] == 1
    assert hull[0, 0, 2, 14] == 0


def test_an_edit_that_cannot_be_seen_leaves_the_frames_as_they_are() -> None:
    before = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert float(change_mask(before + 0.01, before).max()) == 0
    changed = before.clone()
    changed[..., 4:12, 4:12] += 0.5
    assert float(change_mask(changed, before)[0, 0, 8, 8]) == 1
    assert float(change_mask(changed, before)[0, 0, 0, 0]) == 0
