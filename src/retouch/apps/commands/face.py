"""`retouch face`: what a face model can change, and directions that it is taught."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from retouch.errors import InputError, ModelMismatch

if TYPE_CHECKING:
    from retouch.video import Video

MOST_FRAMES = 16
"""Frames of a clip that a direction is learnt from."""


@click.group()
def face() -> None:
    """Say what a face model can change, and teach it more."""


@face.command()
@click.argument("model", default="tiny:face")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of words.")
def attributes(model: str, *, as_json: bool) -> None:
    """List what `retouch edit face --attribute` can be told with MODEL, by what excludes each other."""
    from retouch.models.face_attributes import read_names
    from retouch.models.refs import resolve

    folder = resolve(model) / "attributes"
    if not folder.is_dir():
        raise ModelMismatch(f"{model} knows no attributes", hint="tiny:face does")
    names, groups = read_names(folder, model)
    if as_json:
        click.echo(json.dumps([{"name": n, "group": g} for n, g in zip(names, groups, strict=False)]))
        return
    for group in dict.fromkeys(groups) or [""]:
        listed = [n for n, of in zip(names, groups or [""] * len(names), strict=True) if of == group]
        click.echo(f"{group.replace('_', ' '):<12}{', '.join(listed)}")


@face.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of words.")
def directions(files: tuple[Path, ...], *, as_json: bool) -> None:
    """Say what directions hold that `train-direction` wrote."""
    from retouch.models.face_attributes import about_direction

    found = [{"file": str(path), **about_direction(path)} for path in files]
    if as_json:
        click.echo(json.dumps(found))
        return
    for row in found:
        click.echo(
            f"{row['file']}: of {row['model']}, from {row['with']} faces with it and {row['without']}"
            f" without; {float(row['apart']):.0%} lie on their own side"
        )


@face.command("train-direction")
@click.argument("showing", metavar="WITH", type=click.Path(path_type=Path))
@click.argument("without", metavar="WITHOUT", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The file to write.")
@click.option("--model", default="tiny:face", show_default=True, help="The face model that it is for.")
@click.option("--force", is_flag=True, help="Replace the file if there is one.")
def train_direction(showing: Path, without: Path, *, out: Path, model: str, force: bool) -> None:
    """Learn what faces in folder WITH have and those in folder WITHOUT have not.

    Each folder holds clips and pictures, one face in each. The more there are, and the more alike the two
    folders are otherwise, the better: `retouch edit face --direction FILE` follows what differs.

    \b
    retouch face train-direction freckles/ plain/ -o freckles.safetensors
    """  # noqa: D301 - click reads the mark
    from tempfile import TemporaryDirectory

    from retouch.files import check_free
    from retouch.methods.face.steer import learn_direction
    from retouch.models.face_attributes import save_direction
    from retouch.models.face_model import FaceModel
    from retouch.run import Run

    check_free(out, force=force)
    shown, plain = clips_in(showing), clips_in(without)
    with TemporaryDirectory() as folder:
        direction, apart = learn_direction(
            shown, plain, FaceModel.from_pretrained(model), Run.alone(Path(folder))
        )
    counts = {"with": str(len(shown)), "without": str(len(plain))}
    save_direction(out, direction, {"model": model, "apart": f"{apart:.3f}", **counts})
    click.echo(f"{out}: {apart:.0%} of {len(shown) + len(plain)} faces lie on their own side when left out")


def clips_in(folder: Path) -> list["Video"]:
    """Return the clips and pictures of a folder, of each its first frames.

    Raises:
        InputError: the folder is not there or holds none.
    """
    from fractions import Fraction

    import numpy as np

    from retouch.media.io import read, read_picture
    from retouch.media.pictures import is_picture
    from retouch.video import Video

    files = sorted(path for path in folder.glob("*") if path.is_file() and not path.name.startswith("."))
    if not files:
        raise InputError(f"{folder} holds no clips and no pictures", hint="put one face into each file")
    return [
        Video(np.ascontiguousarray(read_picture(path).transpose(2, 0, 1)[None]), Fraction(1))
        if is_picture(path)
        else read(path)[:MOST_FRAMES]
        for path in files
    ]
