"""Attention over time, put on an image UNet and taken off again (Tune-A-Video, Wu et al. 2023).

Each transformer block of the UNet gets a block behind it in which a pixel attends to itself at other
times. Its output weight and bias start at zero, so that a network that has just been inflated is the
image network, exactly.
(Released code leaves the bias at its random default, which adds an arbitrary offset after every block.)
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import cast, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import LayerNorm, Linear, Module, ModuleDict
from torch.nn.functional import conv1d

from retouch.diffusion.attention import attend
from retouch.errors import ModelMismatch


@final
class TemporalAttention(Module):
    """A pixel's attention to itself over the frames of a call, added to what it has."""

    def __init__(self, width: int, heads: int, inner: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.norm = LayerNorm(width)
        self.to_q = _blank(width, inner, bias=False)
        self.to_k = _blank(width, inner, bias=False)
        self.to_v = _blank(width, inner, bias=False)
        self.to_out = _blank(inner, width, bias=True)
        for project in (self.to_q, self.to_k, self.to_v):
            torch.nn.init.uniform_(project.weight, -(width**-0.5), width**-0.5, generator=generator)
        torch.nn.init.zeros_(self.to_out.weight)
        torch.nn.init.zeros_(self.to_out.bias)

    def forward(self, x: Float[Tensor, "f n c"]) -> Float[Tensor, "f n c"]:
        """The features with what other frames had at the same place."""
        y = self.norm(x).transpose(0, 1)  # n f c
        q, k, v = (self._heads(project(y)) for project in (self.to_q, self.to_k, self.to_v))
        seen = attend(q, k, v).transpose(1, 2).flatten(2)  # n f (heads d)
        return x + cast(Tensor, self.to_out(seen)).transpose(0, 1)

    def _heads(self, y: Float[Tensor, "n f c"]) -> Float[Tensor, "n heads f d"]:
        return y.reshape(*y.shape[:2], self.heads, -1).transpose(1, 2)


@final
class Temporal(Module):
    """The temporal attention of a whole UNet, one for each transformer block."""

    def __init__(self, blocks: Mapping[str, TemporalAttention]) -> None:
        super().__init__()
        self.blocks = ModuleDict({_key(name): block for name, block in blocks.items()})

    @classmethod
    def of(cls, unet: Module) -> "Temporal":
        """Fresh temporal attention that fits a UNet, on its device: an exact identity, the same each time."""
        draw = torch.Generator().manual_seed(0)
        blocks = transformer_blocks(unet)
        return cls({name: _fitting(unet.get_submodule(f"{name}.attn1"), draw) for name in blocks})

    def of_block(self, name: str) -> Module:
        """The attention that belongs behind a transformer block."""
        return self.blocks[_key(name)]

    def named_tensors(self) -> dict[str, Tensor]:
        """The weights, by the name of the block and of the part."""
        return {
            f"{key.replace('/', '.')}.{part}": tensor
            for key, block in self.blocks.items()
            for part, tensor in block.state_dict().items()
        }

    def load_named(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes weights as `named_tensors` gives them.

        Raises:
            ModelMismatch: they belong to another UNet.
        """
        expected = self.named_tensors()
        if {name: t.shape for name, t in tensors.items()} != {name: t.shape for name, t in expected.items()}:
            raise ModelMismatch("these temporal weights belong to another UNet", hint="tune this model anew")
        for key, block in self.blocks.items():
            prefix = key.replace("/", ".") + "."
            block.load_state_dict(
                {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            )


@final
class TemporalConv(Module):
    """A convolution over the frames of a call, for each pixel: of full rank, or a small one that is added."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name.replace(".", "_"), tensor)

    def forward(self, x: Float[Tensor, "f c h w"]) -> Float[Tensor, "f c h w"]:
        """The features mixed with those of the frames before and after."""
        weights = {name: tensor.to(x) for name, tensor in self.named_buffers()}
        y = x.flatten(2).permute(2, 1, 0)  # (h w) c f
        if "up_weight" in weights:
            y = y + conv1d(conv1d(y, weights["down_weight"], padding=1), weights["up_weight"], padding=1)
        else:
            y = conv1d(y, weights["weight"], weights.get("bias"), padding=1)
        return y.permute(2, 1, 0).reshape(x.shape)


@contextmanager
def inflated(
    unet: Module, temporal: Temporal, convs: Mapping[str, TemporalConv] | None = None
) -> Iterator[None]:
    """Puts temporal attention behind every transformer block; the batch of a call is one clip.

    Nested blocks add up.

    Args:
        unet: An image UNet.
        temporal: Its temporal attention.
        convs: Temporal convolutions, by the name of the convolution that each follows.
    """
    behind = {name: temporal.of_block(name) for name in transformer_blocks(unet)}
    with ExitStack() as undo:
        for name, module in {**behind, **(convs or {})}.items():
            undo.callback(unet.get_submodule(name).register_forward_hook(_Behind(module)).remove)
        yield


def transformer_blocks(unet: Module) -> list[str]:
    """The names of the transformer blocks: what holds a self-attention of the usual name."""
    return [name.removesuffix(".attn1") for name, _ in unet.named_modules() if name.endswith(".attn1")]


@final
class _Behind:
    def __init__(self, block: Module) -> None:
        self.block = block

    def __call__(self, module: Module, inputs: tuple[object, ...], output: Tensor) -> Tensor:  # noqa: ARG002
        return cast(Tensor, self.block.to(output.device)(output))  # a network that waits runs elsewhere


def _fitting(attn1: Module, draw: torch.Generator) -> TemporalAttention:
    to_q = attn1.get_submodule("to_q")
    weight = cast(Tensor, to_q.weight)
    block = TemporalAttention(weight.shape[1], cast(int, attn1.heads), weight.shape[0], draw)
    return block.to(weight.device, weight.dtype)


def _blank(inputs: int, outputs: int, *, bias: bool) -> Linear:
    """A layer without values yet, so that torch's global random state is left alone."""
    return Linear(inputs, outputs, bias=bias, device="meta").to_empty(device="cpu")


def _key(name: str) -> str:
    """Module names take no dots."""
    return name.replace(".", "/")
