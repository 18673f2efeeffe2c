"""Methods keep the contract, on a tiny clip with cheap parameters."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import pytest

from retouch import registry
from retouch.testing import Bouncing, NoOp, check_method


@final
@dataclass(frozen=True)
class Row:
    """How a method is tried cheaply, and how it is asked to change nothing."""

    params: Mapping[str, object] = field(default_factory=dict)
    no_op: NoOp | None = None
    frames: int = 4


ROWS: Mapping[str, Row] = {
    "tint": Row({"steps": 2}, NoOp({"steps": 2, "red": 0.0}, psnr=99)),
}


@pytest.mark.parametrize("name", ROWS)
def test_the_method_keeps_the_contract(name: str, bouncing: Bouncing, tmp_path: Path) -> None:
    row = ROWS[name]
    clip = bouncing.video[: row.frames]
    check_method(registry.method(name), clip, row.params, tmp_path, no_op=row.no_op)
