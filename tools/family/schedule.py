"""The noise levels of the family: those that `architecture.SCHEDULER` describes, as tensors."""

from functools import cache

import architecture
import torch
from diffusers import DDIMScheduler
from torch import Tensor


@cache
def alphas() -> Tensor:
    """The share of signal at each of the thousand timesteps."""
    config = {key: value for key, value in architecture.SCHEDULER.items() if not key.startswith("_")}
    return torch.as_tensor(DDIMScheduler(**config).alphas_cumprod)


def noised(z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Latents at the noise level of each timestep."""
    a = alphas()[t][:, None, None, None]
    return a.sqrt() * z + (1 - a).sqrt() * noise


def velocity(z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What a velocity network should answer there."""
    a = alphas()[t][:, None, None, None]
    return a.sqrt() * noise - (1 - a).sqrt() * z
