"""DiffusionAtlas against the truth: edits of drawn clips, drift, and maps that are bent by a known amount.

Run:  python benchmarks/diffusion_atlas.py measure FOLDER [colour ...] [--way fatezero] [--clips 8] [--choose]
      python benchmarks/diffusion_atlas.py table FOLDER
      python benchmarks/diffusion_atlas.py sheet FOLDER colour sheet.png

`measure` keeps a row of figures for each clip and way, and the frames, in a folder, and goes on where it was
stopped. Ways that must fail are measured as all others are. With `--choose` it takes the clips that settings
may be chosen on; no embedded model has seen either, and the tables never show those.

    colour, pattern, object   edits by words, against the true edited clip
    background                another ground by words of its own; the object stays
    reference                 a colour by a picture alone, the words unchanged
    trace                     the object shown smaller: the ground about it against the true one, and how much
                              of the old outline's contrast is left on it
    drift                     true correspondences, in pixels between their places in the texture
    none, squeeze, shear      the texture of an unedited clip is bent about its middle, so the map to it is
                              wrong by exactly that; the refinement should find it

Seconds are processor seconds of one thread; all ways of one clip share a store, so only the first makes all.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final
from unittest.mock import patch

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from retouch.atlas import decompose
from retouch.atlas.atlas import Atlas, PackedMattes, pack_matte
from retouch.atlas.pyramid import AtlasSettings
from retouch.compute import Compute
from retouch.media.compare import draw_sheet
from retouch.media.io import write, write_picture
from retouch.methods.diffusion_atlas.compose import (
    Crop,
    Look,
    View,
    atlas_of,
    chart_matte,
    chart_to_edit,
    complete_ground,
    ground_around,
    render,
)
from retouch.methods.diffusion_atlas.edit import edited_ground, edited_object
from retouch.methods.diffusion_atlas.refine import CanonicalWarp, Refinement, refine
from retouch.methods.diffusion_atlas.spec import SPEC, DiffusionAtlasParams
from retouch.methods.fatezero.edit import edit as fatezero
from retouch.methods.fatezero.spec import SPEC as FATEZERO
from retouch.methods.fatezero.spec import FateZeroParams
from retouch.methods.frame_by_frame.edit import edit as frame_by_frame
from retouch.methods.frame_by_frame.spec import FrameByFrameParams
from retouch.metrics.consistency import true_motion, warp_error
from retouch.metrics.fidelity import changed_pixels, psnr
from retouch.metrics.uncertainty import bootstrap_interval
from retouch.models.image import StableDiffusion
from retouch.run import Run
from retouch.video import Video
from retouch.world import Change, Clip, Scene, Variety, edited_clip, picture
from retouch.world.render import background_planes

TO_CHOOSE, TO_TELL = 2_300_000_000, 2_310_000_000
"""First seeds."""
FRAMES, SIZE, STEPS = 8, 64, 20
CPU = Compute(device="cpu")
LARGE = Variety(pair=0.0, styles=("none",), patterns=("plain",), scale=(0.6, 0.78), place=0.12, turn=0.02)
WORDS: Final = {
    "colour": ("red", "blue", "green", "orange"),
    "object": ("car", "heart", "ball", "house"),
    "pattern": ("striped", "dotted"),
    "background": ("sand", "grass", "snow", "bricks"),
}
PRESETS: Final = {"colour": "attribute", "pattern": "attribute", "object": "shape"}
BENDS: Final = {
    "none": ((1.0, 0.0), (0.0, 1.0)),
    "squeeze": (((1.4**0.5), 0.0), (0.0, 1.4**-0.5)),
    "shear": ((1.0, 0.35), (0.0, 1.0)),
}
WAYS: Final[Mapping[str, tuple[str, ...]]] = {
    "colour": ("diffusion_atlas", "wrong prompt", "frame_by_frame", "fatezero"),
    "object": ("diffusion_atlas", "old outline", "frame_by_frame", "fatezero"),
    "pattern": ("diffusion_atlas", "frame_by_frame", "fatezero"),
    "background": ("diffusion_atlas", "wrong prompt", "frame_by_frame"),
    "reference": ("tuned", "untuned", "the source as reference"),
    "trace": ("diffusion_atlas",),
    "drift": ("diffusion_atlas", "never stiffer"),
    "none": ("diffusion_atlas",),
    "squeeze": ("diffusion_atlas", "no holds", "wrong prompt", "huge order 1"),
    "shear": ("diffusion_atlas",),
}
SMALLER: Final = 0.6
"""Size of an object that is to leave a trace."""
Row = dict[str, float]


def measure(
    folder: Path,
    kinds: Sequence[str],
    only: Sequence[str],
    count: int,
    first: int,
    given: Mapping[str, object],
) -> None:
    """Measure what is not measured yet."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {(row["kind"], row["way"], row["clip"]) for row in rows_of(folder)}
    for kind in kinds:
        for number in range(count):
            asked = [way for way in WAYS[kind] if way in only or not only]
            ways = [way for way in asked if (kind, way, number) not in known]
            clip = Clip.of(Scene.sample(first + number, LARGE), FRAMES, SIZE)
            with tempfile.TemporaryDirectory() as name:
                for way in ways:
                    (home := Path(name) / way).mkdir()
                    run = Run.alone(home, compute=CPU, store=Path(name) / "store")
                    figures = figures_of(kind, way, clip, number, given, run, folder)
                    row = {"kind": kind, "way": way, "clip": number, **figures}
                    with (folder / "rows.jsonl").open("a") as stream:
                        stream.write(json.dumps(row) + "\n")
                    print(row, flush=True)


def rows_of(folder: Path) -> list[dict[str, object]]:
    """Return the rows that are measured already."""
    path = folder / "rows.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def figures_of(
    kind: str, way: str, clip: Clip, number: int, given: Mapping[str, object], run: Run, folder: Path
) -> Row:
    """Return the figures of one way with one clip."""
    if kind == "drift":
        return drifts(clip, way, run)
    if kind == "trace":
        return traces(clip, run)
    if kind in BENDS:
        return mended(clip, kind, way, number, run)
    target = changed_to(clip, "colour" if kind == "reference" else kind, number)
    began = time.process_time()
    video, owned = edited(kind, way, clip, target, number, given, run)
    spent = time.process_time() - began
    np.save(folder / f"{kind} {way} {number}.npy", video.frames)
    inside = changed_pixels(clip.video.frames, target.video.frames)
    figures = {
        "inside": psnr(video.frames, target.video.frames, inside),
        "outside": psnr(video.frames, target.video.frames, ~inside),
        "edge": edge_agreement(video, target.video, inside),
        "warp": warp_error(video.frames, true_motion(clip.forward, clip.forward_seen)),
        "seconds": spent,
    }
    if owned is not None and kind == "object":
        own = target.shares[:, :1] > 127
        figures["IoU"] = float((owned & own).sum() / (owned | own).sum())
    return figures


def changed_to(clip: Clip, what: str, number: int) -> Clip:
    """The true edit to a word that the clip does not show."""
    words = [word for word in WORDS[what] if word not in clip.caption]
    return edited_clip(clip, Change.parse(f"{what}={words[number % len(words)]}"))


def edited(
    kind: str, way: str, clip: Clip, target: Clip, number: int, given: Mapping[str, object], run: Run
) -> tuple[Video, Bool[np.ndarray, "f 1 h w"] | None]:
    """Return a clip edited, and where the object is after that if the way knows."""
    both = {"source_prompt": clip.caption, "prompt": target.caption, "steps": STEPS}
    if way == "fatezero":
        params = FATEZERO.fill(both, preset=PRESETS[kind])
        assert isinstance(params, FateZeroParams)
        return whole(fatezero(clip.video, params, run).video), None
    if way == "frame_by_frame":
        plain = FrameByFrameParams.model_validate({"prompt": target.caption, "steps": STEPS})
        return whole(frame_by_frame(clip.video, plain, run).video), None
    if way == "wrong prompt":
        both["prompt"] = changed_to(clip, kind, number + 1).caption
    if kind == "reference":
        source = np.ascontiguousarray(clip.video.frames[0].transpose(1, 2, 0))
        other = picture(Scene.of(target.caption, TO_TELL - 1 - number, LARGE), size=SIZE)
        shown = source if way == "the source as reference" else other
        path = write_picture(shown, run.folder / "reference.png")
        both |= {"prompt": "", "reference": path, "tune_steps": 0 if way == "untuned" else 50}
    if kind == "background":
        both |= {"prompt": "", "background_prompt": both["prompt"]}
    return in_atlas(clip, {**both, "outline": "new" if kind == "object" else "keep", **given}, way, run)


def in_atlas(
    clip: Clip, given: Mapping[str, object], way: str, run: Run
) -> tuple[Video, Bool[np.ndarray, "f 1 h w"]]:
    """Do as the method does, and say where the object is."""
    drawn = np.ascontiguousarray(np.repeat(clip.shares[:, :1], 3, axis=1))
    mask = write(Video(drawn, clip.video.fps), run.folder / "mask")
    params = SPEC.fill({**given, "mask": mask})
    assert isinstance(params, DiffusionAtlasParams)
    with torch.no_grad():
        sd = run.load(params.model, StableDiffusion)
        atlas = atlas_of(clip.video, params, run)
        index = chart_to_edit(atlas, params.layer, run)
        atlas = complete_ground(atlas, run) if params.outline == "new" else atlas
        ground = edited_ground(atlas, sd, params, run)
        look = edited_object(atlas, index, sd, params, run)
        look = replace(look, new_matte=None) if way == "old outline" else look
        frames, _ = render(atlas, clip.video, look, ground, None, run)
        _, _, alpha = View.of(atlas, clip.video, look.crop, look.old_matte, None, 0, FRAMES).show(look)
    return whole(clip.video.like(frames)), alpha.numpy() > 0.5


def whole(video: Video) -> Video:
    """Return a clip in memory."""
    return video.like(np.array(video.frames))


def edge_agreement(video: Video, truth: Video, inside: Bool[np.ndarray, "f 1 h w"]) -> float:
    """F1 of Canny edges near the change, to within a pixel."""
    found, right, hits, met = 0, 0, 0, 0
    for frame, wanted, where in zip(video.frames, truth.frames, inside[:, 0], strict=True):
        near = cv2.dilate(where.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        ours, true = (edges_of(f) & near for f in (frame, wanted))
        found, right = found + ours.sum(), right + true.sum()
        hits += (ours & (cv2.dilate(true.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0)).sum()
        met += (true & (cv2.dilate(ours.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0)).sum()
    precision, recall = hits / max(found, 1), met / max(right, 1)
    return float(2 * precision * recall / max(precision + recall, 1e-9))


def edges_of(frame: UInt8[np.ndarray, "3 h w"]) -> Bool[np.ndarray, "h w"]:
    """Return where Canny finds an edge."""
    grey = cv2.cvtColor(np.ascontiguousarray(frame.transpose(1, 2, 0)), cv2.COLOR_RGB2GRAY)
    return cv2.Canny(grey, 60, 150) > 0


# the map


def atlas_with(clip: Clip, run: Run) -> Atlas:
    """Return a clip's atlas of one picture for the object, by the true masks."""
    packed = [pack_matte(np.ascontiguousarray(m)) for m in clip.shares[:, 0]]
    mattes, names = (PackedMattes.pack(packed, SIZE, SIZE),), ("object", "background")
    return decompose.decompose_clip(clip.video, mattes, names, AtlasSettings(charts=1), run=run)


def drifts(clip: Clip, way: str, run: Run) -> Row:
    """How far apart in the texture true correspondences lie, in pixels of the frames."""
    began = time.process_time()
    if way == "never stiffer":
        with patch.object(decompose, "stiffer", lambda chart, *_: chart):
            atlas = atlas_with(clip, run)
    else:
        atlas = atlas_with(clip, run)
    spent = time.process_time() - began
    return {"drift": float(np.concatenate(list(apart(clip, atlas))).mean()), "seconds": spent}


def apart(clip: Clip, atlas: Atlas, warp: CanonicalWarp | None = None, crop: Crop | None = None) -> Iterator[
    Float[np.ndarray, " n"]
]:  # fmt: skip
    """For each frame, how far from the reference's places in the texture the object's points lie there."""
    chart = next(chart for chart in atlas.charts if chart.layer == 0)
    sure = cv2.erode((clip.shares[chart.reference, 0] >= 250).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    unit = chart.scale * (crop.fineness if crop else 1)
    for t in range(chart.start, chart.stop):
        flow, seen = clip.flow(chart.reference, t)
        y, x = np.nonzero(sure & seen[0])
        points = np.stack([x, y], 1).astype(np.float32)
        moved = points + flow[:, y, x].T
        both = [
            chart.mapping.uv_at(at - chart.start, torch.from_numpy(p))
            for at, p in ((chart.reference, points), (t, moved))
        ]
        if crop:
            places = [crop.places(p.T[None, :, :, None]) for p in both]
            both = [(warp(at) if warp else at)[0, :, :, 0].T for at in places]
        yield (both[0] - both[1]).norm(dim=1).numpy() / unit


def before_ground(atlas: Atlas) -> tuple[Crop, Tensor, Tensor]:
    """Return where the object lies in its texture, its matte there, and its picture before the ground."""
    index = next(n for n, chart in enumerate(atlas.charts) if chart.layer == 0)
    matte = chart_matte(atlas, index)
    crop = Crop.around(index, matte, SIZE)
    old = crop.cut(matte)
    return crop, old, old * crop.cut(atlas.charts[index].texture) + (1 - old) * ground_around(atlas, crop)


@torch.no_grad()
def traces(clip: Clip, run: Run) -> Row:
    """Show the object smaller, and say what the ground shows where its edge was."""
    atlas, small = atlas_with(clip, run), np.eye(2) / SMALLER
    crop, old, shown = before_ground(atlas)
    look = Look(crop, bent(shown, small), torch.ones_like(old), old, bent(old, small))
    view = View.of(complete_ground(atlas, run), clip.video, crop, old, None, 0, FRAMES)
    frames, _, alpha = view.show(look)
    made = (frames.clamp(0, 1) * 255).round().numpy()
    scene, source = clip.scene, np.array(clip.video.frames, np.float32)
    cameras = [scene.camera.at(float(t / clip.video.fps)) for t in range(FRAMES)]
    true = np.stack([background_planes(scene.background, scene.ground, at, (SIZE, SIZE)) for at in cameras])
    masks = clip.shares[:, 0] > 0, clip.shares[:, 0] < 255, alpha[:, 0].numpy() > 1 / 255
    some, bare, new = (
        np.stack([cv2.dilate(m.astype(np.uint8), np.ones((side, side))) > 0 for m in mask])
        for mask, side in zip(masks, (5, 5, 3), strict=True)
    )
    ring = np.broadcast_to((some & bare & ~new)[:, None], made.shape)
    lines = [fine_lines(clip)[ring] for clip in (true, source, made)]
    (_, left), *_ = np.linalg.lstsq(np.stack(lines[:2], 1), lines[2], rcond=None)
    error = np.square(made - true)[ring].mean()
    return {"ring": float(10 * np.log10(255**2 / error)), "left": float(left)}


def fine_lines(frames: np.ndarray) -> Float[np.ndarray, "f 3 h w"]:
    """Return what of frames is finer than some pixels."""
    planes = frames.astype(np.float32)
    return planes - np.stack([np.stack([cv2.GaussianBlur(p, (0, 0), 2) for p in f]) for f in planes])


def bent(shown: Tensor, matrix: Float[np.ndarray, "2 2"]) -> Tensor:
    """A picture read at places that a matrix moves about its middle."""
    middle = np.array([(shown.shape[-1] - 1) / 2, (shown.shape[-2] - 1) / 2])
    affine = np.hstack([matrix, (middle - matrix @ middle)[:, None]]).astype(np.float32)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    source = np.ascontiguousarray(shown[0].permute(1, 2, 0).numpy())
    moved = cv2.warpAffine(source, affine, source.shape[1::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return torch.from_numpy(np.atleast_3d(moved).transpose(2, 0, 1).copy())[None].clamp(0, 1)


@torch.no_grad()
def quality(
    clip: Clip, view: View, look: Look, matrix: Float[np.ndarray, "2 2"], warp: CanonicalWarp | None
) -> tuple[float, float, float]:
    """Decibels near the object, IoU of its matte, and pixels of the crop by which the map is wrong."""
    frames, _, alpha = view.show(look) if warp is None else view.show(look, warp)
    shown, share = alpha[:, 0] > 0.5, torch.from_numpy(clip.shares[:, 0])
    own = share > 127
    source = torch.from_numpy(np.array(clip.video.frames)).float() / 255
    error = (frames - source).square().mean(1)[(share > 20) | shown].mean()
    middle = torch.tensor([(look.crop.width - 1) / 2, (look.crop.height - 1) / 2])[:, None, None]
    back = torch.from_numpy(np.linalg.inv(matrix)).float()
    right = torch.einsum("ij,fjhw->fihw", back, view.places - middle) + middle
    off = ((view.places if warp is None else warp(view.places)) - right).norm(dim=1)[own].mean()
    return float(-10 * error.log10()), float((shown & own).sum() / (shown | own).sum()), float(off)


def mended(clip: Clip, kind: str, way: str, number: int, run: Run) -> Row:
    """Bend the texture of a clip, refine, and say how near the truth it came; the gate is told, not used."""
    sd, matrix = run.load("tiny:sd", StableDiffusion), np.array(BENDS[kind])
    atlas = atlas_with(clip, run)
    crop, old, shown = before_ground(atlas)
    look = Look(crop, shown, torch.ones_like(old), old, old)
    if kind != "none":
        look = replace(look, picture=bent(shown, matrix), new_matte=bent(old, matrix))
    how = Refinement(clip.caption, clip.caption, least=-1.0, least_move=0.0)
    if way == "no holds":
        how = replace(how, area=0.0)
    if way == "wrong prompt":
        how = replace(how, prompt=changed_to(clip, "object", number).caption)
    if way == "huge order 1":
        how = replace(how, order_1=100.0)
    began = time.process_time()
    found = refine(atlas, clip.video, look, None, sd, how, run=run)
    spent = time.process_time() - began
    view = View.of(atlas, clip.video, crop, old, None, 0, FRAMES)
    row = {"fell": found.fell, "moved": found.moved, "folds": found.folds, "seconds": spent}
    for when, warp in (("before", None), ("after", found.warp)):
        figures = quality(clip, view, look, matrix, warp)
        away = float(np.concatenate(list(apart(clip, atlas, warp, crop))).mean())
        row |= {
            f"{n} {when}": v for n, v in zip(("dB", "IoU", "off", "drift"), (*figures, away), strict=True)
        }
    return row


# tables and sheets


def tell(folder: Path) -> None:
    """Print a table a kind: the mean of each figure with its interval over clips."""
    rows = rows_of(folder)
    for kind, ways in WAYS.items():
        mine = [[row for row in rows if (row["kind"], row["way"]) == (kind, way)] for way in ways]
        heads = [key for key in next((r[0] for r in mine if r), {}) if key not in ("kind", "way", "clip")]
        if heads:
            print(f"\n| {kind} | clips | {' | '.join(heads)} |\n|---{'|---' * (len(heads) + 1)}|")
        for way, some in zip(ways, mine, strict=True):
            if some:
                print(f"| {way} | {len(some)} | {' | '.join(interval(some, head) for head in heads)} |")


def interval(rows: Sequence[Mapping[str, object]], name: str) -> str:
    """Write a mean with its bootstrap interval."""
    values = [float(str(row[name])) for row in rows if name in row]
    if not values:
        return ""
    found, digits = bootstrap_interval(values), 4 if name.startswith(("warp", "drift")) else 2
    return f"{found.mean:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f})"


def draw(folder: Path, kind: str, first: int, path: Path) -> None:
    """Draw source, truth and all ways with each clip, first and last frame."""
    shown, titles = [], []
    for number in sorted({int(str(row["clip"])) for row in rows_of(folder) if row["kind"] == kind}):
        clip = Clip.of(Scene.sample(first + number, LARGE), FRAMES, SIZE)
        target = changed_to(clip, "colour" if kind == "reference" else kind, number)
        made = [np.load(folder / f"{kind} {way} {number}.npy") for way in WAYS[kind]]
        clips = [np.asarray(clip.video.frames), np.asarray(target.video.frames), *made]
        shown.append([np.ascontiguousarray(f[at].transpose(1, 2, 0)) for f in clips for at in (0, -1)])
        titles.append(f"{clip.caption}: {target.caption}")
    heads = [head for name in ("source", "true edit", *WAYS[kind]) for head in (name, "last")]
    Image.fromarray(draw_sheet(shown, heads, titles, height=96)).save(path, quality=85)


def main() -> None:
    """Read what to do, and do it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=["measure", "table", "sheet"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("more", nargs="*", help="kinds; for a sheet, one and the picture")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--choose", action="store_true", help="take the clips that settings are chosen on")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter")
    parser.add_argument("--way", action="append", default=[], help="measure this one alone; repeatable")
    given = parser.parse_args()
    first = TO_CHOOSE if given.choose else TO_TELL
    torch.set_num_threads(1)
    if given.what == "measure":
        settings = dict(pair.split("=", 1) for pair in given.set)
        measure(given.folder, given.more or list(WAYS), given.way, given.clips, first, settings)
    elif given.what == "table":
        tell(given.folder)
    else:
        draw(given.folder, given.more[0], first, Path(given.more[1]))


if __name__ == "__main__":
    main()
