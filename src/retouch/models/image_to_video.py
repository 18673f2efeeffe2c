"""Image-to-video models behind one Protocol, and Stable Video Diffusion behind it.

An editor that carries a first frame through a clip needs little of such a model: latents, conditions, a
ladder of noise levels, and one prediction at a level. `ImageToVideo` says just that, without a batch axis and
without a scheduler; how a model packs its latents, guides, or keeps its first frame is the adapter's own
business.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, Protocol, Self, TypeAlias, TypeVar, cast, final, runtime_checkable

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from retouch.compute import Compute
from retouch.errors import ModelMismatch, ParamsError
from retouch.identity import identity
from retouch.models.loading import folder_identity, load_network, weights_identity
from retouch.models.noise_path import Level, Schedule, guided
from retouch.models.refs import check_weights, read_config, read_index, resolve

P = TypeVar("P", bound=DiffusionPipeline)
Shrink: TypeAlias = Literal["blurred", "antialiased"]

# The colours that CLIP was trained on; every Stable Video Diffusion has the same.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# Pictures that the VAE encodes at one time; it looks at each alone, so that this changes memory and nothing
# else.
ENCODED_AT_ONCE = 4
# Latent frames decoded beside a part of a clip and thrown away: the temporal decoder looks at neighbours.
DECODED_BESIDE = 2


@final
@dataclass(frozen=True)
class Traits:
    """What an editor has to know of a model before it prepares a clip.

    A clip of `k * frame_stride + 1` frames becomes `k + 1` latent frames (any number, where the stride is 1).
    Sides are multiples of `size_multiple`; `native_frames` is the length that the model was trained on,
    `native_pixels` the picture area. `keeps_first_frame`: the first latent frame is given, not predicted.
    """

    frame_stride: int
    size_multiple: int
    latent_factor: int
    latent_channels: int
    native_frames: int
    native_pixels: int
    keeps_first_frame: bool
    reads_text: bool


@runtime_checkable
class Condition(Protocol):
    """What a prediction is conditioned on: comes from a model's `condition`, goes to its `predict`."""

    @property
    def identity(self) -> str:
        """Hash of everything in the condition."""
        ...


@runtime_checkable
class ImageToVideo(Protocol):
    """A model that continues a first frame into a clip, as far as an editor sees it."""

    @property
    def traits(self) -> Traits:
        """Sizes and habits of the model."""
        ...

    @property
    def identity(self) -> str:
        """Hash of the weights and of how they are run."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the networks run and latents belong."""
        ...

    def encode(self, pixels: Float[Tensor, "f 3 height width"]) -> Float[Tensor, "g c h w"]:
        """Gives the latents of frames in [-1, 1]: the mode, no sample."""
        ...

    def decode(
        self, latents: Float[Tensor, "g c h w"], at_once: int | None = None
    ) -> Float[Tensor, "f 3 height width"]:
        """Gives the frames of latents, `at_once` latent frames at a time to save memory."""
        ...

    def condition(
        self,
        first: Float[Tensor, "3 height width"],
        *,
        frames: int,
        prompt: str = "",
        noise: Float[Tensor, "3 height width"] | None = None,
        latent: Float[Tensor, "c h w"] | None = None,
    ) -> Condition:
        """Gives what makes the model start a clip of `frames` frames with the picture `first`.

        Args:
            first: the picture, in [-1, 1].
            frames: how many frames the clip has.
            prompt: what the clip shows, for models that read text.
            noise: unit noise for models that were trained on noised pictures; none is drawn here.
            latent: the picture's latents where they are known, for models that can take them in place of
                encoding.
        """
        ...

    def schedule(self, steps: int, strength: float, latents: Float[Tensor, "g c h w"]) -> Schedule:
        """Gives the noise levels of `steps` steps, of which the last `strength` part is walked."""
        ...

    def predict(
        self,
        x: Float[Tensor, "g c h w"],
        level: Level,
        condition: Condition,
        *,
        against: Condition | None = None,
        guidance: float | Float[Tensor, " g"] = 1.0,
    ) -> Float[Tensor, "g c h w"]:
        """Gives the network's prediction at a level, driven by `guidance` away from `against`."""
        ...

    def unconditional(self, condition: Condition) -> Condition:
        """Gives the condition that says nothing: what plain guidance drives away from."""
        ...

    def moving(self, latents: Float[Tensor, "g c h w"]) -> Bool[Tensor, "g 1 1 1"]:
        """Says which latent frames are predicted; the others are given by the condition."""
        ...


@final
@dataclass(frozen=True)
class Layout:
    """What has to lie in a folder for a kind of model to be loaded from it."""

    pipeline: str
    title: str
    networks: tuple[str, ...]
    hint: str


STILL: Final = Layout(
    "StableVideoDiffusionPipeline",
    "an image-to-video model of the Stable Video Diffusion kind",
    ("unet", "vae", "image_encoder"),
    "name Stable Video Diffusion (svd), or tiny:svd, which works without a download",
)


def steps_back(steps: int, strength: float) -> int:
    """How many of `steps` levels lie within `strength`, rounded down as diffusers rounds.

    Raises:
        ParamsError: if that is none at all.
    """
    walked = min(int(steps * strength), steps)
    if walked < 1:
        raise ParamsError(
            f"{steps} steps at strength {strength} leave no step to walk",
            hint=f"raise strength to at least {1 / steps:.2g}, or the number of steps",
        )
    return walked


@final
@dataclass(frozen=True, eq=False)
class StillCondition:
    """What Stable Video Diffusion is conditioned on: a still picture, twice, and three numbers.

    `latent` stands beside every frame in the network's input; `embedding` is what CLIP sees of the picture;
    `numbers` are the frame rate less one, the motion bucket, and how strongly the picture was noised.
    """

    latent: Float[Tensor, "c h w"]
    embedding: Float[Tensor, " d"]
    numbers: Float[Tensor, " 3"]

    @property
    def identity(self) -> str:
        """Hash of the three tensors."""
        return identity((self.latent, self.embedding, self.numbers))


@final
@dataclass(frozen=True)
class StillHabits:
    """What `StableVideo` is told beside a picture: frame rate, motion bucket, and the picture's noise.

    `noise` is both the deviation of what is added to the picture and the number that the network is told of
    it; `shrink` is how the picture is brought to CLIP's size, "blurred" as the Stable Video Diffusion
    pipeline of diffusers does or "antialiased" as Videoshop does. The defaults are those of the pipeline.
    """

    fps: int = 7
    motion: int = 127
    noise: float = 0.02
    shrink: Shrink = "blurred"


@final
class StableVideo:
    """Stable Video Diffusion (14 or 25 frames, or any model of its layout) as an `ImageToVideo`.

    Args:
        pipe: the stock pipeline; its parts are used as they are and are never changed.
        habits: what the model is told beside the picture.
        weights: a hash of the weights where one is known; else they are hashed when it is first asked for.

    Example:
        ```python
        model = StableVideo.from_pretrained("./stable-video-diffusion-img2vid")
        latents = model.encode(video.pixels())
        ```
    """

    def __init__(
        self, pipe: StableVideoDiffusionPipeline, habits: StillHabits | None = None, *, weights: str = ""
    ) -> None:
        self._pipe = pipe
        self._habits = habits or StillHabits()
        self._weights = weights

    @classmethod
    def wrap(cls, pipe: StableVideoDiffusionPipeline) -> Self:
        """Gives the model around a pipeline that is already loaded, on its device and in its precision."""
        return cls(pipe)

    @classmethod
    def from_pretrained(cls, ref: str, compute: Compute | None = None) -> Self:
        """Loads the model that `ref` names, from this machine only.

        Raises:
            ModelNotFound: it is not here; the hint says how to get it.
            ModelMismatch: the folder holds something else than Stable Video Diffusion in safetensors.
        """
        pipe, weights = loaded(ref, compute, STILL, _still_parts)
        return cls(pipe, weights=weights)

    def telling(self, habits: StillHabits) -> "StableVideo":
        """Gives the same model, told other numbers beside the picture."""
        return StableVideo(self._pipe, habits, weights=self._weights)

    @property
    def pipe(self) -> StableVideoDiffusionPipeline:
        """The stock pipeline inside."""
        return self._pipe

    @property
    def habits(self) -> StillHabits:
        """What the model is told beside the picture."""
        return self._habits

    @cached_property
    def traits(self) -> Traits:
        """Sizes of the model, from its own configuration."""
        return still_traits(self._pipe.unet.config, self._pipe.vae.config)

    @property
    def identity(self) -> str:
        """Hash of the weights, the precision, and what the model is told beside the picture."""
        return self._identity

    @cached_property
    def _identity(self) -> str:
        parts = {name: getattr(self._pipe, name) for name in ("unet", "vae", "image_encoder")}
        config = sorted((key, repr(value)) for key, value in self._pipe.scheduler.config.items())
        return identity((self._weights or weights_identity(parts, repr(config)), self._habits))

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return torch.device(self._pipe._execution_device)

    @property
    def scale(self) -> float:
        """What the VAE's latents are multiplied with before the network sees them."""
        return float(self._pipe.vae.config.scaling_factor)

    @torch.no_grad()
    def encode(self, pixels: Float[Tensor, "f 3 height width"]) -> Float[Tensor, "f c h w"]:
        """Gives the scaled mode of the VAE, a few frames at a time."""
        parts = [self._modes(pixels[i : i + ENCODED_AT_ONCE]) for i in range(0, len(pixels), ENCODED_AT_ONCE)]
        return torch.cat(parts).mul_(self.scale)

    def _modes(self, pixels: Float[Tensor, "f 3 height width"]) -> Float[Tensor, "f c h w"]:
        vae = self._pipe.vae
        # Channels last is how the authors' code hands the frames over; on a CPU the convolutions round
        # differently.
        laid_out = pixels.to(self.device, vae.dtype).contiguous(memory_format=torch.channels_last)
        return cast(Tensor, vae.encode(laid_out).latent_dist.mode()).float()

    @torch.no_grad()
    def decode(
        self, latents: Float[Tensor, "f c h w"], at_once: int | None = None
    ) -> Float[Tensor, "f 3 height width"]:
        """Gives the frames; a part of a clip is decoded beside its neighbours, which hides the seam."""
        size, vae = at_once or len(latents), self._pipe.vae
        parts = []
        for first in range(0, len(latents), size):
            before, after = min(first, DECODED_BESIDE), DECODED_BESIDE
            near = latents[first - before : first + size + after] / self.scale
            with self._halved():
                frames = vae.decode(near.to(self.device, vae.dtype), num_frames=len(near)).sample
            parts.append(frames[before : before + size].float())
        return torch.cat(parts)

    def _halved(self) -> torch.autocast:
        """Runs a decoder whose weights are in full precision as fast as the network beside it."""
        dtype = self._pipe.unet.dtype
        return torch.autocast(self.device.type, dtype, enabled=dtype != self._pipe.vae.dtype)

    @torch.no_grad()
    def condition(
        self,
        first: Float[Tensor, "3 height width"],
        *,
        frames: int,  # noqa: ARG002 - a part of the protocol
        prompt: str = "",  # noqa: ARG002
        noise: Float[Tensor, "3 height width"] | None = None,
        latent: Float[Tensor, "c h w"] | None = None,
    ) -> StillCondition:
        """Gives the condition of a still picture, the same for any prompt and any number of frames."""
        if latent is None:
            noised = first if noise is None else first + self._habits.noise * noise.to(first)
            latent = self.encode(noised[None])[0]
        return self.still(latent / self.scale, self.look(first))

    def still(self, latent: Float[Tensor, "c h w"], embedding: Float[Tensor, " d"]) -> StillCondition:
        """Gives a condition from its parts: unscaled latents, and what CLIP saw."""
        told = self._habits
        # Stable Video Diffusion was trained with the frame rate less one.
        numbers = torch.tensor([told.fps - 1, told.motion, told.noise], device=embedding.device)
        return StillCondition(latent, embedding, numbers.float())

    @torch.no_grad()
    def look(self, picture: Float[Tensor, "3 height width"]) -> Float[Tensor, " d"]:
        """Gives CLIP's embedding of a picture in [-1, 1]."""
        clip = self._pipe.image_encoder
        seen = self.clip_input(picture[None])
        return cast(Tensor, clip(seen.to(self.device, clip.dtype)).image_embeds)[0].float()

    def clip_input(self, pictures: Float[Tensor, "f 3 height width"]) -> Float[Tensor, "f 3 side side"]:
        """Gives pictures in [-1, 1] the size, range and colour balance that CLIP was trained on."""
        side = int(self._pipe.image_encoder.config.image_size)
        shrunk = (
            _blurred(pictures, side) if self._habits.shrink == "blurred" else _antialiased(pictures, side)
        )
        mean, std = torch.tensor([CLIP_MEAN, CLIP_STD]).to(pictures)[..., None, None]
        return cast(Tensor, ((shrunk + 1) / 2 - mean) / std)

    def schedule(self, steps: int, strength: float, latents: Float[Tensor, "f c h w"]) -> Schedule:  # noqa: ARG002
        """Gives the levels of the model's own Euler scheduler."""
        scheduler = EulerDiscreteScheduler.from_config(self._pipe.scheduler.config)
        # As an array: it would be read as one, and NumPy 2 warns about how tensors are turned into arrays.
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.numpy()
        scheduler.set_timesteps(steps)
        times = [*scheduler.timesteps.tolist(), 0.0]
        levels = [
            Level(1.0, b, t, "v_prediction") for b, t in zip(scheduler.sigmas.tolist(), times, strict=True)
        ]
        return Schedule(tuple(levels), steps - steps_back(steps, strength))

    @torch.no_grad()
    def predict(
        self,
        x: Float[Tensor, "f c h w"],
        level: Level,
        condition: Condition,
        *,
        against: Condition | None = None,
        guidance: float | Float[Tensor, " f"] = 1.0,
    ) -> Float[Tensor, "f c h w"]:
        """Gives the v-prediction; two conditions are one call on a batch of two, `against` in front."""
        conditions = [condition] if against is None else [against, condition]
        stills = [still for still in conditions if isinstance(still, StillCondition)]
        assert len(stills) == len(conditions), "a condition of another model"
        scaled = x / (level.signal**2 + level.noise**2) ** 0.5
        beside = torch.stack([still.latent.expand_as(scaled) for still in stills])
        unet = self._pipe.unet
        predicted = unet(
            torch.cat([scaled.expand_as(beside), beside], dim=2).to(self.device, unet.dtype),
            torch.tensor(level.t, dtype=torch.float32, device=self.device),
            encoder_hidden_states=torch.stack([still.embedding[None] for still in stills]).to(
                self.device, unet.dtype
            ),
            added_time_ids=torch.stack([still.numbers for still in stills]).to(self.device, unet.dtype),
            return_dict=False,
        )[0].to(x)
        return predicted[0] if against is None else guided(predicted[0], predicted[1], guidance)

    def unconditional(self, condition: Condition) -> StillCondition:
        """Gives zeros in place of the picture, twice, and the same numbers."""
        assert isinstance(condition, StillCondition), "a condition of another model"
        nothing = torch.zeros_like(condition.latent), torch.zeros_like(condition.embedding)
        return StillCondition(*nothing, condition.numbers)

    def moving(self, latents: Float[Tensor, "f c h w"]) -> Bool[Tensor, "f 1 1 1"]:
        """Says that every frame is predicted, the first too."""
        return torch.ones(len(latents), 1, 1, 1, dtype=torch.bool, device=latents.device)


def loaded(
    ref: str, compute: Compute | None, layout: Layout, parts: Callable[[Path, str, torch.dtype], P]
) -> tuple[P, str]:
    """Gives the stock pipeline under a reference, settled, with a hash of its weights and precision.

    Args:
        ref: what the user named.
        compute: where and how exactly the networks run.
        layout: what has to lie there.
        parts: puts the pipeline together from its folder, the reference, and a precision.

    Raises:
        ModelNotFound: it is not on this machine.
        ModelMismatch: another kind of model lies there, or a part of it is missing or a pickle.
    """
    compute, folder = compute or Compute(), resolve(ref)
    if (kind := read_index(folder, ref).get("_class_name")) != layout.pipeline:
        raise ModelMismatch(f"{ref} is a {kind}, not {layout.title}", hint=layout.hint)
    for part in layout.networks:
        check_weights(folder / part, ref)
    dtype = compute.torch_dtype()
    pipe = parts(folder, ref, dtype)
    place_pipeline(pipe, compute)
    return pipe, f"{folder_identity(folder)} {dtype}"


def place_pipeline(pipe: DiffusionPipeline, compute: Compute) -> None:
    """Brings a pipeline's networks where they run, or where they wait to be called."""
    device = compute.torch_device()
    if compute.offload == "none" or device.type == "cpu":  # where else could they wait
        pipe.to(device)
    elif compute.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.enable_sequential_cpu_offload(device=device)


def _still_parts(folder: Path, ref: str, dtype: torch.dtype) -> StableVideoDiffusionPipeline:
    """Stable Video Diffusion's parts, each frozen; the pipeline asks for nothing more."""
    prediction = read_config(folder / "scheduler" / "scheduler_config.json", ref).get("prediction_type")
    if prediction != "v_prediction":
        raise ModelMismatch(
            f"{ref} predicts {prediction}", hint="Stable Video Diffusion predicts v_prediction"
        )
    here, vae_dtype = torch.device("cpu"), _vae_dtype(folder, ref, dtype)
    return StableVideoDiffusionPipeline(
        vae=load_network(AutoencoderKLTemporalDecoder, folder / "vae", here, vae_dtype),
        image_encoder=load_network(CLIPVisionModelWithProjection, folder / "image_encoder", here, dtype),
        unet=load_network(UNetSpatioTemporalConditionModel, folder / "unet", here, dtype),
        scheduler=EulerDiscreteScheduler.from_pretrained(folder / "scheduler", local_files_only=True),
        feature_extractor=None,
    )


def _vae_dtype(folder: Path, ref: str, dtype: torch.dtype) -> torch.dtype:
    """Full precision where half would overflow in the encoder, as the VAE's own configuration warns."""
    upcast = bool(read_config(folder / "vae" / "config.json", ref).get("force_upcast", True))
    return torch.float32 if upcast and dtype == torch.float16 else dtype


def still_traits(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> Traits:
    """Gives the sizes of a model of Stable Video Diffusion's layout from the configurations of its parts."""
    factor, side = 2 ** (len(vae["block_out_channels"]) - 1), unet["sample_size"]
    # One number is the side of a square of the area meant: Stable Video Diffusion says 96 and means 72 x 128.
    area = side**2 if isinstance(side, int) else side[0] * side[1]
    return Traits(
        frame_stride=1,
        size_multiple=factor * 2 ** (len(unet["block_out_channels"]) - 1),
        latent_factor=factor,
        latent_channels=int(vae["latent_channels"]),
        native_frames=int(unet["num_frames"]),
        native_pixels=area * factor**2,
        keeps_first_frame=False,
        reads_text=False,
    )


def _antialiased(pictures: Float[Tensor, "f 3 height width"], side: int) -> Float[Tensor, "f 3 side side"]:
    """Videoshop's way to CLIP's size: bilinear, antialiased."""
    return torch.nn.functional.interpolate(
        pictures, (side, side), mode="bilinear", antialias=True, align_corners=False
    )


def _blurred(pictures: Float[Tensor, "f 3 height width"], side: int) -> Float[Tensor, "f 3 side side"]:
    """The pipeline's way to CLIP's size: a Gaussian blur by the shrinkage, then bicubic, corners aligned."""
    for axis in (2, 3):
        deviation = max((pictures.shape[axis] / side - 1) / 2, 0.001)
        reach = int(max(4 * deviation, 3)) // 2
        at = torch.arange(-reach, reach + 1, device=pictures.device, dtype=pictures.dtype)
        kernel = torch.softmax(-(at**2) / (2 * deviation**2), 0)
        shape, edge = ((-1, 1), (0, 0, reach, reach)) if axis == 2 else ((1, -1), (reach, reach, 0, 0))
        weight = kernel.reshape(1, 1, *shape).expand(3, 1, *kernel.reshape(shape).shape)
        pictures = torch.nn.functional.conv2d(
            torch.nn.functional.pad(pictures, edge, mode="reflect"), weight, groups=3
        )
    return torch.nn.functional.interpolate(pictures, (side, side), mode="bicubic", align_corners=True)
