"""`retouch world`: clips of a drawn world with the truth about them."""

import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import click

from retouch.compute import free_memory, in_words
from retouch.errors import InputError, OutOfBudget
from retouch.files import replace_whole

if TYPE_CHECKING:
    import numpy as np

    from retouch.video import Video
    from retouch.world import Clip, FaceClip
    from retouch.world.sheet import Rows

COLUMNS = 6
"""Frames on a contact sheet."""

BYTES_A_PIXEL = 150
"""Memory for a pixel of a frame: three layers, texture coordinates and flow, twice while they are written."""


@click.group()
def world() -> None:
    """Make clips of a drawn world with the truth about them."""


@world.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**64 - 1), help="Which scene.")
@click.option("--caption", help='What to show, such as "a red striped car on grass, neon".')
@click.option(
    "--edit", "edits", multiple=True, help="A change such as color=blue; 1.object=fish; style=neon."
)
@click.option("--faces", is_flag=True, help="Draw a face and not objects.")
@click.option("--size", default=128, show_default=True, type=click.IntRange(8, 4096), help="Pixels a side.")
@click.option("--frames", default=16, show_default=True, type=click.IntRange(1, 100_000), help="How many.")
@click.option("--fps", default="12", show_default=True, help="Frames a second, such as 24 or 24000/1001.")
@click.option("--force", is_flag=True, help="Replace a folder that this command wrote before.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of words.")
def sample(
    out: Path,
    *,
    seed: int,
    caption: str | None,
    edits: tuple[str, ...],
    faces: bool,
    size: int,
    frames: int,
    fps: str,
    force: bool,
    as_json: bool,
) -> None:
    """Write a clip, its true edit and everything known about it into the folder OUT.

    \b
    retouch world sample out --seed 3 --edit color=blue
    retouch world sample out --caption "a white fish in front of grass" --edit object=bird
    retouch world sample out --faces --edit glasses=yes
    """  # noqa: D301 - click reads the mark
    rate = _parse_rate(fps)
    _check_memory(frames, size, edited=bool(edits))
    with replace_whole(out, force=force, folder=True) as draft:
        draft.mkdir()
        write = _write_face if faces else _write_scene
        said = write(draft, seed, caption, edits, frames, size, rate)
        told = {"seed": seed, "fps": str(rate), "frames": frames, "size": size, **said}
        (draft / "caption.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    if as_json:
        click.echo(json.dumps({"folder": str(out), **told}))
        return
    click.echo(said["caption"])
    if edits:
        click.echo(f"-> {said['target']}")
    click.echo(f"{out}: look at sheet.png first")


@world.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--faces", is_flag=True, help="The words for faces.")
@click.option("--size", default=96, show_default=True, type=click.IntRange(16, 512), help="Pixels a picture.")
@click.option("--force", is_flag=True, help="Replace a file that exists.")
def sheet(out: Path, *, faces: bool, size: int, force: bool) -> None:
    """Draw every word of the world into the picture OUT."""
    from retouch.apps.preflight import check_picture_output
    from retouch.media.io import write_picture
    from retouch.world.sheet import face_vocabulary_rows, vocabulary_rows

    check_picture_output(out, force=force)
    rows = face_vocabulary_rows(size) if faces else vocabulary_rows(size)
    click.echo(str(write_picture(_named_rows(rows), out, force=force)))


@world.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of words.")
def words(*, as_json: bool) -> None:
    """List the words that captions and changes are made of."""
    from retouch.world import BACKGROUNDS, COLOURS, OBJECTS, PATTERNS, STYLES
    from retouch.world.faces import FACE_WORDS

    known = {
        "object": OBJECTS,
        "colour": COLOURS,
        "pattern": PATTERNS,
        "background": BACKGROUNDS,
        "style": STYLES,
        **{f"face {name}": choices for name, choices in FACE_WORDS.items() if name != "background"},
    }
    if as_json:
        click.echo(json.dumps(known))
        return
    for name, choices in known.items():
        click.echo(f"{name:17} {', '.join(choices)}")


def _parse_rate(text: str) -> Fraction:
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not 0 < rate <= 1000:
        raise InputError(
            f"fps is {text!r}; it must be above 0 and at most 1000", hint="write 24 or 24000/1001"
        )
    return rate


def _check_memory(frames: int, size: int, *, edited: bool) -> None:
    needed = BYTES_A_PIXEL * frames * size * size * (2 if edited else 1)
    free = free_memory()
    if needed > free:
        raise OutOfBudget(
            f"{frames} frames of {size}x{size} and their truth need {in_words(needed)}; "
            f"{in_words(free)} are free",
            hint="ask for fewer frames or a smaller size",
        )


def _write_scene(
    folder: Path,
    seed: int,
    caption: str | None,
    edits: tuple[str, ...],
    frames: int,
    size: int,
    fps: Fraction,
) -> dict[str, object]:
    from retouch.world import WORLD_VERSION, Change, Clip, Scene, edited_clip, reachable_pixels
    from retouch.world.sheet import truth_rows

    scene = Scene.of(caption, seed) if caption else Scene.sample(seed)
    changes = [Change.parse(text) for text in edits]
    clip = Clip.of(scene, frames, size, fps)
    after = edited_clip(clip, *changes) if changes else None
    tensors = _truth_tensors(clip)
    for k, layer in enumerate(clip.layers):
        _write_mask(folder / f"mask-{k}-{layer.name.replace(' ', '-')}", clip.masks[k], fps)
    if after is not None:
        tensors |= {f"edited.{name}": array for name, array in _truth_tensors(after).items()}
        tensors["reached"] = reachable_pixels(clip, after)
    _write_clips(folder, clip.video, after.video if after else None, tensors)
    _write_sheet(folder, truth_rows(clip, _choose_frames(frames), after))
    return {
        "world": WORLD_VERSION,
        "caption": clip.caption,
        "target": after.caption if after else None,
        "edits": list(edits),
        "layers": [layer.name for layer in clip.layers],
    }


def _truth_tensors(clip: "Clip") -> "dict[str, np.ndarray]":
    tensors = {
        "shares": clip.shares,
        "forward": clip.forward,
        "forward_seen": clip.forward_seen,
        "backward": clip.backward,
        "backward_seen": clip.backward_seen,
    }
    for k, layer in enumerate(clip.layers):
        tensors[f"layer.{k}.colour"] = layer.colour
        tensors[f"layer.{k}.alpha"] = layer.alpha
        tensors[f"layer.{k}.coordinates"] = layer.coordinates
    return tensors


def _write_face(
    folder: Path,
    seed: int,
    caption: str | None,
    edits: tuple[str, ...],
    frames: int,
    size: int,
    fps: Fraction,
) -> dict[str, object]:
    from dataclasses import asdict

    from retouch.world import LANDMARKS, PARTS, WORLD_VERSION, FaceClip, Portrait
    from retouch.world.sheet import face_rows

    portrait = Portrait.of(caption, seed) if caption else Portrait.sample(seed)
    clip = FaceClip.of(portrait, frames, size, fps)
    after = clip.edited(*edits) if edits else None
    tensors = _face_truth(clip)
    if after is not None:
        tensors |= {f"edited.{name}": array for name, array in _face_truth(after).items()}
    _write_clips(folder, clip.video, after.video if after else None, tensors)
    _write_mask(folder / "mask-face", clip.alpha >= 128, fps)
    _write_sheet(folder, face_rows(clip, _choose_frames(frames), after))
    return {
        "world": WORLD_VERSION,
        "caption": clip.caption,
        "target": after.caption if after else None,
        "edits": list(edits),
        "identity": asdict(portrait.identity),
        "landmarks": list(LANDMARKS),
        "parts": list(PARTS),
    }


def _face_truth(clip: "FaceClip") -> "dict[str, np.ndarray]":
    return {
        "colour": clip.colour,
        "alpha": clip.alpha,
        "parts": clip.parts,
        "landmarks": clip.landmarks,
    }


def _write_clips(
    folder: Path, source: "Video", target: "Video | None", tensors: "Mapping[str, np.ndarray]"
) -> None:
    import numpy as np
    from safetensors.numpy import save

    from retouch.media.io import Encoding, write

    for name, video in (("clip", source), ("edited", target)):
        if video is not None:
            write(video, folder / name)
            write(video, folder / f"{name}.mp4", encoding=Encoding())
    whole = {name: np.ascontiguousarray(array) for name, array in tensors.items() if array.size}
    (folder / "truth.safetensors").write_bytes(save(whole))


def _write_mask(folder: Path, mask: "np.ndarray", fps: Fraction) -> None:
    import numpy as np

    from retouch.media.io import write
    from retouch.video import Video

    write(Video(np.repeat(mask.astype(np.uint8) * 255, 3, axis=1), fps), folder)


def _write_sheet(folder: Path, rows: "Rows") -> None:
    from retouch.media.compare import draw_sheet as drawn
    from retouch.media.io import write_picture

    names = [name for name, _ in rows["clip"]]
    picture = drawn([[shown for _, shown in row] for row in rows.values()], names, list(rows))
    write_picture(picture, folder / "sheet.png")


def _named_rows(rows: "Rows") -> "np.ndarray":
    """Rows whose pictures have a name each, one row of headings for every row of pictures."""
    import numpy as np

    from retouch.media.compare import draw_sheet as drawn

    longest = max(len(row) for row in rows.values())
    strips = []
    for title, row in rows.items():
        missing = longest - len(row)
        heads = [name for name, _ in row] + [""] * missing
        strips.append(drawn([[*(shown for _, shown in row), *[None] * missing]], heads, [title]))
    widest = max(strip.shape[1] for strip in strips)
    table = np.empty((sum(len(strip) for strip in strips), widest, 3), np.uint8)
    table[...] = strips[0][0, 0]
    below = 0
    for strip in strips:
        table[below : below + len(strip), widest - strip.shape[1] :] = strip
        below += len(strip)
    return table


def _choose_frames(frames: int) -> list[int]:
    count = min(frames, COLUMNS)
    return [number * (frames - 1) // max(count - 1, 1) for number in range(count)]
