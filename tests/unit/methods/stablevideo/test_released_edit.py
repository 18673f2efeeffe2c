"""The released way of StableVideo from words to a clip, with the embedded models."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from retouch.atlas.atlas import Atlas, PackedMattes, pack_matte
from retouch.errors import ParamsError
from retouch.events import Event, Reused
from retouch.media.io import write
from retouch.media.probe import probe
from retouch.methods.stablevideo.edit import edit, preflight
from retouch.methods.stablevideo.released import (
    NETWORK_STEPS,
    aggregated,
    check_released,
    median_of,
    new_network,
    random_crops,
    read_at,
    train_step,
    trained,
)
from retouch.methods.stablevideo.spec import SPEC, StableVideoParams
from retouch.metrics.fidelity import psnr
from retouch.run import Run
from retouch.video import Video
from retouch.world import Clip, Scene

SIDE = 132
"""The released code takes boxes of 129 pixels."""
ROUNDING = 1e-6
"""What two orders of the same sums differ by."""
SHOWN_DB = 24.0
"""Decibels that the atlas shows the ground with; the released code reads it half a texel beside."""


def params(clip: Clip, folder: Path, **more: object) -> StableVideoParams:
    mask = np.repeat((clip.masks[0] > 0).astype(np.uint8) * 255, 3, axis=1)
    given = {
        "prompt": "a blue ball on sand",
        "mask": write(Video(mask, clip.video.fps), folder / "mask", force=True),
    }
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


def test_the_network_learns_what_key_frames_show_and_begins_with_its_seed() -> None:
    rng = np.random.default_rng(0)
    wanted = torch.from_numpy(np.kron(rng.random((2, 3, 4, 4)), np.ones((6, 6)))).float()
    lines = torch.linspace(-1, 1, 24) * (1 - 1 / 24)
    grid = torch.stack(torch.meshgrid(lines, lines, indexing="xy"), -1)[None]
    views = [(grid, picture) for picture in wanted]
    median = median_of(wanted)
    first, second, losses = trained(median, views, *new_network(3), steps=300)
    assert losses[-1] < losses[0]
    assert losses[-1] == pytest.approx(float(train_step(median, views, [first, second], zeros())), rel=0.05)
    assert torch.equal(new_network(3)[0], new_network(3)[0])
    assert not torch.equal(new_network(3)[0], new_network(4)[0])
    other = torch.optim.SGD(weights := [w.requires_grad_() for w in new_network(3)], lr=1e-3, momentum=0.9)
    for _ in range(3):  # PyTorch's own optimiser goes the same way
        made = aggregated(median, *weights)
        loss = torch.stack([(read_at(made, at)[0] - shown).abs().mean() for at, shown in views]).sum()
        other.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        other.step()
    ours = trained(median, views, *new_network(3), steps=3)
    assert torch.allclose(ours[0], weights[0], atol=ROUNDING)
    assert torch.allclose(ours[1], weights[1], atol=ROUNDING)


def zeros() -> list[torch.Tensor]:
    return [torch.zeros(64, 3, 3, 3) for _ in range(2)]


@pytest.mark.slow
def test_the_network_is_trained_on_the_released_median_where_it_is_asked_for(tmp_path: Path) -> None:
    clip = Clip.of(Scene.of("a red ball on sand", seed=1), 3, SIDE)
    given = params(clip, tmp_path, aggregation="network")
    made = edit(clip.video, given, Run.alone(tmp_path / "run", store=tmp_path / "store"))
    plain = edit(clip.video, params(clip, tmp_path), Run.alone(tmp_path / "run", store=tmp_path / "store"))
    assert not np.array_equal(made.video.frames, plain.video.frames)
    (kept,) = (tmp_path / "store" / "aggregation").glob("*/tensors.safetensors")
    losses = next(t for t in load_file(kept).values() if t.shape == (NETWORK_STEPS,))
    assert float(losses[-50:].mean()) < 0.9 * float(losses[0])
