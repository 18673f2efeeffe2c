"""`retouch demo`: a whole edit on a clip made on the spot, in under a minute and with no download."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from retouch.errors import VideoError
from retouch.places import usable_home

if TYPE_CHECKING:
    import numpy as np

CAPTION = "a red car on bricks"
SEED = 11
SIZE = (216, 384)
FRAMES = 36
PAINTED = 12
"""The frame that is painted on."""


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default="demo")
@click.option("--force", is_flag=True, help="Use the folder even if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of words.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def demo(folder: Path, *, force: bool, as_json: bool, quiet: bool) -> None:
    """Edit a clip made on the spot: one frame is painted on, and every frame follows.

    Writes the clip, the painted frame, the edited clip and a sheet of both into FOLDER.
    """
    from retouch.apps.progress import show_progress
    from retouch.apps.runner import run_edit
    from retouch.media.compare import draw_sheet, evenly_spaced
    from retouch.media.io import read, write, write_picture
    from retouch.request import EditRequest
    from retouch.world import Clip, Scene

    usable_home()
    folder = folder.absolute()
    if folder.exists() and not force:
        raise VideoError(f"{folder} exists", hint="choose another folder, or add --force")
    folder.mkdir(parents=True, exist_ok=True)
    clip = Clip.of(Scene.of(CAPTION, seed=SEED), FRAMES, SIZE)
    source = write(clip.video, folder / "clip.mp4", force=True)
    frame = read(source).frames[PAINTED].transpose(1, 2, 0)
    write_picture(_paint_frame(frame, clip.masks[0, PAINTED, 0]), folder / "painted.png", force=True)
    request = EditRequest(
        video=source,
        method="paint",
        params={
            "keyframe": [f"{PAINTED}={folder / 'painted.png'}"],
            "box": [_mask_box(clip.masks[0, PAINTED, 0])],
        },
        out=folder / "edited.mp4",
    )
    with show_progress(quiet=quiet or as_json) as listen:
        result = run_edit(request, listen=listen, force=True)
    clips = read(source), read(result.video)
    shown_at = evenly_spaced(FRAMES, 5)
    rows = [[shot.frames[at].transpose(1, 2, 0) for at in shown_at] for shot in clips]
    titles = [f"frame {at}" for at in shown_at]
    write_picture(
        draw_sheet(rows, titles, ["the clip", "edited"], height=SIZE[0]), folder / "sheet.png", force=True
    )
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "run": str(result.folder), **result.report}))
        return
    untouched = result.report["untouched"]
    assert isinstance(untouched, dict)
    click.echo(f"In {folder}:")
    click.echo(f"  clip.mp4     a clip of {CAPTION}")
    click.echo(f"  painted.png  its frame {PAINTED}, painted on")
    click.echo("  edited.mp4   every frame follows the paint")
    click.echo("  sheet.png    both, side by side: look here first")
    click.echo(f"\n{untouched['sentence']}")
    click.echo(f"\nThe edit was this command:\n  {result.report['command']}")
    click.echo(f"\nTo paint on it yourself, in the browser:\n  retouch web {folder / 'clip.mp4'}")


def _paint_frame(frame: "np.ndarray", mask: "np.ndarray") -> "np.ndarray":
    """The frame with a white disc and a star on the car, and a word on the wall."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    rows, columns = np.nonzero(mask)
    top, left, bottom, right = rows.min(), columns.min(), rows.max(), columns.max()
    x, y, r = (left + right) / 2, top + 0.55 * (bottom - top), 0.14 * (bottom - top)
    picture = Image.fromarray(np.ascontiguousarray(frame))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((x - r, y - r, x + r, y + r), fill="white", outline="black")
    pen.regular_polygon((x, y, 0.6 * r), 3, fill="black")
    pen.text(
        (12, 10),
        "HOLD STILL",
        fill="yellow",
        font=ImageFont.load_default(28),
        stroke_width=2,
        stroke_fill="black",
    )
    return np.asarray(picture)


def _mask_box(mask: "np.ndarray") -> str:
    """The box around a mask, as `paint` reads it."""
    import numpy as np

    rows, columns = np.nonzero(mask)
    return f"{PAINTED}:{columns.min() - 2},{rows.min() - 2} {columns.max() + 2},{rows.max() + 2}"
