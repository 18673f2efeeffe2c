"""`retouch models`: what models there are, where they lie, what they may be used for."""

import json
from pathlib import Path

import click

from retouch.errors import ModelError, ModelNotFound


@click.group()
def models() -> None:
    """List, show, fetch and check models."""


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of words.")
def list_models(*, as_json: bool) -> None:
    """List the models that come with retouch and those that have a name in the catalogue."""
    from retouch.models.refs import catalogue, embedded

    rows = [
        {"name": name, "title": _title_of(folder), "here": True, "size_mb": round(_in_megabytes(folder), 1)}
        for name, folder in embedded().items()
    ]
    rows += [
        {"name": entry.name, "title": entry.title, "here": _is_here(entry.name), "size_mb": entry.size_mb}
        for entry in catalogue().values()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    wide = max(len(str(row["name"])) for row in rows)
    for row in rows:
        here = "here" if row["here"] else "-"
        click.echo(f"{row['name']:{wide}} {here:5} {row['size_mb']:>8} MB  {row['title']}")


@models.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of words.")
def show_model(name: str, *, as_json: bool) -> None:
    """Show where a model comes from, what its licence allows, and whether it is here."""
    from retouch.models.licences import meaning
    from retouch.models.refs import catalogue, resolve

    entry = catalogue().get(name)
    if entry is None:
        folder = resolve(name)
        about = _embedded_facts(folder) | {"folder": str(folder)}
    else:
        about = {
            "title": entry.title,
            "kind": entry.kind,
            "source": entry.ref,
            "size_mb": entry.size_mb,
            "licence": entry.licence,
            "licence_means": meaning(entry.licence),
            "gated": entry.gated,
            "notice": entry.notice.strip(),
            "folder": str(resolve(name)) if _is_here(name) else "not here",
        }
    if as_json:
        click.echo(json.dumps(about, indent=1))
        return
    for key, value in about.items():
        text = value if isinstance(value, str) else json.dumps(value)
        click.echo(f"{key.replace('_', ' '):14} " + text.replace("\n", "\n" + 15 * " "))


@models.command()
@click.argument("name")
def get(name: str) -> None:
    """Download a model by catalogue name or as hf:org/name@revision; safetensors only."""
    from retouch.models.licences import meaning
    from retouch.models.refs import catalogue, fetch_model

    entry = catalogue().get(name)
    if entry is not None:
        click.echo(f"{entry.title}: {entry.size_mb} MB, {entry.licence} ({meaning(entry.licence)})", err=True)
        click.echo(entry.notice.strip(), err=True)
    click.echo(str(fetch_model(name)))


@models.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of words.")
def check(folder: Path, *, as_json: bool) -> None:
    """Say what a model folder (or name) is, whether it can be loaded, and what is missing."""
    from retouch.models.check import inspect_model
    from retouch.models.refs import resolve

    where = folder if folder.is_dir() else resolve(str(folder))
    found = inspect_model(where)
    if as_json:
        click.echo(json.dumps(found.plain()))
    else:
        click.echo(f"{where}: {found.words()}")
    if found.faults:
        raise click.exceptions.Exit(ModelError.exit_code)


def _is_here(name: str) -> bool:
    from retouch.models.refs import resolve

    try:
        resolve(name)
    except ModelNotFound:
        return False
    return True


def _in_megabytes(folder: Path) -> float:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6


def _title_of(folder: Path) -> str:
    titles = {
        "sd": "text to picture, in the layout of Stable Diffusion",
        "clip": "pictures against sentences, in the layout of CLIP",
        "svd": "first frame to clip, in the layout of Stable Video Diffusion",
        "sd-canny": "edges for tiny:sd, in the layout of ControlNet",
        "ip": "reference pictures for tiny:sd, in the layout of IP-Adapter",
    }
    return titles.get(folder.name, folder.name)


def _embedded_facts(folder: Path) -> dict[str, object]:
    from retouch.models.vocabulary import declared_words

    facts: dict[str, object] = {"title": _title_of(folder), "size_mb": round(_in_megabytes(folder), 1)}
    if words := declared_words(folder):
        facts["words"] = ", ".join(sorted(words))
    provenance = folder / "PROVENANCE.json"
    if provenance.is_file():
        about = json.loads(provenance.read_text("utf-8"))
        facts |= {
            key: about[key] for key in ("licence", "recipe", "recipe_digest", "quality") if key in about
        }
    return facts
