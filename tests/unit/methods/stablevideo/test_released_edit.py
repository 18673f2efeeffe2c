"""The released way of StableVideo from words to a clip, with the embedded models."""

from pathlib import Path

import numpy as np
import pytest
import torch

from retouch.atlas.atlas import Atlas, PackedMattes, pack_matte
from retouch.errors import ParamsError
from retouch.events import Event, Reused
from retouch.media.io import write
from retouch.media.probe import probe
from retouch.methods.stablevideo.edit import edit, preflight
from retouch.methods.stablevideo.released import check_released, random_crops
from retouch.methods.stablevideo.spec import SPEC, StableVideoParams
from retouch.metrics.fidelity import psnr
from retouch.run import Run
from retouch.video import Video
from retouch.world import Clip, Scene

SIDE = 132
"""The released code takes boxes of 129 pixels."""
SHOWN_DB = 24.0
"""Decibels that the atlas shows the ground with; the released code reads it half a texel beside."""


def params(clip: Clip, folder: Path, **more: object) -> StableVideoParams:
    mask = np.repeat((clip.masks[0] > 0).astype(np.uint8) * 255, 3, axis=1)
    given = {"prompt": "a blue ball on sand", "mask": write(Video(mask, clip.video.fps), folder / "mask")}
    filled = SPEC.fill({**given, "faithful": True, "steps": 5, "at": (0, 2), **more})
    assert isinstance(filled, StableVideoParams)
    return filled


@pytest.mark.slow
def test_the_object_is_edited_and_both_layers_are_shown_off_the_atlas(tmp_path: Path) -> None:
    clip = Clip.of(Scene.of("a red ball on sand", seed=1), 3, SIDE)
    given, events = params(clip, tmp_path), list[Event]()
    made = edit(clip.video, given, Run.alone(tmp_path / "run", store=tmp_path / "store"))
    frames = np.array(made.video.frames)
    inside = clip.shares[:, :1] > 250
    reddest = clip.video.frames[:, :1].astype(int) - clip.video.frames[:, 2:] > 100
    red, blue = (frames[:, channel][(inside & reddest)[:, 0]].astype(int) for channel in (0, 2))
    assert np.median(blue - red) > 30
    ground = clip.shares[:, :1] == 0
    # Nobody edited the ground, and it loses all the same.
    assert SHOWN_DB < psnr(frames, clip.video.frames, ground) < 60
    assert set(made.extras) == {"object-k0", "object-k2"}
    run = Run.alone(tmp_path / "more", store=tmp_path / "store", listen=events.append)
    again = edit(clip.video, given, run)
    assert np.array_equal(again.video.frames, frames)
    assert sum(isinstance(e, Reused) and e.kind == "released_keyframe" for e in events) == 2


def test_a_random_crop_is_a_large_part_of_its_box_and_the_seed_decides_it() -> None:
    boxes = torch.tensor([[3, 5, 129, 200], [0, 0, 140, 129]])
    y, x, height, width = random_crops(boxes, 4).T
    assert (height >= 0.95 * boxes[:, 2] - 1).all()
    assert (width >= 0.95 * boxes[:, 3] - 1).all()
    for start, side, begun, long in ((y, height, 0, 2), (x, width, 1, 3)):
        assert (start >= boxes[:, begun]).all()
        assert (start + side <= boxes[:, begun] + boxes[:, long]).all()
    assert torch.equal(random_crops(boxes, 4), random_crops(boxes, 4))
    assert not torch.equal(random_crops(boxes, 4), random_crops(boxes, 5))


def test_a_clip_smaller_than_its_boxes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    clip = Clip.of(Scene.of("a red ball on sand", seed=1), 3, 64)
    facts = probe(write(clip.video, tmp_path / "clip.mkv"))
    with pytest.raises(ParamsError, match="the clip is 64x64; the released code takes boxes of 129"):
        preflight(facts, params(clip, tmp_path), lambda _: None)


def test_an_atlas_of_several_pictures_a_layer_is_refused() -> None:
    clip = Clip.of(Scene.of("a red ball on sand", seed=1), 2, 16)
    mattes = PackedMattes.pack([pack_matte(np.full((16, 16), 255, np.uint8))] * 2, 16, 16)
    none = Atlas(("object", "background"), (), (mattes,), 2, 16, 16, clip.video.fps, "")
    with pytest.raises(ParamsError, match="0 pictures of 2 layers"):
        check_released(none)


@pytest.mark.parametrize("given", [{"edits": "both"}, {"editor": "tiny:sd"}, {"edges": 0}, {"strength": 1}])
def test_what_the_released_code_does_not_know_cannot_be_asked_of_it(given: dict[str, object]) -> None:
    with pytest.raises(ParamsError, match="faithful"):
        SPEC.fill({"prompt": "a ball", "faithful": True, **given})
