"""The networks of the embedded family: stock classes at small sizes, in the layouts of their big siblings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    ControlNetModel,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from tokens import EMPTY, WORDS, merges_and_vocabulary, taught_words, write_tokenizer
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
)

TEXT_LENGTH: Final = 32
"""Tokens of a prompt, start and end included; the longest caption of the world takes about half."""
TEXT_WIDTH: Final = 128
SHARED_WIDTH: Final = 128
"""Where pictures and sentences meet in tiny:clip."""
CLIP_SIDE: Final = 64
CLIP_PATCH: Final = 8
UNET_WIDTHS: Final = (64, 128, 128)
VIDEO_WIDTHS: Final = (64, 64, 64)
"""diffusers norms this UNet in 32 groups: with 32 channels each would lose its level in every norm, the last
just before the answer."""
VIDEO_FRAMES: Final = 8
HEADS: Final = (2, 4, 4)
"""Heads per level. Few, because attention on a CPU costs by the head."""

SCHEDULER: Final = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.35.0",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "steps_offset": 1,
    "set_alpha_to_one": True,
    "clip_sample": False,
    "trained_betas": None,
}
"""Stable Diffusion's noise levels, with the velocity as what the network predicts."""


VIDEO_SCHEDULER: Final = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.35.0",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "interpolation_type": "linear",
    "prediction_type": "v_prediction",
    "sigma_min": 0.002,
    "sigma_max": 700.0,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "trained_betas": None,
    "use_karras_sigmas": True,
}
"""Stable Video Diffusion's scheduler, as its folder has it."""


def autoencoder(size: int) -> AutoencoderKL:
    """The picture autoencoder: a quarter of the side at 64 px, an eighth at 128 px."""
    widths = (16, 32, 64) if size == 64 else (16, 32, 64, 96)
    return AutoencoderKL(
        sample_size=size,
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
    )


def temporal_autoencoder(size: int) -> AutoencoderKLTemporalDecoder:
    """The clip autoencoder: wider, as its class fixes 32 groups; frames are decoded together."""
    widths = (32, 32, 64) if size == 64 else (32, 32, 64, 96)
    return AutoencoderKLTemporalDecoder(
        sample_size=size,
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        layers_per_block=1,
        latent_channels=4,
    )


def unet() -> UNet2DConditionModel:
    """The text-to-image UNet: cross-attention at 16 x 16 and 8 x 8."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=UNET_WIDTHS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=HEADS,  # the number of heads, as in every Stable Diffusion 1.x config
        norm_num_groups=16,
    )


def control(base: UNet2DConditionModel, size: int) -> ControlNetModel:
    """A control network over `base`; its picture comes down to the latents' side in as many halvings."""
    steps = (16, 32, 64) if size == 64 else (16, 32, 64, 64)
    return ControlNetModel.from_unet(base, conditioning_embedding_out_channels=steps)


def video_unet() -> UNetSpatioTemporalConditionModel:
    """The image-to-video UNet."""
    return UNetSpatioTemporalConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=4,
        block_out_channels=VIDEO_WIDTHS,
        down_block_types=(
            "CrossAttnDownBlockSpatioTemporal",
            "CrossAttnDownBlockSpatioTemporal",
            "DownBlockSpatioTemporal",
        ),
        up_block_types=(
            "UpBlockSpatioTemporal",
            "CrossAttnUpBlockSpatioTemporal",
            "CrossAttnUpBlockSpatioTemporal",
        ),
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=96,
        layers_per_block=1,
        cross_attention_dim=SHARED_WIDTH,
        num_attention_heads=HEADS,
        num_frames=VIDEO_FRAMES,
    )


def text_config(vocabulary: int) -> CLIPTextConfig:
    """The text tower, the same in tiny:sd and tiny:clip."""
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=SHARED_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
        attention_dropout=0.0,
    )


def vision_config() -> CLIPVisionConfig:
    """The picture tower of tiny:clip."""
    return CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        projection_dim=SHARED_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=CLIP_SIDE,
        patch_size=CLIP_PATCH,
    )


def text_encoder(vocabulary: int) -> CLIPTextModel:
    """The text encoder of tiny:sd."""
    return CLIPTextModel(text_config(vocabulary))


def clip(vocabulary: int) -> CLIPModel:
    """tiny:clip."""
    config = CLIPConfig(
        text_config=text_config(vocabulary).to_dict(),
        vision_config=vision_config().to_dict(),
        projection_dim=SHARED_WIDTH,
    )
    return CLIPModel(config)


def tokenizer(folder: Path, words: Sequence[str] = WORDS) -> CLIPTokenizer:
    """A byte-pair tokenizer, written to `folder`, in which each of `words` is one token."""
    merges, vocabulary = merges_and_vocabulary(words)
    write_tokenizer(folder, merges, vocabulary, TEXT_LENGTH, taught_words())
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


__all__ = ["EMPTY", "TEXT_LENGTH", "autoencoder", "clip", "control", "text_encoder", "tokenizer", "unet"]
