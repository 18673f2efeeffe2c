"""Guidance over two conditions: a picture that should be heard, and words on top of it.

Classifier-free guidance goes from one prediction past another (`retouch.models.noise_path.guided`). With two
conditions it goes twice, each time with its own weight, as in InstructPix2Pix (Brooks et al. 2023).
"""

from jaxtyping import Float
from torch import Tensor


def nested(
    base: Float[Tensor, "f c h w"],
    picture: Float[Tensor, "f c h w"],
    words: Float[Tensor, "f c h w"],
    *,
    picture_guidance: float,
    guidance: float,
) -> Float[Tensor, "f c h w"]:
    """Go from a prediction towards that for a picture, and from there towards that for words too.

    At equal weights it is guidance from `base` to `words`; at guidance 0 it does not depend on the words.

    Args:
        base: The prediction to lead away from: for nothing, or for what the source shows.
        picture: The prediction under the picture, with the words of `base`.
        words: The prediction under the picture and the words.
        picture_guidance: How strongly the picture steers.
        guidance: How strongly the words steer.
    """
    return base + picture_guidance * (picture - base) + guidance * (words - picture)
