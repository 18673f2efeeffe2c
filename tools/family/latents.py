"""Latents and tokens of a lesson's pictures, encoded once with the finished autoencoder and kept in files."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import architecture
import numpy as np
import torch
from diffusers import AutoencoderKL
from pictures import MASK_SIDE, Pictures, held_out, prepared
from torch import nn
from transformers import CLIPTokenizer

from retouch.models.fit import load_average, working_precision

ENCODED_AT_ONCE: Final = 64


@final
@dataclass(frozen=True)
class Latents:
    """What the UNet trains on."""

    z: np.ndarray
    """float16, n 4 y x."""
    masks: np.ndarray
    """uint8, n 16 16."""
    labels: np.ndarray
    """uint8, n 5."""
    tokens: np.ndarray
    """int16, n 32."""

    def __len__(self) -> int:
        """How many pictures."""
        return len(self.z)


def finished_autoencoder(work: Path, size: int) -> AutoencoderKL:
    """The autoencoder as it will be shipped, float32: each latent channel has mean 0 and deviation 1.

    The 1 x 1 convolutions on either side of the latents take the change up, so pictures come out as before.
    Measured once and kept beside the training, because the UNet depends on it.
    """
    vae = load_average(architecture.autoencoder(size), work / f"vae-{size}px")
    path = work / f"vae-{size}px" / "latents.json"
    if not path.exists():
        z = encoded(vae, held_out("full", 512, size).pixels)
        about = {"mean": z.mean((0, 2, 3)).tolist(), "deviation": z.std((0, 2, 3)).tolist()}
        path.write_text(json.dumps(about), "utf-8")
    about = json.loads(path.read_text("utf-8"))
    standardise(vae, torch.tensor(about["mean"]), torch.tensor(about["deviation"]))
    refined = work / f"decoder-{size}px"
    if (refined / "checkpoint.safetensors").exists():
        load_average(Decoder(vae), refined)
    return vae


class Decoder(nn.Module):
    """The part of an autoencoder that may go on learning when others already depend on its latents."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.post_quant_conv = vae.post_quant_conv
        self.decoder = vae.decoder

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Pixels of latents."""
        return torch.as_tensor(self.decoder(self.post_quant_conv(z)))


def standardise(vae: AutoencoderKL, mean: torch.Tensor, deviation: torch.Tensor) -> None:
    """Bring latents of that mean and deviation to 0 and 1 without changing any picture."""
    into, out = vae.quant_conv, vae.post_quant_conv
    with torch.no_grad():
        into.weight[:4] /= deviation[:, None, None, None]
        into.bias[:4] = (into.bias[:4] - mean) / deviation
        into.bias[4:] -= 2 * deviation.log()  # the other half are logarithms of variances
        out.bias += (out.weight * mean[None, :, None, None]).sum((1, 2, 3))
        out.weight *= deviation[None, :, None, None]
    vae.register_to_config(scaling_factor=1.0)


def encoded(vae: AutoencoderKL, pixels: np.ndarray, precision: torch.dtype = torch.float32) -> torch.Tensor:
    """The posterior's modes, unscaled, of uint8 pixels."""
    parts = []
    like = next(vae.parameters())
    with torch.no_grad():
        for start in range(0, len(pixels), ENCODED_AT_ONCE):
            part = torch.tensor(pixels[start : start + ENCODED_AT_ONCE], device=like.device)
            moments = vae.quant_conv(vae.encoder((part.float() / 127.5 - 1).to(like.dtype)))
            parts.append(moments.chunk(2, 1)[0].to(precision).cpu())
    return torch.cat(parts)


def tokens_of(tokenizer: CLIPTokenizer, captions: list[str]) -> np.ndarray:
    """Token numbers, padded to the tokenizer's length."""
    ids = tokenizer(
        captions, padding="max_length", max_length=tokenizer.model_max_length, truncation=True
    ).input_ids
    return np.array(ids, np.int16)


def latents_of(work: Path, pictures: Pictures, size: int, tokenizer: CLIPTokenizer) -> Latents:
    """Latents of pictures in memory, for measuring."""
    z = encoded(finished_autoencoder(work, size), pictures.pixels)
    return Latents(z.half().numpy(), pictures.masks, pictures.labels, tokens_of(tokenizer, pictures.captions))


def prepared_latents(
    work: Path, lesson: str, count: int, size: int, tokenizer: CLIPTokenizer, device: str
) -> Latents:
    """The lesson's latents, encoded now if they are not there yet."""
    folder = work / "latents" / f"{lesson}-{count}-{size}px"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = prepared(work, lesson, count, size)
    path = folder / "z.npy"
    if not path.exists():
        vae = finished_autoencoder(work, size).to(device).to(working_precision(device))
        side = size // 2 ** (len(vae.config.block_out_channels) - 1)
        draft = folder / "z.draft.npy"
        z = np.lib.format.open_memmap(draft, "w+", dtype=np.float16, shape=(count, 4, side, side))
        for start in range(0, count, 1024):
            z[start : start + 1024] = encoded(vae, pictures.pixels[start : start + 1024]).half().numpy()
        z.flush()
        draft.rename(path)
    assert pictures.masks.shape[-1] == MASK_SIDE
    return Latents(
        np.load(path, mmap_mode="r"), pictures.masks, pictures.labels, tokens_of(tokenizer, pictures.captions)
    )
