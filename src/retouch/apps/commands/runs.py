"""`retouch runs`, `retouch resume` and `retouch replay`: what was done, going on with it, doing it again."""

import json
from pathlib import Path

import click

from retouch.errors import RequestError
from retouch.registry import stdout_kept
from retouch.request import EditRequest


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of words.")
def runs(*, as_json: bool) -> None:
    """List the runs and how they ended, the newest last."""
    from retouch.apps.run_folder import run_folders, state_of

    rows = [(folder, state_of(folder), _read_request(folder)) for folder in run_folders()]
    if as_json:
        click.echo(
            json.dumps([{"run": str(f), "state": s, "video": str(r.video) if r else ""} for f, s, r in rows])
        )
        return
    if not rows:
        click.echo("no runs yet; start with: retouch demo out/", err=True)
    for folder, state, request in rows:
        click.echo(f"{folder.name}  {state}  {request.video if request else ''}")


@click.command()
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of words.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
@click.option("--force", is_flag=True, help="Replace an output that exists.")
def resume(run: str, *, as_json: bool, quiet: bool, force: bool) -> None:
    """Go on with a run that was stopped, with the steps it had finished."""
    from retouch.apps.commands.edit import carry_out
    from retouch.apps.run_folder import find_folder, state_of

    folder = find_folder(run)
    if state_of(folder) == "done":
        raise RequestError(f"{folder.name} is done", hint=f"to do it again: retouch replay {folder.name}")
    carry_out(
        EditRequest.read(folder / "request.json"), force=force, as_json=as_json, quiet=quiet, folder=folder
    )


@click.command()
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of words.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def replay(run: str, *, as_json: bool, quiet: bool) -> None:
    """Do a run again, in a folder of its own, and say whether the bytes are the same."""
    from retouch.apps.progress import show_progress
    from retouch.apps.run_folder import REPORT, find_folder
    from retouch.apps.runner import run_edit

    folder = find_folder(run)
    request = EditRequest.read(folder / "request.json").model_copy(update={"out": None})
    with stdout_kept(), show_progress(quiet=quiet or as_json) as listen:
        result = run_edit(request, listen=listen)
    before = json.loads((folder / REPORT).read_text()) if (folder / REPORT).exists() else {}
    same = before.get("result_digest") == result.report["result_digest"]
    if as_json:
        click.echo(json.dumps({"run": str(result.folder), "result": str(result.video), "same": same}))
        return
    click.echo(result.video)
    if not before:
        click.echo(f"  {folder.name} never ended, so there is nothing to compare with", err=True)
        return
    click.echo("  the same frames, bit for bit" if same else "  NOT the same frames", err=True)
    if not same and before["source_digest"] != result.report["source_digest"]:
        click.echo("  the source clip has changed since", err=True)


def _read_request(folder: Path) -> EditRequest | None:
    try:
        return EditRequest.read(folder / "request.json")
    except RequestError:
        return None
