"""The methods as diffusers pipelines: loaded, placed and called like one, with diffusers' names.

Thin on purpose: names are translated, the method's own function is called, names are translated back.
What a pipeline keeps goes to a temporary folder and is gone when the call returns; use `retouch.edit`
where results should be kept.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeAlias, final

import numpy as np
import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import (
    StableVideoDiffusionPipelineOutput,
)
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from retouch.errors import RequestError
from retouch.media.pictures import write_picture
from retouch.methods.videoshop.edit import edit_with as carry_first_frame
from retouch.methods.videoshop.spec import SPEC as VIDEOSHOP
from retouch.methods.videoshop.spec import VideoshopParams
from retouch.models.image_to_video import StableVideo
from retouch.run import OnStep, Run, Step
from retouch.video import Video

Frames: TypeAlias = Sequence[Image.Image] | UInt8[np.ndarray, "f h w 3"] | Float[Tensor, "f 3 h w"]
OutputType: TypeAlias = Literal["pil", "np", "pt"]
Callback: TypeAlias = Callable[[DiffusionPipeline, int, float, dict[str, Tensor]], Mapping[str, Tensor]]


@final
class VideoshopPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Videoshop over the parts of a Stable Video Diffusion pipeline.

    Example:
        ```python
        pipe = VideoshopPipeline.from_pretrained("./stable-video-diffusion-img2vid").to("cuda")
        frames = pipe(video=frames, image=edited_first_frame, num_inference_steps=25).frames[0]
        ```
    """

    model_cpu_offload_seq = "image_encoder->unet->vae"

    def __init__(
        self,
        vae: AutoencoderKLTemporalDecoder,
        image_encoder: CLIPVisionModelWithProjection,
        unet: UNetSpatioTemporalConditionModel,
        scheduler: EulerDiscreteScheduler,
        feature_extractor: CLIPImageProcessor | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae,
            image_encoder=image_encoder,
            unet=unet,
            scheduler=scheduler,
            feature_extractor=feature_extractor,
        )

    def __call__(
        self,
        video: Frames,
        image: Image.Image,
        *,
        num_inference_steps: int = 25,
        strength: float = 0.55,
        guidance_scale: float = 1.5,
        fps: int = 7,
        motion_bucket_id: int = 127,
        noise_aug_strength: float = 0.02,
        decode_chunk_size: int | None = None,
        generator: torch.Generator | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: Callback | None = None,
        options: Mapping[str, object] | None = None,
    ) -> StableVideoDiffusionPipelineOutput:
        """Carries the edited first frame `image` through `video`.

        Args:
            video: the frames, as pictures, as bytes, or as numbers from 0 to 1.
            image: the first frame as it was edited; where it is transparent, the old one shows through.
            num_inference_steps: denoising steps, of which the last `strength` part is walked both ways.
            strength: how far back into noise the source goes.
            guidance_scale: how strongly the edit is driven away from the old first frame; 1 is not at all.
            fps: frames a second that the model is told.
            motion_bucket_id: how much motion the model is told to expect.
            noise_aug_strength: noise on the pictures that the model starts from.
            decode_chunk_size: frames decoded together; all if not given.
            generator: decides what is drawn, by the seed that it was made with.
            output_type: "pil" for pictures, "np" or "pt" for numbers from 0 to 1.
            callback_on_step_end: called after each step of the way down with `latents`, which it may replace.
            options: any other parameter of the method, by its own name.

        Returns:
            Frames as diffusers' pipelines give them: a batch of one clip.
        """
        clip = _clip(video)
        with TemporaryDirectory() as name:
            folder = Path(name)
            given = {
                "first": write_picture(np.asarray(image.convert("RGBA")), folder / "first.png"),
                "steps": num_inference_steps,
                "strength": strength,
                "guidance": guidance_scale,
                "told_rate": fps,
                "motion": motion_bucket_id,
                "picture_noise": noise_aug_strength,
                "decode_at_once": decode_chunk_size,
                **(options or {}),
            }
            params = VIDEOSHOP.fill(given)
            assert isinstance(params, VideoshopParams)
            parts = {name: getattr(self, name) for name in ("vae", "image_encoder", "unet", "scheduler")}
            model = StableVideo.wrap(StableVideoDiffusionPipeline(**parts, feature_extractor=None))
            run = Run.alone(folder, seed=0 if generator is None else generator.initial_seed())
            run = dataclasses.replace(run, on_step=_calling(self, callback_on_step_end, "sample"))
            edited = carry_first_frame(model, clip, params, run)
            return StableVideoDiffusionPipelineOutput(frames=_as_asked(edited.video, output_type))


def _clip(frames: Frames) -> Video:
    """A clip of frames as diffusers users have them; their rate is no matter to a pipeline."""
    if isinstance(frames, Tensor):
        pictures = (frames.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    elif isinstance(frames, np.ndarray):
        pictures = np.ascontiguousarray(frames.transpose(0, 3, 1, 2))
    else:
        pictures = np.stack([np.asarray(picture.convert("RGB")).transpose(2, 0, 1) for picture in frames])
    return Video(pictures, Fraction(7))


def _as_asked(video: Video, output_type: OutputType) -> Any:
    """A batch of one clip, in the kind that was asked for."""
    if output_type == "pil":
        return [[Image.fromarray(frame.transpose(1, 2, 0)) for frame in np.asarray(video.frames)]]
    numbers = np.asarray(video.frames, np.float32)[None] / 255
    if output_type == "pt":
        return torch.from_numpy(numbers)
    if output_type == "np":
        return numbers.transpose(0, 1, 3, 4, 2)
    raise RequestError(f"output_type is {output_type!r}", hint="ask for pil, np or pt")


def _calling(pipe: DiffusionPipeline, callback: Callback | None, stage: str) -> OnStep | None:
    """What a run calls after each step, as diffusers' callback of one stage."""
    if callback is None:
        return None

    def after(step: Step[Any], latents: Tensor) -> Tensor:
        if step.stage != stage:
            return latents
        given = callback(pipe, step.index, step.item[0].time, {"latents": latents[None]})
        return given.get("latents", latents[None])[0]

    return after
