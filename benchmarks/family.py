"""Measures the embedded family as it is shipped, and writes `benchmarks/family.md`.

Everything is measured on scenes that no training has seen. What a sampled picture shows is judged by a
small classifier that was trained on true renders alone (`tools/family/judge.py`); it is not shipped, so its
part of the table needs the folder of a training (`--work`).

    python benchmarks/family.py            # all of it, some ten minutes on two cores
    python benchmarks/family.py --only vae clip
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import StableDiffusionPipeline, StableVideoDiffusionPipeline
from PIL import Image
from transformers import CLIPImageProcessor

from retouch.compute import Compute
from retouch.diffusion.inversion import invert
from retouch.metrics.fidelity import psnr as clip_psnr
from retouch.metrics.uncertainty import bootstrap_interval
from retouch.models.annotate import canny
from retouch.models.clip import TextImage
from retouch.models.image import Control, StableDiffusion
from retouch.models.noise_path import Level, guided, step
from retouch.models.refs import embedded
from retouch.run import Step
from retouch.world.render import film, planes
from retouch.world.scene import BACKGROUNDS, COLOURS, OBJECTS, STYLES, Scene, Variety

ROOT: Final = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools" / "family"))

import judge as family_judge  # noqa: E402 - the recipes are scripts, not a package
import pictures as family_pictures  # noqa: E402

CPU: Final = Compute(device="cpu", dtype="float32")
GRID: Final = ROOT / "docs" / "images" / "family-samples.webp"
CLIPS_SHEET: Final = ROOT / "docs" / "images" / "family-clips.webp"
SHOWN_CLIPS: Final = 4
FIRST_CLIP: Final = 40_000
"""Seed of the first scene that is continued."""
FEW_MOVING: Final = 50
"""Clips with fewer moving pixels say nothing about motion."""
WAYS_ON: Final[Mapping[str, Mapping[str, float]]] = {
    "predicted": {"num_inference_steps": 4, "min_guidance_scale": 1.0, "max_guidance_scale": 1.0},
    "sampled": {},
}
"""Settings of the stock pipeline. Where a first frame may go on in many ways, few unguided steps take one
near their middle; the pipeline's own settings take any of them.
"""
SAMPLED_AT_ONCE: Final = 20
HELD_FAST: Final = 5
"""Clips that are also inverted with three rounds a step, which costs as much as fifteen without."""
Figures = dict[str, float]


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of each picture, from bytes."""
    error = np.square(a.astype(np.float64) - b).mean((1, 2, 3))
    return np.asarray(10 * np.log10(255**2 / np.maximum(error, 1e-3)))


def to_bytes(pixels: torch.Tensor) -> np.ndarray:
    """Pixels in [-1, 1] as bytes."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()


def to_pixels(frames: np.ndarray) -> torch.Tensor:
    """Bytes as pixels in [-1, 1]."""
    return torch.tensor(frames).float() / 127.5 - 1


def vae_figures(sd: StableDiffusion, count: int) -> Figures:
    """Reconstruction of held-out pictures: without style, over all styles, and the colour of objects."""
    out: Figures = {"pictures": count}
    for name, styles in (("plain", ("none",)), ("all_styles", STYLES)):
        variety = replace(Variety(), styles=styles)
        scenes = [Scene.sample(seed, variety) for seed in range(5000, 5000 + count)]
        drawn = [family_pictures.draw(s, family_pictures.moment(n), sd.native) for n, s in enumerate(scenes)]
        truth = np.stack([pixels for pixels, _ in drawn])
        again = to_bytes(sd.decode(sd.encode(to_pixels(truth))))
        out[f"psnr_{name}"] = round(float(psnr(truth, again).mean()), 2)
        cell = sd.native // family_pictures.MASK_SIDE
        inside = np.stack([m for _, m in drawn]).repeat(cell, 1).repeat(cell, 2)[:, None] / 255.0
        shift = ((again.astype(float) - truth) * inside).sum((2, 3)) / inside.sum((2, 3)).clip(1)
        out[f"object_colour_error_{name}"] = round(float(np.abs(shift).mean()), 2)
    return out


@torch.no_grad()
def sampled(
    sd: StableDiffusion, prompts: list[str], *, guidance: float, steps: int, seed: int = 0, size: int = 0
) -> np.ndarray:
    """One picture for each prompt, of the model's own size or another."""
    parts = []
    side = (size or sd.native) // sd.factor
    levels = sd.schedule(steps)
    empty = sd.embed("")
    for start in range(0, len(prompts), SAMPLED_AT_ONCE):
        words = torch.stack([sd.embed(prompt) for prompt in prompts[start : start + SAMPLED_AT_ONCE]])
        generator = torch.Generator().manual_seed(seed * 1_000_003 + start)
        z = torch.randn(len(words), 4, side, side, generator=generator)
        for hi, lo in levels.down():
            out = guided(sd.predict(z, hi.t, empty), sd.predict(z, hi.t, words), guidance)
            z = step(z, out, hi, lo)
        parts.append(to_bytes(sd.decode(z)))
    return np.concatenate(parts)


def prompt_figures(sd: StableDiffusion, count: int, work: Path) -> Figures:
    """How often object, colour and background are what the prompt says, and how good the judge is."""
    judge = family_judge.finished_judge(work)
    truth = family_pictures.held_out("middle", count, sd.native, start=9000)
    shares = family_judge.accuracy(judge, truth)
    out: Figures = {"prompts": count}
    out |= {f"judge_{name}": round(shares[name], 3) for name in ("object", "colour", "background")}
    rebuilt = to_bytes(sd.decode(sd.encode(to_pixels(truth.pixels))))
    seen = family_judge.verdicts(judge, rebuilt) == truth.labels
    out |= {
        f"ceiling_{n}": round(float(seen[:, c].mean()), 3)
        for n, c in (("object", 0), ("colour", 1), ("background", 3))
    }
    rng = np.random.default_rng(11)
    wanted = np.stack([rng.integers(0, len(words), count) for words in (OBJECTS, COLOURS, BACKGROUNDS)], 1)
    prompts = [caption(*row) for row in wanted]
    for guidance in (4.0, 7.5):
        verdict = family_judge.verdicts(judge, sampled(sd, prompts, guidance=guidance, steps=20))[
            :, [0, 1, 3]
        ]
        right = verdict == wanted
        for name, share in zip(("object", "colour", "background"), right.mean(0), strict=True):
            out[f"{name}_guidance_{guidance:g}"] = round(float(share), 3)
        out[f"all_three_guidance_{guidance:g}"] = round(float(right.all(1).mean()), 3)
    return out


def caption(thing: int, colour: int, background: int) -> str:
    """The words for one plain object."""
    scene = Scene.sample(0, Variety.easy())
    actor = replace(scene.actors[0], object=OBJECTS[thing], colour=COLOURS[colour], pattern="plain")
    return replace(scene, actors=(actor,), background=BACKGROUNDS[background]).caption


@torch.no_grad()
def inversion_figures(sd: StableDiffusion, count: int) -> Figures:
    """How well clips come back from 50 steps of inversion at guidance 1."""
    levels = sd.schedule(50)
    ups = [Step("invert", k, 50, pair) for k, pair in enumerate(levels.up())]
    once: list[float] = []
    thrice: list[float] = []
    bound: list[float] = []
    for number, seed in enumerate(range(7000, 7000 + count)):
        scene = family_pictures.scene_of("middle", seed)
        source = film(scene, 8, sd.native).frames
        z = sd.encode(to_pixels(source))
        words = sd.embed(scene.caption)
        bound.append(float(psnr(source, to_bytes(sd.decode(z))).mean()))
        for calls, into in ((1, once), (3, thrice))[: 2 if number < HELD_FAST else 1]:
            latents = torch.zeros(len(levels.levels), *z.shape)
            latents[0] = z

            def predict(at: torch.Tensor, level: Level, words: torch.Tensor = words) -> torch.Tensor:
                return sd.predict(at, level.t, words)

            invert(latents, predict, ups, calls=calls)
            back = latents[-1]
            for hi, lo in levels.down():
                back = step(back, sd.predict(back, hi.t, words), hi, lo)
            into.append(float(psnr(source, to_bytes(sd.decode(back))).mean()))
    return {
        "clips": count,
        "psnr_autoencoder": round(float(np.mean(bound)), 2),
        "psnr_inverted": round(float(np.mean(once)), 2),
        "psnr_inverted_first_5": round(float(np.mean(once[:HELD_FAST])), 2),
        "psnr_inverted_first_5_fixed_point_3": round(float(np.mean(thrice)), 2),
    }


def clip_figures(clip: TextImage) -> Figures:
    """Retrieval at 1 among a hundred captions, on pictures with any one object, and on the whole world."""
    out: Figures = {}
    for lesson in ("styled", "full"):
        scenes: dict[str, int] = {}
        for seed in range(20_000, 20_900):
            scenes.setdefault(family_pictures.scene_of(lesson, seed).caption, seed)
        chosen = list(scenes.items())[:500]
        shown = np.stack(
            [planes(family_pictures.scene_of(lesson, s), family_pictures.moment(s), 64) for _, s in chosen]
        )
        scores = clip.images(shown) @ clip.texts([words for words, _ in chosen]).T
        hits = [
            scores[n : n + 100, n : n + 100].argmax(1) == torch.arange(100)
            for n in range(0, len(chosen), 100)
        ]
        out[f"retrieval_at_1_{lesson}"] = round(float(torch.cat(hits).float().mean()), 3)
    return out


@torch.no_grad()
def canny_figures(sd: StableDiffusion, count: int) -> Figures:
    """How well a sample's edges and the given ones agree, to the pixel: F1 over all pictures.

    A fifth of the world's pixels are edges, so that with one pixel off allowed any two pictures would
    agree by more than a half. The ceiling is what the autoencoder leaves of the given edges themselves.
    """
    control = Control.from_pretrained("tiny:sd-canny", CPU)
    shown = family_pictures.held_out("middle", count, sd.native, start=30_000)
    edges = canny(shown.pixels)
    words = torch.stack([sd.embed(caption) for caption in shown.captions])
    levels = sd.schedule(20)
    again = canny(to_bytes(sd.decode(sd.encode(to_pixels(shown.pixels)))))
    out: Figures = {"edge_overlap_ceiling": round(overlap(again, edges), 3)}
    for name in ("controlled", "free"):
        z = torch.randn(count, 4, *(2 * [sd.native // sd.factor]), generator=torch.Generator().manual_seed(5))
        for hi, lo in levels.down():
            held = control.residuals(edges, z, hi.t, words) if name == "controlled" else None
            towards = sd.predict(z, hi.t, words, residuals=held)
            away = sd.predict(z, hi.t, sd.embed(""), residuals=held)
            z = step(z, guided(away, towards, 4.0), hi, lo)
        out[f"edge_overlap_{name}"] = round(overlap(canny(to_bytes(sd.decode(z))), edges), 3)
    return out


def overlap(seen: torch.Tensor, wanted: torch.Tensor) -> float:
    """F1 of edge pixels."""
    both = float((seen * wanted).sum())
    return 2 * both / max(float(seen.sum() + wanted.sum()), 1e-9)


def ip_figures(count: int, work: Path) -> Figures:
    """How often a sample whose prompt names no colour has the colour of its reference, by the judge."""
    pipe = StableDiffusionPipeline.from_pretrained(
        embedded()["tiny:sd"],
        safety_checker=None,
        requires_safety_checker=False,
        feature_extractor=CLIPImageProcessor.from_pretrained(embedded()["tiny:clip"]),
    )
    pipe.set_progress_bar_config(disable=True)
    names = {
        "subfolder": "",
        "weight_name": "ip_adapter.safetensors",
        "image_encoder_folder": "image_encoder",
    }
    pipe.load_ip_adapter(str(embedded()["tiny:ip"]), **names)
    rng = np.random.default_rng(13)
    wanted = rng.integers(0, len(COLOURS), count)
    drawn = []
    for n, colour in enumerate(wanted.tolist()):
        thing, ground, other = (int(k) for k in rng.integers(0, len(BACKGROUNDS), 3))
        reference = planes(Scene.of(caption(thing, colour, other), n, Variety.easy()), 0.0, 64)
        prompt = caption(thing, 0, ground).replace(f"{COLOURS[0]} ", "")
        given = Image.fromarray(reference.transpose(1, 2, 0))
        seed = torch.Generator().manual_seed(n)
        picture = pipe(
            prompt, ip_adapter_image=given, num_inference_steps=20, guidance_scale=4.0, generator=seed
        )
        drawn.append(np.asarray(picture.images[0]).transpose(2, 0, 1))
    seen = family_judge.verdicts(family_judge.finished_judge(work), np.stack(drawn))[:, 1]
    return {"colour_of_reference": round(float((seen == wanted).mean()), 3)}


def svd_figures(count: int, work: Path) -> Figures:
    """Held-out clips continued from their first frame, against the truth and beside that frame repeated.

    The same scene played backwards from that frame says how far a continuation lies that is as good as the
    truth. Whether frames dissolve is said by the judge, who must see the object and its colour in the last
    frame, and by the likeness of that frame to the first in `tiny:clip`, beside that of true clips.
    """
    pipe = quiet_video_pipeline()
    decibels: dict[str, list[float]] = {}
    firsts: list[np.ndarray] = []
    lasts: dict[str, list[np.ndarray]] = {}
    sheet: list[np.ndarray] = []
    scenes = [family_pictures.scene_of("middle", FIRST_CLIP + n) for n in range(count)]
    for n, scene in enumerate(scenes):
        truth = film(scene, 8, 64).frames
        backwards = np.stack([planes(scene, -k / 12, 64) for k in range(8)])
        clips = {name: continued(pipe, truth[0], n, settings) for name, settings in WAYS_ON.items()}
        sheet += [np.concatenate(list(c), 2) for c in (truth, *clips.values())] if n < SHOWN_CLIPS else []
        with torch.no_grad():
            z = pipe.vae.encode(to_pixels(truth)).latent_dist.mode()
            clips["autoencoder"] = to_bytes(pipe.vae.decode(z, num_frames=8).sample)
        firsts.append(truth[0])
        for name, clip in {"truth": truth, **clips}.items():
            lasts.setdefault(name, []).append(clip[-1])
        moves = moving(truth)
        if moves.sum() >= FEW_MOVING:
            clips |= {"first_repeated": truth[:1].repeat(8, 0), "played_backwards": backwards}
            for name, clip in clips.items():
                decibels.setdefault(name, []).append(clip_psnr(clip, truth, moves))
    save_sheet(np.concatenate(sheet, 1), CLIPS_SHEET)
    out = {f"psnr_moving_{name}": round(float(np.mean(rows)), 2) for name, rows in decibels.items()}
    judge = family_judge.finished_judge(work)
    named = np.array([family_pictures.labels(scene)[:2] for scene in scenes])
    eye = TextImage.from_pretrained("tiny:clip", CPU)
    first = eye.images(np.stack(firsts))
    for name, frames in lasts.items():
        last = np.stack(frames)
        right = family_judge.verdicts(judge, last)[:, :2] == named
        out[f"object_seen_in_last_frame_{name}"] = round(float(right[:, 0].mean()), 3)
        out[f"colour_seen_in_last_frame_{name}"] = round(float(right[:, 1].mean()), 3)
        out[f"likeness_of_last_frame_{name}"] = round(float((first * eye.images(last)).sum(1).mean()), 3)
    return out


def svd_gain_figures(clips: range) -> Figures:
    """By how many decibels the predicted clip beats the first frame repeated, with its 95 % interval.

    Clips differ so much in how they move that fifty of them leave the sign open. These are others than those
    of `svd_figures`, on which the settings were chosen.
    """
    pipe = quiet_video_pipeline()
    gains: list[float] = []
    for n in clips:
        truth = film(family_pictures.scene_of("middle", FIRST_CLIP + n), 8, 64).frames
        moves = moving(truth)
        if moves.sum() >= FEW_MOVING:
            predicted = continued(pipe, truth[0], n, WAYS_ON["predicted"])
            gains.append(clip_psnr(predicted, truth, moves) - clip_psnr(truth[:1].repeat(8, 0), truth, moves))
    gain = bootstrap_interval(gains)
    ends = {"": gain.mean, "_from": gain.low, "_to": gain.high}
    named = {f"gain_of_predicted{end}": round(value, 2) for end, value in ends.items()}
    return {"clips_of_gain": len(gains), **named}


def quiet_video_pipeline() -> StableVideoDiffusionPipeline:
    """`tiny:svd` in stock diffusers."""
    pipe = StableVideoDiffusionPipeline.from_pretrained(embedded()["tiny:svd"])
    pipe.set_progress_bar_config(disable=True)
    return pipe


def continued(
    pipe: StableVideoDiffusionPipeline, frame: np.ndarray, seed: int, settings: Mapping[str, float]
) -> np.ndarray:
    """The eight frames that stock diffusers makes of a first one."""
    size = {"height": 64, "width": 64, "num_frames": 8, "fps": 12}
    draw = torch.Generator().manual_seed(seed)
    pictures = pipe(Image.fromarray(frame.transpose(1, 2, 0)), **size, **settings, generator=draw).frames[0]
    return np.stack([np.asarray(picture).transpose(2, 0, 1) for picture in pictures])


def moving(truth: np.ndarray) -> np.ndarray:
    """Which pixels of a clip differ from its first frame (f 1 h w)."""
    return np.asarray((np.abs(truth.astype(int) - truth[:1]) > 12).any(1, keepdims=True))


def _shown(lesson: str, seed: int) -> np.ndarray:
    return planes(family_pictures.scene_of(lesson, seed), family_pictures.moment(seed), 64)


def speed_figures() -> Figures:
    """Processor seconds to load tiny:sd and to sample one picture in 20 steps with guidance."""
    begun = time.process_time()
    sd = StableDiffusion.from_pretrained("tiny:sd", CPU)
    loaded = time.process_time() - begun
    sampled(sd, ["a red car on grass"], guidance=5, steps=2)
    out = {"load_seconds": round(loaded, 2)}
    for size in (sd.native, 128):
        begun = time.process_time()
        sampled(sd, ["a red car on grass"], guidance=5, steps=20, size=size)
        out[f"sample_seconds_20_steps_{size}_px"] = round(time.process_time() - begun, 2)
    return out


def size_figures() -> Figures:
    """Megabytes shipped: of every model, of all, and of the largest file."""
    out: Figures = {}
    files = []
    for ref, folder in embedded().items():
        own = [p for p in folder.rglob("*") if p.is_file()]
        out[f"megabytes_{ref}"] = round(sum(p.stat().st_size for p in own) / 1e6, 2)
        files += own
    out["megabytes_all"] = round(sum(p.stat().st_size for p in files) / 1e6, 2)
    out["megabytes_largest_file"] = round(max(p.stat().st_size for p in files) / 1e6, 2)
    return out


def write_grid(sd: StableDiffusion, path: Path = GRID) -> None:
    """Eight columns of prompts, three samples each, the prompts' true renders above."""
    prompts = [
        *("a red car on grass", "a blue fish on water", "a yellow star at night", "a green cup on wood"),
        *(
            "a purple house on snow",
            "an orange boat on water",
            "a pink bird in sky",
            "a white heart on bricks",
        ),
        *("a red striped ball on sand", "a blue dotted house on grass", "a green checked box on wood"),
        *(
            "a yellow striped fish at night",
            "a pink heart on snow, neon",
            "an orange car on grass, pencil sketch",
        ),
        *("a blue bird in sky, watercolour", "a red boat on water, pixel art"),
    ]
    rows = []
    for half in (prompts[:8], prompts[8:]):
        truth = np.stack([planes(Scene.of(p, 3, Variety.easy()), 0.0, sd.native) for p in half])
        drawn = [sampled(sd, half, guidance=5, steps=30, seed=seed) for seed in (1, 2, 3)]
        rows += [np.concatenate(list(row), 2) for row in (truth, *drawn)]
    save_sheet(np.concatenate(rows, 1), path)


def save_sheet(sheet: np.ndarray, path: Path) -> None:
    """A picture at twice its size."""
    sheet = sheet.transpose(1, 2, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    large = Image.fromarray(sheet).resize((sheet.shape[1] * 2, sheet.shape[0] * 2), Image.Resampling.NEAREST)
    large.quantize(255, dither=Image.Dither.NONE).save(path, lossless=True, method=6)


GOALS: Final[Mapping[str, str]] = {
    "psnr_plain": "at least 30",
    "psnr_all_styles": "at least 27",
    "judge_object": "at least 0.98",
    "judge_colour": "at least 0.98",
    "judge_background": "at least 0.98",
    "object_guidance_4": "at least 0.9",
    "colour_guidance_4": "at least 0.9",
    "background_guidance_4": "at least 0.9",
    "object_guidance_7.5": "at least 0.9",
    "colour_guidance_7.5": "at least 0.9",
    "background_guidance_7.5": "at least 0.9",
    "psnr_inverted": "at least 24, and within 3 of the autoencoder",
    "retrieval_at_1_styled": "at least 0.8",
    "retrieval_at_1_full": "at least 0.8",
    "edge_overlap_controlled": "at least twice the free sample's",
    "colour_of_reference": "at least 0.8",
    "psnr_moving_predicted": "above the first frame repeated",
    "gain_of_predicted_from": "above 0",
    "megabytes_all": "at most 40",
    "megabytes_largest_file": "at most 20",
    "load_seconds": "below 3",
    "sample_seconds_20_steps_128_px": "below 5",
}


def write_table(results: Mapping[str, Figures], path: Path) -> None:
    """The figures as a page."""
    lines = [
        "# The embedded family, measured",
        "",
        "Made by `python benchmarks/family.py` from the shipped weights; no scene was trained on.",
        "Seconds are processor seconds of one thread; PSNR in dB on bytes, the mean over pictures.",
        "",
    ]
    for group, figures in results.items():
        lines += [f"## {group}", "", "| figure | measured | goal |", "|---|---|---|"]
        lines += [
            f"| {name.replace('_', ' ')} | {value} | {GOALS.get(name, '')} |"
            for name, value in figures.items()
        ]
        lines.append("")
    path.write_text("\n".join(lines), "utf-8")


def keep_in_provenance(model: str, figures: Figures) -> None:
    """Put figures beside the weights that they were measured on."""
    path = embedded()[f"tiny:{model}"] / "PROVENANCE.json"
    about = json.loads(path.read_text("utf-8"))
    about["quality"] = {**about["quality"], **figures}
    path.write_text(json.dumps(about, indent=1) + "\n", "utf-8")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=ROOT / ".family")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the samples to take, for a quick look"
    )
    parser.add_argument("--only", nargs="*", help="groups to measure again; the others keep their figures")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    sd = StableDiffusion.from_pretrained("tiny:sd", CPU)

    def few(count: int) -> int:
        return max(2, int(count * asked.scale))

    groups: dict[str, tuple[str, Callable[[], Figures]]] = {
        "vae": ("sd", lambda: vae_figures(sd, few(256))),
        "prompts": ("sd", lambda: prompt_figures(sd, few(200), asked.work)),
        "inversion": ("sd", lambda: inversion_figures(sd, few(20))),
        "clip": ("clip", lambda: clip_figures(TextImage.from_pretrained("tiny:clip", CPU))),
        "edges": ("sd-canny", lambda: canny_figures(sd, few(50))),
        "reference": ("ip", lambda: ip_figures(few(60), asked.work)),
        "clips": ("svd", lambda: svd_figures(few(50), asked.work)),
        "predicted clips": ("svd", lambda: svd_gain_figures(range(few(50), few(200)))),
        "speed": ("", speed_figures),
        "size": ("", size_figures),
    }
    judged = ("prompts", "reference", "clips")
    if not (there_is_a_judge := (asked.work / "judge").exists()):
        print(f"no judge lies in {asked.work}, so left out: {', '.join(judged)}", file=sys.stderr)
    kept = ROOT / ".family" / "figures.json"
    results: dict[str, Figures] = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
    for name, (model, measure) in groups.items():
        there = not model or f"tiny:{model}" in embedded()
        there = there and (there_is_a_judge or name not in judged)
        if not there or (asked.only is not None and name not in asked.only):
            continue
        results[name] = measure()
        print(name, json.dumps(results[name]), flush=True)
        if model:
            keep_in_provenance(model, results[name])
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps(results, indent=1), "utf-8")
    if not results.keys() >= groups.keys():
        print("benchmarks/family.md stays as it is: a table of some groups would lose the others")
        return
    write_table({name: results[name] for name in groups}, ROOT / "benchmarks" / "family.md")
    if asked.only is None or "grid" in asked.only:
        write_grid(sd)


if __name__ == "__main__":
    main()
