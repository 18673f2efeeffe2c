"""Optical flow by RAFT (Teed and Deng, 2020), behind the `Flow` protocol, in plain torch.

The paper in four lines, and where to find them:
    features of both pictures at an eighth of their size, and a context of the first   `FeatureEncoder`
    the product of every pair of features, on four scales                             `CorrelationPyramid`
    from zero flow, a recurrent unit reads products near where the flow points and
    corrects it, again and again; then flow is raised to full size by learnt weights  `Raft.forward`

Layers are called as the authors call theirs, so that weights they publish (`raft-things` and its like) fit
once they are safetensors. Widths are read off the weights.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Self, final

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from retouch.compute import Compute
from retouch.errors import ModelMismatch
from retouch.identity import identity
from retouch.models.loading import folder_identity
from retouch.models.refs import check_weights, resolve

LEVELS: Final = 4
"""Scales of the correlation pyramid."""
CELL: Final = 8
"""Pixels to a feature, each way."""
ROUNDS: Final = 20
"""Corrections that the authors evaluate with on real clips."""


@final
@dataclass(frozen=True)
class LayerWidths:
    """How wide the layers are; the defaults are the published model's."""

    stem: int = 64
    stages: tuple[int, int, int] = (64, 96, 128)
    features: int = 256
    hidden: int = 128
    context: int = 128
    radius: int = 4
    """Features that the unit looks to each side of where the flow points."""
    correlation: tuple[int, int] = (256, 192)
    flow: tuple[int, int] = (128, 64)
    motion: int = 126
    head: int = 256

    @classmethod
    def of(cls, weights: dict[str, Tensor]) -> Self:
        """Read the widths off the weights.

        Raises:
            KeyError: a layer is missing.
        """

        def out(name: str) -> int:
            return int(weights[f"{name}.weight"].shape[0])

        hidden, unit = out("update_block.gru.convz1"), "update_block.encoder"
        side = round((weights[f"{unit}.convc1.weight"].shape[1] / LEVELS) ** 0.5)
        first, second, third = (out(f"fnet.layer{i}.0.conv1") for i in (1, 2, 3))
        return cls(
            stem=out("fnet.conv1"),
            stages=(first, second, third),
            features=out("fnet.conv2"),
            hidden=hidden,
            context=out("cnet.conv2") - hidden,
            radius=(side - 1) // 2,
            correlation=(out(f"{unit}.convc1"), out(f"{unit}.convc2")),
            flow=(out(f"{unit}.convf1"), out(f"{unit}.convf2")),
            motion=out(f"{unit}.conv"),
            head=out("update_block.flow_head.conv1"),
        )


@final
class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1)
        self.norm1, self.norm2 = _norm_layer(after, batch_norm), _norm_layer(after, batch_norm)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1:
            self.norm3 = _norm_layer(after, batch_norm)
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride), self.norm3)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b cc hh ww"]:
        """Give the shortcut and what is learnt beside it."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        whole: Tensor = F.relu(self.downsample(x) + y)
        return whole


def _norm_layer(width: int, batch_norm: bool) -> nn.Module:
    return nn.BatchNorm2d(width) if batch_norm else nn.InstanceNorm2d(width)


@final
class FeatureEncoder(nn.Module):
    """A picture's features at an eighth of its size."""

    def __init__(self, widths: LayerWidths, out: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.norm1 = _norm_layer(widths.stem, batch_norm)
        self.conv1 = nn.Conv2d(3, widths.stem, 7, 2, 3)
        steps = list(pairwise((widths.stem, *widths.stages)))
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(
                ResidualBlock(before, after, stride, batch_norm=batch_norm),
                ResidualBlock(after, after, 1, batch_norm=batch_norm),
            )
            for (before, after), stride in zip(steps, (1, 2, 2), strict=True)
        )
        self.conv2 = nn.Conv2d(widths.stages[-1], out, 1)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d hh ww"]:
        """Give the features of pictures from -1 to 1."""
        x = F.relu(self.norm1(self.conv1(x)))
        found: Tensor = self.conv2(self.layer3(self.layer2(self.layer1(x))))
        return found


@final
class MotionEncoder(nn.Module):
    """What the products and the flow so far say together."""

    def __init__(self, widths: LayerWidths) -> None:
        super().__init__()
        window = LEVELS * (2 * widths.radius + 1) ** 2
        self.convc1 = nn.Conv2d(window, widths.correlation[0], 1)
        self.convc2 = nn.Conv2d(*widths.correlation, 3, padding=1)
        self.convf1 = nn.Conv2d(2, widths.flow[0], 7, padding=3)
        self.convf2 = nn.Conv2d(*widths.flow, 3, padding=1)
        self.conv = nn.Conv2d(widths.correlation[1] + widths.flow[1], widths.motion, 3, padding=1)

    def forward(
        self, flow: Float[Tensor, "b 2 h w"], products: Float[Tensor, "b k h w"]
    ) -> Float[Tensor, "b d h w"]:
        """Give both as one, with the flow itself behind it."""
        seen = F.relu(self.convc2(F.relu(self.convc1(products))))
        known = F.relu(self.convf2(F.relu(self.convf1(flow))))
        return torch.cat([F.relu(self.conv(torch.cat([seen, known], 1))), flow], 1)


@final
class SeparableGru(nn.Module):
    """A gated unit that looks along rows, then along columns."""

    def __init__(self, hidden: int, given: int) -> None:
        super().__init__()
        both = hidden + given
        self.convz1, self.convr1, self.convq1 = (
            nn.Conv2d(both, hidden, (1, 5), padding=(0, 2)) for _ in "zrq"
        )
        self.convz2, self.convr2, self.convq2 = (
            nn.Conv2d(both, hidden, (5, 1), padding=(2, 0)) for _ in "zrq"
        )

    def forward(self, h: Float[Tensor, "b d h w"], x: Float[Tensor, "b dd h w"]) -> Float[Tensor, "b d h w"]:
        """Give the next state."""
        for update, reset, new in (
            (self.convz1, self.convr1, self.convq1),
            (self.convz2, self.convr2, self.convq2),
        ):
            hx = torch.cat([h, x], 1)
            z, r = torch.sigmoid(update(hx)), torch.sigmoid(reset(hx))
            h = (1 - z) * h + z * torch.tanh(new(torch.cat([r * h, x], 1)))
        return h


@final
class FlowHead(nn.Module):
    """The correction that a state asks for."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(hidden, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 2 h w"]:
        """Give the correction, x then y."""
        step: Tensor = self.conv2(F.relu(self.conv1(x)))
        return step


@final
class UpdateBlock(nn.Module):
    """One round: look, think, correct."""

    def __init__(self, widths: LayerWidths) -> None:
        super().__init__()
        self.encoder = MotionEncoder(widths)
        self.gru = SeparableGru(widths.hidden, widths.context + widths.motion + 2)
        self.flow_head = FlowHead(widths.hidden, widths.head)
        self.mask = nn.Sequential(
            nn.Conv2d(widths.hidden, widths.head, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(widths.head, CELL * CELL * 9, 1),
        )


@final
class CorrelationPyramid:
    """The product of every pair of features of two pictures, and its means over larger and larger cells."""

    def __init__(self, a: Float[Tensor, "b d h w"], b: Float[Tensor, "b d h w"], radius: int) -> None:
        count, depth, height, width = a.shape
        whole = a.flatten(2).transpose(1, 2) @ b.flatten(2) / depth**0.5
        self.radius = radius
        self.levels = [whole.view(count * height * width, 1, height, width)]
        for _ in range(LEVELS - 1):
            self.levels.append(F.avg_pool2d(self.levels[-1], 2))

    def near(self, places: Float[Tensor, "b 2 h w"]) -> Float[Tensor, "b k h w"]:
        """Give the products in a window around a place, x then y, for every feature and on every scale."""
        count, _, height, width = places.shape
        steps = torch.arange(-self.radius, self.radius + 1).to(places)
        # The published weights know the window with x along its rows.
        window = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1)
        centre = places.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2)
        found = [_read_bilinear(level, centre / 2**i + window) for i, level in enumerate(self.levels)]
        return torch.cat([f.reshape(count, height, width, -1) for f in found], -1).permute(0, 3, 1, 2)


def _read_bilinear(
    pictures: Float[Tensor, "n 1 h w"], at: Float[Tensor, "n a b 2"]
) -> Float[Tensor, "n 1 a b"]:
    """Read pictures at places, x then y with centres at whole numbers; nothing outside."""
    height, width = pictures.shape[-2:]
    grid = 2 * at / at.new_tensor([max(width - 1, 1), max(height - 1, 1)]) - 1
    return F.grid_sample(pictures, grid, align_corners=True)


@final
class RaftNetwork(nn.Module):
    """The network."""

    def __init__(self, widths: LayerWidths | None = None) -> None:
        super().__init__()
        self.widths = widths or LayerWidths()
        self.fnet = FeatureEncoder(self.widths, self.widths.features, batch_norm=False)
        self.cnet = FeatureEncoder(self.widths, self.widths.hidden + self.widths.context, batch_norm=True)
        self.update_block = UpdateBlock(self.widths)

    def forward(
        self, a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"], rounds: int = ROUNDS
    ) -> Float[Tensor, "b 2 h w"]:
        """Give the flow from `a` to `b`, x then y, in pixels; pictures are -1 to 1, sides multiples of 8."""
        block = self.update_block
        features = self.fnet(torch.cat([a, b]))
        pyramid = CorrelationPyramid(features[: len(a)], features[len(a) :], self.widths.radius)
        state, given = self.cnet(a).split([self.widths.hidden, self.widths.context], 1)
        state, given = torch.tanh(state), F.relu(given)
        y, x = (torch.arange(n).to(a) for n in state.shape[-2:])
        here = torch.stack(torch.meshgrid(x, y, indexing="xy"))[None]
        flow = torch.zeros_like(here).expand(len(a), -1, -1, -1)
        for _ in range(rounds):
            motion = block.encoder(flow, pyramid.near(here + flow))
            state = block.gru(state, torch.cat([given, motion], 1))
            flow = flow + block.flow_head(state)
        # The factor is the authors': it balances the gradients of the two heads.
        return upsample_flow(flow, 0.25 * block.mask(state))


def upsample_flow(
    flow: Float[Tensor, "b 2 h w"], weights: Float[Tensor, "b k h w"]
) -> Float[Tensor, "b 2 hh ww"]:
    """Give flow at full size: every pixel is a weighted mean of the nine cells around its own."""
    count, _, height, width = flow.shape
    shares = weights.view(count, 1, 9, CELL, CELL, height, width).softmax(2)
    near = F.unfold(CELL * flow, 3, padding=1).view(count, 2, 9, 1, 1, height, width)
    fine = (shares * near).sum(2)  # b 2 cell cell h w
    return fine.permute(0, 1, 4, 2, 5, 3).reshape(count, 2, CELL * height, CELL * width)


@final
class RaftFlow:
    """Flow by a RAFT: slower than dense inverse search, and better on large and blurred motion."""

    def __init__(self, model: RaftNetwork, *, rounds: int = ROUNDS, weights: str = "") -> None:
        self.model = model.eval().requires_grad_(False)
        self.rounds = rounds
        self._weights = weights or identity(dict(model.state_dict()))

    @classmethod
    def from_pretrained(cls, ref: str, compute: Compute | None = None) -> Self:
        """Load the safetensors that lie in the folder that `ref` names, from this machine only.

        Raises:
            ModelNotFound: it is not here.
            ModelMismatch: its weights are no RAFT's, or no safetensors.
        """
        folder = resolve(ref)
        check_weights(folder, ref)
        try:
            weights = load_file(min(folder.glob("*.safetensors")))
            # Weights that were saved while several devices trained carry a prefix.
            weights = {name.removeprefix("module."): value for name, value in weights.items()}
            model = RaftNetwork(LayerWidths.of(weights))
            model.load_state_dict(weights)
        except (KeyError, RuntimeError, SafetensorError) as problem:
            raise ModelMismatch(
                f"{ref} is no RAFT with the authors' layer names ({type(problem).__name__}: {problem})",
                hint="make a folder of raft-things.pth: python tools/convert/raft.py",
            ) from None
        device = (compute or Compute()).torch_device()
        return cls(model.to(device), weights=folder_identity(folder))

    @property
    def identity(self) -> str:
        """A hash of the weights, and the number of corrections."""
        return f"raft-{self._weights}-{self.rounds}"

    @torch.no_grad()
    def pair(
        self, a: UInt8[np.ndarray, "h w 3"], b: UInt8[np.ndarray, "h w 3"]
    ) -> Float32[np.ndarray, "2 h w"]:
        """Give the displacement, x then y, from each pixel of `a` to the same thing in `b`."""
        height, width = a.shape[:2]
        # Four halvings of the features must leave something of them.
        rows, columns = (max(CELL * 2 ** (LEVELS - 1), -(-n // CELL) * CELL) - n for n in (height, width))
        edges = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
        device = next(self.model.parameters()).device
        pictures = torch.from_numpy(np.stack([a, b])).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        padded = F.pad(pictures, edges, mode="replicate")
        found = self.model(padded[:1], padded[1:], self.rounds)[0]
        inside = found[:, edges[2] : edges[2] + height, edges[0] : edges[0] + width]
        return np.ascontiguousarray(inside.cpu().numpy())
