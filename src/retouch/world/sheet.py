"""Rows of pictures to look at: a clip with its truth, and the world's vocabulary."""

from dataclasses import replace
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from retouch.world.faces import FACE_WORDS, FaceClip, Portrait, face_picture
from retouch.world.render import picture
from retouch.world.scene import BACKGROUNDS, COLOURS, OBJECTS, PATTERNS, STYLES, Actor, Motion, Scene
from retouch.world.truth import Change, Clip

Picture: TypeAlias = UInt8[np.ndarray, "h w 3"]
Rows: TypeAlias = dict[str, list[tuple[str, Picture]]]
"""A title for every row, and its pictures with a name each."""

_HUES = ((96, 96, 104), (230, 80, 70), (70, 140, 230), (240, 200, 60), (90, 190, 110), (190, 110, 220))


def truth_rows(clip: Clip, frames: list[int], after: Clip | None = None) -> Rows:
    """Chosen frames of a clip, of its true edit, and of everything known about it."""
    steps = [min(t, len(clip.video) - 2) for t in frames] if len(clip.video) > 1 else []
    rows: Rows = {"clip": _sheet_row(frames, clip.video.frames)}
    if after is not None:
        rows["true edit"] = _sheet_row(frames, after.video.frames)
    for layer in clip.layers:
        rows[layer.name] = _sheet_row(frames, _on_grey(layer.colour, layer.alpha))
    rows["masks"] = [(f"frame {t}", _paint_numbers(clip.owner[t][None])) for t in frames]
    rows["texture"] = [(f"frame {t}", _texture_board(clip, t)) for t in frames]
    rows["flow"] = [(f"frame {t}", flow_picture(clip.forward[t], clip.forward_seen[t])) for t in steps]
    return rows


def face_rows(clip: FaceClip, frames: list[int], after: FaceClip | None = None) -> Rows:
    """Chosen frames of a face clip, of its true edit, its landmarks and its parts."""
    rows: Rows = {"clip": _sheet_row(frames, clip.video.frames)}
    if after is not None:
        rows["true edit"] = _sheet_row(frames, after.video.frames)
    rows["landmarks"] = [(f"frame {t}", _dot_landmarks(clip, t)) for t in frames]
    rows["parts"] = [(f"frame {t}", _paint_numbers(clip.parts[t])) for t in frames]
    return rows


def vocabulary_rows(size: int = 96) -> Rows:
    """Return every word of the world, shown."""
    hues = [COLOURS[number % len(COLOURS)] for number in range(len(OBJECTS))]
    ball = Scene((Actor("ball", "red", motion=Motion(scale=0.45)),), "grass", ground=(0.9, 0.35))
    car = replace(ball, actors=(Actor("car", "red", motion=Motion(scale=0.8)),))
    sky, snow = replace(car, background="sky"), replace(car, background="snow")
    heart = Change("object", "heart").of(car)

    def shown(scene: Scene, *changes: Change) -> Picture:
        for change in changes:
            scene = change.of(scene)
        return picture(scene, 0.0, size)

    return {
        "objects": [
            (word, shown(sky, Change("object", word), Change("colour", hue)))
            for word, hue in zip(OBJECTS, hues, strict=True)
        ],
        "colours": [(word, shown(snow, Change("colour", word))) for word in COLOURS],
        "patterns": [(word, shown(heart, Change("pattern", word))) for word in PATTERNS],
        "backgrounds": [(word, shown(ball, Change("background", word))) for word in BACKGROUNDS],
        "styles": [(word, shown(car, Change("style", word))) for word in STYLES],
    }


def face_vocabulary_rows(size: int = 96) -> Rows:
    """Return every word for a face, shown on one face."""
    face = Portrait.of("an oval face with fair skin, short brown hair and blue eyes, in sky")
    face = replace(face, motion=replace(face.motion, centre=(0.0, 0.08), sway=(0.0, 0.0), roll=0.0, yaw=0.0))
    return {
        name.replace("_", " "): [
            (word, face_picture(face.changed(f"{name}={word}"), 1.0, size)) for word in words
        ]
        for name, words in FACE_WORDS.items()
    }


def flow_picture(flow: Float32[np.ndarray, "2 h w"], seen: Bool[np.ndarray, "1 h w"]) -> Picture:
    """Flow as colour: red to the right, green downwards; black where the other frame does not show it."""
    longest = max(float(np.abs(flow).max()), 1e-6)
    across, down = (127.5 + 127.5 * channel / longest for channel in flow)
    colour = np.stack([across, down, np.full_like(across, 140)], axis=2)
    shown: Picture = np.where(seen[0][:, :, None], colour, 0).astype(np.uint8)
    return shown


def _sheet_row(chosen: list[int], clip: UInt8[np.ndarray, "f 3 h w"]) -> list[tuple[str, Picture]]:
    return [(f"frame {t}", np.ascontiguousarray(clip[t].transpose(1, 2, 0))) for t in chosen]


def _on_grey(
    colour: UInt8[np.ndarray, "f 3 h w"], alpha: UInt8[np.ndarray, "f 1 h w"]
) -> UInt8[np.ndarray, "f 3 h w"]:
    share = alpha.astype(np.float32) / 255
    laid: UInt8[np.ndarray, "f 3 h w"] = (colour * share + 72 * (1 - share)).astype(np.uint8)
    return laid


def _paint_numbers(numbers: UInt8[np.ndarray, "1 h w"]) -> Picture:
    """Return every number in a colour of its own."""
    hues = np.array([[(level * (5 + k // 6)) // 7 for level in _HUES[k % 6]] for k in range(16)], np.uint8)
    painted: Picture = hues[numbers[0]]
    return painted


def _texture_board(clip: Clip, t: int) -> Picture:
    """Return the texture coordinates that are seen, as a chessboard that stays where it is on each layer."""
    h, w = clip.owner[t].shape
    board = np.zeros((h, w, 3), np.uint8)
    for k, layer in enumerate(clip.layers):
        u, v = np.floor(layer.coordinates[t] * 4)
        dark = (u + v) % 2
        mine = clip.owner[t] == k
        hue = np.array(_HUES[k % 6], np.float32)
        board[mine] = (hue * (1 - 0.45 * dark[..., None])).astype(np.uint8)[mine]
    return board


def _dot_landmarks(clip: FaceClip, t: int) -> Picture:
    shown = np.ascontiguousarray(clip.video.frames[t].transpose(1, 2, 0))
    h, w, _ = shown.shape
    reach = max(1, min(h, w) // 96)
    for x, y in clip.landmarks[t]:
        row, column = round(float(y)), round(float(x))
        rows = slice(max(row - reach, 0), max(row + reach + 1, 0))
        shown[rows, max(column - reach, 0) : max(column + reach + 1, 0)] = (255, 40, 200)
    return shown
