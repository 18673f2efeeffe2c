"""The page's preview looks at an atlas that is there, and waits for none that is being made."""

import threading
from pathlib import Path

import numpy as np
import pytest

from retouch.apps.web.jobs import carry
from retouch.atlas.prepare import atlas_for
from retouch.compute import Compute
from retouch.errors import RequestError
from retouch.events import Event, Started
from retouch.media.io import read, write
from retouch.run import Run
from retouch.testing import Bouncing
from retouch.video import Video


def preview(clip: Path, mask: Path) -> None:
    painting = {"path": str(clip), "keys": {}, "object_of": {"mask": str(mask)}}
    carry(painting=painting, frame=1, out=str(clip.with_suffix(".jpg")))


def test_a_preview_refuses_at_once_while_the_atlas_is_missing_or_being_made(
    bouncing: Bouncing, tmp_path: Path, home: Path
) -> None:
    clip = write(bouncing.video, tmp_path / "clip.mkv")
    mask = write(Video(np.repeat(bouncing.mask, 3, axis=1), bouncing.video.fps), tmp_path / "mask")
    with pytest.raises(RequestError, match="has no atlas of that object yet"):
        preview(clip, mask)
    begun, go_on = threading.Event(), threading.Event()

    def hold(event: Event) -> None:
        if isinstance(event, Started):
            begun.set()
            assert go_on.wait(60)

    def fit() -> None:
        compute = Compute().here()
        run = Run.alone(tmp_path / "run", compute=compute, store=home / "store", listen=hold)
        with compute.repeatable():
            atlas_for(read(clip), run, file=None, masks=[mask], marks=[])

    (tmp_path / "run").mkdir()
    maker = threading.Thread(target=fit)
    maker.start()
    try:
        assert begun.wait(60)
        with pytest.raises(RequestError, match="is being made"):
            preview(clip, mask)
    finally:
        go_on.set()
        maker.join()
    preview(clip, mask)
    assert clip.with_suffix(".jpg").exists()
    write(bouncing.video.like(255 - bouncing.video.frames), clip, force=True)
    with pytest.raises(RequestError, match="has no atlas of that object yet"):
        preview(clip, mask)
