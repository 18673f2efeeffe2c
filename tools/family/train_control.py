"""Trains tiny:sd-canny, which holds tiny:sd to canny edges; tiny:sd itself stays as it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import architecture
import numpy as np
import torch
from command import options, tell
from diffusers import ControlNetModel
from diffusers.models.attention_processor import AttnProcessor
from latents import prepared_latents
from pictures import prepared
from schedule import noised, velocity
from torch import Tensor, nn
from train_unet import Pair, timesteps

from retouch.models.annotate import canny
from retouch.models.fit import Fit, load_average

BATCH: Final = 32
COUNTS: Final = {"middle": 40_000, "styled": 30_000}
WORDLESS: Final = 0.3
"""Share of captions left out, more than for the UNet: the edges must say something by themselves."""


class Controlled(nn.Module):
    """The frozen pair and the control network that is trained."""

    def __init__(self, pair: Pair, size: int) -> None:
        super().__init__()
        self.pair = pair.requires_grad_(False)
        self.net: ControlNetModel = architecture.control(pair.unet, size)

    def forward(self, z: Tensor, t: Tensor, tokens: Tensor, edges: Tensor) -> Tensor:
        """The velocity at noisy latents under edges in [0, 1]."""
        words = self.pair.text(tokens).last_hidden_state
        down, middle = self.net(z, t, words, controlnet_cond=edges, return_dict=False)
        out = self.pair.unet(
            z, t, words, down_block_additional_residuals=down, mid_block_additional_residual=middle
        )
        return torch.as_tensor(out.sample.float())


def train(
    work: Path,
    *,
    size: int,
    images: int,
    device: str,
    seed: int = 0,
    counts: Mapping[str, int] | None = None,
    count: int = BATCH,
) -> Fit[Controlled]:
    """Train until `images` have been seen, counting those of earlier calls."""
    torch.manual_seed(seed)
    tokenizer = architecture.tokenizer(work / "tokenizer")
    pair = load_average(Pair(len(tokenizer)), work / f"unet-{size}px")
    model = Controlled(pair, size)
    if device == "cpu":
        model.pair.unet.set_attn_processor(AttnProcessor())
        model.net.set_attn_processor(AttnProcessor())
    fit = Fit(model, work / f"canny-{size}px", tell=tell, rate=8e-4, keep=0.998, device=device)
    lessons = list((counts or COUNTS).items())
    pictures = [prepared(work, lesson, n, size) for lesson, n in lessons]
    latents = [prepared_latents(work, lesson, n, size, tokenizer, device) for lesson, n in lessons]
    wordless = torch.tensor(
        tokenizer("", padding="max_length", max_length=architecture.TEXT_LENGTH).input_ids
    )

    def look(generator: torch.Generator) -> tuple[Tensor, int]:
        fit.settle(images)
        chosen = int(torch.randint(len(lessons), (), generator=generator))
        rows = np.sort(torch.randint(len(pictures[chosen]), (count,), generator=generator).numpy())
        z = torch.from_numpy(latents[chosen].z[rows]).float()
        silent = torch.rand(count, generator=generator) < WORDLESS
        tokens = torch.from_numpy(latents[chosen].tokens[rows].astype(np.int64))
        tokens = torch.where(silent[:, None], wordless, tokens).to(fit.device)
        edges = canny(pictures[chosen].pixels[rows]).to(fit.device, fit.precision)
        t = timesteps(count, generator)
        noise = torch.randn(z.shape, generator=generator)
        noisy = noised(z, noise, t).to(fit.device, fit.precision)
        out = fit.network(noisy, t.to(fit.device), tokens, edges)
        return (out - velocity(z, noise, t).to(fit.device)).square().mean(), count

    return fit.until(images, look, every=250)


def main() -> None:
    """Train from the command line."""
    asked = options(__doc__, images=200_000).parse_args()
    train(asked.work, size=asked.size, images=asked.images, device=asked.device)


if __name__ == "__main__":
    main()
