"""Text-to-image models of the Stable Diffusion 1.x/2.x kind, over stock diffusers parts.

`StableDiffusion` is what every image method talks to: words in, latents in and out, the network's prediction
at a noise level. Latents are float32 on the model's device; half precision stays inside the networks.
`Control` turns a picture of edges or depth into residuals that hold a prediction to it.
"""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self, cast, final

import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from retouch.compute import Compute
from retouch.errors import InputError, ModelMismatch, ParamsError
from retouch.models.image_shapes import working_size
from retouch.models.loading import folder_identity, load_network, placed, weights_identity
from retouch.models.noise_path import Level, Prediction, Schedule, Timestep
from retouch.models.refs import check_weights, read_config, read_index, resolve

ENCODED_AT_ONCE: Final = 16
"""Frames that pass the autoencoder together; bounds its memory, changes no value."""


@final
@dataclass(frozen=True)
class ControlResiduals:
    """What a control network adds to the UNet: one tensor per skip connection, one for the middle block."""

    down: tuple[Tensor, ...]
    middle: Tensor


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
        self._scheduler = _ddim_schedule(self.scheduler_config)

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
        if generator is None:
            return self.encode_with_gradient(pixels)
        posteriors = (self._posterior(part) for part in torch.split(pixels, ENCODED_AT_ONCE))
        return self._scaled(torch.cat([found.sample(generator) for found in posteriors]))

    def encode_with_gradient(self, pixels: Float[Tensor, "f 3 h w"]) -> Float[Tensor, "f 4 y x"]:
        """As `encode` without a draw, for losses on latents that must reach the pixels."""
        posteriors = (self._posterior(part) for part in torch.split(pixels, ENCODED_AT_ONCE))
        return self._scaled(torch.cat([found.mode() for found in posteriors]))

    @torch.no_grad()
    def posterior(
        self, pixels: Float[Tensor, "f 3 h w"]
    ) -> tuple[Float[Tensor, "f 4 y x"], Float[Tensor, "f 4 y x"]]:
        """Return mean and deviation of the latents of pixels in [-1, 1], before the scaling."""
        self._check_size(pixels)
        found = self.vae.encode(pixels.to(self._device or self.vae.device, self.vae.dtype)).latent_dist
        return found.mean.float(), found.std.float()

    @torch.no_grad()
    def decode(self, z: Float[Tensor, "f 4 y x"]) -> Float[Tensor, "f 3 h w"]:
        """Pixels of scaled latents, clamped to [-1, 1]."""
        return self.decode_with_gradient(z)

    def decode_with_gradient(self, z: Float[Tensor, "f 4 y x"]) -> Float[Tensor, "f 3 h w"]:
        """As `decode`, for losses on pixels that must reach the latents."""
        unscaled = z / float(self.vae.config.scaling_factor) + self._shift
        parts = [
            self.vae.decode(part.to(self._device or self.vae.device, self.vae.dtype)).sample
            for part in torch.split(unscaled, ENCODED_AT_ONCE)
        ]
        return torch.cat(parts).float().clamp(-1, 1)

    # ---------------------------------------------------------------- the prediction

    def predict(
        self,
        z: Float[Tensor, "f 4 y x"],
        t: Timestep | Float[Tensor, " f"],
        text: Float[Tensor, "*f n d"],
        *,
        attention: Mapping[str, object] | None = None,
        residuals: ControlResiduals | None = None,
        seen: Float[Tensor, "... e"] | None = None,
    ) -> Float[Tensor, "f 4 y x"]:
        """Return the network's own output at timestep `t`: noise or velocity, as the level there says.

        Args:
            z: latents, noised to the level of `t`.
            t: the timestep of a level of `schedule`, or one per frame.
            text: one prompt for all frames (n d), or one per frame (f n d).
            attention: goes to every attention processor of this call (`cross_attention_kwargs`).
            residuals: from `Control.residuals`.
            seen: from `ImagePrompt.seen`, within `ImagePrompt.applied_to`; zeros show no picture. One for
                all frames (e), or one per frame (f e).
        """
        dtype = self.unet.conv_in.weight.dtype  # the network's own, which `unet.dtype` looks through it for
        text = text if text.ndim == 3 else text.expand(len(z), *text.shape)
        out = self.unet(
            z.to(dtype),
            t,
            text.to(z.device, dtype),
            cross_attention_kwargs=dict(attention) if attention else None,
            down_block_additional_residuals=residuals.down if residuals else None,
            mid_block_additional_residual=residuals.middle if residuals else None,
            added_cond_kwargs=None
            if seen is None
            else {"image_embeds": [seen.to(z.device, dtype).expand(len(z), -1)[:, None]]},
        )
        return cast(Tensor, out.sample.to(z.dtype))

    # ---------------------------------------------------------------- the schedule

    def schedule(self, steps: int) -> Schedule:
        """Return the levels that the model's own scheduler visits in so many steps of DDIM.

        Raises:
            ModelMismatch: the network's prediction is of a kind that cannot be inverted.
            ParamsError: the schedule has fewer levels than that.
        """
        return ddim_schedule(self._scheduler, steps)

    def level(self, share: float) -> Level:
        """Return a training level: 0 is the cleanest, and below 1 the noisiest."""
        alphas = self._scheduler.alphas_cumprod
        t = int(share * len(alphas))
        return _level(float(alphas[t].double()), t, _prediction(self._scheduler))

    # ---------------------------------------------------------------- inside

    def _posterior(self, pixels: Tensor) -> DiagonalGaussianDistribution:
        return self.vae.encode(pixels.to(self._device or self.vae.device, self.vae.dtype)).latent_dist

    def _scaled(self, latents: Tensor) -> Tensor:
        return (latents.float() - self._shift) * float(self.vae.config.scaling_factor)

    @property
    def _shift(self) -> float:
        return float(self.vae.config.get("shift_factor") or 0.0)

    def _check_size(self, pixels: Tensor) -> None:
        height, width = pixels.shape[-2:]
        if height % self.multiple or width % self.multiple:
            fits = "{1}x{0}".format(*self.working_size(height, width))
            raise InputError(
                f"{width}x{height} does not fit this model: both sides must be multiples of {self.multiple}",
                hint=f"resize to {fits} first (working_size)",
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
        t: Timestep,
        text: Float[Tensor, "*f n d"],
        *,
        scale: float = 1.0,
    ) -> ControlResiduals:
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
        return ControlResiduals(tuple(down), middle)


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


def ddim_schedule(scheduler: DDIMScheduler, steps: int) -> Schedule:
    """Return the levels that a scheduler of diffusers visits in so many steps, and the one where it ends.

    Raises:
        ModelMismatch: a step of it cannot be inverted, or the prediction is of another kind.
        ParamsError: it tells fewer levels apart.
    """
    scheduler.set_timesteps(min(steps, int(scheduler.config.num_train_timesteps)))
    times, prediction = [int(t) for t in scheduler.timesteps], _prediction(scheduler)
    if len(set(times)) != steps:
        raise ParamsError(f"steps is {steps}; this model tells only {len(set(times))} levels apart")
    alphas = [float(scheduler.alphas_cumprod[t].double()) for t in times]
    levels = [_level(alpha, t, prediction) for alpha, t in zip(alphas, times, strict=True)]
    if alphas[0] == 0 and (prediction == "epsilon" or steps == 1):
        raise ModelMismatch(
            f"a model that predicts {prediction} cannot be inverted in {steps} steps from pure noise",
            hint="take more steps of a model that predicts velocity, or a scheduler without rescaled betas",
        )
    return Schedule((*levels, _level(float(scheduler.final_alpha_cumprod), -1, prediction)))


def _level(alpha: float, t: int, prediction: Prediction) -> Level:
    return Level(math.sqrt(alpha), math.sqrt(1 - alpha), t, prediction)


def _prediction(scheduler: DDIMScheduler) -> Prediction:
    match kind := str(scheduler.config.prediction_type):
        case "epsilon" | "v_prediction":
            return kind
    raise ModelMismatch(
        f"the model predicts {kind!r}; inversion knows epsilon and v_prediction", hint="use another model"
    )


def _ddim_schedule(config: Mapping[str, object]) -> DDIMScheduler:
    """A DDIM schedule from any Stable Diffusion scheduler's config, less the keys that DDIM does not know."""
    known = inspect.signature(DDIMScheduler.__init__).parameters
    return DDIMScheduler(**{key: value for key, value in config.items() if key in known})
