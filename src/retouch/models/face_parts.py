"""What is read off a face: where it is, its points, who it is, and which part of it each pixel shows.

Three protocols; for each the embedded network, and real ones from files that the user names: none of those
is ours to ship. Crops are squares as the face method cuts them, in [-1, 1].
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol, Self, final, runtime_checkable

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float64, Int, UInt8
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate, normalize, pixel_shuffle
from transformers import AutoModelForSemanticSegmentation

from retouch.compute import Compute
from retouch.errors import ModelMismatch, ModelNotFound
from retouch.identity import file_digest
from retouch.models.face_irse import IrSe
from retouch.models.loading import folder_identity, load_network, placed
from retouch.models.refs import check_weights, read_config, resolve

IMAGENET: Final = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SIDE: Final = 256
"""The side of the crops that the published encoders take."""
CELEBA_MASK: Final = (
    "background", "skin", "brows", "brows", "eyes", "eyes", "glasses", "ears", "ears", "earring", "nose",
    "mouth", "mouth", "mouth", "neck", "necklace", "clothes", "hair", "hat",
)  # fmt: skip
"""What the classes of the published parser show, in its order."""
SAME_PART: Final[Mapping[str, str]] = MappingProxyType(
    {
        "eye_g": "glasses", "l_eye": "eyes", "r_eye": "eyes", "l_brow": "brows", "r_brow": "brows",
        "l_ear": "ears", "r_ear": "ears", "u_lip": "mouth", "l_lip": "mouth", "ear_r": "earring",
        "neck_l": "necklace", "cloth": "clothes",
    }
)  # fmt: skip
"""How other parsers spell the parts."""
JAW: Final = 17
"""Points of 68 that follow the jaw, which says who it is rather than how it moves."""
OUTSIDE_TRAINING: Final = ("background", "clothes", "hat")
OUTSIDE_VIDEO: Final = (*OUTSIDE_TRAINING, "ears", "neck", "hair")
"""Parts where the authors neither compare in training nor change a video."""


@final
@dataclass(frozen=True, eq=False)
class FoundFace:
    """A face in a frame: left and right eye and corner of the mouth as seen, in pixels; and how sure."""

    points: Float64[np.ndarray, "4 2"]
    score: float


@runtime_checkable
class FaceFinder(Protocol):
    """Finds faces in whole frames."""

    def find(self, frame: UInt8[np.ndarray, "3 h w"]) -> Sequence[FoundFace]:
        """Return the faces of a frame, the surest first."""
        ...


@runtime_checkable
class IdentityEncoder(Protocol):
    """Says who a face is, however it moves."""

    def vectors(self, crops: Float[Tensor, "f 3 side side"]) -> Float[Tensor, "f d"]:
        """Return unit vectors; the nearer two are, the more alike the faces."""
        ...


@runtime_checkable
class FaceParser(Protocol):
    """Says which part of a face each pixel shows."""

    @property
    def names(self) -> Sequence[str]:
        """What each number that `parts` gives stands for; one name may stand for several."""
        ...

    def parts(self, crops: Float[Tensor, "f 3 side side"]) -> Int[Tensor, "f side side"]:
        """Return the number of the part that each pixel shows."""
        ...


def mask_of(
    parts: Int[Tensor, "f h w"], names: Sequence[str], wanted: Sequence[str]
) -> Float[Tensor, "f 1 h w"]:
    """Return 1 where one of the wanted parts is shown, 0 elsewhere."""
    numbers = [number for number, name in enumerate(names) if name in wanted]
    return torch.isin(parts, torch.tensor(numbers, device=parts.device))[:, None].float()


def resized(crops: Float[Tensor, "f 3 h w"], side: int) -> Float[Tensor, "f 3 side side"]:
    """Return crops of another side."""
    if crops.shape[-1] == side:
        return crops
    return interpolate(crops, (side, side), mode="bilinear", antialias=True, align_corners=False)


# What the published networks are shown, and what is made of their answers.


def identity_input(crops: Float[Tensor, "f 3 h w"]) -> Float[Tensor, "f 3 112 112"]:
    """Return what the published identity network sees: a fixed box around the face."""
    if crops.shape[-1] != SIDE:
        crops = adaptive_avg_pool2d(crops, SIDE)
    return adaptive_avg_pool2d(crops[..., 35:223, 32:220], 112)


def points_input(crops: Float[Tensor, "f 3 256 256"]) -> Float[Tensor, "f 3 224 224"]:
    """Return what the published network of 68 points sees: the middle, with ImageNet's mean and deviation."""
    return _standardised(crops[..., 16:240, 16:240])


def motion_of_68(raw: Float[Tensor, "f 136"]) -> Float[Tensor, "f 102"]:
    """Return how faces move, of 68 points: the 17 of the jaw, which say who it is, are left out."""
    return raw.clamp(0, 1)[:, 2 * JAW :]


def parser_input(crops: Float[Tensor, "f 3 256 256"]) -> Float[Tensor, "f 3 512 512"]:
    """Return what the published parser sees."""
    return _standardised(interpolate(crops, scale_factor=2.0, mode="nearest"))


def _standardised(crops: Float[Tensor, "f 3 h w"]) -> Float[Tensor, "f 3 h w"]:
    mean, std = (torch.tensor(v, device=crops.device)[:, None, None] for v in IMAGENET)
    return ((crops + 1) / 2 - mean) / std


# The embedded networks.


def _halving(channels: int, wider: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, wider, 3, 2, 1), nn.GroupNorm(8, wider), nn.SiLU())


@final
class SmallIdentity(nn.Module):
    """The embedded identity encoder: four halvings, and one unit vector for who it is."""

    def __init__(self, features: int = 64, widths: Sequence[int] = (3, 16, 32, 64, 96)) -> None:
        """Build it with random weights."""
        super().__init__()
        last = widths[-1]
        halvings = [_halving(n, m) for n, m in itertools.pairwise(widths)]
        self.body = nn.Sequential(
            *halvings, nn.Conv2d(last, last, 3, padding=1), nn.GroupNorm(8, last), nn.SiLU()
        )
        self.head = nn.Linear(16 * last, features)

    def forward(self, crops: Float[Tensor, "f 3 64 64"]) -> Float[Tensor, "f features"]:
        """Return unit vectors: the nearer, the more alike."""
        return normalize(self.head(self.body(crops).flatten(1)).float(), dim=1)

    @torch.no_grad()
    def vectors(self, crops: Float[Tensor, "f 3 side side"]) -> Float[Tensor, "f d"]:
        """As `IdentityEncoder` says."""
        return torch.as_tensor(self(resized(crops, SmallReader.SIDE).to(self.head.weight)))


@final
class SmallReader(nn.Module):
    """The embedded reader of points and parts: down to 4 x 4, up again, then a map for each."""

    SIDE: Final = 64

    def __init__(
        self, points: int = 22, names: Sequence[str] = (), widths: Sequence[int] = (3, 16, 32, 48, 64)
    ) -> None:
        """Build it with random weights; `names` are those of the parts."""
        super().__init__()
        self.points, self.names = points, tuple(names)
        self.down = nn.ModuleList(_halving(n, m) for n, m in itertools.pairwise(widths))
        ups = list(itertools.pairwise(list(widths[:0:-1])))
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv2d(n + m, m, 3, padding=1), nn.GroupNorm(8, m), nn.SiLU()) for n, m in ups
        )
        self.head = nn.Conv2d(widths[1], points + 4 * len(self.names), 3, padding=1)

    def forward(
        self, crops: Float[Tensor, "f 3 h w"]
    ) -> tuple[Float[Tensor, "f points 2"], Float[Tensor, "f parts h w"]]:
        """Return points, 0 to 1 from edge to edge, and the scores of each part."""
        seen = [crops]
        for down in self.down:
            seen.append(down(seen[-1]))
        h = seen.pop()
        for up in self.up:
            h = up(torch.cat([interpolate(h, scale_factor=2.0), seen.pop()], dim=1))
        maps, parts = self.head(h).float().tensor_split([self.points], dim=1)
        rows, columns = ((torch.arange(side, device=maps.device) + 0.5) / side for side in maps.shape[2:])
        share = maps.flatten(2).softmax(2).unflatten(2, maps.shape[2:])  # f points v u
        spots = torch.stack([(share.sum(2) * columns).sum(2), (share.sum(3) * rows).sum(2)], dim=2)
        return spots, pixel_shuffle(parts, 2)

    @torch.no_grad()
    def parts(self, crops: Float[Tensor, "f 3 side side"]) -> Int[Tensor, "f side side"]:
        """As `FaceParser` says."""
        return torch.as_tensor(self(crops.to(self.head.weight))[1].argmax(1))


# Real ones, from files.


@final
class YuNetFinder:
    """YuNet (Wu et al. 2023) through OpenCV: the user gives its ONNX file."""

    def __init__(self, path: Path, threshold: float = 0.7) -> None:
        """Load the file.

        Raises:
            ModelNotFound: it is not there.
            ModelMismatch: OpenCV cannot use it.
        """
        _check_file(path)
        self._identity = f"{file_digest(path)} {threshold}"
        try:
            self.detector = cv2.FaceDetectorYN.create(str(path), "", (320, 320), threshold)
        except cv2.error as problem:
            raise ModelMismatch(
                f"OpenCV cannot use {path.name} as YuNet: {problem.err}",
                hint="OpenCV 5 needs the 2026may file",
            ) from None

    @property
    def identity(self) -> str:
        """A hash of the file, and how sure a face must be."""
        return self._identity

    def find(self, frame: UInt8[np.ndarray, "3 h w"]) -> Sequence[FoundFace]:
        """As `FaceFinder` says; YuNet lists the subject's right eye first, which lies left in the picture."""
        self.detector.setInputSize((frame.shape[2], frame.shape[1]))
        _, rows = self.detector.detect(np.ascontiguousarray(frame[::-1].transpose(1, 2, 0)))
        if rows is None:
            return []
        points = rows[:, 4:14].reshape(-1, 5, 2).astype(np.float64)[:, [0, 1, 3, 4]]
        found = [FoundFace(p, float(row[14])) for p, row in zip(points, rows, strict=True)]
        return sorted(found, key=lambda face: -face.score)


@final
class OnnxNetwork:
    """A network in an ONNX file, run by OpenCV on the CPU; its first output is what it says."""

    def __init__(self, path: Path) -> None:
        """Load the file.

        Raises:
            ModelNotFound: it is not there.
            ModelMismatch: it is no ONNX file that OpenCV can run.
        """
        _check_file(path)
        try:
            self.net = cv2.dnn.readNetFromONNX(str(path))
        except cv2.error as problem:
            raise ModelMismatch(
                f"OpenCV cannot read {path.name}: {problem.err}", hint="give an ONNX file"
            ) from None

    def __call__(self, batch: Float[Tensor, "f 3 h w"]) -> Tensor:
        """Return what it says of each picture; one at a time, as most files fix the batch."""
        said = []
        for picture in batch.float().cpu().numpy():
            self.net.setInput(picture[None])
            said.append(torch.from_numpy(self.net.forward().copy()))
        return torch.cat(said)


@final
@dataclass(frozen=True, eq=False)
class ArcFace:
    """An identity network of ArcFace's kind, from an ONNX or a safetensors file (IR-SE-50)."""

    network: OnnxNetwork | IrSe

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Load it.

        Raises:
            ModelNotFound: it is not there.
            ModelMismatch: it holds something else.
        """
        _check_file(path)
        if path.suffix == ".onnx":
            return cls(OnnxNetwork(path))
        network = IrSe()
        try:
            network.load_state_dict(load_file(path))
        except Exception as problem:
            raise ModelMismatch(
                f"{path.name} is no IR-SE-50: {problem}", hint="give ONNX or safetensors"
            ) from None
        return cls(network.eval().requires_grad_(False))

    @torch.no_grad()
    def vectors(self, crops: Float[Tensor, "f 3 side side"]) -> Float[Tensor, "f d"]:
        """As `IdentityEncoder` says."""
        return normalize(self.network(identity_input(crops)), dim=1)


@final
@dataclass(frozen=True, eq=False)
class OnnxParser:
    """A parser of the published kind (BiSeNet, 19 classes) in an ONNX file."""

    network: OnnxNetwork
    names: Sequence[str] = CELEBA_MASK

    def parts(self, crops: Float[Tensor, "f 3 side side"]) -> Int[Tensor, "f side side"]:
        """As `FaceParser` says."""
        scores = self.network(parser_input(interpolate(crops, (SIDE, SIDE))))
        return interpolate(scores.argmax(1)[:, None].float(), crops.shape[-2:]).long()[:, 0]


@final
class SegmentationParser:
    """A parser in transformers' layout, such as SegFormer; what its classes show is read from its config."""

    def __init__(self, network: nn.Module, names: Sequence[str], *, identity: str = "") -> None:
        """Take the network as it is; `from_pretrained` is the usual way here."""
        self.network, self.names, self.identity = network, tuple(names), identity

    @classmethod
    def from_pretrained(cls, ref: str, compute: Compute | None = None) -> Self:
        """Load the parser that `ref` names, from this machine only.

        Raises:
            ModelNotFound: it is not here.
            ModelMismatch: its classes are not the parts of a face.
        """
        folder = resolve(ref)
        check_weights(folder, ref)
        labels = read_config(folder / "config.json", ref).get("id2label")
        given = [str(name) for name in labels.values()] if isinstance(labels, Mapping) else []
        names = [SAME_PART.get(name, name) for name in given]
        if not {"skin", "hair"} <= set(names):
            raise ModelMismatch(f"{ref} does not tell skin and hair apart", hint="give a parser of faces")
        network = load_network(AutoModelForSemanticSegmentation, folder, *placed(compute))
        return cls(network, names, identity=folder_identity(folder))

    @torch.no_grad()
    def parts(self, crops: Float[Tensor, "f 3 side side"]) -> Int[Tensor, "f side side"]:
        """As `FaceParser` says."""
        like = next(self.network.parameters())
        large = interpolate(crops, (2 * SIDE, 2 * SIDE), mode="bilinear", align_corners=False)
        scores = self.network(pixel_values=_standardised(large).to(like)).logits
        full = interpolate(scores.float(), crops.shape[-2:], mode="bilinear", align_corners=False)
        return full.argmax(1)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ModelNotFound(f"{path} is not there", hint="name the file; none comes with this package")
