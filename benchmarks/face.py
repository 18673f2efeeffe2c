"""How near the face method comes to edits whose truth is known; figures in benchmarks/face.md.

python benchmarks/face.py truth KEPT --judge FOLDER --clips 8    edits of clips that no training has seen
python benchmarks/face.py table KEPT [--keep]                    what was measured, as tables
python benchmarks/face.py memory KEPT                            the peak from 48 to 1,000 frames
python benchmarks/face.py sheet PICTURE                          the figure of the docs

`truth` keeps a row of figures for each clip, edit and way in a folder, and goes on where it was stopped. What
an edit shows is told by a judge: a network of its own, from other weights, that reads a face where it truly
is (tools/family/train_face_identity.py --judge).

    face              the method, told an attribute
    words             the same edit, told in words, nothing of the clip kept before
    noisy readings    the method where who a frame shows is read off a noisy picture, parts of it hidden
    frame by frame    each frame a clip of its own, under the same noisy readings

Seconds are processor seconds of one thread. Edits of a clip share its noise, so that only the first finds it.
"""

import json
import resource
import tempfile
import time
from argparse import ArgumentParser
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Final, Self, final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d

from family import keep_in_provenance  # isort: skip - it knows where the recipes lie
from faces import FACTORS, SIDE, squares_of
from train_face_identity import EncoderWithHeads

from retouch.methods.face.align import Crops, follow_face
from retouch.methods.face.edit import (
    decode_faces,
    edit_with,
    encode_faces,
    mean_identity,
    read_faces,
    schedule_of,
)
from retouch.methods.face.spec import SPEC, FaceParams
from retouch.metrics.fidelity import changed_pixels, psnr
from retouch.metrics.identity import identity_steadiness
from retouch.models.face_model import FaceModel
from retouch.models.face_parts import IdentityEncoder
from retouch.models.fit import load_average
from retouch.run import Run
from retouch.video import Video, chunks
from retouch.world import LANDMARKS
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
WAYS: Final = ("face", "words", "noisy readings", "frame by frame")
SHOWN: Final = 0.9
"""The share of its frames in which an edit must be seen for the clip to count as edited."""
FIRST: Final = 100
"""The first of the seeds that are tried; recipes train on seeds from a million on."""
SIZE: Final = 128
NOISE: Final = 0.35
"""Of noisy readings, where pixels go from -1 to 1."""
HIDDEN: Final = 0.4
"""The share of a face's side that is hidden, somewhere, in each frame's reading."""
SCALES: Final = (0.0448, 0.2856, 0.3001)
"""Weights of the three finest scales of MS-SSIM (Wang et al. 2003); a face of 64 pixels has no more."""
LENGTHS: Final = (48, 1000)
Row = dict[str, float | str]


@final
@dataclass(frozen=True, eq=False)
class Judge:
    """Reads words and a vector off faces where they truly are; no part of the model."""

    network: EncoderWithHeads

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Return the judge that a training left."""
        return cls(load_average(EncoderWithHeads(), folder))

    @torch.no_grad()
    def read(self, video: Video, clip: FaceClip) -> tuple[dict[str, list[str]], Tensor]:
        """Return the word of each factor in every frame, and who the frames show."""
        crops = squares_of(clip.landmarks).crop(video.pixels(), SIDE)
        vectors, scores, _ = self.network(crops)
        named = zip(FACTORS.items(), scores, strict=True)
        return {name: [words[n] for n in s.argmax(1).tolist()] for (name, words), s in named}, vectors


@final
@dataclass(frozen=True, eq=False)
class NoisyEncoder:
    """Says who faces are by noisy pictures of them, a part of each hidden; a picture always in one way."""

    encoder: IdentityEncoder

    def vectors(self, crops: Crops) -> Tensor:
        """Return unit vectors, as `IdentityEncoder` says."""
        return self.encoder.vectors(torch.cat([self.spoiled(crop[None]) for crop in crops]))

    def spoiled(self, crop: Crops) -> Crops:
        """Return a picture with noise, and grey where a hand might be."""
        dice = torch.Generator().manual_seed(int(crop.double().abs().sum() * 1e4))
        noisy, side = crop + NOISE * torch.randn(crop.shape, generator=dice), crop.shape[-1]
        y, x = (torch.rand(2, generator=dice) * (1 - HIDDEN) * side).long().tolist()
        noisy[..., y : y + int(HIDDEN * side), x : x + int(HIDDEN * side)] = 0.0
        return noisy


# measuring


def measure(
    kept: Path, judge: Judge, edits: Sequence[str], ways: Sequence[str], count: int, frames: int
) -> None:
    """Measure so many clips of each edit, those that were not yet; a clip serves all edits that fit it."""
    kept.mkdir(parents=True, exist_ok=True)
    known = {(row["edit"], row["way"], row["clip"]) for row in rows_of(kept)}
    model, wanted, seed = FaceModel.from_pretrained("tiny:face"), Counter(dict.fromkeys(edits, count)), FIRST
    while +wanted:
        portrait = Portrait.sample(seed)
        fitting = [name for name in +wanted if EDITS[name][2](portrait.identity)]
        wanted.subtract(fitting)
        left = [(edit, way) for way in ways for edit in fitting if (edit, way, seed) not in known]
        if left:
            clip = FaceClip.of(portrait, frames, SIZE)
            with tempfile.TemporaryDirectory() as name, (kept / "rows.jsonl").open("a") as stream:
                for row in rows_for(clip, left, model, judge, Path(name)):
                    stream.write(json.dumps({"clip": seed, "frames": frames, **row}) + "\n")
                    stream.flush()
                    print(row, flush=True)
        seed += 1


def rows_for(
    clip: FaceClip, left: Sequence[tuple[str, str]], model: FaceModel, judge: Judge, folder: Path
) -> Iterator[Row]:
    """Yield a row of figures for each edit and way that is left of a clip."""
    again = {}
    for edit, way in left:
        true, (made, touched, seconds) = clip.edited(EDITS[edit][1]), edited(clip, edit, way, model, folder)
        if way == "face":
            again = again or reconstructed(clip, model, folder / way)
        yield {
            "edit": edit,
            "way": way,
            **shown(clip, true, made, edit, judge),
            **nearness(clip, true, made, touched),
            "points": points_off(clip, made, model, folder),
            "seconds": seconds,
            **(again if way == "face" else {}),
        }


def edited(
    clip: FaceClip, edit: str, way: str, model: FaceModel, folder: Path
) -> tuple[Video, np.ndarray, float]:
    """Return an edited clip, where it says that it may differ, and the seconds that it took."""
    source, prompt = SAID[edit]
    params = SPEC.fill(
        {"source_prompt": source, "prompt": prompt} if way == "words" else {"attribute": (EDITS[edit][0],)}
    )
    assert isinstance(params, FaceParams)
    if way in ("noisy readings", "frame by frame"):
        noisy = NoisyEncoder(model.encoder)
        model = replace(model, encoder=noisy, digest=f"{model.digest} noisy {NOISE} {HIDDEN}")
    place = folder / (f"{way} {edit}" if way == "words" else way)
    place.mkdir(exist_ok=True)
    alone = way == "frame by frame"
    parts = [clip.video[n : n + 1] for n in range(len(clip.video))] if alone else [clip.video]
    began = time.process_time()
    made = [edit_with(model, part, params, Run.alone(place)) for part in parts]
    spent = time.process_time() - began
    whole = [
        np.concatenate(arrays) for arrays in zip(*((m.video.frames, m.touched) for m in made), strict=True)
    ]
    return clip.video.like(whole[0]), whole[1], spent


def shown(clip: FaceClip, true: FaceClip, made: Video, edit: str, judge: Judge) -> Row:
    """Return what the judge sees in an edit, and how steady it finds the face.

    Words that were not to change are kept where the judge reads the same as off the true edit.
    """
    factor, word = EDITS[edit][1].split("=")
    (ours, who), (right, _), (_, was) = (judge.read(video, clip) for video in (made, true.video, clip.video))
    near, far = identity_steadiness(who, was)
    others = [name for name in FACTORS if name != factor]
    same = [a == b for name in others for a, b in zip(ours[name], right[name], strict=True)]
    return {
        "seen": float(np.mean([said == word for said in ours[factor]])),
        "seen in truth": float(np.mean([said == word for said in right[factor]])),
        "others kept": float(np.mean(same)),
        "TL": near,
        "TG": far,
    }


def nearness(clip: FaceClip, true: FaceClip, made: Video, touched: np.ndarray) -> Row:
    """Return how near an edit is to the true one where that changes, and whether all else is as it was.

    Flicker is by how much frames change otherwise than the true edit's do, in shares of white.
    """
    ours, source, truth = (video.frames for video in (made, clip.video, true.video))
    mask = changed_pixels(source, truth)
    moved, should = (np.diff(frames.astype(np.int16), axis=0) for frames in (ours, truth))
    outside = (ours != source).any(1, keepdims=True) & ~touched
    return {
        "changed": psnr(ours, truth, mask),
        "source": psnr(source, truth, mask),
        "flicker": float(np.abs(moved - should)[np.broadcast_to(mask[1:], moved.shape)].mean() / 255),
        "exact": float(not outside.any()),
    }


def points_off(clip: FaceClip, made: Video, model: FaceModel, folder: Path) -> float:
    """Return how many pixels of the clip the model's reader finds points off where they truly are."""
    run = Run.alone(folder / "face")
    squares = follow_face(clip.video, model, None, None, run=run).squares(model.diffusion.config.scale)
    return crops_off(clip, squares.crop(made.pixels(), model.side), model, folder)


def crops_off(clip: FaceClip, crops: Crops, model: FaceModel, folder: Path) -> float:
    """Return the same of cut-out faces."""
    run = Run.alone(folder / "face")
    squares = follow_face(clip.video, model, None, None, run=run).squares(model.diffusion.config.scale)
    names = list(model.reader.point_names)
    read = squares.outside(model.reader.read(crops).points.double().numpy())
    true = clip.landmarks[:, [LANDMARKS.index(name) for name in names]]
    return float(np.linalg.norm(read - true, axis=2).mean())


def reconstructed(clip: FaceClip, model: FaceModel, folder: Path) -> Row:
    """Return how well the network alone draws a clip's faces again, nothing put right on the way."""
    params, run, video = SPEC.fill({"attribute": ("glasses=0",)}), Run.alone(folder), clip.video
    assert isinstance(params, FaceParams)
    track = follow_face(video, model, None, None, run=run)
    squares = track.squares(model.diffusion.config.scale)
    faces = read_faces(video, squares, track, model, run=run)
    who, schedule = mean_identity(faces, normalised=True), schedule_of(model, params)
    entry = run.noise("where the way up begins", torch.zeros(1, 3, model.side, model.side))
    both = []
    for part in chunks(len(video), params.window):
        crops, motion = squares[part].crop(video[part].pixels(), model.side), faces.motion[part]
        encoded = encode_faces(crops, who, motion, entry, model, schedule, run=run)
        same = who.expand(len(crops), -1)
        both.append((crops, decode_faces(encoded, same, motion, model, schedule, corrected=False, run=run)))
    crops, drawn = (torch.cat(kind) for kind in zip(*both, strict=True))
    error = (crops - drawn.clamp(-1, 1)).square().mean() / 4
    return {
        "drawn again": float(-10 * error.log10()),
        "MS-SSIM": ms_ssim((crops + 1) / 2, (drawn + 1) / 2),
        "points drawn again": crops_off(clip, drawn, model, folder.parent),
        "points of the source": crops_off(clip, crops, model, folder.parent),
    }


def ms_ssim(one: Tensor, other: Tensor) -> float:
    """Return the multi-scale similarity (Wang et al. 2003) of pictures from 0 to 1, on `SCALES`."""
    bell = torch.exp(-0.5 * ((torch.arange(11) - 5) / 1.5) ** 2)
    kernel = (bell[:, None] * bell / bell.sum() ** 2)[None, None]

    def blurred(x: Tensor) -> Tensor:
        return conv2d(x.flatten(0, 1)[:, None], kernel)

    total = 1.0
    for number, weight in enumerate(SCALES):
        a, b = blurred(one), blurred(other)
        var_a, var_b = blurred(one * one) - a * a, blurred(other * other) - b * b
        alike = (2 * (blurred(one * other) - a * b) + 9e-4) / (var_a + var_b + 9e-4)
        if number == len(SCALES) - 1:
            alike = alike * (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
        total *= float(alike.mean().clamp(min=0)) ** (weight / sum(SCALES))
        one, other = avg_pool2d(one, 2), avg_pool2d(other, 2)
    return total


# telling


def rows_of(kept: Path) -> list[dict[str, object]]:
    """Return the rows that are measured already."""
    path = kept / "rows.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def tell(kept: Path, *, keep: bool) -> None:
    """Print a table for each way; `keep` puts the means of the method itself beside the weights."""
    rows, figures = rows_of(kept), {}
    for way in WAYS:
        groups: dict[str, list[Mapping[str, object]]] = defaultdict(list)
        for row in rows:
            if row["way"] == way:
                groups[str(row["edit"])].append(row)
        if groups:
            print(f"\n{way}\n\n{HEAD}\n{'|---' * HEAD.count(' |')}|")
        for edit, group in groups.items():
            print(line(edit, group))
            if way == "face":
                figures[f"psnr_changed_{edit.replace(' ', '_')}"] = round(mean(group, "changed"), 2)
                figures[f"psnr_source_{edit.replace(' ', '_')}"] = round(mean(group, "source"), 2)
    if drawn := [row for row in rows if "drawn again" in row]:
        drawn = list({row["clip"]: row for row in drawn}.values())
        print(f"\n{len(drawn)} clips drawn again by the network alone:")
        for name in ("drawn again", "MS-SSIM", "points drawn again", "points of the source"):
            print(f"{name}: {mean(drawn, name):.3f}")
    if keep:
        figures |= {
            "edited_clips": float(sum(r["way"] == "face" for r in rows)),
            "frames_a_clip": float(str(rows[0]["frames"])),
        }
        keep_in_provenance("face", figures)


HEAD: Final = (
    "| edit | clips | seen by the judge | in the true edit | clips seen | others kept | changed region "
    "| over the source | points off | TL-ID | TG-ID | flicker | exact outside | seconds |"
)


def line(edit: str, group: Sequence[Mapping[str, object]]) -> str:
    """Return the means over an edit's clips as a line of a table."""
    clips = np.mean([float(str(row["seen"])) >= SHOWN for row in group])
    over = mean(group, "changed") - mean(group, "source")
    return (
        f"| {edit} | {len(group)} | {mean(group, 'seen'):.3f} | {mean(group, 'seen in truth'):.3f} "
        f"| {clips:.2f} | {mean(group, 'others kept'):.3f} | {mean(group, 'changed'):.1f} dB "
        f"| {over:+.1f} dB | {mean(group, 'points'):.2f} px | {mean(group, 'TL'):.3f} "
        f"| {mean(group, 'TG'):.3f} | {mean(group, 'flicker'):.4f} | {mean(group, 'exact'):.0%} "
        f"| {mean(group, 'seconds'):.0f} |"
    )


def mean(group: Sequence[Mapping[str, object]], name: str) -> float:
    """Return the mean of a figure."""
    return float(np.mean([float(str(row[name])) for row in group]))


def measure_memory(kept: Path) -> None:
    """Print the peak of this process after edits of longer and longer clips, whose frames lie in files."""
    kept.mkdir(parents=True, exist_ok=True)
    model = FaceModel.from_pretrained("tiny:face")
    params = SPEC.fill({"attribute": ("beard=1",), "steps": 2})
    assert isinstance(params, FaceParams)
    still = FaceClip.of(Portrait.sample(5), 16, 64).video.frames
    for count in LENGTHS:
        with tempfile.TemporaryDirectory(dir=kept) as name:
            run, began = Run.alone(Path(name)), time.process_time()
            frames = run.scratch("clip", (count, *still.shape[1:]))
            for n in range(count):
                frames[n] = still[n % len(still)]
            edit_with(model, Video(frames, Fraction(25)), params, run)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"| {count} | {peak:.0f} MB | {time.process_time() - began:.0f} s |", flush=True)


def sheet(path: Path) -> None:
    """Write the figure: two frames of each edit, as they were, as they should be, and ours."""
    model, rows = FaceModel.from_pretrained("tiny:face"), []
    for name, (_, change, fits) in EDITS.items():
        portrait = next(p for p in map(Portrait.sample, range(FIRST, 2 * FIRST)) if fits(p.identity))
        clip = FaceClip.of(portrait, 8, SIZE)
        with tempfile.TemporaryDirectory() as folder:
            result, _, _ = edited(clip, name, "face", model, Path(folder))
        three = (clip.video, clip.edited(change).video, result)
        pictures = [video.frames[n].transpose(1, 2, 0) for n in (1, 6) for video in three]
        rows.append(np.concatenate(pictures, axis=1))
    Image.fromarray(np.concatenate(rows)).save(path, quality=80, method=6)


def main() -> None:
    """Measure or draw what the command line asks for."""
    parser = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("truth", "table", "memory", "sheet"))
    parser.add_argument("path", type=Path, help="the folder of the rows; for a sheet, the picture")
    parser.add_argument("--judge", type=Path, default=Path(".family/face-judge"), help="the judge's training")
    parser.add_argument("--edits", nargs="+", choices=list(EDITS), default=list(EDITS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["face"])
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--keep", action="store_true", help="put the means into PROVENANCE.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    match asked.what:
        case "truth":
            measure(
                asked.path,
                Judge.from_folder(asked.judge),
                asked.edits,
                asked.ways,
                asked.clips,
                asked.frames,
            )
        case "table":
            tell(asked.path, keep=asked.keep)
        case "memory":
            measure_memory(asked.path)
        case "sheet":
            sheet(asked.path)


if __name__ == "__main__":
    main()
