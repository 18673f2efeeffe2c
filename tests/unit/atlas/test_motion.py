"""Following layers from frame to frame: what keeps errors from adding up."""

from fractions import Fraction

import cv2
import numpy as np
import torch

from retouch.atlas.atlas import PackedMattes, pack_matte
from retouch.atlas.charts import ChartSpan
from retouch.atlas.mapping import ChartMapping
from retouch.atlas.motion import LayerTemplate, chain_matrices, follow_layer
from retouch.atlas.pyramid import AtlasSettings, ClipPyramid
from retouch.tracking.flow import ClipFlow
from retouch.video import Video

HEIGHT, WIDTH, FRAMES, STEP = 48, 64, 12, 4
LEAN = 0.15  # pixels that the flow is wrong by in every frame
STICKS = 0.35  # pixels; the flow alone ends (FRAMES - 1) * LEAN = 1.65 pixels off


def panned() -> tuple[Video, tuple[PackedMattes, ...]]:
    """A camera that pans over a wall; the object is a speck in a corner."""
    rng = np.random.default_rng(5)
    wall = cv2.GaussianBlur(rng.random((HEIGHT, WIDTH + STEP * FRAMES, 3)).astype(np.float32), (0, 0), 1.5)
    wall = ((wall - wall.min()) / np.ptp(wall) * 255).astype(np.uint8)
    shots = [wall[:, STEP * t : STEP * t + WIDTH].transpose(2, 0, 1) for t in range(FRAMES)]
    speck = np.zeros((HEIGHT, WIDTH), np.uint8)
    speck[:3, :3] = 255
    mattes = PackedMattes.pack([pack_matte(speck)] * FRAMES, HEIGHT, WIDTH)
    return Video(np.stack(shots), Fraction(10)), (mattes,)


class LeaningFlow:
    """The true flow of `panned`, and a little more, always to the same side."""

    identity = "leaning"

    def pair(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The pan from `a` to `b`, which carry their numbers."""
        turn = float(b[0, 0, 0]) - float(a[0, 0, 0])
        flow = np.zeros((2, HEIGHT, WIDTH), np.float32)
        flow[0] = -STEP * turn + LEAN * turn
        return flow


def test_the_background_is_held_to_what_was_seen_where_flow_leads_astray() -> None:
    video, mattes = panned()
    pyramid = ClipPyramid(video, mattes, torch.device("cpu"))
    size = (HEIGHT, WIDTH)
    numbers = [np.full((*size, 3), t, np.uint8) for t in range(FRAMES)]
    flow = ClipFlow(numbers.__getitem__, LeaningFlow(), np.zeros((FRAMES, 2, 2, *size), np.float32))
    pairs = np.tile(np.eye(3), (FRAMES - 1, 1, 1))
    pairs[:, 0, 2] = -STEP + LEAN
    span = ChartSpan(0, 0, torch.ones(FRAMES))
    mapping = follow_layer(pyramid, flow, pairs, 1, span, size, AtlasSettings())
    last = mapping.uv_at(FRAMES - 1, torch.tensor([[20.0, 24.0], [44.0, 30.0]]))
    wanted = torch.tensor([[20.0, 24.0], [44.0, 30.0]]) + torch.tensor([STEP * (FRAMES - 1.0), 0])
    assert float((last - wanted).norm(dim=1).max()) < STICKS


def test_a_template_has_room_for_what_the_frames_ahead_show() -> None:
    video, mattes = panned()
    pyramid = ClipPyramid(video, mattes, torch.device("cpu"))
    pairs = np.tile(np.eye(3), (FRAMES - 1, 1, 1))
    pairs[:, 0, 2] = -STEP
    matrices = chain_matrices(pairs, 0, 0, FRAMES)
    extent = (float(WIDTH), float(HEIGHT))
    mapping = ChartMapping(
        matrices, torch.zeros(FRAMES, 2, 5, 5), torch.zeros(FRAMES, 2), extent, HEIGHT, WIDTH
    )
    template = LayerTemplate.of(mapping.part(0, 1), 0, 1, pyramid, mapping)
    at = mapping.retextured(1.0, template.offset).uv(mapping.window())
    assert float(at.min()) >= 0
    assert float(at[:, 0].max()) <= template.sums.shape[2] - 1
    assert float(at[:, 1].max()) <= template.sums.shape[1] - 1
