"""DiffusionAtlas against the truth: edits of drawn clips, and maps that are bent by a known amount.

Run:  python benchmarks/diffusion_atlas.py edits colour|object|pattern [--clips 8] [--sheet FILE]
      python benchmarks/diffusion_atlas.py refine none|squeeze|shear [--clips 8] [--control holds|prompt]

`edits`: figures against the true edited clip, of clips that no embedded model has seen. `refine`: the texture
of an unedited clip is bent about its middle, so the map to it is wrong by exactly that; the refinement should
find it. The controls take away what holds the object's area, or give the words of another object. Means come
with the half width of their 95 % interval, by the spread over clips. Seconds are processor seconds of one
thread.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from retouch.atlas.atlas import PackedMattes, pack_matte
from retouch.atlas.decompose import kept_atlas
from retouch.atlas.pyramid import AtlasSettings
from retouch.compute import Compute
from retouch.media.compare import draw_sheet
from retouch.media.io import write
from retouch.methods.diffusion_atlas.compose import Crop, Look, View, chart_matte, ground_around
from retouch.methods.diffusion_atlas.edit import edit
from retouch.methods.diffusion_atlas.refine import CanonicalWarp, Refinement, refine
from retouch.methods.diffusion_atlas.spec import SPEC, DiffusionAtlasParams
from retouch.metrics.fidelity import changed_pixels, psnr
from retouch.models.image import StableDiffusion
from retouch.run import Run
from retouch.video import Video
from retouch.world import Change, Clip, Scene, Variety, edited_clip

FIRST_SEED: Final = 2_300_000_000
FRAMES, SIZE = 8, 64
CPU = Compute(device="cpu")
LARGE = Variety(pair=0.0, styles=("none",), patterns=("plain",), scale=(0.6, 0.78), place=0.12, turn=0.02)
TO: Final = {"colour": ("red", "blue", "green", "orange"), "object": ("car", "heart", "ball", "house"),
             "pattern": ("striped", "dotted")}  # fmt: skip
BENDS: Final = {
    "none": ((1.0, 0.0), (0.0, 1.0)),
    "squeeze": (((1.4**0.5), 0.0), (0.0, 1.4**-0.5)),
    "shear": ((1.0, 0.35), (0.0, 1.0)),
}


def clip_of(number: int) -> Clip:
    """A large plain object, hardly moving."""
    return Clip.of(Scene.sample(FIRST_SEED + number, LARGE), FRAMES, SIZE)


def changed_to(clip: Clip, what: str, number: int) -> Clip:
    """The true edit to a word that the clip does not show."""
    words = [word for word in TO[what] if word not in clip.caption]
    return edited_clip(clip, Change.parse(f"{what}={words[number % len(words)]}"))


def tell(name: str, rows: Sequence[Sequence[float]], heads: Sequence[str]) -> None:
    """Print the mean of each column and its interval."""
    table = np.array(rows)
    half = 1.96 * table.std(0, ddof=1) / np.sqrt(len(table)) if len(table) > 1 else 0 * table[0]
    said = "  ".join(f"{h} {m:.2f}±{e:.2f}" for h, m, e in zip(heads, table.mean(0), half, strict=True))
    print(f"{name}, {len(table)} clips: {said}", flush=True)


def edits(what: str, count: int, given: Mapping[str, object], path: Path | None) -> None:
    """Edit clips by words and hold them against the truth."""
    rows, shown, titles = [], [], []
    for number in range(count):
        clip = clip_of(number)
        target = changed_to(clip, what, number)
        with tempfile.TemporaryDirectory() as name:
            drawn = np.ascontiguousarray(np.repeat(clip.shares[:, :1], 3, axis=1))
            mask = write(Video(drawn, clip.video.fps), Path(name) / "mask")
            params = SPEC.fill(
                {
                    "source_prompt": clip.caption,
                    "prompt": target.caption,
                    "mask": mask,
                    "outline": "new" if what == "object" else "keep",
                    **given,
                }
            )
            assert isinstance(params, DiffusionAtlasParams)
            began = time.process_time()
            made = edit(clip.video, params, Run.alone(Path(name) / "run", compute=CPU)).video
            result = made.like(np.array(made.frames))
            spent = time.process_time() - began
        inside = changed_pixels(clip.video.frames, target.video.frames)
        figures = [psnr(result.frames, target.video.frames, where) for where in (inside, ~inside)]
        rows.append([*figures, spent])
        print(f"  {clip.caption} -> {target.caption}: {rows[-1]}", flush=True)
        videos = clip.video, target.video, result
        shown.append(
            [np.ascontiguousarray(v.frames[at].transpose(1, 2, 0)) for v in videos for at in (0, -1)]
        )
        titles.append(f"{clip.caption}: {target.caption}")
    tell(what, rows, ("inside", "outside", "seconds"))
    if path:
        heads = [head for name in ("source", "true edit", "diffusion_atlas") for head in (name, "last")]
        Image.fromarray(draw_sheet(shown, heads, titles, height=96)).save(path)


def bent(picture: Tensor, matrix: np.ndarray) -> Tensor:
    """A picture read at places that a matrix moves about its middle."""
    middle = np.array([(picture.shape[-1] - 1) / 2, (picture.shape[-2] - 1) / 2])
    affine = np.hstack([matrix, (middle - matrix @ middle)[:, None]]).astype(np.float32)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    source = np.ascontiguousarray(picture[0].permute(1, 2, 0).numpy())
    moved = cv2.warpAffine(source, affine, source.shape[1::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return torch.from_numpy(np.atleast_3d(moved).transpose(2, 0, 1).copy())[None].clamp(0, 1)


@torch.no_grad()
def quality(
    clip: Clip, views: Sequence[View], look: Look, matrix: np.ndarray, warp: CanonicalWarp | None
) -> list[float]:
    """Decibels near the object, IoU of its matte, and pixels of the crop by which the map is wrong."""
    shown = [view.show(look) if warp is None else view.show(look, warp) for view in views]
    frames = torch.cat([frame for frame, _, _ in shown])
    alpha = torch.cat([share for _, _, share in shown])[:, 0] > 0.5
    share = torch.from_numpy(clip.shares[:, 0])
    own = share > 127
    source = torch.from_numpy(np.array(clip.video.frames)).float() / 255
    error = (frames - source).square().mean(1)[(share > 20) | alpha].mean()
    places = torch.cat([view.places for view in views])
    middle = torch.tensor([(look.crop.width - 1) / 2, (look.crop.height - 1) / 2])[:, None, None]
    back = torch.from_numpy(np.linalg.inv(matrix)).float()
    right = torch.einsum("ij,fjhw->fihw", back, places - middle) + middle
    off = ((places if warp is None else warp(places)) - right).norm(dim=1)[own].mean()
    return [
        float(-10 * error.log10()),
        float((alpha & own).sum() / (alpha | own).sum()),
        float(off),
    ]


def mend(name: str, count: int, control: str) -> None:
    """Bend the textures of clips, refine, and say how near the truth they came."""
    sd, matrix, rows = StableDiffusion.from_pretrained("tiny:sd", CPU), np.array(BENDS[name]), []
    for number in range(count):
        clip = clip_of(number)
        with tempfile.TemporaryDirectory() as folder:
            run = Run.alone(Path(folder), compute=CPU)
            packed = [pack_matte(np.ascontiguousarray(m)) for m in clip.shares[:, 0]]
            mattes, names = (PackedMattes.pack(packed, SIZE, SIZE),), ("object", "background")
            atlas = kept_atlas(clip.video, mattes, names, AtlasSettings(charts=1), run=run)
            index = next(n for n, chart in enumerate(atlas.charts) if chart.layer == 0)
            matte = chart_matte(atlas, index)
            crop = Crop.around(index, matte, sd.native)
            old = crop.cut(matte)
            picture = old * crop.cut(atlas.charts[index].texture) + (1 - old) * ground_around(atlas, crop)
            plain = name == "none"
            look = Look(
                crop,
                picture if plain else bent(picture, matrix),
                torch.ones_like(old),
                old,
                old if plain else bent(old, matrix),
            )
            views = [View.of(atlas, clip.video, crop, old, None, t, t + 1) for t in range(FRAMES)]
            how = Refinement(clip.caption, clip.caption, least=-1.0)
            if control == "holds":
                how = replace(how, area=0.0)
            if control == "prompt":
                other = changed_to(clip, "object", number).caption
                how = replace(how, prompt=other)
            began = time.process_time()
            found = refine(atlas, clip.video, look, None, sd, how, run=run)
            spent = time.process_time() - began
        before = quality(clip, views, look, matrix, None)
        after = quality(clip, views, look, matrix, found.warp)
        rows.append([*before, *after, found.fell, found.folds, spent])
        print(f"  {clip.caption}: {[round(v, 3) for v in rows[-1]]}", flush=True)
    heads = ("dB", "IoU", "off", "dB after", "IoU after", "off after", "fell", "folds", "seconds")
    tell(f"{name} {control}".strip(), rows, heads)


def main() -> None:
    """Read what to measure, and measure it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=["edits", "refine"])
    parser.add_argument("kind", choices=[*TO, *BENDS])
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--control", choices=["holds", "prompt"], default="")
    parser.add_argument("--tune-steps", type=int)
    parser.add_argument("--sheet", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "edits":
        edits(given.kind, given.clips, {"tune_steps": given.tune_steps}, given.sheet)
    else:
        mend(given.kind, given.clips, given.control)


if __name__ == "__main__":
    main()
