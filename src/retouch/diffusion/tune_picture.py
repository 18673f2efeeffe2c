"""One-shot tuning on a picture: a model with a reference picture's voice learns how one picture is laid out.

What the picture looks like is said by its own embedding the whole time, so the cheapest thing left to learn
is where things are. Later another picture's embedding is put in, and the layout stays. That is a low-rank
change of all matrices of attention (LoRA, Hu et al. 2021); each condition is left out now and then, so that
guidance still has something to lead away from, and half of the samples show the picture in other colours,
without words, which would be wrong there.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, TypeAlias, final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import Module

from retouch.artifacts import artifact
from retouch.diffusion.inversion import invert
from retouch.diffusion.sds import denoising_loss
from retouch.diffusion.tune import frozen, learn, low_rank_layers, swapped
from retouch.models.image import StableDiffusion
from retouch.models.image_prompt import ImagePrompt
from retouch.models.noise_path import Level, add_noise
from retouch.run import Run
from retouch.video import Video

MATRICES: Final = (".to_q", ".to_k", ".to_v", ".to_out.0")
LEFT_OUT: Final = (0.07, 0.05, 0.05)
"""Shares of the samples without the picture, without the words, and without both."""
TOGETHER: Final = 2
"""Samples a step."""
COLOURINGS: Final = 8
"""Pictures in other colours that half of the samples are taken from."""
FLOOR: Final = 0.1
"""How much the surroundings count beside the object."""


@final
@dataclass(frozen=True, eq=False)
class LowRank:
    """A low-rank change of a network's matrices, by the matrix's name."""

    down: Mapping[str, Float[Tensor, "rank inner"]]
    up: Mapping[str, Float[Tensor, "outer rank"]]


@final
@dataclass(frozen=True, eq=False)
class Said:
    """What a model is told: words, and a picture's embedding where it has ears for one."""

    text: Float[Tensor, "n d"]
    seen: Float[Tensor, " e"] | None = None


Sample: TypeAlias = tuple[Float[Tensor, "1 c h w"], Said]


@final
@dataclass(frozen=True, eq=False)
class TunedModel:
    """A model with what it learned of one picture; the change fades where only details are left to decide."""

    sd: StableDiffusion
    learned: LowRank | None = None
    strength: float = 1.0
    late: float = 1.0
    """What is left of the strength at the clean end; all of it counts where noise outweighs the picture."""

    def predict(self, z: Float[Tensor, "f c h w"], level: Level, said: Said) -> Float[Tensor, "f c h w"]:
        """Return the network's answer at a level."""
        return self.predict_each(z, level, said)[0]

    def predict_each(
        self, z: Float[Tensor, "f c h w"], level: Level, *said: Said
    ) -> tuple[Float[Tensor, "f c h w"], ...]:
        """Return the network's answers at a level to several things said, all asked in one call."""
        share = self.strength * (self.late + (1 - self.late) * min(1.0, 2 * level.noise**2))
        different = list(dict.fromkeys(said))
        text = torch.cat([one.text.expand(len(z), -1, -1) for one in different])
        seen = [one.seen.expand(len(z), -1) for one in different if one.seen is not None]
        with changed(self.sd.unet, self.learned, share):
            out = self.sd.predict(
                z.repeat(len(different), 1, 1, 1), level.t, text, seen=torch.cat(seen) if seen else None
            )
        answers = dict(zip(different, out.chunk(len(different)), strict=True))
        return tuple(answers[one] for one in said)


@artifact("tuned_picture", version=2)
def tune_picture(
    picture: UInt8[np.ndarray, "3 y x"],
    matte: Float[Tensor, "1 1 h w"],
    sd: StableDiffusion,
    adapter: ImagePrompt,
    *,
    prompt: str,
    steps: int,
    rate: float,
    rank: int,
    scale: float,
    run: Run,
) -> LowRank:
    """Learn a picture; go on where it was stopped, to the same result.

    Args:
        picture: The picture, at a size that fits the model.
        matte: Where the object is, at the size of the latents.
        sd: The model, which stays as it is.
        adapter: What shows it the picture.
        prompt: What the picture shows.
        steps: How many steps to take.
        rate: How far each goes.
        rank: Rank of the change.
        scale: How loud the picture is beside the words.
        run: Noise, progress and checkpoints.

    Raises:
        Diverged: the loss is not a number.
    """
    weight = matte.clamp(min=FLOOR).to(sd.device)
    words, nothing = sd.embed(prompt), sd.embed("")
    with ExitStack() as stack:
        stack.enter_context(adapter.applied_to(sd, scale=scale))
        known = [
            (sd.encode(_pixels(shown)), adapter.seen(shown))
            for shown in (picture, *(_recoloured(picture, number, run) for number in range(COLOURINGS)))
        ]
        stack.enter_context(frozen(sd.unet))
        learned = stack.enter_context(low_rank_layers(sd.unet, matrices(sd.unet), rank, run))

        def loss(step: int) -> Float[Tensor, ""]:
            names = [f"{step} {number}" for number in range(TOGETHER)]
            drawn = [_drawn(known, words, nothing, name, run) for name in names]
            levels = [sd.level(share) for _, share in drawn]
            noise = [run.noise(f"tune {name}", z) for name, ((z, _), _) in zip(names, drawn, strict=True)]
            x = [add_noise(z, e, at) for ((z, _), _), e, at in zip(drawn, noise, levels, strict=True)]
            out = sd.predict(
                torch.cat(x),
                torch.tensor([float(level.t) for level in levels], device=sd.device),
                torch.stack([said.text for (_, said), _ in drawn]),
                seen=torch.stack([said.seen for (_, said), _ in drawn if said.seen is not None]),
            ).float()
            off = [
                denoising_loss(answer[None], z, e, at, weight)
                for answer, ((z, _), _), e, at in zip(out, drawn, noise, levels, strict=True)
            ]
            return torch.stack(off).mean()

        learn(learned, loss, steps, rate=rate, run=run)
        parts = {name: parameter.detach().clone() for name, parameter in learned.items()}
    return LowRank(_side(parts, ".lora_A.default.weight"), _side(parts, ".lora_B.default.weight"))


@final
@dataclass(frozen=True, eq=False)
class PicturePath:
    """A picture's latents at every level, the clean ones first."""

    latents: Float[Tensor, "n 1 c h w"]


@artifact("picture_path", version=1)
@torch.no_grad()
def invert_picture(
    z: Float[Tensor, "1 c h w"], model: TunedModel, said: Said, *,
    steps: int, calls: int, voice: str, scale: float, run: Run,
) -> PicturePath:  # fmt: skip
    """Take a picture's latents to noise under what is said of it; go on where it was stopped.

    `voice` and `scale` name what lets the model hear a picture: they are a part of the key.
    """
    del voice, scale
    file = run.draft.array("latents", (steps + 1, *z.shape))
    latents = torch.from_numpy(file)
    latents[0] = z
    levels = run.resumable("invert", model.sd.schedule(steps).up(), {"latents": file})
    invert(
        latents,
        lambda x, level: model.predict(x.to(z), level, said).to(latents),
        levels,
        calls=calls,
    )
    return PicturePath(latents.clone())


def matrices(unet: Module) -> list[str]:
    """Return the names of the matrices of attention, without those that an adapter brings."""
    return [name for name, _ in unet.named_modules() if name.endswith(MATRICES) and "attn" in name]


@contextmanager
def changed(unet: Module, learned: LowRank | None, share: float) -> Iterator[None]:
    """Put a share of what was learned on a UNet, and take it off again.

    Raises:
        ModelMismatch: it was learned by another UNet.
    """
    with ExitStack() as undo:
        for name, down in (learned.down if learned and share else {}).items():
            assert learned
            own = unet.get_parameter(f"{name}.weight")
            change = (learned.up[name] @ down).to(own)
            undo.enter_context(swapped(unet, f"{name}.weight", own.detach() + share * change))
        yield


def _drawn(
    known: Sequence[tuple[Tensor, Tensor]], words: Tensor, nothing: Tensor, name: str, run: Run
) -> tuple[Sample, float]:
    """Draw what a sample shows, what is said of it, and how far it is noised."""
    like = torch.empty(4, dtype=torch.float64)
    when, what, which, silent = torch.special.ndtr(run.noise(f"draw {name}", like)).tolist()
    clean, seen = known[0] if what < 0.5 else known[1 + int(which * COLOURINGS)]
    no_picture, no_words, neither = LEFT_OUT
    deaf = silent < no_picture or no_picture + no_words <= silent < no_picture + no_words + neither
    mute = no_picture <= silent < no_picture + no_words + neither or what >= 0.5
    said = Said(nothing if mute else words, torch.zeros_like(seen) if deaf else seen)
    return (clean, said), when


def _recoloured(picture: UInt8[np.ndarray, "3 y x"], number: int, run: Run) -> UInt8[np.ndarray, "3 y x"]:
    """Turn a picture's colours around the grey axis, by a drawn angle, and change its brightness a little."""
    turn, light = torch.special.ndtr(run.noise(f"colours {number}", torch.empty(2).double())).tolist()
    angle = 2 * np.pi * (0.1 + 0.8 * turn)
    grey, cross = np.full((3, 3), 1 / 3), np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    matrix = grey + np.cos(angle) * (np.eye(3) - grey) + np.sin(angle) * cross
    turned = np.tensordot(matrix * (0.85 + 0.3 * light), picture.astype(np.float64), 1)
    return np.asarray(np.rint(turned.clip(0, 255)), np.uint8)


def _pixels(picture: UInt8[np.ndarray, "3 y x"]) -> Float[Tensor, "1 3 y x"]:
    return Video(picture[None], Fraction(1)).pixels()


def _side(parts: Mapping[str, Tensor], ending: str) -> dict[str, Tensor]:
    return {name.removesuffix(ending): value for name, value in parts.items() if name.endswith(ending)}
