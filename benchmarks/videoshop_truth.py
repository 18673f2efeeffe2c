"""Videoshop against the truth: clips of the drawn world whose edit is known, and what does without a model.

Run:  python benchmarks/videoshop_truth.py [--model REF] [--clips 36] [--first 60000] [--set name=value ...]

The true edited clip's first frame is handed in as the user's picture, and every way's result is held against
the rest of that clip. Four kinds of edit come in turn (a colour, a pattern, another object, a sticker that
rides on the object), each in three circumstances that the world arranges and knows: an object that hardly
turns, one that turns, and one that another passes in front of. No embedded model has seen these scenes.

The ways: the source as it is; the first frame repeated; what the first frame changed, warped along by optical
flow and laid over the source; every frame edited for itself under the changed caption (a sticker has no
words: it gets the caption as it is); and Videoshop: with nothing edited, with the model alone drawing what
the region holds, as in the paper, and as it is by default, which holds what flow can follow.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias, cast, final

import numpy as np
import torch
from PIL import Image

from retouch.errors import InputError
from retouch.media.pictures import write_picture
from retouch.methods.frame_by_frame.edit import edit as each_frame
from retouch.methods.frame_by_frame.spec import FrameByFrameParams
from retouch.methods.videoshop.edit import edit_with
from retouch.methods.videoshop.spec import SPEC, VideoshopParams
from retouch.metrics.consistency import true_motion, warp_error
from retouch.metrics.fidelity import changed_pixels, psnr
from retouch.metrics.uncertainty import paired_interval
from retouch.models.image_to_video import ImageToVideo
from retouch.models.image_to_video_any import AnyImageToVideo
from retouch.run import Run
from retouch.tracking.flow import DisFlow, warp_picture
from retouch.world import (
    COLOURS,
    OBJECTS,
    PATTERNS,
    Camera,
    Change,
    Clip,
    Motion,
    Scene,
    Variety,
    edited_clip,
)

Frames: TypeAlias = np.ndarray
Row: TypeAlias = Mapping[str, float]

KINDS: Final = ("colour", "pattern", "object", "sticker")
CIRCUMSTANCES: Final = ("steady", "turning", "passing")
FIRST: Final = 60_000
"""The first of the scenes' seeds: below those that the family is trained on, and not those of any tuning."""
PLAIN: Final = Variety(
    styles=("none",), pair=0.0, scale=(0.5, 0.8), scale_swing=0.06, turn=0.05, place=0.2, swing=0.2, bend=0.08
)
"""What the embedded models know best."""
SWINGS: Final = (0.15, 0.25)
"""How far to either side an object turns, in turns, where it does."""
PICTURED: Final = (0, 5, 10)
"""A colour on an object that hardly turns, a pattern on one that turns, another object behind one passing."""
ROWS: Final = ("source", "true edit", "warped by flow", "videoshop, model alone", "videoshop")
SHADES: Final = 160
"""Colours of the sheet: fewer bytes, and nothing that shows."""
FIGURES: Final = ("inside dB", "late dB", "unseen dB", "outside dB", "warp error x 1000")
"""Fidelity to the truth inside what it changed, in the second half of the clip, and where the first frame
does not show it (hidden then, or out of view); fidelity outside; and how far the result is from moving as
the truth does."""


def main() -> None:
    """Measures every clip and prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny:svd")
    parser.add_argument("--clips", type=int, default=36)
    parser.add_argument("--first", type=int, default=FIRST)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--set", nargs="*", default=[], help="parameters of Videoshop, as name=value")
    parser.add_argument("--sheet", type=Path, help="where to put a picture of some of the clips")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = AnyImageToVideo.from_pretrained(asked.model).model
    given = dict(pair.split("=", 1) for pair in asked.set)
    found, drawn = [], []
    for number, case in enumerate(cases(asked.clips, asked.first, asked.frames, asked.size)):
        shown = ways(case, model, given)
        found.append((case, {way: figures(frames, case) for way, frames in shown.items()}))
        drawn += [shown] if number in PICTURED else []
    if asked.sheet:
        write_sheet(drawn, asked.sheet)
    print(table(found))
    print()
    print(differences(found))


@final
@dataclass(frozen=True, eq=False)
class Case:
    """A clip, its true edit, and what is to be known of both."""

    kind: str
    circumstance: str
    source: Clip
    truth: Clip
    turned: float
    """Degrees that the edited object turns from the first frame to the last."""
    unseen: float
    """The share of what the edit reaches, after the first frame, that the first frame does not show."""


def cases(count: int, first: int, frames: int, size: int) -> Iterator[Case]:
    """The clips, kinds and circumstances in turn."""
    for number in range(count):
        kind, circumstance = KINDS[number % 4], CIRCUMSTANCES[number // 4 % 3]
        scene = arranged(first + number, circumstance)
        which = 1 if circumstance == "passing" else 0
        source = Clip.of(scene, frames, size)
        truth = (
            stuck(source, which)
            if kind == "sticker"
            else edited_clip(source, another(scene, kind, which, first + number))
        )
        poses = [scene.actors[which].motion.at(t / float(source.video.fps)) for t in (0, frames - 1)]
        reached = changed_pixels(source.video.frames, truth.video.frames)[1:]
        turned = 360 * abs(poses[1].turn - poses[0].turn)
        yield Case(kind, circumstance, source, truth, turned, float(unseen(source)[1:][reached].mean()))


def arranged(seed: int, circumstance: str) -> Scene:
    """A scene of the seed in which the object hardly turns, turns, or is passed by another."""
    scene = Scene.sample(seed, PLAIN)
    actor, draw = scene.actors[0], np.random.default_rng(seed)
    if circumstance == "turning":
        swing = draw.uniform(*SWINGS) * draw.choice([-1, 1])
        # Two thirds of a second are half a swing; it begins where the object turns fastest.
        motion = replace(actor.motion, turn_swing=swing, period=3.0, phase=-0.26)
        return replace(scene, actors=(replace(actor, motion=motion),))
    if circumstance == "passing":
        other = Scene.sample(seed + 500_000, PLAIN).actors[0]
        side = float(draw.choice([-1, 1]))
        crossing = Motion(
            centre=(0.0, float(draw.uniform(-0.2, 0.2))),
            swing=(0.75 * side, 0.0),
            scale=0.42,
            period=2.4,
            phase=-0.14,
        )
        return replace(scene, actors=(replace(other, motion=crossing), actor), camera=Camera())
    return scene


def another(scene: Scene, kind: str, which: int, seed: int) -> Change:
    """Another word in place of the object's, and not one that the other object has."""
    words = {"colour": COLOURS, "pattern": PATTERNS, "object": OBJECTS}[kind]
    taken = {getattr(actor, kind) for actor in scene.actors} if kind != "pattern" else set[str]()
    others = [word for word in words if word not in taken | {getattr(scene.actors[which], kind)}]
    return Change.parse(f"{which}.{kind}={others[seed % len(others)]}")


def stuck(clip: Clip, which: int) -> Clip:
    """The clip with a round patch in four quarters on an object, which moves and turns with it."""
    layer = clip.layers[which]
    u, v = layer.coordinates[:, 0], layer.coordinates[:, 1]
    inside = (np.hypot(u, v) < 0.45) & (layer.alpha[:, 0] > 0)
    share = clip.shares[:, which].astype(np.float32) / 255 * inside
    checks = np.where((u > 0) ^ (v > 0), 255, 0)
    patch = np.stack([checks, 255 - checks, np.full_like(checks, 200)], 1)
    mixed = clip.video.frames + share[:, None] * (patch - clip.video.frames)
    return replace(clip, video=clip.video.like(np.round(mixed).astype(np.uint8)))


def unseen(clip: Clip) -> np.ndarray:
    """Where frames show what the first does not, bool f 1 h w."""
    return np.stack([~clip.flow(t, 0)[1] for t in range(len(clip.video))])


def ways(case: Case, model: ImageToVideo, given: Mapping[str, object]) -> dict[str, Frames]:
    """The result of each way on one clip."""
    source, truth = case.source.video.frames, case.truth.video.frames
    with tempfile.TemporaryDirectory() as name:  # one folder, so that the noise is found once for all ways
        run, first = Run.alone(Path(name)), truth[0]
        return {
            "source": source,
            "true edit": truth,
            "first frame repeated": np.repeat(truth[:1], len(truth), axis=0),
            "warped by flow": warped(source, truth[0]),
            "frame_by_frame": captioned(case, run),
            "videoshop, nothing edited": carried(case, source[0], model, given, run),
            "videoshop, model alone": carried(case, first, model, {**given, "hold": "nothing"}, run),
            "videoshop": carried(case, first, model, given, run),
        }


def write_sheet(drawn: Sequence[Mapping[str, Frames]], path: Path) -> None:
    """Some clips side by side, a row a way, every other frame a column."""
    rows = [np.concatenate([frame for shown in drawn for frame in shown[way][::2]], axis=2) for way in ROWS]
    sheet = np.concatenate(rows, axis=1).transpose(1, 2, 0).copy()
    Image.fromarray(sheet).quantize(SHADES, dither=Image.Dither.NONE).save(path, optimize=True)


def warped(source: Frames, first: Frames) -> Frames:
    """What the edit changed in the first frame, carried along by flow and laid over the source."""
    flow, upright = DisFlow(), source.transpose(0, 2, 3, 1).copy()
    height, width = upright.shape[1:3]
    home = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    picture, place = first.transpose(1, 2, 0).copy(), home
    mask, shown = (picture != upright[0]).any(axis=-1).astype(np.float32), [picture]
    for t in range(1, len(upright)):
        place = warp_picture(place, flow.pair(upright[t], upright[t - 1]))
        away = (place - home).transpose(2, 0, 1).copy()
        there = warp_picture(mask, away) > 0.5
        shown.append(np.where(there[..., None], warp_picture(picture, away), upright[t]))
    return np.stack(shown).transpose(0, 3, 1, 2).copy()


def carried(case: Case, first: Frames, model: ImageToVideo, given: Mapping[str, object], run: Run) -> Frames:
    """Videoshop's result, as a user gets it."""
    picture = write_picture(first.transpose(1, 2, 0).copy(), run.folder / "first.png", force=True)
    params = SPEC.fill({"first": picture, "check_inversion": False, **given})
    return np.array(edit_with(model, case.source.video, cast("VideoshopParams", params), run).video.frames)


def captioned(case: Case, run: Run) -> Frames:
    """Every frame edited for itself, under the true edit's caption."""
    params = FrameByFrameParams(prompt=case.truth.caption)
    return np.array(each_frame(case.source.video, params, run).video.frames)


def figures(shown: Frames, case: Case) -> Row:
    """`FIGURES` of one result; what cannot be measured on this clip is no number."""
    real = case.truth.video.frames
    inside = changed_pixels(case.source.video.frames, real)
    inside[0] = False
    late, new = inside.copy(), inside & unseen(case.source)
    late[: len(real) // 2] = False
    motion = true_motion(case.truth.forward, case.truth.forward_seen)
    outside = ~changed_pixels(case.source.video.frames, real)[1:]
    values = (
        *(_psnr(shown, real, mask) for mask in (inside, late, new)),
        _psnr(shown[1:], real[1:], outside),
    )
    return dict(zip(FIGURES, (*values, 1000 * warp_error(shown, motion)), strict=True))


def _psnr(shown: Frames, real: Frames, mask: np.ndarray) -> float:
    try:
        return psnr(shown, real, mask)
    except InputError:  # the clip has no such pixel
        return float("nan")


Found: TypeAlias = Sequence[tuple[Case, Mapping[str, Row]]]


def table(found: Found) -> str:
    """Means over all clips, by circumstance and by kind of edit."""
    lines = ["| clips | way | " + " | ".join(FIGURES) + " |", "|---|---|" + "---|" * len(FIGURES)]
    for group in ("all", *CIRCUMSTANCES, *KINDS):
        some = [(case, rows) for case, rows in found if group in ("all", case.circumstance, case.kind)]
        if not some:
            continue
        name = f"{group} ({len(some)})"
        if group in CIRCUMSTANCES:
            turned, hidden = (
                np.mean([getattr(case, what) for case, _ in some]) for what in ("turned", "unseen")
            )
            name += f": {turned:.0f} degrees, {hidden:.0%} unseen"
        for way in some[0][1]:
            means = [np.nanmean([rows[way][figure] for _, rows in some]) for figure in FIGURES]
            lines.append(f"| {name} | {way} | " + " | ".join(f"{mean:.1f}" for mean in means) + " |")
    return "\n".join(lines)


def differences(found: Found, way: str = "videoshop") -> str:
    """By how much Videoshop is above each other way on the same clips, with 95 % bootstrap intervals."""
    lines = [f"| clips | {way} less | " + " | ".join(FIGURES) + " |", "|---|---|" + "---|" * len(FIGURES)]
    for group in ("all", *CIRCUMSTANCES, *KINDS):
        some = [rows for case, rows in found if group in ("all", case.circumstance, case.kind)]
        for other in ("first frame repeated", "warped by flow", "frame_by_frame", "videoshop, model alone"):
            cells = [
                _cell([rows[way][f] for rows in some], [rows[other][f] for rows in some]) for f in FIGURES
            ]
            lines.append(f"| {group} | {other} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(ours: Sequence[float], theirs: Sequence[float]) -> str:
    both = [(a, b) for a, b in zip(ours, theirs, strict=True) if np.isfinite(a) and np.isfinite(b)]
    if not both:
        return ""
    found = paired_interval([a for a, _ in both], [b for _, b in both])
    return f"{found.mean:+.1f} ({found.low:+.1f} to {found.high:+.1f})"


if __name__ == "__main__":
    main()
