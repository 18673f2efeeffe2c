"""`retouch face`: what a face model can change."""

import json

import click

from retouch.errors import ModelMismatch


@click.group()
def face() -> None:
    """Say what a face model can change."""


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
