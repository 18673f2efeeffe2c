"""One-shot tuning: an image model learns one clip (Tune-A-Video, Wu et al. 2023).

The paper in three lines, and where to find them: temporal attention goes behind every transformer block
(`retouch.diffusion.inflate`); it and the queries of all attention learn to predict the clip's noise, a
random level for the whole clip in each step (`_loss`); everything else stays as it was. Instead of the
queries' weights a low-rank change of them can be learned (LoRA, Hu et al. 2021, by peft). The model
itself is left alone: what was learned is a value that `tuned` puts on it for a while.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, cast, final

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Linear, Module, Parameter
from torch.nn.functional import mse_loss

from retouch.artifacts import artifact
from retouch.diffusion.attention import Attend, Neighbours, controlled
from retouch.diffusion.inflate import Temporal, TemporalConv, inflated
from retouch.diffusion.resize import Resize, encode_clip
from retouch.errors import Diverged, ModelMismatch, ModelNotFound
from retouch.models.image import StableDiffusion
from retouch.models.noise_path import add_noise, target
from retouch.regular import check_regular
from retouch.run import Run
from retouch.video import Video

FILE = "tuned.safetensors"
FIRST_AND_PREVIOUS = Neighbours(("first", -1))
_QUERIES = ".to_q.weight"
_PARTS = ("queries", "temporal", "convs")


@final
@dataclass(frozen=True, eq=False)
class Tuned:
    """What a model learned of a clip; empty parts leave the model as it is there."""

    queries: Mapping[str, Tensor] = field(default_factory=dict)
    """Weights of the UNet in place of its own, by name."""
    temporal: Mapping[str, Tensor] = field(default_factory=dict)
    """Temporal attention, by block and part."""
    convs: Mapping[str, Tensor] = field(default_factory=dict)
    """Temporal convolutions, by the convolution that each follows, and part."""

    def save(self, folder: Path) -> Path:
        """Write what was learned into a folder, from which `read` gives it back."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{part}/{name}": tensor.detach().cpu().contiguous()
            for part in _PARTS
            for name, tensor in cast(Mapping[str, Tensor], getattr(self, part)).items()
        }
        save_file(tensors, folder / FILE, metadata={"format": "pt", "retouch": "tuned 1"})
        return folder / FILE

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return what `save` wrote.

        Raises:
            ModelNotFound: there is nothing of the kind.
        """
        path = folder / FILE if folder.is_dir() else folder
        hint = "tune_steps tunes the model here; tools/convert/tune_a_video.py reads authors' checkpoints"
        if not path.exists():
            raise ModelNotFound(f"{folder} holds no {FILE}", hint=hint)
        found: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
        try:
            check_regular(path)
            with safe_open(path, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118 - it is no mapping
                    part, _, rest = name.partition("/")
                    found[part][rest] = stored.get_tensor(name)
        except (SafetensorError, KeyError, OSError) as error:
            raise ModelMismatch(
                f"{path.name} cannot be read ({type(error).__name__}: {error})", hint=hint
            ) from None
        return cls(**found)


@final
@dataclass(frozen=True)
class Tuning:
    """What decides a tuning, besides the clip and the model; the defaults are the paper's."""

    prompt: str
    resize: Resize
    steps: int = 500
    rate: float = 3e-5
    neighbours: Neighbours = FIRST_AND_PREVIOUS
    clip_norm: bool = True
    frames: int = 24
    """Frames at once; of a longer clip each step sees a random stretch."""
    rank: int = 0
    """Rank of the change of the queries; 0 changes them freely."""


@artifact("tuned", version=2)
def tune(video: Video, sd: StableDiffusion, how: Tuning, *, run: Run) -> Tuned:
    """Lets a model learn a clip; goes on where it was stopped, to the same result.

    Raises:
        Diverged: the loss is not a number, or the gradients of many steps in a row are not.
    """
    shape = (len(video), int(sd.unet.config.in_channels), *how.resize.latents)
    z = torch.from_numpy(run.scratch("tuned_latents", shape, np.float32))
    encode_clip(video, sd, how.resize, z)
    text = sd.embed(how.prompt)
    temporal = Temporal.of(sd.unet).float()
    with _learning(sd.unet, how.rank, run) as queries, inflated(sd.unet, temporal):
        learned = {
            **queries,
            **{f"temporal {n}": p for n, p in temporal.named_parameters() if "norm" not in n},
        }
        with controlled(sd.unet, size=how.resize.latents, clip_norm=how.clip_norm):
            learn(learned, lambda step: _loss(z, sd, text, how, step, run), how.steps, rate=how.rate, run=run)
        return Tuned(
            _full_weights(sd.unet, queries), {n: t.clone() for n, t in temporal.named_tensors().items()}
        )


def learn(
    learned: Mapping[str, Parameter], loss: Callable[[int], Tensor], steps: int, *, rate: float, run: Run
) -> None:
    """Take steps of AdamW down a loss, given by the step's number; go on from the last checkpoint.

    Raises:
        Diverged: the loss is not a number, or the gradients of many steps in a row are not.
    """
    optimizer = torch.optim.AdamW(learned.values(), lr=rate, betas=(0.9, 0.999), weight_decay=1e-2)
    state, refused = _state(learned, optimizer), 0
    for step in run.resumable("tune", range(steps), state, every=SAVE_EVERY):
        with torch.enable_grad():
            found = loss(step.item)
        if not bool(torch.isfinite(found)):
            raise Diverged(f"the loss is not a number at step {step.item + 1}", hint="lower the rate")
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(found)
        norm = torch.nn.utils.clip_grad_norm_(learned.values(), 1.0)
        refused = 0 if bool(torch.isfinite(norm)) else refused + 1
        if refused > REFUSALS:
            raise Diverged(
                f"the gradients of {refused} steps in a row, to {step.item + 1}, are not numbers",
                hint="try --dtype float32, or lower the rate",
            )
        if not refused:
            optimizer.step()


def tuned_weights(
    folder: Path | None, video: Video, sd: StableDiffusion, how: Tuning, *, run: Run
) -> Tuned | None:
    """Return what a model learned of a clip: read from a folder, or learned now; nothing without steps.

    Raises:
        ModelNotFound: the folder holds no weights.
        Diverged: the loss is not a number.
    """
    if folder is not None:
        return Tuned.read(folder)
    return tune(video, sd, how, run=run) if how.steps else None


SAVE_EVERY = 25
"""Steps between checkpoints."""
REFUSALS = 10
"""So many steps in a row may have a gradient that is not a number; none of them reaches the weights."""


@contextmanager
def tuned(unet: Module, learned: Tuned | None) -> Iterator[None]:
    """Puts what was learned on a UNet, and takes it off again.

    Raises:
        ModelMismatch: it was learned by another UNet.
    """
    if learned is None:
        yield
        return
    dtype = next(unet.parameters()).dtype
    with ExitStack() as undo:
        for name, weight in learned.queries.items():
            undo.enter_context(swapped(unet, name, weight.to(dtype)))
        if learned.temporal or learned.convs:
            temporal = Temporal.of(unet)
            if learned.temporal:
                temporal.load_named(learned.temporal)
            undo.enter_context(inflated(unet, temporal, _convs(learned.convs)))
        yield


def _loss(z: Tensor, sd: StableDiffusion, text: Tensor, how: Tuning, step: int, run: Run) -> Tensor:
    """Squared error of the prediction, at a level and with noise that the step decides: eq. 3 of Wu et al."""
    count = min(how.frames, len(z))
    where, when = torch.special.ndtr(run.noise(f"draw {step}", torch.empty(2, dtype=torch.float64))).tolist()
    start = int(where * (len(z) - count + 1))
    clean = z[start : start + count].to(sd.device)
    level, noise = sd.level(when), run.noise(f"tune {step}", clean)
    rule = Attend(how.neighbours.among(range(start, start + count), start + count))
    with torch.autocast(sd.device.type, sd.unet.dtype, enabled=sd.unet.dtype != torch.float32):
        out = sd.predict(add_noise(clean, noise, level), level.t, text, attention={"rule": rule})
    return mse_loss(out.float(), target(clean, noise, level))


@contextmanager
def _learning(unet: Module, rank: int, run: Run) -> Iterator[dict[str, Parameter]]:
    """Makes the queries of all attention learnable, and leaves the UNet as it was."""
    names = [name.removesuffix(".weight") for name, _ in unet.named_parameters() if name.endswith(_QUERIES)]
    with ExitStack() as undo:
        undo.enter_context(frozen(unet))
        if rank:
            yield undo.enter_context(low_rank_layers(unet, names, rank, run))
        else:
            weights = [f"{name}.weight" for name in names]
            for name in weights:
                undo.enter_context(swapped(unet, name, unet.get_parameter(name).detach().float().clone()))
                unet.get_parameter(name).requires_grad_()
            yield {name: unet.get_parameter(name) for name in weights}


@contextmanager
def frozen(unet: Module) -> Iterator[None]:
    """Let gradients reach nothing of a UNet but what is put on it within; weights are learned in single."""
    before = {name: parameter.requires_grad for name, parameter in unet.named_parameters()}
    unet.requires_grad_(requires_grad=False)
    try:
        yield
    finally:
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_(before[name])
            parameter.grad = None


@contextmanager
def low_rank_layers(unet: Module, names: list[str], rank: int, run: Run) -> Iterator[dict[str, Parameter]]:
    """Put low-rank layers around linear ones, by peft; the layers that were there come back."""
    plain = {name: unet.get_submodule(name) for name in names}
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=names)
    try:
        inject_adapter_in_model(config, unet)
        for name, parameter in unet.named_parameters():
            if "lora_A" in name:  # peft draws these from the global generator
                parameter.data = run.noise(name, parameter.data) / parameter.shape[1] ** 0.5
        yield {name: p for name, p in unet.named_parameters() if "lora_" in name}
    finally:
        for name, layer in plain.items():
            unet.set_submodule(name, layer)
        if "peft_config" in vars(unet):
            del unet.peft_config


def _full_weights(unet: Module, queries: Mapping[str, Parameter]) -> dict[str, Tensor]:
    """The learned queries as whole weights, whichever way they were learned."""
    if not any("lora_" in name for name in queries):
        return {name: parameter.detach().clone() for name, parameter in queries.items()}
    layers = {name: module for name, module in unet.named_modules() if isinstance(module, LoraLayer)}
    return {
        f"{name}.weight": (
            cast(Linear, layer.get_base_layer()).weight.detach().float()
            + layer.get_delta_weight("default").detach()
        )
        for name, layer in layers.items()
    }


@contextmanager
def swapped(unet: Module, name: str, weight: Tensor) -> Iterator[None]:
    """Put another weight in place of a parameter's own."""
    try:
        parameter = unet.get_parameter(name)
    except AttributeError:
        raise ModelMismatch(f"the model has no {name}", hint="tune this model anew") from None
    own = parameter.data
    if own.is_meta:
        raise ModelMismatch(
            "a network whose layers wait in main memory one by one cannot take tuned weights",
            hint="use --offload model",
        )
    if own.shape != weight.shape:
        raise ModelMismatch(
            f"{name} is {tuple(weight.shape)}; the model has {tuple(own.shape)}", hint="tune anew"
        )
    parameter.data = weight.to(own.device)
    try:
        yield
    finally:
        parameter.data = own


def _convs(tensors: Mapping[str, Tensor]) -> dict[str, TemporalConv]:
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        place, _, part = name.partition(".conv_temporal.")
        parts.setdefault(place, {})[part] = tensor
    return {place: TemporalConv(found) for place, found in parts.items()}


def _state(learned: Mapping[str, Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return all that steps change in place: the weights, and AdamW's moments, made as it would make them."""
    state: dict[str, Tensor] = {}
    for name, parameter in learned.items():
        moments = {
            "step": torch.tensor(0.0),
            "exp_avg": torch.zeros_like(parameter.data),
            "exp_avg_sq": torch.zeros_like(parameter.data),
        }
        optimizer.state[parameter] = moments
        state |= {f"value {name}": parameter, **{f"{key} {name}": t for key, t in moments.items()}}
    return state
