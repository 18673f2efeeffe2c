"""How near the face method comes to edits whose truth is known; figures in benchmarks/face.md.

python benchmarks/face.py truth --clips 10            edits of clips that no training has seen
python benchmarks/face.py truth --clips 10 --words    the same, told in words
python benchmarks/face.py sheet PICTURE        the figure of the docs
"""

import sys
from argparse import ArgumentParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import torch
from PIL import Image

from family import keep_in_provenance
from retouch.methods.face.align import follow_face
from retouch.methods.face.edit import edit_with, read_faces
from retouch.methods.face.spec import SPEC, FaceParams
from retouch.metrics.identity import identity_steadiness
from retouch.models.face_model import FaceModel
from retouch.run import Run
from retouch.video import Video
from retouch.world.faces import FaceClip, Portrait

EDITS: Final = {
    "glasses": ("glasses=1", "glasses=yes", lambda who: not who.glasses),
    "beard": ("beard=1", "beard=yes", lambda who: not who.beard),
    "hair colour": (
        "blond-hair=1",
        "hair_colour=blond",
        lambda who: who.hair_colour != "blond" and who.hair != "bald",
    ),
    "skin": ("dark-skin=1", "skin=dark", lambda who: who.skin not in ("dark", "brown")),
    "hat": ("red-hat=1", "hat=red", lambda who: who.hat != "red"),
}
SAID: Final = {
    "glasses": ("a face without glasses", "a face with glasses"),
    "beard": ("a face without a beard", "a face with a beard"),
    "hair colour": ("a face", "a face with blond hair"),
    "skin": ("a face", "a face with dark skin"),
    "hat": ("a face without a hat", "a face with a red hat"),
}
"""What a clip shows, and what it is to show, in words."""
FIRST: Final = 100
"""The first of the seeds that are tried; recipes train on seeds from a million on."""


def clips(name: str, count: int, frames: int) -> list[FaceClip]:
    """Return clips in which the edit has something to do."""
    fits, found, seed = EDITS[name][2], [], FIRST
    while len(found) < count:
        portrait = Portrait.sample(seed)
        found += [FaceClip.of(portrait, frames, 128)] if fits(portrait.identity) else []
        seed += 1
    return found


def edited(
    clip: FaceClip, name: str, model: FaceModel, folder: Path, *, words: bool = False
) -> tuple[Video, Video, np.ndarray]:
    """Return the edit, the true edit, and where ours says that it worked."""
    source, prompt = SAID[name]
    said = {"source_prompt": source, "prompt": prompt} if words else {"attribute": (EDITS[name][0],)}
    params = SPEC.fill(said)
    assert isinstance(params, FaceParams)
    made = edit_with(model, clip.video, params, Run.alone(folder))
    assert made.touched is not None
    return made.video, clip.edited(EDITS[name][1]).video, made.touched


def decibels_within(one: Video, other: Video, mask: np.ndarray) -> float:
    """Return PSNR inside a mask."""
    error = np.square(one.frames.astype(np.float64) - other.frames)[np.broadcast_to(mask, one.frames.shape)]
    return float(10 * np.log10(255**2 / max(error.mean(), 1e-9)))


def nearer(result: Video, source: Video, truth: Video, mask: np.ndarray) -> list[bool]:
    """Return for each frame whether the result is nearer to the true edit than the source is, by 3 dB."""
    rows = range(len(result))
    parts = [(result[n : n + 1], source[n : n + 1], truth[n : n + 1], mask[n : n + 1]) for n in rows]
    return [decibels_within(r, t, m) > decibels_within(s, t, m) + 3 for r, s, t, m in parts if m.any()]


def vectors(video: Video, model: FaceModel, folder: Path) -> torch.Tensor:
    """Return who each frame shows."""
    run = Run.alone(folder)
    track = follow_face(video, model, None, 0, run=run)
    return read_faces(video, track.squares(model.diffusion.config.scale), track, model, run=run).vectors


def truth(count: int, frames: int, *, keep: bool, words: bool) -> None:
    """Print a row for each edit; `keep` puts the means beside the weights."""
    figures = {"edited_clips": float(count * len(EDITS)), "frames_a_clip": float(frames)}
    model = FaceModel.from_pretrained("tiny:face")
    print("| edit | clips | frames nearer | changed region | source there | exact outside | TL-ID | TG-ID |")
    print("|---|---|---|---|---|---|---|---|")
    for name in EDITS:
        rows, near = [], []
        for clip in clips(name, count, frames):
            with TemporaryDirectory() as folder:
                result, true, touched = edited(clip, name, model, Path(folder), words=words)
                mask = (true.frames != clip.video.frames).any(1, keepdims=True)
                near += nearer(result, clip.video, true, mask)
                exact = not ((result.frames != clip.video.frames).any(1, keepdims=True) & ~touched).any()
                near_and_far = identity_steadiness(
                    vectors(result, model, Path(folder)), vectors(clip.video, model, Path(folder))
                )
                ours, was = (decibels_within(video, true, mask) for video in (result, clip.video))
                rows.append((ours, was, exact, *near_and_far))
        mean = np.mean(rows, axis=0)
        figures[f"psnr_changed_{name.replace(' ', '_')}"] = round(float(mean[0]), 2)
        figures[f"psnr_source_{name.replace(' ', '_')}"] = round(float(mean[1]), 2)
        print(
            f"| {name} | {count} | {np.mean(near):.2f} | {mean[0]:.1f} dB | {mean[1]:.1f} dB | {mean[2]:.0%} "
            f"| {mean[3]:.3f} | {mean[4]:.3f} |",
            flush=True,
        )
    if keep:
        keep_in_provenance("face", figures)


def sheet(path: Path) -> None:
    """Write the figure: two frames of each edit, as they were, as they should be, and ours."""
    model, rows = FaceModel.from_pretrained("tiny:face"), []
    for name in EDITS:
        (clip,) = clips(name, 1, 8)
        with TemporaryDirectory() as folder:
            result, true, _ = edited(clip, name, model, Path(folder))
        shown = [video.frames[n].transpose(1, 2, 0) for n in (1, 6) for video in (clip.video, true, result)]
        rows.append(np.concatenate(shown, axis=1))
    Image.fromarray(np.concatenate(rows)).save(path, quality=80)


def main() -> None:
    """Measure or draw what the command line asks for."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("truth", "sheet"))
    parser.add_argument("path", type=Path, nargs="?")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--keep", action="store_true", help="put the means into PROVENANCE.json")
    parser.add_argument("--words", action="store_true", help="tell the edits in words")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.what == "sheet":
        sheet(asked.path or sys.exit("name the picture to write"))
    else:
        truth(asked.clips, asked.frames, keep=asked.keep, words=asked.words)


if __name__ == "__main__":
    main()
