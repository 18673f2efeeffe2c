"""What aggregating key frames costs, and how well the result fits them: ours beside the released way.

`python benchmarks/stablevideo.py cost FIXTURE` calls this; FIXTURE is a folder as the parity check takes it,
such as tests/parity/data/stablevideo.

The released way interpolates each key frame over the whole square of texels (SciPy's griddata, a channel at a
time), takes the median, and trains the aggregation network for 500 steps. Ours fetches each key frame into
the texture and solves all of them together. Both textures are then shown in the key frames again: the fit is
the mean absolute difference there, where a pixel is the object's alone. At the large size the network would
train for hours on a processor: two steps are timed, and the network that is shown was trained on the same
scene at an eighth of the size.
"""

import json
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import griddata
from tools.convert.lna import converted, read_checkpoint
from tools.parity_stablevideo import Case, networks
from torch import Tensor

from retouch.atlas.atlas import Atlas, Chart, PackedMattes, pack_matte
from retouch.atlas.edit import FINENESS, PaintedFrame, patches_from_frames
from retouch.atlas.mapping import ChartMapping
from retouch.atlas.textures import sample_texture
from retouch.methods.stablevideo import released
from retouch.methods.stablevideo.layer import WHOLLY_OWN, render_patches
from retouch.video import Video

LARGE: Final = 2000
"""Texels along a side of the square that the released code works on."""
STEPS, TIMED_STEPS = 500, 2
"""Steps of the network, and those that are timed at the large size; each costs as much as any other."""
TIMES, LONG = 25, 1.0
"""Times that ours is timed, where it takes no more seconds than that: at small sizes it takes
milliseconds. The median counts.
"""
T = TypeVar("T")


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """Return what some work gives, and its processor seconds."""
    began = time.process_time()
    return work(), time.process_time() - began


def interpolated(views: Sequence[released.View], size: int) -> Float[Tensor, "k 3 size size"]:
    """Return key frames interpolated over a square of texels, as the released code does."""
    made = []
    rows, columns = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    for grid, picture in views:
        points = ((grid[0] / 2 + 0.5) * size).flatten(0, 1).numpy()
        planes = [
            griddata(points, plane.flatten().numpy(), (columns, rows), method="linear", fill_value=0)
            for plane in picture
        ]
        made.append(torch.from_numpy(np.stack(planes)).float())
    return torch.stack(made)


def released_way(
    views: Sequence[released.View], size: int, steps: int, weights: Sequence[Tensor] = ()
) -> tuple[dict[str, Float[Tensor, "3 size size"]], Sequence[Tensor], dict[str, float]]:
    """Return the square of texels before and after the network, the network, and what the parts cost.

    With `weights` that are trained, the network's own training is only timed.
    """
    partials, interpolating = timed(lambda: interpolated(views, size))
    median = released.median_of(partials)
    first, second = released.new_network(0)
    trained, training = timed(lambda: released.trained(median, views, first, second, steps=steps))
    cost = {"griddata": interpolating, f"{STEPS} steps": training / steps * STEPS}
    found = weights or trained[:2]
    return {"median": median, "network": released.aggregated(median, *found)}, found, cost


def compared(
    atlas: Atlas, keys: Sequence[PaintedFrame], views: Sequence[released.View],
    crops: Sequence[tuple[slice, slice]], size: int, steps: int, weights: Sequence[Tensor] = (),
) -> tuple[dict[str, float], Sequence[Tensor]]:  # fmt: skip
    """Return seconds and fits of both ways for the key frames of one layer, and the network."""
    squares, network, cost = released_way(views, size, steps, weights)
    patches, first = timed(lambda: patches_from_frames(atlas, keys, [0]))
    again = [timed(lambda: patches_from_frames(atlas, keys, [0]))[1] for _ in range(TIMES * (first < LONG))]
    ours = float(np.median(again or [first]))
    off: dict[str, list[Tensor]] = {"median": [], "network": [], "here": []}
    for key, (grid, _), (rows, columns) in zip(keys, views, crops, strict=True):
        wanted = key.colours[:, rows, columns]
        own = atlas.shares(key.frame, key.frame + 1)[0][0, 0, rows, columns] >= WHOLLY_OWN
        shown, _ = render_patches(atlas, 0, patches, key.frame)
        seen = {way: released.read_at(square, grid)[0] for way, square in squares.items()}
        for way, picture in {**seen, "here": shown[0, :, rows, columns]}.items():
            off[way].append((picture - wanted).abs()[:, own].flatten())
    fits = {f"fit {way}": float(torch.cat(found).mean()) for way, found in off.items()}
    return {**cost, "here": ours, "times": sum(cost.values()) / ours, **fits}, network


def parity_case(case: Case) -> dict[str, float]:
    """Compare both ways on a case of the authors' own networks and key frames."""
    trained = read_checkpoint(case.folder / "lna")
    frames = case.layers["g1.video_u8"]
    video = Video(np.ascontiguousarray(np.asarray(frames).transpose(0, 3, 1, 2)), Fraction(10))
    atlas, _ = converted(trained, video, spacing=20.0, scale=1.5)
    cut, pushed, drawn = case.group(2), case.group(3), case.group(4)
    keys, views, crops = list[PaintedFrame](), list[released.View](), list[tuple[slice, slice]]()
    for i in range(case.count):
        t, rows, columns = case.crop(i)
        height, width = cut[f"g2.k{i}.alpha"].shape[1:]
        picture = released.numbers_of(released.bicubic(drawn[f"g4.k{i}.decoded_u8"].numpy(), height, width))
        colours, cover = torch.zeros(3, video.height, video.width), torch.zeros(1, video.height, video.width)
        colours[:, rows, columns], cover[:, rows, columns] = picture, 1.0
        keys.append(PaintedFrame(t, colours, cover))
        views.append((cut[f"g2.k{i}.grid"][None], pushed[f"g3.k{i}.edited"]))
        crops.append((rows, columns))
    return compared(atlas, keys, views, crops, case.res, STEPS)[0]


def drawn_case(
    size: int, steps: int, weights: Sequence[Tensor] = ()
) -> tuple[dict[str, float], Sequence[Tensor]]:
    """Compare both ways on three key frames that turn and bend before a square of so many texels."""
    side = round(size / FINENESS)
    whole = PackedMattes.pack([pack_matte(np.full((side, side), 255, np.uint8))] * 3, side, side)
    turns = [np.deg2rad(angle) for angle in (0.0, 4.0, -4.0)]
    middle = (side - 1) / 2
    there, back = np.eye(3), np.eye(3)
    there[:2, 2], back[:2, 2] = middle, -middle
    matrices = [
        there @ np.diag([0.94, 0.94, 1])
        @ np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ back
        for a in turns
    ]  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    controls = torch.randn(3, 2, 7, 7, generator=generator)
    mapping = ChartMapping(
        torch.tensor(np.stack(matrices)).float(), controls, torch.zeros(3, 2), (side, side), side, side
    )
    texture = torch.zeros(3, side, side)
    charts = tuple(
        Chart(
            layer,
            0,
            0,
            mapping,
            1.0,
            torch.ones(3),
            texture,
            torch.ones(1, side, side),
            torch.ones(3, 3, 4, 4),
        )
        for layer in (0, 1)
    )
    atlas = Atlas(("object", "background"), charts, (whole,), 3, side, side, Fraction(10), "")
    # One texture that all key frames show, and what each has got a little wrong.
    waves = torch.rand(4, 3, side // 8, side // 8, generator=generator)
    waves = torch.nn.functional.interpolate(waves, (side, side), mode="bicubic")
    everything = (slice(0, side), slice(0, side))
    keys, views = [], []
    for t in range(3):
        part = mapping.part(t, t + 1)
        uv = part.uv(part.window())
        colours = (0.9 * sample_texture(waves[3], uv)[0] + 0.1 * waves[t]).clamp(0, 1)
        keys.append(PaintedFrame(t, colours, torch.ones(1, side, side)))
        views.append(((2 * (uv[0].movedim(0, 2) + 0.5) / side - 1)[None], colours))
    return compared(atlas, keys, views, [everything] * 3, size, steps, weights)


def cost(fixture: Path) -> None:
    """Print seconds and fits, a line for each case."""
    cases = json.loads((fixture / "fixture.json").read_text())["cases"]
    sd, control, texts = networks(fixture / "weights")
    for name, given in cases.items():
        if (fixture / name / "g4.safetensors").is_file():
            case = Case(fixture / name, given, sd, control, texts)
            print(name, f"{case.res} texels", json.dumps(rounded(parity_case(case))), flush=True)
    small, network = drawn_case(LARGE // 8, STEPS)
    print(f"{LARGE // 8} texels", json.dumps(rounded(small)), flush=True)
    large, _ = drawn_case(LARGE, TIMED_STEPS, network)
    print(f"{LARGE} texels", json.dumps(rounded(large)), flush=True)


def rounded(figures: dict[str, float]) -> dict[str, float]:
    """Return figures to four digits."""
    return {name: float(f"{value:.4g}") for name, value in figures.items()}
