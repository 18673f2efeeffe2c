"""Edits of an atlas: from painted frames or painted textures, over every chart, into every frame.

A painted frame is fetched into texture space: each texel finds its pixel in that frame (`Mapping.invert`) and
reads it, so there are no holes and nothing is drawn twice. Several frames are solved together: a texel's
colour is the least-squares answer to all frames that painted it, weighted by how well each sees it. Charts of
one object hand edits on through a frame that both map.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Mapping as Pairs
from dataclasses import dataclass, replace
from typing import Final, Literal, final

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

from retouch.atlas.atlas import Atlas, Chart
from retouch.atlas.mapping import PixelWindow, texel_area
from retouch.atlas.pyramid import frame_blocks
from retouch.atlas.textures import as_texture, sample_texture
from retouch.errors import ParamsError
from retouch.media.masks import soft_edge
from retouch.video import Video, release_pages, trim_memory

Mode = Literal["over", "delta", "replace"]

FINENESS: Final = 2.5
"""Texels of an edit for each pixel of a chart's reference frame: two readings in a row lose little at
this."""
COARSE: Final = 4
"""Every which texel is inverted exactly; the inverse is smooth and is interpolated between."""
MISS: Final = 1.0
"""Texels by which an inverted position may be off before it counts as not there."""
CARRIED: Final = 0.25
"""Weight of what another chart hands on, beside what a frame painted directly."""
OWN: Final = 0.25
"""Share of a pixel below which paint on it says nothing about a layer: soft edges would leave specks."""
SCRAP: Final = 30
"""Pixels below which a piece of paint over a layer's edge is left out, if it is an eighth of its stroke."""
EDGE_REACH: Final = 3
"""Pixels around the pieces of a layer's paint that count as their soft edge."""
LEAST: Final = 1 / 512
"""Strength below which an edit cannot change a byte."""


@final
@dataclass(frozen=True, eq=False)
class PaintedFrame:
    """A painted frame: colours, or signed differences in mode `delta`, and where they hold."""

    frame: int
    colours: Float[Tensor, "3 h w"]
    cover: Float[Tensor, "1 h w"]


@final
@dataclass(frozen=True, eq=False)
class TexturePatch:
    """An edit of a rectangle of one chart's texture, finer than the texture."""

    chart: int
    corner: tuple[float, float]
    """Texel of the chart where the patch's first texel lies, x then y."""
    fineness: float
    """Texels of the patch for each of the chart."""
    picture: Float[Tensor, "4 v u"]
    """Colours times cover, and cover."""
    weight: Float[Tensor, "1 v u"]
    """How well each texel is known; only `merge_patches` reads it."""

    def at(self, uv: Float[Tensor, "f 2 h w"]) -> Float[Tensor, "f 4 h w"]:
        """Read the patch at positions in the chart's texture; nothing outside."""
        corner = uv.new_tensor(self.corner)[:, None, None]
        inside = (uv - corner) * self.fineness
        last = uv.new_tensor([self.picture.shape[2] - 1, self.picture.shape[1] - 1])[:, None, None]
        there = ((inside > -1) & (inside < last + 1)).all(1, keepdim=True)
        return sample_texture(self.picture, inside) * there

    def positions(self) -> Float[Tensor, "1 2 v u"]:
        """Return where the patch's own texels lie in the chart's texture."""
        x, y = (
            torch.arange(n).to(self.picture) / self.fineness + first
            for n, first in zip(self.picture.shape[:0:-1], self.corner, strict=True)
        )
        return torch.stack(torch.meshgrid(x, y, indexing="xy"))[None]


def painted_key(
    source: UInt8[np.ndarray, "h w 3"],
    picture: UInt8[np.ndarray, "hh ww c"],
    frame: int,
    *,
    mode: Mode = "over",
    tolerance: int = 3,
    feather: float = 0.0,
) -> PaintedFrame:
    """Take what was painted over a frame: where it differs by more than `tolerance` levels.

    Raises:
        ParamsError: the picture has another size than the frame.
    """
    check_painted_size(frame, picture.shape[:2], source.shape[:2])
    below: np.ndarray = source.astype(np.float32)
    above: np.ndarray = picture[..., :3].astype(np.float32)
    if picture.shape[2] == 4:
        share = picture[..., 3:].astype(np.float32) / 255
        above = above * share + below * (1 - share)
    differs = np.uint8(255) * (np.abs(above - below).max(2) > tolerance)
    cover = torch.from_numpy(soft_edge(differs[None, None], feather)[0])
    value = above - below if mode == "delta" else above
    return PaintedFrame(frame, torch.from_numpy(value.transpose(2, 0, 1) / 255).float(), cover)


def check_painted_size(frame: int, picture: tuple[int, ...], clip: tuple[int, ...]) -> None:
    """Refuse a painted frame of another height and width than the clip's.

    Raises:
        ParamsError: says both sizes.
    """
    if picture != clip:
        raise ParamsError(
            f"the picture for frame {frame} is {picture[1]}x{picture[0]}, the clip {clip[1]}x{clip[0]}",
            hint=f"paint over the frame itself: retouch keyframe CLIP --at {frame} -o k{frame}.png",
        )


@torch.no_grad()
def patches_from_frames(
    atlas: Atlas, keys: Sequence[PaintedFrame], layers: Sequence[int] | None = None
) -> list[TexturePatch]:
    """Solve painted frames into one patch for every chart that shows what was painted.

    Args:
        atlas: The decomposed clip.
        keys: The painted frames.
        layers: Layers that may be edited; all if not given.
    """
    direct: dict[int, list[TexturePatch]] = {}
    wholly = [[key] * len(atlas.names) if layers else without_scraps(atlas, key) for key in keys]
    for index, chart in enumerate(atlas.charts):
        if layers is not None and chart.layer not in layers:
            continue
        own = [per_layer[chart.layer] for per_layer in wholly]
        seen = [k for k in own if chart.start <= k.frame < chart.stop and k.cover.any()]
        found = [fetch_patch(atlas, index, key) for key in seen]
        direct[index] = [patch for patch in found if patch is not None]
    return propagate_to_neighbours(atlas, direct)


def without_scraps(atlas: Atlas, key: PaintedFrame) -> list[PaintedFrame]:
    """Return what a painted frame says about each layer, without the slivers that ran over a layer's edge.

    They would stay behind as specks when the object moves on. A piece of a stroke is one if it is tiny and
    most of the stroke lies on another layer.
    """
    painted = key.cover[0].cpu().numpy() > 0
    shares = [share[0, 0].cpu().numpy() for share in atlas.shares(key.frame, key.frame + 1)]
    strokes, stroke = cv2.connectedComponents(painted.astype(np.uint8))
    areas = np.stack([np.bincount(stroke[painted], s[painted], strokes) for s in shares])
    tiny = np.minimum(areas.sum(0) / 8, SCRAP)[stroke]
    made = []
    for layer, share in enumerate(shares):
        _, piece = cv2.connectedComponents((painted & (share > 0.5)).astype(np.uint8))
        large = (piece > 0) & (np.bincount(piece.ravel())[piece] >= tiny)
        # What is kept is kept with its soft edge.
        soft = cv2.dilate(large.astype(np.uint8), np.ones((2 * EDGE_REACH + 1,) * 2, np.uint8)) > 0
        kept = torch.from_numpy(soft | (areas.argmax(0)[stroke] == layer)).to(key.cover.device)
        made.append(replace(key, cover=key.cover * kept))
    return made


def propagate_to_neighbours(atlas: Atlas, direct: Pairs[int, Sequence[TexturePatch]]) -> list[TexturePatch]:
    """Let neighbouring charts of each layer pass their edits to each other, first to last and back."""
    made = []
    for layer in range(len(atlas.names)):
        row = sorted((c.start, i) for i, c in enumerate(atlas.charts) if c.layer == layer)
        order = [i for _, i in row]
        onward, backward = _passed_colours(atlas, order, direct), _passed_colours(atlas, order[::-1], direct)
        for i in order:
            parts = [*direct.get(i, []), *onward.get(i, []), *backward.get(i, [])]
            if parts:
                made.append(merge_patches(parts))
    return made


def _passed_colours(
    atlas: Atlas, order: Sequence[int], direct: Pairs[int, Sequence[TexturePatch]]
) -> dict[int, list[TexturePatch]]:
    """Return what each chart gets from the one before it in an order."""
    got: dict[int, list[TexturePatch]] = {}
    for before, after in itertools.pairwise(order):
        parts = [*direct.get(before, []), *got.get(before, [])]
        propagated = patch_to_neighbour(atlas, merge_patches(parts), after) if parts else None
        if propagated is not None:
            got[after] = [propagated]
    return got


def fetch_patch(atlas: Atlas, index: int, key: PaintedFrame) -> TexturePatch | None:
    """Fetch a painted frame into a chart's texture, or nothing if the chart shows nothing of the paint."""
    chart = atlas.charts[index]
    part = chart.part(key.frame, key.frame + 1)
    window = part.window()
    share = atlas.shares(key.frame, key.frame + 1)[chart.layer]
    cover = key.cover[None].to(share) * (share > 0.02)
    uv = part.uv(window)
    box = _patch_box(uv, window.cut(cover) > 0, chart)
    if box is None:
        return None
    picture = torch.cat([key.colours.to(share) * key.cover.to(share), key.cover.to(share)])
    both = window.cut(torch.cat([picture, share[0]])[None])[0]
    return _read_back(atlas, index, key.frame, box, window, both)


def patch_to_neighbour(atlas: Atlas, patch: TexturePatch, after: int) -> TexturePatch | None:
    """Hand a chart's edit to its neighbour, through the frame where one fades into the other."""
    old, new = atlas.charts[patch.chart], atlas.charts[after]
    first, last = max(old.start, new.start), min(old.stop, new.stop)
    if first >= last:
        return None
    both = torch.minimum(
        old.blend[first - old.start : last - old.start], new.blend[first - new.start : last - new.start]
    )
    t = first + int(both.argmax())
    window = new.part(t, t + 1).window()
    shown = patch.at(old.part(t, t + 1).uv(window))
    share = window.cut(atlas.shares(t, t + 1)[new.layer])
    box = _patch_box(new.part(t, t + 1).uv(window), (shown[:, 3:] > LEAST) & (share > 0.02), new)
    if box is None:
        return None
    handed = _read_back(atlas, after, t, box, window, torch.cat([shown, share], 1)[0])
    return replace(handed, weight=handed.weight * CARRIED)


def _patch_box(
    uv: Float[Tensor, "1 2 h w"], wanted: Bool[Tensor, "1 1 h w"], chart: Chart
) -> tuple[float, float, float, float] | None:
    """Return the rectangle of the chart that holds all wanted pixels, with a margin."""
    points = uv[0].movedim(0, 2)[wanted[0, 0]]
    if not len(points):
        return None
    v, u = chart.texture.shape[1:]
    low = (points.amin(0) - 2).clamp(min=0)
    high = (points.amax(0) + 2).minimum(points.new_tensor([u - 1, v - 1]))
    return (*low.floor().tolist(), *high.ceil().tolist())


def _read_back(
    atlas: Atlas,
    index: int,
    t: int,
    box: tuple[float, float, float, float],
    window: PixelWindow,
    picture: Float[Tensor, "5 h w"],
) -> TexturePatch:
    """Let every texel of a rectangle read the pixel of frame `t` that shows it.

    The picture is colours times cover, cover, and the layer's share. A texel is known by how much of its
    pixel is the layer's, and by how many pixels of the frame there are to a texel.
    """
    chart = atlas.charts[index]
    fineness = max(1.0, FINENESS / chart.scale)
    columns = int((box[2] - box[0]) * fineness) + 2
    rows = int((box[3] - box[1]) * fineness) + 2
    y = torch.linspace(0, rows - 1, max(2, -(-rows // COARSE) + 1)).to(picture) / fineness + box[1]
    x = torch.linspace(0, columns - 1, max(2, -(-columns // COARSE) + 1)).to(picture) / fineness + box[0]
    wanted = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)
    points, miss = chart.mapping.invert(t - chart.start, wanted)
    lost = (miss > MISS) | ~points.isfinite().all(1)
    points = torch.where(lost[:, None], torch.full_like(points, -1e4), points)
    coarse = points.T.reshape(1, 2, len(y), len(x))
    at = F.interpolate(coarse, size=(rows, columns), mode="bilinear", align_corners=True)
    at = at - window.corners[0].to(at)[:, None, None]
    limit = at.new_tensor([window.width - 0.5, window.height - 0.5])[:, None, None]
    inside = ((at > -0.5) & (at < limit)).all(1, keepdim=True)
    read = sample_texture(picture, at)[0] * inside[0]
    weight = read[4:] * (read[4:] > OWN) * _seen_detail(at)
    return TexturePatch(index, (box[0], box[1]), fineness, read[:4] * (weight > 0), weight)


def _seen_detail(at: Float[Tensor, "1 2 v u"]) -> Float[Tensor, "1 v u"]:
    """Return how many pixels of the frame there are to a texel, which is how well the frame sees it."""
    along_u = F.pad(torch.diff(at, dim=3), (0, 1, 0, 0), mode="replicate")
    along_v = F.pad(torch.diff(at, dim=2), (0, 0, 0, 1), mode="replicate")
    return texel_area(torch.stack([along_u, along_v], 2)).abs().clamp(1e-3, 10)


def merge_patches(parts: Sequence[TexturePatch]) -> TexturePatch:
    """Join the patches of one chart into one; where all agree, that is what comes out.

    Minimises the sum over patches of weight * cover * (colour - c)^2, and the same for the cover: what one
    frame painted and another left alone is painted.
    """
    if len(parts) == 1:
        return parts[0]
    fineness = parts[0].fineness
    ends = [
        (
            p.corner[0] + (p.picture.shape[2] - 1) / p.fineness,
            p.corner[1] + (p.picture.shape[1] - 1) / p.fineness,
        )
        for p in parts
    ]
    left, top = min(p.corner[0] for p in parts), min(p.corner[1] for p in parts)
    columns = int((max(e[0] for e in ends) - left) * fineness) + 2
    rows = int((max(e[1] for e in ends) - top) * fineness) + 2
    like = parts[0].picture
    x, y = torch.arange(columns).to(like) / fineness + left, torch.arange(rows).to(like) / fineness + top
    uv = torch.stack(torch.meshgrid(x, y, indexing="xy"))[None]
    sums, weights = like.new_zeros(4, rows, columns), like.new_zeros(1, rows, columns)
    best = torch.zeros_like(weights)
    for part in parts:
        picture = part.at(uv)[0]
        weight = replace(part, picture=part.weight.expand(4, -1, -1)).at(uv)[0, :1]
        sums += weight * picture * torch.cat([torch.ones_like(picture[:3]), picture[3:]])
        weights += weight * picture[3:]
        best = best.maximum(weight)
    cover = sums[3:] / weights.clamp(min=1e-9)
    colours = sums[:3] / weights.clamp(min=1e-9)
    return TexturePatch(parts[0].chart, (left, top), fineness, torch.cat([colours * cover, cover]), best)


@torch.no_grad()
def patches_from_textures(
    atlas: Atlas, pictures: Pairs[int, UInt8[np.ndarray, "v u c"]], mode: Mode
) -> list[TexturePatch]:
    """Take edits that were painted on textures, by chart, and hand them on to the neighbouring charts.

    In mode `over` a picture is paint with transparency, as large as the texture or a whole number of times
    larger; in the other modes it replaces the texture, and only where it differs.

    Raises:
        ParamsError: a picture's shape is not the texture's.
    """
    direct: dict[int, list[TexturePatch]] = {}
    for index, picture in pictures.items():
        chart = atlas.charts[index]
        v, u = chart.texture.shape[1:]
        times = picture.shape[1] / u
        if times not in range(1, 9) or picture.shape[0] != v * times:
            raise ParamsError(
                f"picture {index} is {picture.shape[1]}x{picture.shape[0]}, its texture {u}x{v}",
                hint="paint over what `retouch atlas export` wrote, and keep its size",
            )
        whole = as_texture(picture).to(chart.texture)
        colours, cover = whole[:3], whole[3:] if len(whole) == 4 else torch.ones_like(whole[:1])
        if mode != "over":
            below = F.interpolate(chart.texture[None], (picture.shape[0], picture.shape[1]), mode="bilinear")[
                0
            ]
            cover = cover * ((colours - below.clamp(0, 1)).abs().amax(0, keepdim=True) > 1.5 / 255)
            colours = colours - below if mode == "delta" else colours
        edge = 0.5 / times - 0.5
        made = TexturePatch(
            index, (edge, edge), times, torch.cat([colours * cover, cover]), torch.ones_like(cover)
        )
        direct[index] = [made]
    return propagate_to_neighbours(atlas, direct)


@final
@dataclass(frozen=True)
class Period:
    """The frames that an edit shows in, and how many it takes to come and to go."""

    start: int
    stop: int
    fade_in: int = 0
    fade_out: int = 0

    def strength(self, t: int) -> float:
        """Return how strong the edit is in a frame, 0 to 1."""
        if not self.start <= t < self.stop:
            return 0.0
        coming = (t - self.start + 1) / (self.fade_in + 1)
        going = (self.stop - t) / (self.fade_out + 1)
        return min(1.0, coming, going)


@torch.no_grad()
def render_edit(
    atlas: Atlas,
    video: Video,
    patches: Sequence[TexturePatch],
    mode: Mode = "over",
    period: Period | None = None,
    direct: Callable[[int, int], Float[Tensor, "f 4 h w"]] | None = None,
) -> Iterator[tuple[int, UInt8[np.ndarray, "f 3 h w"], Bool[np.ndarray, "f 1 h w"]]]:
    """Yield the edited clip block by block: its first frame's number, frames, and where they may differ.

    Where no paint reaches, frames are the source's, bit for bit. `direct` gives paint for some frames that
    does not come through the textures: colours times cover, and cover.
    """
    period = period or Period(0, len(video))
    for a, b in frame_blocks(0, len(video)):
        source = np.array(video.frames[a:b])
        release_pages(video.frames)
        trim_memory()
        strengths = [period.strength(t) for t in range(a, b)]
        beside = direct(a, b) if direct and any(strengths) else None
        yield a, *render_frames(atlas, source, a, patches, mode, strengths, beside)


@torch.no_grad()
def render_frames(
    atlas: Atlas,
    source: UInt8[np.ndarray, "f 3 h w"],
    first: int,
    patches: Sequence[TexturePatch],
    mode: Mode = "over",
    strengths: Sequence[float] = (),
    direct: Float[Tensor, "f 4 h w"] | None = None,
) -> tuple[UInt8[np.ndarray, "f 3 h w"], Bool[np.ndarray, "f 1 h w"]]:
    """Return the frames `source`, which begin with frame `first`, edited, and where they may differ."""
    strength = torch.tensor(strengths or [1.0] * len(source))
    if (not patches and direct is None) or not strength.any():
        return source, np.zeros((len(source), 1, *source.shape[2:]), bool)
    below = torch.from_numpy(source).to(atlas.device).float() / 255
    strength = strength.to(below)[:, None, None, None]
    change, cover = _layer_changes(atlas, patches, mode, below, first, first + len(source))
    if direct is not None:
        change, cover = change + direct[:, :3] - direct[:, 3:] * below, cover + direct[:, 3:]
    touched = cover * strength > LEAST
    edited = ((below + strength * change).clamp(0, 1) * 255).round().to(torch.uint8)
    made = torch.where(touched, edited, torch.from_numpy(source).to(edited.device))
    return made.cpu().numpy(), touched.cpu().numpy()


def _layer_changes(
    atlas: Atlas, patches: Sequence[TexturePatch], mode: Mode, below: Float[Tensor, "f 3 h w"], a: int, b: int
) -> tuple[Float[Tensor, "f 3 h w"], Float[Tensor, "f 1 h w"]]:
    """Return what to add to frames, and how much of each pixel the edit makes up."""
    size = (atlas.height, atlas.width)
    change, cover = torch.zeros_like(below), torch.zeros_like(below[:, :1])
    own = atlas.shares(a, b)
    shown = atlas.reconstruct(a, b) if mode == "replace" else below
    power = torch.stack(own).square().sum(0)
    for patch in patches:
        chart = atlas.charts[patch.chart]
        s, e = max(a, chart.start), min(b, chart.stop)
        if s >= e:
            continue
        frames = slice(s - a, e - a)
        part = chart.part(s, e)
        window = part.window()
        blend = chart.blend[s - chart.start : e - chart.start, None, None, None]
        weight = window.cut(own[chart.layer][frames]) * blend
        read = patch.at(part.uv(window))
        if mode == "over":
            add = read[:, :3] - read[:, 3:] * window.cut(below[frames])
        elif mode == "delta":
            add = read[:, :3] * chart.gains(window, s, e)
        else:
            # The layer's own colours go out and the new ones in; of what the atlas does not explain, a layer
            # takes with it what least squares say is its own: most where it makes up most of the pixel.
            new = read[:, :3] * chart.gains(window, s, e)
            rest = window.cut((shown[frames] - below[frames]) * own[chart.layer][frames] / power[frames])
            old = read[:, 3:] * (_layer_colours(chart, window, s, e) - rest)
            add = new - old
        change[frames] += window.paste(weight * add, *size)
        cover[frames] += window.paste(weight * read[:, 3:], *size)
    return change, cover


def _layer_colours(chart: Chart, window: PixelWindow, start: int, stop: int) -> Float[Tensor, "f 3 h w"]:
    return sample_texture(chart.texture, chart.part(start, stop).uv(window)) * chart.gains(
        window, start, stop
    )


@torch.no_grad()
def position_patches(
    atlas: Atlas, frame: int, layer: int, wanted: Bool[np.ndarray, "h w"] | None = None
) -> list[TexturePatch]:
    """Return patches of a layer that hold, in place of paint, where each pixel of a frame lies in it.

    If some places are wanted, only those are held.
    """
    y, x = torch.meshgrid(torch.arange(atlas.height), torch.arange(atlas.width), indexing="ij")
    ramp = torch.stack([x / atlas.width, y / atlas.height, torch.zeros_like(x)])
    return _patches_of_picture(atlas, ramp, frame, layer, wanted)


@torch.no_grad()
def read_positions(
    atlas: Atlas, patches: Sequence[TexturePatch], start: int, stop: int
) -> tuple[Float[Tensor, "f 2 h w"], Float[Tensor, "f 1 h w"]]:
    """Return the place, x then y, that each pixel shows of the frame of `position_patches`, and its cover.

    Partial cover is divided out, so that places are exact wherever the cover is not zero.
    """
    nothing = torch.zeros(stop - start, 3, atlas.height, atlas.width, device=atlas.device)
    places, cover = _layer_changes(atlas, patches, "over", nothing, start, stop)
    size = places.new_tensor([atlas.width, atlas.height])[:, None, None]
    return places[:, :2] / cover.clamp(min=1e-6) * size, cover


def propagate_frame(atlas: Atlas, video: Video, frame: int, layer: int) -> list[TexturePatch]:
    """Return what one whole frame says about a layer, as patches: what painting over all of it would do."""
    picture = torch.tensor(np.array(video.frames[frame])).to(atlas.device).float() / 255
    return _patches_of_picture(atlas, picture, frame, layer)


def _patches_of_picture(
    atlas: Atlas,
    picture: Float[Tensor, "3 h w"],
    frame: int,
    layer: int,
    wanted: Bool[np.ndarray, "h w"] | None = None,
) -> list[TexturePatch]:
    """Return what a picture says about a layer where a frame shows mostly that layer, and is wanted."""
    share = atlas.shares(frame, frame + 1)[layer][0]
    own = share > 0.5
    if wanted is not None:
        own = own & torch.from_numpy(wanted).to(own.device)
    key = PaintedFrame(frame, picture.to(share), own.float())
    return patches_from_frames(atlas, [key], [layer])
