"""An atlas for more of the clip: new frames are fitted to the pictures there are, which stay as they are."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from retouch.atlas.atlas import Atlas, Chart, PackedMattes, pack_matte
from retouch.atlas.decompose import flow_between
from retouch.atlas.mapping import ChartMapping
from retouch.atlas.motion import TRACKING_STEPS, fit_to_flow, robust_matrix
from retouch.atlas.pyramid import AtlasSettings, ClipPyramid
from retouch.atlas.solve import gauss_newton
from retouch.errors import InputError
from retouch.run import Run
from retouch.tracking.flow import ClipFlow, DisFlow, consistent_flow
from retouch.tracking.segment import GrabCutSegmenter, ObjectMark, tracking_size
from retouch.video import Video


@torch.no_grad()
def extend_atlas(atlas: Atlas, video: Video, *, run: Run) -> Atlas:
    """Return the atlas of a longer clip that begins with the atlas's own.

    Textures do not change, so every edit made for the shorter clip holds.

    Raises:
        InputError: the clip does not begin with the one that the atlas was made from.
    """
    known = atlas.frames
    if len(video) <= known or video[:known].digest != atlas.source:
        raise InputError(
            f"the clip does not begin with the {known} frames of the atlas",
            hint="give the whole longer clip, first frame to last",
        )
    mattes = tuple(_extend_matte(matte, video, known) for matte in atlas.mattes)
    pyramid = ClipPyramid(video, mattes, atlas.device)
    size = tracking_size(video.height, video.width, AtlasSettings.model_validate_json(atlas.settings).side)
    flow = flow_between(video, size, DisFlow(), run)
    charts = list(atlas.charts)
    for layer in range(len(atlas.names)):
        index = max((c.stop, float(c.blend[-1]), i) for i, c in enumerate(charts) if c.layer == layer)[2]
        chart = charts[index]
        for t in range(known, len(video)):
            run.check()
            chart = _with_frame(chart, pyramid, flow, t, size)
        charts[index] = chart
    return replace(atlas, charts=tuple(charts), mattes=mattes, frames=len(video), source=video.digest)


def _extend_matte(matte: PackedMattes, video: Video, known: int) -> PackedMattes:
    """Return the matte, followed into the new frames."""
    last = matte.frame(known - 1)
    packed = [matte.packed_frame(t) for t in range(known)]
    rest = video[known - 1 :]
    if last.max() <= 127:
        nothing = pack_matte(np.zeros_like(last))
        return PackedMattes.pack([*packed, *[nothing] * (len(rest) - 1)], matte.height, matte.width)
    cutout = GrabCutSegmenter().segment(rest, [ObjectMark("mask", 0, drawn=last)])
    packed += [pack_matte(m[0]) for m in cutout.full(0, 1, len(rest))]
    return PackedMattes.pack(packed, matte.height, matte.width)


def _with_frame(chart: Chart, pyramid: ClipPyramid, flow: ClipFlow, t: int, size: tuple[int, int]) -> Chart:
    """Return the chart with frame `t` behind its last one."""
    small = chart.mapping.at_size(*size)
    before = small.part(len(small) - 1, len(small))
    share = pyramid.share(chart.layer, t - 1, t, *size)[0, 0].cpu().numpy() > 0.9
    there = flow.between(t - 1, t)
    good = consistent_flow(there, flow.between(t, t - 1)) & share
    moved = robust_matrix(there, good, affine=chart.layer < pyramid.layers - 1)
    now = _matrix_moved(before, moved)
    if chart.layer < pyramid.layers - 1:
        now = _box_moved(now, moved)
    stiffness = pyramid.stiffness(chart.layer, AtlasSettings())
    now = fit_to_flow(pyramid, flow, chart.layer, (t, t - 1), now, before, stiffness)
    window = now.window()
    colours = window.cut(pyramid.pictures(t, t + 1, *size))
    weight = window.cut(pyramid.confident(chart.layer, t, t + 1, *size))
    for _ in range(TRACKING_STEPS):
        now = gauss_newton(now, window, colours, weight, chart.texture, stiffness=stiffness)
    whole = now.at_size(chart.mapping.height, chart.mapping.width)
    mapping = replace(
        chart.mapping,
        matrices=_append_frames(chart.mapping.matrices, whole.matrices),
        controls=_append_frames(chart.mapping.controls, whole.controls),
        origins=_append_frames(chart.mapping.origins, whole.origins),
    )
    blend = _append_frames(chart.blend, torch.ones_like(chart.blend[-1:]))
    return replace(chart, mapping=mapping, blend=blend, gain=_append_frames(chart.gain, chart.gain[-1:]))


def _append_frames(first: Tensor, last: Tensor) -> Tensor:
    return torch.cat([first, last.to(first)])


def _matrix_moved(before: ChartMapping, matrix: Float64[np.ndarray, "3 3"]) -> ChartMapping:
    """Return the last frame's mapping, taken one frame on by the motion between them."""
    matrices = before.matrices.cpu().double() @ torch.from_numpy(np.linalg.inv(matrix))
    return replace(before, matrices=(matrices / matrices[:, 2:, 2:]).to(before.matrices))


def _box_moved(mapping: ChartMapping, matrix: Float64[np.ndarray, "3 3"]) -> ChartMapping:
    """Return the mapping with its box, an object's, taken along by the motion and kept inside the frame."""
    corner, extent = mapping.origins[0].cpu().double().numpy(), np.array(mapping.extent)
    middle = corner + extent / 2 - 0.5
    lifted = matrix @ np.append(middle, 1.0)
    limit = np.maximum(np.array([mapping.width, mapping.height]) - extent, 0)
    moved = np.clip(corner + lifted[:2] / lifted[2] - middle, 0, limit)
    return replace(mapping, origins=torch.from_numpy(moved)[None].to(mapping.origins))
