"""Real clips recoloured, layer by layer, by a stand-in for an image-edit model: what transport and mattes do.

Run:  python benchmarks/recoloured.py CLIPS FOLDER [wolf car-turn man-surfing] [--frames 30]

The stand-in turns the hue of all of a picture that it is shown, by another angle for the object than for the
background, and gives grey some colour; light stays. So what every frame should show is known: the frame
recoloured, each layer by its share of a pixel. `stablevideo` edits key frames of both layers,
`diffusion_atlas` both textures, where the stand-in takes the object's hue from a reference picture. A clip is
taken apart once; atlas, frames and figures are kept in FOLDER.

    object, background   dB to the frame recoloured, where a pixel is at least 0.95 of the layer
    edge                 the same between: the mattes' soft edge, and two pixels on both sides
    source               what nothing at all would have: the source against the frame recoloured
    grey                 share of these pixels that make less than half of their way to the other colour
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, final

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from atlas import MARKS
from retouch.atlas.atlas import Atlas
from retouch.atlas.file import load_atlas, save_atlas
from retouch.atlas.prepare import atlas_for
from retouch.atlas.pyramid import AtlasSettings
from retouch.compute import Compute
from retouch.media.io import read, write_picture
from retouch.methods.diffusion_atlas.edit import edit_with_editor as edit_textures
from retouch.methods.diffusion_atlas.spec import SPEC as DIFFUSION_ATLAS
from retouch.methods.diffusion_atlas.spec import DiffusionAtlasParams
from retouch.methods.stablevideo.edit import edit_with_editor as edit_keyframes
from retouch.methods.stablevideo.spec import SPEC as STABLEVIDEO
from retouch.methods.stablevideo.spec import StableVideoParams
from retouch.run import Edited, Run
from retouch.video import Video

HUES: Final = {"object": 140.0, "background": -80.0}
"""Degrees by which each layer's hue is turned."""
TINT: Final = 14.0
"""Colour, in a and b of Lab, that grey is given."""
SHOWN: Final = 6
"""Frames in a row of a sheet."""


@final
@dataclass(frozen=True)
class TurnsHues:
    """An editor of pictures that turns their hues, as a reference or the word that it is told says."""

    @property
    def identity(self) -> str:
        """What it does."""
        return f"turns hues {HUES} {TINT}"

    def edit(
        self,
        picture: UInt8[np.ndarray, "h w 3"],
        prompt: str,
        *,
        mask: Bool[np.ndarray, "h w"] | None,
        references: Sequence[UInt8[np.ndarray, "y x 3"]],
        seed: int,
        run: Run,
    ) -> UInt8[np.ndarray, "h w 3"]:
        """Return all of the picture recoloured."""
        del mask, seed, run
        degrees = float(references[0][0, 0, 0]) if references else HUES[prompt]
        return np.clip(turned(picture, degrees), 0, 255).round().astype(np.uint8)


def turned(picture: UInt8[np.ndarray, "h w 3"], degrees: float) -> Float[np.ndarray, "h w 3"]:
    """Return a picture with its hues turned and its light kept, in levels."""
    lab = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]], np.float32)
    lab[..., 1:] = lab[..., 1:] @ turn + TINT * turn[0]
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB) * 255, np.float32)


def atlas_path(name: str, method: str, video: Video, frames: range, folder: Path, run: Run) -> Path:
    """Return where a clip's atlas lies, made once by its marks; one picture a layer for `diffusion_atlas`."""
    path = folder / f"{name}-{method}.atlas"
    if not path.exists():
        marks = [replace(mark, frame=mark.frame - frames.start) for mark in MARKS[name]]
        settings = AtlasSettings(charts=1) if method == "diffusion_atlas" else AtlasSettings()
        began = time.process_time()
        save_atlas(atlas_for(video, run, marks=marks, settings=settings), path)
        print(f"{name}: taken apart in {time.process_time() - began:.0f} CPU seconds", flush=True)
    return path


def wanted(atlas: Atlas, video: Video, t: int) -> Float[np.ndarray, "h w 3"]:
    """Return what a frame should show."""
    frame = np.ascontiguousarray(video.frames[t].transpose(1, 2, 0))
    share = atlas.shares(t, t + 1)[0][0, 0].numpy()[..., None]
    return share * turned(frame, HUES["object"]) + (1 - share) * turned(frame, HUES["background"])


def figures_of(atlas: Atlas, video: Video, made: UInt8[np.ndarray, "f 3 h w"]) -> dict[str, float]:
    """Return how near an edited clip is to what it should show, by parts of the frames."""
    errors: dict[str, list[np.ndarray]] = {}
    grey: dict[str, list[np.ndarray]] = {}
    for t in range(len(video)):
        true, source = wanted(atlas, video, t), video.frames[t].transpose(1, 2, 0).astype(np.float32)
        share = atlas.shares(t, t + 1)[0][0, 0].numpy()
        soft = cv2.dilate(((share > 0.05) & (share < 0.95)).astype(np.uint8), np.ones((5, 5))) > 0
        shown = made[t].transpose(1, 2, 0).astype(np.float32)
        parts = {"object": (share >= 0.95) & ~soft, "background": (share <= 0.05) & ~soft, "edge": soft}
        for part, where in parts.items():
            errors.setdefault(part, []).append(np.square(shown - true)[where].mean(1))
            errors.setdefault(f"{part} source", []).append(np.square(source - true)[where].mean(1))
            change = np.linalg.norm(true - source, axis=2)
            done = ((shown - source) * (true - source)).sum(2) / np.maximum(change, 1e-3)
            some = where & (change > 12)
            grey.setdefault(f"{part} grey", []).append(done[some] < 0.5 * change[some])
    figures = {k: float(10 * np.log10(255**2 / np.concatenate(v).mean())) for k, v in errors.items()}
    return figures | {k: float(np.concatenate(v).mean()) for k, v in grey.items()}


def edited(method: str, video: Video, atlas: Path, run: Run) -> Edited:
    """Edit both layers of a clip."""
    if method == "stablevideo":
        told = {"prompt": "object", "background_prompt": "background", "edits": "both", "atlas": atlas}
        params = STABLEVIDEO.fill({**told, "keyframes": 4})
        assert isinstance(params, StableVideoParams)
        return edit_keyframes(TurnsHues(), video, params, run)
    code = np.arange(64, dtype=np.uint8).reshape(8, 8, 1) + np.zeros((1, 1, 3), np.uint8)
    code[0, 0] = int(HUES["object"])
    reference = write_picture(code, run.folder / "reference.png", force=True)
    told = {"source_prompt": "object", "background_prompt": "background", "reference": reference}
    params = DIFFUSION_ATLAS.fill({**told, "atlas": atlas})
    assert isinstance(params, DiffusionAtlasParams)
    return edit_textures(TurnsHues(), video, params, run)


def sheet(atlas: Atlas, video: Video, clips: Sequence[UInt8[np.ndarray, "f 3 h w"]], path: Path) -> None:
    """Draw some frames: the source, what they should show, and what each method shows."""
    chosen = np.linspace(0, len(video) - 1, SHOWN).round().astype(int)
    rows = [np.hstack([video.frames[t].transpose(1, 2, 0) for t in chosen])]
    rows += [np.hstack([np.clip(wanted(atlas, video, t), 0, 255).astype(np.uint8) for t in chosen])]
    rows += [np.hstack([made[t].transpose(1, 2, 0) for t in chosen]) for made in clips]
    write_picture(np.ascontiguousarray(np.vstack(rows)), path, force=True)


def main() -> None:
    """Recolour the clips that are named, and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clips", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=[*MARKS])
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--methods", nargs="*", default=["stablevideo", "diffusion_atlas"])
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name in given.names:
        video = read(given.clips / f"{name}.mp4")
        middle = MARKS[name][0].frame
        start = max(0, min(middle - given.frames // 2, len(video) - given.frames))
        part = range(start, min(len(video), start + given.frames))
        video = video[part.start : part.stop]
        run = Run.alone(given.folder / "run", compute=Compute(device="cpu", threads=1))
        clips = []
        for method in given.methods:
            path = atlas_path(name, method, video, part, given.folder, run)
            atlas, began = load_atlas(path, video), time.process_time()
            with torch.no_grad():
                found = edited(method, video, path, run)
            seconds = time.process_time() - began
            clips.append(np.array(found.video.frames))
            np.save(given.folder / f"{name} {method}.npy", clips[-1])
            row = {"clip": name, "method": method, "frames": len(video), "seconds": round(seconds, 1)}
            row |= {k: round(v, 3) for k, v in (figures_of(atlas, video, clips[-1]) | found.figures).items()}
            print(json.dumps(row), flush=True)
            with (given.folder / "rows.jsonl").open("a") as lines:
                lines.write(json.dumps(row) + "\n")
        sheet(atlas, video, clips, given.folder / f"{name}.png")


if __name__ == "__main__":
    main()
