"""`retouch face`: what a face model can change, and directions that it is taught."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from retouch.errors import Cancelled, InputError, ModelMismatch

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float

    from retouch.models.face_model import FaceModel
    from retouch.models.face_parts import FaceFinder
    from retouch.run import Run
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


@face.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The model to write.")
@click.option(
    "--from", "ref", default="tiny:face", show_default=True, help="The model whose small networks read faces."
)
@click.option("--fresh", is_flag=True, help="Begin with a new network, and not with that model's own.")
@click.option(
    "--images", default=200_000, show_default=True, type=click.IntRange(1), help="How many faces are seen."
)
@click.option("--batch", default=16, show_default=True, type=click.IntRange(1), help="Faces at a step.")
@click.option(
    "--rate", default=1e-4, show_default=True, type=click.FloatRange(0, min_open=True), help="Of Adam."
)
@click.option(
    "--every", default=500, show_default=True, type=click.IntRange(1), help="Steps between two sheets."
)
@click.option(
    "--frames", default=100, show_default=True, type=click.IntRange(1), help="The most frames of a clip."
)
@click.option("--finder", type=click.Path(path_type=Path), help="The ONNX file of YuNet, to find faces with.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--force", is_flag=True, help="Replace the model if there is one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of words.")
def train(
    folder: Path,
    *,
    out: Path,
    ref: str,
    fresh: bool,
    images: int,
    batch: int,
    rate: float,
    every: int,
    frames: int,
    finder: Path | None,
    device: str,
    force: bool,
    as_json: bool,
) -> None:
    """Train a face model on the clips and pictures in FOLDER, one face in each.

    The losses and sheets of faces drawn by it lie in OUT.training as it goes on. The same command goes on
    where it was stopped; with more --images it goes further.

    \b
    retouch face train clips/ -o mine --images 2000
    retouch edit face clip.mp4 --model ./mine --attribute glasses=1
    """  # noqa: D301 - click reads the mark
    from retouch.apps.progress import show_progress
    from retouch.compute import Compute
    from retouch.files import check_free
    from retouch.models.face_model import FaceModel
    from retouch.models.face_parts import YuNetFinder
    from retouch.models.face_training import check_training_room, gather_faces, keep_model, train_network
    from retouch.places import usable_home
    from retouch.run import Run, loading

    check_free(out, force=force, folder=True)
    files = files_in(folder)
    if len(files) < 2:
        raise InputError(f"{folder} holds one clip", hint="give at least two: one is held out to judge by")
    lengths = [min(frames, frames_in(path)) for path in files]
    compute, seeker = Compute(device=device), YuNetFinder(finder) if finder else None
    with loading(ref):
        model = (FaceModel.untrained if fresh else FaceModel.from_pretrained)(ref, compute)
    work = out.absolute().with_name(f"{out.name}.training")
    settings = {"from": ref, "fresh": fresh, "batch": batch, "rate": rate, "every": every, "frames": frames}
    listed = {path.name: path.stat().st_size for path in files}
    check_training_room(model, lengths, out.absolute().parent)
    check_same(work, {**settings, "finder": str(finder or ""), "model": model.identity, "clips": listed})
    with show_progress() as listen:
        run = Run.alone(work, compute=compute, store=usable_home() / "store", listen=listen)
        try:
            faces, learned, judged = gather_faces(
                model, lengths, lambda n: cut_from(files[n], lengths[n], model, seeker, run), run
            )
            network, history = train_network(
                model.diffusion, faces, learned, judged, work, images=images, batch=batch, rate=rate,
                every=every, run=run,
            )  # fmt: skip
        except KeyboardInterrupt:
            raise Cancelled("the training was stopped", hint="the same command goes on") from None
    about = {"clips": len(files), "faces": len(learned), "held_out": len(judged), **settings}
    keep_model(network, ref, out, {**about, "figures": [history[0], history[-1]]}, force=force)
    if as_json:
        click.echo(json.dumps({"model": str(out), **about, "before": history[0], "after": history[-1]}))
        return
    click.echo(
        f"{out}: learnt from {len(learned)} faces, judged by {len(judged)}; the error at timestep 600"
        f" was {history[0]['own_600']:.4f} and is {history[-1]['own_600']:.4f}\nlook at {work}"
    )


def cut_from(
    path: Path, most: int, model: "FaceModel", finder: "FaceFinder | None", run: "Run"
) -> "Float[torch.Tensor, 'f 3 side side']":
    """Return the face of a file, cut out of each of its first frames; a file without one alone is told of."""
    import torch

    from retouch.errors import NoFace, ParamsError
    from retouch.methods.face.align import cut_faces

    try:
        return cut_faces(read_clip(path, most), model, finder, run=run)
    except (NoFace, ParamsError) as error:
        run.notice(f"{path.name} is left out: {error}")
        return torch.zeros(0, 3, model.side, model.side)


def check_same(work: Path, settings: Mapping[str, object]) -> None:
    """Begin a training's folder, or refuse to go on in one that was begun otherwise.

    Raises:
        InputError: says what differs.
    """
    from retouch.files import write_whole

    place = work / "training.json"
    if not place.is_file():
        work.mkdir(exist_ok=True)
        write_whole(place, json.dumps(settings, indent=1) + "\n")
        return
    before = json.loads(place.read_text("utf-8"))
    other = [name for name, value in settings.items() if before.get(name) != value]
    if other:
        raise InputError(
            f"{work.name} was begun otherwise: {', '.join(other)}",
            hint="give what it was begun with, or remove that folder",
        )


def clips_in(folder: Path) -> list["Video"]:
    """Return the clips and pictures of a folder, of each its first frames.

    Raises:
        InputError: the folder is not there or holds none.
    """
    return [read_clip(path, MOST_FRAMES) for path in files_in(folder)]


def files_in(folder: Path) -> list[Path]:
    """Return the files of a folder.

    Raises:
        InputError: it is not there or holds none.
    """
    files = sorted(path for path in folder.glob("*") if path.is_file() and not path.name.startswith("."))
    if not files:
        raise InputError(f"{folder} holds no clips and no pictures", hint="put one face into each file")
    return files


def frames_in(path: Path) -> int:
    """Return how many frames a clip or picture has, at most."""
    from retouch.media.probe import probe

    return probe(path).video.frames


def read_clip(path: Path, most: int) -> "Video":
    """Return the first frames of a clip, or a picture as a clip of one."""
    from fractions import Fraction

    import numpy as np

    from retouch.media.io import read, read_picture
    from retouch.media.pictures import is_picture
    from retouch.video import Video

    if is_picture(path):
        return Video(np.ascontiguousarray(read_picture(path).transpose(2, 0, 1)[None]), Fraction(1))
    return read(path, part=range(min(most, frames_in(path))))
