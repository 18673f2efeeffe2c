"""A model adapter as a stranger would write one: a model that is sure that nothing ever moves.

Its latents are pixels times a gain, which its folder says; whatever it is shown, it sees the first frame.
"""

from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from retouch.compute import Compute
from retouch.identity import identity
from retouch.models.image_to_video import Condition, VideoTraits, steps_within
from retouch.models.noise_path import Level, Schedule, target
from retouch.models.refs import read_config, resolve


@final
@dataclass(frozen=True, eq=False)
class StillCondition:
    """The first frame's latents, for every frame."""

    clean: Tensor

    @property
    def identity(self) -> str:
        return identity(self.clean)


@final
class StillVideo:
    """A model on a rectified flow that predicts its first frame everywhere."""

    def __init__(self, gain: float) -> None:
        self.gain = gain
        self.traits = VideoTraits(1, 8, 1, 3, 8, 64 * 64)
        self.device = torch.device("cpu")

    @classmethod
    def from_pretrained(cls, ref: str, compute: Compute | None = None) -> Self:
        del compute
        return cls(float(str(read_config(resolve(ref) / "config.json", ref)["gain"])))

    @property
    def identity(self) -> str:
        return identity(("still", self.gain))

    def with_conditioning(self, *, fps: int, motion_bucket_id: int, noise_aug_strength: float) -> Self:
        del fps, motion_bucket_id, noise_aug_strength
        return self

    def encode(self, pixels: Tensor) -> Tensor:
        return pixels * self.gain

    def decode(self, latents: Tensor, chunk_size: int | None = None) -> Tensor:
        del chunk_size
        return latents / self.gain

    def condition(
        self,
        first: Tensor,
        *,
        frames: int,
        prompt: str = "",
        noise: Tensor | None = None,
        latent: Tensor | None = None,
    ) -> StillCondition:
        del prompt, noise
        return StillCondition((self.encode(first) if latent is None else latent).expand(frames, -1, -1, -1))

    def unconditional(self, condition: Condition) -> Condition:
        return condition

    def schedule(self, steps: int, strength: float, latents: Tensor) -> Schedule:
        del latents
        levels = [Level(1 - n / steps, n / steps, n / steps, "flow") for n in range(steps, -1, -1)]
        return Schedule(tuple(levels), steps - steps_within(steps, strength))

    def predict(
        self,
        x: Tensor,
        level: Level,
        condition: Condition,
        *,
        negative: Condition | None = None,
        guidance: float | Tensor = 1.0,
    ) -> Tensor:
        del negative, guidance
        assert isinstance(condition, StillCondition)
        eps = (x - level.signal * condition.clean) / level.noise
        return target(condition.clean, eps, level)
