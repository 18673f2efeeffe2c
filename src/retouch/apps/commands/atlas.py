"""`retouch mask` and `retouch atlas`: objects out of a clip, and the clip as a few pictures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from retouch.apps.cli_fields import range_option
from retouch.apps.scratch import scratch_run
from retouch.errors import ParamsError
from retouch.fields import pair
from retouch.params import frame_range, renumbered

if TYPE_CHECKING:
    import numpy as np

    from retouch.atlas.atlas import Atlas
    from retouch.atlas.prepare import ClipObjects
    from retouch.media.tint import Colour
    from retouch.run import Run
    from retouch.video import Video

PATH = click.Path(path_type=Path)
CLIP = click.argument("clip", type=PATH)
FILE = click.argument("file", type=PATH, metavar="ATLAS")
FORCE = click.option("--force", is_flag=True, help="Replace what exists.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of words.")


def marking_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say what an object is."""
    where = "as [NAME@]FRAME:x,y x,y"
    options = (
        click.option("--box", multiple=True, help=f"A box around an object, {where}."),
        click.option("--stroke", multiple=True, help=f"A stroke over an object, {where} ..."),
        click.option("--polygon", multiple=True, help=f"An object's outline, {where} ..."),
        click.option("--outside", multiple=True, help=f"A stroke over what is not the object, {where} ..."),
        click.option(
            "--drawn", multiple=True, help="A whole mask of one frame, as [NAME@]FRAME=PICTURE; white is it."
        ),
        click.option(
            "--segmenter",
            default="grabcut",
            show_default=True,
            help="Who follows: grabcut, which needs no weights, or sam2:MODEL with a SAM 2 model.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@CLIP
@marking_options
@range_option
@click.option("-o", "--out", type=PATH, required=True, help="The mask: .mkv (lossless), or a folder.")
@click.option(
    "--object", "name", default="", help="Which object, if several are marked; the first by default."
)
@click.option("--preview", type=PATH, help="Also write the clip with the object tinted, to look at.")
@click.option(
    "--preview-colour",
    "colour",
    default="",
    help="The tint, as a name or #rrggbb; without it, what shows against the object.",
)
@FORCE
def mask(
    clip: Path,
    box: tuple[str, ...],
    stroke: tuple[str, ...],
    polygon: tuple[str, ...],
    outside: tuple[str, ...],
    drawn: tuple[str, ...],
    segmenter: str,
    part: str,
    out: Path,
    name: str,
    preview: Path | None,
    colour: str,
    *,
    force: bool,
) -> None:
    """Follow an object from boxes, strokes, outlines or masks on a few frames; write its mask.

    \b
    retouch mask clip.mp4 --box "40:80,190 430,390" --stroke "40:200,350 210,356" -o mask.mkv
    """  # noqa: D301 - click reads the mark
    from retouch.apps.preflight import check_clip_output
    from retouch.atlas.prepare import drawn_marks, marked_objects, marks_from, segmenter_named
    from retouch.media.io import Encoding, read, write
    from retouch.media.probe import probe
    from retouch.media.tint import named_colour

    facts = probe(clip)
    encoding = Encoding(lossless=out.suffix.lower() in {".mkv", ".avi"}, sound=False)
    check_clip_output(out, encoding, force=force, clip=facts)
    if preview is not None:
        check_clip_output(preview, force=force, clip=facts)
    wanted = named_colour(colour) if colour else None
    frames = frame_range(part)
    box, stroke, polygon, outside, drawn = (
        tuple(renumbered(text, frames, "a mark") for text in texts)
        for texts in (box, stroke, polygon, outside, drawn)
    )
    marks = marks_from(box=box, stroke=stroke, polygon=polygon, outside=outside)
    with scratch_run() as run:
        follower = segmenter_named(segmenter, run)
        video = read(clip, part=frames, scratch=run.folder / "read", listen=run.listen)
        marks += drawn_marks(drawn, video)
        names = dict.fromkeys(mark.name for mark in marks)
        if name and name not in names:
            raise ParamsError(f"no object {name!r} is marked", hint=f"marked: {', '.join(names)}")
        objects = marked_objects(video, marks, segmenter=follower, run=run)
        name = name or objects.names[0]
        mattes = objects.mattes[objects.names.index(name)]
        grey = run.scratch("mask", video.frames.shape)
        for t in range(len(video)):
            grey[t] = mattes.frame(t)[None]
        click.echo(write(video.like(grey), out, encoding=encoding, force=force))
        if preview is not None:
            tinted = _tinted_clip(video, objects, {name: wanted} if wanted else {}, run)
            click.echo(write(video.like(tinted), preview, force=force, listen=run.listen))


def _tinted_clip(
    video: "Video", objects: "ClipObjects", colours: "dict[str, Colour]", run: "Run"
) -> "np.ndarray":
    """The clip with every object tinted, in the colours given or in such as show against it."""
    import numpy as np

    from retouch.media.tint import colour_against, pixels_of, tint_objects

    def picture(t: int) -> np.ndarray:
        return np.ascontiguousarray(video.frames[t].transpose(1, 2, 0))

    some = sorted({int(t) for t in np.linspace(0, len(video) - 1, 8)})
    for name, mattes in zip(objects.names, objects.mattes, strict=True):
        own = [pixels_of(picture(t), mattes.frame(t) > 127) for t in some]
        colours.setdefault(name, colour_against(np.concatenate(own), colours.values()))
    tinted = run.scratch("preview", video.frames.shape)
    for t in range(len(video)):
        masks = {n: m.frame(t) for n, m in zip(objects.names, objects.mattes, strict=True)}
        tinted[t] = tint_objects(picture(t), masks, colours).transpose(2, 0, 1)
    return tinted


@click.group()
def atlas() -> None:
    """Fit, show, report, export and extend layered atlases."""


@atlas.command()
@CLIP
@marking_options
@range_option
@click.option("--mask", "masks", type=PATH, multiple=True, help="A mask a layer, front to back.")
@click.option("-o", "--out", type=PATH, required=True, help="The atlas file.")
@click.option("--set", "changes", multiple=True, help="A setting of the solver, as NAME=VALUE.")
@click.option(
    "--flow",
    default="dis",
    show_default=True,
    help="Where motion comes from: dis, which needs no weights, or raft:MODEL with a RAFT model.",
)
@click.option(
    "--deadline",
    type=click.FloatRange(0),
    default=0.0,
    help="Seconds after which no new stage is begun; the same command goes on from there. 0 is never.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@FORCE
def fit(
    clip: Path,
    box: tuple[str, ...],
    stroke: tuple[str, ...],
    polygon: tuple[str, ...],
    outside: tuple[str, ...],
    drawn: tuple[str, ...],
    segmenter: str,
    part: str,
    masks: tuple[Path, ...],
    out: Path,
    changes: tuple[str, ...],
    flow: str,
    deadline: float,
    device: str,
    *,
    force: bool,
) -> None:
    """Decompose a clip into layers. Stopped and started again, it goes on where it was."""
    from retouch.apps.preflight import check_masks
    from retouch.atlas.file import save_atlas
    from retouch.atlas.prepare import atlas_for, drawn_marks, flow_named, marks_from, segmenter_named
    from retouch.atlas.pyramid import AtlasSettings
    from retouch.fields import parse
    from retouch.files import check_free
    from retouch.media.io import read
    from retouch.media.probe import probe

    check_free(out, force=force)
    facts, frames = probe(clip), frame_range(part)
    for mask in masks:
        check_masks(mask, facts, frames)
    settings = parse(AtlasSettings, dict(pair(change, example="--set side=320") for change in changes))
    box, stroke, polygon, outside, drawn = (
        tuple(renumbered(text, frames, "a mark") for text in texts)
        for texts in (box, stroke, polygon, outside, drawn)
    )
    marks = marks_from(box=box, stroke=stroke, polygon=polygon, outside=outside)
    with scratch_run(device) as run:
        follower, motion = segmenter_named(segmenter, run), flow_named(flow, run)
        video = read(clip, part=frames, scratch=run.folder / "read", listen=run.listen)
        made = atlas_for(
            video,
            run,
            masks=masks,
            marks=[*marks, *drawn_marks(drawn, video)],
            segmenter=follower,
            flow=motion,
            settings=settings,
            deadline=deadline,
        )
        click.echo(save_atlas(made, out, force=force))


@atlas.command("show")
@FILE
@click.option("-o", "--out", type=PATH, help="Write the textures beside each other as a picture.")
@FORCE
@JSON
def show_atlas(file: Path, out: Path | None, *, force: bool, as_json: bool) -> None:
    """Say what an atlas holds, and draw its textures."""
    from retouch.apps.preflight import check_picture_output
    from retouch.atlas.file import load_atlas, texture_name
    from retouch.media.io import write_picture

    if out is not None:
        check_picture_output(out, force=force)
    made = load_atlas(file)
    if out is not None:
        write_picture(_stack_textures(made), out, force=force)
    charts = [
        {
            "name": texture_name(made, i),
            "looks_like_frame": made.first + chart.reference,
            "first_frame": made.first + chart.start,
            "last_frame": made.first + chart.stop - 1,
            "width": int(chart.texture.shape[2]),
            "height": int(chart.texture.shape[1]),
        }
        for i, chart in enumerate(made.charts)
    ]
    if as_json:
        click.echo(json.dumps({"layers": made.names, "frames": made.frames, "textures": charts}))
        return
    where = f" from number {made.first} of the clip on," if made.first else ""
    click.echo(
        f"{file}: {made.frames} frames{where} of {made.width}x{made.height}, solved up to {made.stage!r}"
    )
    for one in charts:
        click.echo(
            f"  {one['name']:14} {one['width']}x{one['height']}, like frame {one['looks_like_frame']}, "
            f"frames {one['first_frame']} to {one['last_frame']}"
        )


@atlas.command()
@FILE
@CLIP
@range_option
@JSON
def report(file: Path, clip: Path, part: str, *, as_json: bool) -> None:
    """Measure an atlas against its clip, and say where it will fail."""
    from retouch.atlas.file import load_atlas
    from retouch.atlas.report import examine_atlas
    from retouch.media.io import read

    frames = frame_range(part)
    with scratch_run() as run:
        video = read(clip, part=frames, scratch=run.folder / "read", listen=run.listen)
        found = examine_atlas(load_atlas(file, video), video)
    click.echo(json.dumps(found.plain()) if as_json else found.words())


@atlas.command()
@FILE
@click.option("-o", "--out", type=PATH, required=True, help="The folder.")
@click.option("--exr", is_flag=True, help="Write ST-maps and mattes as OpenEXR with floats; PNG has 16 bits.")
@FORCE
def export(file: Path, out: Path, *, exr: bool, force: bool) -> None:
    """Write textures, mattes and ST-maps as pictures, for a paint program or a compositor."""
    from retouch.atlas.file import export_atlas as write_out
    from retouch.atlas.file import load_atlas
    from retouch.files import check_free

    check_free(out, force=force, folder=True)
    written = write_out(load_atlas(file), out, force=force, exr=exr)
    click.echo(f"{out}: {len(written)} pictures")


@atlas.command("extend")
@FILE
@CLIP
@range_option
@click.option("-o", "--out", type=PATH, required=True, help="The longer atlas.")
@FORCE
def extend_atlas(file: Path, clip: Path, part: str, out: Path, *, force: bool) -> None:
    """Fit the frames that a longer clip adds; textures stay, so edits made before still hold."""
    from retouch.atlas.extend import extend_atlas as make_longer
    from retouch.atlas.file import load_atlas, save_atlas
    from retouch.files import check_free
    from retouch.media.io import read

    check_free(out, force=force)
    shorter, frames = load_atlas(file), frame_range(part)
    with scratch_run() as run:
        video = read(clip, part=frames, scratch=run.folder / "read", listen=run.listen)
        click.echo(save_atlas(make_longer(shorter, video, run=run), out, force=force))


def _stack_textures(made: "Atlas") -> "np.ndarray":
    """The textures under each other on grey, the widest giving the width."""
    import numpy as np

    from retouch.atlas.textures import as_picture

    pictures = [as_picture(chart.texture) for chart in made.charts]
    width = max(p.shape[1] for p in pictures)
    rows = [np.pad(p, ((0, 8), (0, width - p.shape[1]), (0, 0)), constant_values=64) for p in pictures]
    return np.concatenate(rows)
