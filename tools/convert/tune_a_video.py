"""Brings authors' Tune-A-Video and FateZero checkpoints into our layout.

`python tools/convert/tune_a_video.py CHECKPOINT FOLDER` reads the UNet of a checkpoint (its folder, the
`unet` folder in it, or the file itself; `.bin` and `.pth` with `weights_only=True`, so that nothing in
them is run) and writes what was tuned into FOLDER: the queries of attention, temporal attention, and
temporal convolutions where there are any.
`--tuned FOLDER` of the methods `fatezero` and `tune_a_video` reads it. Everything else in such a
checkpoint is the base model, which stays where it is.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src")]  # runs from a checkout that is not installed

import torch  # noqa: E402 - the path comes first
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor  # noqa: E402

from retouch.diffusion.tune import Tuned  # noqa: E402
from retouch.errors import ModelMismatch, ModelNotFound, RetouchError  # noqa: E402

FILES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.bin",
)
TEMPORAL = re.compile(
    r"^(?P<block>.+\.transformer_blocks\.\d+)\.(?P<part>attn|norm)_temp(?:oral)?\.(?P<rest>.+)$"
)
QUERY = re.compile(r"\.attn[12]\.to_q\.weight$")


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def main(checkpoint: Path, folder: Path) -> None:
    """Write what was tuned in CHECKPOINT into FOLDER."""
    try:
        learned = converted(read_weights(checkpoint))
        path = learned.save(folder)
    except RetouchError as error:
        click.echo(f"error: {error}\nhint: {error.hint}", err=True)
        sys.exit(error.exit_code)
    counts = (len(learned.queries), len(learned.temporal), len(learned.convs))
    click.echo(
        "{}: {} query weights, {} temporal tensors, {} temporal convolution tensors".format(path, *counts)
    )


def read_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint; nothing in it is run.

    Raises:
        ModelNotFound: no weights lie there.
        ModelMismatch: the file holds more than tensors.
    """
    found = [checkpoint] if checkpoint.is_file() else [checkpoint / name for name in FILES]
    path = next((path for path in found if path.is_file()), None)
    if path is None:
        raise ModelNotFound(
            f"{checkpoint} holds none of {', '.join(FILES)}", hint="name the checkpoint's folder or file"
        )
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        # The authors ship pickles; of these only tensors are taken, and nothing in them is run.
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelMismatch(
            f"{path.name} is not a file of tensors ({type(error).__name__})", hint="it was not read"
        ) from None
    weights = weights.get("state_dict", weights)
    return {str(name): tensor for name, tensor in weights.items() if isinstance(tensor, Tensor)}


def converted(weights: Mapping[str, Tensor]) -> Tuned:
    """What was tuned, under our names.

    Raises:
        ModelMismatch: no temporal attention is in it.
    """
    queries, temporal, convs = {}, {}, {}
    for name, tensor in weights.items():
        if match := TEMPORAL.match(name):
            part = (
                f"norm.{match['rest']}"
                if match["part"] == "norm"
                else match["rest"].replace("to_out.0.", "to_out.")
            )
            temporal[f"{match['block']}.{part}"] = tensor.float()
        elif ".conv_temporal." in name:
            convs[name] = tensor.float()
        elif QUERY.search(name):
            queries[name] = tensor.float()
    if not temporal:
        raise ModelMismatch(
            "these weights have no temporal attention", hint="give a Tune-A-Video or FateZero UNet"
        )
    return Tuned(queries, temporal, convs)


if __name__ == "__main__":
    main()
