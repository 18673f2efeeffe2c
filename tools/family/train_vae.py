"""Trains the picture autoencoder of tiny:sd.

Beside the usual reconstruction terms it asks that shrunken latents decode to the shrunken picture, which
keeps the latents as smooth as pictures are (EQ-VAE, Kouzelis et al. 2025), and it swaps colour channels now
and then: without that a small autoencoder scores well and still loses the colours of objects.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import architecture
import numpy as np
import torch
from command import options, tell
from diffusers import AutoencoderKL
from pictures import Pictures, held_out, prepared
from torch import Tensor
from torch.nn.functional import avg_pool2d

from retouch.models.fit import Fit, N, load_average

BATCH: Final = 16
KL_WEIGHT: Final = 2e-5
COUNTS: Final = {"middle": 40_000, "full": 30_000}
COARSE_IMAGES: Final = 80_000
"""After so many images training turns from a good start to the finish."""
COARSE_RATE, FINE_RATE, LAST_RATE = 2e-3, 1e-3, 3e-4
SQUARED_AT_LAST: Final = 12.0
"""Weight of the squared error in the finish, when what is left to win are edges."""
HOLD_WEIGHT: Final = 0.3
"""Of the distance to the latents that other networks were trained on."""


def reconstruction_loss(out: Tensor, truth: Tensor, weight: Tensor, *, squared: float = 3.0) -> Tensor:
    """Absolute and squared error, weighted, and the error of 4 x 4 means, which hold colours."""
    error = (out - truth).abs()
    coarse = avg_pool2d(out - truth, 4).abs().mean()
    return (weight * (error + squared * error.square())).mean() + coarse


def rate_at(images: int, end: int) -> float:
    """Large steps first, then a fall towards `end`."""
    if images < COARSE_IMAGES:
        return COARSE_RATE
    progress = min(1.0, (images - COARSE_IMAGES) / max(1, end - COARSE_IMAGES))
    return float(FINE_RATE * (LAST_RATE / FINE_RATE) ** progress)


def autoencoder_loss(
    vae: AutoencoderKL,
    pixels: Tensor,
    weight: Tensor,
    generator: torch.Generator,
    *,
    smooth: bool,
    squared: float = 3.0,
    held: Tensor | None = None,
) -> Tensor:
    """The loss of one batch, pixels in [-1, 1]; `held` are latents to stay near."""
    moments = vae.quant_conv(vae.encoder(pixels)).float()
    mean, logvar = moments.chunk(2, 1)
    logvar = logvar.clamp(-20, 10)
    noise = torch.randn(mean.shape, generator=generator).to(mean.device)
    z = mean + (0.5 * logvar).exp() * noise
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    out = vae.decoder(vae.post_quant_conv(z.to(pixels.dtype))).float()
    loss = reconstruction_loss(out, pixels.float(), weight, squared=squared) + KL_WEIGHT * divergence
    if held is not None:
        loss = loss + HOLD_WEIGHT * (mean - held).square().mean()
    if smooth:
        half = vae.decoder(vae.post_quant_conv(avg_pool2d(z, 2).to(pixels.dtype))).float()
        loss = loss + 0.15 * reconstruction_loss(half, avg_pool2d(pixels.float(), 2), avg_pool2d(weight, 2))
    return torch.as_tensor(loss)


def batch(
    sets: Sequence[Pictures], fit: Fit[N], generator: torch.Generator, *, fine: bool
) -> tuple[Tensor, Tensor]:
    """Pixels in [-1, 1] and their weights, mirrored and recoloured at random."""
    shares = torch.tensor([0.6, 0.4] if fine else [0.3, 0.7])
    chosen = sets[int(torch.multinomial(shares[: len(sets)], 1, generator=generator))]
    rows = torch.randint(len(chosen), (BATCH,), generator=generator).numpy()
    pixels = torch.from_numpy(chosen.pixels[np.sort(rows)]).to(fit.device).float() / 127.5 - 1
    masks = torch.from_numpy(chosen.masks[np.sort(rows)]).to(fit.device).float() / 255
    if torch.rand((), generator=generator) < 0.5:
        pixels, masks = pixels.flip(-1), masks.flip(-1)
    if torch.rand((), generator=generator) < 0.15:
        pixels = pixels[:, torch.randperm(3, generator=generator)]
    if fine:
        return pixels, torch.ones_like(pixels[:, :1])
    scale = pixels.shape[-1] // masks.shape[-1]
    weight = 1 + masks[:, None].repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    return pixels, weight / weight.mean()


def psnr(vae: AutoencoderKL, pixels: np.ndarray) -> float:
    """The mean over pictures of the reconstruction's PSNR, from the posterior's mode, rounded to bytes."""
    total = []
    like = next(vae.parameters())
    for part in np.array_split(pixels, max(1, len(pixels) // 32)):
        truth = torch.tensor(part, device=like.device)
        with torch.no_grad():
            moments = vae.quant_conv(vae.encoder((truth.float() / 127.5 - 1).to(like.dtype)))
            out = vae.decoder(vae.post_quant_conv(moments.chunk(2, 1)[0])).float()
        seen = ((out.clamp(-1, 1) + 1) * 127.5).round()
        error = (seen - truth.float()).square().mean((1, 2, 3)).clamp(min=1e-3)
        total.append(10 * torch.log10(255**2 / error))
    return float(torch.cat(total).mean())


def holder(folder: Path, size: int, device: torch.device, precision: torch.dtype) -> AutoencoderKL:
    """The autoencoder whose latents are to be kept: the checkpoint's own when this is first asked for."""
    kept = folder / "held"
    if not kept.exists():
        kept.mkdir()
        shutil.copy(folder / "checkpoint.safetensors", kept)
    return load_average(architecture.autoencoder(size), kept).to(device, precision)


def train(
    work: Path,
    *,
    size: int,
    images: int,
    device: str,
    seed: int = 0,
    counts: Mapping[str, int] | None = None,
    hold: bool = False,
) -> Fit[AutoencoderKL]:
    """Train until `images` have been seen, counting those of earlier calls.

    With `hold` the latents stay near those of the present checkpoint, for networks that stand on them.
    """
    torch.manual_seed(seed)
    folder = work / f"vae-{size}px"
    fit = Fit(architecture.autoencoder(size), folder, tell=tell, rate=COARSE_RATE, keep=0.997, device=device)
    anchor = holder(folder, size, fit.device, fit.precision) if hold else None
    wanted = counts or COUNTS
    sets = [prepared(work, lesson, count, size) for lesson, count in wanted.items()]
    plain, every = held_out("middle", 64, size).pixels, held_out("full", 64, size).pixels

    def look(generator: torch.Generator) -> tuple[Tensor, int]:
        fine = fit.images >= COARSE_IMAGES
        pixels, weight = batch(sets, fit, generator, fine=fine)
        held = None
        if anchor is not None:
            with torch.no_grad():
                held = anchor.quant_conv(anchor.encoder(pixels.to(fit.precision))).chunk(2, 1)[0].float()
        fit.rate = rate_at(fit.images, images)
        loss = autoencoder_loss(
            fit.network,
            pixels.to(fit.precision),
            weight,
            generator,
            smooth=not fine and fit.step % 2 == 0,
            squared=SQUARED_AT_LAST if fine else 3.0,
            held=held,
        )
        return loss, len(pixels)

    def figures() -> dict[str, float]:
        return {
            "plain": round(psnr(fit.network, plain), 2),
            "every": round(psnr(fit.network, every), 2),
        }

    return fit.until(images, look, every=500, figures=figures)


def main() -> None:
    """Train from the command line."""
    parser = options(__doc__, images=250_000)
    parser.add_argument(
        "--hold", action="store_true", help="stay near the latents of the checkpoint as it is"
    )
    asked = parser.parse_args()
    train(asked.work, size=asked.size, images=asked.images, device=asked.device, hold=asked.hold)


if __name__ == "__main__":
    main()
