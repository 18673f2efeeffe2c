"""FateZero against its authors' code: inversions, edits and word alignments of a small random network.

`fixture.json` decides what is run: every inversion, case and alignment vector that it lists, each against
the tensors of that name under `f64/` and `f32/`. Everything runs as with `faithful`: the source's
attention comes from one level cleaner, what is put back from one level noisier, and word tables have the
released code's quirks.
"""

import json
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors import safe_open
from tools.parity_report import Report
from torch import Tensor

from retouch.diffusion.attention import Attend, Layer, Neighbours, controlled
from retouch.diffusion.capture import CaptureRule, WordAttention
from retouch.diffusion.inflate import Temporal, inflated, transformer_blocks
from retouch.diffusion.inversion import Trajectory, invert
from retouch.diffusion.windows import overlapping
from retouch.diffusion.words import (
    PromptTokens,
    refine_mapper,
    released_replace_matrix,
    same_word_count,
)
from retouch.methods.fatezero import released
from retouch.methods.fatezero.edit import sample
from retouch.methods.fatezero.fusion import (
    MOST_TOKENS,
    FusedPrediction,
    FusionSchedule,
    State,
    Texts,
    fused_layers,
)
from retouch.methods.fatezero.spec import FateZeroParams
from retouch.models.image import ddim_schedule
from retouch.models.noise_path import Level, Schedule, Timestep
from retouch.run import Run, Step

PRECISIONS = {"f64": torch.float64, "f32": torch.float32}
WORDS = 77

# How near is near enough, per precision: about what the authors' own code differs by between the two,
# with room.
FORWARD = {"f64": 1e-12, "f32": 2e-5}
TRAJECTORY = {"f64": 1e-12, "f32": 1e-5}
EDIT = {"f64": 1e-11, "f32": 1e-4}
MAPS = 1e-4
FRACTION = 6e-4  # the fixture rounds fractions to three places

Fixture = Mapping[str, Any]


def check(folder: Path, report: Report, *, only: str) -> None:
    """Runs all that the fixture lists and compares it."""
    fixture = json.loads((folder / "fixture.json").read_text())
    facts = _Filtered(report, only)
    for name, entry in fixture.get("tokens", {}).items():
        _check_words(f"tokens/{name}", entry, facts)
    for name, vector in fixture.get("aligner_vectors", {}).items():
        _check_alignment(f"aligner/{name}", vector, facts)
    for precision in PRECISIONS:
        bench = Bench(folder, fixture, precision)
        for name in fixture.get("inversions", {}):
            group = f"{precision}/inversion_{name}"
            _try(group, folder, facts, partial(_check_inversion, bench, group, facts=facts))
        for name in fixture.get("cases", {}):
            group = f"{precision}/edit_{name}"
            _try(group, folder, facts, partial(_check_case, bench, group, facts=facts))


@final
@dataclass(frozen=True)
class _Filtered:
    """A report that leaves out what was not asked for."""

    report: Report
    only: str

    def wants(self, name: str) -> bool:
        return self.only in name

    def relative(self, name: str, ours: object, theirs: object, tolerance: float) -> None:
        if self.wants(name):
            self.report.relative(name, ours, theirs, tolerance=tolerance)

    def absolute(self, name: str, ours: object, theirs: object, tolerance: float) -> None:
        if self.wants(name):
            self.report.absolute(name, ours, theirs, tolerance=tolerance)

    def exact(self, name: str, ours: object, theirs: object) -> None:
        if self.wants(name):
            self.report.exact(name, ours, theirs)


def _try(group: str, folder: Path, facts: _Filtered, work: Callable[[Path], None]) -> None:
    """Runs a group if its tensors are there; an error counts against it and does not end the check."""
    path = folder / f"{group}.safetensors"
    if not path.exists():
        if facts.wants(group):
            facts.report.not_shipped(group)
        return
    with safe_open(path, framework="pt") as tensors:
        if not any(facts.wants(f"{group}/{name}") for name in tensors.keys()):  # noqa: SIM118 - it is no mapping
            return
    try:
        work(path)
    except Exception as error:
        facts.report.fail(group, f"{type(error).__name__}: {error}")


# ------------------------------------------------------------------------------------------------ words


def _tokens(prompt: str, ids: Sequence[int], pieces: Sequence[str]) -> PromptTokens:
    return PromptTokens(prompt, tuple(ids), tuple(pieces[1:-1]))


def _check_words(name: str, entry: Fixture, facts: _Filtered) -> None:
    tokens = _tokens(entry["prompt"], entry["ids"], entry["pieces"])
    ours = [list(numbers) for _, numbers in tokens.words if numbers]
    theirs = [numbers for numbers in entry["word_token_indices"] if numbers]
    flat = [[i, n] for i, numbers in enumerate(ours) for n in numbers]
    facts.exact(
        f"{name}/word_token_indices", flat, [[i, n] for i, numbers in enumerate(theirs) for n in numbers]
    )


def _check_alignment(name: str, vector: Fixture, facts: _Filtered) -> None:
    source = _tokens(vector["source"], vector["source_ids"], vector["source_pieces"])
    target = _tokens(vector["target"], vector["target_ids"], vector["target_pieces"])
    length = len(vector.get("refine_mapper", range(WORDS)))
    mapper = refine_mapper(source, target, length)
    for key in sorted(
        set(vector) - {f"{s}{part}" for s in ("source", "target") for part in ("", "_ids", "_pieces")}
    ):
        match key:
            case "refine_mapper":
                facts.exact(f"{name}/{key}", mapper, vector[key])
            case "refine_alphas":
                facts.exact(f"{name}/{key}", [float(number != -1) for number in mapper], vector[key])
            case "replace_mapper_nonzero":
                theirs = torch.zeros(length, length)
                for i, j, weight in vector[key]:
                    theirs[int(i), int(j)] = weight
                assert same_word_count(source, target), "word by word needs as many words"
                ours = released_replace_matrix(source, target, length)
                facts.absolute(f"{name}/{key}", ours, theirs, tolerance=1e-7)  # thirds, as printed
            case _ if facts.wants(f"{name}/{key}"):
                facts.report.fail(f"{name}/{key}", "nothing of ours to compare with")


# ------------------------------------------------------------------------------------------------ the network


@final
@dataclass(frozen=True)
class Network:
    """The fixture's UNet as sampling sees a model."""

    unet: UNet2DConditionModel

    def predict(
        self, z: Tensor, t: Timestep, text: Tensor, *, attention: Mapping[str, object] | None = None
    ) -> Tensor:
        """The network's own output."""
        text = text.expand(len(z), *text.shape[-2:])
        out: Tensor = self.unet(z, t, text, cross_attention_kwargs=dict(attention or {})).sample
        return out


@final
class Bench:
    """The fixture's network, prompts and inversions in one precision."""

    def __init__(self, folder: Path, fixture: Fixture, precision: str) -> None:
        self.folder, self.fixture, self.precision = folder, fixture, precision
        self.dtype = PRECISIONS[precision]
        self._trajectories: dict[str, Trajectory] = {}
        self._schedules: dict[int, Schedule] = {}

    @cached_property
    def network(self) -> Network:
        """The UNet."""
        unet = UNet2DConditionModel.from_pretrained(
            self.folder / "unet", local_files_only=True, torch_dtype=self.dtype
        )
        return Network(unet.eval().requires_grad_(False))

    @cached_property
    def scheduler(self) -> DDIMScheduler:
        """The noise schedule."""
        return DDIMScheduler.from_pretrained(self.folder / "scheduler", local_files_only=True)

    @cached_property
    def texts(self) -> dict[str, Tensor]:
        """The prompts as the UNet reads them."""
        return {k: t.to(self.dtype) for k, t in _load(self.folder / "text_embeddings.safetensors").items()}

    @cached_property
    def clean(self) -> Tensor:
        """The clip's latents, frames first."""
        return _frames_first(_load(self.folder / "inputs.safetensors")["video_latents"].to(self.dtype))

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the latents."""
        return (self.clean.shape[2], self.clean.shape[3])

    def tokens(self, name: str) -> PromptTokens:
        """A prompt of the fixture."""
        entry = self.fixture["tokens"][name]
        return _tokens(entry["prompt"], entry["ids"], entry["pieces"])

    def steps(self, inversion: str) -> int:
        """How many steps an inversion has."""
        entry = self.fixture["inversions"][inversion]
        return len(entry["timesteps"]) if "timesteps" in entry else int(self.fixture["steps"])

    def schedule(self, inversion: str) -> Schedule:
        """The levels of an inversion, rounded as on the authors' machine."""
        steps = self.steps(inversion)
        if steps not in self._schedules:
            plain = _single(ddim_schedule(self.scheduler, steps), self.scheduler)
            self._schedules[steps] = _as_rounded_there(self, plain) if self.precision == "f64" else plain
        return self._schedules[steps]

    def neighbours(self, inversion: str) -> Neighbours:
        """Which frames a frame looks at."""
        config = self.fixture["attention_configs"][self.fixture["inversions"][inversion]["model"]]
        reach = config.get("SparseCausalAttention_index", [-1, "first"])
        named = {"middle": "mid"}
        return Neighbours(tuple(named.get(r, r) for r in reach), config.get("least_sc_channel") or 0)

    @contextmanager
    def ready(self, inversion: str) -> Iterator[tuple[Layer, ...]]:
        """The network as it was in an inversion: norms, and temporal biases where they were left in."""
        entry = self.fixture["inversions"][inversion]
        with ExitStack() as stack:
            if entry.get("temporal_bias", "zero") != "zero":
                stack.enter_context(inflated(self.network.unet, self._biased(inversion)))
            clip_norm = entry.get("groupnorm", "joint") == "joint"
            yield stack.enter_context(controlled(self.network.unet, size=self.size, clip_norm=clip_norm))

    def trajectory(self, inversion: str) -> Trajectory:
        """The inversion, run once."""
        if inversion not in self._trajectories:
            ups = self.schedule(inversion).up()
            latents = self.clean.new_zeros(len(ups) + 1, *self.clean.shape)
            latents[0] = self.clean
            rule = Attend(self.neighbours(inversion).among(range(len(self.clean)), len(self.clean)))

            def predict(z: Tensor, level: Level) -> Tensor:
                return self.network.predict(z, level.t, self.texts["source"], attention={"rule": rule})

            with self.ready(inversion), torch.no_grad():
                invert(latents, predict, [Step("invert", k, len(ups), up) for k, up in enumerate(ups)])
            self._trajectories[inversion] = Trajectory(latents, reconstruction=math.nan)
        return self._trajectories[inversion]

    def _biased(self, inversion: str) -> Temporal:
        """Temporal attention that only adds its output bias."""
        temporal = Temporal.of(self.network.unet)
        biases = _temporal_biases(self.folder, inversion)
        with torch.no_grad():
            for name in transformer_blocks(self.network.unet):
                bias = biases[_plain(name)].to(self.dtype)
                temporal.of_block(name).get_parameter("to_out.bias").copy_(bias)
        return temporal


def _temporal_biases(folder: Path, inversion: str) -> dict[str, Tensor]:
    """The output biases of temporal attention, by the block that they stand behind, wherever they are."""
    near = [path for path in sorted(folder.rglob("*.safetensors")) if path.stem != "diffusion_pytorch_model"]
    near.sort(
        key=lambda path: (inversion not in path.stem, "bias" not in path.stem, path.parent.name != "f64")
    )
    for path in near:
        found = {
            _plain(name): tensor
            for name, tensor in _load(path).items()
            if BLOCK.search(name) and "norm" not in name and tensor.squeeze().ndim == 1
        }
        if found:
            return {name: tensor.squeeze() for name, tensor in found.items()}
    raise FileNotFoundError("no temporal biases in the folder")


BLOCK = re.compile(r"((?:down|up)_blocks.\d+|mid_block).attentions.(\d+)(?:.transformer_blocks.(\d+))?")


def _plain(name: str) -> str:
    """The place of a transformer block, however its name is written."""
    match = BLOCK.search(name)
    assert match is not None, name
    block, attention, turn = match.groups()
    return f"{re.sub(r'_blocks.', '_blocks.', block)}.{attention}.{turn or 0}"


def _load(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - it is no mapping


def _frames_first(x: Tensor) -> Tensor:
    """From the fixture's `1 c f h w` to `f c h w`."""
    return x[0].transpose(0, 1)


def _video(x: Tensor) -> Tensor:
    """From `f c h w` to the fixture's `1 c f h w`."""
    return x.transpose(0, 1)[None]


# ------------------------------------------------------------------------------------------------ rounding

# The authors' code takes square roots of alpha in single precision, whatever the precision of the
# latents, by a routine (MKL's) that is a unit in the last place off on some processors and not on others.
# At a tolerance of 1e-12 that unit, 6e-8, has to be known; it can be read off a shipped inversion, where
# everything else is known.
ULPS = (0, -1, 1)
READ = 1e-13


def _single(plan: Schedule, scheduler: DDIMScheduler) -> Schedule:
    """Levels with roots in single precision, correctly rounded."""
    shares = [
        *(np.float32(scheduler.alphas_cumprod[int(level.t)]) for level in plan.levels[:-1]),
        np.float32(scheduler.final_alpha_cumprod),
    ]
    levels = [
        replace(level, signal=float(np.sqrt(share)), noise=float(np.sqrt(np.float32(1) - share)))
        for level, share in zip(plan.levels, shares, strict=True)
    ]
    return Schedule(tuple(levels))


def _as_rounded_there(bench: Bench, plan: Schedule) -> Schedule:
    """The same levels, each root at most a unit in the last place away, as shipped inversions have them.

    What no inversion confirms stays correctly rounded.
    """
    for name in bench.fixture["inversions"]:
        path = bench.folder / "f64" / f"inversion_{name}.safetensors"
        if path.exists() and bench.steps(name) == len(plan.down()):
            shipped = _load(path).get("trajectory")
            if shipped is None or len(shipped) != len(plan.levels):
                continue
            levels = _levels_read(bench, name, plan, [_frames_first(rung) for rung in shipped])
            if levels is not None:
                return Schedule(levels[::-1])
    return plan


def _levels_read(
    bench: Bench, name: str, plan: Schedule, latents: Sequence[Tensor]
) -> tuple[Level, ...] | None:
    rule = Attend(bench.neighbours(name).among(range(len(latents[0])), len(latents[0])))
    choices = [_beside(plan.levels[-1])]
    with bench.ready(name), torch.no_grad():
        for k, (_, hi) in enumerate(plan.up()):
            out = bench.network.predict(latents[k], hi.t, bench.texts["source"], attention={"rule": rule})
            pair = torch.stack([latents[k].flatten(), out.flatten()], 1)
            a, b = torch.linalg.lstsq(pair, latents[k + 1].flatten()[:, None]).solution.flatten().tolist()
            fits = [(x, y) for x in choices[k] for y in _beside(hi) if _leads(x, y, a, b)]
            if not fits:
                return None
            choices[k] = [fits[0][0]]
            choices.append([y for _, y in fits])
    return tuple(fit[0] for fit in choices)


def _beside(level: Level) -> list[Level]:
    """A level, and those whose roots lie a unit in the last place beside its own."""
    signal, noise = np.float32(level.signal), np.float32(level.noise)
    return [
        replace(
            level, signal=float(signal + i * np.spacing(signal)), noise=float(noise + j * np.spacing(noise))
        )
        for i in ULPS
        for j in ULPS
    ]


def _leads(lo: Level, hi: Level, a: float, b: float) -> bool:
    """Whether a step up from one level to another has these factors on latents and prediction."""
    ratio = hi.signal / lo.signal
    return abs(ratio - a) < READ and abs(hi.noise - ratio * lo.noise - b) < READ


# ------------------------------------------------------------------------------------------------ inversions


def _check_inversion(bench: Bench, group: str, path: Path, facts: _Filtered) -> None:
    name = group.split("/inversion_")[1]
    trajectory, precision = bench.trajectory(name), bench.precision
    with bench.ready(name) as layers, torch.no_grad():
        looks = Looks(bench, name, trajectory, layers)
        _check_layers(f"{group}/layer_order", bench.fixture["inversions"][name], looks, facts)
        for key, theirs in _load(path).items():
            label = f"{group}/{key}"
            if not facts.wants(label):
                continue
            if key == "trajectory":
                ours: Tensor = torch.stack([_video(latents) for latents in trajectory.latents])
                facts.relative(label, ours, theirs, TRAJECTORY[precision])
            elif step := re.fullmatch(r"noise_pred/step(\d+)", key):
                facts.relative(label, _video(looks.at(int(step[1])).out), theirs, FORWARD[precision])
            elif plain := re.fullmatch(r"plain_unet_t(\d+)_on_traj(\d+)", key):
                facts.relative(label, looks.plain(int(plain[1]), int(plain[2])), theirs, FORWARD[precision])
            elif key == "mask_source_map":
                facts.absolute(label, looks.words(), theirs, MAPS)
            elif maps := re.fullmatch(r"(down|mid|up)_(self|cross)(?:_(\d+))?", key):
                place, kind, index = maps.groups()
                ours = looks.maps(place, kind, int(index or 0))
                facts.absolute(label, ours, theirs, MAPS)
            elif one := re.fullmatch(r"(down|mid|up)_(self|cross)_(\d+)_step(\d+)_head(\d+)_frame(\d+)", key):
                index, step_at, head, frame = (int(number) for number in one.groups()[2:])
                ours = looks.map(one[1], one[2], index, step_at)[frame, head]
                facts.absolute(label, ours, theirs, MAPS)
            elif "bias" not in key:
                facts.report.fail(label, "nothing of ours to compare with")


@final
@dataclass(frozen=True, eq=False)
class Look:
    """What the network said and saw in one step of the inversion."""

    out: Tensor
    rule: CaptureRule


@final
class Looks:
    """The network asked again at every step of an inversion."""

    def __init__(self, bench: Bench, inversion: str, trajectory: Trajectory, layers: Sequence[Layer]) -> None:
        self.bench, self.trajectory = bench, trajectory
        self.ups = bench.schedule(inversion).up()
        self.taken = fused_layers(layers, MOST_TOKENS)
        total = trajectory.latents.shape[1]
        self.gather = bench.neighbours(inversion).among(range(total), total)
        self.seen: dict[int, Look] = {}

    def at(self, step: int) -> Look:
        """The look at the latents of level `step`, at the timestep of the next."""
        if step not in self.seen:
            eye = torch.eye(WORDS, dtype=self.bench.dtype)
            rule = CaptureRule(
                self.gather, self.taken, WordAttention(released.released_mask_layers(self.taken), eye)
            )
            z = self.trajectory.latents[step]
            text = self.bench.texts["source"]
            out = self.bench.network.predict(z, self.ups[step][1].t, text, attention={"rule": rule})
            self.seen[step] = Look(out, rule)
        return self.seen[step]

    def plain(self, t: int, level: int) -> Tensor:
        """The network's answers to no prompt and to the source's, with nothing kept."""
        z = self.trajectory.latents[level]
        rule = Attend(self.gather)
        answers = [
            self.bench.network.predict(z, t, self.bench.texts[name], attention={"rule": rule})
            for name in ("uncond", "source")
        ]
        return torch.cat([_video(answer) for answer in answers])

    def words(self) -> Tensor:
        """The mean map of the layers in which the object is looked for, for all words and steps."""
        heats = [self.at(step).rule.words.mean_map() for step in range(len(self.trajectory.latents) - 1)]
        return torch.stack(heats).movedim(2, -1)  # steps f h w words

    def layer(self, place: str, kind: str, index: int) -> Layer:
        """One of the layers that take part, counted among these."""
        alike = [layer for layer in self.taken if (layer.place, layer.kind) == (place, kind)]
        return sorted(alike, key=lambda layer: layer.index)[index]

    def map(self, place: str, kind: str, index: int, step: int) -> Tensor:
        """A whole attention map, which only this check ever builds."""
        layer = self.layer(place, kind, index)
        seen = self.at(step).rule.source
        keys = seen.keys[layer]
        keys = self.gather(layer, keys) if kind == "self" else keys
        q = seen.queries[layer]
        return torch.softmax(q @ keys.transpose(2, 3) / float(q.shape[-1]) ** 0.5, dim=-1)

    def maps(self, place: str, kind: str, index: int) -> Tensor:
        """A layer's maps in all steps."""
        return torch.stack(
            [self.map(place, kind, index, step) for step in range(len(self.trajectory.latents) - 1)]
        )


def _check_layers(name: str, entry: Fixture, looks: Looks, facts: _Filtered) -> None:
    """That the same layers take part, in the same order, with maps of the same shape."""
    for key, theirs in entry.get("layer_order", {}).items():
        if not facts.wants(f"{name}/{key}"):
            continue
        place, kind = key.split("_")
        count = len([x for x in looks.taken if (x.place, x.kind) == (place, kind)])
        facts.exact(f"{name}/{key}", [list(looks.map(place, kind, i, 0).shape) for i in range(count)], theirs)


# ------------------------------------------------------------------------------------------------ edits


def _params(bench: Bench, case: Fixture) -> FateZeroParams:
    """The released code's settings as the method's parameters."""
    p2p = case.get("p2p", {})
    cross = p2p.get("cross_replace_steps", {})
    cross = cross if isinstance(cross, Mapping) else {"default_": cross}
    words = [tuple(part) for part in p2p.get("blend_words") or [(), ()]]
    threshold = p2p.get("blend_th", [0.3])
    emphasis = p2p.get("eq_params") or {"words": (), "values": ()}
    (cross_from, cross_until), (self_from, self_until) = (
        _window(span) for span in (cross.get("default_", 1.0), p2p.get("self_replace_steps", 0.0))
    )
    return FateZeroParams(
        source_prompt=bench.tokens("source").prompt,
        prompt=bench.tokens(case["target"]).prompt,
        steps=bench.steps(case["inversion"]),
        guidance=float(case.get("guidance_scale", bench.fixture["guidance_scale_default"])),
        guide_from="nothing",
        alignment="replace" if p2p.get("is_replace_controller", True) else "refine",
        cross_from=cross_from,
        cross_until=cross_until,
        word_cross=tuple(
            f"{word}={_window(span)[0]!r}-{_window(span)[1]!r}"
            for word, span in cross.items()
            if word != "default_"
        ),
        self_from=self_from,
        self_until=self_until,
        emphasise=tuple(
            f"{word}={by!r}" for word, by in zip(emphasis["words"], emphasis["values"], strict=False)
        ),
        object_words=words[0],
        new_words=words[1] if len(words) > 1 else (),
        mask_self=bool(p2p.get("blend_self_attention")),
        blend=bool(p2p.get("blend_latents")),
        threshold=float(threshold[0] if isinstance(threshold, Sequence) else threshold),
    )


def _window(given: float | Sequence[float]) -> tuple[float, float]:
    return (given[0], given[1]) if isinstance(given, Sequence) else (0.0, float(given))


def _fusion(bench: Bench, case: Fixture) -> FusionSchedule:
    if case.get("edit_type") is None:
        return FusionSchedule(MOST_TOKENS)
    source, target = bench.tokens("source"), bench.tokens(case["target"])
    return released.schedule(_params(bench, case), source, target, length=WORDS)


def _check_case(bench: Bench, group: str, path: Path, facts: _Filtered) -> None:
    case = bench.fixture["cases"][group.split("/edit_")[1]]
    fusion = _fusion(bench, case)
    tensors = _load(path)
    ours = _controls(bench, case, fusion)
    if any(facts.wants(f"{group}/{key}") and not key.startswith("ctrl/") for key in tensors):
        ours |= _run(bench, case, fusion)
    _check_listed(group, case, fusion, ours, facts)
    for key, theirs in tensors.items():
        label = f"{group}/{key}"
        if not facts.wants(label):
            continue
        if key not in ours:
            facts.report.fail(label, "nothing of ours to compare with")
        elif key.startswith(("ctrl/", "self_mask/", "latent_mask/")):
            facts.exact(label, ours[key], theirs)
        else:
            facts.relative(label, ours[key], theirs, EDIT[bench.precision])


def _controls(bench: Bench, case: Fixture, fusion: FusionSchedule) -> dict[str, Tensor]:
    """The word tables, laid out as in the fixture."""
    if (cross := fusion.cross) is None:
        return {}
    source, target = bench.tokens("source"), bench.tokens(case["target"])
    mapper = refine_mapper(source, target, WORDS)
    word_by_word = _params(bench, case).alignment == "replace" and same_word_count(source, target)
    return {
        "ctrl/cross_replace_alpha": cross.weight[:, None, None, None],
        "ctrl/mapper": cross.alignment.taken[None] if word_by_word else torch.tensor([mapper]),
        "ctrl/refine_alphas": (1 - cross.alignment.kept)[None, None, None],
        "ctrl/equalizer": cross.emphasis[None],
    }


def _run(bench: Bench, case: Fixture, fusion: FusionSchedule) -> dict[str, Tensor]:
    """Walks down once and collects whatever the fixture may have of it."""
    found: dict[str, Tensor] = {}
    trajectory = bench.trajectory(case["inversion"])
    total, downs = trajectory.latents.shape[1], bench.schedule(case["inversion"]).down()
    texts = Texts(bench.texts["source"], bench.texts[case["target"]], bench.texts["uncond"])
    guidance = float(case.get("guidance_scale", bench.fixture["guidance_scale_default"]))
    neighbours = bench.neighbours(case["inversion"])
    with (
        bench.ready(case["inversion"]) as layers,
        torch.no_grad(),
        tempfile.TemporaryDirectory() as folder,
    ):
        fused = FusedPrediction(bench.network, trajectory, texts, fusion, guidance, neighbours, layers)
        state = State.allocate(fused, Run.alone(Path(folder)))
        steps = [Step("edit", index, len(downs), down) for index, down in enumerate(downs)]
        for result in sample(fused, overlapping(total, size=total, overlap=0), steps, state):
            step = f"step{result.index:02d}"
            found[f"latents/{step}"] = _video(state.z.clone())
            outs = [result.positive] if result.negative is None else [result.negative, result.positive]
            found[f"noise_pred/{step}"] = torch.cat([_video(out) for out in outs])
            for (rows, columns), mask in (result.inside or {}).items():
                found[f"self_mask/{step}/{rows}x{columns}"] = mask
            if result.index in fusion.mask_steps:
                rows, columns = bench.size
                found[f"latent_mask/{step}/{rows}x{columns}"] = state.mask.clone()
    names = [f"latents/step{index:02d}" for index in range(len(downs))]
    found["latents"] = torch.stack([found[name] for name in names])
    return found


def _check_listed(
    group: str, case: Fixture, fusion: FusionSchedule, ours: Mapping[str, Tensor], facts: _Filtered
) -> None:
    """What the fixture says of a case in numbers of its own."""
    if "num_self_replace" in case:
        facts.exact(
            f"{group}/num_self_replace",
            [fusion.self_steps.start, fusion.self_steps.stop],
            case["num_self_replace"],
        )
    for blend in ("attention_blend", "latent_blend"):
        for side, marks in (("source", fusion.source_words), ("target", fusion.target_words)):
            if (theirs := case.get(blend, {}).get(f"{side}_word_tokens")) is not None:
                facts.exact(f"{group}/{blend}/{side}_word_tokens", marks.nonzero().flatten().tolist(), theirs)
    if "latent_blend" in case:
        entry, (first, last) = case["latent_blend"], (fusion.blend_steps.start, fusion.blend_steps.stop)
        facts.exact(f"{group}/latent_blend/window", [first, last + 1], [entry["start"], entry["end"]])
    for key, theirs in case.get("mask_fraction_ones", {}).items():
        if key in ours:
            facts.absolute(f"{group}/mask_fraction_ones/{key}", ours[key].double().mean(), theirs, FRACTION)
        elif any(name.startswith("latents") for name in ours):
            facts.report.fail(f"{group}/mask_fraction_ones/{key}", "nothing of ours to compare with")
