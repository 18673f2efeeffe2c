"""One edit as a value: the file in the run folder, a batch row, a form's submission. It replays."""

import json
from pathlib import Path
from typing import Literal, Self, final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retouch.compute import Compute
from retouch.errors import RequestError
from retouch.fields import explain
from retouch.params import Params
from retouch.registry import method
from retouch.regular import read_regular

_LARGEST = 1 << 22
"""Bytes that a request may have."""


@final
class Output(BaseModel):
    """How the result is written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    codec: Literal["auto", "h264", "hevc", "vp9", "av1", "prores", "ffv1", "gif", "png"] = Field(
        default="auto", description="Codec of the result; auto goes by the file's suffix, H.264 for most."
    )
    crf: int | None = Field(default=None, ge=0, le=63, description="Quality: lower is better and larger.")
    lossless: bool = Field(default=False, description="Write every pixel exactly as it was computed.")
    bits: Literal[8, 10] = Field(default=8, description="Bits per colour channel.")


@final
class EditRequest(BaseModel):
    """What to do with which clip: video, method, parameters, seed, device, and where the result goes.

    Example:
        >>> EditRequest(video="clip.mp4", method="paint", params={}).seed
        0
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    video: Path = Field(description="The clip: a file, a folder of frames, or a pattern.")
    method: str = Field(min_length=1, description="The method's name.")
    params: dict[str, object] = Field(default_factory=dict, description="The method's parameters.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Where all randomness comes from.")
    range: str = Field(default="", description="The frames to work on, as FIRST-LAST; empty is all.")
    anyway: bool = Field(default=False, description="Go on with words that the model does not know.")
    compute: Compute = Field(default=Compute(), description="Device, precision and limits.")
    output: Output = Field(default=Output(), description="How the result is written.")
    out: Path | None = Field(default=None, description="Where the result goes besides the run folder.")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the request in a JSON file.

        Raises:
            RequestError: there is none, or it says something that no request can say.
        """
        try:
            return cls.from_json(read_regular(path, _LARGEST).decode())
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(
                f"{path} cannot be read: {error}", hint="give a request.json of an earlier run"
            ) from None

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the request that a JSON text describes; raises RequestError as `read` does."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            if not fault["loc"]:
                raise RequestError(
                    "the request is no JSON object: " + fault["msg"].replace("Input should", "it must"),
                    hint="make one with: retouch edit METHOD CLIP --dry-run",
                ) from None
            raise explain(error, cls, kind=RequestError) from None

    def as_json(self) -> str:
        """Return the request as text that `from_json` turns back into an equal one."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"

    def filled(self) -> Params:
        """Return the parameters, checked by their method."""
        return method(self.method).fill(self.params)
