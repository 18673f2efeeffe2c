"""StableVideo as its authors released it, step by step, so that our numbers can be held against theirs.

What differs from the default of this package, and is kept here on purpose: key frames are cropped at random,
shown on black, and know of the one key frame before alone; texels lie at whole numbers but are read half a
texel beside them, so each hop shifts by that; noise is added one level above the one where denoising starts;
the median over key frames counts what a key frame did not see as black; both layers are shown off the atlas,
so what nobody edited loses too. Two things cannot be seen in a result and are left out: holes of the outline
are not filled, and an empty draw of noise at each step is not repeated. A box that would begin outside the
frame is moved inside it; the released code cuts another place there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias, final

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

from retouch.artifacts import artifact
from retouch.atlas.atlas import Atlas, Chart
from retouch.atlas.edit import PaintedFrame, TexturePatch, fetch_patch
from retouch.atlas.mapping import PixelWindow
from retouch.atlas.pyramid import frame_blocks
from retouch.errors import ParamsError
from retouch.methods.stablevideo.spec import StableVideoParams
from retouch.models.image import Control, StableDiffusion
from retouch.models.noise_path import Level, guided, step
from retouch.run import Edited, Run
from retouch.video import Video, release_pages

BORDER: Final = 30
"""Pixels around the object that its box takes in."""
LEAST_SIDE: Final = 129
"""The least side of a box."""
SOLID: Final = 0.99
"""Share of a pixel from which it counts as the object's."""
STRIDE: Final = 64
"""Sides of pictures that the model is shown are multiples of this."""
TINY: Final = 1e-9
"""A texel this little outside a triangle lies on its edge."""
LEAST_CROP: Final = 0.95
"""Share of a box's side that a random crop has at least."""
NETWORK_STEPS, RATE, MOMENTUM = 500, 1e-3, 0.9
"""How the aggregation network is trained."""
SEEN: Final = 0.5
"""Cover from which the network is shown a pixel, or the median a texel, as a key frame's own."""

View: TypeAlias = tuple[Float[Tensor, "1 _ _ 2"], Float[Tensor, "3 _ _"]]
"""A key frame: where its pixels lie in an atlas, between -1 and 1, and what they show."""


@torch.no_grad()
def edit(
    sd: StableDiffusion, control: Control, atlas: Atlas, video: Video, params: StableVideoParams, run: Run
) -> Edited:
    """Edit the object as the released code does, and show both layers off the atlas.

    Raises:
        ParamsError: a frame does not show the object, or a layer has several pictures.
    """
    check_released(atlas)
    front, ground = atlas.charts
    blocks = frame_blocks(0, len(video))
    boxes = torch.cat([object_boxes(atlas.shares(a, b)[0].cpu(), first=a) for a, b in blocks])
    boxes[:, :2] = boxes[:, :2].clamp(min=0)
    chosen = params.at or tuple(dict.fromkeys((0, len(video) // 2, len(video) - 1)))
    crops = random_crops(boxes[list(chosen)], run.seed)
    size, partials, extras = max(front.texture.shape[1:]), list[Tensor](), dict[str, np.ndarray]()
    views = list[View]()
    for t, (y, x, height, width) in zip(chosen, crops.tolist(), strict=True):
        rows, columns = slice(y, y + height), slice(x, x + width)
        share = atlas.shares(t, t + 1)[0][0, :, rows, columns].cpu()
        texels = texels_of(front, t)[rows, columns]
        grid = (2 * texels / size - 1)[None]
        source = torch.from_numpy(np.array(video.frames[t, :, rows, columns])).float() / 255
        drawn = drawn_keyframe(
            shown_to_model(bytes_of(source * share), sd.native),
            bytes_of(read_at(partials[-1], grid)[0]) if partials else None,
            prompt=params.prompt,
            negative_prompt=params.negative_prompt,
            sd=sd,
            control=control,
            steps=params.steps,
            guidance=params.guidance,
            strength=params.strength,
            frame=t,
            seed=run.seed,
            run=run,
        )
        extras[f"{atlas.names[0]}-k{t}"] = drawn.picture
        edited = share * numbers_of(bicubic(drawn.picture, height, width))
        partials.append(pushed(edited, texels, size))
        views.append((grid, edited))
    texture = median_of(torch.stack(partials))
    if params.aggregation == "network":
        texture = aggregate_by_network(texture, views, seed=run.seed, run=run).texture
    texture = texture[:, : front.texture.shape[1], : front.texture.shape[2]]
    frames = run.scratch("edited", video.frames.shape)
    for reached in run.steps("render", range(len(video))):
        t = reached.item
        over = read_at(texture, _between_edges(texels_of(front, t), texture))[0]
        under = read_at(ground.texture.cpu(), _between_edges(texels_of(ground, t), ground.texture))[0]
        share = atlas.shares(t, t + 1)[0][0].cpu()
        frames[t] = bytes_of(share * over + (1 - share) * under).transpose(2, 0, 1)
        release_pages(frames)
    return Edited(video.like(frames), figures={"keyframes": float(len(chosen))}, extras=extras)


def check_released(atlas: Atlas) -> None:
    """Refuse an atlas that the released code does not know.

    Raises:
        ParamsError: it has several objects, or several pictures of one.
    """
    if len(atlas.charts) != len(atlas.names) or len(atlas.names) != 2:
        raise ParamsError(
            f"this atlas has {len(atlas.charts)} pictures of {len(atlas.names)} layers",
            hint="the released code knows one picture of one object and one of its background: "
            "make such an atlas with retouch atlas fit --set charts=1, or leave --faithful out",
        )


def random_crops(boxes: Int[Tensor, "k 4"], seed: int) -> Int[Tensor, "k 4"]:
    """Return a random part of each box, y, x, height and width, of at least 95 % of its sides."""
    dice, made = np.random.default_rng(seed), []
    for y, x, height, width in boxes.tolist():
        sides = [int(dice.integers(int(LEAST_CROP * side), side + 1)) for side in (height, width)]
        down, right = (int(dice.integers(0, n - m + 1)) for n, m in zip((height, width), sides, strict=True))
        made.append([y + down, x + right, *sides])
    return torch.tensor(made)


def texels_of(chart: Chart, t: int) -> Float[Tensor, "h w 2"]:
    """Return where each pixel of a frame lies in a chart's texture."""
    part = chart.part(t, t + 1)
    whole = PixelWindow(torch.zeros(1, 2, dtype=torch.int64), part.height, part.width)
    return part.uv(whole)[0].movedim(0, 2).cpu()


def _between_edges(
    texels: Float[Tensor, "h w 2"], texture: Float[Tensor, "3 v u"]
) -> Float[Tensor, "1 h w 2"]:
    return (2 * texels / texels.new_tensor([texture.shape[2], texture.shape[1]]) - 1)[None]


@final
@dataclass(frozen=True, eq=False)
class DrawnKeyframe:
    """A crop of a key frame as the model drew it, at the size that it is shown."""

    picture: UInt8[np.ndarray, "h w 3"]


@artifact("released_keyframe", version=1)
def drawn_keyframe(
    image: UInt8[np.ndarray, "h w 3"],
    appearance: UInt8[np.ndarray, "y x 3"] | None,
    *,
    prompt: str,
    negative_prompt: str,
    sd: StableDiffusion,
    control: Control,
    steps: int,
    guidance: float,
    strength: float,
    frame: int,
    seed: int,
    run: Run,
) -> DrawnKeyframe:
    """Draw a crop from noise, or from what the key frame before decided of it; it is kept."""
    del seed
    height, width = image.shape[:2]
    levels, texts = levels_of(sd, steps), (sd.embed(negative_prompt), sd.embed(prompt))
    like = torch.empty(1, 4, height // sd.factor, width // sd.factor)
    z, down = run.noise(f"released {frame}", like), levels[::-1]
    if appearance is not None:
        above = int(steps * strength)
        _, z = noised(
            sd,
            bicubic(appearance, height, width),
            posterior_noise=run.noise(f"posterior {frame}", like),
            noise=z,
            level=levels[above],
        )
        down = levels[:above][::-1]
    run.check()
    walk = denoised(sd, control, z, as_hint(edges_of(image)), texts, down, guidance=guidance)
    return DrawnKeyframe(decoded(sd, walk[-1]))


def bytes_of(picture: Float[Tensor, "c h w"]) -> UInt8[np.ndarray, "h w c"]:
    """Cut numbers from 0 to 1 down to bytes, without rounding."""
    return np.ascontiguousarray((picture * 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy())


def numbers_of(picture: UInt8[np.ndarray, "h w c"]) -> Float[Tensor, "c h w"]:
    """Return bytes as numbers from 0 to 1."""
    return torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 255


def object_boxes(
    share: Float[Tensor, "f 1 h w"], *, border: int = BORDER, least: int = LEAST_SIDE, first: int = 0
) -> Int[Tensor, "f 4"]:
    """Return each frame's box around its solid pixels, as y, x, height and width; it may begin below 0.

    `first` is the number of the first frame.

    Raises:
        ParamsError: a frame has no solid pixel.
    """
    boxes = []
    for t, solid in enumerate(share[:, 0] >= SOLID, first):
        if not solid.any():
            raise ParamsError(
                f"frame {t} shows no solid pixel of the object",
                hint="the released code takes a box in every frame; leave --faithful out, or cut the clip",
            )
        sides = [_grown(solid.any(axis), solid.shape[1 - axis], border, least) for axis in (1, 0)]
        boxes.append([sides[0][0], sides[1][0], sides[0][1], sides[1][1]])
    return torch.tensor(boxes)


def _grown(there: Tensor, size: int, border: int, least: int) -> tuple[int, int]:
    """Return where one side of a box begins and how long it is."""
    found = there.nonzero()
    start, stop = max(0, int(found[0]) - border), min(size, int(found[-1]) + border)
    if stop - start >= least:
        return start, stop - start
    return (start if start + least < size else stop - least), least


def model_size(height: int, width: int, resolution: int) -> tuple[int, int]:
    """Return the size at which the model is shown a picture: short side as told, both sides of the stride."""
    scale = resolution / min(height, width)
    tall, wide = (int(np.round(side * scale / STRIDE)) * STRIDE for side in (height, width))
    return tall, wide


def shown_to_model(picture: UInt8[np.ndarray, "h w 3"], resolution: int) -> UInt8[np.ndarray, "hh ww 3"]:
    """Resize a picture to the size that the model is shown."""
    height, width = picture.shape[:2]
    how = cv2.INTER_LANCZOS4 if resolution > min(height, width) else cv2.INTER_AREA
    return np.asarray(
        cv2.resize(picture, model_size(height, width, resolution)[::-1], interpolation=how), np.uint8
    )


def edges_of(picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
    """Return edges found in all three colours, where this package's own look at the grey picture."""
    return np.asarray(cv2.Canny(picture, 100, 200), np.uint8)


def as_hint(plane: UInt8[np.ndarray, "h w"]) -> Float[Tensor, "1 3 h w"]:
    """Return edges or depth as a control network is shown them."""
    return (torch.from_numpy(plane.copy()).float() / 255).expand(1, 3, -1, -1)


def bicubic(picture: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> UInt8[np.ndarray, "hh ww 3"]:
    """Resize by Pillow's bicubic filter."""
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


# -------------------------------------------------------------------- denoising


def levels_of(sd: StableDiffusion, steps: int) -> list[Level]:
    """Return the levels that so many steps visit, cleanest first: more than that where 1000 is no multiple.

    Raises:
        ParamsError: the last of them is no level of the model.
    """
    times = [1 + t for t in range(0, 1000, 1000 // steps)]
    if times[-1] > 999:
        raise ParamsError(
            f"steps is {steps}; the released schedule then ends past the noisiest level",
            hint="take a number of steps that divides 1000, such as 20",
        )
    return [sd.level((t + 0.5) / 1000) for t in times]


def noised(
    sd: StableDiffusion,
    appearance: UInt8[np.ndarray, "h w 3"],
    *,
    posterior_noise: Float[Tensor, "1 4 y x"],
    noise: Float[Tensor, "1 4 y x"],
    level: Level,
) -> tuple[Float[Tensor, "1 4 y x"], Float[Tensor, "1 4 y x"]]:
    """Return the latents of a picture, drawn from their posterior, and what they are at a level."""
    mean, deviation = sd.posterior(numbers_of(appearance)[None] * 2 - 1)
    z = (mean + deviation * posterior_noise) * float(sd.vae.config.scaling_factor)
    return z, level.signal * z + level.noise * noise


def denoised(
    sd: StableDiffusion,
    control: Control,
    z: Float[Tensor, "1 4 y x"],
    hint: Float[Tensor, "1 3 h w"],
    texts: tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]],
    levels: Sequence[Level],
    *,
    guidance: float = 9.0,
) -> list[Float[Tensor, "1 4 y x"]]:
    """Return every sample on the way down the levels, noisiest first, and on to the cleanest there is.

    `texts` are what guidance leads away from and what it leads to; both are held to the same hint.
    """
    walk = [z]
    for hi, lo in zip(levels, [*levels[1:], sd.level(0)], strict=True):
        away, out = predictions(sd, control, walk[-1], hint, texts, hi)
        walk.append(step(walk[-1], guided(away, out, guidance), hi, lo))
    return walk


def predictions(
    sd: StableDiffusion,
    control: Control,
    z: Float[Tensor, "1 4 y x"],
    hint: Float[Tensor, "1 3 h w"],
    texts: tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]],
    level: Level,
) -> tuple[Float[Tensor, "1 4 y x"], ...]:
    """Return the network's output for each of the texts."""
    return tuple(
        sd.predict(z, level.t, text, residuals=control.residuals(hint, z, level.t, text)) for text in texts
    )


def decoded(sd: StableDiffusion, z: Float[Tensor, "1 4 y x"]) -> UInt8[np.ndarray, "h w 3"]:
    """Return latents as a picture."""
    pixels = (sd.decode(z)[0] * 127.5 + 127.5).clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())


# -------------------------------------------------------------------- to the atlas and back


def pushed(
    picture: Float[Tensor, "3 h w"], texels: Float[Tensor, "h w 2"], size: int
) -> Float[Tensor, "3 size size"]:
    """Interpolate a picture, whose pixels lie at texels, at every whole texel of a square; unseen is 0.

    Linear over the Delaunay triangles: of the two diagonals of four neighbouring pixels it takes the one
    whose triangles hold no fourth pixel in their circumcircles.
    """
    at = texels.double()
    a, b, c, d = (at[:-1, :-1], at[:-1, 1:], at[1:, :-1], at[1:, 1:])
    colours = picture.double().movedim(0, 2)
    corner = colours[:-1, :-1], colours[:-1, 1:], colours[1:, :-1], colours[1:, 1:]
    across = (_in_circle(b, a, c, d) | _in_circle(c, a, b, d))[..., None]
    # A quad's halves: a b c and b c d over one diagonal, a b d and a c d over the other.
    places = [
        torch.stack([a, b, torch.where(across, c, d)], 2),
        torch.stack([d, c, torch.where(across, b, a)], 2),
    ]
    values = [
        torch.stack([corner[0], corner[1], torch.where(across, corner[2], corner[3])], 2),
        torch.stack([corner[3], corner[2], torch.where(across, corner[1], corner[0])], 2),
    ]
    return _filled(
        torch.cat([p.flatten(0, 1) for p in places]), torch.cat([v.flatten(0, 1) for v in values]), size
    )


def _in_circle(p: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return whether points lie in the circles through three others."""
    rows = [torch.cat([q - p, (q - p).square().sum(-1, keepdim=True)], -1) for q in (a, b, c)]
    inside: Tensor = torch.linalg.det(torch.stack(rows, -2)) * _cross(b - a, c - a) > 0
    return inside


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _filled(
    corners: Float[Tensor, "n 3 2"], colours: Float[Tensor, "n 3 3"], size: int
) -> Float[Tensor, "3 size size"]:
    """Write triangles into an empty square: each whole texel in one is interpolated between its corners."""
    made = colours.new_zeros(size, size, 3)
    area = _cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    low, high = corners.amin(1).ceil().clamp(min=0), corners.amax(1).floor().clamp(max=size - 1)
    spans = (high - low).long() + 1
    for dy in range(int(spans[:, 1].max())):
        for dx in range(int(spans[:, 0].max())):
            some = ((spans[:, 0] > dx) & (spans[:, 1] > dy) & (area != 0)).nonzero()[:, 0]
            texel = low[some] + low.new_tensor([dx, dy])
            away = corners[some] - texel[:, None]
            weights = (
                torch.stack([_cross(away[:, i - 2], away[:, i - 1]) for i in range(3)], 1) / area[some, None]
            )
            inside = (weights >= -TINY).all(1)
            x, y = texel[inside].long().T
            made[y, x] = (weights[inside, :, None] * colours[some[inside]]).sum(1)
    return made.float().movedim(2, 0)


def read_at(atlas: Float[Tensor, "3 v u"], grid: Float[Tensor, "f h w 2"]) -> Float[Tensor, "f 3 h w"]:
    """Read an atlas at positions from -1 to 1 between its outer edges, half a texel beside where it is."""
    frames, height, width, _ = grid.shape
    read = F.grid_sample(atlas[None], grid.flatten(0, 1)[None], padding_mode="zeros", align_corners=False)
    return read[0].view(3, frames, height, width).movedim(1, 0).clamp(0, 1)


def median_of(partials: Float[Tensor, "k 3 v u"]) -> Float[Tensor, "3 v u"]:
    """Return each texel's median over key frames, unseen counted as 0; the lower of the middle two."""
    return partials.median(0).values


def restored(
    edited: Float[Tensor, "3 v u"], source: Float[Tensor, "3 v u"], brush: UInt8[np.ndarray, "v u c"]
) -> Float[Tensor, "3 v u"]:
    """Bring the source's texels back where a brush is white."""
    share = numbers_of(brush)
    return edited * (1 - share) + source * share


def padded(
    atlas: Float[Tensor, "3 v u"], box: tuple[int, int], height: int, width: int
) -> Float[Tensor, "3 height width"]:
    """Let the border of a part of an atlas, which begins at row and column `box`, go on to the whole."""
    top, left = box
    sides = (left, width - left - atlas.shape[2], top, height - top - atlas.shape[1])
    return F.pad(atlas[None], sides, mode="replicate")[0]


# -------------------------------------------------------------------- the aggregation network


def aggregated(
    atlas: Float[Tensor, "3 v u"], first: Float[Tensor, "64 3 3 3"], second: Float[Tensor, "64 3 3 3"]
) -> Float[Tensor, "3 v u"]:
    """Return what the aggregation network makes of an atlas: two layers beside the atlas itself."""
    return atlas + F.conv_transpose2d(F.conv2d(atlas[None], first, padding=1).relu(), second, padding=1)[0]


def new_network(seed: int) -> list[Float[Tensor, "64 3 3 3"]]:
    """Return the weights that the aggregation network begins with: PyTorch's usual ones."""
    generator = torch.Generator().manual_seed(seed)
    scales = 1 / 27**0.5, 1 / (9 * 64) ** 0.5
    return [(torch.rand(64, 3, 3, 3, generator=generator) * 2 - 1) * scale for scale in scales]


def trained(
    atlas: Float[Tensor, "3 v u"],
    views: Sequence[View],
    first: Float[Tensor, "64 3 3 3"],
    second: Float[Tensor, "64 3 3 3"],
    *,
    steps: int = NETWORK_STEPS,
) -> tuple[Float[Tensor, "64 3 3 3"], Float[Tensor, "64 3 3 3"], list[float]]:
    """Train the aggregation network on key frames, (positions, picture); return it and the losses."""
    weights = [first.clone(), second.clone()]
    momenta = [torch.zeros_like(weight) for weight in weights]
    losses = [train_step(atlas, views, weights, momenta) for _ in range(steps)]
    return weights[0], weights[1], losses


def train_step(
    atlas: Float[Tensor, "3 v u"], views: Sequence[View], weights: list[Tensor], momenta: list[Tensor]
) -> float:
    """Change the network's weights and their momenta in place by a step; return the loss before it.

    The loss sums over key frames the mean difference between what the atlas shows in one and the key frame.
    """
    with torch.enable_grad():
        now = [weight.clone().requires_grad_() for weight in weights]
        made = aggregated(atlas, *now)
        loss = torch.stack([(read_at(made, grid)[0] - wanted).abs().mean() for grid, wanted in views]).sum()
        slopes = torch.autograd.grad(loss, now)
    for weight, momentum, slope in zip(weights, momenta, slopes, strict=True):
        momentum.mul_(MOMENTUM).add_(slope)
        weight.add_(momentum, alpha=-RATE)
    return float(loss.detach())


@final
@dataclass(frozen=True, eq=False)
class AggregatedTexture:
    """What the trained network makes of the median of key frames."""

    texture: Float[Tensor, "3 v u"]
    losses: Float[Tensor, " steps"]
    """Before each step."""


@artifact("aggregation", version=1)
def aggregate_by_network(
    median: Float[Tensor, "3 v u"], views: Sequence[View], *, seed: int, run: Run
) -> AggregatedTexture:
    """Train the network on key frames and apply it to their median; it is kept.

    What the network makes is cut to the colours that there are; the released code lets them wrap.
    """
    weights, losses = [weight.to(median) for weight in new_network(seed)], torch.zeros(NETWORK_STEPS)
    momenta = [torch.zeros_like(weight) for weight in weights]
    state = {"first": weights[0], "second": weights[1], "losses": losses}
    state |= {"momentum 1": momenta[0], "momentum 2": momenta[1]}
    for at in run.resumable("aggregation", range(NETWORK_STEPS), state, every=25):
        losses[at.index] = train_step(median, views, weights, momenta)
    return AggregatedTexture(aggregated(median, *weights).clamp(0, 1), losses)


def patch_by_network(
    atlas: Atlas, keys: Sequence[PaintedFrame], solved: TexturePatch, run: Run
) -> TexturePatch:
    """Return a patch with the colours of the paper's aggregation in place of those that were solved.

    A texel's median is over the key frames that show it, and key frames count where they show the layer
    alone; on the square of the released code what a key frame did not see, and its black surround, count too.
    """
    chart, layers, views = atlas.charts[solved.chart], list[Tensor](), list[View]()
    size = solved.picture.new_tensor([solved.picture.shape[2], solved.picture.shape[1]])
    for key in (key for key in keys if chart.covers(key.frame)):
        part = chart.part(key.frame, key.frame + 1)
        window = part.window()
        uv = part.uv(window)
        own = ((window.cut(key.cover[None].to(uv)) > SEEN) & (solved.at(uv)[:, 3:] > SEEN))[0, 0]
        fetched = fetch_patch(atlas, solved.chart, key)
        if fetched is None or not own.any():
            continue
        shown = fetched.at(solved.positions())[0]
        layers.append(torch.where(shown[3:] > SEEN, shown[:3] / shown[3:], torch.nan))
        texels = (uv[0].movedim(0, 2)[own] - uv.new_tensor(solved.corner)) * solved.fineness
        grid = 2 * (texels + 0.5) / size - 1
        views.append((grid[None, :, None], window.cut(key.colours[None].to(uv))[0][:, own][..., None]))
    if not views:
        return solved
    colours, cover = solved.picture[:3] / solved.picture[3:].clamp(min=TINY), solved.picture[3:]
    median = torch.stack(layers).nanmedian(0).values
    median = torch.where(median.isnan(), colours, median)
    made = aggregate_by_network(median, views, seed=run.seed, run=run).texture.to(cover)
    return replace(solved, picture=torch.cat([made * cover, cover]))
