"""A picture for a frame is found from any folder."""

from pathlib import Path

import pytest

from retouch.methods.paint.spec import SPEC, PaintParams


def test_a_picture_beside_a_number_becomes_an_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    params = SPEC.fill({"keyframe": ("40=k40.png",)})
    assert isinstance(params, PaintParams)
    assert params.keyframe == (f"40={tmp_path / 'k40.png'}",)


def test_what_names_no_picture_stays_for_the_method_to_refuse() -> None:
    params = SPEC.fill({"keyframe": ("40",)})
    assert isinstance(params, PaintParams)
    assert params.keyframe == ("40",)
