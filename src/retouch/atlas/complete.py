"""What no frame showed of a texture, drawn from what is around it (Wexler, Shechtman and Irani 2007).

Each patch that reaches into a hole is replaced by the known patch that is nearest to it, and each pixel of
the hole becomes the mean of what the patches over it say; then again, from coarse to fine. A pattern so goes
on through the hole, where a smooth fill would show as a ghost.
"""

from typing import Final

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

PATCH: Final = 7
"""Texels along a side of a patch."""
ROUNDS, LAST_ROUNDS = 4, 2
"""At each size, and at full size after coarser ones: little is left to find there, and it costs most."""
MOST_SOURCES: Final = 8192
"""Known patches that are looked through."""
AT_ONCE: Final = 2048


def complete_texture(
    texture: Float[Tensor, "3 v u"], hole: Bool[Tensor, "1 v u"], known: Bool[Tensor, "1 v u"]
) -> Float[Tensor, "3 v u"]:
    """Return a texture whose hole goes on with the patterns of what is known; without any, as it is."""
    if not bool(hole.any()) or not bool((known & ~hole).any()):
        return texture
    thick = cv2.distanceTransform(hole[0].cpu().numpy().astype(np.uint8), cv2.DIST_L2, 3).max()
    levels = 1 + max(0, int(np.ceil(np.log2(max(1.0, 2 * float(thick) / PATCH)))))
    shapes = [(max(1, texture.shape[1] >> n), max(1, texture.shape[2] >> n)) for n in range(levels)]
    made = texture
    for height, width in reversed(shapes):
        small = F.interpolate(texture[None], (height, width), mode="area")[0]
        inside = F.adaptive_max_pool2d(hole.float(), (height, width)) > 0
        sure = F.adaptive_avg_pool2d((known & ~hole).float(), (height, width)) > 1 - 1e-6
        finer = F.interpolate(made[None], (height, width), mode="bilinear")[0]
        rounds = LAST_ROUNDS if (height, width) == shapes[0] and levels > 1 else ROUNDS
        made = _fill_level(torch.where(inside, finer, small), inside, sure, rounds)
    return torch.where(hole, made, texture)


def _fill_level(
    picture: Float[Tensor, "3 v u"], hole: Bool[Tensor, "1 v u"], known: Bool[Tensor, "1 v u"], rounds: int
) -> Float[Tensor, "3 v u"]:
    """Return a picture whose hole agrees with the known patches, at one size."""
    near = F.max_pool2d(hole.float(), PATCH, 1, PATCH // 2).flatten() > 0
    bare = F.max_pool2d(F.pad(1 - known.float(), [PATCH // 2] * 4, value=1.0), PATCH, 1).flatten() > 0
    targets, sources = near.nonzero()[:, 0], (~bare).nonzero()[:, 0]
    if not len(targets) or not len(sources):
        return picture
    sources = sources[:: -(-len(sources) // MOST_SOURCES)]
    offered = _patches(picture)[:, sources]
    for number in range(rounds):
        wanted = torch.split(_patches(picture)[:, targets].T, AT_ONCE)
        lengths = offered.square().sum(0)
        nearest = torch.cat([(lengths - 2 * part @ offered).argmin(1) for part in wanted])
        if number == rounds - 1:  # a mean is soft: the last word has the patch about each pixel alone
            said = torch.zeros_like(picture).flatten(1)
            said[:, targets] = offered.view(3, -1, len(sources))[:, PATCH**2 // 2, nearest]
            return torch.where(hole, said.view_as(picture), picture)
        picture = torch.where(hole, _mean_of_patches(offered[:, nearest], targets, picture), picture)
    return picture


def _patches(picture: Float[Tensor, "3 v u"]) -> Float[Tensor, "d n"]:
    """Return the patch about each pixel; beyond the border it goes on."""
    padded = F.pad(picture[None], [PATCH // 2] * 4, mode="replicate")
    return F.unfold(padded, PATCH)[0]


def _mean_of_patches(
    patches: Float[Tensor, "d n"], at: Tensor, like: Float[Tensor, "3 v u"]
) -> Float[Tensor, "3 v u"]:
    """Return what patches about some pixels say together of each."""
    height, width = like.shape[1:]
    both = patches.new_zeros(2, len(patches), height * width)
    both[0, :, at], both[1, :, at] = patches, 1.0
    total, count = F.fold(both, (height + PATCH - 1, width + PATCH - 1), PATCH)[
        ..., PATCH // 2 : PATCH // 2 + height, PATCH // 2 : PATCH // 2 + width
    ]
    mean: Tensor = total / count.clamp(min=1)
    return mean
