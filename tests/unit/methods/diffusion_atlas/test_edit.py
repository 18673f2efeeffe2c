"""The whole edit with the embedded models, on clips of the world."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tests.unit.methods.conftest import SwapsColours

from retouch.atlas.atlas import PackedMattes, pack_matte
from retouch.atlas.file import save_atlas
from retouch.atlas.textures import sample_texture
from retouch.compute import Compute
from retouch.errors import ArtifactError, Cancelled, ModelMismatch, ParamsError
from retouch.events import Advanced, Event, Kept, Notice, Reused, Started
from retouch.media.io import write, write_picture
from retouch.media.probe import probe
from retouch.methods.diffusion_atlas.compose import atlas_of, check_references
from retouch.methods.diffusion_atlas.edit import edit, edit_with_editor, edited_object, preflight
from retouch.methods.diffusion_atlas.refine import KEPT_EVERY, Refinement, refine
from retouch.methods.diffusion_atlas.spec import SPEC, DiffusionAtlasParams
from retouch.models.image import StableDiffusion
from retouch.run import Edited, Run
from retouch.video import Video
from retouch.world import Clip, Scene, Variety

CPU = Compute(device="cpu")
CARRIED_DB = 24
"""Decibels to the recoloured clip that a texture keeps which is read twice; the old colours have 7."""
SOURCE, TARGET, SNOW = "a blue ball on bricks", "a red ball on bricks", "a blue ball on snow"
SQUEEZE = 1.4
"""How much too wide a map is; it counts as found when more than half of that is, by logarithm."""
STILL = Variety(pair=0.0, styles=("none",), patterns=("plain",), scale=(0.6, 0.7), place=0.1, turn=0.0)


@pytest.fixture(scope="module")
def clip() -> Clip:
    return Clip.of(Scene.of(SOURCE, 5, STILL), 3, 64)


@pytest.fixture(scope="module")
def mask(clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    drawn = np.ascontiguousarray(np.repeat(clip.shares[:, :1], 3, axis=1))
    return write(Video(drawn, Fraction(12)), tmp_path_factory.mktemp("mask") / "mask")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all: the atlas is solved once."""
    return tmp_path_factory.mktemp("store")


def edited(
    clip: Clip, given: dict[str, object], folder: Path, store: Path, events: list[Event] | None = None
) -> Edited:
    params = SPEC.fill({"source_prompt": SOURCE, "steps": 6, "tune_steps": 0, **given})
    assert isinstance(params, DiffusionAtlasParams)
    heard = [] if events is None else events
    return edit(clip.video, params, Run.alone(folder, compute=CPU, store=store, listen=heard.append))


def colour_of(video: Video, clip: Clip) -> np.ndarray:
    """The object's mean colour."""
    inside = np.broadcast_to(clip.shares[:, :1] > 250, video.frames.shape)
    return np.array([np.asarray(video.frames)[:, c][inside[:, c]].mean() for c in range(3)])


@pytest.mark.slow
def test_words_change_the_object_and_no_byte_elsewhere(
    clip: Clip, mask: Path, tmp_path: Path, store: Path
) -> None:
    result = edited(clip, {"prompt": TARGET, "mask": mask, "steps": 20}, tmp_path, store)
    before, after = colour_of(clip.video, clip), colour_of(result.video, clip)
    assert before[2] > before[0]
    assert after[0] > after[2]
    assert result.touched is not None
    same = (result.video.frames == clip.video.frames).all(axis=1, keepdims=True)
    assert bool(same[~result.touched].all())
    near = [cv2.dilate(share, np.ones((7, 7))) > 0 for share in clip.shares[:, 0]]
    assert not (result.touched[:, 0] & ~np.stack(near)).any()  # edges may move by two pixels


@pytest.mark.slow
def test_object_and_background_are_edited_in_one_run(
    clip: Clip, mask: Path, tmp_path: Path, store: Path
) -> None:
    given = {"prompt": TARGET, "background_prompt": SNOW, "mask": mask, "steps": 20}
    result = edited(clip, given, tmp_path, store)
    ground = clip.shares[:, :1] == 0
    alone = edited(clip, {"background_prompt": SNOW, "mask": mask, "steps": 20}, tmp_path / "alone", store)
    assert colour_of(result.video, clip)[0] > colour_of(result.video, clip)[2]
    kept = (alone.video.frames == clip.video.frames).all(axis=1, keepdims=True)
    well_inside = [cv2.erode(share, np.ones((9, 9))) == 255 for share in clip.shares[:, 0]]
    assert bool(kept[:, 0][np.stack(well_inside)].all())
    changed = (result.video.frames != clip.video.frames).any(axis=1, keepdims=True)
    assert changed[ground].mean() > 0.9


@pytest.mark.slow
def test_a_second_edit_with_other_words_costs_sampling_alone(
    clip: Clip, mask: Path, tmp_path: Path, store: Path
) -> None:
    reference = write_picture(picture("a red ball on bricks"), tmp_path / "reference.png")
    given = {"reference": reference, "mask": mask, "tune_steps": 2}
    first: list[Event] = []
    edited(clip, {**given, "prompt": TARGET}, tmp_path / "first", store, first)
    assert {event.kind for event in first if isinstance(event, Kept)} >= {"tuned_picture", "picture_path"}
    second, calls = list[Event](), list[int]()
    unet = Run.alone(tmp_path, compute=CPU).load("tiny:sd", StableDiffusion).unet
    with unet.register_forward_pre_hook(lambda _module, _given: calls.append(1)):
        edited(clip, {**given, "prompt": "a green ball on bricks"}, tmp_path / "second", store, second)
    assert len(calls) == 6  # one a step, whatever is asked in it
    assert not [event for event in second if isinstance(event, Kept)]
    reused = {event.kind for event in second if isinstance(event, Reused)}
    assert reused >= {"atlas", "tuned_picture", "picture_path"}


@pytest.mark.slow
def test_a_part_that_few_frames_show_is_edited_as_the_rest_is(
    clip: Clip, mask: Path, tmp_path: Path, store: Path, swaps_colours: SwapsColours
) -> None:
    params = SPEC.fill({"source_prompt": SOURCE, "prompt": "swap the colours", "mask": mask})
    assert isinstance(params, DiffusionAtlasParams)
    run = Run.alone(tmp_path, compute=CPU, store=store)
    atlas = atlas_of(clip.video, params, run)
    mattes = [atlas.mattes[0].frame(t).copy() for t in range(3)]
    middle = int(np.nonzero(mattes[0])[1].mean())
    for hidden in mattes[1:]:
        hidden[:, middle:] = 0
    packed = PackedMattes.pack([pack_matte(matte) for matte in mattes], 64, 64)
    part = edited_object(replace(atlas, mattes=(packed,)), 0, swaps_colours, params, run)
    whole = edited_object(atlas, 0, swaps_colours, params, run)
    assert whole.crop == part.crop
    inner = torch.from_numpy(
        cv2.erode((whole.old_matte[0, 0].numpy() > 0.9).astype(np.uint8), np.ones((5, 5)))
    )
    seen_once = (inner > 0) & (part.old_matte[0, 0] < 0.45)
    assert seen_once.sum() > 100
    assert (part.cover - whole.cover)[0, 0][seen_once].abs().mean() < 0.05
    assert (part.picture - whole.picture)[0, :, seen_once].abs().mean() < 0.04


@pytest.mark.slow
def test_an_editor_of_pictures_edits_object_and_background_in_one_run(
    clip: Clip, mask: Path, tmp_path: Path, store: Path, swaps_colours: SwapsColours
) -> None:
    reference = write_picture(picture("a red ball on bricks"), tmp_path / "reference.png")
    words = {"source_prompt": SOURCE, "prompt": "swap the colours", "background_prompt": "swap them here"}
    params = SPEC.fill({**words, "mask": mask, "reference": reference})
    assert isinstance(params, DiffusionAtlasParams)
    run = Run.alone(tmp_path, compute=CPU, store=store)
    result = edit_with_editor(swaps_colours, clip.video, params, run)
    assert swaps_colours.prompts == ["swap them here", "swap the colours"]
    assert [len(seen) for seen in swaps_colours.references] == [0, 1]
    assert result.figures == {}
    off = result.video.frames.astype(float) - clip.video.frames[:, ::-1]
    for inside in (clip.shares[:, :1] > 250, clip.shares[:, :1] < 5):
        eroded = np.stack([cv2.erode(part.astype(np.uint8), np.ones((5, 5))) > 0 for part in inside[:, 0]])
        where = np.broadcast_to(eroded[:, None], off.shape)
        assert 10 * np.log10(255**2 / np.square(off[where]).mean()) > CARRIED_DB


@pytest.mark.slow
@pytest.mark.parametrize("says", ["denoise", "sds", "dds"])
def test_a_refinement_that_is_not_believed_changes_no_byte(
    clip: Clip, mask: Path, tmp_path: Path, store: Path, says: str
) -> None:
    given = {"prompt": TARGET, "mask": mask}
    plain = edited(clip, given, tmp_path / "plain", store)
    events: list[Event] = []
    more = {**given, "refine": says, "refine_steps": 2, "refine_least": -1.0, "refine_least_move": 0.0}
    for bound in ({"refine_least": 0.9}, {"refine_least_move": 0.9}):
        same = edited(clip, {**more, **bound}, tmp_path / next(iter(bound)), store, events)
        assert np.array_equal(plain.video.frames, same.video.frames)
        assert any("stays as it was" in event.text for event in events if isinstance(event, Notice))
        events.clear()
    used = edited(clip, more, tmp_path / "used", store)
    assert not np.array_equal(plain.video.frames, used.video.frames)


@pytest.mark.slow
def test_a_squeezed_texture_is_stretched_back_by_what_the_model_says(
    clip: Clip, mask: Path, tmp_path: Path, store: Path
) -> None:
    params = SPEC.fill({"source_prompt": SOURCE, "background_prompt": SNOW, "mask": mask})
    assert isinstance(params, DiffusionAtlasParams)
    run = Run.alone(tmp_path, compute=CPU, store=store)
    sd = run.load("tiny:sd", StableDiffusion)
    atlas = atlas_of(clip.video, params, run)
    look = edited_object(atlas, 0, sd, params, run)
    middle = (look.crop.width - 1) / 2
    grid = torch.arange(float(look.crop.width)) - middle
    x, y = torch.meshgrid(grid * SQUEEZE**0.5, grid * SQUEEZE**-0.5, indexing="xy")
    both = sample_texture(torch.cat([look.picture, look.old_matte], 1)[0], torch.stack([x, y])[None] + middle)
    squeezed = replace(look, picture=both[:, :3], new_matte=both[:, 3:], cover=torch.ones_like(look.cover))
    how = Refinement(SOURCE, SOURCE, steps=40)
    found = refine(atlas, clip.video, squeezed, None, sd, how, run=run)
    assert found.warp is not None
    across, down = (1 + float(found.warp.affine[axis, axis]) for axis in (0, 1))
    assert down / across > SQUEEZE**0.5
    assert found.folds == 0


@pytest.mark.slow
def test_an_edit_that_is_stopped_in_every_stage_goes_on_to_the_same_bytes(
    clip: Clip, mask: Path, tmp_path: Path
) -> None:
    reference = write_picture(picture("a green heart on sand"), tmp_path / "reference.png")
    given = {
        "prompt": "a red heart on bricks",
        "outline": "new",
        "reference": reference,
        "mask": mask,
        "steps": 3,
        "tune_steps": 2,
        "refine": "denoise",
        "refine_steps": KEPT_EVERY + 1,
        "refine_least": -1.0,
        "refine_least_move": 0.0,
    }
    params = SPEC.fill({"source_prompt": SOURCE, **given})
    assert isinstance(params, DiffusionAtlasParams)

    refined: list[int] = []

    def attempt(folder: str, stage: str = "", after: int = 0) -> Edited:
        """Edit, and stop a stage after so many of its steps."""
        told: list[tuple[str, int]] = []

        def hear(event: Event) -> None:
            if isinstance(event, Started | Advanced):
                told.append((event.stage, event.done if isinstance(event, Advanced) else 0))
            if isinstance(event, Advanced) and event.stage == "refine":
                refined.append(event.done)

        run = Run.alone(tmp_path / folder, compute=CPU, listen=hear, stopped=lambda: (stage, after) in told)
        with CPU.repeatable():
            return edit(clip.video, params, run)

    unbroken = attempt("unbroken")
    refined.clear()
    stages = {"atlas: edges": 0, "tune": 1, "invert": 1, "edit object": 1, "refine": KEPT_EVERY, "render": 0}
    for stage, after in stages.items():
        with pytest.raises(Cancelled):
            attempt("stopped", stage, after)
    assert attempt("stopped").video.digest == unbroken.video.digest
    assert refined == [*range(1, KEPT_EVERY + 1), KEPT_EVERY, KEPT_EVERY + 1]


def picture(caption: str) -> np.ndarray:
    frame = Clip.of(Scene.of(caption, 6, STILL), 1, 64).video.frames[0]
    return np.ascontiguousarray(frame.transpose(1, 2, 0))


@pytest.mark.parametrize("times", [1, 2])
def test_a_reference_that_is_the_source_is_refused(clip: Clip, tmp_path: Path, times: int) -> None:
    frame = np.ascontiguousarray(np.asarray(clip.video.frames)[1].transpose(1, 2, 0))
    large = cv2.resize(frame, None, fx=times, fy=times, interpolation=cv2.INTER_CUBIC)
    params = DiffusionAtlasParams(
        source_prompt=SOURCE, reference=write_picture(large, tmp_path / "frame.png")
    )
    with pytest.raises(ParamsError, match=r"frame [012] of the clip"):
        check_references(clip.video, params)
    recoloured = np.where(clip.shares[1, 0, :, :, None] > 127, frame[..., ::-1], frame)
    write_picture(np.ascontiguousarray(recoloured), tmp_path / "frame.png", force=True)
    check_references(clip.video, params)


def test_an_atlas_of_another_clip_is_refused(clip: Clip, mask: Path, tmp_path: Path, store: Path) -> None:
    params = SPEC.fill({"source_prompt": SOURCE, "prompt": TARGET, "mask": mask})
    assert isinstance(params, DiffusionAtlasParams)
    fitted = atlas_of(clip.video, params, Run.alone(tmp_path, compute=CPU, store=store))
    other = replace(fitted, source="another")
    given: dict[str, object] = {"prompt": TARGET, "atlas": save_atlas(other, tmp_path / "other.atlas")}
    with pytest.raises(ArtifactError, match="belongs to another clip"):
        edited(clip, given, tmp_path, store)


@pytest.mark.parametrize(
    ("given", "said"),
    [({}, "what the object is"), ({"mask": "mask", "reference": "flat.png"}, "one colour")],
)
def test_what_cannot_be_edited_is_refused_before_the_clip_is_read(
    clip: Clip, tmp_path: Path, given: dict[str, str], said: str
) -> None:
    write_picture(np.full((8, 8, 3), 90, np.uint8), tmp_path / "flat.png")
    facts = probe(write(clip.video, tmp_path / "clip.mp4"))
    paths = {name: tmp_path / value for name, value in given.items()}
    params = SPEC.fill({"source_prompt": SOURCE, "prompt": TARGET, **paths})
    assert isinstance(params, DiffusionAtlasParams)
    with pytest.raises(ParamsError, match=said):
        preflight(facts, params, lambda _event: None)


@pytest.mark.parametrize(
    ("given", "error"), [({"editor": "tiny:svd"}, ModelMismatch), ({"editor": "pix2pix"}, ParamsError)]
)
def test_an_editor_that_cannot_do_what_is_asked_is_refused_before_the_clip_is_read(
    clip: Clip, tmp_path: Path, given: dict[str, str], error: type[Exception]
) -> None:
    (tmp_path / "pix2pix").mkdir()
    index = '{"_class_name": "StableDiffusionInstructPix2PixPipeline"}'
    (tmp_path / "pix2pix" / "model_index.json").write_text(index)
    reference = write_picture(picture("a red ball on bricks"), tmp_path / "reference.png")
    named = {k: str(tmp_path / v) if v == "pix2pix" else v for k, v in given.items()}
    words = {"source_prompt": SOURCE, "prompt": TARGET, "box": ("0:1,1 9,9",), "reference": reference}
    params = SPEC.fill({**words, **named})
    assert isinstance(params, DiffusionAtlasParams)
    facts = probe(write(clip.video, tmp_path / "clip.mp4"))
    with pytest.raises(error, match=r"no editor|looks at no"):
        preflight(facts, params, lambda _event: None)


def test_something_must_be_asked_for() -> None:
    with pytest.raises(ParamsError, match="nothing is asked for"):
        SPEC.fill({"source_prompt": SOURCE})
