"""The atlas: a clip as a few pictures that move.

Front to back, layers of one or more charts each; the last layer is the background and covers everything. A
chart is a texture, a mapping that says where each pixel of a run of frames lies in it, and a coarse gain that
carries the light. A pixel is

    V(p) = sum over layers l of  share_l(p) * sum over charts c of l of  blend_c(t) * gain_c(p) * T_c(uv_c(p))

where `share` is a layer's matte times what the layers before it let through. **Texture coordinates** are x, y
in texels, centres at whole numbers, of the chart's own texture.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import final

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from retouch.atlas.mapping import ChartMapping, PixelWindow, cubic_spline, knot_distances
from retouch.atlas.textures import sample_texture
from retouch.video import FRAMES_AT_ONCE, Video, decibels, release_pages


@final
@dataclass(frozen=True, eq=False)
class PackedMattes:
    """One object's matte in every frame, packed without loss: memory hardly grows with the clip."""

    packed: UInt8[np.ndarray, " bytes"]
    ends: Int[np.ndarray, " f"]
    height: int
    width: int

    @classmethod
    def pack(cls, pictures: "list[bytes]", height: int, width: int) -> "PackedMattes":
        """Put packed pictures behind each other."""
        ends = np.cumsum([len(p) for p in pictures])
        return cls(np.frombuffer(b"".join(pictures), np.uint8), ends, height, width)

    def __len__(self) -> int:
        return len(self.ends)

    def packed_frame(self, t: int) -> bytes:
        """Return the PNG bytes of a frame's matte."""
        start = int(self.ends[t - 1]) if t else 0
        return self.packed[start : int(self.ends[t])].tobytes()

    def frame(self, t: int) -> UInt8[np.ndarray, "h w"]:
        """Return the matte of a frame."""
        return unpack_matte(self.packed_frame(t))

    def frames(self, start: int, stop: int) -> UInt8[np.ndarray, "f 1 h w"]:
        """Return the mattes of some frames."""
        return np.stack([self.frame(t) for t in range(start, stop)])[:, None]


def pack_matte(matte: UInt8[np.ndarray, "h w"]) -> bytes:
    """Pack a matte as PNG."""
    done, packed = cv2.imencode(".png", matte, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert done
    return bytes(packed.tobytes())


def unpack_matte(packed: bytes) -> UInt8[np.ndarray, "h w"]:
    """Bring a packed matte back."""
    return np.asarray(cv2.imdecode(np.frombuffer(packed, np.uint8), cv2.IMREAD_GRAYSCALE))


@final
@dataclass(frozen=True, eq=False)
class Chart:
    """One texture of one layer, with where the pixels of its frames lie in it."""

    layer: int
    reference: int
    """The frame that the texture looks like."""
    start: int
    """The first frame of the clip that `mapping`, `blend` and `gain` speak of."""
    mapping: ChartMapping
    scale: float
    """Texels for each pixel of the reference frame."""
    blend: Float[Tensor, " f"]
    """How much each frame takes from this chart; over a layer's charts it sums to 1."""
    texture: Float[Tensor, "3 v u"]
    """Colours from 0 to 1."""
    seen: Float[Tensor, "1 v u"]
    """How many frames showed each texel, as a sum of weights; 0 was filled in from around."""
    gain: Float[Tensor, "f 3 kh kw"]
    """Spline controls of what the texture's colours are multiplied by, over the mapping's box."""

    @property
    def stop(self) -> int:
        """The frame after the last one."""
        return self.start + len(self.mapping)

    def covers(self, t: int) -> bool:
        """Return whether a frame takes anything from this chart."""
        return self.start <= t < self.stop and float(self.blend[t - self.start]) > 0

    def part(self, start: int, stop: int) -> ChartMapping:
        """Return the mapping of some frames of the clip."""
        return self.mapping.part(start - self.start, stop - self.start)

    def gain_basis(
        self, window: PixelWindow, start: int, stop: int
    ) -> tuple[Float[Tensor, "f hh kh"], Float[Tensor, "f ww kw"]]:
        """Return the spline weights of the gain for the rows and columns of a window."""
        origins = self.mapping.origins[start - self.start : stop - self.start]
        away_y, away_x = knot_distances(
            window, origins, self.mapping.extent, (self.gain.shape[2], self.gain.shape[3])
        )
        return cubic_spline(away_y), cubic_spline(away_x)

    def gains(self, window: PixelWindow, start: int, stop: int) -> Float[Tensor, "f 3 hh ww"]:
        """Return the gain at every pixel of a window of frames `start` to `stop` of the clip."""
        a, b = start - self.start, stop - self.start
        controls = self.gain[a:b]
        rows, columns = self.gain_basis(window, start, stop)
        return rows[:, None] @ controls @ columns[:, None].transpose(-1, -2)


@final
@dataclass(frozen=True, eq=False)
class Atlas:
    """A decomposed clip. Layers are ordered front to back; the last one is the background."""

    names: tuple[str, ...]
    charts: tuple[Chart, ...]
    mattes: tuple[PackedMattes, ...]
    """One for each layer but the last, straight: not yet covered by the layers in front."""
    frames: int
    height: int
    width: int
    fps: Fraction
    source: str
    """The digest of the clip."""
    first: int = 0
    """The number that the clip's file gives the first of these frames."""
    stage: str = ""
    """The last stage of solving that went in."""
    settings: str = "{}"
    """What it was solved with, as JSON."""

    def charts_of(self, layer: int, start: int, stop: int) -> list[Chart]:
        """Return the charts that a layer takes any of some frames from."""
        return [c for c in self.charts if c.layer == layer and c.start < stop and c.stop > start]

    def shares(self, start: int, stop: int) -> list[Float[Tensor, "f 1 h w"]]:
        """Return how much of each pixel each layer makes up; over the layers it sums to 1."""
        packed = [torch.from_numpy(m.frames(start, stop)) for m in self.mattes]
        return shares_of([alpha.to(self.device).float() / 255 for alpha in packed])

    @property
    def device(self) -> torch.device:
        """Where the textures lie."""
        return self.charts[0].texture.device

    def to(self, device: torch.device | str) -> "Atlas":
        """Return the same atlas on another device."""
        return replace(self, charts=tuple(chart_on_device(chart, device) for chart in self.charts))

    def layer(self, layer: int, start: int, stop: int) -> Float[Tensor, "f 3 h w"]:
        """Return what a layer alone shows, 0 to 1, wherever its charts reach."""
        shown = torch.zeros(stop - start, 3, self.height, self.width, device=self.device)
        for chart in self.charts_of(layer, start, stop):
            a, b = max(start, chart.start), min(stop, chart.stop)
            part = chart.part(a, b)
            window = part.window()
            blend = chart.blend[a - chart.start : b - chart.start, None, None, None]
            colours = sample_texture(chart.texture, part.uv(window)) * chart.gains(window, a, b)
            shown[a - start : b - start] += window.paste(blend * colours, self.height, self.width)
        return shown

    def reconstruct(self, start: int, stop: int) -> Float[Tensor, "f 3 h w"]:
        """Return the clip as the atlas explains it, 0 to 1."""
        total = torch.zeros(stop - start, 3, self.height, self.width, device=self.device)
        for index, share in enumerate(self.shares(start, stop)):
            total += share * self.layer(index, start, stop)
        return total


def chart_on_device(chart: Chart, device: torch.device | str) -> Chart:
    """Return the same chart on another device."""
    mapping = chart.mapping
    there = replace(
        mapping,
        matrices=mapping.matrices.to(device),
        controls=mapping.controls.to(device),
        origins=mapping.origins.to(device),
    )
    return replace(
        chart,
        mapping=there,
        blend=chart.blend.to(device),
        texture=chart.texture.to(device),
        seen=chart.seen.to(device),
        gain=chart.gain.to(device),
    )


def shares_of(alphas: Sequence[Float[Tensor, "f 1 h w"]]) -> list[Float[Tensor, "f 1 h w"]]:
    """Return each layer's share of each pixel, from straight mattes front to back; last, the rest."""
    assert alphas, "an atlas has at least one object"
    made, through = [alphas[0]], 1 - alphas[0]
    for alpha in alphas[1:]:
        made.append(alpha * through)
        through = through * (1 - alpha)
    return [*made, through]


def reconstruction_decibels(atlas: Atlas, video: Video) -> dict[str, list[float]]:
    """Return the reconstruction in dB, frame by frame: of all pixels, and of each layer's own."""
    found: dict[str, list[float]] = {"all": [], **{name: [] for name in atlas.names}}
    step = max(1, FRAMES_AT_ONCE // 4)
    for start in range(0, atlas.frames, step):
        stop = min(start + step, atlas.frames)
        wanted = torch.tensor(video.frames[start:stop]).to(atlas.device).float() / 255
        release_pages(video.frames)
        off = (atlas.reconstruct(start, stop) - wanted).square().mean(1, keepdim=True)
        found["all"] += [decibels(float(e), peak=1) for e in off.mean((1, 2, 3))]
        for name, share in zip(atlas.names, atlas.shares(start, stop), strict=True):
            own = (share > 0.5).float()
            mean = (off * own).sum((1, 2, 3)) / own.sum((1, 2, 3)).clamp(min=1)
            found[name] += [
                decibels(float(e), peak=1) if float(n) else float("nan")
                for e, n in zip(mean, own.sum((1, 2, 3)), strict=True)
            ]
    return found
