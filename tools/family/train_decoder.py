"""Trains the decoder of the finished autoencoder further, its latents unchanged.

The UNet depends on the latents, so the encoder is frozen when the UNet's training begins; the decoder is
free to become better at any time.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import torch
from command import options, tell
from diffusers import AutoencoderKL
from latents import Decoder, encoded, finished_autoencoder
from pictures import held_out, prepared
from torch import Tensor
from train_vae import COUNTS, SQUARED_AT_LAST, batch, reconstruction_loss

from retouch.models.fit import Fit

NOISE: Final = 0.02
"""On the latents, so that the decoder forgives a sample's small errors."""


def psnr(vae: AutoencoderKL, pixels: np.ndarray) -> float:
    """The mean over pictures of the reconstruction's PSNR, rounded to bytes."""
    like = next(vae.parameters())
    with torch.no_grad():
        z = encoded(vae, pixels).to(like.device, like.dtype)
        out = torch.cat([vae.decode(part).sample.float().cpu() for part in torch.split(z, 32)])
    seen = ((out.clamp(-1, 1) + 1) * 127.5).round().numpy()
    error = np.square(seen - pixels).mean((1, 2, 3))
    return float((10 * np.log10(255**2 / np.maximum(error, 1e-3))).mean())


def train(
    work: Path,
    *,
    size: int,
    images: int,
    device: str,
    seed: int = 0,
    counts: Mapping[str, int] | None = None,
) -> Fit[Decoder]:
    """Train until `images` have been seen, counting those of earlier calls."""
    torch.manual_seed(seed)
    vae = finished_autoencoder(work, size)
    folder = work / f"decoder-{size}px"
    fit = Fit(Decoder(vae).requires_grad_(True), folder, tell=tell, rate=1e-3, keep=0.998, device=device)
    vae.to(fit.device, fit.precision)
    sets = [prepared(work, lesson, count, size) for lesson, count in (counts or COUNTS).items()]
    plain, every = held_out("middle", 64, size).pixels, held_out("full", 64, size).pixels

    def look(generator: torch.Generator) -> tuple[Tensor, int]:
        fit.settle(images)
        pixels, weight = batch(sets, fit, generator, fine=True)
        with torch.no_grad():
            z = vae.quant_conv(vae.encoder(pixels.to(fit.precision))).chunk(2, 1)[0].float()
        z = z + NOISE * torch.randn(z.shape, generator=generator).to(z.device)
        out = fit.network(z.to(fit.precision)).float()
        return reconstruction_loss(out, pixels, weight, squared=SQUARED_AT_LAST), len(pixels)

    def figures() -> dict[str, float]:
        return {"plain": round(psnr(vae, plain), 2), "every": round(psnr(vae, every), 2)}

    return fit.until(images, look, every=500, figures=figures)


def main() -> None:
    """Train from the command line."""
    asked = options(__doc__, images=200_000).parse_args()
    train(asked.work, size=asked.size, images=asked.images, device=asked.device)


if __name__ == "__main__":
    main()
