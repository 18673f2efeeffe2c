"""`retouch probe`: what a file is."""

import dataclasses
import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import click

from retouch.errors import RequestError
from retouch.params import frame_range

if TYPE_CHECKING:
    from retouch.media.probe import ClipFacts


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.option("--range", "part", default="", metavar="FIRST-LAST", help="Tell of these frames only.")
@click.option("--diff", is_flag=True, help="Print what differs between two files; the exit code is 1 then.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of words.")
def probe(files: tuple[Path, ...], part: str, *, diff: bool, as_json: bool) -> None:
    """Print what a file is, or what differs between two.

    \b
    retouch probe clip.mp4
    retouch probe --diff clip.mp4 edited.mp4
    """  # noqa: D301 - click reads the mark
    from retouch.media.probe import probe as look

    frames = frame_range(part)

    def find_out(path: Path) -> "ClipFacts":
        return look(path).part(frames) if frames else look(path)

    if diff:
        if len(files) != 2:
            raise RequestError(f"--diff is between two files, not {len(files)}", hint="name two files")
        lines = find_out(files[0]).differences(find_out(files[1]))
        click.echo(json.dumps(lines) if as_json else "\n".join(lines), nl=as_json or bool(lines))
        raise click.exceptions.Exit(1 if lines else 0)
    for file in files:
        facts = find_out(file)
        click.echo(json.dumps(_plain_facts(facts), ensure_ascii=False) if as_json else _in_words(facts))


def _in_words(facts: "ClipFacts") -> str:
    video = facts.video
    rate = (
        f"{video.fps} frames a second"
        if not video.variable_rate
        else f"variable rate around {float(video.fps):.3f}"
    )
    depth = f"{video.bits} bits" + (", with alpha" if video.alpha else "")
    tags = [video.primaries or "untagged", video.transfer or "untagged", video.matrix or "untagged"]
    levels = {True: "full range", False: "limited range", None: "untagged range"}[video.full_range]
    lines = [
        f"{facts.path}: {facts.container}, {facts.size} bytes, {float(facts.duration):.3f} s",
        f"  video     {video.codec} {video.profile}".rstrip() + f", {video.pixel_format}, {depth}",
        f"  size      {video.width}x{video.height}"
        + (f", stored turned by {video.rotation} degrees" if video.rotation else "")
        + (f", pixels {video.sample_aspect} as wide as high" if video.sample_aspect != 1 else ""),
        f"  frames    {video.frames}{f' from number {video.first} on' * bool(video.first)}, {rate}",
        f"  colour    {' / '.join(tags)}, {levels}",
    ]
    for sound in facts.sounds:
        spoken = f", {sound.language}" if sound.language else ""
        lines.append(
            f"  audio     {sound.codec}, {sound.rate} Hz, {sound.layout}, {sound.packets} packets{spoken}"
        )
    if facts.others:
        lines.append(f"  besides   {', '.join(facts.others)}")
    return "\n".join(lines)


def _plain_facts(value: object) -> object:
    """Facts as JSON knows them; fractions as text, so that nothing is rounded."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain_facts(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain_facts(inner) for inner in value]
    if isinstance(value, Mapping):
        return {key: _plain_facts(inner) for key, inner in value.items()}
    return str(value) if isinstance(value, Fraction | Path) else value
