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
from typing import Any, ClassVar, Literal, Self, TypeAlias, final

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    ControlNetModel,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import (
    StableVideoDiffusionPipelineOutput,
)
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from retouch.compute import Compute
from retouch.errors import RequestError
from retouch.events import ignore
from retouch.media.io import write
from retouch.media.pictures import write_picture
from retouch.methods.diffusion_atlas.edit import edit_with as edit_atlas
from retouch.methods.diffusion_atlas.spec import SPEC as DIFFUSION_ATLAS
from retouch.methods.diffusion_atlas.spec import DiffusionAtlasParams
from retouch.methods.face.edit import edit_with as edit_face
from retouch.methods.face.spec import SPEC as FACE
from retouch.methods.face.spec import FaceParams
from retouch.methods.fatezero.edit import edit_with as edit_by_text
from retouch.methods.fatezero.spec import SPEC as FATEZERO
from retouch.methods.fatezero.spec import FateZeroParams
from retouch.methods.stablevideo.edit import edit_with as edit_keyframes
from retouch.methods.stablevideo.spec import SPEC as STABLEVIDEO
from retouch.methods.stablevideo.spec import StableVideoParams
from retouch.methods.videoshop.edit import edit_with as carry_first_frame
from retouch.methods.videoshop.spec import SPEC as VIDEOSHOP
from retouch.methods.videoshop.spec import VideoshopParams
from retouch.models.face_model import FaceModel
from retouch.models.face_words import EncodedWords
from retouch.models.image import Control, StableDiffusion
from retouch.models.image_to_video import StableVideo
from retouch.models.vocabulary import check_words, words_of
from retouch.params import Params, Role, given_as
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
                "fps": fps,
                "motion_bucket_id": motion_bucket_id,
                "noise_aug_strength": noise_aug_strength,
                "decode_chunk_size": decode_chunk_size,
                **(options or {}),
            }
            params = VIDEOSHOP.fill(given)
            assert isinstance(params, VideoshopParams)
            parts = {name: getattr(self, name) for name in ("vae", "image_encoder", "unet", "scheduler")}
            model = StableVideo.wrap(StableVideoDiffusionPipeline(**parts, feature_extractor=None))
            run = _run_in(folder, generator, _calling(self, callback_on_step_end, "sample"))
            edited = carry_first_frame(model, clip, params, run)
            return StableVideoDiffusionPipelineOutput(frames=_as_asked(edited.video, output_type))


@final
class FateZeroPipeline(DiffusionPipeline):  # type: ignore[misc]
    """FateZero over the parts of a Stable Diffusion pipeline.

    Example:
        ```python
        pipe = FateZeroPipeline.from_pretrained("./stable-diffusion-v1-5").to("cuda")
        edit = "a silver jeep, watercolor"
        frames = pipe(video=frames, source_prompt="a silver jeep", prompt=edit).frames[0]
        ```
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components: ClassVar = ["safety_checker", "feature_extractor", "image_encoder"]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: DDIMScheduler,
        safety_checker: object | None = None,
        feature_extractor: object | None = None,
        image_encoder: object | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
        )

    def __call__(
        self,
        video: Frames,
        prompt: str,
        *,
        source_prompt: str,
        negative_prompt: str | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        cross_replace_steps: float | None = None,
        self_replace_steps: float | None = None,
        preset: str | None = None,
        anyway: bool = False,
        generator: torch.Generator | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: Callback | None = None,
        options: Mapping[str, object] | None = None,
    ) -> StableVideoDiffusionPipelineOutput:
        """Shows `prompt` where the clip shows `source_prompt`.

        Args:
            video: the frames, as pictures, as bytes, or as numbers from 0 to 1.
            prompt: what the edited clip should show.
            source_prompt: what the clip shows now.
            negative_prompt: what guidance leads away from; the source prompt if not given.
            num_inference_steps: denoising steps, and as many of inversion.
            guidance_scale: how strongly the prompt steers.
            cross_replace_steps: share of the steps in which cross-attention is the source's.
            self_replace_steps: share of the steps in which self-attention is the source's.
            preset: one of the method's presets, for what is not given here.
            anyway: go on with words that the model says it was not taught.
            generator: gives the seed of the run.
            output_type: "pil" for pictures, "np" or "pt" for numbers from 0 to 1.
            callback_on_step_end: called after each step of the way down with `latents`, which it may replace.
            options: any other parameter of the method, by its own name.

        Returns:
            Frames as diffusers' pipelines give them: a batch of one clip.
        """
        clip = _clip(video)
        asked = {
            "steps": num_inference_steps,
            "guidance": guidance_scale,
            "cross_until": cross_replace_steps,
            "self_until": self_replace_steps,
            "negative_prompt": negative_prompt,
            "guide_from": None if negative_prompt is None else "nothing",
        }
        given: dict[str, object] = {name: value for name, value in asked.items() if value is not None}
        given |= {"source_prompt": source_prompt, "prompt": prompt, **(options or {})}
        params = FATEZERO.fill(given, preset=preset)
        assert isinstance(params, FateZeroParams)
        _check_prompts(self, params, anyway=anyway)
        with TemporaryDirectory() as name:
            run = _run_in(Path(name), generator, _calling(self, callback_on_step_end, "edit"))
            edited = edit_by_text(_image_model(self), clip, params, run)
            return StableVideoDiffusionPipelineOutput(frames=_as_asked(edited.video, output_type))


@final
class DiffusionAtlasPipeline(DiffusionPipeline):  # type: ignore[misc]
    """DiffusionAtlas, reconstructed, over the parts of a Stable Diffusion pipeline.

    Example:
        ```python
        pipe = DiffusionAtlasPipeline.from_pretrained("./stable-diffusion-v1-5").to("cuda")
        words = {"source_prompt": "a red car in a street", "prompt": "a blue car in a street"}
        frames = pipe(video=frames, mask=masks, **words).frames[0]
        ```
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components: ClassVar = ["safety_checker", "feature_extractor", "image_encoder"]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: DDIMScheduler,
        safety_checker: object | None = None,
        feature_extractor: object | None = None,
        image_encoder: object | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
        )

    def __call__(
        self,
        video: Frames,
        mask: Frames,
        *,
        source_prompt: str,
        prompt: str | None = None,
        ip_adapter_image: Image.Image | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        preset: str | None = None,
        anyway: bool = False,
        generator: torch.Generator | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: Callback | None = None,
        options: Mapping[str, object] | None = None,
    ) -> StableVideoDiffusionPipelineOutput:
        """Edit the object that a mask shows in `video`; every frame follows.

        Args:
            video: the frames, as pictures, as bytes, or as numbers from 0 to 1.
            mask: where the object is, in the same kinds: white in every frame.
            source_prompt: what the clip shows now.
            prompt: what it should show; its words stay if not given.
            ip_adapter_image: a picture of what the object should look like.
            num_inference_steps: denoising steps, and as many of inversion.
            guidance_scale: how strongly the prompt steers.
            preset: one of the method's presets, for what is not given here.
            anyway: go on with words that the model says it was not taught.
            generator: gives the seed of the run.
            output_type: "pil" for pictures, "np" or "pt" for numbers from 0 to 1.
            callback_on_step_end: called after each step of the way down with `latents`, which it may replace.
            options: any other parameter of the method, by its own name.

        Returns:
            Frames as diffusers' pipelines give them: a batch of one clip.
        """
        asked = {"prompt": prompt, "steps": num_inference_steps, "guidance": guidance_scale}
        given: dict[str, object] = {name: value for name, value in asked.items() if value is not None}
        with TemporaryDirectory() as name:
            folder = Path(name)
            given |= {"source_prompt": source_prompt, "mask": write(_clip(mask), folder / "mask")}
            if ip_adapter_image is not None:
                reference = np.asarray(ip_adapter_image.convert("RGBA"))
                given["reference"] = write_picture(reference, folder / "reference.png")
            params = DIFFUSION_ATLAS.fill({**given, **(options or {})}, preset=preset)
            assert isinstance(params, DiffusionAtlasParams)
            _check_prompts(self, params, anyway=anyway)
            run = _run_in(folder / "run", generator, _calling(self, callback_on_step_end, "edit object"))
            edited = edit_atlas(_image_model(self), _clip(video), params, run)
            return StableVideoDiffusionPipelineOutput(frames=_as_asked(edited.video, output_type))


@final
class StableVideoPipeline(DiffusionPipeline):  # type: ignore[misc]
    """StableVideo over the parts of a Stable Diffusion pipeline with a ControlNet for edges.

    Example:
        ```python
        canny = ControlNetModel.from_pretrained("./sd-controlnet-canny")
        pipe = StableVideoPipeline.from_pretrained("./stable-diffusion-v1-5", controlnet=canny).to("cuda")
        frames = pipe(video=frames, mask=masks, prompt="a blue car in a street").frames[0]
        ```
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components: ClassVar = ["safety_checker", "feature_extractor", "image_encoder"]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: DDIMScheduler,
        controlnet: ControlNetModel | None = None,
        safety_checker: object | None = None,
        feature_extractor: object | None = None,
        image_encoder: object | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            controlnet=controlnet,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
        )

    def __call__(
        self,
        video: Frames,
        mask: Frames,
        prompt: str,
        *,
        negative_prompt: str = "",
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        controlnet_conditioning_scale: float | None = None,
        strength: float | None = None,
        preset: str | None = None,
        anyway: bool = False,
        generator: torch.Generator | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: Callback | None = None,
        options: Mapping[str, object] | None = None,
    ) -> StableVideoDiffusionPipelineOutput:
        """Edit the object that a mask shows in key frames of `video`, and carry it through all frames.

        Args:
            video: the frames, as pictures, as bytes, or as numbers from 0 to 1.
            mask: where the object is, in the same kinds: white in every frame.
            prompt: what the edited clip should show.
            negative_prompt: what it should not show.
            num_inference_steps: denoising steps of a key frame.
            guidance_scale: how strongly the prompt steers.
            controlnet_conditioning_scale: how firmly the source's edges hold the edit.
            strength: how far back into noise a key frame goes.
            preset: one of the method's presets, for what is not given here.
            anyway: go on with words that the model says it was not taught.
            generator: gives the seed of the run.
            output_type: "pil" for pictures, "np" or "pt" for numbers from 0 to 1.
            callback_on_step_end: called after each step of a key frame with `latents`, which it may replace.
            options: any other parameter of the method, by its own name, such as `edits`.

        Returns:
            Frames as diffusers' pipelines give them: a batch of one clip.
        """
        asked = {
            "steps": num_inference_steps,
            "guidance": guidance_scale,
            "strength": strength,
            "edges": controlnet_conditioning_scale,
        }
        given: dict[str, object] = {name: value for name, value in asked.items() if value is not None}
        given |= {"prompt": prompt, "negative_prompt": negative_prompt}
        with TemporaryDirectory() as name:
            folder = Path(name)
            given["mask"] = write(_clip(mask), folder / "mask")
            params = STABLEVIDEO.fill({**given, **(options or {})}, preset=preset)
            assert isinstance(params, StableVideoParams)
            _check_prompts(self, params, anyway=anyway)
            sd = _image_model(self)
            control = Control(self.controlnet) if self.controlnet is not None and params.edges else None
            if control:
                control.check_fit(sd)
            run = _run_in(folder / "run", generator, _calling(self, callback_on_step_end, "keyframe"))
            edited = edit_keyframes(sd, control, _clip(video), params, run)
            return StableVideoDiffusionPipelineOutput(frames=_as_asked(edited.video, output_type))


@final
class FacePipeline:
    """The face method, called like a pipeline; its model has no parts of diffusers' layout.

    Example:
        ```python
        pipe = FacePipeline.from_pretrained("tiny:face")
        frames = pipe(video=frames, attributes={"glasses": 1.0}).frames[0]
        ```
    """

    def __init__(self, model: FaceModel) -> None:
        """Use a model that is loaded already."""
        self.model = model

    @classmethod
    def from_pretrained(cls, ref: str, *, device: str = "auto") -> Self:
        """Load the model that `ref` names, from this machine only, onto a device.

        Raises:
            ModelNotFound: it is not here.
            ModelMismatch: the folder holds another kind of model, or one that is damaged.
        """
        return cls(FaceModel.from_pretrained(ref, Compute(device=device)))

    def __call__(
        self,
        video: Frames,
        *,
        attributes: Mapping[str, float] | None = None,
        prompt: str = "",
        identity_image: Image.Image | None = None,
        strength: float = 1.0,
        face: int | None = None,
        num_inference_steps: int | None = None,
        preset: str | None = None,
        generator: torch.Generator | None = None,
        output_type: OutputType = "pil",
        options: Mapping[str, object] | None = None,
    ) -> StableVideoDiffusionPipelineOutput:
        """Change who the face in `video` is, once for all frames.

        Args:
            video: the frames, as pictures, as bytes, or as numbers from 0 to 1.
            attributes: what the face should show and how strongly; 1 goes all the way, below 0 takes it away.
            prompt: what the face should show, in words.
            identity_image: a picture of somebody else, whose identity the face takes on.
            strength: how far words or the other identity are followed.
            face: which face, counted from the left, where there are several.
            num_inference_steps: steps up to noise, and as many down.
            preset: one of the method's presets, for what is not given here.
            generator: gives the seed of the run.
            output_type: "pil" for pictures, "np" or "pt" for numbers from 0 to 1.
            options: any other parameter of the method, by its own name, such as `finder`.

        Returns:
            Frames as diffusers' pipelines give them: a batch of one clip.
        """
        asked = {"steps": num_inference_steps, "face": face}
        given: dict[str, object] = {name: value for name, value in asked.items() if value is not None}
        given["attribute"] = tuple(f"{name}={value}" for name, value in (attributes or {}).items())
        given |= {"strength": strength, "prompt": prompt}
        with TemporaryDirectory() as name:
            folder = Path(name)
            if identity_image is not None:
                picture = np.asarray(identity_image.convert("RGB"))
                given["identity"] = write_picture(picture, folder / "identity.png")
            params = FACE.fill({**given, **(options or {})}, preset=preset)
            assert isinstance(params, FaceParams)
            if self.model.attributes is not None:
                for attribute in attributes or {}:
                    self.model.attributes.number(attribute)
            if prompt and isinstance(self.model.words, EncodedWords):
                known = frozenset(self.model.words.network.words)
                prompts = [prompt, params.source_prompt]
                check_words(prompts, known, model="this model", anyway=False, tell=ignore)
            run = _run_in(folder / "run", generator)
            edited = edit_face(self.model, _clip(video), params, run)
            return StableVideoDiffusionPipelineOutput(frames=_as_asked(edited.video, output_type))


def _check_prompts(pipe: DiffusionPipeline, params: Params, *, anyway: bool) -> None:
    """Refuse words that a pipeline's model says it was not taught."""
    prompts = [text for _, text in given_as(params, Role.PROMPT)]
    known = words_of(pipe.tokenizer.init_kwargs)
    check_words(prompts, known, model="this model", anyway=anyway, tell=ignore)


def _run_in(folder: Path, generator: torch.Generator | None, on_step: OnStep | None = None) -> Run:
    """Return a run that keeps what it must in a folder, with a generator's seed."""
    run = Run.alone(folder, seed=0 if generator is None else generator.initial_seed())
    return dataclasses.replace(run, on_step=on_step)


def _image_model(pipe: DiffusionPipeline) -> StableDiffusion:
    """Return our model over the parts of a pipeline of Stable Diffusion's layout."""
    return StableDiffusion(
        tokenizer=pipe.tokenizer,
        text_encoder=pipe.text_encoder,
        unet=pipe.unet,
        vae=pipe.vae,
        scheduler_config=pipe.scheduler.config,
        device=torch.device(pipe._execution_device),
    )


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
    """What a run calls after each step, as diffusers' callback of one stage, which is told the time left."""
    if callback is None:
        return None

    def after(step: Step[Any], latents: Tensor) -> Tensor:
        if step.stage != stage:
            return latents
        given = callback(pipe, step.index, float(step.item[0].t), {"latents": latents[None]})
        return given.get("latents", latents[None])[0]

    return after
