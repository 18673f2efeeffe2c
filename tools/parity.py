"""Holds a method against numbers that its authors' code produced: `python tools/parity.py METHOD DIR`.

DIR holds a `fixture.json` and the tensors. One line a tensor (name, ok or FAIL, error, tolerance), a summary
line last; the exit code is 1 if anything fails or if there was nothing to compare. What is listed in the
fixture but has no tensors in DIR is reported as not shipped.
"""

import importlib
import os
import sys
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]  # runs from a checkout that is not installed

METHODS = ("face", "fatezero", "stablevideo", "videoshop")


@click.command()
@click.argument("method", type=click.Choice(METHODS))
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--only", default="", help="Compare only what has this text in its name.")
def main(method: str, folder: Path, only: str) -> None:
    """Compare METHOD with the authors' numbers in DIR."""
    import torch
    from tools.parity_report import Report

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    report = Report()
    importlib.import_module(f"tools.parity_{method}").check(folder, report, only=only)
    sys.exit(report.close())


if __name__ == "__main__":
    main()
