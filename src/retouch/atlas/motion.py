"""How layers move, from optical flow: a robust matrix for each pair, then controls outwards from a reference.

Frames are taken one after the other away from the reference. Each is first put where its flow leads in the
frame before, then brought into line with what the layer looked like in the last frames, which keeps errors
from adding up.
"""

from dataclasses import dataclass, replace
from typing import Final, final

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64
from torch import Tensor

from retouch.atlas.charts import (
    ChartSpan,
    choose_references,
    followed_share,
    reference_candidates,
    spans_between,
    zoom_coverage,
)
from retouch.atlas.mapping import ChartMapping, PixelWindow, compose_matrices, pixel_positions
from retouch.atlas.pyramid import AtlasSettings, ClipPyramid, frame_blocks
from retouch.atlas.solve import fit_field, gauss_newton, without_folds
from retouch.atlas.textures import sample_texture, splat_values
from retouch.run import Run
from retouch.tracking.flow import ClipFlow, consistent_flow

TRACKING_STEPS: Final = 3
MEMORY: Final = 0.8
"""What a template keeps of a texel when a new frame shows it: a handful of frames, so that light may
change."""
ROOM: Final = 0.15
"""Room around a template, in parts of the layer's side, for what its matrices do not foresee."""
MOST_ROOM: Final = 4.0
"""The furthest that a template reaches from its reference, in parts of the layer's side."""
FEWEST: Final = 24
"""Flow vectors below which a pair's motion is unknown."""


def pair_matrices(
    pyramid: ClipPyramid, flow: ClipFlow, size: tuple[int, int]
) -> Float64[np.ndarray, "layers pairs 3 3"]:
    """Give, per layer, the matrix that best takes each frame's pixels to the next: affine for objects."""
    frames = len(pyramid.video)
    found = np.tile(np.eye(3), (pyramid.layers, max(frames - 1, 0), 1, 1))
    for t in range(frames - 1):
        there = flow.between(t, t + 1)
        good = consistent_flow(there, flow.between(t + 1, t))
        for layer, share in enumerate(pyramid.shares(t, t + 1, *size)):
            inside = good & (share[0, 0].cpu().numpy() > 0.9)
            found[layer, t] = robust_matrix(there, inside, affine=layer < pyramid.layers - 1)
    return found


def robust_matrix(
    flow: Float32[np.ndarray, "2 h w"], inside: Bool[np.ndarray, "h w"], *, affine: bool
) -> Float64[np.ndarray, "3 3"]:
    """Return the affine matrix or homography that most flow vectors agree on."""
    y, x = np.nonzero(inside)
    if len(x) < FEWEST:
        return np.eye(3)
    some = slice(None, None, max(1, len(x) // 2000))
    a = np.stack([x, y], 1)[some].astype(np.float64)
    b = a + flow[:, y, x].T[some]
    if affine:
        top, _ = cv2.estimateAffine2D(a, b, method=cv2.RANSAC, ransacReprojThreshold=1.0)
        return np.eye(3) if top is None else np.vstack([top, [0.0, 0.0, 1.0]])
    whole, _ = cv2.findHomography(a, b, cv2.RANSAC, 0.7)
    return np.eye(3) if whole is None else np.asarray(whole, np.float64)


def chain_matrices(
    pairs: Float64[np.ndarray, "pairs 3 3"], reference: int, start: int, stop: int
) -> Float[Tensor, "f 3 3"]:
    """Return the matrix from each frame to the reference."""
    made = {reference: torch.eye(3, dtype=torch.float64)}
    for t in range(reference + 1, stop):
        made[t] = compose_matrices(torch.linalg.inv(torch.from_numpy(pairs[t - 1])), made[t - 1])
    for t in range(reference - 1, start - 1, -1):
        made[t] = compose_matrices(torch.from_numpy(pairs[t]), made[t + 1])
    return torch.stack([made[t] for t in range(start, stop)])


def plan_charts(
    pyramid: ClipPyramid,
    flow: ClipFlow,
    pairs: Float64[np.ndarray, "pairs 3 3"],
    layer: int,
    size: tuple[int, int],
    most: int,
    run: Run,
) -> list[ChartSpan]:
    """Choose a layer's reference frames and the run of frames of each."""
    frames = len(pyramid.video)
    tried = reference_candidates(frames)
    if layer < pyramid.layers - 1:
        masks = run.scratch("shown", (frames, *size))
        for a, b in frame_blocks(0, frames):
            masks[a:b] = (pyramid.share(layer, a, b, *size)[:, 0] * 255).byte().cpu().numpy()
        shown = followed_share(masks, flow, tried)
    else:
        shown = zoom_coverage(torch.stack([chain_matrices(pairs, r, 0, frames) for r in tried]), *size)
    # Between references that show as much, the one nearest the middle.
    away = np.abs(np.array(tried) - (frames - 1) / 2) / frames
    shown = (shown - 1e-3 * away[:, None]).astype(np.float32)
    taken = choose_references(shown, most)
    if len(taken) == 1:
        taken = [int(shown.mean(1).argmax())]
    return spans_between(shown, tried, taken)


def layer_boxes(
    pyramid: ClipPyramid, layer: int, span: ChartSpan, size: tuple[int, int]
) -> tuple[Float[Tensor, "f 2"], tuple[float, float]]:
    """Return the corner of a layer's box in each frame, and the one extent that holds it in all of them."""
    height, width = size
    if layer == pyramid.layers - 1:
        return torch.zeros(span.stop - span.start, 2), (float(width), float(height))
    found: list[list[int]] = []
    for a, b in frame_blocks(span.start, span.stop):
        for share in pyramid.share(layer, a, b, *size):
            seen = (share[0] > 0.03).cpu().numpy()
            y, x = np.nonzero(seen.any(1))[0], np.nonzero(seen.any(0))[0]
            found.append([x[0], y[0], x[-1] + 1, y[-1] + 1] if len(x) else [])
    last = next((box for box in found if box), [0, 0, width, height])
    filled = []
    for box in found:
        last = box or last  # out of sight: where it was last
        filled.append(last)
    low, high = np.array(filled, np.float64)[:, :2], np.array(filled, np.float64)[:, 2:]
    margin = 3 + 0.03 * max(size)
    extent = np.minimum((high - low).max(0) + 2 * margin, [width, height])
    corner = np.clip((low + high - extent) / 2, 0, np.array([width, height]) - extent)
    return torch.from_numpy(corner).float(), (float(extent[0]), float(extent[1]))


def follow_layer(
    pyramid: ClipPyramid,
    flow: ClipFlow,
    pairs: Float64[np.ndarray, "pairs 3 3"],
    layer: int,
    span: ChartSpan,
    size: tuple[int, int],
    settings: AtlasSettings,
) -> ChartMapping:
    """Map every frame of a span into its reference frame, in working pixels."""
    origins, extent = layer_boxes(pyramid, layer, span, size)
    spacing = max(size) / settings.spacing
    rows, columns = (max(2, round(n / spacing)) + 3 for n in (extent[1], extent[0]))
    controls = torch.zeros(span.stop - span.start, 2, rows, columns)
    matrices = chain_matrices(pairs, span.reference, span.start, span.stop)
    device = pyramid.device
    mapping = ChartMapping(matrices.to(device), controls.to(device), origins.to(device), extent, *size)
    controls = mapping.controls.clone()
    stiffness = pyramid.stiffness(layer, settings)
    for steps in (range(span.reference + 1, span.stop), range(span.reference - 1, span.start - 1, -1)):
        known = span.reference
        before = mapping.part(known - span.start, known - span.start + 1)
        ends = sorted([known, *steps[-1:]])
        template = LayerTemplate.of(
            before, known, layer, pyramid, mapping.part(ends[0] - span.start, ends[-1] + 1 - span.start)
        )
        for t in steps:
            i = t - span.start
            now = replace(mapping.part(i, i + 1), controls=before.controls)
            now = fit_to_flow(pyramid, flow, layer, (t, known), now, before, stiffness)
            now, template = template.tracked(now, t, pyramid, stiffness)
            controls[i] = now.controls[0]
            before, known = now, t
    return replace(mapping, controls=controls)


def fit_to_flow(
    pyramid: ClipPyramid,
    flow: ClipFlow,
    layer: int,
    pair: tuple[int, int],
    now: ChartMapping,
    before: ChartMapping,
    stiffness: float,
) -> ChartMapping:
    """Put the pixels of one frame where their flow leads in a frame that is mapped already."""
    t, known = pair
    window, source = now.window(), before.window()
    back = flow.between(t, known)
    trusted = torch.from_numpy(consistent_flow(back, flow.between(known, t)))[None, None].to(pyramid.device)
    moved = torch.from_numpy(back)[None].to(pyramid.device)
    x, y = pixel_positions(window, moved)
    at = torch.stack(
        [x[:, None, :].expand(1, window.height, -1), y[:, :, None].expand(1, -1, window.width)], 1
    ) + window.cut(moved)
    at = at - source.corners[:, :, None, None]
    limit = at.new_tensor([source.width - 1, source.height - 1])[:, None, None]
    known_there = ((at >= 0) & (at <= limit)).all(1, keepdim=True)
    share = pyramid.share(layer, t, t + 1, now.height, now.width)
    weight = window.cut(share * trusted) * known_there
    wanted = sample_texture(before.uv(source)[0], at)
    fitted = fit_field(now, window, wanted, weight, stiffness=stiffness)
    return without_folds(now, window, weight, fitted.controls - now.controls)


def _corner_range(mapping: ChartMapping) -> tuple[Float[Tensor, "2"], Float[Tensor, "2"]]:
    """Return the lowest and highest place that the matrices take any corner of a box to."""
    sides = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]) * torch.tensor([*mapping.extent, 0])
    corners = sides + torch.nn.functional.pad(mapping.origins.cpu(), (0, 1), value=1.0)[:, None]
    lifted = corners @ mapping.matrices.cpu().float().transpose(1, 2)
    found = (lifted[..., :2] / lifted[..., 2:].clamp(min=0.1)).flatten(0, 1)
    return found.amin(0), found.amax(0)


@final
@dataclass(frozen=True, eq=False)
class LayerTemplate:
    """What a layer looked like in the last frames, in the pixels of its reference frame."""

    layer: int
    offset: tuple[float, float]
    sums: Float[Tensor, "4 v u"]
    """Weighted colours and weights."""

    @classmethod
    def of(
        cls, mapping: ChartMapping, t: int, layer: int, pyramid: ClipPyramid, ahead: ChartMapping
    ) -> "LayerTemplate":
        """Begin with one frame; there is room around it for what comes into sight in the frames ahead."""
        low, high = _corner_range(ahead)
        side = max(mapping.extent)
        own = mapping.origins[0].cpu()
        low = low.maximum(own - MOST_ROOM * side).minimum(own) - ROOM * side
        high = high.minimum(own + MOST_ROOM * side).maximum(own + torch.tensor(mapping.extent)) + ROOM * side
        columns, rows = (high - low).ceil().long().tolist()
        offset = (-float(low[0]), -float(low[1]))
        bare = cls(layer, offset, torch.zeros(4, rows, columns, device=pyramid.device))
        return bare.with_frame(mapping.retextured(1.0, bare.offset), t, pyramid)

    def with_frame(self, mapping: ChartMapping, t: int, pyramid: ClipPyramid) -> "LayerTemplate":
        """Add a frame, and forget a little of what it shows anew."""
        _, colours, weight = self._cut_frame(mapping, t, pyramid)
        new = splat_values(
            torch.cat([weight * colours, weight], 1), mapping.uv(mapping.window()), *self.sums.shape[1:]
        )
        return replace(self, sums=self.sums * (1 - (1 - MEMORY) * new[3:].clamp(max=1)) + new)

    def tracked(
        self, mapping: ChartMapping, t: int, pyramid: ClipPyramid, stiffness: float
    ) -> tuple[ChartMapping, "LayerTemplate"]:
        """Bring a frame into line with what is known, and add it."""
        here = mapping.retextured(1.0, self.offset)
        window, colours, weight = self._cut_frame(here, t, pyramid)
        texture = self.sums[:3] / self.sums[3:].clamp(min=1e-3)
        known = (self.sums[3:] > 0.2).float()
        for _ in range(TRACKING_STEPS):
            seen = sample_texture(known, here.uv(window)) > 0.99
            here = gauss_newton(here, window, colours, weight * seen, texture, stiffness=stiffness)
        return replace(mapping, controls=here.controls), self.with_frame(here, t, pyramid)

    def _cut_frame(
        self, mapping: ChartMapping, t: int, pyramid: ClipPyramid
    ) -> tuple[PixelWindow, Float[Tensor, "1 3 hh ww"], Float[Tensor, "1 1 hh ww"]]:
        window, size = mapping.window(), (mapping.height, mapping.width)
        weight = window.cut(pyramid.confident(self.layer, t, t + 1, *size))
        return window, window.cut(pyramid.pictures(t, t + 1, *size)), weight
