"""`retouch cache`: the results that are kept so that nothing expensive is done twice."""

import json
import time

import click

from retouch.compute import as_bytes, in_words
from retouch.errors import ArtifactError, ParamsError
from retouch.places import home


@click.group()
def cache() -> None:
    """List, verify and prune kept results."""


@cache.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of words.")
def list_kept(*, as_json: bool) -> None:
    """List what is kept, the longest unused first."""
    from retouch.artifacts import ArtifactStore

    entries = list(ArtifactStore(home() / "store").entries())
    if as_json:
        click.echo(
            json.dumps([{"kind": e.kind, "key": e.key, "bytes": e.size, "used": e.used} for e in entries])
        )
        return
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        click.echo(f"{entry.kind:16} {entry.key[:12]}  {in_words(entry.size):>10}  last used {used}")
    click.echo(f"{len(entries)} kept, {in_words(sum(entry.size for entry in entries))}", err=True)
    if left := ArtifactStore(home() / "store").unfinished():
        click.echo(f"unfinished work: {in_words(sum(entry.size for entry in left))}", err=True)


@cache.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of words.")
def verify(*, as_json: bool) -> None:
    """Check every byte of what is kept; damaged results are named and will be made again."""
    from retouch.artifacts import ArtifactStore

    store = ArtifactStore(home() / "store")
    faults: dict[str, str] = {}
    count = 0
    for entry in store.entries():
        count += 1
        try:
            store.check(entry.folder)
        except ArtifactError as error:
            faults[f"{entry.kind}/{entry.key}"] = str(error)
    if as_json:
        click.echo(json.dumps({"checked": count, "damaged": faults}))
    else:
        for name, fault in faults.items():
            click.echo(f"{name}: {fault}")
        click.echo(f"{count} checked, {len(faults)} damaged", err=True)
    if faults:
        raise click.exceptions.Exit(ArtifactError.exit_code)


@cache.command()
@click.option("--keep", default="0", help="How much may stay, for example 2GB; nothing by default.")
@click.option(
    "--older-than", type=click.FloatRange(0), default=0.0, help="Only what was unused for so many days."
)
def prune(keep: str, older_than: float) -> None:
    """Remove kept results, the longest unused first."""
    from retouch.artifacts import ArtifactStore

    try:
        bound = as_bytes(keep)
    except ValueError as error:
        raise ParamsError(f"--keep: {error}", hint="for example --keep 2GB") from None
    store = ArtifactStore(home() / "store")
    removed = store.prune(keep_bytes=bound, older_than=older_than * 86400)
    click.echo(f"{len(removed)} removed, {in_words(sum(entry.size for entry in removed))} freed")
    if left := store.unfinished():
        size = in_words(sum(entry.size for entry in left))
        click.echo(f"{size} of unfinished work stay; they go once it was left alone for an hour", err=True)
