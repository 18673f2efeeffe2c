"""Whichever image-to-video model lies under a reference."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self, final

from retouch.compute import Compute
from retouch.errors import ModelMismatch
from retouch.models.image_to_video import ImageToVideo, StableVideo
from retouch.models.image_to_video_flow import WanVideo
from retouch.models.refs import read_index, resolve

KINDS: Mapping[str, type[StableVideo] | type[WanVideo]] = {
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
        """Loads the model that `ref` names, from this machine only.

        Raises:
            ModelNotFound: it is not here; the hint says how to get it.
            ModelMismatch: it is no image-to-video model that this package knows.
        """
        kind = str(read_index(resolve(ref), ref).get("_class_name"))
        if kind not in KINDS:
            raise ModelMismatch(
                f"{ref} is a {kind}, no image-to-video model that is known here",
                hint="name Stable Video Diffusion (svd), or tiny:svd, which works without a download",
            )
        return cls(KINDS[kind].from_pretrained(ref, compute))

    @property
    def identity(self) -> str:
        """The model's own."""
        return self.model.identity
