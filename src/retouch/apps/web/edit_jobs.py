"""What the page's workers do to edit a frame by words, as `retouch keyframe --edit` does."""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from retouch.apps.preflight import check_edit_words
from retouch.apps.web.jobs import exact_frame, marks_in, selected
from retouch.atlas.keyframes import edited_keyframes
from retouch.compute import Compute
from retouch.diffusion.picture_editor import EDGES_OF, check_editor, denoises, editor_named
from retouch.errors import EmptyMask, MethodError, RetouchError
from retouch.events import Listener
from retouch.media.io import write_picture
from retouch.models.refs import catalogue, embedded
from retouch.places import usable_home
from retouch.run import Run
from retouch.tracking.segment import ObjectMark
from retouch.video import Video


def editors(**_: object) -> list[dict[str, str]]:
    """Return the models on this machine that edit pictures, and whether they read a scene or an order."""
    found = []
    for name in (*embedded(), *catalogue()):
        try:
            check_editor(name)
        except RetouchError:
            continue
        found.append({"name": name, "reads": "scene" if denoises(name) else "order"})
    return found


def check_frame_edit(
    *, path: str, index: str, asked: Mapping[str, Any], listen: Listener, **_: object
) -> None:
    """Refuse what can be known to fail before any weight is read."""
    check_editor(asked["model"], control=edges_for(asked))
    check_edit_words(asked["prompt"], asked["model"], anyway=asked["anyway"], tell=listen)
    place_of(exact_frame(Path(path), asked["frame"], Path(index)), asked)


def edit_frame(
    *,
    path: str,
    index: str,
    asked: Mapping[str, Any],
    out: str,
    listen: Listener,
    stopped: Callable[[], bool],
) -> None:
    """Write what words make of a frame: a layer of its size, opaque where they changed it, else clear."""
    source = np.ascontiguousarray(exact_frame(Path(path), asked["frame"], Path(index))[..., :3])
    where = place_of(source, asked)
    compute = Compute.model_validate(asked["compute"]).here()
    with tempfile.TemporaryDirectory(prefix="retouch-") as folder, compute.repeatable():
        run = Run.alone(
            Path(folder),
            seed=asked["seed"],
            compute=compute,
            store=usable_home() / "store",
            listen=listen,
            stopped=stopped,
        )
        settings = {name: asked[name] for name in ("prompt", "steps", "guidance", "strength")}
        editor = editor_named(asked["model"], run, control=edges_for(asked), **settings)
        [(_, made)] = edited_keyframes(
            Video(source.transpose(2, 0, 1)[None], Fraction(1)),
            [0],
            asked["prompt"],
            editor,
            masks=None if where is None else np.uint8(255) * where[None, None],
            seed=asked["seed"],
            run=run,
        )
    if not made.changed.any():
        raise MethodError(
            f"the edit changes nothing on frame {asked['frame']}",
            hint="Try other words, another seed or more strength.",
        )
    layer = np.concatenate([made.picture, np.uint8(255) * made.changed[..., None]], 2)
    write_picture(layer * np.uint8(made.changed[..., None]), Path(out), force=True)


def edges_for(asked: Mapping[str, Any]) -> str:
    """Return what holds the model to the frame's edges: its own, unless the request says another, or none."""
    return EDGES_OF.get(asked["model"], "") if asked["control"] is None else str(asked["control"])


def place_of(
    picture: UInt8[np.ndarray, "h w channels"], asked: Mapping[str, Any]
) -> Bool[np.ndarray, "h w"] | None:
    """Return where the edit may be; None is anywhere.

    Raises:
        EmptyMask: there is no such place on the frame.
    """
    marks = marks_in(asked, asked["frame"])
    match asked["where"]:
        case "box":
            return within_boxes(marks, picture.shape[0], picture.shape[1])
        case "cutout":
            return selected(picture, marks) > 127
    return None


def within_boxes(marks: Sequence[ObjectMark], height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """Return the pixels of a frame that lie in its boxes.

    Raises:
        EmptyMask: none does.
    """
    found = np.zeros((height, width), bool)
    for mark in (mark for mark in marks if mark.kind == "box"):
        (left, right), (top, bottom) = (sorted(side) for side in zip(*mark.points, strict=True))
        found[max(0, math.floor(top)) : math.ceil(bottom), max(0, math.floor(left)) : math.ceil(right)] = True
    if not found.any():
        raise EmptyMask("no box lies on this frame", hint="Draw one around the place, or edit anywhere.")
    return found
