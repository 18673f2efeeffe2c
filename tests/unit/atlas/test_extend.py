"""A longer clip gets a longer atlas, and what was known stays."""

import numpy as np
import pytest
import torch

from retouch.atlas.atlas import Atlas, PackedMattes, pack_matte, reconstruction_decibels
from retouch.atlas.decompose import decompose_clip
from retouch.atlas.extend import extend_atlas
from retouch.atlas.pyramid import AtlasSettings
from retouch.errors import InputError
from retouch.run import Run
from retouch.video import Video


def test_new_frames_are_explained_and_old_ones_untouched(
    clip: Video, mattes: tuple[PackedMattes, ...], run: Run
) -> None:
    first = tuple(
        PackedMattes.pack([pack_matte(m.frame(t)) for t in range(8)], clip.height, clip.width) for m in mattes
    )
    short = decompose_clip(clip[:8], first, ("object", "background"), AtlasSettings(steps=2), run=run)
    long = extend_atlas(short, clip, run=run)
    assert (len(long.mattes[0]), long.frames, long.source) == (10, 10, clip.digest)
    for before, after in zip(short.charts, long.charts, strict=True):
        assert torch.equal(before.texture, after.texture)
        assert torch.equal(before.mapping.controls, after.mapping.controls[: len(before.mapping)])
    known = reconstruction_decibels(long, clip)["all"]
    assert np.mean(known[8:]) > 24
    still = (long.reconstruct(0, 6) - short.reconstruct(0, 6)).abs().max()
    assert float(still) < 1e-5


def test_a_clip_that_begins_otherwise_is_refused(atlas: Atlas, clip: Video, run: Run) -> None:
    with pytest.raises(InputError, match="does not begin"):
        extend_atlas(atlas, clip, run=run)
    other = np.concatenate([clip.frames[::-1], clip.frames])
    with pytest.raises(InputError, match="does not begin"):
        extend_atlas(atlas, Video(other, clip.fps), run=run)
