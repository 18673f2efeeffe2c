"""`retouch compare`, `retouch report` and `retouch bench`: looking at edits, and measuring them."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from retouch.apps.cli_fields import range_option
from retouch.errors import InputError
from retouch.events import Event, Notice, ignore
from retouch.fields import pair
from retouch.params import frame_range

if TYPE_CHECKING:
    from retouch.video import Video

MEASURED = ("psnr-source", "ssim-source", "warp-error-estimated", "flicker", "flicker-peak", "colour-drift")
"""What can be said of a clip beside the one it was made from, without network, mask or truth."""

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("clips", nargs=-1, required=True, type=PATH)
@click.option("-o", "--out", type=PATH, help="Write the side-by-side video here.")
@click.option("--labels", help="Names to write above the clips, with commas; the file names without it.")
@click.option("--sheet", type=PATH, help="Write a picture here: frames down, clips and differences across.")
@click.option(
    "--rows", default=5, show_default=True, type=click.IntRange(1, 100), help="Frames on the sheet."
)
@click.option(
    "--gain",
    default=4.0,
    show_default=True,
    type=click.FloatRange(1, 255),
    help="Factor of differences.",
)
@range_option
@click.option("--shortest", is_flag=True, help="Compare the frames that all of them have.")
@click.option("--metrics", is_flag=True, help="Measure every clip against the first.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of words.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
def compare(
    clips: tuple[Path, ...],
    *,
    out: Path | None,
    labels: str | None,
    sheet: Path | None,
    rows: int,
    gain: float,
    part: str,
    shortest: bool,
    metrics: bool,
    as_json: bool,
    force: bool,
) -> None:
    """Put CLIPS side by side and show where they differ from the first.

    \b
    retouch compare source.mp4 edit.mp4 -o side.mp4 --sheet sheet.png --metrics
    """  # noqa: D301 - click reads the mark
    from retouch.apps.preflight import check_clip_output, check_picture_output
    from retouch.media.compare import common_length, difference_sheet, write_side_by_side
    from retouch.media.io import read, write_picture
    from retouch.media.probe import probe

    if len(clips) < 2:
        raise InputError("one clip has nothing to be compared with", hint="name two or more")
    if not (out or sheet or metrics):
        raise InputError("nothing was asked for", hint="add -o side.mp4, --sheet sheet.png or --metrics")
    names, frames = _clip_names(clips, labels), frame_range(part)
    facts = {path: probe(path) for path in clips}
    counts = {path: found.video.frames for path, found in facts.items()}
    # A clip just as long as the range is taken whole: it was made of such a part.
    parts = {path: None if frames and count == len(frames) else frames for path, count in counts.items()}
    common_length([len(frames) if frames else counts[path] for path in clips], shortest=shortest)
    if out:
        check_clip_output(out, force=force, clip=facts[clips[0]])
    if sheet:
        check_picture_output(sheet, force=force)
    videos = [read(path, part=parts[path], listen=_say_line) for path in clips]
    length = common_length([len(video) for video in videos], shortest=shortest)
    videos = [video[:length] for video in videos]
    if len({video.fps for video in videos}) > 1:
        rates = ", ".join(str(video.fps) for video in videos)
        _say_line(Notice(f"rates of {rates} fps; frames are paired by number, at the first rate"))
    if out:
        write_side_by_side(videos, names, out, force=force, listen=_say_line)
    if sheet:
        write_picture(difference_sheet(videos, names, frames=rows, gain=gain), sheet, force=force)
    figures = _measure_clips(videos, names) if metrics else {}
    _print_table(out, sheet, figures, as_json=as_json)


@click.command()
@click.argument("run")
@click.option("-o", "--out", type=PATH, help="Write the page here and not into the run folder.")
@click.option(
    "--embed-up-to",
    default=24.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Megabytes of a clip that go into the page; a larger one is linked.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of words.")
@click.option("--force", is_flag=True, help="Replace a file that exists.")
def report(run: str, *, out: Path | None, embed_up_to: float, as_json: bool, force: bool) -> None:
    """Make a web page of a RUN that needs no other file: players, figures, notices, request, command."""
    from retouch.apps.report import write_report
    from retouch.apps.run_folder import find_folder

    path = write_report(find_folder(run), out, embed_up_to=round(embed_up_to * 2**20), force=force)
    click.echo(json.dumps({"report": str(path)}) if as_json else str(path))


@click.group()
def bench() -> None:
    """Measure methods against edits whose truth is known."""


@bench.command()
@click.option("--methods", default="frame_by_frame", show_default=True, help="The methods, with commas.")
@click.option("--kinds", default="colour,pattern,object,style", show_default=True, help="Kinds of change.")
@click.option("--clips", default=40, show_default=True, type=click.IntRange(1), help="Held-out clips.")
@click.option("--frames", default=8, show_default=True, type=click.IntRange(2), help="Frames a clip.")
@click.option("--size", default=64, show_default=True, type=click.IntRange(16), help="Pixels a side.")
@click.option("--model", default="tiny:sd", show_default=True, help="The model of methods that take words.")
@click.option(
    "--steps", default=10, show_default=True, type=click.IntRange(1), help="Steps of methods that have them."
)
@click.option("--eyes", default="tiny:clip", show_default=True, help="CLIP for the direction; none without.")
@click.option("--set", "settings", multiple=True, metavar="METHOD.NAME=VALUE", help="A method's parameter.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="The methods' seed.")
@click.option(
    "--world-seed",
    default=2_000_000_000,
    show_default=True,
    type=click.IntRange(0),
    help="The first clip's seed; the default and what follows it are never trained on.",
)
@click.option(
    "-o",
    "--out",
    type=PATH,
    default=Path("bench-truth"),
    show_default=True,
    help="Folder for rows and tables.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@click.option("--quiet", is_flag=True, help="Do not say which edit is being measured.")
def truth(
    *,
    methods: str,
    kinds: str,
    clips: int,
    frames: int,
    size: int,
    model: str,
    steps: int,
    eyes: str,
    settings: tuple[str, ...],
    seed: int,
    world_seed: int,
    out: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure methods on clips of the drawn world, each change of which has a true edit.

    \b
    retouch bench truth --methods fatezero,frame_by_frame --clips 40
    Writes rows.jsonl, figures.json, table.md and sheet.png into --out; a bench that was stopped goes on.
    """  # noqa: D301 - click reads the mark
    from retouch.apps.bench import BenchPlan, run_bench, with_baseline, write_results
    from retouch.models.clip import TextImage
    from retouch.run import loading

    with loading(eyes):
        seeing = None if eyes == "none" else TextImage.from_pretrained(eyes)
    asked = BenchPlan(
        methods=with_baseline(_split_list(methods)),
        kinds=_split_list(kinds),
        clips=clips,
        frames=frames,
        size=size,
        seed=seed,
        world_seed=world_seed,
        model=model,
        steps=steps,
        settings=_read_settings(settings),
        encoder=seeing,
        network="" if eyes == "none" else eyes.replace(":", "-"),
        crop=f"{seeing.side}c" if seeing else "",
    )
    rows = run_bench(asked, out, listen=ignore if quiet or as_json else _say_line)
    told, found = write_results(asked, rows, out)
    click.echo(json.dumps(found) if as_json else told)


def _split_list(words: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in words.split(",") if word.strip())


def _read_settings(texts: Sequence[str]) -> dict[str, dict[str, object]]:
    """Reads `METHOD.NAME=VALUE`; a value that is JSON counts as such, any other as text."""
    found: dict[str, dict[str, object]] = {}
    for text in texts:
        place, value = pair(text, "METHOD.NAME=VALUE", example="--set fatezero.steps=20")
        name, parameter = pair(place, "METHOD.NAME", mark=".", example="fatezero.steps")
        try:
            found.setdefault(name, {})[parameter] = json.loads(value)
        except ValueError:
            found.setdefault(name, {})[parameter] = value
    return found


def _say_line(event: Event) -> None:
    if isinstance(event, Notice):
        click.echo(f"notice: {event.text}", err=True)


def _measure_clips(videos: Sequence["Video"], names: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Figures a clip; the first, measured against itself, is what doing nothing gets."""
    from retouch.metrics import Case, measure

    first = videos[0].frames
    found = {}
    for name, video in zip(names, videos, strict=True):
        figures = measure(Case(video.frames, first), MEASURED)
        found[name] = {key: value if math.isfinite(value) else None for key, value in figures.items()}
    return found


def _print_table(
    out: Path | None,
    sheet: Path | None,
    figures: Mapping[str, Mapping[str, float | None]],
    *,
    as_json: bool,
) -> None:
    from retouch.metrics import find_metric

    if as_json:
        told = {"out": str(out) if out else None, "sheet": str(sheet) if sheet else None, "figures": figures}
        click.echo(json.dumps(told, allow_nan=False))
        return
    for path in (out, sheet):
        if path:
            click.echo(path)
    keys = next(iter(figures.values()), {})
    for key in keys:
        metric = find_metric(key.partition("@")[0])
        idle = "; doing nothing wins" if metric.rewards_doing_nothing else ""
        click.echo(f"\n{key}  ({metric.better} is better{idle})")
        for name, row in figures.items():
            value = row[key]
            click.echo(
                f"  {name:24} {'not defined' if value is None else f'{value:.4f}'} {metric.unit}".rstrip()
            )


def _clip_names(clips: Sequence[Path], labels: str | None) -> list[str]:
    """The labels given, or file names without suffix, with their folder where two are the same."""
    if labels is None:
        stems = [path.stem for path in clips]
        names = [
            stem if stems.count(stem) == 1 else f"{path.absolute().parent.name}/{path.name}"
            for stem, path in zip(stems, clips, strict=True)
        ]
        return [name if names.count(name) == 1 else f"{i + 1}. {name}" for i, name in enumerate(names)]
    given = [label.strip() for label in labels.split(",")]
    if len(given) != len(clips) or len(set(given)) < len(given):
        raise InputError(
            f"the labels {labels!r} do not name {len(clips)} clips", hint="give one label a clip, each once"
        )
    return given
