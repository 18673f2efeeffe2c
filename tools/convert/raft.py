"""Brings a RAFT checkpoint of its authors into a folder that `--flow raft:FOLDER` reads.

`python tools/convert/raft.py raft-things.pth -o raft` reads the tensors alone (`weights_only=True`, so that
nothing in the file is run), sees that a RAFT of some width takes them, and writes `raft/model.safetensors`.
"""

import pickle
import sys
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src")]  # runs from a checkout that is not installed

import torch  # noqa: E402 - the path comes first
from safetensors.torch import save_file  # noqa: E402

from retouch.errors import InputError, ModelMismatch, RetouchError  # noqa: E402
from retouch.models.flow_raft import LayerWidths, RaftNetwork  # noqa: E402


def convert(checkpoint: Path, folder: Path, *, force: bool = False) -> Path:
    """Write the folder.

    Raises:
        ModelMismatch: the file holds something else than the weights of a RAFT.
        InputError: the result exists and `force` is not given.
    """
    goal = folder / "model.safetensors"
    if goal.exists() and not force:
        raise InputError(f"{goal} exists", hint="choose another folder, or --force")
    try:
        # The authors ship pickles; of these only tensors are taken, and nothing in them is run.
        read = torch.load(checkpoint, map_location="cpu", weights_only=True)
        weights = {name.removeprefix("module."): value.contiguous().clone() for name, value in read.items()}
        RaftNetwork(LayerWidths.of(weights)).load_state_dict(weights)
    except FileNotFoundError:
        raise InputError(f"there is no {checkpoint}", hint="name a file such as raft-things.pth") from None
    except (pickle.UnpicklingError, KeyError, RuntimeError, AttributeError, EOFError) as problem:
        raise ModelMismatch(
            f"{checkpoint} holds no weights of a RAFT ({type(problem).__name__}: {problem})",
            hint="the large model is read (raft-things.pth and its like), not raft-small",
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, goal)
    return goal


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The folder.")
@click.option("--force", is_flag=True, help="Replace what exists.")
def main(checkpoint: Path, out: Path, *, force: bool) -> None:
    """Convert a RAFT checkpoint of its authors."""
    try:
        click.echo(convert(checkpoint, out, force=force))
    except RetouchError as problem:
        raise click.ClickException(f"{problem}\n{problem.hint}") from None


if __name__ == "__main__":
    main()
