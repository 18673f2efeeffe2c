"""Key frames edited by words, each agreeing with those before: what is decided is rendered into the next."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, final

import numpy as np
import torch
from jaxtyping import Bool, UInt8

from retouch.artifacts import artifact
from retouch.atlas.atlas import Atlas
from retouch.atlas.edit import PaintedFrame, patches_from_frames, render_frames
from retouch.errors import MethodError
from retouch.models.picture_edit import PictureEditor
from retouch.run import Run
from retouch.tracking.register import RegisteredEdit, register_edit
from retouch.video import Video

LEFT_TO_EDIT: Final = 0.02
"""Share of a mask that must be undecided for the editor to be asked."""


def edited_keyframes(
    video: Video,
    at: Sequence[int],
    prompt: str,
    editor: PictureEditor,
    *,
    atlas: Atlas | None = None,
    masks: UInt8[np.ndarray, "f 1 h w"] | None = None,
    references: Sequence[UInt8[np.ndarray, "y x 3"]] = (),
    seed: int = 0,
    run: Run,
) -> Iterator[tuple[int, RegisteredEdit]]:
    """Edit key frames in their order; yield each as soon as it is done, and where it differs from the clip.

    Args:
        video: The clip.
        at: The frames.
        prompt: What to do, or to show, as the editor reads it.
        editor: Who edits.
        atlas: Through which later frames are shown what the earlier ones decided; needed for several.
        masks: Where to edit; anywhere, if None.
        references: Pictures to look at beside the words.
        seed: Decides what is drawn.
        run: Progress, and the store of answers.

    Raises:
        MethodError: an answer does not show its frame.
    """
    keys = list[PaintedFrame]()
    for t in at:
        source = np.ascontiguousarray(video.frames[t].transpose(1, 2, 0))
        shown, decided = source, np.zeros(source.shape[:2], bool)
        if keys:
            assert atlas is not None
            patches = patches_from_frames(atlas, keys)
            frames, touched = render_frames(atlas, np.array(video.frames[t : t + 1]), t, patches)
            shown, decided = np.ascontiguousarray(frames[0].transpose(1, 2, 0)), touched[0, 0]
        mask = None if masks is None else masks[t, 0] > 127
        if mask is not None and (mask & ~decided).sum() <= LEFT_TO_EDIT * mask.sum():
            run.notice(f"{video.named_frames([t])} shows nothing to edit that is not decided")
            found = RegisteredEdit(shown, decided)
        else:
            where = mask & ~decided if mask is not None else ~decided if keys else None
            answer = editor_answer(
                shown, prompt, editor=editor, mask=where, references=tuple(references), seed=seed, run=run
            )
            found = register_edit(shown, answer.picture, mask=mask)
            picture = np.where(decided[..., None], shown, found.picture)
            found = replace(found, picture=picture, changed=found.changed | decided)
        cover = torch.from_numpy(found.changed.astype(np.float32))[None]
        keys.append(PaintedFrame(t, torch.from_numpy(found.picture).movedim(2, 0).float() / 255, cover))
        yield t, found


@final
@dataclass(frozen=True, eq=False)
class EditorAnswer:
    """A picture as the editor left it."""

    picture: UInt8[np.ndarray, "h w 3"]


@artifact("edited_picture", version=1)
def editor_answer(
    picture: UInt8[np.ndarray, "h w 3"],
    prompt: str,
    *,
    editor: PictureEditor,
    mask: Bool[np.ndarray, "h w"] | None,
    references: tuple[UInt8[np.ndarray, "y x 3"], ...],
    seed: int,
    run: Run,
) -> EditorAnswer:
    """Ask the editor, or take its answer from the store.

    Raises:
        MethodError: the answer is of another size.
    """
    made = editor.edit(picture, prompt, mask=mask, references=references, seed=seed, run=run)
    if made.shape != picture.shape:
        (rows, columns), (high, wide) = made.shape[:2], picture.shape[:2]
        raise MethodError(
            f"the editor answered a {wide}x{high} picture with one of {columns}x{rows}",
            hint="an editor of pictures gives back the size that it was given",
        )
    return EditorAnswer(np.ascontiguousarray(made))
