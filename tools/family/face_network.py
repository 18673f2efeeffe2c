"""The network of tiny:face, and what it is shown."""

from pathlib import Path
from typing import Final

import numpy as np
import torch
from faces import SCALE, Faces
from torch import Tensor, nn
from train_face_identity import EncoderWithHeads

from retouch.models.face import FaceConfig, FaceNetwork
from retouch.models.face_parts import SmallIdentity
from retouch.models.fit import load_average
from retouch.world import LANDMARKS

MOTION: Final = [number for number, name in enumerate(LANDMARKS) if name != "chin"]
"""The points that say how a face moves; where the chin lies says who it is."""
WIDTHS: Final = (64, 96)
DETAIL: Final = 8
PATCH: Final = 4
GAIN: Final = 8.0
"""What vectors and points are multiplied by in training, so that their numbers are as large as noise is."""


def config() -> FaceConfig:
    """Return what tiny:face is built from."""
    unet = {
        "sample_size": 16,
        "in_channels": 3 * PATCH**2,
        "out_channels": DETAIL * PATCH**2,
        "block_out_channels": list(WIDTHS),
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": None,
        "norm_num_groups": 16,
        "attn_norm_num_groups": 16,
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "scale_shift",
        "class_embed_type": "identity",
        "time_embedding_dim": 128,
        "freq_shift": 0,
        "flip_sin_to_cos": True,
    }
    return FaceConfig(unet, 64, 2 * len(MOTION), "sample", PATCH, DETAIL, lo=60, hi=800, scale=SCALE)


def new_network() -> FaceNetwork:
    """Return it untrained; its answer starts at nothing."""
    network = FaceNetwork(config())
    nn.init.normal_(network.merge.weight, std=0.1)
    nn.init.zeros_(network.unet.conv_out.weight)
    return network


def motion_of(points: Tensor) -> Tensor:
    """Return how faces move, from landmarks `n landmarks 2`, in the numbers of training."""
    return GAIN * (points[:, MOTION] - 0.5).flatten(1)


def folded(network: FaceNetwork) -> FaceNetwork:
    """Return the network with `GAIN` in its first layer: it takes unit vectors and points as they are."""
    with torch.no_grad():
        weight, bias = network.merge.weight, network.merge.bias
        weight *= GAIN
        bias -= 0.5 * weight[:, network.config.identity :].sum(1)
    return network


def finished_identity(work: Path) -> SmallIdentity:
    """Return the trained identity encoder."""
    return load_average(EncoderWithHeads(), work / "face-identity").encoder


def identities(work: Path, faces: Faces, name: str) -> Tensor:
    """Return the vectors of all moments, `n 2 mirrored features`; a file keeps them for these weights."""
    made = (work / "face-identity" / "checkpoint.safetensors").stat().st_mtime_ns
    path = work / f"face-identities-{name}-{len(faces)}-{made}.npy"
    if not path.exists():
        encoder, rows = finished_identity(work), []
        for start in range(0, len(faces), 64):
            pixels = (
                torch.from_numpy(np.array(faces.pixels[start : start + 64])).flatten(0, 1).float() / 127.5 - 1
            )
            with torch.no_grad():
                both = torch.stack([encoder(pixels), encoder(pixels.flip(-1))], dim=1)
            rows.append(both.unflatten(0, (-1, 2)))
        np.save(path, torch.cat(rows).numpy())
    return torch.from_numpy(np.load(path))
