"""The training of a face network on faces cut out of clips (Kim et al. 2023, section 3.2).

Only the network learns, and the layer that makes one code of who it is and how it moves. What reads faces
stays as it is: each face is read once, as it is and mirrored, and lies in a file with what was read.
"""

import copy
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from retouch.compute import in_words
from retouch.errors import InputError, NoFace, ResourceError
from retouch.files import replace_whole, write_whole
from retouch.media.pictures import write_picture
from retouch.models.face import (
    TRAIN_STEPS,
    FaceConfig,
    FaceDiffusion,
    FaceNetwork,
    encoding,
    follow,
    noised,
    schedule_at,
)
from retouch.models.face_losses import losses
from retouch.models.face_model import BESIDE_NETWORK, FaceModel
from retouch.models.face_parts import OUTSIDE_TRAINING
from retouch.models.fit import Fit, working_precision
from retouch.models.noise_path import add_noise
from retouch.models.refs import resolve
from retouch.run import Run
from retouch.video import chunks

Rows: TypeAlias = Int[np.ndarray, " _"]

EVERY_HELD_OUT: Final = 10
"""One clip in so many, the first of them, is held out to judge by."""
FEWEST: Final = 8
"""Faces below which there is nothing to learn from."""
JUDGED: Final = 64
"""The most held-out faces that errors are measured on."""
PROBED: Final = (100, 300, 600, 900)
KEEP: Final = 0.9999
WARMUP: Final = 50
SHEET: Final = 6
"""Faces of a sheet, which are drawn in so many steps as follows."""
SHEET_STEPS: Final = 10
INKS: Final = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f")


class ReadFaces(NamedTuple):
    """Faces in [-1, 1], where they are faces, who they are, and how they move."""

    pixels: Float[Tensor, "n 3 side side"]
    mask: Float[Tensor, "n 1 side side"]
    identity: Float[Tensor, "n identity"]
    motion: Float[Tensor, "n motion"]


def face_record(config: FaceConfig) -> np.dtype:
    """Return what a face is kept as."""
    side, told = config.side, config.identity + config.motion
    fields = [("pixels", "u1", (3, side, side)), ("mask", "u1", (side, side)), ("told", "f4", (2, told))]
    return np.dtype(fields)


def check_training_room(model: FaceModel, lengths: Sequence[int], folder: Path) -> None:
    """Refuse a training that a disk has no room for: the faces, a checkpoint and its draft, and the model.

    Raises:
        ResourceError: says how much there is.
    """
    weights = sum(4 * p.numel() for p in model.diffusion.network.parameters())
    needed = sum(lengths) * face_record(model.diffusion.config).itemsize + 9 * weights
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"the training needs {in_words(needed)} in {folder}; {in_words(free)} are free",
            hint="take fewer --frames of each clip, or write elsewhere",
        )


def gather_faces(
    model: FaceModel, lengths: Sequence[int], cut: Callable[[int], Float[Tensor, "f 3 side side"]], run: Run
) -> tuple[np.ndarray, Rows, Rows]:
    """Return the faces of clips, cut out and read, and which of them to learn from and to judge by.

    Args:
        model: what reads them.
        lengths: the most faces that each clip can have.
        cut: gives the faces of a clip, by its number.
        run: keeps the faces, and goes on with the clip at which it was stopped.

    Raises:
        NoFace: no clip shows one.
        InputError: there are too few.
    """
    faces = run.draft.array("faces", (sum(lengths),), face_record(model.diffusion.config))
    ends = torch.zeros(len(lengths), dtype=torch.long)
    for step in run.resumable("cut out faces", range(len(lengths)), {"faces": faces, "ends": ends}):
        start, crops = int(ends[step.item - 1]) if step.item else 0, cut(step.item)
        for part in chunks(len(crops)):
            keep_faces(faces[start + part.start : start + part.stop], crops[part], model)
        ends[step.item] = start + len(crops)
    edges = [0, *ends.tolist()]
    rows = [np.arange(*ends) for ends in pairwise(edges)]
    judged = np.concatenate(rows[::EVERY_HELD_OUT])
    learned = np.concatenate([row for n, row in enumerate(rows) if n % EVERY_HELD_OUT])
    if not edges[-1]:
        raise NoFace("no face was found in any clip", hint="--finder takes a file of YuNet")
    if len(learned) < FEWEST or not len(judged):
        raise InputError(
            f"{len(learned)} faces to learn from and {len(judged)} to judge by are too few",
            hint=f"give more clips; one in {EVERY_HELD_OUT} is held out, first the first by name",
        )
    return faces, learned, judged


@torch.no_grad()
def keep_faces(records: np.ndarray, crops: Float[Tensor, "f 3 side side"], model: FaceModel) -> None:
    """Read faces, as they are and mirrored, and put them into records."""
    records["pixels"] = ((crops + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()
    for turned, seen in enumerate((crops, crops.flip(-1))):
        reading = model.reader.read(seen.to(model.device))
        told = torch.cat([model.vectors(seen.to(model.device)), model.reader.motion(reading.points).cpu()], 1)
        records["told"][:, turned] = told.numpy()
        if not turned:
            records["mask"] = 1 - model.mask(reading.parts.cpu(), *OUTSIDE_TRAINING)[:, 0].byte().numpy()


def take_faces(
    faces: np.ndarray, rows: Rows, turned: Int[Tensor, " rows"], config: FaceConfig, device: torch.device
) -> ReadFaces:
    """Return some of the kept faces, mirrored where `turned` is 1."""
    kept = faces[rows]
    pixels = torch.from_numpy(kept["pixels"].copy()).to(device).float() / 127.5 - 1
    mask = torch.from_numpy(kept["mask"].copy()).to(device).float()[:, None]
    told = torch.from_numpy(kept["told"].copy())[torch.arange(len(rows)), turned].to(device)
    mirrored = turned.bool().to(device)[:, None, None, None]
    pixels, mask = (torch.where(mirrored, seen.flip(-1), seen) for seen in (pixels, mask))
    identity, motion = told.tensor_split([config.identity], 1)
    return ReadFaces(pixels, mask, identity, motion)


def train_network(
    start: FaceDiffusion,
    faces: np.ndarray,
    learned: Rows,
    judged: Rows,
    folder: Path,
    *,
    images: int,
    batch: int,
    rate: float,
    every: int,
    run: Run,
) -> tuple[FaceDiffusion, Sequence[Mapping[str, float]]]:
    """Return a network trained until it has seen so many images, and how its figures went.

    Args:
        start: what it is as it begins; its weights stay as they are.
        faces: of all clips, as `gather_faces` gives them.
        learned: which of them it sees.
        judged: which its figures are measured on.
        folder: where checkpoints, losses and sheets lie; a training that was stopped goes on from there.
        images: how many it sees, counting those of earlier calls.
        batch: of them at a step.
        rate: of Adam.
        every: after so many steps figures are taken, and a sheet is drawn.
        run: where progress is told.

    Raises:
        Diverged: the loss is not a number, or the gradients of many steps in a row are not.
        ResourceError: the disk is full.
    """
    config, device = start.config, start.network.merge.weight.device
    network, shown = (copy.deepcopy(start.network).float().requires_grad_(True) for _ in range(2))
    averaged = FaceDiffusion.wrap(shown.eval().requires_grad_(False))
    few = judged[np.linspace(0, len(judged) - 1, min(JUDGED, len(judged))).round().astype(int)]
    held_out = take_faces(faces, few, torch.zeros(len(few), dtype=torch.long), config, device)

    def measured() -> Mapping[str, float]:
        shown.load_state_dict(fit.averaged(), strict=False)
        return held_out_error(averaged, *held_out)

    def look(generator: torch.Generator) -> tuple[Tensor, int]:
        set_progress(fit.images)
        rows = np.sort(learned[torch.randint(len(learned), (batch,), generator=generator).numpy()])
        turned = torch.randint(2, (batch,), generator=generator)
        return loss_of(fit.network, take_faces(faces, rows, turned, config, device), generator), batch

    def keep_figures(_: Mapping[str, object]) -> None:
        write_whole(folder / "losses.svg", drawn_history(fit.history))
        number = f"{fit.history[-1]['images']:09.0f}"
        write_picture(sample_sheet(averaged, held_out), folder / f"sample-{number}.png", force=True)

    precision = torch.float32 if device.type == "cpu" else working_precision(device.type)
    fit = Fit(
        network.train(), folder / "network", rate=rate, warmup=WARMUP, decay=0.0, keep=KEEP,
        device=str(device), precision=precision, betas=(0.9, 0.999), tell=keep_figures,
    )  # fmt: skip
    with run.progress("train the network", images) as set_progress:
        if not fit.history:
            fit.note(**measured())
        fit.until(images, look, every=every, figures=measured)
    if fit.history[-1]["step"] < fit.step:
        fit.note(**measured())
        fit.save()
    measured()
    return averaged, fit.history


def loss_of(network: FaceNetwork, faces: ReadFaces, generator: torch.Generator) -> Float[Tensor, ""]:
    """Return the loss of a step: the published one, its regulariser capped; a level for each face."""
    count = len(faces.pixels)
    t = torch.randint(network.config.lo, TRAIN_STEPS, (count,), generator=generator)
    noises = [torch.randn(faces.pixels.shape, generator=generator).to(faces.pixels) for _ in range(2)]
    like = network.merge.weight
    code = network.code(faces.identity.to(like), faces.motion.to(like))
    return losses(network, faces.pixels, code, t.to(like.device), (noises[0], noises[1]), faces.mask).total


@torch.no_grad()
def held_out_error(
    net: FaceDiffusion,
    pixels: Float[Tensor, "n 3 side side"],
    mask: Float[Tensor, "n 1 side side"],
    identity: Float[Tensor, "n identity"],
    motion: Float[Tensor, "n motion"],
) -> Mapping[str, float]:
    """Return the squared error of faces in noise, and its rise with another's identity, by timestep."""
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(5)).to(pixels)
    own, other = (net.code(who, motion) for who in (identity, identity.roll(1, 0)))
    figures: dict[str, float] = {}
    for level in schedule_at(PROBED).levels[-2::-1]:
        noisy = noised(pixels, noise, torch.full((len(pixels),), int(level.t)))
        right, wrong = (
            float(((net.clean(noisy, level, code) - pixels).square() * mask).sum() / (3 * mask.sum()))
            for code in (own, other)
        )
        figures |= {f"own_{level.t:.0f}": round(right, 5), f"swap_{level.t:.0f}": round(wrong - right, 5)}
    return figures


@torch.no_grad()
def sample_sheet(net: FaceDiffusion, faces: ReadFaces) -> UInt8[np.ndarray, "h w 3"]:
    """Return faces in three rows: as they are, drawn again, and drawn as the next one's identity."""
    pixels, _, identity, motion = (value[:SHEET] for value in faces)
    schedule = net.schedule(SHEET_STEPS)
    own, other = (net.code(who, motion) for who in (identity, identity.roll(-1, 0)))
    entry = torch.randn(pixels[:1].shape, generator=torch.Generator().manual_seed(5)).to(pixels)
    up = encoding(schedule)
    x = add_noise(pixels, entry.expand_as(pixels), up[0][0]) if net.config.lo > 0 else pixels
    *_, (noise, _) = follow(x, up, partial(net.clean, code=own))
    rows = [pixels]
    for code in (own, other):
        *_, (drawn, _) = follow(noise, schedule.down(), partial(net.clean, code=code))
        rows.append(drawn)
    sheet = torch.cat([torch.cat(list(row), 2) for row in rows], 1).clamp(-1, 1)  # 3 rows columns
    return ((sheet + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()


def drawn_history(history: Sequence[Mapping[str, float]], wide: int = 720, high: int = 400) -> str:
    """Return how figures went, over the images seen, as a picture in SVG; heights are logarithms."""
    names = [name for name in history[-1] if name not in ("step", "images")]
    heights = np.log10([[max(row[name], 1e-9) for name in names] for row in history])
    top, low = heights.max(), min(heights[heights > -9].min(), heights.max() - 1e-3)
    x = np.array([row["images"] for row in history]) / max(history[-1]["images"], 1) * (wide - 160) + 10
    y = 20 + (top - heights) / (top - low) * (high - 40)
    lines = []
    for number, name in enumerate(names):
        shown = heights[:, number] >= low  # a loss before the first step is none, and no rise has a logarithm
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x[shown], y[shown, number], strict=True))
        ink, label = INKS[number % len(INKS)], f"{name} {history[-1][name]:.4g}"
        lines += [
            f'<polyline points="{points}" fill="none" stroke="{ink}"/>',
            f'<text x="{wide - 140}" y="{24 + 16 * number}" fill="{ink}">{label}</text>',
        ]
    size = f'width="{wide}" height="{high}" font-family="sans-serif" font-size="12"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n' + "\n".join(lines) + "\n</svg>\n"


def keep_model(
    network: FaceDiffusion, ref: str, out: Path, about: Mapping[str, object], *, force: bool
) -> None:
    """Write a network with the rest of the model that `ref` names, and what is known of how it was made."""
    source = resolve(ref)
    with replace_whole(out, force=force, folder=True) as draft:
        network.save(draft)
        for name in BESIDE_NETWORK:
            if (source / name).is_dir():
                shutil.copytree(source / name, draft / name)
            elif (source / name).is_file():
                shutil.copy(source / name, draft / name)
        made = {"recipe": "retouch face train", **about}
        (draft / "PROVENANCE.json").write_text(json.dumps(made, indent=1) + "\n", "utf-8")
