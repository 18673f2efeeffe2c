"""StableVideo from words to a clip, with the embedded models on a clip of the world."""

import dataclasses
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import final

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from safetensors.torch import load_file
from tests.unit.methods.conftest import SwapsColours
from tests.unit.models.test_annotate import depth_model

from retouch.atlas.atlas import PackedMattes, pack_matte
from retouch.atlas.prepare import atlas_for
from retouch.errors import Cancelled, EmptyMask, MethodError, ModelMismatch, ModelNotFound, ParamsError
from retouch.events import Advanced, Event, Notice, Reused
from retouch.media.io import write, write_picture
from retouch.media.probe import probe
from retouch.methods.stablevideo.edit import (
    box_to_show,
    edit,
    edit_keyframes,
    edit_layers,
    edit_with_editor,
    preflight,
)
from retouch.methods.stablevideo.layer import WordsAndEdges, choose_keyframes, joined
from retouch.methods.stablevideo.released import NETWORK_STEPS
from retouch.methods.stablevideo.spec import SPEC, StableVideoParams
from retouch.models.annotate import DepthReader, canny
from retouch.models.image import Control, StableDiffusion
from retouch.models.refs import resolve
from retouch.params import of_part
from retouch.run import Run
from retouch.testing import Bouncing
from retouch.video import Video
from retouch.world import Camera, Clip, Scene

CARRIED_DB = 24
"""Decibels to the recoloured clip that paint keeps on a way of two readings; the old colours have 8."""
DRAWN = 14
"""Levels, in the mean, within which bricks beside an edge are carried; a smooth fill is off by 30."""
KEPT_COLOUR = 30
"""Levels by which an object's blue must rise over its red; red rises over blue by 130 in the source."""
LINE = 12
"""Levels by which no column of the ground may be darker or lighter; edges as they are drawn are by 80."""
EQUAL_DB = 45
"""Decibels above which two readings of one texture are the same picture; key frames made anew have 20."""


@pytest.fixture(scope="module")
def drawn() -> Clip:
    return Clip.of(Scene.of("a red ball on sand", seed=1), 4, 64)


@pytest.fixture(scope="module")
def run_in(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Runs that share a store, so that the clip is taken apart once."""
    return partial(Run.alone, store=tmp_path_factory.mktemp("store"))


def params(clip: Clip, folder: Path, **more: object) -> StableVideoParams:
    mask = np.repeat((clip.masks[0] > 0).astype(np.uint8) * 255, 3, axis=1)
    path = write(Video(mask, clip.video.fps), folder / "mask", force=True)
    filled = SPEC.fill({"prompt": "a blue ball on sand", "mask": path, "steps": 4, **more})
    assert isinstance(filled, StableVideoParams)
    return filled


def grown(mask: np.ndarray) -> np.ndarray:
    """A mask and three pixels around it."""
    found = mask.copy()
    for axis in (2, 3):
        found = np.logical_or.reduce([np.roll(found, n, axis) for n in range(-3, 4)])
    return found


def test_the_object_changes_to_its_edge_and_the_rest_stays_bit_for_bit(
    drawn: Clip, tmp_path: Path, run_in: Callable[..., Run]
) -> None:
    made = edit(drawn.video, params(drawn, tmp_path), run_in(tmp_path))
    assert made.touched is not None
    differs = (made.video.frames != drawn.video.frames).any(1, keepdims=True)
    assert not (differs & ~made.touched).any()
    inside = drawn.masks[0] > 0
    assert not made.touched[~grown(inside)].any()
    reddest = drawn.video.frames[:, 0].astype(int) - drawn.video.frames[:, 2] > 100
    was_red = inside[:, 0] & reddest
    red, blue = (made.video.frames[:, channel][was_red].astype(int) for channel in (0, 2))
    assert np.percentile(blue - red, 5) > KEPT_COLOUR


def test_a_second_run_asks_the_model_for_nothing(
    drawn: Clip, tmp_path: Path, run_in: Callable[..., Run]
) -> None:
    events: list[Event] = []
    given = params(drawn, tmp_path, at=(0, 3), carry="none")
    first = edit(drawn.video, given, run_in(tmp_path))
    frames = np.array(first.video.frames)
    again = edit(drawn.video, given, run_in(tmp_path, listen=events.append))
    assert np.array_equal(again.video.frames, frames)
    assert sum(isinstance(e, Reused) and e.kind == "keyframe" for e in events) == 2


def test_a_key_frame_that_sees_nothing_new_is_told_and_skipped(
    drawn: Clip, tmp_path: Path, run_in: Callable[..., Run]
) -> None:
    events: list[Event] = []
    run = run_in(tmp_path, listen=events.append)
    made = edit(drawn.video, params(drawn, tmp_path, at=(0, 2)), run)
    assert made.figures["keyframes"] == 1
    assert any(isinstance(e, Notice) and "nothing of the object that is new" in e.text for e in events)


@pytest.mark.slow
def test_what_is_decided_stays_and_only_what_is_new_is_drawn(
    tmp_path: Path, run_in: Callable[..., Run]
) -> None:
    """The ground pans: the second key frame shows a strip that the first did not."""
    clip = Clip.of(Scene.of("a green car on grass", seed=5), 8, 64)
    told = {"prompt": "a green car on snow", "edits": "background", "at": (0, 7)}
    agreements = {}
    for carry in ("all", "none"):
        made = edit(clip.video, params(clip, tmp_path, carry=carry, **told), run_in(tmp_path))
        assert made.figures["keyframes"] == 2
        agreements[carry] = made.figures["agreement_db"]
    assert agreements["all"] > EQUAL_DB > agreements["none"] + 10


def test_two_ways_of_carrying_differ_where_key_frames_meet(
    drawn: Clip, tmp_path: Path, run_in: Callable[..., Run]
) -> None:
    frames = {
        carry: np.array(
            edit(drawn.video, params(drawn, tmp_path, at=(0, 3), carry=carry), run_in(tmp_path)).video.frames
        )
        for carry in ("all", "previous", "noise", "none")
    }
    made = list(frames.values())
    assert not any(np.array_equal(one, other) for n, one in enumerate(made) for other in made[:n])


def test_a_brush_keeps_the_original_in_every_frame(
    drawn: Clip, tmp_path: Path, run_in: Callable[..., Run]
) -> None:
    brush = np.zeros((64, 64, 3), np.uint8)
    _, columns = np.nonzero(drawn.masks[0, 0, 0])
    brush[:, : int(columns.mean())] = 255  # the left half of the ball in the first frame
    path = write_picture(brush, tmp_path / "brush.png")
    made = edit(drawn.video, params(drawn, tmp_path, brush=(f"0={path}",)), run_in(tmp_path))
    for t in range(4):
        columns = np.nonzero(drawn.masks[0, t, 0])[1]
        inside = drawn.masks[0, t, 0] > 0
        left, right = inside.copy(), inside.copy()
        left[:, int(columns.mean()) - 3 :] = False
        right[:, : int(columns.mean()) + 3] = False
        differs = (made.video.frames[t] != drawn.video.frames[t]).any(0)
        assert differs[left].mean() < 0.1
        assert differs[right].mean() > 0.9


def test_the_network_is_asked_twice_a_step_of_each_key_frame(
    drawn: Clip, tmp_path: Path, run_in: Callable[..., Run]
) -> None:
    run = run_in(tmp_path, seed=7)
    sd, control = run.load("tiny:sd", StableDiffusion), run.load("tiny:sd-canny", Control)
    asked = []
    hooks = [net.register_forward_hook(lambda *_: asked.append(1)) for net in (sd.unet,)]
    hooks += [control.net.register_forward_hook(lambda *_: asked.append(100))]
    try:
        edit(drawn.video, params(drawn, tmp_path, at=(0, 3), carry="none", strength=0.5), run)
    finally:
        for hook in hooks:
            hook.remove()
    # The first goes 0.8 of 4 steps, the other half; the control is asked once a step.
    assert (sum(n == 1 for n in asked), sum(n == 100 for n in asked)) == (2 * (3 + 2), 3 + 2)


@pytest.mark.parametrize(
    ("told", "tiles"),
    [
        ({"edits": "background"}, 1),
        ({"edits": "background", "background_scale": 2}, 9),
        ({"edits": "background", "background_prompt": "sand"}, 9),
        ({"edits": "object", "background_prompt": "sand"}, 1),
    ],
)
def test_a_background_larger_than_the_model_is_drawn_in_tiles_as_large_as_it_knows(
    tmp_path: Path, run_in: Callable[..., Run], told: dict[str, object], tiles: int
) -> None:
    clip = Clip.of(Scene.of("a red ball on sand", seed=1), 2, 128)
    events: list[Event] = []
    run = run_in(tmp_path, listen=events.append)
    sd, control = run.load("tiny:sd", StableDiffusion), run.load("tiny:sd-canny", Control)
    asked: list[int] = []
    hook = sd.unet.register_forward_hook(lambda _, given, __: asked.append(given[0].shape[-1]))
    held: list[int] = []
    other = control.net.register_forward_hook(lambda *_: held.append(1))
    try:
        edit(clip.video, params(clip, tmp_path, at=(0,), steps=2, first_strength=0.5, **told), run)
    finally:
        hook.remove()
        other.remove()
    assert (asked, len(held)) == ([16] * 2 * tiles, tiles)
    assert any(isinstance(e, Notice) and f"{tiles} tiles" in e.text for e in events) == (tiles > 1)


@pytest.mark.parametrize("told", [{}, {"edits": "background", "editor": "tiny:sd"}, {"faithful": True}])
def test_a_scale_of_no_background_that_the_model_draws_is_refused(told: dict[str, object]) -> None:
    with pytest.raises(ParamsError, match="background_scale says how large"):
        SPEC.fill({"prompt": "x", "background_scale": 2, **told})


@pytest.mark.parametrize("shift", [0, 3])
def test_any_editor_of_pictures_edits_the_key_frames_though_it_shifts_them(
    drawn: Clip, tmp_path: Path, run_in: Callable[..., Run], swaps_colours: SwapsColours, shift: int
) -> None:
    swaps_colours.shift, swaps_colours.identity = shift, f"shifts by {shift}"
    given = params(drawn, tmp_path, at=(0, 3), prompt="swap the colours")
    made = edit_with_editor(swaps_colours, drawn.video, given, run_in(tmp_path))
    assert swaps_colours.prompts == ["swap the colours"]  # the second shows nothing new
    assert made.touched is not None
    inside = drawn.masks[0] > 0
    assert not made.touched[~grown(inside)].any()
    sharp = np.broadcast_to(~grown(~inside), drawn.video.frames.shape)
    off = made.video.frames.astype(float) - drawn.video.frames[:, ::-1]
    assert 10 * np.log10(255**2 / np.square(off[sharp]).mean()) > CARRIED_DB


@pytest.mark.slow
def test_an_editor_is_asked_for_what_is_not_decided_and_that_stays(
    tmp_path: Path, run_in: Callable[..., Run], swaps_colours: SwapsColours
) -> None:
    clip = Clip.of(Scene.of("a green car on grass", seed=5), 8, 64)
    told = {"prompt": "swap the colours", "edits": "background", "at": (0, 7)}
    made = edit_with_editor(swaps_colours, clip.video, params(clip, tmp_path, **told), run_in(tmp_path))
    assert made.figures["agreement_db"] > EQUAL_DB
    first, second = swaps_colours.masks
    assert first is not None
    assert second is not None
    assert second.sum() < first.sum() / 2
    # What it was shown beside that was decided by its first answer, not by the source.
    inner = ~grown(second[None, None])[0, 0] & ~grown(clip.masks[0, 7:8] > 0)[0, 0]
    wanted = clip.video.frames[7].transpose(1, 2, 0)[..., ::-1].astype(float)
    assert np.abs(swaps_colours.shown[1].astype(float) - wanted)[inner].mean() < 12


@final
class DarkAtItsEdge:
    """Shows red as blue and blue as red; its picture is dark along its edge, and all of it a little."""

    least = 16

    def edit(
        self,
        source: np.ndarray,
        seen: np.ndarray,
        own: np.ndarray,
        known: np.ndarray,
        *,
        prompt: str,
        noise: str,
        first: bool,
    ) -> np.ndarray:
        """Return the source with its colours swapped where it is not known."""
        del own, prompt, noise, first
        made = source[:, ::-1] * 0.9
        for axis in (2, 3):
            np.moveaxis(made, axis, 0)[[0, 1, -2, -1]] *= 0.5
        return joined(seen, made.astype(np.uint8), known)


def test_no_dark_line_stays_where_a_key_frame_ended(tmp_path: Path) -> None:
    scene = Scene.of("a red ball on sand", seed=1)
    scene = dataclasses.replace(scene, camera=Camera(pan=(0.6, 0.0), period=2.0, phase=-0.25))
    clip = Clip.of(scene, 7, 64)
    told = params(clip, tmp_path, edits="background", at=(0, 6))
    made = edit_layers(clip.video, told, DarkAtItsEdge(), Run.alone(tmp_path / "run"))
    assert made.figures["keyframes"] == 2
    ground = grown(clip.masks[0] > 0)[:, 0]
    swapped = 0.9 * clip.video.frames[:, ::-1].astype(float).mean(1)
    off = np.ma.array(made.video.frames.mean(1) - swapped, mask=ground)[3, 4:-4, 4:-4].mean(0)
    assert -LINE < off.min() < off.max() < LINE


def test_what_a_network_misses_of_what_is_known_fades_out_beside_it() -> None:
    noise = np.random.default_rng(0).integers(40, 200, (1, 3, 64, 64), dtype=np.uint8)
    known = np.zeros((1, 1, 64, 64), bool)
    known[..., :30] = True
    made = joined(noise, (noise - 30).astype(np.uint8), known).astype(int)
    assert np.array_equal(made[..., :30], noise[..., :30])
    missed = (noise - made)[0].mean((0, 1))
    assert missed[30] < 30 / 6
    assert (np.diff(missed[29:40]) <= 30 / 6).all()
    assert (missed[40:] == 30).all()


def test_ground_that_is_seen_beside_the_object_alone_is_taken_as_it_was_drawn(
    tmp_path: Path, swaps_colours: SwapsColours
) -> None:
    clip = Clip.of(Scene.of("a red ball on bricks", seed=1), 2, 64)
    given = params(clip, tmp_path, prompt="swap the colours", edits="background", at=(0,))
    made = edit_with_editor(swaps_colours, clip.video, given, Run.alone(tmp_path / "run"))
    inside = clip.masks[0, :1] > 0
    near = grown(inside) & ~np.roll(inside, 1, 2) & ~np.roll(inside, -1, 2) & ~np.roll(inside, 1, 3)
    near &= ~np.roll(inside, -1, 3) & ~inside
    off = np.abs(made.video.frames[:1].astype(float) - clip.video.frames[:1, ::-1])
    assert off[np.broadcast_to(near, off.shape)].mean() < DRAWN


def test_an_editor_is_found_by_its_name(drawn: Clip, tmp_path: Path, run_in: Callable[..., Run]) -> None:
    events: list[Event] = []
    given = params(drawn, tmp_path, editor="tiny:sd", editor_steps=4, at=(0,))
    made = edit(drawn.video, given, run_in(tmp_path, listen=events.append))
    assert any("edit picture" in str(event) for event in events)
    inside = drawn.masks[0] > 0
    reddest = drawn.video.frames[:, 0].astype(int) - drawn.video.frames[:, 2] > 100
    was_red = inside[:, 0] & reddest
    red, blue = (made.video.frames[:, channel][was_red].astype(int) for channel in (0, 2))
    assert np.median(blue - red) > KEPT_COLOUR


def test_an_answer_that_shows_another_picture_is_refused(
    drawn: Clip, tmp_path: Path, run_in: Callable[..., Run], swaps_colours: SwapsColours
) -> None:
    swaps_colours.instead = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    swaps_colours.identity = "noise"
    with pytest.raises(MethodError, match="shows another picture"):
        edit_with_editor(swaps_colours, drawn.video, params(drawn, tmp_path, at=(0,)), run_in(tmp_path))


@pytest.mark.parametrize(("name", "error"), [("tiny:svd", ModelMismatch), ("nowhere", ModelNotFound)])
def test_a_model_that_edits_no_pictures_is_refused_before_the_clip_is_read(
    name: str, error: type[Exception], bouncing: Bouncing, tmp_path: Path
) -> None:
    filled = SPEC.fill({"prompt": "a ball", "box": ("0:1,1 9,9",), "editor": name})
    assert isinstance(filled, StableVideoParams)
    with pytest.raises(error):
        preflight(probe(write(bouncing.video[:4], tmp_path / "clip.mkv")), filled, lambda _: None)


def test_the_box_that_is_shown_holds_the_layer_and_stays_in_the_frame() -> None:
    own = torch.zeros(1, 1, 100, 80, dtype=torch.bool)
    own[..., 90:, 30:50] = True
    whole, box = box_to_show(own, "frame", 32), box_to_show(own, "layer", 32)
    assert own[whole].shape == own.shape
    assert own[box].sum() == own.sum()
    assert own[box].shape[2:] == (21, 32)


def test_a_layer_that_no_key_frame_shows_is_an_error(
    drawn: Clip, tmp_path: Path, run_in: Callable[..., Run]
) -> None:
    run = run_in(tmp_path)
    given = params(drawn, tmp_path, at=(3,))
    assert given.mask is not None
    whole = atlas_for(drawn.video, run, masks=[given.mask])
    clear = PackedMattes.pack([pack_matte(np.zeros((64, 64), np.uint8))] * 4, 64, 64)
    hidden = dataclasses.replace(whole, mattes=(clear,))
    with pytest.raises(EmptyMask, match="no frame shows the object"):
        choose_keyframes(hidden, 0, 3)
    sd = run.load("tiny:sd", StableDiffusion)
    with pytest.raises(EmptyMask, match="no key frame shows the object"):
        edit_keyframes(hidden, 0, drawn.video, WordsAndEdges(sd, None, given, run), given, run)


def test_a_prompt_that_the_model_cannot_read_whole_is_refused_before_anything_is_made(
    drawn: Clip, tmp_path: Path, run_in: Callable[..., Run]
) -> None:
    events: list[Event] = []
    with pytest.raises(ParamsError, match="the text encoder reads 32"):
        edit(
            drawn.video,
            params(drawn, tmp_path, prompt="a red ball " * 12),
            run_in(tmp_path, listen=events.append),
        )
    assert not any("atlas" in str(event) for event in events)


@pytest.mark.parametrize("at", [(4,), (1, 1)])
def test_key_frames_that_cannot_be_are_refused(
    at: tuple[int, ...], bouncing: Bouncing, tmp_path: Path
) -> None:
    facts = probe(write(bouncing.video[:4], tmp_path / "clip.mkv"))
    filled = SPEC.fill({"prompt": "a ball", "box": ("0:1,1 9,9",), "at": at})
    assert isinstance(filled, StableVideoParams)
    with pytest.raises(ParamsError, match="key frame"):
        preflight(facts, filled, lambda _: None)


def test_a_clip_without_word_of_an_object_is_refused(bouncing: Bouncing, tmp_path: Path) -> None:
    filled = SPEC.fill({"prompt": "a ball"})
    assert isinstance(filled, StableVideoParams)
    with pytest.raises(ParamsError, match="nothing says what the object is"):
        preflight(probe(write(bouncing.video[:4], tmp_path / "clip.mkv")), filled, lambda _: None)


def test_key_frames_are_counted_from_the_part_of_a_clip() -> None:
    filled = SPEC.fill({"prompt": "a ball", "at": (4, 5)})
    assert of_part(filled, range(3, 6)).model_dump()["at"] == (1, 2)


def depth_control(folder: Path) -> Path:
    """A ControlNet for `tiny:sd` that could be for depth: its weights are those for edges."""
    shutil.copytree(resolve("tiny:sd-canny"), folder)
    return folder


def test_the_background_is_held_to_its_depth_and_the_object_to_its_edges(
    drawn: Clip, tmp_path: Path, run_in: Callable[..., Run]
) -> None:
    run = run_in(tmp_path, seed=8)
    depth, held = str(depth_model(tmp_path / "depth")), str(depth_control(tmp_path / "control"))
    told = {"depth": depth, "depth_control": held, "edits": "both", "at": (1,), "steps": 2}
    shown: dict[str, list[torch.Tensor]] = {"edges": [], "depth": []}
    networks = {"edges": run.load("tiny:sd-canny", Control), "depth": run.load(held, Control)}

    def keep(name: str, _net: object, _args: object, given: dict[str, torch.Tensor]) -> None:
        shown[name].append(given["controlnet_cond"])

    hooks = [
        control.net.register_forward_pre_hook(partial(keep, name), with_kwargs=True)
        for name, control in networks.items()
    ]
    try:
        edit(drawn.video, params(drawn, tmp_path, **told), run)
    finally:
        for hook in hooks:
            hook.remove()
    source = np.array(drawn.video.frames[1:2])
    assert len(shown["edges"]) == len(shown["depth"]) == 2
    assert torch.equal(shown["edges"][0], canny(source))
    assert torch.equal(shown["depth"][0], run.load(depth, DepthReader).nearness(source))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"depth": "tiny:sd-canny", "depth_control": "tiny:sd-canny"}, "no depth model"),
        ({"depth": "DEPTH"}, "nothing holds tiny:sd to depth"),
        ({"depth": "DEPTH", "model": "sd15"}, "ControlNet for depth, Stable Diffusion 1.5 is not on this"),
        ({"depth": "DEPTH", "depth_control": "./nowhere"}, "no folder ./nowhere"),
    ],
)
def test_what_cannot_hold_a_background_to_depth_is_refused_before_the_clip_is_read(
    given: dict[str, object], said: str, bouncing: Bouncing, tmp_path: Path
) -> None:
    model = str(depth_model(tmp_path / "depth"))
    given = {name: model if value == "DEPTH" else value for name, value in given.items()}
    filled = SPEC.fill({"prompt": "a ball", "box": ("0:1,1 9,9",), "edits": "background", **given})
    assert isinstance(filled, StableVideoParams)
    with pytest.raises((ParamsError, ModelMismatch, ModelNotFound), match=said):
        preflight(probe(write(bouncing.video[:4], tmp_path / "clip.mkv")), filled, lambda _: None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"depth": "x"}, "give edits background, or both"),
        ({"depth": "x", "edits": "both", "editor": "tiny:sd"}, "editor draws freely"),
        ({"depth": "x", "edits": "both", "edges": 0}, "edges is 0"),
        ({"depth_control": "x"}, "give depth"),
    ],
)
def test_a_depth_that_would_hold_nothing_is_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ParamsError, match=said):
        SPEC.fill({"prompt": "a ball", **given})


def test_a_control_of_another_base_model_is_refused_before_the_clip_is_taken_apart(
    drawn: Clip, tmp_path: Path, run_in: Callable[..., Run]
) -> None:
    events: list[Event] = []
    net = ControlNetModel(
        down_block_types=("DownBlock2D",), block_out_channels=(32,), norm_num_groups=8, cross_attention_dim=8
    )
    net.save_pretrained(tmp_path / "other")
    given = params(drawn, tmp_path, control=str(tmp_path / "other"))
    with pytest.raises(ModelMismatch, match="made for another base model"):
        edit(drawn.video, given, run_in(tmp_path, listen=events.append))
    assert not any("atlas" in str(event) for event in events)


def test_an_answer_of_another_size_is_refused_and_what_was_made_before_is_kept(
    drawn: Clip, tmp_path: Path, run_in: Callable[..., Run], swaps_colours: SwapsColours
) -> None:
    swaps_colours.instead = np.zeros((32, 64, 3), np.uint8)
    swaps_colours.identity = "answers half a picture"
    with pytest.raises(MethodError, match="64x32"):
        edit_with_editor(swaps_colours, drawn.video, params(drawn, tmp_path, at=(0,)), run_in(tmp_path))
    events: list[Event] = []
    swaps_colours.instead, swaps_colours.identity = None, "swaps colours after all"
    run = run_in(tmp_path, listen=events.append)
    made = edit_with_editor(swaps_colours, drawn.video, params(drawn, tmp_path, at=(0,)), run)
    assert made.figures["keyframes"] == 1
    assert any(isinstance(e, Reused) and e.kind == "atlas" for e in events)


@pytest.mark.slow
def test_the_papers_network_learns_what_key_frames_show_and_goes_on_after_a_stop(
    drawn: Clip, tmp_path: Path, run_in: Callable[..., Run]
) -> None:
    """Key frames of their own noise agree on little; the closed form is another picture."""
    told = {"at": (0, 3), "carry": "none", "aggregation": "network"}
    events: list[Event] = []

    def halfway() -> bool:
        return any(isinstance(e, Advanced) and e.stage == "aggregation" and e.done >= 100 for e in events)

    run = run_in(tmp_path, listen=events.append, stopped=halfway)
    with pytest.raises(Cancelled):
        edit(drawn.video, params(drawn, tmp_path, **told), run)
    events.clear()
    made = edit(drawn.video, params(drawn, tmp_path, **told), run_in(tmp_path, listen=events.append))
    taken_up = next(e for e in events if isinstance(e, Advanced) and e.stage == "aggregation")
    assert taken_up.done == 100
    whole = edit(drawn.video, params(drawn, tmp_path, **told), Run.alone(tmp_path / "whole"))
    assert np.array_equal(made.video.frames, whole.video.frames)
    solved = edit(drawn.video, params(drawn, tmp_path, **{**told, "aggregation": "solve"}), run_in(tmp_path))
    assert not np.array_equal(made.video.frames, solved.video.frames)
    kept = next((tmp_path / "whole" / "store" / "aggregation").glob("*/tensors.safetensors"))
    losses = next(t for t in load_file(kept).values() if t.shape == (NETWORK_STEPS,))
    assert float(losses[-50:].mean()) < 0.9 * float(losses[0])
