"""A diffusion video autoencoder with all that it needs: the network, and what reads faces for it.

A folder holds the network, `identity`, `reader` and, if the model has been told of any, `attributes` and
`words`, which may be a CLIP. A model whose encoders are the published ones has their files instead:
`identity.onnx` or `identity.safetensors`, `points.onnx` and `parser.onnx`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, Self, final, runtime_checkable

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d, pad

from retouch.compute import Compute
from retouch.errors import ModelMismatch
from retouch.models.clip import TextImage
from retouch.models.face import FaceDiffusion
from retouch.models.face_attributes import Attributes
from retouch.models.face_parts import (
    SIDE,
    ArcFace,
    IdentityEncoder,
    OnnxNetwork,
    OnnxParser,
    SmallIdentity,
    SmallReader,
    mask_of,
    motion_of_68,
    points_input,
    resized,
)
from retouch.models.face_words import EncodedWords, FaceWords, SmallWords
from retouch.models.loading import folder_identity, placed
from retouch.models.refs import check_weights, read_config, resolve

WORDS: Final = "words"
"""The folder of what compares faces with sentences."""
BESIDE_NETWORK: Final = (
    "identity", "identity.onnx", "identity.safetensors", "reader", "points.onnx", "parser.onnx", "attributes",
    WORDS,
)  # fmt: skip
"""What lies beside the network's own files in the folder of a model."""
WHO_IT_IS: Final = ("chin",)
"""Points that are left out of the motion: where they lie says who it is."""
ANCHORS: Final = ("left eye", "right eye", "mouth left", "mouth right")
"""The points that the square follows from, left ones first as seen."""
NEAR: Final = 3
"""Pixels around a point in which the part that belongs there counts."""
EYES: Final = ("eyes", "glasses")
BELOW_EYES: Final = ("nose", "skin", "beard", "mouth")
LAYOUT: Final = ((-6, -1, EYES), (6, -1, EYES), (0, 5, BELOW_EYES), (0, 11, ("mouth",)))
"""Where parts lie from the middle of a square of 64 pixels: columns, rows, and which parts."""
LAYOUT_SLACK: Final = 9
"""Pixels, odd, within which a part of the layout may lie."""


@final
@dataclass(frozen=True, eq=False)
class Reading:
    """What was read off cut-out faces: points, 0 to 1 from edge to edge, what pixels show, and how surely."""

    points: Float[Tensor, "f points 2"]
    parts: Int[Tensor, "f side side"]
    score: Float[Tensor, " f"]


@runtime_checkable
class FaceReader(Protocol):
    """Reads points and parts off cut-out faces."""

    @property
    def point_names(self) -> Sequence[str]:
        """What the points are called; none where they are the published ones."""
        ...

    @property
    def part_names(self) -> Sequence[str]:
        """What the numbers of parts stand for."""
        ...

    def read(self, crops: Float[Tensor, "f 3 side side"]) -> Reading:
        """Return what crops show."""
        ...

    def motion(self, points: Float[Tensor, "f points 2"]) -> Float[Tensor, "f motion"]:
        """Return how faces move, of their points."""
        ...


@final
@dataclass(frozen=True, eq=False)
class SmallFaceReader:
    """The embedded reader: one network for points and parts, which says where a face is, too."""

    network: SmallReader
    point_names: Sequence[str]

    @property
    def part_names(self) -> Sequence[str]:
        """As `FaceReader` says."""
        return self.network.names

    @torch.no_grad()
    def read(self, crops: Float[Tensor, "f 3 side side"]) -> Reading:
        """As `FaceReader` says; the score is the least share of the parts that eyes and mouth should show."""
        like = self.network.head.weight
        points, scores = self.network(resized(crops, SmallReader.SIDE).to(like))
        share, side = scores.softmax(1), scores.shape[-1]
        found = []
        for point, parts in (
            ("left eye", EYES),
            ("right eye", EYES),
            ("mouth top", ("mouth",)),
            ("nose tip", BELOW_EYES),
        ):
            shown = [number for number, name in enumerate(self.part_names) if name in parts]
            near = max_pool2d(share[:, shown].sum(1, keepdim=True), NEAR, 1, NEAR // 2)[:, 0]
            at = (points[:, list(self.point_names).index(point)] * side).long().clamp(0, side - 1)
            found.append(near[torch.arange(len(at)), at[:, 1], at[:, 0]])
        return Reading(points, resized_parts(scores.argmax(1), crops.shape[-1]), torch.stack(found).amin(0))

    @torch.no_grad()
    def likely_middles(self, picture: Float[Tensor, "1 3 h w"]) -> Float[Tensor, "h w"]:
        """Return how likely each pixel is the middle of a face whose square is 64 pixels wide.

        The network sees the whole picture at once; sides are multiples of 16.
        """
        share, border = self.network(picture.to(self.network.head.weight))[1].softmax(1)[0], 16
        shifted = []
        for right, down, names in LAYOUT:
            shown = share[[number for number, name in enumerate(self.part_names) if name in names]].sum(0)
            near = max_pool2d(shown[None], LAYOUT_SLACK, 1, LAYOUT_SLACK // 2)[0]
            padded, (h, w) = pad(near, (border,) * 4), shown.shape
            shifted.append(padded[border + down : border + down + h, border + right : border + right + w])
        return torch.stack(shifted).amin(0)

    def motion(self, points: Float[Tensor, "f points 2"]) -> Float[Tensor, "f motion"]:
        """As `FaceReader` says."""
        kept = [number for number, name in enumerate(self.point_names) if name not in WHO_IT_IS]
        return points[:, kept].flatten(1)


@final
@dataclass(frozen=True, eq=False)
class PublishedReader:
    """The published networks: 68 points, and a parser of 19 classes."""

    points: OnnxNetwork
    parser: OnnxParser
    point_names: Sequence[str] = ()

    @property
    def part_names(self) -> Sequence[str]:
        """As `FaceReader` says."""
        return self.parser.names

    def read(self, crops: Float[Tensor, "f 3 side side"]) -> Reading:
        """As `FaceReader` says; a finder has found the face, so that every score is 1."""
        raw = self.points(points_input(resized(crops, 256)))
        points = motion_of_68(raw.flatten(1)).reshape(len(crops), -1, 2)
        return Reading(points, self.parser.parts(crops), torch.ones(len(crops)))

    def motion(self, points: Float[Tensor, "f points 2"]) -> Float[Tensor, "f motion"]:
        """As `FaceReader` says."""
        return points.flatten(1)


@final
@dataclass(frozen=True, eq=False)
class FaceModel:
    """The network and its readers, as a method uses them."""

    diffusion: FaceDiffusion
    encoder: IdentityEncoder
    reader: FaceReader
    attributes: Attributes | None
    digest: str
    words: FaceWords | None = None

    @classmethod
    def from_pretrained(cls, ref: str, compute: Compute | None = None) -> Self:
        """Load the model that `ref` names, from this machine only.

        Raises:
            ModelNotFound: it is not here.
            ModelMismatch: the folder holds another kind of model, or one that is damaged.
        """
        folder, diffusion = resolve(ref), FaceDiffusion.from_pretrained(ref, compute)
        encoder, reader = load_encoder(folder, ref, compute), load_reader(folder, ref, compute)
        return cls.assembled(ref, diffusion, encoder, reader, compute)

    @classmethod
    def untrained(cls, ref: str, compute: Compute | None = None) -> Self:
        """Load what reads faces for a model, with a new network for it.

        Raises:
            ModelNotFound: it is not here.
            ModelMismatch: the folder holds another kind of model, or one that is damaged.
        """
        folder = resolve(ref)
        encoder, reader = load_encoder(folder, ref, compute), load_reader(folder, ref, compute)
        crops = torch.zeros(1, 3, SIDE, SIDE, device=placed(compute)[0])
        identity = encoder.vectors(crops).shape[1]
        motion = reader.motion(reader.read(crops).points).shape[1]
        diffusion = FaceDiffusion.untrained(ref, compute, identity=identity, motion=motion)
        return cls.assembled(ref, diffusion, encoder, reader, compute)

    @classmethod
    def assembled(
        cls,
        ref: str,
        diffusion: FaceDiffusion,
        encoder: IdentityEncoder,
        reader: "FaceReader",
        compute: Compute | None,
    ) -> Self:
        """Return a model of its parts, with the attributes and words that lie in the folder of `ref`."""
        folder = resolve(ref)
        named = folder / "attributes"
        attributes = Attributes.from_folder(named, ref) if named.is_dir() else None
        words = load_words(folder, ref, encoder, compute) if (folder / WORDS).is_dir() else None
        model = cls(diffusion, encoder, reader, attributes, folder_identity(folder), words)
        model.check(ref)
        return model

    def check(self, ref: str) -> None:
        """Raise ModelMismatch where the parts do not go together, or are damaged."""
        side = self.side
        with torch.no_grad():
            crops = torch.zeros(1, 3, side, side, device=self.device)
            who, points = self.encoder.vectors(crops), self.reader.read(crops).points
            motion = self.reader.motion(points)
        config = self.diffusion.config
        found, wanted = (who.shape[1], motion.shape[1]), (config.identity, config.motion)
        if found != wanted:
            raise ModelMismatch(
                f"the encoders of {ref} give {found[0]} and {found[1]} numbers; its network takes {wanted}",
                hint="each network belongs to the encoders that it was trained with",
            )
        if not bool(torch.isfinite(who).all() and torch.isfinite(motion).all()):
            raise ModelMismatch(
                f"the encoders of {ref} give values that are not numbers", hint="get the model again"
            )

    @property
    def identity(self) -> str:
        """A hash of all weights."""
        return self.digest

    @property
    def side(self) -> int:
        """The side of the crops, in pixels."""
        return self.diffusion.config.side

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.diffusion.network.merge.weight.device

    def vectors(self, crops: Float[Tensor, "f 3 side side"]) -> Float[Tensor, "f d"]:
        """Return unit vectors that say who each face is."""
        return self.encoder.vectors(crops).float().cpu()

    def mask(self, parts: Int[Tensor, "f h w"], *names: str) -> Float[Tensor, "f 1 h w"]:
        """Return 1 where one of the named parts is shown, 0 elsewhere."""
        return mask_of(parts, self.reader.part_names, names)


def load_encoder(folder: Path, ref: str, compute: Compute | None) -> IdentityEncoder:
    """Return the identity encoder of a model."""
    for suffix in (".onnx", ".safetensors"):
        if (file := folder / f"identity{suffix}").is_file():
            return ArcFace.from_file(file)
    config = part_config(folder / "identity", "SmallIdentity", ref)
    encoder = SmallIdentity(int(str(config["features"])))
    fill(encoder, folder / "identity", ref, compute)
    return encoder


def load_reader(folder: Path, ref: str, compute: Compute | None) -> FaceReader:
    """Return what reads points and parts for a model."""
    if (file := folder / "points.onnx").is_file():
        return PublishedReader(OnnxNetwork(file), OnnxParser(OnnxNetwork(folder / "parser.onnx")))
    config = part_config(folder / "reader", "SmallReader", ref)
    points, parts = config["points"], config["parts"]
    if not (isinstance(points, list) and isinstance(parts, list) and {*ANCHORS} <= {*points}):
        raise ModelMismatch(f"the reader of {ref} names no eyes and mouth", hint="get the model again")
    network = SmallReader(len(points), parts)
    fill(network, folder / "reader", ref, compute)
    return SmallFaceReader(network, tuple(points))


def load_words(folder: Path, ref: str, encoder: IdentityEncoder, compute: Compute | None) -> FaceWords:
    """Return what compares faces with sentences for a model: a CLIP, or the embedded network.

    Raises:
        ModelMismatch: it is neither, or does not go with the identity encoder.
    """
    if read_config(folder / WORDS / "config.json", ref).get("model_type") == "clip":
        return TextImage.from_pretrained(str(folder / WORDS), compute)
    config = part_config(folder / WORDS, "SmallWords", ref)
    features, known = int(str(config["identity"])), config["words"]
    if not (isinstance(encoder, SmallIdentity) and encoder.head.out_features == features):
        raise ModelMismatch(
            f"the words of {ref} belong to identities of {features} features",
            hint="put a CLIP in the folder words",
        )
    if not isinstance(known, list):
        raise ModelMismatch(f"the words of {ref} are not listed", hint="get the model again")
    network = SmallWords(known, features)
    fill(network, folder / WORDS, ref, compute)
    return EncodedWords(network, lambda pixels: encoder(resized(pixels, SmallReader.SIDE)))


def part_config(folder: Path, kind: str, ref: str) -> dict[str, Any]:
    """Return the configuration of a part of a model.

    Raises:
        ModelMismatch: there is none, or it is of another kind.
    """
    check_weights(folder, ref)
    config = dict(read_config(folder / "config.json", ref))
    if config.get("_class_name") != kind:
        raise ModelMismatch(f"{folder} is no {kind}", hint="get the model again")
    return config


def fill(network: nn.Module, folder: Path, ref: str, compute: Compute | None) -> None:
    """Put the weights of a folder into a network, in place and frozen.

    Raises:
        ModelMismatch: they do not fit.
    """
    try:
        network.load_state_dict({n: v.float() for n, v in load_file(folder / "model.safetensors").items()})
    except (RuntimeError, OSError) as problem:
        raise ModelMismatch(
            f"the {folder.name} of {ref} does not fit its config.json: {problem}", hint="get the model again"
        ) from None
    device, _ = placed(compute)
    network.to(device).eval().requires_grad_(False)  # in full precision: they are small


def save_part(network: nn.Module, folder: Path, config: dict[str, object]) -> None:
    """Write a part of a model, in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def resized_parts(parts: Int[Tensor, "f h w"], side: int) -> Int[Tensor, "f side side"]:
    """Return maps of parts at another side."""
    return interpolate(parts[:, None].float(), (side, side)).long()[:, 0]
