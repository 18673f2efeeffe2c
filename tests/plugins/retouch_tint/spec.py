"""What the method is; torch stays out of here."""

from typing import Annotated

from pydantic import Field

from retouch.params import Formerly, Params, Steps, Strength
from retouch.spec import MethodSpec


class TintParams(Params):
    """How strongly which rows are tinted."""

    red: Annotated[
        float, Field(ge=-1, le=1, description="How much redder it becomes."), Formerly("redness")
    ] = 0.5
    rows: Annotated[
        float, Field(gt=0, le=1, description="Share of the rows, from above, that may change.")
    ] = 0.5
    strength: Strength = 1.0
    steps: Steps = 6
    ends: Annotated[bool, Field(description="End the process that edits, by force.")] = False
    pause: Annotated[float, Field(ge=0, description="Seconds to wait in each step.")] = 0.0


SPEC = MethodSpec(
    name="tint",
    title="Tint",
    summary="Lay a fitted colour over the upper rows.",
    params=TintParams,
    edit="retouch_tint.edit:edit",
    presets={"paper": {"steps": 12}, "laptop": {"steps": 3, "red": 0.25}},
)
