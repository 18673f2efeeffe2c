"""The text-to-image model as an editor of pictures, and what is refused before any weight is read."""

from pathlib import Path

import numpy as np
import pytest

from retouch.compute import Compute
from retouch.diffusion.picture_editor import DenoisingEditor, check_editor, editor_named
from retouch.errors import ModelMismatch, ModelNotFound, ParamsError
from retouch.models.picture_edit import PictureEditor
from retouch.run import Run
from retouch.world import Change, Clip, Scene, edited_clip

CPU = Compute(device="cpu", dtype="float32")
SCENE = Scene.sample(2 * 10**9 + 3)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.alone(tmp_path / "run", compute=CPU)


def frame_of(clip: Clip) -> np.ndarray:
    return np.ascontiguousarray(clip.video.frames[0].transpose(1, 2, 0))


def test_the_embedded_model_edits_under_words_and_edges_and_keeps_what_is_masked(run: Run) -> None:
    clip = Clip.of(SCENE, 2, 64)
    edited = edited_clip(clip, Change.parse("colour=green"))
    editor = editor_named("tiny:sd", run, steps=4, control="tiny:sd-canny")
    assert isinstance(editor, DenoisingEditor)
    assert isinstance(editor, PictureEditor)
    source, target = frame_of(clip), frame_of(edited)
    mask = (source != target).any(2)
    made = editor.edit(source, edited.caption, mask=mask, seed=3, run=run)
    assert made.shape == source.shape

    def apart(other: np.ndarray, where: np.ndarray) -> float:
        return float(np.abs(made.astype(float) - other)[where].mean())

    assert apart(target, mask) < apart(source, mask)
    free = editor.edit(source, edited.caption, seed=3, run=run).astype(float)
    far = ~mask
    assert apart(source, far) < float(np.abs(free - source)[far].mean())


def test_a_reference_picture_needs_what_shows_it(run: Run) -> None:
    picture = frame_of(Clip.of(SCENE, 1, 64))
    plain = editor_named("tiny:sd", run, steps=1)
    with pytest.raises(ParamsError, match="nothing shows this model"):
        plain.edit(picture, "a red car", mask=None, references=[picture], seed=0, run=run)
    shown = editor_named("tiny:sd", run, steps=2, adapter="tiny:ip")
    others = (picture, 255 - picture)
    first, second = (
        shown.edit(picture, "a red car", mask=None, references=[other], seed=0, run=run) for other in others
    )
    assert not np.array_equal(first, second)


def test_what_an_editor_cannot_do_is_refused_by_its_class_alone(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionInstructPix2PixPipeline"}')
    check_editor(str(tmp_path))
    check_editor("tiny:sd", references=1, adapter="tiny:ip", control="tiny:sd-canny")
    with pytest.raises(ParamsError, match="looks at one reference picture, not 2"):
        check_editor("tiny:sd", references=2, adapter="tiny:ip")
    with pytest.raises(ParamsError, match="nothing shows this model"):
        check_editor("tiny:sd", references=1)
    with pytest.raises(ParamsError, match="takes no control"):
        check_editor(str(tmp_path), control="tiny:sd-canny")
    with pytest.raises(ParamsError, match="no reference pictures"):
        check_editor(str(tmp_path), references=1)
    with pytest.raises(ModelMismatch, match="no editor of pictures"):
        check_editor("tiny:svd")
    with pytest.raises(ModelNotFound):
        check_editor("tiny:sd", control="nowhere")
