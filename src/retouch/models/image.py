"""Text-to-image models of the Stable Diffusion 1.x/2.x kind, over stock diffusers parts.

`StableDiffusion` is what every image method talks to: words in, latents in and out, noise predictions
whatever the model itself predicts. Latents are float32 on the model's device; half precision stays inside the
networks. `Control` turns a picture of edges or depth into residuals that hold a prediction to it.
"""

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Final, Literal, Self, TypeVar, cast, final

import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import interpolate
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from retouch.compute import Compute
from retouch.errors import InputError, ModelMismatch
from retouch.models.image_shapes import working_size
from retouch.models.refs import check_weights, read_config, read_index, resolve, weight_variant

M = TypeVar("M", bound=Module)

FRAMES_AT_ONCE: Final = 16
"""Frames that pass the autoencoder together; bounds its memory, changes no value."""
LEAST_SIGNAL: Final = 1e-7
"""Below any level of a schedule that keeps some signal (SD 1.x ends at 4.7e-3), and fit for float32."""


@final
@dataclass(frozen=True)
class Residuals:
    """What a control network adds to the UNet: one tensor per skip connection, one for the middle block."""

    down: tuple[Tensor, ...]
    middle: Tensor

    def __add__(self, other: "Residuals") -> "Residuals":
        """Two controls at once."""
        return Residuals(
            tuple(a + b for a, b in zip(self.down, other.down, strict=True)), self.middle + other.middle
        )


@final
class StableDiffusion:
    """Stable Diffusion 1.x or 2.x: an autoencoder, a text encoder, a UNet and a noise schedule."""

    def __init__(
        self,
        *,
        tokenizer: CLIPTokenizer,
        text_encoder: CLIPTextModel,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler_config: Mapping[str, object],
        identity: str | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Take the parts as they are; `from_pretrained` and `wrap` are the usual ways here.

        `device` is where they run, if they lie elsewhere until they are called.
        """
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder
        self.unet = unet
        self.vae = vae
        self.scheduler_config = dict(scheduler_config)
        self._identity = identity
        self._device = device
        self._schedule = _ddim(self.scheduler_config)

    @classmethod
    def from_pretrained(cls, ref: str, compute: Compute | None = None) -> Self:
        """Load the model that `ref` names, from this machine only.

        With `compute.offload` the networks wait in main memory, where that is another than the device's.

        Raises:
            ModelNotFound: it is not here; the hint says how to get it.
            ModelMismatch: the folder is no Stable Diffusion 1.x/2.x in safetensors.
        """
        folder = resolve(ref)
        _check_layout(folder, ref)
        device, dtype = placed(compute)
        offload = "none" if compute is None or device.type == "cpu" else compute.offload
        here = device if offload == "none" else torch.device("cpu")
        made = cls(
            tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
            text_encoder=load_network(CLIPTextModel, folder / "text_encoder", here, dtype),
            unet=load_network(UNet2DConditionModel, folder / "unet", here, dtype),
            vae=load_network(AutoencoderKL, folder / "vae", here, dtype),
            scheduler_config=read_config(folder / "scheduler" / "scheduler_config.json", ref),
            identity=folder_identity(folder),
        )
        if offload != "none":
            made.enable_offload(offload, device)
        return made

    @classmethod
    def wrap(cls, pipe: StableDiffusionPipeline) -> Self:
        """Use the parts of a pipeline that the caller already has; nothing is copied or moved."""
        return cls(
            tokenizer=pipe.tokenizer,
            text_encoder=pipe.text_encoder,
            unet=pipe.unet,
            vae=pipe.vae,
            scheduler_config=pipe.scheduler.config,
            device=torch.device(pipe._execution_device),
        )

    def enable_offload(self, offload: Literal["model", "sequential"], device: torch.device) -> None:
        """Lets networks wait in main memory until they are called on `device`: whole, or layer by layer."""
        before = None
        for network in (self.text_encoder, self.unet, self.vae):
            if offload == "sequential":
                cpu_offload(network, device)
            else:
                _, before = cpu_offload_with_hook(network, device, before)
        self._device = device

    @property
    def identity(self) -> str:
        """A hash of weights and configurations: equal for equal models, wherever they lie."""
        if self._identity is None:
            parts = {"text_encoder": self.text_encoder, "unet": self.unet, "vae": self.vae}
            schedule = repr(sorted((key, repr(value)) for key, value in self.scheduler_config.items()))
            self._identity = weights_identity(parts, schedule)
        return self._identity

    # ---------------------------------------------------------------- sizes

    @property
    def device(self) -> torch.device:
        """Where the UNet runs, and so where latents belong."""
        return self._device or cast(torch.device, self.unet.device)

    @property
    def factor(self) -> int:
        """Pixels per latent along one side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def multiple(self) -> int:
        """Height and width in pixels must be multiples of this, for the UNet's levels to come out even."""
        return int(self.factor * 2 ** (len(self.unet.config.block_out_channels) - 1))

    @property
    def native(self) -> int:
        """The side, in pixels, that the UNet was trained at."""
        return int(self.unet.config.sample_size) * self.factor

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """The size at which to edit a picture of this size: short side native, aspect kept, sides fitting."""
        return working_size(height, width, self.native, self.multiple)

    # ---------------------------------------------------------------- words and pictures

    @torch.no_grad()
    def embed(self, prompt: str) -> Float[Tensor, "n d"]:
        """The text encoder's last hidden states, padded to the tokenizer's length; longer prompts are cut."""
        length = self.tokenizer.model_max_length
        ids = self.tokenizer(
            prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        return cast(
            Tensor,
            self.text_encoder(ids.to(self._device or self.text_encoder.device)).last_hidden_state[0].float(),
        )

    @torch.no_grad()
    def encode(
        self, pixels: Float[Tensor, "f 3 h w"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "f 4 y x"]:
        """Scaled latents of pixels in [-1, 1]: the posterior's mode, or with a generator a draw from it.

        Raises:
            InputError: height or width is no multiple of `multiple`.
        """
        self._check_size(pixels)
        latents = []
        for part in torch.split(pixels, FRAMES_AT_ONCE):
            posterior = self.vae.encode(part.to(self._device or self.vae.device, self.vae.dtype)).latent_dist
            latents.append(posterior.mode() if generator is None else posterior.sample(generator))
        return (torch.cat(latents).float() - self._shift) * float(self.vae.config.scaling_factor)

    @torch.no_grad()
    def decode(self, z: Float[Tensor, "f 4 y x"]) -> Float[Tensor, "f 3 h w"]:
        """Pixels of scaled latents, clamped to [-1, 1]."""
        return self.decode_with_gradient(z)

    def decode_with_gradient(self, z: Float[Tensor, "f 4 y x"]) -> Float[Tensor, "f 3 h w"]:
        """As `decode`, for losses on pixels that must reach the latents."""
        unscaled = z / float(self.vae.config.scaling_factor) + self._shift
        parts = [
            self.vae.decode(part.to(self._device or self.vae.device, self.vae.dtype)).sample
            for part in torch.split(unscaled, FRAMES_AT_ONCE)
        ]
        return torch.cat(parts).float().clamp(-1, 1)

    # ---------------------------------------------------------------- the prediction

    def predict_noise(
        self,
        z: Float[Tensor, "f 4 y x"],
        t: int,
        text: Float[Tensor, "*f n d"],
        *,
        attention: Mapping[str, object] | None = None,
        residuals: Residuals | None = None,
        seen: Float[Tensor, " e"] | None = None,
    ) -> Float[Tensor, "f 4 y x"]:
        """The noise in `z` at timestep `t`, whatever the network itself predicts.

        Args:
            z: latents, noised to the level of `t`.
            t: the timestep, from `timesteps`.
            text: one prompt for all frames (n d), or one per frame (f n d).
            attention: goes to every attention processor of this call (`cross_attention_kwargs`).
            residuals: from `Control.residuals`; add two for two controls.
            seen: from `ImagePrompt.seen`, within `ImagePrompt.applied_to`; zeros show no picture.
        """
        out = self.predict(z, t, text, attention=attention, residuals=residuals, seen=seen)
        return self.noise_of(out, z, t)

    def predict(
        self,
        z: Float[Tensor, "f 4 y x"],
        t: int,
        text: Float[Tensor, "*f n d"],
        *,
        attention: Mapping[str, object] | None = None,
        residuals: Residuals | None = None,
        seen: Float[Tensor, " e"] | None = None,
    ) -> Float[Tensor, "f 4 y x"]:
        """The network's own output: noise, velocity or the clean latents, as `prediction` says."""
        dtype = self.unet.dtype
        text = text if text.ndim == 3 else text.expand(len(z), *text.shape)
        out = self.unet(
            z.to(dtype),
            t,
            text.to(z.device, dtype),
            cross_attention_kwargs=dict(attention) if attention else None,
            down_block_additional_residuals=residuals.down if residuals else None,
            mid_block_additional_residual=residuals.middle if residuals else None,
            added_cond_kwargs=None if seen is None else {"image_embeds": _each(seen, z, dtype)},
        )
        return cast(Tensor, out.sample.to(z.dtype))

    @property
    def prediction(self) -> str:
        """What the network predicts: `epsilon`, `v_prediction` or `sample`."""
        return str(self.scheduler_config.get("prediction_type", "epsilon"))

    def noise_of(
        self, out: Float[Tensor, "f 4 y x"], z: Float[Tensor, "f 4 y x"], t: int
    ) -> Float[Tensor, "f 4 y x"]:
        """The noise that the network's output `out` at `z`, `t` means."""
        alpha = float(self._alphas[t])
        if self.prediction == "epsilon":
            return out
        if self.prediction == "sample":
            return torch.div(z - alpha**0.5 * out, (1 - alpha) ** 0.5)
        return torch.add(alpha**0.5 * out, z, alpha=(1 - alpha) ** 0.5)

    def clean_of(
        self, out: Float[Tensor, "f 4 y x"], z: Float[Tensor, "f 4 y x"], t: int
    ) -> Float[Tensor, "f 4 y x"]:
        """The clean latents that the network's output `out` at `z`, `t` means."""
        alpha = float(self._alphas[t])
        if self.prediction == "sample":
            return out
        if self.prediction == "epsilon":
            return torch.div(z - (1 - alpha) ** 0.5 * out, alpha**0.5)
        return torch.sub(alpha**0.5 * z, out, alpha=(1 - alpha) ** 0.5)

    # ---------------------------------------------------------------- the schedule

    @property
    def alphas_cumprod(self) -> Float[Tensor, " t"]:
        """The share of signal at each training timestep (the papers' alpha bar), float64 on the CPU.

        A schedule whose last level holds no signal at all is lifted to `LEAST_SIGNAL`, so that noise and
        clean latents determine each other at every level.
        """
        return self._alphas

    @property
    def final_alpha(self) -> float:
        """The share of signal where sampling ends: 1, or that of timestep 0, as the config says."""
        return 1.0 if self.scheduler_config.get("set_alpha_to_one", True) else float(self._alphas[0])

    def timesteps(self, steps: int) -> list[int]:
        """The timesteps of an n-step sampling, noisiest first, spaced as the model's config says."""
        self._schedule.set_timesteps(steps)
        return [int(t) for t in self._schedule.timesteps]

    # ---------------------------------------------------------------- inside

    @cached_property
    def _alphas(self) -> Float[Tensor, " t"]:
        return torch.clamp(self._schedule.alphas_cumprod.double(), min=LEAST_SIGNAL)

    @property
    def _shift(self) -> float:
        return float(self.vae.config.get("shift_factor") or 0.0)

    def _check_size(self, pixels: Tensor) -> None:
        height, width = pixels.shape[-2:]
        if height % self.multiple or width % self.multiple:
            fits = "{1}x{0}".format(*self.working_size(height, width))
            raise InputError(
                f"{width}x{height} does not fit this model: both sides must be multiples of {self.multiple}",
                hint=f"resize to {fits} first (working_size, resized)",
            )


@final
class Control:
    """A ControlNet: holds a prediction of `StableDiffusion` to a picture of edges, or of depth."""

    def __init__(self, net: ControlNetModel, *, identity: str | None = None) -> None:
        """Take the network as it is; `from_pretrained` is the usual way here."""
        self.net = net
        self._identity = identity

    @classmethod
    def from_pretrained(cls, ref: str, compute: Compute | None = None) -> Self:
        """Load the control network that `ref` names, from this machine only."""
        folder = resolve(ref)
        found = read_config(folder / "config.json", ref).get("_class_name")
        if found != "ControlNetModel":
            raise ModelMismatch(
                f"{ref} is a {found}, not a ControlNetModel",
                hint="name a ControlNet: `retouch models list` shows them as 'control'",
            )
        check_weights(folder, ref)
        return cls(load_network(ControlNetModel, folder, *placed(compute)), identity=folder_identity(folder))

    @property
    def identity(self) -> str:
        """A hash of weights and configuration."""
        if self._identity is None:
            self._identity = weights_identity({"control": self.net}, "")
        return self._identity

    def check_fit(self, sd: StableDiffusion) -> None:
        """See that this control was made for a base model of the same build.

        Raises:
            ModelMismatch: it was not.
        """
        for name in ("block_out_channels", "cross_attention_dim"):
            ours, theirs = self.net.config[name], sd.unet.config[name]
            if ours != theirs:
                raise ModelMismatch(
                    f"this ControlNet was made for another base model: {name} {ours}, not {theirs}",
                    hint="tiny:sd-canny goes with tiny:sd, sd15-canny with sd15",
                )

    def residuals(
        self,
        picture: Float[Tensor, "f 3 h w"],
        z: Float[Tensor, "f 4 y x"],
        t: int,
        text: Float[Tensor, "*f n d"],
        *,
        scale: float = 1.0,
    ) -> Residuals:
        """What this control adds at `z`, `t` to follow `picture`, given in [0, 1] at pixel size."""
        dtype = self.net.dtype
        text = text if text.ndim == 3 else text.expand(len(z), *text.shape)
        down, middle = self.net(
            z.to(dtype),
            t,
            text.to(z.device, dtype),
            controlnet_cond=picture.to(z.device, dtype),
            conditioning_scale=scale,
            return_dict=False,
        )
        return Residuals(tuple(down), middle)


def _each(seen: Float[Tensor, " e"], z: Float[Tensor, "f 4 y x"], dtype: torch.dtype) -> list[Tensor]:
    """One picture's embedding for every frame, as diffusers takes the pictures of one adapter."""
    return [seen.to(z.device, dtype).expand(len(z), 1, -1)]


def resized(pixels: Float[Tensor, "f c h w"], height: int, width: int) -> Float[Tensor, "f c y x"]:
    """`pixels` at another size: bicubic, antialiased when it shrinks, clamped to the range it had."""
    if tuple(pixels.shape[-2:]) == (height, width):
        return pixels
    out = interpolate(pixels, size=(height, width), mode="bicubic", antialias=True, align_corners=False)
    return out.clamp(float(pixels.min()), float(pixels.max()))


def folder_identity(folder: Path) -> str:
    """A hash of every weight and configuration file under `folder`; each file is read once per process."""
    files = sorted(
        p
        for p in folder.rglob("*")
        if p.suffix in (".safetensors", ".json", ".txt") and p.name != "PROVENANCE.json"
    )
    total = hashlib.sha256()
    for path in files:
        status = path.stat()
        content = _file_hash(path.resolve(), status.st_size, status.st_mtime_ns)
        total.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return total.hexdigest()


def weights_identity(parts: Mapping[str, Module], more: str) -> str:
    """A hash of the values of every parameter and buffer of `parts`, and of the text `more`."""
    total = hashlib.sha256(more.encode())
    for part, module in sorted(parts.items()):
        for name, value in sorted(module.state_dict().items()):
            total.update(f"{part}.{name} {value.dtype} {tuple(value.shape)}".encode())
            total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


@cache
def _file_hash(path: Path, size: int, changed: int) -> str:  # noqa: ARG001 - size and time of change are the cache's key
    """The file's SHA-256; a blob of the Hugging Face cache carries it as its name."""
    if path.parent.name == "blobs" and len(path.name) == 64:
        return path.name
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_layout(folder: Path, ref: str) -> None:
    index = read_index(folder, ref)
    pipeline = str(index.get("_class_name"))
    if "XL" in pipeline or not pipeline.startswith(("StableDiffusion", "AltDiffusion")) or "3" in pipeline:
        raise ModelMismatch(
            f"{ref} is a {pipeline}, not a Stable Diffusion 1.x or 2.x",
            hint="name one that is: sd15, or tiny:sd, which works now",
        )
    for part in ("text_encoder", "unet", "vae"):
        check_weights(folder / part, ref)
    channels = read_config(folder / "unet" / "config.json", ref).get("in_channels")
    if channels != 4:
        raise ModelMismatch(
            f"{ref} has a UNet for {channels} input channels, not 4",
            hint="inpainting and instruction models take more than latents; name a plain text-to-image model",
        )


def placed(compute: Compute | None) -> tuple[torch.device, torch.dtype]:
    """Where networks go and in which precision."""
    chosen = compute or Compute()
    return chosen.torch_device(), chosen.torch_dtype()


def load_network(kind: type[M], folder: Path, device: torch.device, dtype: torch.dtype) -> M:
    """One network from one folder: safetensors only, from this machine only, frozen."""
    from_pretrained = kind.from_pretrained  # type: ignore[attr-defined]
    with quiet():
        network = from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            variant=weight_variant(folder),
            torch_dtype=dtype,
        )
    return cast("M", network.to(device).eval().requires_grad_(False))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from progress bars and diffusers from remarks; what matters comes as events."""
    shown, level = transformers_logging.is_progress_bar_enabled(), diffusers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()


def _ddim(config: Mapping[str, object]) -> DDIMScheduler:
    """A DDIM schedule from any Stable Diffusion scheduler's config, less the keys that DDIM does not know."""
    known = inspect.signature(DDIMScheduler.__init__).parameters
    return DDIMScheduler(**{key: value for key, value in config.items() if key in known})
