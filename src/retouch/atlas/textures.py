"""Pictures in texture space: read them at texture positions, write into them, fill what nobody saw.

Positions are as in `mapping`: x, y in texels with centres at whole numbers. Every function works on one
texture and any number of frames at once, because frames that share a texture only add to one long list of
positions.
"""

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name


def sample_texture(texture: Float[Tensor, "c v u"], uv: Float[Tensor, "f 2 h w"]) -> Float[Tensor, "f c h w"]:
    """Read a texture bilinearly at the given positions; outside, its border goes on."""
    frames, _, height, width = uv.shape
    grid = _sampling_grid(uv, texture.shape[1], texture.shape[2])
    read = F.grid_sample(texture[None], grid, padding_mode="border", align_corners=True)
    return read.view(-1, frames, height, width).movedim(1, 0)


def splat_values(
    values: Float[Tensor, "f c h w"], uv: Float[Tensor, "f 2 h w"], height: int, width: int
) -> Float[Tensor, "c v u"]:
    """Add values into an empty texture, each to the four texels that `sample_texture` would read it from."""
    grid = _sampling_grid(uv, height, width)
    flat = values.movedim(1, 0).flatten(1, 2)[None]  # 1 c (f h) w
    # The transpose of a read is the gradient of that read, which every backend of torch knows.
    empty = values.new_zeros(1, values.shape[1], height, width)
    added: Tensor = torch.ops.aten.grid_sampler_2d_backward(flat, empty, grid, 0, 1, True, (True, False))[0]
    return added[0]


def _sampling_grid(uv: Float[Tensor, "f 2 h w"], height: int, width: int) -> Float[Tensor, "1 n w 2"]:
    """Return positions as `grid_sample` counts them: -1 to 1 between the centres of the outermost texels."""
    scale = uv.new_tensor([2 / max(width - 1, 1), 2 / max(height - 1, 1)])
    return (uv.movedim(1, 3) * scale - 1).flatten(0, 1)[None]


def fill_unseen(
    sums: Float[Tensor, "c v u"], weights: Float[Tensor, "1 v u"], least: float = 1e-3
) -> Float[Tensor, "c v u"]:
    """Divide sums by weights, and take texels that nobody saw from coarser and coarser surroundings."""
    height, width = sums.shape[1:]
    known = weights > least
    value = torch.where(known, sums / weights.clamp(min=least), torch.zeros_like(sums))
    if min(height, width) <= 2 or bool(known.all()):
        mean = (value * known).sum(dim=(1, 2), keepdim=True) / known.sum().clamp(min=1)
        return torch.where(known, value, mean)
    # Each coarser texel is the mean of the known among the four below; half full counts as full.
    below = F.pad(torch.cat([value * known, known.to(value)])[None], (0, width % 2, 0, height % 2))
    coarse = F.avg_pool2d(below, 2)[0]
    filled = fill_unseen(coarse[:-1], coarse[-1:], least)
    spread = F.interpolate(filled[None], scale_factor=2, mode="bilinear", align_corners=False)[0]
    return torch.where(known, value, spread[:, :height, :width])


def shrink_pictures(
    pictures: UInt8[np.ndarray, "f c h w"], height: int, width: int
) -> UInt8[np.ndarray, "f c hh ww"]:
    """Resize pictures by area, which neither blurs nor aliases on the way down."""
    if pictures.shape[2:] == (height, width):
        return np.ascontiguousarray(pictures)
    how = cv2.INTER_AREA if height < pictures.shape[2] else cv2.INTER_LINEAR
    small = [
        cv2.resize(np.ascontiguousarray(p.transpose(1, 2, 0)), (width, height), interpolation=how)
        for p in pictures
    ]
    return np.stack([np.atleast_3d(p).transpose(2, 0, 1) for p in small])


def as_texture(picture: UInt8[np.ndarray, "v u c"]) -> Float[Tensor, "c v u"]:
    """Turn picture bytes into a texture, 0 to 1."""
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))).float() / 255


def as_picture(texture: Float[Tensor, "c v u"]) -> UInt8[np.ndarray, "v u c"]:
    """Turn a texture, 0 to 1, into picture bytes."""
    scaled = (texture.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(scaled.permute(1, 2, 0).numpy())


def gaussian_blur(pictures: Float[Tensor, "f c h w"], sigma: float) -> Float[Tensor, "f c h w"]:
    """Blur with a Gaussian; the border goes on."""
    reach = max(1, round(3 * sigma))
    x = torch.arange(-reach, reach + 1).to(pictures)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = (kernel / kernel.sum())[None, None]
    flat = pictures.flatten(0, 1)[:, None]
    down = F.conv2d(F.pad(flat, (0, 0, reach, reach), mode="replicate"), kernel[..., None])
    both = F.conv2d(F.pad(down, (reach, reach, 0, 0), mode="replicate"), kernel[:, :, None])
    return both.view_as(pictures)
