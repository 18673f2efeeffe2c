"""Image-to-video models on a rectified flow: Wan, behind the same protocol as Stable Video Diffusion.

What is different here: several frames share a latent (the first stands alone), the picture enters as the
first frame of an otherwise empty clip, the model reads a prompt, and a sample is a straight mixture of
clean latents and noise.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Self, cast, final

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline, WanTransformer3DModel
from jaxtyping import Float
from torch import Tensor

from retouch.compute import Compute
from retouch.errors import ModelMismatch
from retouch.identity import identity
from retouch.models.image_to_video import (
    Condition,
    ModelLayout,
    VideoTraits,
    steps_within,
)
from retouch.models.loading import weights_identity
from retouch.models.noise_path import Level, Schedule, guided

NATIVE_FRAMES, NATIVE_PIXELS = 81, 480 * 832
"""What Wan was trained on; its configuration does not say."""
PROMPT_LENGTH: Final = 512
"""The length to which Wan's prompts are padded."""
WAN_LAYOUT: Final = ModelLayout(
    "WanImageToVideoPipeline",
    "an image-to-video Wan",
    ("transformer", "vae", "text_encoder"),
    "name a Wan I2V model",
)


@final
@dataclass(frozen=True, eq=False)
class WanCondition:
    """What Wan is conditioned on: a clip that is only begun, a prompt, and what CLIP sees of the picture.

    `latent_condition` stands beside the sample in the network's input: where a frame is given, and its
    latents.
    """

    latent_condition: Float[Tensor, "g k h w"]
    prompt_embeds: Float[Tensor, "n d"]
    image_embeds: Float[Tensor, "m e"] | None

    @property
    def identity(self) -> str:
        """Hash of the tensors."""
        return identity((self.latent_condition, self.prompt_embeds, self.image_embeds))


@final
class WanVideo:
    """Wan 2.1 or 2.2, the kinds that see the picture beside the sample, as an `ImageToVideo`."""

    def __init__(self, pipe: WanImageToVideoPipeline, *, weights: str = "") -> None:
        if pipe.config.expand_timesteps:
            raise ModelMismatch(
                "this Wan keeps its first frame in the sample, which is not supported",
                hint="use an image-to-video Wan that takes the picture beside the sample (2.1, or 2.2 A14B)",
            )
        self._pipe = pipe
        self._weights = weights

    @classmethod
    def wrap(cls, pipe: WanImageToVideoPipeline) -> Self:
        """Return the model around a pipeline that is already loaded, on its device and in its precision."""
        return cls(pipe)

    @classmethod
    def from_pretrained(cls, ref: str, compute: Compute | None = None) -> Self:
        """Load the model that `ref` names, from this machine only.

        Raises:
            ModelNotFound: it is not here; the hint says how to get it.
            ModelMismatch: it is another kind of model, or not in safetensors.
        """
        pipe, weights = WAN_LAYOUT.load(ref, compute, _wan_parts)
        return cls(pipe, weights=weights)

    @cached_property
    def traits(self) -> VideoTraits:
        """Sizes of the model, from its own configuration where it says them."""
        vae, patch = self._pipe.vae.config, self._transformers()[0].config.patch_size
        return VideoTraits(
            frame_stride=int(vae.scale_factor_temporal),
            size_multiple=int(vae.scale_factor_spatial * patch[1]),
            latent_factor=int(vae.scale_factor_spatial),
            latent_channels=int(vae.z_dim),
            native_frames=NATIVE_FRAMES,
            native_pixels=NATIVE_PIXELS,
        )

    @property
    def identity(self) -> str:
        """Hash of the weights and the schedule."""
        return self._identity

    @cached_property
    def _identity(self) -> str:
        parts = {f"transformer{i}": net for i, net in enumerate(self._transformers())}
        parts |= {name: getattr(self._pipe, name) for name in ("vae", "text_encoder")}
        config = sorted((key, repr(value)) for key, value in self._pipe.scheduler.config.items())
        return self._weights or weights_identity(parts, repr(config))

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return torch.device(self._pipe._execution_device)

    def with_conditioning(
        self,
        *,
        fps: int,  # noqa: ARG002 - a part of the protocol
        motion_bucket_id: int,  # noqa: ARG002
        noise_aug_strength: float,  # noqa: ARG002
    ) -> Self:
        """Return the model itself: Wan takes no numbers beside the picture."""
        return self

    @torch.no_grad()
    def encode(self, pixels: Float[Tensor, "f 3 height width"]) -> Float[Tensor, "g c h w"]:
        """Return the standardised mode; the autoencoder itself goes through time a few frames at once."""
        vae = self._pipe.vae
        clip = pixels.movedim(1, 0)[None].to(self.device, vae.dtype)
        mode = cast(Tensor, vae.encode(clip).latent_dist.mode())[0].movedim(1, 0).float()
        mean, std = self._moments(mode)
        return cast(Tensor, (mode - mean) / std)

    @torch.no_grad()
    def decode(
        self,
        latents: Float[Tensor, "g c h w"],
        chunk_size: int | None = None,  # noqa: ARG002 - the autoencoder does that itself
    ) -> Float[Tensor, "f 3 height width"]:
        """Return the frames: one of the first latent, `frame_stride` of each of the others."""
        mean, std = self._moments(latents)
        film = (latents * std + mean).movedim(1, 0)[None].to(self.device, self._pipe.vae.dtype)
        return cast(Tensor, self._pipe.vae.decode(film).sample)[0].movedim(1, 0).float()

    def _moments(self, like: Tensor) -> Float[Tensor, "2 1 c 1 1"]:
        vae = self._pipe.vae.config
        return torch.tensor([vae.latents_mean, vae.latents_std]).to(like)[:, None, :, None, None]

    @torch.no_grad()
    def condition(
        self,
        first: Float[Tensor, "3 height width"],
        *,
        frames: int,
        prompt: str = "",
        noise: Float[Tensor, "3 height width"] | None = None,  # noqa: ARG002 - a part of the protocol
        latent: Float[Tensor, "c h w"] | None = None,  # noqa: ARG002
    ) -> WanCondition:
        """Return the condition of a picture, a length and a prompt; the picture is never noised."""
        stride = self.traits.frame_stride
        film = self.encode(torch.cat([first[None], torch.zeros_like(first).expand(frames - 1, -1, -1, -1)]))
        given = torch.zeros(len(film), stride, *film.shape[2:]).to(film)
        given[0] = 1
        return WanCondition(
            torch.cat([given, film], dim=1), self._embed_prompt(prompt), self._embed_image(first)
        )

    def _embed_prompt(self, prompt: str) -> Float[Tensor, "n d"]:
        """Embed a prompt; zeros beyond its end."""
        tokens = self._pipe.tokenizer(
            [prompt], padding="max_length", max_length=PROMPT_LENGTH, truncation=True, return_tensors="pt"
        ).to(self.device)
        read = self._pipe.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state[0]
        return cast(Tensor, read * tokens.attention_mask[0, :, None]).float()

    def _embed_image(self, first: Float[Tensor, "3 height width"]) -> Float[Tensor, "m e"] | None:
        """Return what CLIP sees of the picture, one layer before its last; Wan 2.2 has no CLIP."""
        clip, extractor = self._pipe.image_encoder, self._pipe.image_processor
        if clip is None:
            return None
        picture = ((first + 1) / 2).clamp(0, 1).movedim(0, -1).cpu().numpy()
        seen = extractor(images=picture, do_rescale=False, return_tensors="pt").pixel_values
        states = clip(seen.to(self.device, clip.dtype), output_hidden_states=True).hidden_states
        return cast(Tensor, states[-2][0]).float()

    def schedule(self, steps: int, strength: float, latents: Float[Tensor, "g c h w"]) -> Schedule:  # noqa: ARG002
        """Return the levels of the model's flow, shifted as its configuration says."""
        config = self._pipe.scheduler.config
        shift = config.get("flow_shift") or config.get("shift") or 1.0
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(steps)
        times = [*scheduler.timesteps.tolist(), 0.0]
        levels = [Level(1 - b, b, t, "flow") for b, t in zip(scheduler.sigmas.tolist(), times, strict=True)]
        return Schedule(tuple(levels), steps - steps_within(steps, strength))

    @torch.no_grad()
    def predict(
        self,
        x: Float[Tensor, "g c h w"],
        level: Level,
        condition: Condition,
        *,
        negative: Condition | None = None,
        guidance: float | Float[Tensor, " g"] = 1.0,
    ) -> Float[Tensor, "g c h w"]:
        """Return noise minus clean; two conditions are one call on a batch of two, `negative` in front."""
        conditions = [one for one in (negative, condition) if isinstance(one, WanCondition)]
        assert len(conditions) == 1 + (negative is not None), "a condition of another model"
        network = self._expert(level)
        inputs = torch.stack([torch.cat([x, one.latent_condition.to(x)], dim=1) for one in conditions])
        image_embeds = [one.image_embeds for one in conditions if one.image_embeds is not None]
        predicted = network(
            inputs.movedim(1, 2).to(self.device, network.dtype),
            torch.full((len(conditions),), level.t, device=self.device),
            torch.stack([one.prompt_embeds for one in conditions]).to(self.device, network.dtype),
            torch.stack(image_embeds).to(self.device, network.dtype) if image_embeds else None,
            return_dict=False,
        )[0]
        predicted = predicted.movedim(1, 2).to(x)
        return predicted[0] if negative is None else guided(predicted[0], predicted[1], guidance)

    def _expert(self, level: Level) -> WanTransformer3DModel:
        """Return the network for a level: Wan 2.2 has one for much noise and one for little."""
        experts, boundary = self._transformers(), self._pipe.config.boundary_ratio
        return experts[-1] if boundary is not None and level.noise < boundary else experts[0]

    def _transformers(self) -> list[WanTransformer3DModel]:
        """Return the network, or the two; a pipeline may have the second alone."""
        return [net for net in (self._pipe.transformer, self._pipe.transformer_2) if net is not None]

    def unconditional(self, condition: Condition) -> WanCondition:
        """Return the same picture with an empty prompt."""
        assert isinstance(condition, WanCondition), "a condition of another model"
        return WanCondition(condition.latent_condition, self._embed_prompt(""), condition.image_embeds)


def _wan_parts(folder: Path, _ref: str, dtype: torch.dtype) -> WanImageToVideoPipeline:
    """Return the stock pipeline: safetensors only, from this machine only."""
    return WanImageToVideoPipeline.from_pretrained(
        folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True
    )
