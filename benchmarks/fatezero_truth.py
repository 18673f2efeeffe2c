"""FateZero against the truth, beside `retouch bench truth`: its round trip, and ten edits to look at.

Run:  python benchmarks/fatezero_truth.py sheet docs/images/fatezero-edits.webp
      python benchmarks/fatezero_truth.py trip [--clips 8]
      python benchmarks/fatezero_truth.py baseline [--clips 8]

`sheet`: clips of the drawn world with their true edits, and what FateZero's presets and `frame_by_frame` make
of them, first and last frame. `trip`: how near the source comes back, in decibels: through the autoencoder
alone, through inversion and sampling, and from an edit to the same prompt. `baseline`: `frame_by_frame` at
several strengths, to choose one that is fair. Scenes are ones that no embedded model has seen, and none of
the bench's.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import numpy as np
import torch
from PIL import Image

from retouch.compute import Compute
from retouch.diffusion.resize import Resize
from retouch.media.compare import draw_sheet
from retouch.methods.fatezero.edit import edit as fatezero
from retouch.methods.fatezero.spec import SPEC as FATEZERO
from retouch.methods.fatezero.spec import FateZeroParams
from retouch.methods.frame_by_frame.edit import edit as frame_by_frame
from retouch.methods.frame_by_frame.spec import FrameByFrameParams
from retouch.metrics.fidelity import changed_pixels, psnr
from retouch.models.image import StableDiffusion
from retouch.run import Run
from retouch.video import Video
from retouch.world import COLOURS, Change, Clip, Scene, Variety, edited_clip

FIRST_SEED: Final = 2_100_000_000
FRAMES, SIZE, STEPS = 8, 64, 20
CPU = Compute(device="cpu")
QUALITY: Final = 80
"""Of the picture, as WebP counts; lossless it has a megabyte."""
HIGH: Final = 96
"""Pixels of a picture on the sheet."""

EDITS: Final = (
    ("a red car on sand", "colour=blue", "attribute"),
    ("a yellow fish in sky", "colour=red", "attribute"),
    ("a blue ball on bricks", "colour=orange", "attribute"),
    ("a red house on grass", "colour=purple", "attribute"),
    ("a red ball on snow", "pattern=striped", "attribute"),
    ("a blue star on sand", "object=heart", "shape"),
    ("a red house on sand", "object=car", "shape"),
    ("a green cup on snow", "object=ball", "shape"),
    ("a red boat on wood", "style=pencil sketch", "style"),
    ("a red house on sand", "style=neon", "style"),
)
"""What a clip shows, what changes, and the preset for it."""
LARGE = Variety(pair=0.0, styles=("none",), patterns=("plain",), scale=(0.6, 0.78), place=0.12, turn=0.02)


@final
@dataclass(frozen=True, eq=False)
class Trial:
    """A clip, its true edit, and what a user would say."""

    clip: Clip
    target: Clip
    preset: str

    @property
    def params(self) -> Mapping[str, object]:
        """The parameters of the edit by words."""
        return {"source_prompt": self.clip.caption, "prompt": self.target.caption, "steps": STEPS}


def by_fatezero(video: Video, preset: str | None, given: Mapping[str, object]) -> Video:
    """The clip edited by FateZero."""
    params = FATEZERO.fill(given, preset=preset)
    assert isinstance(params, FateZeroParams)
    with tempfile.TemporaryDirectory() as folder:
        found = fatezero(video, params, Run.alone(Path(folder), compute=CPU)).video
        return found.like(np.array(found.frames))


def by_frame(video: Video, prompt: str, **more: object) -> Video:
    """The clip edited frame by frame."""
    params = FrameByFrameParams.model_validate({"prompt": prompt, "steps": STEPS, **more})
    with tempfile.TemporaryDirectory() as folder:
        found = frame_by_frame(video, params, Run.alone(Path(folder), compute=CPU)).video
        return found.like(np.array(found.frames))


def draw(path: Path) -> None:
    """Ten edits, first and last frame."""
    rows, titles = [], []
    for number, (caption, change, preset) in enumerate(EDITS):
        clip = Clip.of(Scene.of(caption, FIRST_SEED + number, LARGE), FRAMES, SIZE)
        trial = Trial(clip, edited_clip(clip, Change.parse(change)), preset)
        ours = by_fatezero(clip.video, preset, trial.params)
        plain = by_frame(clip.video, trial.target.caption)
        shown = (clip.video, trial.target.video, ours, plain)
        rows.append([np.ascontiguousarray(v.frames[at].transpose(1, 2, 0)) for v in shown for at in (0, -1)])
        titles.append(f"{caption}: {change.partition('=')[2]}")
        print(titles[-1], f"{psnr(ours.frames, trial.target.video.frames):.1f} dB", flush=True)
    heads = [
        head for name in ("source", "true edit", "fatezero", "frame_by_frame") for head in (name, "last")
    ]
    Image.fromarray(draw_sheet(rows, heads, titles, height=HIGH)).save(path, quality=QUALITY)


def clips(count: int) -> Iterator[Clip]:
    """Clips of one object, patterned or plain."""
    for seed in range(FIRST_SEED + 1000, FIRST_SEED + 1000 + count):
        yield Clip.of(Scene.sample(seed, Variety(pair=0.0, styles=("none",))), FRAMES, SIZE)


def trip(count: int) -> None:
    """How near the source comes back."""
    sd = StableDiffusion.from_pretrained("tiny:sd", CPU)
    loose = {"cross_until": 0.0, "self_until": 0.0, "guidance": 1.0}
    ways: Mapping[str, Mapping[str, object]] = {
        "inversion and sampling, one call a step": {**loose, "fixed_point": 1},
        "inversion and sampling": loose,
        "an edit to the same prompt": {},
        "the same, guidance 7.5": {"guidance": 7.5},
    }
    found: dict[str, list[float]] = {"autoencoder alone": [], **{name: [] for name in ways}}
    for clip in clips(count):
        resize = Resize.for_image_model(clip.video.height, clip.video.width, sd, "model")
        with torch.no_grad():
            seen = clip.video.like(resize.to_clip(sd.decode(sd.encode(resize.to_model(clip.video.pixels())))))
        found["autoencoder alone"].append(psnr(seen.frames, clip.video.frames))
        for name, more in ways.items():
            same = {"source_prompt": clip.caption, "prompt": clip.caption, "steps": STEPS, **more}
            back = by_fatezero(clip.video, None, same)
            found[name].append(psnr(back.frames, clip.video.frames))
    _say(("way", "PSNR, dB"), {name: [float(np.mean(values))] for name, values in found.items()})


def baseline(count: int) -> None:
    """`frame_by_frame` at several strengths: a colour changed."""
    found: dict[str, list[float]] = {}
    for strength in (0.3, 0.5, 0.7, 0.9):
        inside, outside = [], []
        for number, clip in enumerate(clips(count)):
            actor = clip.scene.actors[0]
            hue = [colour for colour in COLOURS if colour != actor.colour][number % 7]
            truth = edited_clip(clip, Change.parse(f"colour={hue}"))
            got = by_frame(clip.video, truth.caption, strength=strength).frames
            where = changed_pixels(clip.video.frames, truth.video.frames)
            inside.append(psnr(got, truth.video.frames, where))
            outside.append(psnr(got, truth.video.frames, ~where))
        found[f"strength {strength:g}"] = [float(np.mean(inside)), float(np.mean(outside))]
    _say(("frame_by_frame", "fidelity inside, dB", "fidelity outside, dB"), found)


def _say(heads: Sequence[str], rows: Mapping[str, Sequence[float]]) -> None:
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for name, values in rows.items():
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |", flush=True)


def main() -> None:
    """Draws, or prints the tables of `fatezero.md`."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("sheet", "trip", "baseline"))
    parser.add_argument("path", type=Path, nargs="?", default=Path("fatezero-edits.webp"))
    parser.add_argument("--clips", type=int, default=8)
    asked = parser.parse_args()
    if asked.what == "sheet":
        draw(asked.path)
    else:
        {"trip": trip, "baseline": baseline}[asked.what](asked.clips)


if __name__ == "__main__":
    main()
