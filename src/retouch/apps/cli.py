"""The command line: `retouch`. Help answers at once: nothing heavy is imported before a command runs."""

import importlib
import json
import os
import sys
from collections.abc import Mapping
from typing import final

import click

from retouch import __version__
from retouch.errors import Cancelled, RetouchError
from retouch.fields import near
from retouch.files import FULL, in_our_words

COMMANDS: Mapping[str, tuple[str, str]] = {
    "edit": ("retouch.apps.commands.edit:edit", "Edit a clip with one of the methods."),
    "batch": ("retouch.apps.commands.batch:batch", "Carry out a file of requests, on one machine or many."),
    "methods": ("retouch.apps.commands.edit:methods", "List the methods, or show one with its parameters."),
    "demo": ("retouch.apps.commands.demo:demo", "Edit a clip made on the spot and say where to look."),
    "web": ("retouch.apps.commands.web:web", "Paint, mark, edit and compare in the browser."),
    "probe": ("retouch.apps.commands.media:probe", "Print what a file is, or what differs between two."),
    "keyframe": (
        "retouch.apps.commands.keyframe:keyframe",
        "Take frames out of a clip as pictures, or edit them by words.",
    ),
    "mask": ("retouch.apps.commands.atlas:mask", "Follow an object from boxes and strokes; write its mask."),
    "atlas": ("retouch.apps.commands.atlas:atlas", "Fit, show, report, export and extend layered atlases."),
    "compare": (
        "retouch.apps.commands.compare:compare",
        "Put clips side by side and show where they differ.",
    ),
    "face": ("retouch.apps.commands.face:face", "Say what a face model can change, and teach it more."),
    "report": ("retouch.apps.commands.compare:report", "Make a web page of a run that needs no other file."),
    "bench": ("retouch.apps.commands.compare:bench", "Measure methods against edits whose truth is known."),
    "world": ("retouch.apps.commands.world:world", "Make clips of a drawn world with the truth about them."),
    "models": ("retouch.apps.commands.models:models", "List, show, fetch and check models."),
    "runs": ("retouch.apps.commands.runs:runs", "List the runs and how they ended."),
    "resume": ("retouch.apps.commands.runs:resume", "Go on with a run that was stopped."),
    "replay": ("retouch.apps.commands.runs:replay", "Do a run again and say whether the bytes are the same."),
    "cache": ("retouch.apps.commands.cache:cache", "List, verify and prune kept results."),
    "doctor": (
        "retouch.apps.commands.doctor:doctor",
        "Say what this machine offers and what is wrong with it.",
    ),
}
"""Each command with its place and its line in the help, so that the help loads none of them."""


@final
class LazyGroup(click.Group):
    """A group whose commands are imported when they are called, and that knows a near name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the order of `COMMANDS`."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command itself, imported now."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, but with our words for an unknown name."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"there is no command {args[0]!r}. {near(args[0], COMMANDS)}".strip(), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands with their lines, none of them imported."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, message="retouch %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(ctx: click.Context, *, debug: bool) -> None:
    """Edit video so that the edit holds still from frame to frame.

    \b
    Start with:   retouch demo out/
    Then:         retouch methods
    """  # noqa: D301 - click reads the mark
    ctx.obj = debug


def main() -> None:
    """Runs the command line; the process ends with the exit code of what happened."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """One call of the command line, as an exit code; errors are two lines, with `--debug` a traceback."""
    as_json = "--json" in arguments
    if "--debug" in arguments:
        arguments = ["--debug", *(word for word in arguments if word != "--debug")]
    try:
        code = _called(arguments)
    except RetouchError as error:
        _say_error(str(error), error.hint, error.exit_code, as_json=as_json)
        if "--debug" in arguments:
            raise
        return error.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f"see: {context.command_path} --help" if context else "see: retouch --help"
        _say_error(error.format_message(), hint, 2, as_json=as_json)
        return 2
    except (KeyboardInterrupt, click.Abort):
        _say_error("stopped", "", Cancelled.exit_code, as_json=as_json)
        return Cancelled.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as error:
        if "--debug" in arguments:
            raise
        _say_error(
            f"unexpected {type(error).__name__}: {error}",
            "run it again with --debug for details",
            1,
            as_json=as_json,
        )
        return 1
    return code if isinstance(code, int) else 0  # a command that ends early says so in what click gives back


def _called(arguments: list[str]) -> object:
    """Carry out a command; what the system refuses is told in our words."""
    try:
        code = cli.main(args=arguments, prog_name="retouch", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno in FULL and error.filename is None:  # what is left of the output has nowhere to go
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise in_our_words(error) from error.__cause__
    return code


def _say_error(message: str, hint: str, code: int, *, as_json: bool) -> None:
    """An error as two lines for people or one object for machines, on the error stream."""
    if as_json:
        click.echo(json.dumps({"error": message, "hint": hint, "exit_code": code}), err=True)
        return
    click.echo(f"error: {message}", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)
