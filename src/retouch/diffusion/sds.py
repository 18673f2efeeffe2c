"""Score distillation: what a diffusion model says about a picture that something else drew.

A rendered picture's latents are noised, the network is asked, and its answer becomes a gradient on the
latents, which the renderer's own parameters then follow (DreamFusion, Poole et al. 2022):

    score distillation   w(t) (predicted - drawn noise)            `score_gradient`, eq. 3 of Poole et al.
    delta denoising      the same, less that of a source picture   `delta_gradient` (Hertz et al. 2023)
    denoising loss       the network's own training loss           `denoising_loss`

The first two take the network as it stands and send no gradient through it; the third does. Guidance moves
the fixed point of the first from the mean of what the prompt shows to beyond it: at weight w between means
m0 and m1 it is m0 + w (m1 - m0). With few geometric parameters that is a wrong size, so weights stay small.
"""

from jaxtyping import Float
from torch import Tensor

from retouch.models.noise_path import Level, step, target


def predicted_noise(
    x: Float[Tensor, "f c h w"], out: Float[Tensor, "f c h w"], level: Level
) -> Float[Tensor, "f c h w"]:
    """Return the noise that a sample holds by the network's answer, whatever kind that is of."""
    clean = step(x, out, level, Level(1.0, 0.0, 0, level.prediction))
    return (x - level.signal * clean) / level.noise


def score_gradient(
    predicted: Float[Tensor, "f c h w"], drawn: Float[Tensor, "f c h w"], level: Level
) -> Float[Tensor, "f c h w"]:
    """Return the gradient of score distillation on the latents, weighted by the noise's variance."""
    return level.noise**2 * (predicted - drawn)


def delta_gradient(
    predicted: Float[Tensor, "f c h w"], of_source: Float[Tensor, "f c h w"], level: Level
) -> Float[Tensor, "f c h w"]:
    """Return the gradient of delta denoising: what is said of the source under its own prompt is taken out.

    Both predictions are for the same level and the same drawn noise, so what the model gets wrong in both
    alike does not count.
    """
    return level.noise**2 * (predicted - of_source)


def gradient_as_loss(z: Float[Tensor, "f c h w"], gradient: Float[Tensor, "f c h w"]) -> Float[Tensor, ""]:
    """Return a loss whose gradient on `z` is `gradient` divided by the number of frames."""
    return (z - (z - gradient).detach()).square().sum() / (2 * len(z))


def denoising_loss(
    out: Float[Tensor, "f c h w"],
    clean: Float[Tensor, "f c h w"],
    eps: Float[Tensor, "f c h w"],
    level: Level,
    where: Float[Tensor, "f 1 h w"],
) -> Float[Tensor, ""]:
    """Return the mean squared error of the network's answer at `add_noise(clean, eps, level)`.

    Args:
        out: The network's answer there.
        clean: The latents.
        eps: The noise that was added.
        level: The level.
        where: How much each place counts.
    """
    error = (out - target(clean, eps, level)).square() * where
    return error.sum() / (where.sum() * clean.shape[1])
