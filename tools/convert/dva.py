"""Brings the authors' Diffusion Video Autoencoder checkpoints into our layout.

`python tools/convert/dva.py CHECKPOINT FOLDER` reads a checkpoint of theirs (`.ckpt` with
`weights_only=True`, so that nothing in it is run, or safetensors), takes the averaged weights, and writes
FOLDER, which `--model` of the method `face` reads. The sizes are read off the weights. The encoders stay
where they are.
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

from retouch.errors import ModelMismatch, RetouchError  # noqa: E402
from retouch.models.face import FaceConfig, FaceDiffusion, FaceNetwork, published_unet  # noqa: E402

AVERAGED = "ema_model."
UNIT = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.2": "conv_mid",
    "out_layers.3": "norm3",
    "cond_emb_layers.1": "cond_proj",
    "out_layers.6": "conv2",
    "skip_connection": "conv_shortcut",
}
"""What the parts of a residual unit are called there, and here."""
OUTSIDE = {
    "input_blocks.0.0": "unet.conv_in",
    "time_embed.time_embed.0": "unet.time_embedding.linear_1",
    "time_embed.time_embed.2": "unet.time_embedding.linear_2",
    "out.0": "unet.conv_norm_out",
    "out.2": "unet.conv_out",
    "encoder.linear": "merge",
    "middle_block.0": "unet.mid_block.resnets.0",
    "middle_block.1": "unet.mid_block.attentions.0",
    "middle_block.2": "unet.mid_block.resnets.1",
}
ATTENTION = {"norm": "group_norm", "qkv": "", "proj_out": "to_out.0"}


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--side", default=256, show_default=True, help="The pictures' side in pixels.")
@click.option("--identity", default=512, show_default=True, help="Numbers that say who it is.")
def main(checkpoint: Path, folder: Path, side: int, identity: int) -> None:
    """Write the model in CHECKPOINT into FOLDER."""
    try:
        network = converted(read_weights(checkpoint), side=side, identity=identity)
        FaceDiffusion.wrap(network).save(folder)
    except RetouchError as error:
        click.echo(f"error: {error}\nhint: {error.hint}", err=True)
        sys.exit(error.exit_code)
    click.echo(f"{folder}: {sum(p.numel() for p in network.parameters()):,} parameters")


def read_weights(checkpoint: Path) -> dict[str, Tensor]:
    """Return the averaged weights of a checkpoint; nothing in it is run.

    Raises:
        ModelMismatch: the file holds more than tensors.
    """
    if checkpoint.suffix == ".safetensors":
        weights = load_file(checkpoint)
    else:
        try:
            # The authors ship pickles; of these only tensors are taken, and nothing in them is run.
            weights = torch.load(checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ModelMismatch(
                f"{checkpoint.name} is not a file of tensors ({type(error).__name__})", hint="it was not read"
            ) from None
        weights = weights.get("state_dict", weights)
    tensors = {str(name): tensor for name, tensor in weights.items() if isinstance(tensor, Tensor)}
    averaged = {n.removeprefix(AVERAGED): t for n, t in tensors.items() if n.startswith(AVERAGED)}
    return averaged or tensors


def converted(weights: Mapping[str, Tensor], *, side: int, identity: int) -> FaceNetwork:
    """Return the network with these weights in it.

    Raises:
        ModelMismatch: a tensor is missing, or has another shape.
    """
    network, names, tensors = FaceNetwork(config_of(weights, side, identity)), places(weights), {}
    for name, tensor in weights.items():
        module, _, kind = name.rpartition(".")
        if module not in names:
            continue  # the encoders, which have files of their own
        here = names[module].rstrip(".")
        if module.endswith(".qkv"):
            parts = tensor.flatten(1) if kind == "weight" else tensor
            keys = (f"{here}.{key}.{kind}" for key in ("to_q", "to_k", "to_v"))
            tensors |= dict(zip(keys, parts.chunk(3), strict=True))
        else:
            tensors[f"{here}.{kind}"] = (
                tensor.flatten(1) if here.endswith("to_out.0") and kind == "weight" else tensor
            )
    try:
        network.load_state_dict(tensors)
    except RuntimeError as problem:
        raise ModelMismatch(
            f"the weights do not fit: {problem}", hint="are --side and --identity right?"
        ) from None
    return network.eval()


def places(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Return what each module of the authors is called here.

    Theirs count blocks from the picture down and up again; a level has `layers` units and, but for the
    last, one that halves the side. On the way up it has one more, and the one that doubles lies inside the
    last of them.
    """
    found, layers = dict(OUTSIDE), layers_of(weights)
    for name in weights:
        half, number, part = (*name.split("."), "", "")[:3]
        there = f"{half}.{number}.{part}"
        if there in found or half not in ("input_blocks", "output_blocks"):
            continue
        down = half == "input_blocks"
        level, place = divmod(int(number) - down, layers + 1)
        here = f"unet.{'down' if down else 'up'}_blocks.{level}"
        if f"{there}.qkv.weight" in weights:
            found[there] = f"{here}.attentions.{place}"
        elif down and place == layers:
            found[there] = f"{here}.downsamplers.0"
        else:
            found[there] = f"{here}.resnets.{place}" if part == "0" else f"{here}.upsamplers.0"
    inner = UNIT | ATTENTION
    return found | {f"{there}.{x}": f"{here}.{y}" for there, here in found.items() for x, y in inner.items()}


def layers_of(weights: Mapping[str, Tensor]) -> int:
    """Return how many units a level has: so many blocks stand before the first that doubles the side."""
    doubling = [
        int(match[1])
        for name in weights
        if (match := re.match(r"output_blocks\.(\d+)\.[12]\.in_layers", name))
    ]
    if not doubling or "encoder.linear.weight" not in weights:
        raise ModelMismatch(
            "these are no weights of a diffusion video autoencoder", hint="name its checkpoint"
        )
    return min(doubling)


def config_of(weights: Mapping[str, Tensor], side: int, identity: int) -> FaceConfig:
    """Return what the network with these weights is built from."""
    layers = layers_of(weights)
    firsts = [
        k for k in range(1, len(weights), layers + 1) if f"input_blocks.{k}.0.in_layers.0.weight" in weights
    ]
    widths = [len(weights[f"input_blocks.{k}.0.out_layers.6.weight"]) for k in firsts]
    attends = [f"input_blocks.{k}.1.qkv.weight" in weights for k in firsts]
    merge = weights["encoder.linear.weight"]
    unet = published_unet(side, widths, attends, layers=layers, code=len(merge))
    return FaceConfig(unet, identity, merge.shape[1] - identity)


if __name__ == "__main__":
    main()
