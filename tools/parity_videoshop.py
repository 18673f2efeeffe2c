"""Holds Videoshop's faithful mode against numbers that its authors' code produced.

Everything is driven by the fields of `fixture.json` and by the tensors: steps, strength, guidance, pictures,
noise. Which of the paper's parts an ablation switched off stands in no field, so it is seen from what the
reference itself fed forward: whether the clip it inverted is the clip it encoded, and so on. Such a look
decides a switch and nothing more; every tensor is then compared with ours.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from tools.parity_report import Report
from torch import Tensor, nn

from retouch.compute import Compute
from retouch.diffusion.inversion import draw_noise
from retouch.diffusion.latents import FLOOR, Moments, match_frame
from retouch.errors import RetouchError
from retouch.methods.videoshop.released import (
    CONDITIONING,
    Draws,
    Intermediates,
    Settings,
    carry_frame,
    squash,
)
from retouch.models.image_to_video import StableVideo, SvdConditioning
from retouch.run import Run

# An independent re-implementation is within 1.2e-5; the smallest mistake that was tried moves some tensor by
# 1.8e-4.
TOLERANCE = 5e-5


def check(folder: Path, report: Report, *, only: str = "") -> None:
    """Compares every tensor of every variant of the fixture in `folder`."""
    fixture = json.loads((folder / "fixture.json").read_text())
    model = StableVideo.from_pretrained(str(folder / "pipeline"), Compute(device="cpu", dtype="float32"))
    for name, variant in fixture["variants"].items():
        shipped = folder / f"{name}.safetensors"
        if only and only not in name:
            continue
        if not shipped.is_file():
            report.not_shipped(name)
            continue
        theirs = load_file(shipped)
        try:
            ours = _ours(folder, {**fixture, **variant}, theirs, model.pipe)
        except (RetouchError, RuntimeError, KeyError, ValueError, IndexError, OSError) as error:
            report.fail(name, f"{type(error).__name__}: {error}")
            continue
        _compare_levels(report, name, variant, model)
        for key in sorted({*variant.get("tensors", {}), *theirs}):
            _compare(report, f"{name}/{key}", ours.get(key), theirs.get(key))


def _compare(report: Report, name: str, ours: Tensor | None, theirs: Tensor | None) -> None:
    if theirs is None:
        report.fail(name, "is listed in fixture.json but not in the file")
    elif ours is None:
        report.fail(name, "is not a tensor that this check knows how to make")
    else:
        report.by_norm(name, ours, theirs, tolerance=TOLERANCE)


def _compare_levels(report: Report, name: str, variant: Mapping[str, Any], model: StableVideo) -> None:
    """Compares the noise levels that the reference noted down, walk by walk."""
    schedule = model.schedule(int(variant["steps"]), float(variant["strength"]), torch.zeros(1, 1, 1, 1))
    walks = {
        "inversion_steps": (
            [(lo.noise, hi.noise, hi.t) for lo, hi in schedule.up()],
            ("sigma_from", "sigma_to", "t"),
        ),
        "generation_steps": (
            [(hi.noise, lo.noise, hi.t) for hi, lo in schedule.down()],
            ("sigma", "sigma_next", "t"),
        ),
    }
    for key, (ours, fields) in walks.items():
        theirs = [[float(row[field]) for field in fields] for row in variant.get(key, [])]
        if theirs:
            report.by_norm(f"{name}/{key}", ours, theirs, tolerance=TOLERANCE)


@final
@dataclass
class Watch:
    """What goes in and out of the network, and every sample, while an edit runs."""

    seen: list[Tensor] = field(default_factory=list)
    answers: list[Tensor] = field(default_factory=list)
    samples: dict[str, list[Tensor]] = field(default_factory=dict)

    def network(self, _unet: nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor]) -> None:
        """Notes one call of the network."""
        self.seen.append(inputs[0].clone())
        self.answers.append(output[0].clone())

    def step(self, step: Any, latents: Tensor) -> Tensor:
        """Notes the sample after one step."""
        self.samples.setdefault(step.stage, []).append(latents.clone())
        return latents


def _ours(
    folder: Path, given: Mapping[str, Any], theirs: Mapping[str, Tensor], pipe: Any
) -> dict[str, Tensor]:
    clip, first = _pictures(folder, given)
    size = (int(given["height"]), int(given["width"]))
    motion, amount = int(given["motion_bucket_id"]), float(given["noise_aug_strength"])
    model = StableVideo(pipe, SvdConditioning(int(given["fps"]), motion, amount, CONDITIONING.clip_resize))
    draws = Draws(
        _picture_noise(theirs["noise_image_inv"]),
        _picture_noise(theirs["noise_image_gen"]),
        theirs["noise_extrap"][0],
    )
    settings, watch = _settings(given, theirs, model), Watch()
    hook = pipe.unet.register_forward_hook(watch.network)
    try:
        with TemporaryDirectory() as scratch:
            run = Run.alone(Path(scratch), seed=int(given["seed"]), compute=Compute(device="cpu"))
            run = replace(run, on_step=watch.step)
            made = carry_frame(model, clip, first, size=size, draws=draws, settings=settings, run=run)
    finally:
        hook.remove()
    return {
        **_prepared(model, clip, first, size, made),
        **_walked(made, watch, settings, model),
        **_drawn(int(given["seed"]), theirs),
    }


def _pictures(folder: Path, given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The clip and the edited first frame, in [-1, 1]; alpha is cut off, as the authors' code does."""
    paths = sorted((folder / "inputs").glob("source_[0-9]*.png"))[: int(given["T"])]
    frames = [np.asarray(Image.open(path))[..., :3] for path in paths]
    edited = np.asarray(Image.open(folder / str(given["image"])))[..., :3]
    return _numbers(np.stack(frames)), _numbers(edited[None])[0]


def _numbers(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(pictures.copy()).movedim(-1, 1).float() / 255 * 2 - 1


def _picture_noise(drawn: Tensor) -> Tensor:
    return drawn[0].movedim(-1, 0)


def _settings(given: Mapping[str, Any], theirs: Mapping[str, Tensor], model: StableVideo) -> Settings:
    settings = Settings(
        steps=int(given["steps"]),
        strength=float(given["strength"]),
        least_guidance=float(given["min_guidance"]),
        most_guidance=float(given["max_guidance"]),
        inversion_guidance=float(given["inv_guidance"]),
        threshold=-2 * math.log(given["sigma_extrap_threshold"]),
    )
    return replace(
        settings,
        extrapolate=_extrapolates(settings, theirs, model),
        normalise=_normalises(theirs),
        rescale=_rescales(theirs),
    )


def _normalises(theirs: Mapping[str, Tensor]) -> bool:
    latents = theirs["latents_scaled"][0]
    return (
        _nearest(theirs["latents_norm"][0], latents, Moments.of(latents, "frame").standardise(latents)) == 1
    )


def _extrapolates(settings: Settings, theirs: Mapping[str, Tensor], model: StableVideo) -> bool:
    """Whether the inversion's last call was at the guess rather than at the current sample."""
    clean, eps = theirs["latents_norm"][0], theirs["noise_extrap"][0]
    lo, hi = model.schedule(settings.steps, settings.strength, clean).up()[-1]
    current, asked = theirs["inv_x"][-2, 0], theirs["inv_unet_in"][-1, -1, :, : clean.shape[1]]
    guess = draw_noise(eps * clean.std(), settings.threshold)(clean, current, lo, hi)
    return _nearest(asked * math.hypot(hi.signal, hi.noise), current, guess) == 1


def _rescales(theirs: Mapping[str, Tensor]) -> bool:
    """Whether the latents that were decoded are the sampled ones moved to the target, or as they were."""
    sampled = theirs["latents_out"][0]
    if not {"latents_out_rescaled", "rescale_target_latents"} <= theirs.keys():
        return "latents_out_rescaled" in theirs or "rescale_target_latents" in theirs
    moved = match_frame(sampled, sampled[:1], theirs["rescale_target_latents"][0])
    return _nearest(theirs["latents_out_rescaled"][0], sampled, moved) == 1


def _nearest(tensor: Tensor, *candidates: Tensor) -> int:
    return int(torch.stack([(tensor - candidate).norm() for candidate in candidates]).argmin())


def _prepared(
    model: StableVideo, clip: Tensor, first: Tensor, size: tuple[int, int], made: Intermediates
) -> dict[str, Tensor]:
    frames, taken = squash(clip, size), Moments.of(made.latents, "frame")
    return {
        "video_pre": frames.movedim(1, -1)[None],
        "edit_pre": squash(first[None], size).movedim(1, -1),
        "clip_in_src": model.clip_input(clip[:1]).movedim(1, -1),
        "clip_in_edit": model.clip_input(first[None]).movedim(1, -1),
        "latents_scaled": made.latents[None],
        "latents_norm": made.standardised[None],
        "norm_mean": taken.mean.flatten(),
        "norm_std": taken.std.flatten() - FLOOR,
        "cond_inv_raw": made.source_image[None, None],
        "cond_inv": made.source.image_latents[None, None],
        "cond_gen": made.target.image_latents[None, None],
        "rescale_target_latents": made.wanted[None],
        "latents_out": made.sampled[None],
        "latents_out_rescaled": made.rescaled[None],
        "noisy_latents": made.noisy[None],
        "frames_raw_before_rescale": model.decode(made.sampled).movedim(1, -1)[None],
        "frames_raw": made.frames.movedim(1, -1)[None],
        "frames_01": ((made.frames + 1) / 2).clamp(0, 1).movedim(1, -1)[None],
    }


def _walked(made: Intermediates, watch: Watch, settings: Settings, model: StableVideo) -> dict[str, Tensor]:
    up, down = watch.samples["invert"], watch.samples["sample"]
    seen, answers = watch.seen, watch.answers
    guided_up, guided_down = settings.inversion_guidance > 1, settings.most_guidance > 1
    weights = torch.linspace(settings.least_guidance, settings.most_guidance, len(made.latents))
    return {
        "inv_x": torch.stack([made.standardised, *up])[:, None],
        "inv_unet_in": torch.stack(seen[: len(up)]),
        "inv_v": torch.stack([_one(v, settings.inversion_guidance) for v in answers[: len(up)]]),
        "gen_x": torch.stack([made.noisy, *down])[:, None],
        "gen_unet_in": torch.stack(seen[len(up) :]),
        "gen_unet_out": torch.stack(answers[len(up) :]),
        "gen_v": torch.stack([_one(v, weights[:, None, None, None]) for v in answers[len(up) :]]),
        **_told("inv", made.source, model, guided=guided_up),
        **_told("gen", made.target, model, guided=guided_down),
    }


def _one(answers: Tensor, weight: Tensor | float) -> Tensor:
    """One prediction of a batch of one, or of the empty condition's and the condition's."""
    return answers if len(answers) == 1 else answers[:1] + weight * (answers[1:] - answers[:1])


def _told(name: str, condition: Any, model: StableVideo, *, guided: bool) -> dict[str, Tensor]:
    both = [model.unconditional(condition), condition] if guided else [condition]
    return {
        f"ehs_{name}": torch.stack([one.image_embeds[None] for one in both]),
        f"ids_{name}": torch.stack([one.added_time_ids for one in both]),
    }


def _drawn(seed: int, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The noises, drawn again in the authors' order; those from elsewhere are taken as given."""
    stream = torch.Generator().manual_seed(seed)
    drawn = {}
    for key in ("noise_image_inv", "noise_extrap", "noise_gen_unused", "noise_image_gen"):
        again = torch.randn(theirs[key].shape, generator=stream)
        drawn[key] = (again, theirs[key])[_nearest(theirs[key], again, torch.zeros_like(again))]
    return drawn
