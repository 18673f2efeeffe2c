"""Image-to-video models behind one Protocol, and Stable Video Diffusion behind it.

An editor that carries a first frame through a clip needs little of such a model: latents, conditions, a
schedule of noise levels, and one prediction at a level. `ImageToVideo` says just that, without a batch axis
and without a scheduler; how a model packs its latents or guides is the adapter's own business.
"""

import math
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
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from retouch.compute import Compute
from retouch.errors import ModelMismatch, ParamsError
from retouch.identity import identity
from retouch.models.loading import folder_identity, load_network, weights_identity
from retouch.models.noise_path import Level, Schedule, guided
from retouch.models.refs import check_weights, read_config, read_index, resolve

P = TypeVar("P", bound=DiffusionPipeline)
ClipResize: TypeAlias = Literal["blurred", "antialiased"]

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""The colours that CLIP was trained on; every Stable Video Diffusion has the same."""
ENCODE_CHUNK: Final = 4
"""Pictures that the VAE encodes together; it looks at each alone, so this changes memory and nothing else."""
DECODE_OVERLAP: Final = 2
"""Latent frames decoded beside a part of a clip and thrown away: the temporal decoder looks at neighbours."""
DECODER_LAYERS: Final = 11
"""How many times the decoder's narrowest layer, at full size, is there at once; from measured peaks."""
NETWORK_LAYERS: Final = 24
"""The same for the network: its first level's width, for the two halves of a guided call."""


@final
@dataclass(frozen=True)
class VideoTraits:
    """What an editor has to know of a model before it prepares a clip.

    A clip of `k * frame_stride + 1` frames becomes `k + 1` latent frames (any number, where the stride is 1).
    Sides are multiples of `size_multiple`; `native_frames` is the length that the model was trained on,
    `native_pixels` the picture area.
    """

    frame_stride: int
    size_multiple: int
    latent_factor: int
    latent_channels: int
    native_frames: int
    native_pixels: int

    @property
    def one_latent_per_frame(self) -> bool:
        """Whether every frame has a latent of its own, so that latents can be handed over."""
        return self.frame_stride == 1

    def padded_length(self, frames: int) -> int:
        """Return how many frames a clip must have at least for every latent frame to be filled."""
        return -(-(frames - 1) // self.frame_stride) * self.frame_stride + 1


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
    def traits(self) -> VideoTraits:
        """Sizes and conditioning of the model."""
        ...

    @property
    def identity(self) -> str:
        """Hash of the weights and of how they are run."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the networks run and latents belong."""
        ...

    def with_conditioning(self, *, fps: int, motion_bucket_id: int, noise_aug_strength: float) -> Self:
        """Return the model with other numbers beside the picture; itself, if it takes none."""
        ...

    def encode(self, pixels: Float[Tensor, "f 3 height width"]) -> Float[Tensor, "g c h w"]:
        """Return the latents of frames in [-1, 1]: the mode, no sample."""
        ...

    def decode(
        self, latents: Float[Tensor, "g c h w"], chunk_size: int | None = None
    ) -> Float[Tensor, "f 3 height width"]:
        """Return the frames of latents, `chunk_size` latent frames at a time to save memory."""
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
        """Return what makes the model start a clip of `frames` frames with the picture `first`.

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
        """Return the noise levels of `steps` steps, of which the last `strength` part is walked."""
        ...

    def predict(
        self,
        x: Float[Tensor, "g c h w"],
        level: Level,
        condition: Condition,
        *,
        negative: Condition | None = None,
        guidance: float | Float[Tensor, " g"] = 1.0,
    ) -> Float[Tensor, "g c h w"]:
        """Return the network's prediction at a level, driven by `guidance` away from `negative`."""
        ...

    def unconditional(self, condition: Condition) -> Condition:
        """Return the condition that says nothing: what plain guidance leads away from."""
        ...


@final
@dataclass(frozen=True)
class ModelLayout:
    """What has to lie in a folder for a kind of model to be loaded from it."""

    pipeline: str
    title: str
    networks: tuple[str, ...]
    hint: str

    def load(
        self, ref: str, compute: Compute | None, parts: Callable[[Path, str, torch.dtype], P]
    ) -> tuple[P, str]:
        """Return the stock pipeline under a reference, settled, with a hash of its weights and precision.

        Args:
            ref: what the user named.
            compute: where and how exactly the networks run.
            parts: puts the pipeline together from its folder, the reference, and a precision.

        Raises:
            ModelNotFound: it is not on this machine.
            ModelMismatch: another kind of model lies there, or a part of it is missing or a pickle.
        """
        compute, folder = compute or Compute(), resolve(ref)
        if (kind := read_index(folder, ref).get("_class_name")) != self.pipeline:
            raise ModelMismatch(f"{ref} is a {kind}, not {self.title}", hint=self.hint)
        for part in self.networks:
            check_weights(folder / part, ref)
        dtype = compute.torch_dtype()
        pipe = parts(folder, ref, dtype)
        place_pipeline(pipe, compute)
        return pipe, f"{folder_identity(folder)} {dtype}"


SVD_LAYOUT: Final = ModelLayout(
    "StableVideoDiffusionPipeline",
    "an image-to-video model of the Stable Video Diffusion kind",
    ("unet", "vae", "image_encoder"),
    "name Stable Video Diffusion (svd), or tiny:svd, which works without a download",
)


def steps_within(steps: int, strength: float) -> int:
    """Return how many of `steps` levels lie within `strength`, rounded down as diffusers rounds.

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
class SvdCondition:
    """What Stable Video Diffusion is conditioned on, by diffusers' names.

    `image_latents` stand beside every frame in the network's input; `image_embeds` is CLIP's of the picture;
    `added_time_ids` are the frame rate less one, the motion bucket, and how strongly the picture was noised.
    """

    image_latents: Float[Tensor, "c h w"]
    image_embeds: Float[Tensor, " d"]
    added_time_ids: Float[Tensor, " 3"]

    @property
    def identity(self) -> str:
        """Hash of the three tensors."""
        return identity((self.image_latents, self.image_embeds, self.added_time_ids))


@final
@dataclass(frozen=True)
class SvdConditioning:
    """What Stable Video Diffusion is told beside a picture, by diffusers' names; defaults are its pipeline's.

    `noise_aug_strength` is both the deviation of the noise on the picture and the number that the network is
    told of it; `clip_resize` is how the picture is brought to CLIP's size, "blurred" as diffusers' pipeline
    does or "antialiased" as Videoshop does.
    """

    fps: int = 7
    motion_bucket_id: int = 127
    noise_aug_strength: float = 0.02
    clip_resize: ClipResize = "blurred"


@final
class StableVideo:
    """Stable Video Diffusion (14 or 25 frames, or any model of its layout) as an `ImageToVideo`.

    Args:
        pipe: the stock pipeline; its parts are used as they are and are never changed.
        conditioning: what the model is told beside the picture.
        weights: a hash of the weights where one is known; else they are hashed when it is first asked for.

    Example:
        ```python
        model = StableVideo.from_pretrained("./stable-video-diffusion-img2vid")
        latents = model.encode(video.pixels())
        ```
    """

    def __init__(
        self,
        pipe: StableVideoDiffusionPipeline,
        conditioning: SvdConditioning | None = None,
        *,
        weights: str = "",
    ) -> None:
        self._pipe = pipe
        self._conditioning = conditioning or SvdConditioning()
        self._weights = weights

    @classmethod
    def wrap(cls, pipe: StableVideoDiffusionPipeline) -> Self:
        """Return the model around a pipeline that is already loaded, on its device and in its precision."""
        return cls(pipe)

    @classmethod
    def from_pretrained(cls, ref: str, compute: Compute | None = None) -> Self:
        """Load the model that `ref` names, from this machine only.

        Raises:
            ModelNotFound: it is not here; the hint says how to get it.
            ModelMismatch: the folder holds something else than Stable Video Diffusion in safetensors.
        """
        pipe, weights = SVD_LAYOUT.load(ref, compute, _svd_parts)
        return cls(pipe, weights=weights)

    def with_conditioning(
        self,
        *,
        fps: int = 7,
        motion_bucket_id: int = 127,
        noise_aug_strength: float = 0.02,
        clip_resize: ClipResize = "blurred",
    ) -> "StableVideo":
        """Return the same model, told other numbers beside the picture."""
        told = SvdConditioning(fps, motion_bucket_id, noise_aug_strength, clip_resize)
        return StableVideo(self._pipe, told, weights=self._weights)

    @property
    def pipe(self) -> StableVideoDiffusionPipeline:
        """The stock pipeline inside."""
        return self._pipe

    @property
    def conditioning(self) -> SvdConditioning:
        """What the model is told beside the picture."""
        return self._conditioning

    @cached_property
    def traits(self) -> VideoTraits:
        """Sizes of the model, from its own configuration."""
        return svd_traits(self._pipe.unet.config, self._pipe.vae.config)

    @property
    def identity(self) -> str:
        """Hash of the weights, the precision, and what the model is told beside the picture."""
        return self._identity

    @cached_property
    def _identity(self) -> str:
        parts = {name: getattr(self._pipe, name) for name in ("unet", "vae", "image_encoder")}
        config = sorted((key, repr(value)) for key, value in self._pipe.scheduler.config.items())
        return identity((self._weights or weights_identity(parts, repr(config)), self._conditioning))

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
        """Return the scaled mode of the VAE, a few frames at a time."""
        parts = [self._modes(pixels[i : i + ENCODE_CHUNK]) for i in range(0, len(pixels), ENCODE_CHUNK)]
        return torch.cat(parts).mul_(self.scale)

    def _modes(self, pixels: Float[Tensor, "f 3 height width"]) -> Float[Tensor, "f c h w"]:
        vae = self._pipe.vae
        # Channels last is how the authors' code hands the frames over; on a CPU the convolutions round
        # differently.
        laid_out = pixels.to(self.device, vae.dtype).contiguous(memory_format=torch.channels_last)
        return cast(Tensor, vae.encode(laid_out).latent_dist.mode()).float()

    @torch.no_grad()
    def decode(
        self, latents: Float[Tensor, "f c h w"], chunk_size: int | None = None
    ) -> Float[Tensor, "f 3 height width"]:
        """Return the frames; a part of a clip is decoded beside its neighbours, which hides the seam."""
        size, vae = chunk_size or len(latents), self._pipe.vae
        parts = []
        for first in range(0, len(latents), size):
            before, after = min(first, DECODE_OVERLAP), DECODE_OVERLAP
            near = latents[first - before : first + size + after] / self.scale
            with self._halved():
                frames = vae.decode(near.to(self.device, vae.dtype), num_frames=len(near)).sample
            parts.append(frames[before : before + size].float())
        return torch.cat(parts)

    def _halved(self) -> torch.autocast:
        """Run a decoder whose weights are in full precision as fast as the network beside it."""
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
    ) -> SvdCondition:
        """Return the condition of a still picture, the same for any prompt and any number of frames."""
        if latent is None:
            strength = self._conditioning.noise_aug_strength
            noised = first if noise is None else first + strength * noise.to(first)
            latent = self.encode(noised[None])[0]
        return self.condition_of(latent / self.scale, self.embed_image(first))

    def condition_of(
        self, image_latents: Float[Tensor, "c h w"], image_embeds: Float[Tensor, " d"]
    ) -> SvdCondition:
        """Return a condition from its parts: unscaled latents, and CLIP's embedding."""
        told = self._conditioning
        # Stable Video Diffusion was trained with the frame rate less one.
        numbers = [told.fps - 1, told.motion_bucket_id, told.noise_aug_strength]
        ids = torch.tensor(numbers, device=image_embeds.device).float()
        return SvdCondition(image_latents, image_embeds, ids)

    @torch.no_grad()
    def embed_image(self, picture: Float[Tensor, "3 height width"]) -> Float[Tensor, " d"]:
        """Return CLIP's embedding of a picture in [-1, 1]."""
        clip = self._pipe.image_encoder
        seen = self.clip_input(picture[None])
        return cast(Tensor, clip(seen.to(self.device, clip.dtype)).image_embeds)[0].float()

    def clip_input(self, pictures: Float[Tensor, "f 3 height width"]) -> Float[Tensor, "f 3 side side"]:
        """Return pictures in [-1, 1] the size, range and colour balance that CLIP was trained on."""
        side = int(self._pipe.image_encoder.config.image_size)
        resize = _shrink_blurred if self._conditioning.clip_resize == "blurred" else _shrink_antialiased
        mean, std = torch.tensor([CLIP_MEAN, CLIP_STD]).to(pictures)[..., None, None]
        return cast(Tensor, ((resize(pictures, side) + 1) / 2 - mean) / std)

    def schedule(self, steps: int, strength: float, latents: Float[Tensor, "f c h w"]) -> Schedule:  # noqa: ARG002
        """Return the levels of the model's own Euler scheduler."""
        scheduler = EulerDiscreteScheduler.from_config(self._pipe.scheduler.config)
        # As an array: it would be read as one, and NumPy 2 warns about how tensors are turned into arrays.
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.numpy()
        scheduler.set_timesteps(steps)
        times = [*scheduler.timesteps.tolist(), 0.0]
        levels = [
            Level(1.0, b, t, "v_prediction") for b, t in zip(scheduler.sigmas.tolist(), times, strict=True)
        ]
        return Schedule(tuple(levels), steps - steps_within(steps, strength))

    @torch.no_grad()
    def predict(
        self,
        x: Float[Tensor, "f c h w"],
        level: Level,
        condition: Condition,
        *,
        negative: Condition | None = None,
        guidance: float | Float[Tensor, " f"] = 1.0,
    ) -> Float[Tensor, "f c h w"]:
        """Return the v-prediction; two conditions are one call on a batch of two, `negative` in front."""
        given = [condition] if negative is None else [negative, condition]
        conditions = [one for one in given if isinstance(one, SvdCondition)]
        assert len(conditions) == len(given), "a condition of another model"
        scaled, unet = x / (level.signal**2 + level.noise**2) ** 0.5, self._pipe.unet
        image_latents = torch.stack([one.image_latents.expand_as(scaled) for one in conditions])
        image_embeds = torch.stack([one.image_embeds[None] for one in conditions])
        predicted = unet(
            torch.cat([scaled.expand_as(image_latents), image_latents], dim=2).to(self.device, unet.dtype),
            torch.tensor(level.t, dtype=torch.float32, device=self.device),
            encoder_hidden_states=image_embeds.to(self.device, unet.dtype),
            added_time_ids=torch.stack([one.added_time_ids for one in conditions]).to(
                self.device, unet.dtype
            ),
            return_dict=False,
        )[0].to(x)
        return predicted[0] if negative is None else guided(predicted[0], predicted[1], guidance)

    def unconditional(self, condition: Condition) -> SvdCondition:
        """Return zeros in place of the picture, twice, and the same numbers."""
        assert isinstance(condition, SvdCondition), "a condition of another model"
        nothing = torch.zeros_like(condition.image_latents), torch.zeros_like(condition.image_embeds)
        return SvdCondition(*nothing, condition.added_time_ids)


def place_pipeline(pipe: DiffusionPipeline, compute: Compute) -> None:
    """Bring a pipeline's networks where they run, or where they wait to be called."""
    device = compute.torch_device()
    if compute.offload == "none" or device.type == "cpu":  # where else could they wait
        pipe.to(device)
    elif compute.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.enable_sequential_cpu_offload(device=device)


def _svd_parts(folder: Path, ref: str, dtype: torch.dtype) -> StableVideoDiffusionPipeline:
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


def svd_traits(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> VideoTraits:
    """Return the sizes of a model of Stable Video Diffusion's layout from the configurations of its parts."""
    factor, side = 2 ** (len(vae["block_out_channels"]) - 1), unet["sample_size"]
    # One number is the side of a square of the area meant: Stable Video Diffusion says 96 and means 72 x 128.
    area = side**2 if isinstance(side, int) else side[0] * side[1]
    return VideoTraits(
        frame_stride=1,
        size_multiple=factor * 2 ** (len(unet["block_out_channels"]) - 1),
        latent_factor=factor,
        latent_channels=int(vae["latent_channels"]),
        native_frames=int(unet["num_frames"]),
        native_pixels=area * factor**2,
    )


def svd_activations(
    unet: Mapping[str, Any],
    vae: Mapping[str, Any],
    frames: int,
    size: tuple[int, int],
    decode_chunk_size: int | None,
) -> int:
    """Return how many numbers are held at once beside the weights, at the peak of an edit."""
    pixels, factor = math.prod(size), svd_traits(unet, vae).latent_factor
    together = min((decode_chunk_size or frames) + 2 * DECODE_OVERLAP, frames)
    decoder = together * pixels * vae["block_out_channels"][0] * DECODER_LAYERS
    network = frames * pixels // factor**2 * unet["block_out_channels"][0] * NETWORK_LAYERS
    return int(max(decoder, network))


def _shrink_antialiased(
    pictures: Float[Tensor, "f 3 height width"], side: int
) -> Float[Tensor, "f 3 side side"]:
    """Videoshop's way to CLIP's size: bilinear, antialiased."""
    return torch.nn.functional.interpolate(
        pictures, (side, side), mode="bilinear", antialias=True, align_corners=False
    )


def _shrink_blurred(pictures: Float[Tensor, "f 3 height width"], side: int) -> Float[Tensor, "f 3 side side"]:
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
