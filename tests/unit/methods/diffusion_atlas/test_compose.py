"""Frames made of a texture, held against a clip whose texture, map and mattes are known exactly."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from retouch.atlas.atlas import Atlas, Chart, PackedMattes, pack_matte
from retouch.atlas.edit import TexturePatch
from retouch.atlas.file import save_atlas
from retouch.atlas.mapping import ChartMapping
from retouch.atlas.textures import as_picture
from retouch.compute import Compute
from retouch.errors import EmptyMask, ParamsError
from retouch.events import Event, Notice
from retouch.methods.diffusion_atlas.compose import (
    Crop,
    Look,
    View,
    all_but_border,
    change_mask,
    chart_matte,
    chart_to_edit,
    complete_ground,
    grown,
    in_place_of,
    outline,
    solid_matte,
)
from retouch.methods.diffusion_atlas.edit import edit_with_editor
from retouch.methods.diffusion_atlas.spec import SPEC, DiffusionAtlasParams
from retouch.run import Run
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


BAR = square(8, 20) & square(11, 17).max(1, keepdims=True)


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


def moving() -> tuple[Atlas, Video, Tensor]:
    """A red bar that goes a pixel to the right each frame, the ground behind it, and that ground."""
    still, video = known(BAR)
    y, x = torch.meshgrid(torch.arange(float(SIDE)), torch.arange(float(SIDE)), indexing="ij")
    wave = 0.15 * torch.sin(x / 1.5) * torch.cos(y / 2)
    ground = torch.tensor([0.2, 0.3, 0.7])[:, None, None] + wave
    front, back = still.charts
    matrices = torch.eye(3).repeat(FRAMES, 1, 1)
    matrices[:, 0, 2] = -torch.arange(float(FRAMES))
    controls = torch.zeros(FRAMES, 2, 4, 4)
    mapping = ChartMapping(matrices, controls, torch.zeros(FRAMES, 2), (float(SIDE), float(SIDE)), SIDE, SIDE)
    charts = replace(front, mapping=mapping), replace(back, texture=ground)
    masks = [np.roll(BAR, t, axis=1) for t in range(FRAMES)]
    frames = [torch.where(torch.from_numpy(m > 0), front.texture, ground) for m in masks]
    video = Video((torch.stack(frames) * 255).round().to(torch.uint8).numpy(), video.fps)
    mattes = (PackedMattes.pack([pack_matte(m) for m in masks], SIDE, SIDE),)
    return replace(still, charts=charts, mattes=mattes, source=video.digest), video, ground


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


def test_a_new_object_stands_where_the_old_one_stood_and_is_no_larger() -> None:
    def block(low: int, high: int) -> Tensor:
        drawn = torch.zeros(1, 1, 40, 40)
        drawn[..., low:high, low + 2 : high + 2] = 1
        return drawn

    old, ground = block(10, 26), torch.full((1, 3, 40, 40), 0.2)
    green = torch.tensor([0.1, 0.9, 0.1])[None, :, None, None]
    for drawn in (block(0, 32), block(4, 20), block(20, 36)):
        picture, matte = in_place_of(old, drawn * green + (1 - drawn) * ground, drawn, ground)
        assert float((matte - old).abs()[..., 12:24, 14:26].max()) < BYTE
        assert abs(float(matte.sum() - old.sum())) < 0.1 * float(old.sum())
        assert float((picture - green).abs()[..., 13:23, 15:25].max()) < BYTE
        assert float((picture - ground).abs()[..., :8, :].max()) < BYTE
    _, matte = in_place_of(0.4 * old, block(20, 36) * green, 0.4 * block(20, 36), ground)  # smoke and glass
    assert float((matte - 0.4 * old).abs().max()) < BYTE
    smaller = block(30, 38)
    _, matte = in_place_of(old, smaller * green, smaller, ground)
    assert float((matte - block(14, 22)).abs().max()) < BYTE
    at_edge = torch.zeros(1, 1, 40, 40)
    at_edge[..., 24:, 20:36] = 1
    assert float((in_place_of(old, at_edge * green, at_edge, ground)[1] - old).abs().max()) < BYTE


@dataclass
class DrawsDiamond:
    """An editor that takes the object away and draws a green diamond, some pixels to the right."""

    ground: np.ndarray
    radius: float
    identity: str = "draws a diamond"
    masks: list[np.ndarray] = field(default_factory=list)

    def edit(
        self,
        picture: np.ndarray,
        prompt: str,
        *,
        mask: np.ndarray | None,
        references: Sequence[np.ndarray],
        seed: int,
        run: Run,
    ) -> np.ndarray:
        del prompt, references, seed, run
        assert mask is not None
        self.masks.append(mask)
        y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
        drawn = abs(x - 39.5) + abs(y - 31.5) < self.radius
        bare = np.where(mask[..., None], self.ground, picture)
        return np.where(drawn[..., None], np.array([25, 230, 25], np.uint8), bare).astype(np.uint8)


@pytest.mark.parametrize("radius", [14.0, 20.0])
def test_the_outline_that_an_editor_drew_is_what_the_frames_show(tmp_path: Path, radius: float) -> None:
    atlas, video, ground = moving()
    told = {"source_prompt": "a red bar", "prompt": "a green diamond", "outline": "new"}
    params = SPEC.fill({**told, "atlas": save_atlas(atlas, tmp_path / "bar.atlas")})
    assert isinstance(params, DiffusionAtlasParams)
    crop = Crop.around(0, chart_matte(atlas, 0))
    behind = as_picture(crop.cut(ground)[0])
    editor = DrawsDiamond(behind, radius)
    result = edit_with_editor(editor, video, params, Run.alone(tmp_path, compute=Compute(device="cpu")))
    y, x = np.mgrid[:SIDE, :SIDE]
    made, source = (np.asarray(v.frames).astype(int) for v in (result.video, video))
    (mask,) = editor.masks
    for t in range(FRAMES):
        right, down = (crop.corner[0] + 39.5 / crop.fineness + t, crop.corner[1] + 31.5 / crop.fineness)
        far = (abs(x - right) + abs(y - down)) - radius / crop.fineness
        old = np.roll(BAR, t, axis=1) > 0
        outside = (far > 1.5) & ~old
        assert (made[t, :, outside] == source[t, :, outside]).all()
        inner = made[t, :, far < -1.5]
        assert abs(inner - [25, 230, 25]).max() < 12
        assert made[t, 0, (far > 1.5) & old].max() < 120  # no red is left, which has 204
    down, right = np.mgrid[:64, :64]
    beyond = abs(right - 39.5) + abs(down - 31.5) < radius
    assert bool((beyond & ~mask).any()) == (radius > 16)  # the larger one goes beyond what it was told


def test_an_edit_may_go_a_little_beyond_the_object_and_fills_its_hull_if_the_outline_may_change() -> None:
    shape = torch.zeros(1, 1, 20, 20)
    shape[..., 5:15, 5:8] = shape[..., 12:15, 5:15] = 1
    near, hull = grown(shape, 1, hull=False), grown(shape, 1, hull=True)
    assert near[0, 0, 5, 4] == 1
    assert near[0, 0, 9, 10] == 0
    assert hull[0, 0, 9, 10] == 1
    assert hull[0, 0, 2, 14] == 0
    anywhere = all_but_border(shape, 2)
    assert anywhere.sum() == 16 * 16
    assert anywhere[0, 0, 2:18, 2:18].all()


def test_an_edit_that_cannot_be_seen_leaves_the_frames_as_they_are() -> None:
    before = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert float(change_mask(before + 0.01, before).max()) == 0
    changed = before.clone()
    changed[..., 4:12, 4:12] += 0.5
    assert float(change_mask(changed, before)[0, 0, 8, 8]) == 1
    assert float(change_mask(changed, before)[0, 0, 0, 0]) == 0


def test_object_and_ground_edited_together_leave_the_source_where_neither_reaches() -> None:
    mask = square(10, 20)
    atlas, video = known(mask)
    crop = Crop.around(0, chart_matte(atlas, 0), 27)
    old = crop.cut(chart_matte(atlas, 0))
    green, everywhere = torch.tensor([0.1, 0.9, 0.1])[:, None, None], torch.ones(1, 8, SIDE)
    ground = TexturePatch(1, (0.0, 0.0), 1.0, torch.cat([green.expand(3, 8, SIDE), everywhere]), everywhere)
    cover = torch.zeros_like(old)
    cover[..., :13] = 1  # the left half of the object
    view = View.of(atlas, video, crop, old, ground, 0, FRAMES)
    frames, touched, _ = view.show(Look(crop, green.expand(1, 3, 27, 27), cover, old))
    source = torch.tensor(np.array(video.frames)).float() / 255
    left, top = torch.from_numpy(mask > 127) & (torch.arange(SIDE) < 14), torch.arange(SIDE) < 8
    assert torch.equal(frames[..., ~touched[0, 0]], source[..., ~touched[0, 0]])
    assert not touched[:, :, 9:, 16:].any()
    assert not touched[:, :, 20:].any()
    assert bool(touched[..., left].all())
    assert bool(touched[:, :, top].all())
    assert float((frames[..., left] - green[:, 0]).abs().max()) < BYTE
    assert float((frames[:, :, top] - green).abs().max()) < BYTE


def told(atlas: Atlas, name: str, folder: Path) -> tuple[int, list[str]]:
    """The chart that is edited, and what the user is told of it."""
    events: list[Event] = []
    run = Run.alone(folder, compute=Compute(device="cpu"), listen=events.append)
    return chart_to_edit(atlas, name, run), [event.text for event in events if isinstance(event, Notice)]


def test_of_several_pictures_of_an_object_that_of_most_frames_is_edited_and_told(tmp_path: Path) -> None:
    atlas, _ = known(square(10, 20))
    front, ground = atlas.charts
    once = replace(front, blend=torch.tensor([1.0, 0.0, 0.0]))
    rest = replace(front, blend=torch.tensor([0.0, 1.0, 1.0]))
    number, notices = told(replace(atlas, charts=(once, rest, ground)), "", tmp_path)
    assert number == 1
    assert "has 2 pictures; the one that 2 of 3 frames show is edited, and the others stay" in notices[0]
    assert told(atlas, "", tmp_path) == (0, [])


def test_an_object_at_the_border_in_every_frame_is_told(tmp_path: Path) -> None:
    _, notices = told(known(square(0, 12))[0], "", tmp_path)
    assert notices == ["object touches the border in every frame: what lies beyond is made up"]


def test_a_texture_that_no_frame_sees_is_refused(tmp_path: Path) -> None:
    atlas, _ = known(square(10, 20))
    hidden = PackedMattes.pack([pack_matte(np.zeros((SIDE, SIDE), np.uint8))] * FRAMES, SIDE, SIDE)
    unused = replace(atlas.charts[0], blend=torch.zeros(FRAMES))
    for empty in (replace(atlas, mattes=(hidden,)), replace(atlas, charts=(unused, atlas.charts[1]))):
        with pytest.raises(EmptyMask, match="no frame shows the object"):
            told(empty, "", tmp_path)
    with pytest.raises(ParamsError, match="no object 'cat'"):
        told(atlas, "cat", tmp_path)


def test_ground_that_no_frame_shows_is_drawn_once_and_kept(tmp_path: Path) -> None:
    atlas, _ = known(square(10, 20))
    events: list[Event] = []
    run = Run.alone(tmp_path, compute=Compute(device="cpu"), listen=events.append)
    texture = atlas.charts[1].texture.clone()
    texture[:, 10:20, 10:20] = 0.0
    holed = replace(atlas, charts=(atlas.charts[0], replace(atlas.charts[1], texture=texture)))
    first, again = (complete_ground(holed, run).charts[1].texture for _ in range(2))
    assert float((first - atlas.charts[1].texture).abs().max()) < BYTE
    assert torch.equal(first, again)
    assert [type(event).__name__ for event in events] == ["Kept", "Reused"]


def test_no_trace_of_the_old_outline_stays_where_a_smaller_object_stands(tmp_path: Path) -> None:
    soft = square(10, 20)
    soft[9, 9:21] = soft[20, 9:21] = soft[9:21, 9] = soft[9:21, 20] = 90
    atlas, video = known(soft)
    dark, texture = np.array(video.frames), atlas.charts[1].texture.clone()
    rim = soft == 90
    dark[:, :, rim] //= 2  # an outline that the object's picture does not have
    texture[:, torch.from_numpy(rim)] *= 0.8  # nor the ground's, which took some of it for its own
    holed = replace(atlas, charts=(atlas.charts[0], replace(atlas.charts[1], texture=texture)))
    video = Video(dark, video.fps)
    run = Run.alone(tmp_path, compute=Compute(device="cpu"))
    crop = Crop.around(0, chart_matte(atlas, 0), 27)
    old = crop.cut(chart_matte(atlas, 0))
    new = torch.zeros_like(old)
    new[..., 11:16, 11:16] = 1
    look = Look(crop, torch.ones(1, 3, 27, 27), torch.ones_like(new), old, new)
    frames, touched, _ = viewed(complete_ground(holed, run), video, crop, old).show(look)
    assert bool(touched[:, :, torch.from_numpy(rim)].all())
    bare = torch.tensor([0.2, 0.2, 0.8])[:, None]
    assert float((frames[..., torch.from_numpy(rim)] - bare).abs().max()) < BYTE


def test_what_few_frames_show_counts_as_the_object_and_a_soft_edge_stays_soft() -> None:
    matte = torch.zeros(1, 1, 12, 12)
    matte[..., 2:10, 2:7] = 1
    matte[..., 2:10, 7] = 0.5  # an edge
    matte[..., 2:6, 8:12] = 0.34  # one frame of three
    matte[..., 10:, 2:7] = 0.05  # hardly any
    made = solid_matte(matte)
    assert (made[..., 2:6, 8:12] == 1).all()
    assert torch.equal(made[..., 7:, :], matte[..., 7:, :])
    assert torch.equal(made[..., :7], matte[..., :7])
