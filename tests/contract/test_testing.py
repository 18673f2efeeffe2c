"""The contract itself: it finds a sound method sound, and says what is wrong with one that is not."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from retouch_tint.edit import edit as tint
from retouch_tint.spec import SPEC, TintParams

from retouch.errors import PluginError
from retouch.params import Params
from retouch.run import Edited, Run
from retouch.spec import MethodSpec
from retouch.testing import Bouncing, NoOp, bouncing, check_method
from retouch.video import Video

UNTOUCHED = torch.nn.Linear(2, 2)
DRAWN: list[float] = []


def test_a_sound_method_keeps_the_contract(bouncing: Bouncing, tmp_path: Path) -> None:
    check_method(SPEC, bouncing.video, {"steps": 4}, tmp_path, no_op=NoOp({"red": 0.0, "steps": 2}, psnr=99))


def test_a_no_op_that_changes_the_clip_is_found(bouncing: Bouncing, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"tint gave back the source at \d+\.\d dB; it must be at least 60"):
        check_method(SPEC, bouncing.video, {"steps": 2}, tmp_path, no_op=NoOp({"steps": 2}, psnr=60))


def shortens(video: Video, params: TintParams, run: Run) -> Edited:
    edited = tint(video, params, run)
    return Edited(edited.video[:-1])


def forgets_the_origin(video: Video, params: TintParams, run: Run) -> Edited:
    edited = tint(video, params, run)
    return Edited(Video(edited.video.frames, video.fps))


def lies_about_where(video: Video, params: TintParams, run: Run) -> Edited:
    edited = tint(video, params, run)
    return Edited(edited.video, np.zeros((len(video), 1, video.height, video.width), dtype=bool))


def says_where_in_bytes(video: Video, params: TintParams, run: Run) -> Edited:
    edited = tint(video, params, run)
    return Edited(edited.video, np.ones((len(video), 1, video.height, video.width), dtype=np.uint8))


def changes_nothing(video: Video, params: TintParams, run: Run) -> Edited:
    tint(video, params, run)
    return Edited(video)


def leaves_a_stage_early(video: Video, params: TintParams, run: Run) -> Edited:
    edited = tint(video, params, run)
    next(run.steps("more", range(3)))
    return edited


def cannot_be_stopped(video: Video, params: TintParams, run: Run) -> Edited:
    return tint(video, params, dataclasses.replace(run, stopped=lambda: False))


def is_silent(video: Video, params: TintParams, run: Run) -> Edited:
    return tint(video, params, dataclasses.replace(run, listen=lambda _: None))


def draws_as_it_likes(video: Video, params: TintParams, run: Run) -> Edited:
    edited = tint(video, params, run)
    DRAWN.append(0.0)
    return Edited(video.like(np.roll(edited.video.frames, len(DRAWN), axis=3)))


def spoils_a_model(video: Video, params: TintParams, run: Run) -> Edited:
    with torch.no_grad():
        UNTOUCHED.weight += 1
    return tint(video, params, run)


def keeps_under_a_new_key(video: Video, params: TintParams, run: Run) -> Edited:
    from retouch_tint.edit import fit

    DRAWN.append(0.0)
    for step in run.steps("all", range(4)):
        step.done(torch.zeros(1))
    fit(video, 1, 1e-9 * len(DRAWN), run=run)
    return tint(video, params, run)


def gives_a_clip(video: Video, params: TintParams, run: Run) -> Video:
    return tint(video, params, run).video


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (shortens, "changed the clip's length from 4 to 3"),
        (forgets_the_origin, "changed the clip's origin"),
        (lies_about_where, "changed 16384 pixels outside of where it says it worked"),
        (says_where_in_bytes, "says where it worked as uint8"),
        (changes_nothing, "changed nothing"),
        (leaves_a_stage_early, "never ended 'more'"),
        (cannot_be_stopped, "did not stop when it was asked to"),
        (is_silent, "reported no steps"),
        (draws_as_it_likes, "gave other frames when it was stopped and resumed"),
        (spoils_a_model, "left models changed when it was stopped: Linear"),
        (keeps_under_a_new_key, "made grain again for the same request"),
        (gives_a_clip, "gave back a Video, not an Edited"),
    ],
)
def test_a_broken_promise_is_named(
    edit: Callable[[Video, TintParams, Run], object], complaint: str, bouncing: Bouncing, tmp_path: Path
) -> None:
    spec = dataclasses.replace(SPEC, edit=f"{__name__}:{edit.__name__}")
    video = dataclasses.replace(
        bouncing.video[:4], origin=dataclasses.replace(bouncing.video.origin, codec="h264")
    )
    with pytest.raises(PluginError, match=complaint):
        check_method(spec, video, {"steps": 2, "rows": 1.0}, tmp_path)


class HeavyParams(Params):
    """Parameters in a module that imports torch."""


def test_a_description_that_loads_torch_is_named(bouncing: Bouncing, tmp_path: Path) -> None:
    heavy = HeavyParams
    heavy.__module__ = "torch"
    spec = MethodSpec(name="heavy", title="", summary="", params=heavy, edit="nowhere:edit")
    with pytest.raises(PluginError, match="torch, which describes heavy, cannot be imported without torch"):
        check_method(spec, bouncing.video, {}, tmp_path)


def test_bouncing_draws_the_motion_that_it_tells() -> None:
    clip = bouncing(frames=20)
    for frame in range(19):
        rows, columns = np.nonzero(clip.mask[frame, 0])
        right, down = clip.flow[frame, :, rows[0], columns[0]]
        before, after = (clip.video.frames[t].astype(int) for t in (frame, frame + 1))
        moved = after[:, rows + int(down), columns + int(right)]
        assert np.abs(moved - before[:, rows, columns]).max() <= 1  # a byte rounded the other way
    assert bouncing(frames=20).video.digest == clip.video.digest
