"""Pictures that a control network is shown: edges, and how near things are."""

from typing import Final, Self, final

import cv2
import numpy as np
import torch
import transformers
from jaxtyping import Float, UInt8
from torch import Tensor
from transformers import AutoImageProcessor, BaseImageProcessor, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES

from retouch.compute import Compute
from retouch.errors import ModelMismatch, ParamsError
from retouch.models.loading import folder_identity, load_network, placed, quiet, weights_identity
from retouch.models.refs import check_weights, read_config, resolve

DISTANCE: Final = ("zoedepth", "depth_pro", "glpn")
"""Kinds of models that answer distances; others do where their config says metric."""
NEAREST: Final = 1e-3
"""The least distance that is told apart."""


def canny(
    frames: UInt8[np.ndarray, "f 3 h w"], *, low: int = 100, high: int = 200
) -> Float[Tensor, "f 3 h w"]:
    """White edges on black, in [0, 1], three times the same plane, as ControlNet's canny models were shown.

    Args:
        frames: the pictures.
        low: an edge goes on while the gradient is above this.
        high: an edge begins where the gradient is above this.

    Raises:
        ParamsError: the thresholds are in the wrong order, or negative.
    """
    if not 0 <= low <= high:
        raise ParamsError(
            f"canny thresholds are {low} and {high}; they must rise from 0", hint="try 100 and 200"
        )
    edges = np.stack([cv2.Canny(_to_grey(frame), low, high) for frame in frames])
    return torch.from_numpy(edges).float().div(255)[:, None].expand(-1, 3, -1, -1)


def _to_grey(frame: UInt8[np.ndarray, "3 h w"]) -> UInt8[np.ndarray, "h w"]:
    picture = np.ascontiguousarray(frame.transpose(1, 2, 0))
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))


@final
class DepthReader:
    """A depth-estimation model of transformers, such as DPT (MiDaS) or Depth Anything."""

    def __init__(
        self, net: PreTrainedModel, processor: BaseImageProcessor, *, identity: str | None = None
    ) -> None:
        """Take the network and what prepares its pictures; `from_pretrained` is the usual way here."""
        self.net = net
        self.processor = processor
        self._identity = identity

    @classmethod
    def from_pretrained(cls, ref: str, compute: Compute | None = None) -> Self:
        """Load the depth model that `ref` names, from this machine only.

        Raises:
            ModelNotFound: it is not here.
            ModelMismatch: it is no depth model, or its weights are damaged or pickles.
        """
        kind, folder = getattr(transformers, depth_class(ref)), resolve(ref)
        check_weights(folder, ref)
        net = load_network(kind, folder, *placed(compute))
        with quiet():
            processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
        return cls(net, processor, identity=folder_identity(folder))

    @property
    def identity(self) -> str:
        """A hash of weights and configurations."""
        if self._identity is None:
            self._identity = weights_identity({"depth": self.net}, self.processor.to_json_string())
        return self._identity

    @torch.no_grad()
    def nearness(self, frames: UInt8[np.ndarray, "f 3 h w"]) -> Float[Tensor, "f 3 h w"]:
        """Return how near things are, each picture for itself: white is nearest, as ControlNets are shown."""
        like = next(self.net.parameters())
        planes = []
        for frame in frames:
            shown = self.processor(images=frame, input_data_format="channels_first", return_tensors="pt")
            answer = self.net(pixel_values=shown["pixel_values"].to(like))
            found = self.processor.post_process_depth_estimation(answer, target_sizes=[frame.shape[1:]])
            planes.append(self._near(found[0]["predicted_depth"].float()))
        return torch.stack(planes)[:, None].expand(-1, 3, -1, -1).cpu()

    def _near(self, depth: Float[Tensor, "h w"]) -> Float[Tensor, "h w"]:
        """Stretch a depth map to the range from 0, farthest, to 1; where all is equally far, all is 0."""
        config = self.net.config
        if config.model_type in DISTANCE or getattr(config, "depth_estimation_type", "") == "metric":
            depth = 1 / depth.clamp(min=NEAREST)
        low, high = depth.amin(), depth.amax()
        return (depth - low) / (high - low) if high > low else torch.zeros_like(depth)


def depth_class(ref: str) -> str:
    """Return the class of the depth model that `ref` names, which its config states; no weights are read.

    Raises:
        ModelNotFound: it is not on this machine.
        ModelMismatch: it is no depth model.
    """
    config = read_config(resolve(ref) / "config.json", ref)
    named = config.get("architectures")
    kind = str(named[0]) if isinstance(named, list) and named else str(config.get("_class_name"))
    if kind not in MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES.values():
        raise ModelMismatch(
            f"{ref} is a {kind}, no depth model",
            hint="name one in the transformers layout, such as a DPT or a Depth Anything",
        )
    return kind
