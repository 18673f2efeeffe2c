"""A clip and its masks into an atlas, in seconds and without networks.

    flow        optical flow between neighbours; per layer and pair one robust matrix; as few
                reference frames as show the whole layer; outwards from each, every frame's controls fitted
                to flow and colours
    pixels      Gauss-Newton on colours, coarse to fine, textures averaged anew between the steps; then the
                stiffest mapping that explains as much
    textures    all textures together by least squares, at full size
    edges       mattes, pixel by pixel in closed form, in a band around each mask's edge
    light       a coarse gain per frame in closed form; then the textures once more

After every stage the atlas is usable. Frames are taken in blocks, so memory does not grow with the clip.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, final

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

from retouch.artifacts import artifact, pack_value, unpack_value
from retouch.atlas.atlas import Atlas, Chart, PackedMattes, pack_matte
from retouch.atlas.joins import joined_flow
from retouch.atlas.mapping import ChartMapping, PixelWindow
from retouch.atlas.motion import follow_layer, pair_matrices, plan_charts
from retouch.atlas.pyramid import AtlasSettings, ClipPyramid, frame_blocks, overlapping_spans
from retouch.atlas.solve import (
    bending_energy,
    conjugate_gradients,
    gauss_newton,
    normal_matrix,
    rhs,
    roughness_gradient,
    solve_each,
)
from retouch.atlas.stiffness import STIFF, as_homographies, as_still, camera_stands_still, stiffer
from retouch.atlas.textures import fill_unseen, sample_texture, shrink_pictures, splat_values
from retouch.errors import ArtifactError, EmptyMask, VideoError
from retouch.run import Run, SetProgress
from retouch.tracking.flow import ClipFlow, DisFlow, Flow
from retouch.tracking.segment import tracking_size
from retouch.video import Video

STAGES: Final = ("flow", "pixels", "textures", "edges", "light")
SMALL: Final = 200
"""Long side in pixels below which flow is worth computing on magnified frames."""
EDGE: Final = 2
"""Pixels on either side of a soft edge that may change when mattes are refined."""
SOLID: Final = 3
"""Pixels inside an object's edge from which on it lets nothing through: paint there is not to be weak."""
TRUST: Final = 0.04
"""How much colours must speak against a matte before it moves: the weight of the mask's own word."""


@final
@dataclass(frozen=True)
class StageDeadline:
    """Seconds after which no new stage is begun; 0 is never."""

    seconds: float = 0.0

    @property
    def identity(self) -> str:
        """The same for all: how long one waits does not decide what a finished atlas is."""
        return "deadline"


@final
class OutOfTime(Exception):
    """The deadline came before the last stage; what there is comes along, and a checkpoint of it is kept."""

    def __init__(self, atlas: Atlas) -> None:
        super().__init__(atlas.stage)
        self.atlas = atlas


@artifact("atlas", version=5)
def kept_atlas(
    video: Video,
    mattes: tuple[PackedMattes, ...],
    names: tuple[str, ...],
    settings: AtlasSettings,
    *,
    flow: Flow | None = None,
    deadline: StageDeadline = StageDeadline(),
    run: Run,
) -> Atlas:
    """Decompose a clip, or take the result from the store; a stopped run goes on after its last stage.

    Raises:
        OutOfTime: the deadline came before the last stage; nothing is kept but the checkpoint.
    """
    atlas = decompose_clip(video, mattes, names, settings, flow=flow, deadline=deadline.seconds, run=run)
    if atlas.stage != STAGES[-1]:
        raise OutOfTime(atlas)
    return atlas


@torch.no_grad()
def decompose_clip(
    video: Video,
    mattes: tuple[PackedMattes, ...],
    names: tuple[str, ...],
    settings: AtlasSettings,
    *,
    flow: Flow | None = None,
    deadline: float = 0.0,
    run: Run,
) -> Atlas:
    """Decompose a clip into layers.

    Args:
        video: The clip.
        mattes: A rough matte per object, front to back.
        names: The objects' names, then the background's.
        settings: How to solve.
        flow: Where motion comes from; the default needs no weights.
        deadline: Seconds after which no new stage is begun; 0 is never.
        run: Progress, device, scratch space and checkpoints.

    Raises:
        EmptyMask: an object is nowhere in the clip.
        VideoError: mattes and clip do not belong together.
    """
    began = time.monotonic()
    atlas = None
    for better in refine_stages(video, mattes, names, settings, flow=flow, run=run):
        atlas = better
        if deadline and time.monotonic() - began > deadline:
            break
    assert atlas is not None
    return atlas


@torch.no_grad()
def refine_stages(
    video: Video,
    mattes: tuple[PackedMattes, ...],
    names: tuple[str, ...],
    settings: AtlasSettings,
    *,
    flow: Flow | None = None,
    run: Run,
) -> Iterator[Atlas]:
    """Yield the atlas after each stage, better each time; every one of them can be used."""
    _check_mattes(video, mattes, names)
    size = tracking_size(video.height, video.width, settings.side)
    pyramid = ClipPyramid(video, mattes, run.compute.torch_device())
    atlas = _resume_checkpoint(run, pyramid)
    done = STAGES.index(atlas.stage) + 1 if atlas else 0
    if done < STAGES.index("textures"):
        pyramid.keep(*size, run)
    for stage in STAGES[done:]:
        with run.progress(f"atlas: {stage}", len(video)) as set_progress:
            if stage == "flow":
                atlas = from_flow(pyramid, names, flow, size, settings, run, set_progress)
            else:
                assert atlas is not None
                # Refined mattes make the shrunk copies stale.
                now = ClipPyramid(video, atlas.mattes, pyramid.device) if stage == "light" else pyramid
                atlas = STEPS[stage](atlas, now, settings, run, set_progress)
        _save_checkpoint(run, atlas)
        yield atlas
    if done == len(STAGES):
        assert atlas is not None
        yield atlas


def _check_mattes(video: Video, mattes: tuple[PackedMattes, ...], names: tuple[str, ...]) -> None:
    if len(names) != len(mattes) + 1:
        raise VideoError(
            f"{len(mattes)} masks for the layers {', '.join(names)}",
            hint="give one mask for every layer but the background, which comes last",
        )
    for name, matte in zip(names, mattes, strict=False):
        if (len(matte), matte.height, matte.width) != (len(video), video.height, video.width):
            raise VideoError(
                f"the mask of {name!r} has {len(matte)} frames of {matte.width}x{matte.height}, the clip "
                f"{len(video)} of {video.width}x{video.height}",
                hint="make the mask from this clip",
            )
        if not any(matte.frame(t).max() > 127 for t in range(len(matte))):
            raise EmptyMask(f"the mask of {name!r} is empty in every frame", hint="look at it: retouch mask")


def _save_checkpoint(run: Run, atlas: Atlas) -> None:
    tree, tensors = pack_value(atlas)
    text = np.frombuffer(json.dumps(tree).encode(), np.uint8).copy()
    run.draft.save({**tensors, "tree": torch.from_numpy(text)})


def _resume_checkpoint(run: Run, pyramid: ClipPyramid) -> Atlas | None:
    """Return the atlas of the last stage that a stopped run completed, if it is of this clip."""
    tensors = run.draft.load()
    if not tensors or "tree" not in tensors:
        return None
    try:
        atlas = unpack_value(Atlas, json.loads(bytes(tensors["tree"].numpy())), tensors)
    except (ArtifactError, ValueError):
        return None
    if not isinstance(atlas, Atlas) or atlas.source != pyramid.video.digest or atlas.stage not in STAGES:
        return None
    return atlas.to(pyramid.device)


# flow


def from_flow(
    pyramid: ClipPyramid,
    names: tuple[str, ...],
    flow: Flow | None,
    size: tuple[int, int],
    settings: AtlasSettings,
    run: Run,
    set_progress: SetProgress,
) -> Atlas:
    """Return charts that follow the flow, with averaged textures."""
    video = pyramid.video
    clip_flow = flow_between(video, size, flow or DisFlow(magnify=2 if max(size) < SMALL else 1), run)
    pairs = pair_matrices(pyramid, clip_flow, size)
    charts = []
    for layer in range(len(names)):
        way, matrices = clip_flow, pairs[layer]
        if layer < len(names) - 1:
            way, matrices = joined_flow(pyramid, clip_flow, matrices, layer, size)
        for span in plan_charts(pyramid, way, matrices, layer, size, settings.charts, run):
            run.check()
            mapping = follow_layer(pyramid, way, matrices, layer, span, size, settings)
            charts.append(_untextured_chart(layer, span.reference, span.start, mapping, span.blend, pyramid))
            set_progress(span.stop)
    atlas = Atlas(
        names=names,
        charts=tuple(charts),
        mattes=pyramid.mattes,
        frames=len(video),
        height=video.height,
        width=video.width,
        fps=video.fps,
        source=video.digest,
        first=video.origin.first,
        stage="flow",
        settings=settings.model_dump_json(),
    )
    return average_textures(atlas, pyramid, size)


def flow_between(video: Video, size: tuple[int, int], flow: Flow, run: Run) -> ClipFlow:
    """Return the flow between the clip's neighbours at a size, kept in a file."""
    shelf = run.scratch("flow", (max(len(video) - 1, 1), 2, 2, *size), np.float16)

    def frame(t: int) -> UInt8[np.ndarray, "h w 3"]:
        return np.ascontiguousarray(shrink_pictures(video.frames[t : t + 1], *size)[0].transpose(1, 2, 0))

    return ClipFlow(frame, flow, shelf)


def _untextured_chart(
    layer: int,
    reference: int,
    start: int,
    mapping: ChartMapping,
    blend: Float[Tensor, " f"],
    pyramid: ClipPyramid,
) -> Chart:
    """Return a chart in pixels of the full reference frame, with nothing in its texture."""
    video, device = pyramid.video, pyramid.device
    zoom = video.width / mapping.width
    whole = mapping.at_size(video.height, video.width).retextured(zoom, (0.0, 0.0))
    empty = torch.zeros(3, 1, 1, device=device)
    gain = torch.ones(len(mapping), 3, 4, 4, device=device)
    return Chart(layer, reference, start, whole, 1.0, blend.to(device), empty, empty[:1], gain)


# textures by averaging


def average_textures(atlas: Atlas, pyramid: ClipPyramid, size: tuple[int, int]) -> Atlas:
    """Return every texture as the mean of what the frames show of it, at a working size."""
    scale = size[1] / atlas.width
    charts = [
        mean_texture(reframe_texture(chart, pyramid, size, scale), pyramid, size) for chart in atlas.charts
    ]
    return replace(atlas, charts=tuple(charts))


def reframe_texture(chart: Chart, pyramid: ClipPyramid, size: tuple[int, int], scale: float) -> Chart:
    """Give the chart an empty texture of another fineness that holds all that is visible."""
    low, high = _texture_bounds(chart, pyramid, size)
    ratio = scale / chart.scale
    low, high = low * ratio - 3, high * ratio + 3
    # A background that runs off to its horizon would ask for any size: no more than this.
    side = 8.0 * scale * max(pyramid.video.height, pyramid.video.width)
    middle = 0.5 * (low + high)
    low, high = low.maximum(middle - side / 2), high.minimum(middle + side / 2)
    mapping = chart.mapping.retextured(ratio, (-float(low[0]), -float(low[1])))
    u, v = ((high - low).ceil().long() + 1).tolist()
    empty = torch.zeros(3, v, u, device=pyramid.device)
    return replace(chart, mapping=mapping, scale=scale, texture=empty, seen=empty[:1])


def _texture_bounds(
    chart: Chart, pyramid: ClipPyramid, size: tuple[int, int]
) -> tuple[Float[Tensor, "2"], Float[Tensor, "2"]]:
    """Return the lowest and highest texture position of any visible pixel."""
    mapping = chart.mapping.at_size(*size)
    low, high = torch.full((2,), 1e9), torch.full((2,), -1e9)
    for a, b in frame_blocks(chart.start, chart.stop):
        part = mapping.part(a - chart.start, b - chart.start)
        window = part.window()
        share = window.cut(pyramid.share(chart.layer, a, b, *size)) > 0.02
        uv = part.uv(window).movedim(1, 3)[share[:, 0]]
        if len(uv):
            low, high = low.minimum(uv.amin(0).cpu()), high.maximum(uv.amax(0).cpu())
    return (low, high) if bool((low <= high).all()) else (torch.zeros(2), torch.ones(2))


def mean_texture(chart: Chart, pyramid: ClipPyramid, size: tuple[int, int]) -> Chart:
    """Give the chart the mean of what the frames, at a size, show of its texture."""
    v, u = chart.texture.shape[1:]
    sums = torch.zeros(4, v, u, device=pyramid.device)
    mapping = chart.mapping.at_size(*size)
    for a, b in frame_blocks(chart.start, chart.stop):
        part = mapping.part(a - chart.start, b - chart.start)
        window = part.window()
        weight = window.cut(pyramid.confident(chart.layer, a, b, *size))
        colours = window.cut(pyramid.pictures(a, b, *size))
        sums += splat_values(torch.cat([weight * colours, weight], 1), part.uv(window), v, u)
    return replace(chart, texture=fill_unseen(sums[:3], sums[3:]), seen=sums[3:])


# pixels


def on_pixels(
    atlas: Atlas, pyramid: ClipPyramid, settings: AtlasSettings, run: Run, set_progress: SetProgress
) -> Atlas:
    """Improve the mappings by what the frames look like, at half the working size and then at all of it."""
    size = tracking_size(atlas.height, atlas.width, settings.side)
    half = (size[0] // 2, size[1] // 2)
    coarse = settings.steps // 2 if min(half) >= 48 else 0
    if coarse:
        pyramid.keep(*half, run)
    for step in range(settings.steps):
        level = half if step < coarse else size
        atlas = average_textures(atlas, pyramid, level)
        charts = []
        for chart in atlas.charts:
            run.check()
            charts.append(_step_chart(chart, pyramid, level, pyramid.stiffness(chart.layer, settings)))
        atlas = replace(atlas, charts=tuple(charts), stage="pixels")
        set_progress((step + 1) * len(pyramid.video) // settings.steps)
    atlas = average_textures(atlas, pyramid, size)
    stiffened = tuple(stiffen_chart(chart, pyramid, size, settings, run) for chart in atlas.charts)
    return replace(atlas, charts=stiffened, stage="pixels")


def stiffen_chart(
    chart: Chart, pyramid: ClipPyramid, size: tuple[int, int], settings: AtlasSettings, run: Run
) -> Chart:
    """Return the stiffest version of a chart that explains its frames about as well."""

    def averaged(bare: Chart) -> Chart:
        run.check()
        return mean_texture(reframe_texture(bare, pyramid, size, chart.scale), pyramid, size)

    if chart.layer < pyramid.layers - 1:
        stiff = chart
        for _ in range((settings.steps + 1) // 2 if settings.stiffness < STIFF else 0):
            stiff = averaged(_step_chart(stiff, pyramid, size, STIFF))
        return stiffer(chart, stiff, pyramid, size)
    if camera_stands_still(pyramid, chart, size):
        return averaged(as_still(chart))
    return stiffer(chart, averaged(as_homographies(chart, pyramid, size)), pyramid, size)


def _step_chart(chart: Chart, pyramid: ClipPyramid, level: tuple[int, int], stiffness: float) -> Chart:
    mapping = chart.mapping.at_size(*level)
    controls = chart.mapping.controls.clone()
    for a, b in frame_blocks(chart.start, chart.stop):
        i, k = a - chart.start, b - chart.start
        part = mapping.part(i, k)
        window = part.window()
        weight = window.cut(pyramid.confident(chart.layer, a, b, *level))
        colours = window.cut(pyramid.pictures(a, b, *level))
        controls[i:k] = gauss_newton(
            part, window, colours, weight, chart.texture, stiffness=stiffness
        ).controls
    # The reference stays where it is: it says what the texture looks like.
    here = chart.reference - chart.start
    controls[here] = chart.mapping.controls[here]
    return replace(chart, mapping=replace(chart.mapping, controls=controls))


# textures by least squares


def with_textures(
    atlas: Atlas, pyramid: ClipPyramid, settings: AtlasSettings, run: Run, set_progress: SetProgress
) -> Atlas:
    """Solve all textures together at full size, from their means."""
    full = (atlas.height, atlas.width)
    size = tracking_size(*full, settings.side)
    scale = settings.texture_scale or (2.0 if max(full) <= 256 else 1.25)
    charts = []
    for chart in atlas.charts:
        charts.append(mean_texture(reframe_texture(chart, pyramid, size, scale), pyramid, full))
        # Solving them takes as long again.
        set_progress(atlas.frames * len(charts) // (2 * len(atlas.charts)))
    return solve_textures(
        replace(atlas, charts=tuple(charts), stage="textures"), pyramid, settings.smooth, run, rounds=4
    )


def solve_textures(atlas: Atlas, pyramid: ClipPyramid, smooth: float, run: Run, *, rounds: int) -> Atlas:
    """Improve all textures by `rounds` of conjugate gradients on what they leave unexplained.

    What is minimised is sum over pixels of (V - sum of share * blend * gain * T(uv))^2 + smooth * |grad T|^2.
    """
    start = [chart.texture for chart in atlas.charts]
    pull, weights = _unexplained_textures(atlas, pyramid, start, run, of_the_rest=True)
    side = [p - smooth * roughness_gradient(t) for p, t in zip(pull, start, strict=True)]
    diagonal = [w + 4 * smooth + 1e-3 for w in weights]

    def product(change: list[Tensor]) -> list[Tensor]:
        back, _ = _unexplained_textures(atlas, pyramid, change, run, of_the_rest=False)
        return [b + smooth * roughness_gradient(c) for b, c in zip(back, change, strict=True)]

    change = conjugate_gradients(product, side, diagonal, rounds=rounds)
    charts = [
        replace(c, texture=t + d, seen=w)
        for c, t, d, w in zip(atlas.charts, start, change, weights, strict=True)
    ]
    return replace(atlas, charts=tuple(charts))


def _unexplained_textures(
    atlas: Atlas, pyramid: ClipPyramid, textures: list[Tensor], run: Run, *, of_the_rest: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Return what textures show, or what they leave of the pictures, gathered back into texture space.

    In the second case also the sum of squared weights of every texel.
    """
    size = (atlas.height, atlas.width)
    gathered = [torch.zeros_like(t) for t in textures]
    weights = [torch.zeros_like(t[:1]) for t in textures]
    spans = [(c.start, c.stop) for c in atlas.charts]
    for a, b in frame_blocks(0, atlas.frames):
        run.check()
        own = pyramid.shares(a, b, *size)
        total = torch.zeros(b - a, 3, *size, device=pyramid.device)
        parts = []
        for index, s, e in overlapping_spans(a, b, spans):
            chart = atlas.charts[index]
            part = chart.part(s, e)
            window = part.window()
            blend = chart.blend[s - chart.start : e - chart.start, None, None, None]
            strength = window.cut(own[chart.layer][s - a : e - a]) * blend * chart.gains(window, s, e)
            uv = part.uv(window)
            total[s - a : e - a] += window.paste(strength * sample_texture(textures[index], uv), *size)
            parts.append((index, slice(s - a, e - a), window, strength, uv))
        if of_the_rest:
            total = pyramid.pictures(a, b, *size) - total
        for index, frames, window, strength, uv in parts:
            values = strength * window.cut(total[frames])
            if of_the_rest:
                values = torch.cat([values, strength.square().mean(1, keepdim=True)], 1)
                weights[index] += splat_values(values[:, 3:], uv, *weights[index].shape[1:])
            gathered[index] += splat_values(values[:, :3], uv, *gathered[index].shape[1:])
    return gathered, weights


# edges


def with_edges(
    atlas: Atlas, pyramid: ClipPyramid, settings: AtlasSettings, run: Run, set_progress: SetProgress
) -> Atlas:
    """Move mattes near their edges to where the layers' colours explain the frames best."""
    del settings
    packed: list[list[bytes]] = [[] for _ in atlas.mattes]
    for a, b in frame_blocks(0, atlas.frames):
        run.check()
        wanted = pyramid.pictures(a, b, atlas.height, atlas.width)
        colours = [atlas.layer(i, a, b) for i in range(len(atlas.names))]
        alphas = [torch.from_numpy(m.frames(a, b)).to(pyramid.device).float() / 255 for m in atlas.mattes]
        for i in range(len(alphas)):
            alphas[i] = _refine_matte(wanted, colours, alphas, i)
            packed[i] += [
                pack_matte(m) for m in (alphas[i][:, 0] * 255).round().to(torch.uint8).cpu().numpy()
            ]
        set_progress(b)
    mattes = tuple(PackedMattes.pack(p, atlas.height, atlas.width) for p in packed)
    return replace(atlas, mattes=mattes, stage="edges")


def _refine_matte(
    wanted: Float[Tensor, "f 3 h w"], colours: list[Tensor], alphas: list[Tensor], which: int
) -> Float[Tensor, "f 1 h w"]:
    """Return one matte, given the others: the least squares answer, held to what it was before."""
    front, through = torch.zeros_like(wanted), torch.ones_like(alphas[0])
    for alpha, colour in zip(alphas[:which], colours, strict=False):
        front = front + through * alpha * colour
        through = through * (1 - alpha)
    behind = colours[-1]
    for i in range(len(alphas) - 1, which, -1):
        behind = alphas[i] * colours[i] + (1 - alphas[i]) * behind
    prior = alphas[which]
    contrast = through * (colours[which] - behind)
    rest = wanted - front - through * behind
    best = ((rest * contrast).sum(1, keepdim=True) + TRUST * prior) / (
        contrast.square().sum(1, keepdim=True) + TRUST
    )
    soft = ((prior > 0.02) & (prior < 0.98)).float()
    band = F.max_pool2d(soft, 2 * EDGE + 1, 1, EDGE) > 0
    refined = torch.where(band, best.clamp(0, 1), prior)
    return torch.where(deep_inside(prior), torch.ones_like(prior), refined)


def deep_inside(alpha: Float[Tensor, "f 1 h w"]) -> Bool[Tensor, "f 1 h w"]:
    """Mark what a matte gives wholly to an object, more than `SOLID` pixels from the object's edge.

    A wide soft edge is the user's, and stays.
    """
    around = 2 * SOLID + 1
    outside = F.max_pool2d((alpha <= 0.5).float(), around, 1, SOLID) > 0
    return ~outside & (alpha > 0.9)


# light


def with_light(
    atlas: Atlas, pyramid: ClipPyramid, settings: AtlasSettings, run: Run, set_progress: SetProgress
) -> Atlas:
    """Fit a coarse gain per frame, chart and channel, then the textures once more."""
    if settings.gain:
        atlas = _fit_gains(atlas, pyramid, settings, run, set_progress)
    atlas = solve_textures(atlas, pyramid, settings.smooth, run, rounds=2)
    # Colours beyond white and black fit noise; files and paint programs hold none.
    charts = tuple(replace(chart, texture=chart.texture.clamp(0, 1)) for chart in atlas.charts)
    return replace(atlas, charts=charts, stage="light")


def _fit_gains(
    atlas: Atlas, pyramid: ClipPyramid, settings: AtlasSettings, run: Run, set_progress: SetProgress
) -> Atlas:
    size = tracking_size(atlas.height, atlas.width, settings.side)
    charts = [_plain_gain(chart, settings.gain) for chart in atlas.charts]
    spans = [(c.start, c.stop) for c in charts]
    for a, b in frame_blocks(0, atlas.frames):
        run.check()
        own = pyramid.shares(a, b, *size)
        rest = pyramid.pictures(a, b, *size)
        parts = []
        for index, s, e in overlapping_spans(a, b, spans):
            chart = charts[index]
            part = chart.part(s, e).at_size(*size)
            window = part.window()
            blend = chart.blend[s - chart.start : e - chart.start, None, None, None]
            shown = (
                window.cut(own[chart.layer][s - a : e - a])
                * blend
                * sample_texture(chart.texture, part.uv(window))
            )
            rest[s - a : e - a] -= window.paste(shown, *size)
            parts.append((index, s, e, window, shown))
        for index, s, e, window, shown in parts:
            chart = replace(charts[index], mapping=charts[index].mapping.at_size(*size))
            change = _gain_change(chart, window, s, e, shown, window.cut(rest[s - a : e - a]))
            chart.gain[s - chart.start : e - chart.start] += change
        set_progress(b)
    return replace(atlas, charts=tuple(charts))


def _plain_gain(chart: Chart, across: int) -> Chart:
    """Return the chart with a gain of one everywhere, `across` knots along its box's long side."""
    width, height = chart.mapping.extent
    knot = max(width, height) / across
    counts = (max(1, round(height / knot)) + 3, max(1, round(width / knot)) + 3)
    return replace(chart, gain=torch.ones(len(chart.mapping), 3, *counts, device=chart.texture.device))


def _gain_change(
    chart: Chart,
    window: PixelWindow,
    start: int,
    stop: int,
    shown: Float[Tensor, "f 3 h w"],
    rest: Float[Tensor, "f 3 h w"],
) -> Float[Tensor, "f 3 kh kw"]:
    """Return what to add to the gain so that `shown`, multiplied by it, explains the rest as well."""
    rows, columns = chart.gain_basis(window, start, stop)
    kh, kw = chart.gain.shape[2:]
    matrix = normal_matrix(rows, columns, shown.square())
    side = rhs(rows, columns, shown * rest)
    usual = matrix.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] + 1e-3
    hold = usual * 0.05 * (torch.eye(kh * kw) + bending_energy(kh, kw)).to(rows)
    change = solve_each(matrix + hold, side[..., None])[..., 0]
    return change.reshape_as(chart.gain[start - chart.start : stop - chart.start]).clamp(-0.5, 1.0)


STEPS: Final[dict[str, Callable[[Atlas, ClipPyramid, AtlasSettings, Run, SetProgress], Atlas]]] = {
    "pixels": on_pixels,
    "textures": with_textures,
    "edges": with_edges,
    "light": with_light,
}
