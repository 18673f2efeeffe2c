"""What a user marks becomes objects, whose names the atlas file takes."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from retouch.atlas.prepare import drawn_marks, marks_from, objects_from_files
from retouch.errors import ParamsError
from retouch.media.io import write_picture
from retouch.video import Video


def blank() -> Video:
    return Video(np.zeros((2, 3, 16, 16), np.uint8), Fraction(10))


@pytest.mark.parametrize("name", ["../up", "/etc/up", "Car", "a.b", "x" * 65])
def test_an_object_is_not_called_what_could_be_a_path(name: str, tmp_path: Path) -> None:
    write_picture(np.full((16, 16), 255, np.uint8), tmp_path / "m.png")
    with pytest.raises(ParamsError, match="no object can be called"):
        marks_from(box=[f"{name}@0:1,1 8,8"])
    with pytest.raises(ParamsError, match="no object can be called"):
        drawn_marks([f"{name}@0={tmp_path / 'm.png'}"], blank())
    assert marks_from(box=["red car_2-b@0:1,1 8,8"])[0].name == "red car_2-b"


def test_masks_give_objects_names_that_the_file_takes(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("Red Car (1).png", "ü.png")]
    for file in files:
        write_picture(np.full((16, 16), 255, np.uint8), file)
    assert objects_from_files(blank(), files).names == ("red car _1_", "_")
