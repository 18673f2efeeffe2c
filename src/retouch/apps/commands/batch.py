"""`retouch batch`: many edits from a file of requests, how they stand, and what is to be done again."""

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, final

import click

from retouch.apps.batch import (
    RowResult,
    exit_code,
    forgive,
    plan,
    run,
    status,
)
from retouch.apps.batch_folder import SILENCE
from retouch.apps.batch_rows import ROWS_PER_GROUP, make_rows, write_rows
from retouch.apps.cluster import LOCAL
from retouch.apps.progress import show_progress
from retouch.compute import in_words
from retouch.files import check_free

_RUN: Final = "run"


@final
class RunsByDefault(click.Group):
    """A group whose first word may be a file: then it is the rows to run."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the hidden command before what is no command."""
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = [_RUN, *args]
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the options of a run, and the commands."""
        self.commands[_RUN].format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


@click.group(cls=RunsByDefault, subcommand_metavar="ROWS.jsonl --out DIR [OPTIONS]")
def batch() -> None:
    """Carry out a file of requests, one a line; each is done once, whatever is stopped or dies.

    A line is what `retouch edit ... --dry-run` prints, on one line, or {"id": ..., "request": {...}, "tags":
    {...}}. Start the same command again to go on. Exit codes: 0 all done, 1 some failed, 75 rows are left.
    """


def how_to_run(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where and how rows are carried out."""
    options = [
        click.option("--workers", type=click.IntRange(1), help="Processes here; by default one a GPU."),
        click.option("--shard", default="", metavar="I/N", help="Take part I of N; N jobs share DIR."),
        click.option("--cluster", is_flag=False, flag_value=LOCAL, metavar="[auto|HOST:PORT]",
                     help="Use Ray: the cluster there, the one that Ray finds, or a new one here."),
        click.option("--gpus-per-row", type=click.FloatRange(0), metavar="SHARE",
                     help="Of a graphics card, on a cluster; by default a whole one, where there are any."),
        click.option("--trust-network", is_flag=True, help="Use a cluster that asks nobody for a token."),
        click.option(
            "--rows-per-group",
            type=click.IntRange(1),
            default=ROWS_PER_GROUP,
            show_default=True,
            help="Rows of one clip and model that a worker takes on together.",
        ),
        click.option("--order", type=click.Choice(["model", "file"]), default="model", show_default=True,
                     help="Go by model, then clip; or as the rows are written."),
        click.option("--limit", type=click.IntRange(0), help="Carry out so many rows and no more."),
        click.option(
            "--silence",
            type=click.FloatRange(1),
            default=SILENCE,
            show_default=True,
            help="Seconds after which a worker that shows no sign may be taken for gone.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print a JSON object a row instead of words."),
        click.option("--quiet", is_flag=True, help="Show no progress."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@batch.command(_RUN, hidden=True)
@click.argument("rows", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder of the batch.")
@how_to_run
@click.option("--dry-run", is_flag=True, help="Check the rows, print the plan and do nothing.")
@click.option("--skip-bad", is_flag=True, help="Leave out rows that cannot be used, as failed ones.")
@click.option("--force", is_flag=True, help="Do changed rows anew, and replace outputs that exist.")
@click.option(
    "--untrusted", is_flag=True, help="Rows come from outside: files from --root alone, models by name."
)
@click.option("--root", "roots", type=click.Path(path_type=Path), multiple=True,
              help="A folder that rows from outside may use. Repeatable.")  # fmt: skip
def run_rows(
    rows: Path, out: Path, *, dry_run: bool, untrusted: bool, roots: tuple[Path, ...], **options: Any
) -> int:
    """Carry out the rows of a file."""
    confined = roots if untrusted or roots else None
    if dry_run:
        _show_plan(
            plan(rows, workers=options["workers"] or 1, roots=confined, skip_bad=options["skip_bad"]),
            as_json=options["as_json"],
        )
        return 0
    return _carried_out(rows, out, roots=confined, **options)


@batch.command("retry")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--failed", is_flag=True, help="Do what failed again too; else only what is missing.")
@click.option("--only", default="", metavar="KEY", help="Do this row again, however it ended.")
@how_to_run
def retry_rows(folder: Path, *, failed: bool, only: str, **options: Any) -> int:
    """Go on with the batch in DIR, from the rows that it keeps."""
    again = forgive(folder, only=only, failed=failed)
    if not options["as_json"]:
        click.echo(f"{len(again)} rows are done again", err=True)
    return _carried_out(None, folder, **options)


@batch.command("status")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of words.")
def show_status(folder: Path, *, as_json: bool) -> None:
    """Say how the batch in DIR stands, and write its results.jsonl anew."""
    told = status(folder)
    if as_json:
        click.echo(json.dumps(told))
        return
    counts = ", ".join(f"{told[name]} {name}" for name in ("done", "failed", "missing"))
    click.echo(f"{told['rows']} rows: {counts}; {len(told['at_work'])} at work")
    for failure in told["failures"]:
        click.echo(f"  line {failure['line']} {failure['key']}: {failure['message']} ({failure['hint']})")


@batch.command("plan")
@click.argument("rows", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes to plan for."
)
@click.option("--skip-bad", is_flag=True, help="Leave out rows that cannot be used.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of words.")
def show_plan(rows: Path, *, workers: int, skip_bad: bool, as_json: bool) -> None:
    """Say which groups the rows make, what they will need, and what does not fit."""
    _show_plan(plan(rows, workers=workers, skip_bad=skip_bad), as_json=as_json)


@batch.command("make")
@click.argument("rows", type=click.Path(path_type=Path))
@click.option("--clips", multiple=True, required=True, help="A clip, or a pattern in quotes. Repeatable.")
@click.option("--method", "name", required=True, help="The method.")
@click.option("--preset", help="Where its parameters start from.")
@click.option(
    "--set", "values", multiple=True, metavar="NAME=VALUE", help="A parameter of all rows. Repeatable."
)
@click.option("--sweep", "sweeps", multiple=True, metavar="NAME=VALUES",
              help="seed=0..9, or prompt=a,b: a row for each. Repeatable.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace a file that exists.")
def make(rows: Path, *, clips: Sequence[str], name: str, force: bool, **given: Any) -> None:
    """Write ROWS: a request for each clip and each combination of the swept values."""
    check_free(rows, force=force)
    made = make_rows(clips, name, **given)
    write_rows(rows, made)
    click.echo(f"{rows}: {len(made)} rows")


def _carried_out(
    rows: Path | None, out: Path, *, as_json: bool, quiet: bool, order: str, **options: Any
) -> int:
    results = []
    with stop_asked() as stopped, show_progress(quiet=quiet or as_json) as listen:
        for result in run(rows, out, keep_order=order == "file", listen=listen, stopped=stopped, **options):
            results.append(result)
            if as_json:
                click.echo(json.dumps(result.as_json()))
    code = exit_code(results, out, options["shard"])
    if not as_json:
        _sum_up(results, out, code)
    return code


def _sum_up(results: Iterable[RowResult], out: Path, code: int) -> None:
    told = [result.done for result in results]
    click.echo(out / "results.jsonl")
    click.echo(f"  {sum(told)} done, {len(told) - sum(told)} failed", err=True)
    if code:
        click.echo(f"  see: retouch batch status {out}; go on: retouch batch retry {out}", err=True)


@contextlib.contextmanager
def stop_asked() -> Iterator[Callable[[], bool]]:
    """Give what says if an interrupt, or the end of a job's time, asked to stop; nothing ends by itself."""
    asked = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: asked.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show_plan(planned: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(planned))
        return
    for group in planned["groups"]:
        models = ", ".join(group["models"]) or "no model"
        click.echo(
            f"{len(group['lines'])} rows of {group['video']} with {models}: lines {group['lines'][0]} ..."
        )
    hours = "of unknown length" if planned["hours"] is None else f"about {planned['hours']:.2g} hours"
    click.echo(f"{planned['rows']} rows, {hours} on {planned['workers']} workers, "
               f"{in_words(planned['memory'])} of memory each")  # fmt: skip
    for refused in planned["refused"]:
        click.echo(f"  line {refused['line']} does not fit: {refused['message']}")
