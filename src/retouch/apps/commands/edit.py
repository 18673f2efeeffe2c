"""`retouch edit METHOD CLIP` and `retouch methods`: every method's options are drawn from its parameters."""

import json
from pathlib import Path
from typing import final

import click

from retouch import registry
from retouch.apps.cli_fields import given_values, option_table, options_of, request_options
from retouch.compute import Compute
from retouch.errors import ParamsError, RequestError
from retouch.fields import near, parse, renamed
from retouch.request import EditRequest, Output
from retouch.spec import MethodSpec


@final
class ByMethod(click.Group):
    """One command a method, made from its specification when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The methods' names."""
        del ctx
        return list(registry.names())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of one method."""
        del ctx
        return _method_command(registry.method(cmd_name)) if cmd_name in registry.names() else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, but an unknown method is our error, with the near name."""
        if args and not args[0].startswith("-"):
            registry.method(args[0])
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The methods with their lines; no plug-in is imported for its own."""
        del ctx
        with formatter.section("Methods"):
            formatter.write_dl([(name, registry.summary(name)) for name in registry.names()])


@click.group(cls=ByMethod, invoke_without_command=True, subcommand_metavar="METHOD CLIP [OPTIONS]")
@click.option(
    "--from", "source", type=click.Path(path_type=Path), help="A request.json; no method is named then."
)
@click.option("--force", is_flag=True, help="Replace an output that exists.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of words.")
@click.pass_context
def edit(ctx: click.Context, source: Path | None, *, force: bool, as_json: bool) -> None:
    """Edit a clip: retouch edit METHOD CLIP [OPTIONS]."""
    if ctx.invoked_subcommand is not None:
        return
    if source is None:
        click.echo(ctx.get_help())
        return
    carry_out(EditRequest.read(source), force=force, as_json=as_json, quiet=False)


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of words.")
def methods(name: str | None, *, as_json: bool) -> None:
    """List the methods, or show one with its parameters."""
    if name is not None:
        _show_method(registry.method(name), as_json=as_json)
        return
    rows = [{"name": name, "summary": registry.summary(name)} for name in registry.names()]
    if as_json:
        click.echo(json.dumps(rows))
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        click.echo(f"{row['name']:{width}}  {row['summary']}")


def _show_method(spec: MethodSpec, *, as_json: bool) -> None:
    if as_json:
        click.echo(
            json.dumps({"name": spec.name, "title": spec.title, "params": spec.params.model_json_schema()})
        )
        return
    click.echo(f"{spec.name}: {spec.title}\n{spec.summary}\n")
    for flag, facts, text in option_table(spec):
        click.echo(f"  {flag:24} {text}" + (f"  [{facts}]" if facts else ""))
    if spec.presets:
        click.echo(f"\npresets: {', '.join(spec.presets)}")
    if spec.paper:
        click.echo(f"\n{spec.paper.citation()}")


def _method_command(spec: MethodSpec) -> click.Command:
    """The command of one method: the clip, its parameters, and what every method has."""

    def callback(
        video: Path | None,
        preset: str | None,
        source: Path | None,
        out: Path | None,
        seed: int | None,
        part: str | None,
        *,
        anyway: bool,
        force: bool,
        as_json: bool,
        quiet: bool,
        dry_run: bool,
        **values: object,
    ) -> None:
        base = EditRequest.read(source) if source else None
        request = _request_from_flags(
            spec, base, video, values, preset=preset, out=out, seed=seed, part=part, anyway=anyway
        )
        if dry_run:
            click.echo(request.as_json(), nl=False)
            return
        carry_out(request, force=force, as_json=as_json, quiet=quiet)

    presets = ", ".join(spec.presets)
    extras = [
        click.Argument(["video"], type=click.Path(path_type=Path), required=False),
        click.Option(["--preset"], help=f"Start from: {presets}.", hidden=not presets),
        click.Option(
            ["--from", "source"], type=click.Path(path_type=Path), help="Start from a request.json."
        ),
        click.Option(["-o", "--out"], type=click.Path(path_type=Path), help="Also write the result here."),
        click.Option(["--force"], is_flag=True, help="Replace an output that exists."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object instead of words."),
        click.Option(["--quiet"], is_flag=True, help="Show no progress."),
        click.Option(["--dry-run"], is_flag=True, help="Print the request as JSON and do nothing."),
    ]
    return click.Command(
        spec.name,
        callback=callback,
        params=[*extras[:1], *options_of(spec.params), *extras[1:], *request_options()],
        help=f"{spec.title}.\n\n{spec.summary}",
        short_help=spec.summary,
    )


def _request_from_flags(
    spec: MethodSpec,
    base: EditRequest | None,
    video: Path | None,
    values: dict[str, object],
    *,
    preset: str | None,
    out: Path | None,
    seed: int | None,
    part: str | None,
    anyway: bool,
) -> EditRequest:
    """The request that the flags make: flag over `--from` over preset over default."""
    if base is not None and base.method != spec.name:
        raise RequestError(
            f"that request is for {base.method}, not {spec.name}", hint=f"retouch edit {base.method} ..."
        )
    if preset is not None and preset not in spec.presets:
        known = ", ".join(spec.presets) or "none"
        raise ParamsError(
            f"{spec.name} has no preset {preset!r}", hint=near(preset, spec.presets) or f"presets: {known}"
        )
    clip = video or (base.video if base else None)
    if clip is None:
        raise RequestError("no clip was given", hint=f"retouch edit {spec.name} CLIP [OPTIONS]")
    flags = renamed(spec.params, given_values(values, spec.params), _say_notice)
    params = spec.fill(
        {**renamed(spec.params, base.params if base else {}, _say_notice), **flags}, preset=preset
    )
    compute = {**(base.compute.model_dump() if base else {}), **given_values(values, Compute)}
    output = {**(base.output.model_dump() if base else {}), **given_values(values, Output)}
    goal = out or (base.out if base else None)
    return EditRequest(
        video=clip.expanduser().absolute(),
        method=spec.name,
        params=params.model_dump(mode="json"),
        seed=seed if seed is not None else (base.seed if base else 0),
        range=part if part is not None else (base.range if base else ""),
        anyway=anyway or bool(base and base.anyway),
        compute=parse(Compute, compute),
        output=parse(Output, output),
        out=goal.expanduser().absolute() if goal else None,
    )


def _say_notice(text: str) -> None:
    click.echo(f"notice: {text}", err=True)


def carry_out(
    request: EditRequest, *, force: bool, as_json: bool, quiet: bool, folder: Path | None = None
) -> None:
    """Runs a request with progress in the terminal and prints where the result lies."""
    from retouch.apps.progress import show_progress
    from retouch.apps.runner import run_edit

    with registry.stdout_kept(), show_progress(quiet=quiet or as_json) as listen:
        result = run_edit(request, listen=listen, force=force, folder=folder)
    if as_json:
        click.echo(json.dumps({"run": str(result.folder), "result": str(result.video), **result.report}))
        return
    click.echo(result.video)
    untouched = result.report["untouched"]
    assert isinstance(untouched, dict)
    click.echo(f"  {untouched['sentence']}", err=True)
    click.echo(f"  run: {result.folder.name}; a page about it: retouch report {result.folder.name}", err=True)
