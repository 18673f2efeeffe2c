"""Trains tiny:ip: a reference picture speaks to tiny:sd beside the prompt (IP-Adapter, Ye et al. 2023).

It is seen through tiny:clip's embedding.
Only the adapter learns: the projection of the embedding to a few extra tokens, and a key and a value matrix
for them in each cross-attention. Captions lose their colour word half of the time, so that the reference
has something to say. It is another picture of such an object, in another place on another ground, so that
the adapter learns to take over the thing and not the view; without words it is the picture itself.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, final

import architecture
import numpy as np
import torch
from command import options, tell
from diffusers import UNet2DConditionModel
from latents import prepared_latents, tokens_of
from pictures import FACTORS, prepared
from safetensors.torch import save_file
from schedule import noised, velocity
from torch import Tensor, nn
from train_clip import normalised
from train_unet import Pair, timesteps
from transformers import CLIPModel

from retouch.models.fit import Fit, load_average
from retouch.world.scene import COLOURS

BATCH: Final = 32
TOKENS: Final = 4
"""How many words a reference picture is worth."""
WORDLESS: Final = 0.15
LOUDNESS: Final = 1.3
"""What the trained values are multiplied by when they are saved: a colour then comes through on light ground,
too. Between 1, 1.3 and 1.6 chosen on scenes that the benchmark does not use.
"""
COUNTS: Final = {"middle": 40_000, "styled": 30_000}


def fresh_adapter(unet: UNet2DConditionModel) -> dict[str, dict[str, Tensor]]:
    """An adapter that says nothing yet, in the layout of the published IP-Adapter files.

    Attention layers are numbered in the order of `attn_processors`; the odd ones are the cross-attentions.
    """
    width = unet.config.cross_attention_dim
    proj = nn.Linear(architecture.SHARED_WIDTH, TOKENS * width)
    state = {
        "proj.weight": proj.weight,
        "proj.bias": proj.bias,
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    adapter = {}
    modules = dict(unet.named_modules())
    for number, name in enumerate(unet.attn_processors):
        if not name.endswith("attn2.processor"):
            continue
        attention = modules[name.removesuffix(".processor")]
        adapter[f"{number}.to_k_ip.weight"] = attention.to_k.weight.detach().clone()
        adapter[f"{number}.to_v_ip.weight"] = 0.1 * attention.to_v.weight.detach().clone()
    return {"image_proj": {k: v.detach().clone() for k, v in state.items()}, "ip_adapter": adapter}


def adapter_of(unet: UNet2DConditionModel, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapter's tensors out of a UNet that carries one, named as in the published files."""
    out = {}
    projection = "encoder_hid_proj.image_projection_layers.0."
    for ours, theirs in (("image_embeds.weight", "proj.weight"), ("image_embeds.bias", "proj.bias")):
        out[f"image_proj.{theirs}"] = values[projection + ours]
    out |= {f"image_proj.norm.{part}": values[f"{projection}norm.{part}"] for part in ("weight", "bias")}
    for number, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            for part in ("to_k_ip", "to_v_ip"):
                out[f"ip_adapter.{number}.{part}.weight"] = values[f"{name}.{part}.0.weight"]
    return out


class Prompted(nn.Module):
    """The frozen pair with an adapter that is trained."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.pair = pair.requires_grad_(False)
        self.pair.unet._load_ip_adapter_weights([fresh_adapter(pair.unet)])
        for name, value in self.pair.unet.named_parameters():
            value.requires_grad_("_ip." in name or name.startswith("encoder_hid_proj."))

    def forward(self, z: Tensor, t: Tensor, tokens: Tensor, seen: Tensor) -> Tensor:
        """The velocity at noisy latents with reference embeddings `seen`."""
        words = self.pair.text(tokens).last_hidden_state
        out = self.pair.unet(z, t, words, added_cond_kwargs={"image_embeds": [seen[:, None]]})
        return torch.as_tensor(out.sample.float())


def embeddings(clip: CLIPModel, pixels: np.ndarray) -> Tensor:
    """What tiny:clip sees, as the adapter takes it: projected, not normalised."""
    like = clip.visual_projection.weight
    parts = []
    with torch.no_grad():
        for start in range(0, len(pixels), 256):
            part = normalised(torch.tensor(pixels[start : start + 256])).to(like.device, like.dtype)
            parts.append(clip.visual_projection(clip.vision_model(pixel_values=part).pooler_output).float())
    return torch.cat(parts)


@final
class Alike:
    """Which pictures show the same object in the same colour, pattern and style."""

    def __init__(self, labels: np.ndarray) -> None:
        """Take labels in the order of FACTORS."""
        named = [list(FACTORS).index(name) for name in ("object", "colour", "pattern", "style")]
        _, self.group = np.unique(labels[:, named], axis=0, return_inverse=True)
        self.order = np.argsort(self.group, kind="stable")
        self.first = np.searchsorted(self.group[self.order], np.arange(self.group.max() + 2))

    def one_for_each(self, rows: np.ndarray, generator: torch.Generator) -> np.ndarray:
        """A picture like that of each row, by chance the same."""
        first, end = self.first[self.group[rows]], self.first[self.group[rows] + 1]
        chance = torch.rand(len(rows), generator=generator).numpy()
        return np.asarray(self.order[first + (chance * (end - first)).astype(np.int64)])


def without_colour(caption: str) -> str:
    """The caption with its colour words gone."""
    return re.sub(rf"\b({'|'.join(COLOURS)}) ", "", caption)


def train(
    work: Path,
    *,
    size: int,
    images: int,
    device: str,
    seed: int = 0,
    counts: Mapping[str, int] | None = None,
    count: int = BATCH,
) -> Fit[Prompted]:
    """Train until `images` have been seen, counting those of earlier calls."""
    torch.manual_seed(seed)
    tokenizer = architecture.tokenizer(work / "tokenizer")
    pair = load_average(Pair(len(tokenizer)), work / f"unet-{size}px")
    clip = load_average(architecture.clip(len(tokenizer)), work / "clip").to(device)
    fit = Fit(Prompted(pair), work / f"ip-{size}px", tell=tell, rate=1e-3, keep=0.998, device=device)
    lessons = list((counts or COUNTS).items())
    pictures = [prepared(work, lesson, n, size) for lesson, n in lessons]
    latents = [prepared_latents(work, lesson, n, size, tokenizer, device) for lesson, n in lessons]
    blank = [tokens_of(tokenizer, [without_colour(words) for words in p.captions]) for p in pictures]
    alike = [Alike(np.asarray(p.labels)) for p in pictures]
    wordless = torch.tensor(
        tokenizer("", padding="max_length", max_length=architecture.TEXT_LENGTH).input_ids
    )

    def look(generator: torch.Generator) -> tuple[Tensor, int]:
        fit.settle(images)
        chosen = int(torch.randint(len(lessons), (), generator=generator))
        rows = np.sort(torch.randint(len(pictures[chosen]), (count,), generator=generator).numpy())
        z = torch.from_numpy(latents[chosen].z[rows]).float()
        chance = torch.rand(count, 1, generator=generator)
        full, less = (
            torch.from_numpy(t[rows].astype(np.int64)) for t in (latents[chosen].tokens, blank[chosen])
        )
        silent = chance < WORDLESS
        tokens = torch.where(silent, wordless, torch.where(chance < 0.65, less, full)).to(fit.device)
        others = alike[chosen].one_for_each(rows, generator)
        shown = np.where(silent[:, 0].numpy(), rows, others)
        seen = embeddings(clip, np.stack([pictures[chosen].pixels[row] for row in shown]))
        seen = seen * (torch.rand(count, 1, generator=generator) > 0.1).to(seen)
        t = timesteps(count, generator)
        noise = torch.randn(z.shape, generator=generator)
        noisy = noised(z, noise, t).to(fit.device, fit.precision)
        out = fit.network(noisy, t.to(fit.device), tokens, seen.to(fit.precision))
        return (out - velocity(z, noise, t).to(fit.device)).square().mean(), count

    return fit.until(images, look, every=250)


def save_adapter(work: Path, size: int, path: Path) -> None:
    """Write the trained adapter as one file that `load_ip_adapter` reads."""
    pair = load_average(Pair(len(architecture.tokenizer(work / "tokenizer"))), work / f"unet-{size}px")
    model = load_average(Prompted(pair), work / f"ip-{size}px")
    values = {name.removeprefix("pair.unet."): value for name, value in model.state_dict().items()}
    tensors = adapter_of(pair.unet, values)
    tensors |= {name: LOUDNESS * value for name, value in tensors.items() if name.endswith("to_v_ip.weight")}
    save_file({name: value.half().contiguous() for name, value in tensors.items()}, path)


def main() -> None:
    """Train from the command line."""
    asked = options(__doc__, images=100_000).parse_args()
    train(asked.work, size=asked.size, images=asked.images, device=asked.device)


if __name__ == "__main__":
    main()
