"""Trains the network of tiny:face to clear a noisy face, told who it is and how it moves.

It gives the clean picture: a square of 4 x 4 pixels is 48 numbers of noise, more than pass through the
channels, while the drawn face in it is far simpler. The gate is a probe that needs no sampling: by how much
the error in the face grows when another's vector is given.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from command import options, tell
from diffusers.models.attention_processor import Attention, AttnProcessor
from face_network import GAIN, identities, motion_of, new_network
from faces import MIRRORED, Faces, held_out, prepared
from torch import Tensor

from retouch.models.face import FaceDiffusion, FaceNetwork, noised, shares_at
from retouch.models.face_losses import LEAST_NOISE
from retouch.models.face_training import held_out_error
from retouch.models.fit import Fit
from retouch.world import PARTS

BATCH: Final = 16
CLEANEST: Final = 40
"""The lowest timestep; below it a drawn picture says nothing that the network could add."""
POINT_NOISE: Final = 0.006
"""How far points are off in training, as read ones will be; the square is 1."""
NOT_FACE: Final = [PARTS.index(name) for name in ("background", "clothes", "neck")]


def batch(
    faces: Faces, vectors: Tensor, generator: torch.Generator, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pixels, face masks, vectors and motions of random moments, half of them mirrored."""
    rows = torch.randperm(len(faces), generator=generator)[:count]
    moments, mirrored = torch.randint(2, (2, count), generator=generator)
    pixels = torch.from_numpy(faces.pixels[rows.numpy(), moments.numpy()]).float() / 127.5 - 1
    parts = torch.from_numpy(faces.parts[rows.numpy(), moments.numpy()])
    points = torch.from_numpy(faces.points[rows.numpy(), moments.numpy()])
    turned = mirrored.bool()
    pixels[turned], parts[turned] = pixels[turned].flip(-1), parts[turned].flip(-1)
    points[turned] = points[turned][:, MIRRORED] * torch.tensor([-1.0, 1.0]) + torch.tensor([1.0, 0.0])
    points = points + POINT_NOISE * torch.randn(points.shape, generator=generator)
    return pixels, face_of(parts), vectors[rows, moments, mirrored], points


def face_of(parts: Tensor) -> Tensor:
    """1 where a picture shows the face, with hair and hat; 0 elsewhere."""
    return 1 - torch.isin(parts.long(), torch.tensor(NOT_FACE)).float()[:, None]


def loss_of(
    network: FaceNetwork,
    pixels: Tensor,
    mask: Tensor,
    vectors: Tensor,
    points: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """The squared error of the clean picture over the share of noise; the face counts double."""
    count = len(pixels)
    spread = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    t = (CLEANEST + (1000 - CLEANEST) * spread).long().clamp(max=999)
    noise = torch.randn(pixels.shape, generator=generator)
    code = network.code(GAIN * vectors, motion_of(points))
    error = (network(noised(pixels, noise, t), t, code) - pixels).square()
    weight = (1 + mask) / shares_at(t, pixels)[1].clamp(min=LEAST_NOISE).square()
    return (error * weight).mean()


def swap_probe(network: FaceNetwork, faces: Faces, vectors: Tensor) -> Mapping[str, float]:
    """The error in the face with its own vector, and its rise with another's, at each probed timestep."""
    pixels = torch.from_numpy(faces.pixels[:, 0]).float() / 127.5 - 1
    mask = face_of(torch.from_numpy(faces.parts[:, 0]))
    motion = motion_of(torch.from_numpy(faces.points[:, 0]))
    return held_out_error(FaceDiffusion.wrap(network), pixels, mask, GAIN * vectors[:, 0, 0], motion)


def train(work: Path, *, images: int, count: int, device: str = "cpu", tested: int = 40) -> Fit[FaceNetwork]:
    """Train until `images` have been seen, counting those of earlier calls."""
    torch.manual_seed(0)
    network = new_network()
    for module in network.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())  # the fused backward pass takes twice as long on a CPU
    fit = Fit(
        network, work / "face-unet", tell=tell, rate=2e-3, keep=0.995, warmup=60, device=device,
        precision=torch.float32, orthogonal=True,
    )  # fmt: skip
    faces, judged = prepared(work, count), held_out(tested)
    vectors, known = identities(work, faces, "train"), identities(work, judged, "held-out")

    def look(generator: torch.Generator) -> tuple[Tensor, int]:
        fit.settle(images, start=0.5)
        return loss_of(fit.network, *batch(faces, vectors, generator, BATCH), generator), BATCH

    return fit.until(images, look, every=200, figures=lambda: swap_probe(fit.network, judged, known))


def main() -> None:
    """Train from the command line."""
    parser = options(__doc__, images=300_000)
    parser.add_argument("--persons", type=int, default=15_000)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    train(asked.work, images=asked.images, count=asked.persons, device=asked.device)


if __name__ == "__main__":
    main()
