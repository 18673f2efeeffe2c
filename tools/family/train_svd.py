"""Trains tiny:svd: a first frame goes on for eight frames, in the layout of Stable Video Diffusion.

Several processes may train one network: `torchrun --standalone --nproc-per-node 2 train_svd.py unet`.

Two networks: a UNet over clips of latents, with the noise levels and preconditioning of Karras et al. 2022
as SVD uses them, and an autoencoder whose decoder sees all frames at once. Its encoder learns to give
tiny:sd's latents, so that both can be trained side by side.
"""

from pathlib import Path
from typing import Final

import architecture
import numpy as np
import torch
from command import options, tell
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from diffusers.models.attention_processor import AttnProcessor
from latents import encoded, finished_autoencoder
from pictures import HELD_OUT, LESSONS
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss
from train_clip import normalised

from retouch.models.fit import Fit, first_alone, join_processes, load_average, processes
from retouch.world.render import planes
from retouch.world.scene import Scene

CLIPS: Final = 4_000
FRAMES: Final = architecture.VIDEO_FRAMES
RATE: Final = 12
BATCH: Final = 8
"""Clips a step, of all processes together."""
SPANS: Final = (2, 4, 8)
"""Frames of a clip that the decoder sees together; shorter spans show it more clips."""
DECODER_NOISE: Final = 0.05
"""On the latents, so that the decoder forgives a sample's small errors."""
SIGMA_MEAN, SIGMA_SPREAD = 0.0, 1.3
"""Of the logarithm of the noise in training. SVD has 0.7 and 1.6. Here a clip differs from its first frame by
a third of the latents' spread, and from a noise of six on nothing of that is left to see.
"""


def clip_pixels(seed: int, size: int) -> np.ndarray:
    """Eight frames of one scene, at twelve a second."""
    scene = Scene.sample(seed, LESSONS["middle"])
    return np.stack([planes(scene, n / RATE, size) for n in range(FRAMES)])


def prepared_clips(work: Path, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames (n f 3 h w) and their latents (n f 4 y x), drawn and encoded once."""
    folder = work / "clips" / f"{count}-{size}px"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "z.npy").exists():
        vae = finished_autoencoder(work, size)
        side = size // 2 ** (len(vae.config.block_out_channels) - 1)
        shape = (count, FRAMES, 3, size, size)
        pixels = np.lib.format.open_memmap(folder / "pixels.npy", "w+", dtype=np.uint8, shape=shape)
        z = np.lib.format.open_memmap(
            folder / "z.draft.npy", "w+", dtype=np.float16, shape=(count, FRAMES, 4, side, side)
        )
        for n in range(count):
            pixels[n] = clip_pixels(9 * HELD_OUT + n, size)
            z[n] = encoded(vae, pixels[n]).half().numpy()
        pixels.flush()
        z.flush()
        (folder / "z.draft.npy").rename(folder / "z.npy")
    return np.load(folder / "pixels.npy", mmap_mode="r"), np.load(folder / "z.npy", mmap_mode="r")


def preconditioned(
    unet: UNetSpatioTemporalConditionModel,
    noisy: Tensor,
    sigma: Tensor,
    first: Tensor,
    seen: Tensor,
    ids: Tensor,
) -> Tensor:
    """The clean clip seen in a noisy one: eq. 7 of Karras et al., scaled for velocity as in SVD."""
    s = sigma[:, None, None, None, None]
    like = next(unet.parameters())
    stacked = torch.cat([noisy / (s.square() + 1).sqrt(), first.expand_as(noisy)], 2).to(like.dtype)
    out = unet(
        stacked, (0.25 * sigma.log()).to(like.dtype), seen.to(like.dtype), added_time_ids=ids.to(like.dtype)
    )
    clean = noisy / (s.square() + 1) - out.sample.float() * s / (s.square() + 1).sqrt()
    return torch.as_tensor(clean)


def train_unet(
    work: Path, *, size: int, images: int, device: str, seed: int = 0, clips: int = CLIPS, count: int = BATCH
) -> Fit[UNetSpatioTemporalConditionModel]:
    """Train the clip UNet until so many frames have been seen; `count` clips a step, of all processes."""
    torch.manual_seed(seed)
    count //= processes()
    with first_alone():
        tokenizer = architecture.tokenizer(work / "tokenizer")
        pixels, latents = prepared_clips(work, clips, size)
    tower = load_average(architecture.clip(len(tokenizer)), work / "clip").to(device)
    unet = architecture.video_unet()
    if device == "cpu":
        unet.set_attn_processor(AttnProcessor())
    fit = Fit(unet, work / f"svd-{size}px", tell=tell, rate=2e-3, keep=0.998, device=device, orthogonal=True)

    def look(generator: torch.Generator) -> tuple[Tensor, int]:
        fit.settle(images)
        rows = np.sort(torch.randint(len(latents), (count,), generator=generator).numpy())
        z = torch.from_numpy(latents[rows]).float().to(fit.device)
        with torch.no_grad():
            still = normalised(torch.tensor(pixels[rows, 0])).to(fit.device)
            seen = tower.visual_projection(tower.vision_model(pixel_values=still).pooler_output)[:, None]
        keep = (torch.rand(count, generator=generator) > 0.1).float().to(fit.device)
        sigma = (SIGMA_MEAN + SIGMA_SPREAD * torch.randn(count, generator=generator)).exp().clamp(0.002, 700)
        noise = torch.randn(z.shape, generator=generator).to(fit.device)
        sigma = sigma.to(fit.device)
        noisy = z + sigma[:, None, None, None, None] * noise
        ids = torch.tensor([[RATE - 1.0, 127.0, 0.02]], device=fit.device).expand(count, -1)
        first = z[:, :1] * keep[:, None, None, None, None]
        out = preconditioned(fit.network, noisy, sigma, first, seen * keep[:, None, None], ids)
        weight = (sigma.square() + 1) / sigma.square()
        loss = ((out - z).square().mean((1, 2, 3, 4)) * weight.clamp(max=100)).mean()
        return loss, count * FRAMES

    return fit.until(images, look, every=100)


def train_autoencoder(
    work: Path, *, size: int, images: int, device: str, seed: int = 0, clips: int = CLIPS
) -> Fit[AutoencoderKLTemporalDecoder]:
    """Train the clip autoencoder until so many frames have been seen: encoder towards tiny:sd's latents."""
    torch.manual_seed(seed)
    with first_alone():
        pixels, latents = prepared_clips(work, clips, size)
    vae = architecture.temporal_autoencoder(size)
    fit = Fit(vae, work / f"svd-vae-{size}px", tell=tell, rate=1.5e-3, keep=0.997, device=device)

    def look(generator: torch.Generator) -> tuple[Tensor, int]:
        fit.settle(images)
        span = SPANS[fit.step % len(SPANS)]
        rows = np.sort(torch.randint(len(latents), (FRAMES // span,), generator=generator).numpy())
        start = int(torch.randint(FRAMES - span + 1, (), generator=generator))
        truth = torch.tensor(pixels[rows, start : start + span]).flatten(0, 1).to(fit.device)
        truth = truth.float() / 127.5 - 1
        wanted = torch.tensor(latents[rows, start : start + span]).flatten(0, 1).to(fit.device).float()
        moments = fit.network.quant_conv(fit.network.encoder(truth.to(fit.precision))).float()
        mean, logvar = moments.chunk(2, 1)
        given = mean if torch.rand((), generator=generator) < 0.5 else wanted
        given = given + DECODER_NOISE * torch.randn(given.shape, generator=generator).to(given.device)
        flag = torch.zeros(len(rows), span, device=fit.device, dtype=fit.precision)
        out = fit.network.decoder(given.to(fit.precision), num_frames=span, image_only_indicator=flag).float()
        loss = l1_loss(out, truth) + 3 * mse_loss(out, truth) + mse_loss(mean, wanted)
        loss = loss + 1e-3 * (logvar + 12).square().mean()  # the mode is what counts; the spread stays small
        return loss, FRAMES

    return fit.until(images, look, every=250)


def main() -> None:
    """Train from the command line."""
    parser = options(__doc__, images=300_000)
    parser.add_argument("part", choices=("unet", "autoencoder"))
    asked = parser.parse_args()
    join_processes()
    part = train_unet if asked.part == "unet" else train_autoencoder
    part(asked.work, size=asked.size, images=asked.images, device=asked.device)


if __name__ == "__main__":
    main()
