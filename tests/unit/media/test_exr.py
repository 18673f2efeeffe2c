"""Pictures for compositors are read back by a reader of others, value for value."""

from pathlib import Path

import av
import numpy as np
import pytest

from retouch.media.exr import write_exr


def read_back(path: Path) -> np.ndarray:
    """What FFmpeg reads, channel by channel (g, b, r, or one)."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    planes = [
        np.frombuffer(bytes(plane), np.float32).reshape(frame.height, -1)[:, : frame.width]
        for plane in frame.planes
    ]
    return np.stack(planes)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (16, 5), (33, 40)])
def test_colours_come_back_value_for_value(tmp_path: Path, height: int, width: int) -> None:
    rng = np.random.default_rng(height)
    noise = rng.normal(size=(3, height, width)).astype(np.float32)  # below 0 and above 1 as well
    smooth = np.linspace(0, 4, height * width, dtype=np.float32).reshape(height, width)
    for r, g, b in (noise, (smooth, smooth[::-1], noise[0])):
        found = read_back(write_exr(tmp_path / "picture.exr", {"R": r, "G": g, "B": b}))
        np.testing.assert_array_equal(found, np.stack([g, b, r]))


def test_grey_is_one_channel_and_flat_pictures_are_small(tmp_path: Path) -> None:
    grey = np.zeros((64, 64), np.float32)
    grey[20:30, 7] = 0.25
    path = write_exr(tmp_path / "grey.exr", {"Y": grey})
    np.testing.assert_array_equal(read_back(path)[0], grey)
    assert path.stat().st_size < grey.nbytes / 10
