"""Videoshop against the truth: world clips whose true edit is known, and two baselines that need no model.

Run:  python benchmarks/videoshop_truth.py [--model REF] [--clips 32] [--frames 8] [--size 64]

The true edited clip's first frame is handed in as the user's picture; the result is held against the rest
of it. The
baselines: that picture, repeated; and what it changed, laid over the source and warped along by optical
flow. Scenes come from seeds that no embedded model is trained on, four kinds of edit in turn.
"""

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from retouch.media.pictures import write_picture
from retouch.methods.videoshop.edit import edit
from retouch.methods.videoshop.spec import SPEC, VideoshopParams
from retouch.metrics.consistency import true_motion, warp_error
from retouch.metrics.fidelity import changed, psnr
from retouch.models.flow import DisFlow, warp
from retouch.run import Run
from retouch.world import COLOURS, OBJECTS, PATTERNS, Change, Clip, Scene, edited

Frames: TypeAlias = np.ndarray

KINDS = ("colour", "pattern", "object", "sticker")


def main() -> None:
    """Measures every clip and prints Markdown: means over all, then by kind of edit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny:svd")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--set", nargs="*", default=[], help="parameters of the method, as name=value")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    given = dict(pair.split("=", 1) for pair in asked.set)
    rows: dict[str, dict[str, list[Mapping[str, float]]]] = {}
    for number in range(asked.clips):
        kind = KINDS[number % len(KINDS)]
        for way, figures in measured(number, kind, asked.model, asked.frames, asked.size, given).items():
            rows.setdefault(way, {}).setdefault(kind, []).append(figures)
    names = list(next(iter(rows["videoshop"].values()))[0])
    print("| edit | way | " + " | ".join(names) + " |\n|---|---|" + "---|" * len(names))
    for kind in ("all", *KINDS):
        for way, kinds in rows.items():
            taken = [row for name, some in kinds.items() if kind in ("all", name) for row in some]
            means = [f"{np.nanmean([row[name] for row in taken]):.4g}" for name in names] if taken else []
            print(f"| {kind} | {way} | " + " | ".join(means) + " |")


def measured(
    seed: int, kind: str, ref: str, frames: int, size: int, given: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """The figures of one clip for each way."""
    source, truth = scene(seed, kind, frames, size)
    ways = {
        "source": source.video.frames,
        "first frame repeated": repeated(truth.video.frames),
        "warped by flow": warped(source.video.frames, truth.video.frames[0]),
        "videoshop": carried(source, truth.video.frames[0], ref, given),
    }
    return {way: figures(shown, source, truth) for way, shown in ways.items()}


def scene(seed: int, kind: str, frames: int, size: int) -> tuple[Clip, Clip]:
    """A clip without a style, and the same with its first object changed or stuck on."""
    drawn = replace(Scene.sample(1000 + seed), style="none")
    clip = Clip.of(drawn, frames, size)
    if kind == "sticker":
        return clip, stuck(clip)
    return clip, edited(clip, change(drawn, kind, seed))


def change(drawn: Scene, kind: str, seed: int) -> Change:
    """Another word in place of the first object's."""
    words = {"colour": COLOURS, "pattern": PATTERNS, "object": OBJECTS}[kind]
    now = getattr(drawn.actors[0], kind)
    others = [word for word in words if word != now]
    return Change(kind, others[seed % len(others)])  # type: ignore[arg-type]


def stuck(clip: Clip) -> Clip:
    """The clip with a checked patch on its first object that moves and turns with it."""
    layer = clip.layers[0]
    u, v = layer.coordinates[:, 0], layer.coordinates[:, 1]
    inside = (np.hypot(u, v) < 0.4) & (layer.alpha[:, 0] > 0)
    share = clip.shares[:, 0].astype(np.float32) / 255 * inside
    checks = np.where((np.floor(u * 6) + np.floor(v * 6)) % 2 > 0, 255, 0)
    patch = np.stack([checks, 255 - checks, np.full_like(checks, 200)], 1)
    mixed = clip.video.frames + share[:, None] * (patch - clip.video.frames)
    return replace(clip, video=clip.video.like(np.round(mixed).astype(np.uint8)))


def repeated(truth: Frames) -> Frames:
    """The edited first frame, and nothing else."""
    return np.repeat(truth[:1], len(truth), axis=0)


def warped(source: Frames, first: Frames) -> Frames:
    """What the edit changed in the first frame, carried along by flow and laid over the source."""
    flow, upright = DisFlow(), source.transpose(0, 2, 3, 1).copy()
    height, width = upright.shape[1:3]
    place = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    picture = first.transpose(1, 2, 0).copy()
    changed = (picture != upright[0]).any(axis=-1).astype(np.float32)
    shown = [picture]
    home = np.indices((height, width)).astype(np.float32)
    for t in range(1, len(upright)):
        place = warp(place, flow.pair(upright[t], upright[t - 1]))
        away = place.transpose(2, 0, 1) - np.stack([home[1], home[0]])
        there, mask = warp(picture, away), warp(changed, away) > 0.5
        shown.append(np.where(mask[..., None], there, upright[t]))
    return np.stack(shown).transpose(0, 3, 1, 2).copy()


def carried(source: Clip, first: Frames, ref: str, given: Mapping[str, str]) -> Frames:
    """The method's result, as a user gets it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        picture = write_picture(first.transpose(1, 2, 0).copy(), folder / "first.png")
        params = SPEC.fill({"model": ref, "first": picture, "check_inversion": "false", **given})
        assert isinstance(params, VideoshopParams)
        return np.array(edit(source.video, params, Run.alone(folder)).video.frames)


def figures(shown: Frames, source: Clip, truth: Clip) -> dict[str, float]:
    """Fidelity to the truth inside and outside what it changed, late, and where it is new; warp error."""
    real = truth.video.frames
    mask = changed(source.video.frames, real)
    late, new = mask.copy(), mask.copy()
    late[: len(real) // 2] = False
    new[0] = False
    for t in range(1, len(real)):
        _, seen = source.flow(t, 0)
        new[t] &= ~seen  # what the first frame does not show: occluded there, or turned away
    after = slice(1, None)
    return {
        "inside dB": _psnr(shown[after], real[after], mask[after]),
        "inside, second half": _psnr(shown, real, late),
        "inside, unseen at first": _psnr(shown, real, new),
        "outside dB": psnr(shown[after], real[after], ~mask[after]),
        "warp error": warp_error(shown, true_motion(truth.forward, truth.forward_seen)),
    }


def _psnr(shown: Frames, real: Frames, mask: Frames) -> float:

    return psnr(shown, real, mask) if mask.any() else float("nan")


if __name__ == "__main__":
    main()
