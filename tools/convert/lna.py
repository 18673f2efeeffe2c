"""Brings checkpoints of Layered Neural Atlases into an atlas file that can be painted on.

`python tools/convert/lna.py CHECKPOINT CLIP -o FILE.atlas` reads what the training of Kasten et al. wrote
(the file `checkpoint` or its folder, with `config.json` beside it; `weights_only=True`, so that nothing in it
is run) and the clip that it was trained on. Four networks come out of it:

    mapping 1, mapping 2    (x, y, t) -> texture position of the foreground and of the background
    alpha                   (x, y, t) -> how much of a pixel is foreground
    atlas                   texture position -> colour, the foreground in its upper right quadrant

Positions count from -1 to 1 along the longer side. Mattes are read off alpha at every pixel; our explicit
mappings are fitted to the two mappings by least squares; textures are read off the atlas at every texel.
"""

import itertools
import math
import sys
from collections.abc import Mapping as Named
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, final

import click
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src")]  # runs from a checkout that is not installed

import cv2  # noqa: E402 - the path comes first
import torch  # noqa: E402
from jaxtyping import Float  # noqa: E402
from torch import Tensor  # noqa: E402

from retouch.atlas.atlas import Atlas, Chart, PackedMattes, pack_matte, reconstruction_decibels  # noqa: E402
from retouch.atlas.charts import ChartSpan  # noqa: E402
from retouch.atlas.decompose import reframe_texture  # noqa: E402
from retouch.atlas.file import save_atlas  # noqa: E402
from retouch.atlas.mapping import ChartMapping, PixelWindow  # noqa: E402
from retouch.atlas.motion import layer_boxes  # noqa: E402
from retouch.atlas.pyramid import ClipPyramid, frame_blocks  # noqa: E402
from retouch.atlas.solve import fit_field  # noqa: E402
from retouch.atlas.textures import fill_unseen, splat_values  # noqa: E402
from retouch.errors import ModelMismatch, ModelNotFound, RetouchError  # noqa: E402
from retouch.files import check_free  # noqa: E402
from retouch.media.io import read  # noqa: E402
from retouch.models.refs import read_config  # noqa: E402
from retouch.tracking.segment import tracking_size  # noqa: E402
from retouch.video import Video  # noqa: E402

NETWORKS: Final = {
    "foreground": ("model_F_mapping1_state_dict", 3, 2),
    "background": ("model_F_mapping2_state_dict", 3, 2),
    "alpha": ("model_F_alpha_state_dict", 3, 1),
    "atlas": ("F_atlas_state_dict", 2, 3),
}
"""Name in the file, inputs and outputs."""
AT_ONCE: Final = 1 << 16
"""Positions that a network is asked about at one time."""
FIT_SIDE, CHECK_SIDE = 240, 201
"""Long sides that mappings are fitted at and that the error is measured at: other places than the fitted."""
STIFFNESS: Final = 1e-4
"""There is no noise to resist; a trace of stiffness settles where the layer is not."""
SHOWN: Final = 0.02
"""A layer's share of a pixel above which its colours count."""


@final
@dataclass(frozen=True)
class Perceptron:
    """A plain ReLU network with a tanh at its end; everything about it can be told from its weights."""

    weights: tuple[Float[Tensor, "out inputs"], ...]
    biases: tuple[Float[Tensor, " out"], ...]
    inputs: int

    @classmethod
    def read(cls, state: object, name: str, inputs: int, outputs: int) -> "Perceptron":
        """Take a network out of a checkpoint.

        Raises:
            ModelMismatch: it is not the network that it should be.
        """
        if not isinstance(state, Named) or not all(isinstance(v, Tensor) for v in state.values()):
            raise ModelMismatch(
                f"{name} holds no weights", hint="give a checkpoint of Layered Neural Atlases"
            )
        count = len(state) // 2
        known = {f"hidden.{i}.{part}" for i in range(count) for part in ("weight", "bias")}
        if not count or set(state) != known:
            raise ModelMismatch(
                f"{name} has unknown layers", hint="only the authors' plain networks are read"
            )
        weights = tuple(state[f"hidden.{i}.weight"].float() for i in range(count))
        biases = tuple(state[f"hidden.{i}.bias"].float() for i in range(count))
        if any(w.ndim != 2 or b.shape != w.shape[:1] for w, b in zip(weights, biases, strict=True)):
            raise ModelMismatch(f"{name} has weights of odd shapes", hint="the file is damaged")
        first = weights[0].shape[1]
        fits = (first == inputs or first % (2 * inputs) == 0 < first) and weights[-1].shape[0] == outputs
        for before, after in itertools.pairwise(weights):
            fits &= after.shape[1] - before.shape[0] in (0, first)  # a skip brings the encoded input again
        if not fits or not all(bool(part.isfinite().all()) for part in (*weights, *biases)):
            raise ModelMismatch(
                f"{name} is no network from {inputs} to {outputs} numbers", hint="the file is damaged"
            )
        return cls(weights, biases, inputs)

    def __call__(self, positions: Float[Tensor, "n inputs"]) -> Float[Tensor, "n outputs"]:
        """Give the network's values, -1 to 1."""
        return torch.cat([self._few(some) for some in torch.split(positions, AT_ONCE)])

    def _few(self, positions: Float[Tensor, "n inputs"]) -> Float[Tensor, "n outputs"]:
        encoded = x = self._encoded(positions)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = x.relu() if i else x
            if weight.shape[1] > x.shape[1]:
                x = torch.cat([x, encoded], 1)
            x = x @ weight.T + bias
        return x.tanh()

    def _encoded(self, positions: Float[Tensor, "n inputs"]) -> Float[Tensor, "n encoded"]:
        first = self.weights[0].shape[1]
        if first == self.inputs:
            return positions
        octaves = first // (2 * self.inputs)
        turns = positions[:, None] * (math.pi * 2.0 ** torch.arange(octaves))[:, None]  # n octaves inputs
        return torch.cat([turns.sin(), turns.cos()], 2).flatten(1)


@final
@dataclass(frozen=True)
class Trained:
    """What a training left: four networks, and the clip as they know it."""

    foreground: Perceptron
    background: Perceptron
    alpha: Perceptron
    atlas: Perceptron
    height: int
    width: int
    most_frames: int

    def positions(
        self, t: int, frames: int, window: PixelWindow, size: tuple[int, int]
    ) -> Float[Tensor, "n 3"]:
        """Give the network's position of every pixel of a window of frame `t`, for frames of any size."""
        left, top = window.corners[0].tolist()
        x = (torch.arange(window.width) + left + 0.5) * (self.width / size[1]) - 0.5
        y = (torch.arange(window.height) + top + 0.5) * (self.height / size[0]) - 0.5
        half = max(self.height, self.width) / 2
        rows, columns = torch.meshgrid(y / half - 1, x / half - 1, indexing="ij")
        return torch.stack([columns, rows, torch.full_like(rows, t / (frames / 2) - 1)], -1).flatten(0, 1)

    def uv(
        self, layer: int, t: int, frames: int, window: PixelWindow, size: tuple[int, int]
    ) -> Float[Tensor, "1 2 h w"]:
        """Give where the pixels of a window lie, from -1 to 1."""
        network = self.background if layer else self.foreground
        return network(self.positions(t, frames, window, size)).T.view(1, 2, window.height, window.width)

    def colours(self, layer: int, uv: Float[Tensor, "n 2"]) -> Float[Tensor, "3 n"]:
        """Give a layer's colours, 0 to 1. The two layers share one atlas, each in a quadrant of its own."""
        return (self.atlas(uv / 2 + (-0.5 if layer else 0.5)).T + 1) / 2

    def share(self, t: int, frames: int, window: PixelWindow, size: tuple[int, int]) -> Float[Tensor, "h w"]:
        """Give how much of each pixel is foreground: never quite 0 or 1, as it was trained."""
        shown = self.alpha(self.positions(t, frames, window, size))
        return (0.99 * (shown + 1) / 2 + 0.001).view(window.height, window.width)


@final
@dataclass(frozen=True)
class Fit:
    """How far our mapping of a layer lies from the network's, in pixels of the clip."""

    rms: float
    p95: float


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("clip", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The atlas file.")
@click.option("--spacing", default=20.0, show_default=True, help="Controls along the frame's long side.")
@click.option("--texture-scale", "scale", default=1.5, show_default=True, help="Texels a pixel.")
@click.option("--force", is_flag=True, help="Replace what exists.")
def main(checkpoint: Path, clip: Path, out: Path, spacing: float, scale: float, *, force: bool) -> None:
    """Convert CHECKPOINT, trained on CLIP, into an atlas file."""
    try:
        check_free(out, force=force)
        trained = read_checkpoint(checkpoint)
        whole = read(clip)
        video = whole[: trained.most_frames]
        made, fits = converted(trained, video, spacing=spacing, scale=scale)
        save_atlas(made, out, force=force)
    except RetouchError as error:
        click.echo(f"error: {error}\nhint: {error.hint}", err=True)
        sys.exit(error.exit_code)
    click.echo(f"{out}: {made.frames} frames of {made.width}x{made.height}")
    for name, fit in zip(made.names, fits, strict=True):
        click.echo(f"  {name}: fitted to {fit.rms:.3f} px rms, {fit.p95:.3f} px at the 95th percentile")
    found = reconstruction_decibels(made, video)["all"]
    click.echo(f"  reconstruction of the clip: {float(np.mean(found)):.2f} dB")
    if len(whole) > len(video):
        click.echo(f"  the clip goes on: retouch atlas extend {out} {clip} -o LONGER.atlas")


def read_checkpoint(path: Path) -> Trained:
    """The networks of a checkpoint and the sizes beside it; nothing in it is run.

    Raises:
        ModelNotFound: there is no such file.
        ModelMismatch: it is something else, or damaged.
    """
    path = path / "checkpoint" if path.is_dir() else path
    if not path.is_file():
        raise ModelNotFound(f"there is no {path}", hint="name the checkpoint or its folder")
    try:
        # The authors ship pickles; of these only tensors are taken, and nothing in them is run.
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelMismatch(
            f"{path.name} is not a file of tensors ({type(error).__name__})", hint="it was not read"
        ) from None
    missing = [key for key, _, _ in NETWORKS.values() if not isinstance(held, dict) or key not in held]
    if missing:
        raise ModelMismatch(
            f"{path.name} has no {missing[0]}", hint="give a checkpoint of Layered Neural Atlases"
        )
    config = read_config(path.with_name("config.json"), path.name)
    networks = {name: Perceptron.read(held[key], key, *ends) for name, (key, *ends) in NETWORKS.items()}
    return Trained(
        **networks,
        height=_size(config, "resy"),
        width=_size(config, "resx"),
        most_frames=_size(
            config, "number_of_frames" if "number_of_frames" in config else "maximum_number_of_frames"
        ),
    )


def _size(config: Named[str, object], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or not 1 <= value <= 1 << 16:
        raise ModelMismatch(
            f"{key} is {value!r} in config.json; it must be a whole number from 1 to 65536",
            hint="the configuration of the training must lie beside the checkpoint",
        )
    return value


@torch.no_grad()
def converted(trained: Trained, video: Video, *, spacing: float, scale: float) -> tuple[Atlas, list[Fit]]:
    """The networks as an atlas of the clip, and how well each layer's mapping could be fitted."""
    mattes = PackedMattes.pack(
        [pack_matte(_matte(trained, t, video)) for t in range(len(video))], video.height, video.width
    )
    pyramid = ClipPyramid(video, (mattes,), torch.device("cpu"))
    charts, fits = [], []
    for layer in (0, 1):
        chart, unit = _fitted(trained, pyramid, layer, spacing)
        fits.append(_error(trained, pyramid, chart, unit))
        charts.append(_textured(trained, pyramid, chart, unit, scale))
    made = Atlas(
        names=("object", "background"),
        charts=tuple(charts),
        mattes=(mattes,),
        frames=len(video),
        height=video.height,
        width=video.width,
        fps=video.fps,
        source=video.digest,
        stage="networks",
    )
    return made, fits


def _matte(trained: Trained, t: int, video: Video) -> np.ndarray:
    size = (video.height, video.width)
    share = trained.share(t, len(video), _whole(size), size)
    return (share * 255).round().byte().numpy()


def _whole(size: tuple[int, int]) -> PixelWindow:
    return PixelWindow(torch.zeros(1, 2, dtype=torch.long), *size)


def _fitted(trained: Trained, pyramid: ClipPyramid, layer: int, spacing: float) -> tuple[Chart, float]:
    """A chart in pixels of its reference frame, without texture, and how many of those a unit of uv is."""
    video = pyramid.video
    frames = len(video)
    size = tracking_size(video.height, video.width, FIT_SIDE)
    weights = torch.cat([pyramid.share(layer, a, b, *size) for a, b in frame_blocks(0, frames)])
    reference = frames // 2
    pixels = _pixels(trained, weights[reference], layer, reference, frames, size)
    unit = pixels * video.width / size[1]
    origins, extent = layer_boxes(pyramid, layer, ChartSpan(reference, 0, torch.ones(frames)), size)
    apart = max(size) / spacing
    rows, columns = (max(2, round(n / apart)) + 3 for n in (extent[1], extent[0]))
    mapping = ChartMapping(
        torch.eye(3, dtype=torch.float64).repeat(frames, 1, 1),
        torch.zeros(frames, 2, rows, columns),
        origins,
        extent,
        *size,
    )
    window = mapping.window()
    parts = []
    for t in range(frames):
        here = window.part(t, t + 1)
        wanted = trained.uv(layer, t, frames, here, size) * unit
        weight = here.cut(weights[t : t + 1]) + 1e-4
        matrix = _matrix(wanted[0], weight[0, 0], here, affine=layer == 0)
        one = replace(mapping.part(t, t + 1), matrices=matrix[None])
        parts.append(fit_field(one, here, wanted, weight, stiffness=STIFFNESS, rounds=1))
    mapping = replace(
        mapping,
        matrices=torch.cat([part.matrices for part in parts]),
        controls=torch.cat([part.controls for part in parts]),
    )
    empty = torch.zeros(3, 1, 1)
    gain = torch.ones(frames, 3, 4, 4)
    full = mapping.at_size(video.height, video.width)
    return Chart(layer, reference, 0, full, 1.0, torch.ones(frames), empty, empty[:1], gain), unit


def _pixels(
    trained: Trained,
    weight: Float[Tensor, "1 h w"],
    layer: int,
    t: int,
    frames: int,
    size: tuple[int, int],
) -> float:
    """How many working pixels a unit of uv is in a frame, where the frame shows the layer."""
    uv = trained.uv(layer, t, frames, _whole(size), size)[0]
    across, down = uv[:, :-1, 1:] - uv[:, :-1, :-1], uv[:, 1:, :-1] - uv[:, :-1, :-1]
    step = (across[0] * down[1] - across[1] * down[0]).abs().sqrt()
    own = weight[0, :-1, :-1] > 0.5
    middle = float(step[own].median() if bool(own.any()) else step.median())
    # A network that maps a layer to a point would ask for a texture without end.
    return 1 / max(middle, 1 / (8 * max(size)))


def _matrix(
    wanted: Float[Tensor, "2 h w"], weight: Float[Tensor, "h w"], window: PixelWindow, *, affine: bool
) -> Float[Tensor, "3 3"]:
    """The affine matrix or homography nearest to a mapping, where the layer is."""
    own = weight > 0.5 if int((weight > 0.5).sum()) >= 24 else weight >= 0
    y, x = (index.numpy() for index in own.nonzero(as_tuple=True))
    here = np.stack([x, y], 1).astype(np.float64) + window.corners[0].numpy()
    there = wanted[:, own].T.double().numpy()
    if not affine:
        found, _ = cv2.findHomography(here, there, 0)
        if found is not None:
            return torch.from_numpy(found)
    lifted = np.concatenate([here, np.ones_like(here[:, :1])], 1)
    top = np.linalg.lstsq(lifted, there, rcond=None)[0].T
    return torch.from_numpy(np.vstack([top, [0.0, 0.0, 1.0]]))


def _error(trained: Trained, pyramid: ClipPyramid, chart: Chart, unit: float) -> Fit:
    video = pyramid.video
    size = tracking_size(video.height, video.width, CHECK_SIDE)
    mapping = chart.mapping.at_size(*size)
    window = mapping.window()
    off, weights = [], []
    for t in range(len(video)):
        here = window.part(t, t + 1)
        wanted = trained.uv(chart.layer, t, len(video), here, size) * unit
        off.append((mapping.part(t, t + 1).uv(here) - wanted).norm(dim=1).flatten())
        weights.append(here.cut(pyramid.share(chart.layer, t, t + 1, *size)).flatten())
    distance, weight = torch.cat(off), torch.cat(weights)
    own = distance[weight > 0.5]
    if not len(own):
        return Fit(0.0, 0.0)
    return Fit(float(own.square().mean().sqrt()), float(np.percentile(own.numpy(), 95)))


def _textured(trained: Trained, pyramid: ClipPyramid, chart: Chart, unit: float, scale: float) -> Chart:
    """The chart with a texture that holds all that is visible, read off the atlas network."""
    video = pyramid.video
    size = tracking_size(video.height, video.width, FIT_SIDE)
    framed = reframe_texture(chart, pyramid, size, scale)
    seen = _seen(framed, pyramid)
    v, u = seen.shape[1:]
    move = framed.mapping.matrices[0] @ torch.linalg.inv(chart.mapping.matrices[0])
    rows, columns = torch.meshgrid(torch.arange(v), torch.arange(u), indexing="ij")
    texels = torch.stack([columns, rows], -1).flatten(0, 1)
    uv = ((texels - move[:2, 2]) / move.diagonal()[:2] / unit).float()
    colours = trained.colours(chart.layer, uv).view(3, v, u)
    return replace(framed, texture=fill_unseen(colours * seen, seen, SHOWN), seen=seen)


def _seen(chart: Chart, pyramid: ClipPyramid) -> Float[Tensor, "1 v u"]:
    """How much of each texel the clip shows."""
    v, u = chart.texture.shape[1:]
    size = (pyramid.video.height, pyramid.video.width)
    total = torch.zeros(1, v, u)
    for a, b in frame_blocks(0, len(pyramid.video)):
        part = chart.part(a, b)
        window = part.window()
        total += splat_values(window.cut(pyramid.share(chart.layer, a, b, *size)), part.uv(window), v, u)
    return total


if __name__ == "__main__":
    main()
