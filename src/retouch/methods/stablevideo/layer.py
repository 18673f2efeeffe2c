"""What key frames say of a layer: which to take, what they decide of its textures, and who draws them.

A key frame's colours are taken well inside the layer, brought to the light of the atlas, and let go on beyond
the layer's edge; so no rim of the old colours stays around what is edited.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final, Protocol, final, runtime_checkable

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

from retouch.artifacts import artifact
from retouch.atlas.atlas import Atlas
from retouch.atlas.edit import PaintedFrame, TexturePatch, patches_from_frames
from retouch.atlas.keyframes import editor_answer
from retouch.atlas.prepare import drawn_marks
from retouch.atlas.textures import fill_unseen, splat_values
from retouch.diffusion.image_edit import descent, edit_picture, goal_of
from retouch.diffusion.resize import resized
from retouch.diffusion.tiles import Tile, cover_with_tiles
from retouch.errors import EmptyMask
from retouch.methods.stablevideo.spec import StableVideoParams
from retouch.models.annotate import DepthReader, canny
from retouch.models.image import Control, StableDiffusion
from retouch.models.image_shapes import working_size
from retouch.models.picture_edit import PictureEditor
from retouch.run import Run
from retouch.tracking.register import register_answer
from retouch.video import Video

LAYER_PIXEL: Final = 0.5
"""A layer's share of a pixel from which the pixel is the layer's to edit."""
WHOLLY_OWN: Final = 0.95
"""Share from which a pixel shows the layer alone, so that its colours may be carried."""
FRAMES_TRIED: Final = 16
"""Frames that are looked at when key frames are chosen."""
CELL_SIDE: Final = 4
"""Side, in texels, of the cells that count as seen when a pixel falls into them."""
LEAST_NEW: Final = 0.02
"""Share of a layer that a key frame must add to what is decided."""
RIMS_BESIDE: Final = 4
"""Rims around an object in which a network draws on the background what belongs to the object; and as many
along the edge of its picture, where it draws as nowhere else."""
LEAST_LIGHT: Final = 0.2
"""Gain below which no colour is brought to the atlas's light: it would be noise."""
BESIDE: Final = 0.02
"""Cover of such pixels in a key frame: they count where no key frame shows the place better."""
FADE: Final = 1 / 8
"""Part of a picture's shorter side over which a network's miss of what it was given fades out beside that."""
WORTH_TILES: Final = 1.25
"""Times larger than the model knows from which a picture is drawn in tiles; smaller ones are shrunk."""
DECIDED: Final = 0.5
"""Cover from which an earlier key frame's answer stands."""


def choose_keyframes(atlas: Atlas, layer: int, most: int) -> list[int]:
    """Return frames in order of what each adds: greedily, by texels that none before has shown."""
    step = max(1, atlas.frames // FRAMES_TRIED)
    seen = {t: cells_shown(atlas, layer, t) for t in range(step // 2, atlas.frames, step)}
    total = int(torch.stack(list(seen.values())).any(0).sum())
    if not total:
        raise EmptyMask(
            f"no frame shows the {atlas.names[layer]}", hint="look at its mask: retouch mask --help"
        )
    have, taken = torch.zeros_like(next(iter(seen.values()))), list[int]()
    while len(taken) < most:
        gains = {t: int((cells & ~have).sum()) for t, cells in seen.items()}
        best = max(gains, key=lambda t: gains[t])
        if gains[best] <= LEAST_NEW * total:
            break
        taken.append(best)
        have |= seen[best]
    return taken


def cells_shown(atlas: Atlas, layer: int, t: int) -> Bool[Tensor, " n"]:
    """Return which cells of all a layer's textures a frame shows."""
    own = (atlas.shares(t, t + 1)[layer] > LAYER_PIXEL).float()
    found = []
    for chart in (c for c in atlas.charts if c.layer == layer):
        v, u = (-(-n // CELL_SIDE) + 1 for n in chart.texture.shape[1:])
        cells = torch.zeros(1, v, u)
        if chart.covers(t):
            part = chart.part(t, t + 1)
            window = part.window()
            cells = splat_values(window.cut(own), part.uv(window) / CELL_SIDE, v, u).cpu()
        found.append((cells > 0).flatten())
    return torch.cat(found)


def decided_colours(
    atlas: Atlas,
    layer: int,
    keys: Sequence[PaintedFrame],
    t: int,
    own: Bool[Tensor, "1 1 h w"],
    outer: Bool[Tensor, "1 1 h w"],
) -> tuple[Float[Tensor, "1 3 h w"], Bool[Tensor, "1 1 h w"]]:
    """Return what key frames say about a frame, and where they say nothing of what is a layer's own.

    What they show at their own edge stands at this one's `outer` pixels, which would be drawn no better.
    """
    patches = patches_from_frames(atlas, without_light(atlas, layer, keys), [layer])
    colours, _ = render_patches(atlas, layer, [extend_patch(atlas, patch) for patch in patches], t)
    _, cover = render_patches(atlas, layer, patches, t)
    # The soft edge of what was carried is no place that nobody has seen: a rim is thin.
    decided = (cover >= DECIDED) | outer & (cover >= BESIDE / 2)
    missing = (own & ~decided).numpy()[0, 0].astype(np.uint8)
    side = 2 * rim_width(atlas) + 1
    wide = cv2.morphologyEx(missing, cv2.MORPH_OPEN, np.ones((side, side), np.uint8)) > 0
    return colours, torch.from_numpy(wide)[None, None] if patches else own


def render_patches(
    atlas: Atlas, layer: int, patches: Sequence[TexturePatch], t: int
) -> tuple[Float[Tensor, "1 3 h w"], Float[Tensor, "1 1 h w"]]:
    """Render patches of a layer into a frame: colours in that frame's light, and how far each is covered."""
    total = torch.zeros(1, 4, atlas.height, atlas.width, device=atlas.device)
    for patch in patches:
        chart = atlas.charts[patch.chart]
        if chart.layer == layer and chart.covers(t):
            part = chart.part(t, t + 1)
            window = part.window()
            read = chart.blend[t - chart.start] * patch.at(part.uv(window))
            lit = torch.cat([read[:, :3] * chart.gains(window, t, t + 1), read[:, 3:]], 1)
            total += window.paste(lit, atlas.height, atlas.width)
    cover = total[:, 3:].cpu()
    return (total[:, :3].cpu() / cover.clamp(min=1e-6)).clamp(0, 1), cover


def without_light(atlas: Atlas, layer: int, keys: Sequence[PaintedFrame]) -> list[PaintedFrame]:
    """Return key frames in the light of the atlas, so that each frame's own light falls on what they show."""
    made = []
    for key in keys:
        light = torch.zeros(1, 3, atlas.height, atlas.width, device=atlas.device)
        for chart in atlas.charts_of(layer, key.frame, key.frame + 1):
            window = chart.part(key.frame, key.frame + 1).window()
            gains = chart.blend[key.frame - chart.start] * chart.gains(window, key.frame, key.frame + 1)
            light += window.paste(gains, atlas.height, atlas.width)
        made.append(replace(key, colours=key.colours.to(light) / light[0].clamp(min=LEAST_LIGHT)))
    return made


def inner_pixels(share: Float[Tensor, "1 1 h w"], margin: int) -> Bool[Tensor, "1 1 h w"]:
    """Return the pixels whose colours are the layer's alone, or of a layer too thin for that its own ones.

    A network's picture runs over an edge by a pixel or two.
    """
    own = share > LAYER_PIXEL
    beside = F.max_pool2d((share <= WHOLLY_OWN).float(), 2 * margin + 1, 1, margin) > 0
    solid = own & ~beside
    return solid if 4 * solid.sum() > own.sum() else own


def key_cover(
    atlas: Atlas, layer: int, share: Float[Tensor, "1 1 h w"], outer: Bool[Tensor, "1 1 h w"]
) -> Float[Tensor, "1 1 h w"]:
    """Return how far each pixel of a key frame speaks for its layer.

    A little right beside an object, and near the edge of what the model was shown.
    """
    sure = (inner_pixels(share, layer_margin(atlas, layer)) & ~outer).float()
    return sure.maximum(BESIDE * inner_pixels(share, rim_width(atlas)).float())


def outer_pixels(atlas: Atlas, place: tuple[slice, slice, slice, slice]) -> Bool[Tensor, "1 1 h w"]:
    """Return the pixels that are not well inside the part of a frame that a model is shown.

    At its own edge a network sees nothing beyond, and draws lighter or darker.
    """
    border, (rows, columns) = RIMS_BESIDE * rim_width(atlas), place[2:]
    outer = torch.ones(1, 1, atlas.height, atlas.width, dtype=torch.bool)
    outer[..., rows.start + border : rows.stop - border, columns.start + border : columns.stop - border] = (
        False
    )
    return outer


def extend_patch(atlas: Atlas, patch: TexturePatch) -> TexturePatch:
    """Let a patch go on beyond its edge for a few pixels, so that no rim of the old colours stays."""
    chart = atlas.charts[patch.chart]
    reach = math.ceil(2 * (layer_margin(atlas, chart.layer) + 1) * chart.scale * patch.fineness)
    picture = F.pad(patch.picture, (reach,) * 4)
    known = (picture[3:] > BESIDE / 2).float()
    colours = fill_unseen(picture[:3] / picture[3:].clamp(min=BESIDE / 2) * known, known)
    kernel = 2 * reach + 1
    near = F.max_pool2d(known[None], (kernel, 1), 1, (reach, 0))
    near = F.max_pool2d(near, (1, kernel), 1, (0, reach))[0]
    x, y = patch.corner
    corner = (x - reach / patch.fineness, y - reach / patch.fineness)
    weight = F.pad(patch.weight, (reach,) * 4)
    return replace(patch, corner=corner, picture=torch.cat([colours * near, near]), weight=weight)


def brush_out(
    atlas: Atlas, patch: TexturePatch, layer: int, video: Video, params: StableVideoParams
) -> TexturePatch:
    """Return a patch without what a brush over a frame says is to stay as it was."""
    blank = torch.zeros(3, atlas.height, atlas.width)
    strokes = [
        PaintedFrame(mark.frame, blank, torch.from_numpy(np.array(mark.drawn)).float()[None] / 255)
        for mark in drawn_marks(params.brush, video)
    ]
    for stroke in patches_from_frames(atlas, strokes, [layer]):
        if stroke.chart == patch.chart:
            patch = replace(patch, picture=patch.picture * (1 - stroke.at(patch.positions())[0, 3:]))
    return patch


def rim_width(atlas: Atlas) -> int:
    """Return how many pixels wide the soft edge of a layer is."""
    return max(1, round(min(atlas.height, atlas.width) / 160))


def layer_margin(atlas: Atlas, layer: int) -> int:
    """Return how far inside its edge a layer's colours are taken: an object is drawn over the background."""
    return rim_width(atlas) * (RIMS_BESIDE if layer == len(atlas.names) - 1 else 1)


@runtime_checkable
class KeyframeEditor(Protocol):
    """Who edits a key frame, or a part of one."""

    @property
    def least(self) -> int:
        """Pixels that each side of the part should have at least."""
        ...

    def edit(
        self,
        source: UInt8[np.ndarray, "1 3 h w"],
        seen: UInt8[np.ndarray, "1 3 h w"],
        own: Bool[np.ndarray, "1 1 h w"],
        known: Bool[np.ndarray, "1 1 h w"],
        *,
        prompt: str,
        noise: str,
        first: bool,
    ) -> UInt8[np.ndarray, "1 3 h w"]:
        """Return what is `seen` of a key frame edited where it is a layer's `own` and not `known`.

        Args:
            source: The key frame as it was.
            seen: The same, with what earlier key frames decided.
            own: Where it shows the layer.
            known: Where it shows what is decided, which stays.
            prompt: What to show, or to do.
            noise: The name of the noise that it begins with.
            first: Whether nothing is decided yet.
        """
        ...


@final
@dataclass(frozen=True, eq=False)
class WordsAndEdges:
    """A text-to-image model, held to the edges of the source, or to its depth: the paper's way."""

    sd: StableDiffusion
    control: Control | None
    params: StableVideoParams
    run: Run
    depth: DepthReader | None = None
    """What reads the depth that the control is shown; it is shown edges, if None."""
    scale: float = 1.0
    """How many times larger than the model knows pictures it may draw, in tiles."""

    @property
    def least(self) -> int:
        """Four times what the model cannot divide."""
        return 4 * self.sd.multiple

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size at which a picture is drawn: the model's, or as large as is allowed and of use."""
        times = min(self.scale, min(height, width) / self.sd.native)
        return working_size(
            height, width, round(self.sd.native * (times if times >= WORTH_TILES else 1)), self.sd.multiple
        )

    def edit(
        self,
        source: UInt8[np.ndarray, "1 3 h w"],
        seen: UInt8[np.ndarray, "1 3 h w"],
        own: Bool[np.ndarray, "1 1 h w"],
        known: Bool[np.ndarray, "1 1 h w"],
        *,
        prompt: str,
        noise: str,
        first: bool,
    ) -> UInt8[np.ndarray, "1 3 h w"]:
        """Return the key frame noised in part and denoised; what is decided is put back after every step."""
        del own
        sd, params = self.sd, self.params
        height, width = self.size(*source.shape[2:])
        inner = (height // sd.factor, width // sd.factor)
        tiles = len(tiles_over(inner, sd))
        if tiles > 1:
            self.run.notice(f"a background of {width}x{height} is drawn in {tiles} tiles, each at every step")
        return edit_keyframe(
            source,
            seen,
            known,
            prompt=prompt,
            negative_prompt=params.negative_prompt,
            sd=sd,
            control=self.control,
            depth=self.depth,
            edges=params.edges,
            steps=params.steps,
            guidance=params.guidance,
            strength=params.first_strength if first else params.strength,
            noise=self.run.noise(noise, torch.empty(1, 4, *inner)),
            run=self.run,
        ).picture


@final
@dataclass(frozen=True, eq=False)
class WordsAlone:
    """An editor of pictures, asked for what is not decided; its answer is laid over what it was shown."""

    editor: PictureEditor
    run: Run

    @property
    def least(self) -> int:
        """Enough for the answer to be placed."""
        return 64

    def edit(
        self,
        source: UInt8[np.ndarray, "1 3 h w"],
        seen: UInt8[np.ndarray, "1 3 h w"],
        own: Bool[np.ndarray, "1 1 h w"],
        known: Bool[np.ndarray, "1 1 h w"],
        *,
        prompt: str,
        noise: str,
        first: bool,
    ) -> UInt8[np.ndarray, "1 3 h w"]:
        """Return what was seen with the editor's answer on the layer, but where it is decided."""
        del source, noise, first
        shown = np.ascontiguousarray(seen[0].transpose(1, 2, 0))
        # What an answer shows at its edge is a mixture; that must not lie on the layer.
        side = 2 * math.ceil(min(shown.shape[:2]) / 80) + 1
        reach = cv2.dilate(own[0, 0].astype(np.uint8), np.ones((side, side), np.uint8)) > 0
        answer = editor_answer(
            shown,
            prompt,
            editor=self.editor,
            mask=reach & ~known[0, 0],
            references=(),
            seed=self.run.seed,
            run=self.run,
        )
        made = register_answer(shown, answer.picture, mask=reach)
        return joined(seen, made.picture.transpose(2, 0, 1)[None], known)


def tiles_over(inner: tuple[int, int], sd: StableDiffusion) -> Sequence[Tile]:
    """Return the tiles in which so many latents are drawn; none, where the model knows pictures as large."""
    side = sd.native // sd.factor
    return cover_with_tiles(inner, side) if min(inner) > side else ()


def joined(
    seen: UInt8[np.ndarray, "1 3 h w"], made: UInt8[np.ndarray, "1 3 h w"], known: Bool[np.ndarray, "1 1 h w"]
) -> UInt8[np.ndarray, "1 3 h w"]:
    """Return what is known of a picture as it was `seen`, and beside it what was `made`, without a step.

    A network shows what it was given a little lighter or darker. By how much is carried on beside it, and
    fades out.
    """
    if not known.any() or known.all():
        return np.where(known, seen, made)
    there = torch.from_numpy(known[0]).float()
    off = torch.from_numpy(seen[0].astype(np.float32) - made[0])
    away = cv2.distanceTransform((~known[0, 0]).astype(np.uint8), cv2.DIST_L2, 5)
    fading = np.clip(1 - away / (FADE * min(away.shape)), 0, 1)
    beside = made + fading * fill_unseen(off * there, there).numpy()
    return np.where(known, seen, beside.clip(0, 255).round().astype(np.uint8))


@final
@dataclass(frozen=True, eq=False)
class EditedKeyframe:
    """A key frame as the model left it."""

    picture: UInt8[np.ndarray, "1 3 h w"]


@artifact("keyframe", version=2)
def edit_keyframe(
    source: UInt8[np.ndarray, "1 3 h w"],
    seen: UInt8[np.ndarray, "1 3 h w"],
    known: Bool[np.ndarray, "1 1 h w"],
    *,
    prompt: str,
    negative_prompt: str,
    sd: StableDiffusion,
    control: Control | None,
    depth: DepthReader | None,
    edges: float,
    steps: int,
    guidance: float,
    strength: float,
    noise: Float[Tensor, "1 4 y x"],
    run: Run,
) -> EditedKeyframe:
    """Edit what is not known of a key frame under words and the edges or depth of the source; it is kept.

    It is drawn as large as the noise is: in tiles, where that is more than the model knows.
    """
    height, width = source.shape[2:]
    inner = (noise.shape[2], noise.shape[3])
    size = (inner[0] * sd.factor, inner[1] * sd.factor)
    clip = Video(seen, fps=Fraction(1))
    shown = clip.like(resized(clip.like(source).pixels(), *size)).frames
    with goal_of(sd, prompt, negative_prompt, guidance, run=run) as goal:
        made = edit_picture(
            resized(clip.pixels(sd.device), *size),
            noise,
            goal,
            sd,
            run.steps("keyframe", descent(sd.schedule(steps), strength)),
            edges=canny(shown) if depth is None else depth.nearness(shown),
            control=control,
            scale=edges,
            known=F.interpolate(torch.from_numpy(known).float(), size, mode="area") > DECIDED,
            tiles=tiles_over(inner, sd),
        )
    picture = clip.like(resized(made, height, width)).frames
    return EditedKeyframe(joined(seen, picture, known))
