"""What cog writes into the pages: help texts and parameter tables, taken from the program itself."""

import os
import subprocess
import sys
from pathlib import Path

from retouch.apps.cli_fields import option_table
from retouch.registry import method


def help_of(*words: str) -> str:
    """The help of a command as a text block."""
    command = [str(Path(sys.executable).with_name("retouch")), *words, "--help"]
    plain = {"COLUMNS": "100", "PATH": "", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    said = subprocess.run(command, check=True, capture_output=True, text=True, env=plain)
    return f"```text\n$ retouch {' '.join([*words, '--help'])}\n{said.stdout.rstrip()}\n```"


def parameters(name: str) -> str:
    """A method's parameters as a table."""
    rows = ["| option | default, range | meaning |", "|---|---|---|"]
    for flag, facts, text in option_table(method(name)):
        rows.append(f"| `{flag}` | {facts.replace('|', '/')} | {text} |")
    return "\n".join(rows)


def presets(name: str) -> str:
    """A method's presets as a table."""
    spec = method(name)
    rows = ["| preset | sets |", "|---|---|"]
    for preset, values in spec.presets.items():
        rows.append(f"| `{preset}` | {', '.join(f'{key} = {value}' for key, value in values.items())} |")
    return "\n".join(rows)
