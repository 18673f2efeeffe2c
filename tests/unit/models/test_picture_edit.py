"""Any image-edit pipeline of diffusers as an editor: real classes at tiny random size."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast, final

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    FluxTransformer2DModel,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLInpaintPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)

from retouch.compute import Compute
from retouch.errors import Cancelled, MethodError, ModelMismatch, ParamsError
from retouch.models.picture_edit import (
    PictureCanvas,
    PictureEditor,
    PipelineEditor,
    call_of,
    check_editing,
    check_references,
    editing_class,
    guidance_name,
)
from retouch.run import Run

WIDTH = 16
CPU = Compute(device="cpu", dtype="float32")
PICTURE = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
LEFT = np.broadcast_to(np.arange(40) < 20, (24, 40))
ROUNDING = 2
"""Levels by which equal edits may differ: sums of floats need not come out alike."""


def noise_scheduler() -> DDIMScheduler:
    return DDIMScheduler(steps_offset=1, clip_sample=False, set_alpha_to_one=False)


def unet(channels: int, **more: Any) -> UNet2DConditionModel:
    """A network that sees the picture, and a mask, beside the latents."""
    torch.manual_seed(channels)
    sizes = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return UNet2DConditionModel(
        in_channels=channels,
        attention_head_dim=2,
        **{"cross_attention_dim": WIDTH, **sizes, **blocks, **more},
    )


def stirred(network: Any) -> Any:
    """Networks of this kind begin near zero, and would hear of nothing that they are told."""
    for weight in network.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=1.0)
    return network


def parts_of(small_sd: Path) -> dict[str, Any]:
    return {
        "vae": AutoencoderKL.from_pretrained(small_sd / "vae"),
        "text_encoder": CLIPTextModel.from_pretrained(small_sd / "text_encoder"),
        "tokenizer": CLIPTokenizer.from_pretrained(small_sd / "tokenizer"),
    }


def instruct_pix2pix(small_sd: Path) -> StableDiffusionInstructPix2PixPipeline:
    return StableDiffusionInstructPix2PixPipeline(
        **parts_of(small_sd),
        unet=unet(8),
        scheduler=noise_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sd_inpaint(small_sd: Path) -> StableDiffusionInpaintPipeline:
    return StableDiffusionInpaintPipeline(
        **parts_of(small_sd),
        unet=unet(9),
        scheduler=noise_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl_inpaint(small_sd: Path) -> StableDiffusionXLInpaintPipeline:
    parts = parts_of(small_sd)
    config = cast("CLIPTextConfig", parts["text_encoder"].config)
    torch.manual_seed(3)
    second = CLIPTextModelWithProjection(config)
    seen = 6 * 4 + WIDTH
    embedding = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    return StableDiffusionXLInpaintPipeline(
        **parts,
        text_encoder_2=second,
        tokenizer_2=parts["tokenizer"],
        unet=unet(9, **embedding, projection_class_embeddings_input_dim=seen, cross_attention_dim=2 * WIDTH),
        scheduler=noise_scheduler(),
    )


def flux_kontext(small_sd: Path) -> FluxKontextPipeline:
    parts = parts_of(small_sd)
    vocabulary = len(parts["tokenizer"])
    torch.manual_seed(4)
    t5 = T5Config(vocab_size=vocabulary, d_model=WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        shift_factor=0.1,
        scaling_factor=0.5,
        mid_block_add_attention=False,
    )
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=True,
    )
    return FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=stirred(vae),
        text_encoder=parts["text_encoder"],
        tokenizer=parts["tokenizer"],
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=parts["tokenizer"],
        transformer=stirred(transformer),
    )


def flux2_klein(small_sd: Path) -> Flux2KleinPipeline:
    tokenizer = CLIPTokenizer.from_pretrained(small_sd / "tokenizer")
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    torch.manual_seed(5)
    text = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            num_hidden_layers=28,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
    )
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        mid_block_add_attention=False,
    )
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
    )
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=stirred(vae),
        text_encoder=text,
        tokenizer=tokenizer,
        transformer=stirred(transformer),
    )


Build = Callable[[Path], Any]
BUILDS = (
    instruct_pix2pix,
    sd_inpaint,
    sdxl_inpaint,
    flux_kontext,
    pytest.param(flux2_klein, marks=pytest.mark.slow),
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.alone(tmp_path / "run", compute=CPU)


@pytest.mark.parametrize("build", BUILDS)
def test_the_pipelines_of_diffusers_edit_a_picture(build: Build, small_sd: Path, run: Run) -> None:
    pipe = build(small_sd)
    pipe.set_progress_bar_config(disable=True)
    editor = PipelineEditor.wrap(pipe).told(steps=2, side=96)
    assert isinstance(editor, PictureEditor)

    def edited(picture: np.ndarray, seed: int) -> np.ndarray:
        made = editor.edit(picture, "a red car", mask=LEFT, seed=seed, run=run)
        assert made.shape == PICTURE.shape
        return made.astype(float)

    made = edited(PICTURE, 1)
    for other in (edited(PICTURE, 2), edited(255 - PICTURE, 1)):
        assert np.abs(made - other).mean() > 1 / 4


def test_an_inpainting_pipeline_is_told_the_mask(small_sd: Path, run: Run) -> None:
    pipe = sd_inpaint(small_sd)
    pipe.set_progress_bar_config(disable=True)
    editor = PipelineEditor.wrap(pipe).told(steps=2, side=32)
    made = [editor.edit(PICTURE, "a car", mask=mask, seed=1, run=run) for mask in (None, LEFT, ~LEFT)]
    assert not np.array_equal(made[0], made[1])
    assert not np.array_equal(made[1], made[2])


@pytest.mark.slow
def test_a_pipeline_that_reads_lists_is_shown_references(small_sd: Path, run: Run) -> None:
    pipe = flux2_klein(small_sd)
    pipe.set_progress_bar_config(disable=True)
    editor = PipelineEditor.wrap(pipe).told(steps=1, side=96)
    others = [np.full((64, 64, 3), grey, np.uint8) for grey in (20, 230)]
    made = [editor.edit(PICTURE, "a car", references=[other], seed=1, run=run) for other in others]
    assert not np.array_equal(made[0], made[1])


def test_what_a_pipeline_cannot_do_is_refused(small_sd: Path, run: Run) -> None:
    editor = PipelineEditor.wrap(instruct_pix2pix(small_sd))
    with pytest.raises(ParamsError, match="looks at no reference pictures, not at 1"):
        editor.edit(PICTURE, "a car", references=[PICTURE], seed=1, run=run)
    with pytest.raises(ParamsError, match="has no strength"):
        editor.told(strength=0.5)
    check_references(diffusers.FluxKontextInpaintPipeline, 1)
    with pytest.raises(ParamsError, match="looks at 1 reference picture, not at 2"):
        check_references(diffusers.FluxKontextInpaintPipeline, 2)
    check_references(diffusers.QwenImageEditPlusPipeline, 3)


def test_an_edit_can_be_stopped_between_two_steps(small_sd: Path, tmp_path: Path) -> None:
    asked = iter([False, False, True, True, True, True])
    run = Run.alone(tmp_path / "run", compute=CPU, stopped=lambda: next(asked))
    pipe = instruct_pix2pix(small_sd)
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(Cancelled):
        PipelineEditor.wrap(pipe).told(steps=5, side=32).edit(PICTURE, "a car", seed=1, run=run)


def test_a_folder_is_loaded_by_the_class_that_its_index_states(
    small_sd: Path, tmp_path: Path, run: Run
) -> None:
    folder = tmp_path / "pix2pix"
    instruct_pix2pix(small_sd).save_pretrained(folder)
    assert editing_class(str(folder)) is StableDiffusionInstructPix2PixPipeline
    editor = run.load(str(folder), PipelineEditor)
    wrapped = PipelineEditor.wrap(instruct_pix2pix(small_sd)).told(steps=2, side=32)
    editors = (editor.told(steps=2, side=32), wrapped)
    wrapped.pipe.set_progress_bar_config(disable=True)
    first, second = (one.edit(PICTURE, "a car", seed=1, run=run) for one in editors)
    assert np.abs(first.astype(float) - second).max() <= ROUNDING
    assert editor.identity != editor.told(steps=3).identity
    assert wrapped.identity != PipelineEditor.wrap(sd_inpaint(small_sd)).told(steps=2, side=32).identity

    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "weights.bin")
    with pytest.raises(ModelMismatch, match="pickle"):
        PipelineEditor.from_pretrained(str(folder), CPU)
    index = json.loads((folder / "model_index.json").read_text())
    for name, said in {
        "StableDiffusionPipeline": "takes no picture",
        "StableDiffusionControlNetPipeline": "works with controlnet_conditioning_scale",
        "NoSuchPipeline": "does not know",
    }.items():
        (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": name}))
        with pytest.raises(ModelMismatch, match=said):
            PipelineEditor.from_pretrained(str(folder), CPU)


EDITORS = (
    "StableDiffusionXLInstructPix2PixPipeline StableDiffusionImg2ImgPipeline FluxKontextInpaintPipeline "
    "FluxFillPipeline Flux2Pipeline QwenImageEditPipeline QwenImageEditPlusPipeline "
    "QwenImageEditInpaintPipeline LongCatImageEditPipeline StableDiffusion3InpaintPipeline"
)
OTHERS = {
    "StableDiffusionXLPipeline": "takes no picture",
    "StableVideoDiffusionPipeline": "reads no words",
    "StableDiffusionUpscalePipeline": "works with noise_level",
    "StableDiffusionLatentUpscalePipeline": "does other things",
    "StableDiffusionXLControlNetPipeline": "works with control",
    "WanImageToVideoPipeline": "works with num_frames",
    "StableDiffusionDiffEditPipeline": "takes no picture",
}


def test_editors_and_others_are_told_apart_by_their_signatures() -> None:
    for name in EDITORS.split():
        kind = getattr(diffusers, name, None)  # an older diffusers has fewer
        if kind is not None:
            check_editing(kind, name)
    for name, said in OTHERS.items():
        with pytest.raises(ModelMismatch, match=said):
            check_editing(getattr(diffusers, name), name)


def test_the_scale_that_steers_is_the_one_that_is_awake() -> None:
    said = {
        "FluxKontextPipeline": "guidance_scale",
        "QwenImageEditPipeline": "true_cfg_scale",
        "LongCatImageEditPipeline": "guidance_scale",
        "StableDiffusionInpaintPipeline": "guidance_scale",
    }
    for name, scale in said.items():
        if kind := getattr(diffusers, name, None):
            assert guidance_name(call_of(kind)) == scale


def test_a_picture_is_padded_and_never_stretched() -> None:
    canvas = PictureCanvas.fitting((30, 50), 1.0, 16)
    assert (canvas.height, canvas.width) == (32, 64)
    ramp = np.broadcast_to(np.arange(50, dtype=np.uint8)[None, :, None] * 5, (30, 50, 3)).copy()
    filled = canvas.filled(ramp)
    assert np.array_equal(filled[:30, :50], ramp)
    assert np.array_equal(filled[:30, 50:], np.broadcast_to(ramp[:, -1:], (30, 14, 3)))
    assert np.array_equal(canvas.taken(filled, (30, 50)), ramp)
    double = filled.repeat(2, 0).repeat(2, 1)
    assert np.abs(canvas.taken(double, (30, 50)).astype(int) - ramp).max() <= 4
    with pytest.raises(MethodError, match="answered a 64x32 picture with one of 64x64"):
        canvas.taken(np.zeros((64, 64, 3), np.uint8), (30, 50))


@final
class Withheld(StableDiffusionPipeline):  # type: ignore[misc]
    """A pipeline whose filter withholds every picture, as one black all over."""

    def __init__(self) -> None:
        self.vae_scale_factor = 8

    def __call__(self, prompt: str, image: object, generator: object, output_type: str) -> Any:
        del prompt, generator, output_type
        return diffusers.utils.BaseOutput(images=[np.zeros((*np.asarray(image).shape,), np.float32)])


def test_a_picture_that_is_withheld_is_no_answer(run: Run) -> None:
    with pytest.raises(MethodError, match="filter withheld"):
        PipelineEditor(Withheld(), side=32).edit(PICTURE, "a car", seed=1, run=run)
