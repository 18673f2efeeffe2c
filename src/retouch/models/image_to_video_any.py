"""Whichever image-to-video model lies under a reference: ours, or one that a plug-in brings.

A plug-in names its adapter under the entry point group `retouch.models`, by the class of pipeline that the
folders of such models state (`_class_name` in `model_index.json`). The adapter is a class with the method
`from_pretrained(ref, compute)`, whose models are `ImageToVideo`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol, Self, cast, final

from retouch.compute import Compute
from retouch.errors import ModelMismatch
from retouch.models.image_to_video import ImageToVideo, StableVideo
from retouch.models.image_to_video_flow import WanVideo
from retouch.models.refs import read_index, resolve
from retouch.registry import load, plugins

GROUP: Final = "retouch.models"


class Adapter(Protocol):
    """A class whose models are `ImageToVideo`."""

    def from_pretrained(self, ref: str, compute: Compute | None = None) -> ImageToVideo:
        """Load the model that `ref` names, from this machine only."""
        ...


KINDS: Final[Mapping[str, Adapter]] = {
    "StableVideoDiffusionPipeline": StableVideo,
    "WanImageToVideoPipeline": WanVideo,
}


@final
@dataclass(frozen=True, eq=False)
class AnyImageToVideo:
    """A loaded image-to-video model, of the kind that its folder says."""

    model: ImageToVideo

    @classmethod
    def from_pretrained(cls, ref: str, compute: Compute | None = None) -> Self:
        """Load the model that `ref` names, from this machine only.

        Raises:
            ModelNotFound: it is not here; the hint says how to get it.
            ModelMismatch: it is no image-to-video model that this package or a plug-in knows.
            PluginError: the plug-in that should know it does not work.
        """
        kind = str(read_index(resolve(ref), ref).get("_class_name"))
        adapter = KINDS.get(kind) or _from_plug_in(kind)
        if adapter is None:
            raise ModelMismatch(
                f"{ref} is a {kind}, no image-to-video model that is known here",
                hint="name Stable Video Diffusion (svd), or tiny:svd, which works without a download",
            )
        return cls(adapter.from_pretrained(ref, compute))

    @property
    def identity(self) -> str:
        """The model's own."""
        return self.model.identity


def _from_plug_in(kind: str) -> Adapter | None:
    """Load the adapter that a plug-in offers for a kind of pipeline, if one does."""
    known = plugins(GROUP)
    return cast("Adapter", load(known[kind], type)) if kind in known else None
