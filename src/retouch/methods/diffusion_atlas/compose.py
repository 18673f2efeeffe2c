"""Between texture and frames: the crop that the model edits, and the frames that show it.

A texture is cut out at the size of the model's pictures (`Crop`), edited, and shown by every frame through
the atlas' own map (`View`). Where a new object has another outline, the frame's matte follows it:

    seen(p) = old matte(p) / old matte of the texture, where that is there, else 1
    alpha(p) = seen(p) * new matte of the texture                                             (8)

and what the atlas could not explain stays where nothing was edited (2).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Self, TypeAlias, final

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

from retouch.artifacts import artifact
from retouch.atlas.atlas import Atlas, Chart, shares_of
from retouch.atlas.complete import complete_texture
from retouch.atlas.edit import TexturePatch
from retouch.atlas.mapping import PixelWindow
from retouch.atlas.prepare import atlas_for, drawn_marks, marks_from, segmenter_named
from retouch.atlas.pyramid import AtlasSettings, frame_blocks
from retouch.atlas.textures import fill_unseen, gaussian_blur, sample_texture, shrink_pictures, splat_values
from retouch.errors import EmptyMask, ParamsError
from retouch.media.pictures import read_rgb
from retouch.methods.diffusion_atlas.spec import DiffusionAtlasParams
from retouch.run import Run
from retouch.tracking.segment import tracking_size
from retouch.video import Video

ROOM: Final = 1.35
"""Side of the crop, in long sides of the object."""
THERE: Final = 0.05
"""Matte of the texture below which it says nothing of who hides the object."""
SURE: Final = 0.18
"""Difference from the ground, of the whole range, from which a pixel is likely the object's."""
SHOWN: Final = 0.05
"""Share of the frames that must show a texel of the background bare for it to be known."""
BARE: Final = 0.95
"""Share of a pixel from which it shows the background bare: below it the object's soft edge is in it."""
SOME: Final = (0.1, 0.95)
"""Mean matte between which a texel is the object's in some frames only, where that is no thin edge."""
FINE: Final = 4
"""Times larger that the new outline is looked for."""
REACH: Final = 4
"""Pixels beyond the object in which its map is still believed."""
LEAST: Final = 1 / 128
"""Share of a pixel below which an edit leaves it alone."""
LEAST_SIDE: Final = 64
"""Pixels of a crop below which its pixels are finer than texels."""
LEAST_WEIGHT: Final = 16.0
"""Pixels of an object from which an affine map can be told."""

SAME: Final = (3.0, 20.0)
"""Mean difference in levels, and the largest but for a hundredth, below which a reference is a frame."""
COMPARED_AT: Final = 32
"""Long side in pixels that the two are compared at."""

Warp: TypeAlias = Callable[[Float[Tensor, "f 2 h w"]], Float[Tensor, "f 2 h w"]]
"""Moves places in the crop; the map itself if it gives them back."""


@final
@dataclass(frozen=True)
class Crop:
    """A rectangle of a chart's texture, in pixels of its own."""

    chart: int
    corner: tuple[float, float]
    """Texel where its first pixel lies, x then y."""
    fineness: float
    """Its pixels for each texel."""
    height: int
    width: int

    @classmethod
    def around(cls, chart: int, matte: Float[Tensor, "1 v u"], side: int | None = None) -> Self:
        """Return a square around what a matte shows, with some room; its pixels are texels without a side."""
        low, high = box_around(matte, THERE)
        long = ROOM * float((high - low).max())
        side = side or max(LEAST_SIDE, math.ceil(long))
        left, top = ((low + high - long) / 2).tolist()
        half = 0.5 * long / side
        return cls(chart, (left + half, top + half), side / long, side, side)

    @classmethod
    def of_ground(cls, chart: int, texture: Float[Tensor, "3 v u"], height: int, width: int) -> Self:
        """Return the whole of a texture at a size of proportions near its own."""
        v, u = texture.shape[1:]
        fineness = max(height / v, width / u)
        reach = [0.5 * (have - want / fineness) for have, want in ((u, width), (v, height))]
        left, top = (low - 0.5 + 0.5 / fineness for low in reach)
        return cls(chart, (left, top), fineness, height, width)

    def texels(self, times: int = 1) -> Float[Tensor, "1 2 y x"]:
        """Return where its pixels lie in the texture, each split into so many along a side."""
        y, x = ((torch.arange(count * times) + 0.5) / times - 0.5 for count in (self.height, self.width))
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy")) / self.fineness
        return (grid + torch.tensor(self.corner)[:, None, None])[None]

    def cut(self, texture: Float[Tensor, "c v u"]) -> Float[Tensor, "1 c y x"]:
        """Cut the rectangle out; where pixels are coarser than texels, by area."""
        times = math.ceil(1 / self.fineness)
        return F.avg_pool2d(sample_texture(texture, self.texels(times).to(texture)), times)

    def places(self, uv: Float[Tensor, "f 2 h w"]) -> Float[Tensor, "f 2 h w"]:
        """Return positions in the texture as positions in the crop, in its pixels."""
        return (uv - uv.new_tensor(self.corner)[:, None, None]) * self.fineness

    def patch(self, picture: Float[Tensor, "1 3 y x"], cover: Float[Tensor, "1 1 y x"]) -> TexturePatch:
        """Return an edit of the chart that shows a picture of the crop's size, where it is covered."""
        both = torch.cat([picture * cover, cover], 1)[0]
        return TexturePatch(self.chart, self.corner, self.fineness, both, torch.ones_like(both[:1]))


def chart_to_edit(atlas: Atlas, name: str, run: Run) -> int:
    """Return the chart of the object that most frames take from; tell where that is not all of them.

    Raises:
        ParamsError: there is no object of that name.
        EmptyMask: no frame shows it.
    """
    objects = atlas.names[:-1]
    if name and name not in objects:
        raise ParamsError(f"there is no object {name!r}", hint=f"objects: {', '.join(objects)}")
    layer = objects.index(name) if name else 0
    charts = [(float(chart.blend.sum()), -n) for n, chart in enumerate(atlas.charts) if chart.layer == layer]
    frames, number = max(charts)
    if frames == 0 or float(chart_matte(atlas, -number).max()) < 0.5:
        raise EmptyMask(
            f"no frame shows the {objects[layer]}", hint="look at the masks: retouch atlas export"
        )
    if len(charts) > 1:
        run.notice(
            f"{objects[layer]} has {len(charts)} pictures; the one that {frames:.0f} of {atlas.frames} "
            "frames show is edited, and the others stay"
        )
    edges = [m for m in (atlas.mattes[layer].frame(t) for t in range(atlas.frames)) if _at_border(m)]
    if len(edges) == atlas.frames:
        run.notice(f"{objects[layer]} touches the border in every frame: what lies beyond is made up")
    return -number


def _at_border(matte: UInt8[np.ndarray, "h w"]) -> bool:
    return bool(max(matte[0].max(), matte[-1].max(), matte[:, 0].max(), matte[:, -1].max()) > 127)


def chart_matte(atlas: Atlas, index: int) -> Float[Tensor, "1 v u"]:
    """Return how much of each texel of an object's chart is the object, by the mean of all frames."""
    chart = atlas.charts[index]
    height, width = chart.texture.shape[1:]
    sums = torch.zeros(2, height, width, device=atlas.device)
    for a, b in frame_blocks(chart.start, chart.stop):
        part = chart.part(a, b)
        window = part.window()
        alpha = window.cut(_matte(atlas, chart.layer, a, b))
        sums += splat_values(torch.cat([alpha, torch.ones_like(alpha)], 1), part.uv(window), height, width)
    return fill_unseen(sums[:1], sums[1:])


def solid_matte(matte: Float[Tensor, "1 1 y x"]) -> Float[Tensor, "1 1 y x"]:
    """Return a mean matte with what few frames show as solid as the rest; each frame's own cuts it out."""
    some = ((matte > SOME[0]) & (matte < SOME[1])).float()
    wide = F.max_pool2d(-F.max_pool2d(-some, 3, 1, 1), 3, 1, 1)
    return matte.maximum(wide)


def complete_ground(atlas: Atlas, run: Run) -> Atlas:
    """Return an atlas whose background goes on where the objects hid it in every frame."""
    last = len(atlas.names) - 1
    charts = [
        completed_chart(atlas, n, run=run) if c.layer == last else c for n, c in enumerate(atlas.charts)
    ]
    return replace(atlas, charts=tuple(charts))


@artifact("completed_chart", version=2)
def completed_chart(atlas: Atlas, index: int, *, run: Run) -> Chart:
    """Return a chart of the background with what frames reach and never show bare filled in; it is kept."""
    run.check()
    chart = atlas.charts[index]
    height, width = chart.texture.shape[1:]
    sums = torch.zeros(2, height, width, device=atlas.device)
    for a, b in frame_blocks(chart.start, chart.stop):
        part = chart.part(a, b)
        window = part.window()
        bare = (window.cut(atlas.shares(a, b)[chart.layer]) > BARE).float()
        sums += splat_values(torch.cat([bare, torch.ones_like(bare)], 1), part.uv(window), height, width)
    reached, shown = sums[1:] > THERE, sums[:1] > SHOWN * sums[1:]
    return replace(chart, texture=complete_texture(chart.texture, reached & ~shown, reached))


def ground_around(atlas: Atlas, crop: Crop) -> Float[Tensor, "1 3 y x"]:
    """Return the background as the chart's reference frame has it around the object, in the crop's pixels."""
    chart = atlas.charts[crop.chart]
    at, texels = chart.reference, crop.texels()[0].flatten(1).T.to(atlas.device)
    points, _ = chart.mapping.invert(at - chart.start, texels)
    ground = atlas.layer(len(atlas.names) - 1, at, at + 1)[0]
    return sample_texture(ground, points.T.reshape(1, 2, crop.height, crop.width))


def all_but_border(like: Float[Tensor, "1 1 y x"], border: int) -> Float[Tensor, "1 1 y x"]:
    """Return where an object of another outline may be drawn: everywhere but beside the crop's edge."""
    return F.pad(torch.ones_like(like[..., border:-border, border:-border]), (border,) * 4)


def grown(matte: Float[Tensor, "1 1 y x"], by: int, *, hull: bool) -> Float[Tensor, "1 1 y x"]:
    """Return where an edit may go: the object grown by some pixels, of its convex hull if it may change."""
    mask = (matte[0, 0].cpu().numpy() > 0.5).astype(np.uint8)
    if hull:
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.fillConvexPoly(mask, cv2.convexHull(np.concatenate(outlines)), 1)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * by + 1, 2 * by + 1))
    return torch.from_numpy(cv2.dilate(mask, disc))[None, None].to(matte)


def outline(
    edited: Float[Tensor, "1 3 y x"], ground: Float[Tensor, "1 3 y x"], allowed: Float[Tensor, "1 1 y x"]
) -> Float[Tensor, "1 1 y x"]:
    """Return the matte of what an edited crop shows before its ground: by GrabCut, its largest piece."""
    height, width = edited.shape[-2:]
    large = [F.interpolate(part, scale_factor=FINE, mode="bicubic") for part in (edited, ground)]
    free = F.interpolate(allowed, scale_factor=FINE)[0, 0].cpu().numpy() > 0.5
    differs = (large[0] - large[1]).abs().amax(1)[0].cpu().numpy() > SURE
    labels = np.where(free, np.where(differs, cv2.GC_PR_FGD, cv2.GC_PR_BGD), cv2.GC_BGD).astype(np.uint8)
    if (differs & free).any() and not (differs | ~free).all():
        cv2.setRNGSeed(0)
        shown = np.ascontiguousarray(_bytes(large[0])[0].transpose(1, 2, 0))
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(shown, labels, None, *models, 4, cv2.GC_INIT_WITH_MASK)
    whole = _largest_piece(np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)))
    return F.interpolate(torch.from_numpy(whole)[None, None].to(edited), (height, width), mode="area")


def box_around(
    matte: Float[Tensor, "1 v u"], least: float
) -> tuple[Float[Tensor, " 2"], Float[Tensor, " 2"]]:
    """Return the lowest and the highest x and y of what a matte shows, at the pixels' outer edges."""
    rows, columns = (matte[0] > least).nonzero(as_tuple=True)
    low, high = (torch.stack([end(columns), end(rows)]).float() for end in (torch.min, torch.max))
    return low - 0.5, high + 0.5


def in_place_of(
    old: Float[Tensor, "1 1 y x"], edited: Float[Tensor, "1 3 y x"], shape: Float[Tensor, "1 1 y x"],
    ground: Float[Tensor, "1 3 y x"],
) -> tuple[Float[Tensor, "1 3 y x"], Float[Tensor, "1 1 y x"]]:  # fmt: skip
    """Return a new object where the old one was, and no larger, by the boxes around both; and its matte.

    The words say neither: a model draws what they name as large as it is let, and not quite in the middle.
    """
    (low, high), (new_low, new_high) = (box_around(m[0], float(m.max()) / 2) for m in (old, shape))
    size = ((high - low).prod() / (new_high - new_low).prod()).sqrt().clamp(max=1)
    y, x = (torch.arange(side).to(edited) for side in edited.shape[-2:])
    off = torch.stack(torch.meshgrid(x, y, indexing="xy")) - (low + high)[:, None, None] / 2
    at = off / size + (new_low + new_high)[:, None, None] / 2
    cut_out = F.pad(torch.cat([edited * shape, shape], 1)[0], (1, 1, 1, 1))
    moved = sample_texture(cut_out, at[None] + 1)
    return moved[:, :3] + (1 - moved[:, 3:]) * ground, moved[:, 3:]


def _largest_piece(mask: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Return the largest piece of a mask, without its holes."""
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros(mask.shape, np.uint8)
    if outlines:
        cv2.drawContours(filled, [max(outlines, key=cv2.contourArea)], -1, 1, cv2.FILLED)
    return filled


def change_mask(
    edited: Float[Tensor, "1 3 y x"], before: Float[Tensor, "1 3 y x"]
) -> Float[Tensor, "1 1 y x"]:
    """Return where an edit changed its crop: 0 where hardly at all, 1 where it can be seen."""
    change = gaussian_blur((edited - before).abs().amax(1, keepdim=True), 1.0)
    return ((change - 0.03) / 0.05).clamp(0, 1)


@final
@dataclass(frozen=True, eq=False)
class Look:
    """What an object should look like, in the pixels of a crop."""

    crop: Crop
    picture: Float[Tensor, "1 3 y x"]
    """From 0 to 1."""
    cover: Float[Tensor, "1 1 y x"]
    """Where it was edited; elsewhere frames keep what they have."""
    old_matte: Float[Tensor, "1 1 y x"]
    new_matte: Float[Tensor, "1 1 y x"] | None = None
    """The new object's, where its outline is another."""


@final
@dataclass(frozen=True, eq=False)
class View:
    """Some frames, taken apart for an edit of one object and of what is behind it; colours 0 to 1."""

    source: Float[Tensor, "f 3 h w"]
    places: Float[Tensor, "f 2 h w"]
    """Where each pixel lies in the crop."""
    alpha: Float[Tensor, "f 1 h w"]
    """How much of each pixel is the object."""
    seen: Float[Tensor, "f 1 h w"]
    """How much of an object that filled the crop would be seen: nothing of it is hidden where that is 1."""
    gain: Float[Tensor, "f 3 h w"]
    behind: Float[Tensor, "f 3 h w"]
    """What is behind the object, edited if that is wanted, with what the atlas did not explain of it."""
    without: Float[Tensor, "f 3 h w"]
    """The frames without the object."""
    rim: Float[Tensor, "f 3 h w"]
    """What the atlas did not explain where the object is: a trace of its edge, where that is gone."""
    kept: Float[Tensor, "f 3 h w"]
    """The frames with the object as it was, before what is behind it now."""
    ground_touched: Bool[Tensor, "f 1 h w"]

    @classmethod
    def of(
        cls, atlas: Atlas, video: Video, crop: Crop, matte: Float[Tensor, "1 1 y x"],
        ground: TexturePatch | None, start: int, stop: int,
    ) -> Self:  # fmt: skip
        """Take some frames apart."""
        chart = atlas.charts[crop.chart]
        layer, shares = chart.layer, atlas.shares(start, stop)
        source = torch.tensor(np.array(video.frames[start:stop])).to(atlas.device).float() / 255
        shown = [atlas.layer(number, start, stop) for number in range(len(shares))]
        places, blend, gain = _in_chart(atlas, chart, crop, start, stop)
        alpha = shares[layer] * blend
        places = _straight_outside(places, alpha)
        unexplained = source - torch.stack([s * c for s, c in zip(shares, shown, strict=True)]).sum(0)

        front = torch.stack([torch.zeros_like(source), *(shares[n] * shown[n] for n in range(layer))]).sum(0)
        through = 1 - torch.stack([torch.zeros_like(alpha), *shares[:layer]]).sum(0)
        behind = _behind(atlas, layer, shown, start, stop)
        edited, cover = _edited_ground(atlas, layer, ground, behind, start, stop)
        rest = (1 - alpha) * unexplained
        changed = front + through * edited + (1 - cover) * rest
        old = sample_texture(matte[0], places) * _inside(places, crop)
        own = _matte(atlas, layer, start, stop)
        hidden = _closed(torch.where(old > THERE, (own / old.clamp(min=THERE)).clamp(0, 1), 1.0))
        return cls(
            source, places, alpha, through * blend * hidden, gain, edited + (1 - cover) * rest, changed,
            (alpha > LEAST) * (1 - cover) * rest,
            source + (through - shares[layer]) * (edited - behind) - cover * rest,
            (through - shares[layer]) * cover > LEAST,
        )  # fmt: skip

    def show(
        self, look: Look, warp: Warp = lambda places: places
    ) -> tuple[Float[Tensor, "f 3 h w"], Bool[Tensor, "f 1 h w"], Float[Tensor, "f 1 h w"]]:
        """Return the edited frames, where they may differ, and the object's share of each pixel: eq. 2, 8."""
        places = warp(self.places)
        inside = _inside(places, look.crop)
        colours = sample_texture(look.picture[0], places) * self.gain
        cover = sample_texture(look.cover[0], places) * inside
        alpha, without, behind = self.alpha, self.without, self.behind
        if look.new_matte is not None:
            alpha = self.seen * sample_texture(look.new_matte[0], places) * inside
            cover, without, behind = torch.ones_like(cover), without - self.rim, behind - self.rim
        edited = without + alpha * (colours - behind)
        touched = (cover * torch.maximum(alpha, self.alpha) > LEAST) | self.ground_touched
        return torch.where(touched, self.kept + cover * (edited - self.kept), self.source), touched, alpha


def _in_chart(
    atlas: Atlas, chart: Chart, crop: Crop, start: int, stop: int
) -> tuple[Float[Tensor, "f 2 h w"], Float[Tensor, "f 1 1 1"], Float[Tensor, "f 3 h w"]]:
    """Return where pixels lie in a crop, how much frames take from its chart, and its gain."""
    a, b = max(start, chart.start), min(stop, chart.stop)
    size = atlas.height, atlas.width
    places = torch.full((stop - start, 2, *size), -9e3, device=atlas.device)
    gain = torch.ones(stop - start, 3, *size, device=atlas.device)
    blend = torch.zeros(stop - start, 1, 1, 1, device=atlas.device)
    if a < b:
        window = PixelWindow(torch.zeros(b - a, 2, dtype=torch.int64), *size)
        places[a - start : b - start] = crop.places(chart.part(a, b).uv(window))
        gain[a - start : b - start] = chart.gains(window, a, b)
        blend[a - start : b - start, 0, 0, 0] = chart.blend[a - chart.start : b - chart.start]
    return places, blend, gain


def _straight_outside(
    places: Float[Tensor, "f 2 h w"], alpha: Float[Tensor, "f 1 h w"]
) -> Float[Tensor, "f 2 h w"]:
    """Return places with an affine image of the object's in its surroundings, where nothing holds the map."""
    held = F.max_pool2d((alpha > THERE).float(), 2 * REACH + 1, 1, REACH)
    held = gaussian_blur(held, REACH / 2)
    flat = torch.stack([_affine_fit(p, a[0]) for p, a in zip(places, alpha, strict=True)])
    return flat + held * (places - flat)


def _affine_fit(places: Float[Tensor, "2 h w"], weight: Float[Tensor, "h w"]) -> Float[Tensor, "2 h w"]:
    """Return the affine function of the pixel that is nearest to the places where there is weight."""
    rows, columns = weight.shape
    y, x = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij")
    basis = torch.stack([torch.ones_like(x), x, y]).flatten(1).to(places).double()
    heavy = basis * weight.flatten()
    if float(weight.sum()) < LEAST_WEIGHT:
        return places
    found: Tensor = torch.linalg.solve(heavy @ basis.T, heavy @ places.flatten(1).double().T)
    return (found.T @ basis).view_as(places).to(places)


def _closed(seen: Float[Tensor, "f 1 h w"]) -> Float[Tensor, "f 1 h w"]:
    """Return how much is seen without thin dips: edges that lie a pixel apart hide nothing."""
    wide: Tensor = F.max_pool2d(seen, 5, 1, 2)
    closed: Tensor = -F.max_pool2d(-wide, 5, 1, 2)
    return closed


def _behind(
    atlas: Atlas, layer: int, shown: list[Float[Tensor, "f 3 h w"]], start: int, stop: int
) -> Float[Tensor, "f 3 h w"]:
    """Return what the layers behind one show together."""
    mattes = [_matte(atlas, number, start, stop) for number in range(layer + 1, len(atlas.mattes))]
    shares = shares_of(mattes) if mattes else [torch.ones_like(shown[-1][:, :1])]
    return torch.stack([s * c for s, c in zip(shares, shown[layer + 1 :], strict=True)]).sum(0)


def _edited_ground(
    atlas: Atlas,
    layer: int,
    ground: TexturePatch | None,
    behind: Float[Tensor, "f 3 h w"],
    start: int,
    stop: int,
) -> tuple[Float[Tensor, "f 3 h w"], Float[Tensor, "f 1 h w"]]:
    """Return what is behind the object after an edit of the background, and how much of that is the edit."""
    total, cover = behind, torch.zeros_like(behind[:, :1])
    if ground is None:
        return total, cover
    chart = atlas.charts[ground.chart]
    a, b = max(start, chart.start), min(stop, chart.stop)
    if a >= b:
        return total, cover
    window = PixelWindow(torch.zeros(b - a, 2, dtype=torch.int64), atlas.height, atlas.width)
    hiding = [1 - _matte(atlas, number, a, b) for number in range(layer + 1, len(atlas.mattes))]
    bare = torch.stack([torch.ones_like(behind[a - start : b - start, :1]), *hiding]).prod(0)
    blend = chart.blend[a - chart.start : b - chart.start, None, None, None]
    read = ground.at(chart.part(a, b).uv(window)) * blend
    span = slice(a - start, b - start)
    total, cover = total.clone(), cover.clone()
    total[span] += bare * (read[:, :3] * chart.gains(window, a, b) - read[:, 3:] * behind[span])
    cover[span] = bare * read[:, 3:]
    return total, cover


def _matte(atlas: Atlas, layer: int, start: int, stop: int) -> Float[Tensor, "f 1 h w"]:
    return torch.from_numpy(atlas.mattes[layer].frames(start, stop)).to(atlas.device).float() / 255


def _inside(places: Float[Tensor, "f 2 h w"], crop: Crop) -> Bool[Tensor, "f 1 h w"]:
    last = places.new_tensor([crop.width - 0.5, crop.height - 0.5])[:, None, None]
    return ((places > -0.5) & (places < last)).all(1, keepdim=True)


def _bytes(picture: Float[Tensor, "1 3 y x"]) -> UInt8[np.ndarray, "1 3 y x"]:
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def atlas_of(video: Video, params: DiffusionAtlasParams, run: Run) -> Atlas:
    """Return the clip's atlas, of one picture an object."""
    marks = marks_from(
        box=params.box, stroke=params.stroke, polygon=params.polygon, outside=params.outside
    ) + drawn_marks(params.drawn, video)
    return atlas_for(
        video,
        run,
        file=params.atlas,
        masks=[params.mask] if params.mask else [],
        marks=marks,
        segmenter=segmenter_named(params.segmenter, run) if marks else None,
        settings=AtlasSettings(charts=1),
    )


def check_references(video: Video, params: DiffusionAtlasParams) -> None:
    """Refuse a reference that is a frame of the clip, at whatever size: it says nothing new.

    Raises:
        ParamsError: names the frame.
    """
    small = tracking_size(video.height, video.width, COMPARED_AT)
    for path in params.references:
        picture = read_rgb(path)
        if tracking_size(picture.shape[1], picture.shape[2], COMPARED_AT) != small:
            continue
        shown = shrink_pictures(picture[None], *small)[0].astype(np.int16)
        for t in range(len(video)):
            off = np.abs(shrink_pictures(video.frames[t : t + 1], *small)[0] - shown)
            if off.mean() < SAME[0] and np.quantile(off, 0.99) < SAME[1]:
                raise ParamsError(
                    f"the reference is {video.named_frames([t])} of the clip",
                    hint="give a picture of what it should look like",
                )


def render(
    atlas: Atlas, video: Video, look: Look, ground: TexturePatch | None, warp: Warp | None, run: Run
) -> tuple[UInt8[np.ndarray, "f 3 h w"], Bool[np.ndarray, "f 1 h w"]]:
    """Return the edited frames, and where they may differ; elsewhere they are the source's, bit for bit."""
    frames = run.scratch("edited", video.frames.shape)
    touched = run.scratch("touched", (len(video), 1, video.height, video.width), np.bool_)
    for step in run.steps("render", list(frame_blocks(0, len(video)))):
        a, b = step.item
        view = View.of(atlas, video, look.crop, look.old_matte, ground, a, b)
        made, where, _ = view.show(look) if warp is None else view.show(look, warp)
        frames[a:b] = (made.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        touched[a:b] = where.cpu().numpy()
        np.copyto(frames[a:b], video.frames[a:b], where=~touched[a:b])
    return frames, touched
