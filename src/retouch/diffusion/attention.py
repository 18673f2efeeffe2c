"""Attention of a 2-D UNet under the caller's control, frames lying in the batch.

`controlled(unet, size=...)` puts one kind of processor on every attention layer and, where asked, makes
the group norms of the residual blocks share their statistics over all frames of a call; both are gone
after the block. What attention then does is an argument of each call: `unet(...,
cross_attention_kwargs={"rule": rule})`. A rule sees which layer asks, and its queries, keys and values,
and answers in terms of `attend`; no attention map is kept, and between pixels none is ever built. One
call is one clip: two clips, or the two halves of guidance, are two calls.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, cast, final, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import GroupNorm, Module
from torch.nn.functional import scaled_dot_product_attention

from retouch.errors import ModelMismatch

Place: TypeAlias = Literal["down", "mid", "up"]
Kind: TypeAlias = Literal["self", "cross"]
Reach: TypeAlias = int | Literal["first", "mid", "last"]
"""A frame that a frame looks at: so many frames on, or a fixed one of the clip."""


@final
@dataclass(frozen=True)
class Layer:
    """An attention layer of a UNet, as known before any call."""

    place: Place
    kind: Kind
    index: int
    """Its turn among the layers of this place and kind, in the order in which they run."""
    level: int
    """How often the latents were halved before it."""
    width: int
    """Channels of the features that enter it."""
    grid: tuple[int, int]
    """Rows and columns of its queries."""

    @property
    def tokens(self) -> int:
        """How many queries a frame has here."""
        return self.grid[0] * self.grid[1]


@runtime_checkable
class Rule(Protocol):
    """What attention answers during one call of the UNet."""

    def __call__(
        self,
        layer: Layer,
        q: Float[Tensor, "f heads q d"],
        k: Float[Tensor, "f heads k d"],
        v: Float[Tensor, "f heads k d"],
    ) -> Float[Tensor, "f heads q d"]:
        """The answer to `q` in this layer; keys and values are those of the same frame, or of the text."""
        ...


@runtime_checkable
class ControllableUNet(Protocol):
    """What `controlled` asks of a UNet; any `UNet2DConditionModel` of diffusers has it."""

    @property
    def attn_processors(self) -> Mapping[str, object]:
        """The processors in force, by the name of their place."""
        ...

    def set_attn_processor(self, processor: dict[str, object]) -> None:
        """Puts processors in force."""
        ...


def attend(
    q: Float[Tensor, "f heads q d"], k: Float[Tensor, "f heads k d"], v: Float[Tensor, "f heads k e"]
) -> Float[Tensor, "f heads q e"]:
    """Plain attention, by whatever kernel the device has."""
    return scaled_dot_product_attention(q, k, v)


@contextmanager
def controlled(
    unet: Module, *, size: tuple[int, int], clip_norm: bool = False
) -> Iterator[tuple[Layer, ...]]:
    """Makes a UNet's attention obey the `rule` of each call, for latents of one size.

    Without a rule a call is the plain UNet. Blocks may be nested; the innermost decides, and each
    restores exactly what it found, however it is left.

    Args:
        unet: Takes `cross_attention_kwargs` and has frames in its batch.
        size: Rows and columns of the latents.
        clip_norm: Whether residual blocks and the output normalise over the whole clip instead of frame by
            frame, as networks do that were inflated to five axes. The norms at the entry of transformers stay
            per frame.

    Yields:
        The layers, in no particular order.

    Raises:
        ModelMismatch: the attention of this UNet is of another kind, or has weights in its processors.
    """
    found = _processors(unet)
    layers = {name: _layer(unet, name, size) for name in found}
    with ExitStack() as undo:
        for norm in _clip_norms(unet):
            before = norm.register_forward_pre_hook(_fold if clip_norm else _unfold_input)
            undo.callback(before.remove)
            if clip_norm:
                undo.callback(norm.register_forward_hook(_unfold).remove)
        undo.callback(_install, unet, found)
        _install(unet, {name: _Processor(layer) for name, layer in _counted(layers).items()})
        yield tuple(_counted(layers).values())


@final
@dataclass(frozen=True)
class Neighbours:
    """Which frames of the clip a frame looks at in self-attention, instead of at itself.

    `(-1, "first")` is the previous and the first frame, `("mid",)` the middle one alone. Blocks narrower than
    `least_width`, or finer than `least_level`, keep ordinary per-frame attention, as does an empty `reach`.
    """

    reach: tuple[Reach, ...] = ()
    least_width: int = 0
    least_level: int = 0

    def anchors(self, total: int) -> tuple[int, ...]:
        """The frames that every frame of a clip of `total` looks at."""
        return tuple(
            sorted({_seen_from(0, reach, total) for reach in self.reach if not isinstance(reach, int)})
        )

    def among(self, frames: Sequence[int], total: int) -> "Gather":
        """Where in a call those frames lie, if the call holds `frames` of a clip of `total`.

        A frame that is not in the call is stood in for by the nearest one that is.
        """
        nearest = {
            wanted: min(range(len(frames)), key=lambda at: (abs(frames[at] - wanted), at))
            for wanted in range(total)
        }
        places = tuple(tuple(nearest[_seen_from(at, reach, total)] for at in frames) for reach in self.reach)
        return Gather(places, self.least_width, self.least_level)


OWN_FRAME = Neighbours()
"""Ordinary self-attention."""


@final
@dataclass(frozen=True)
class Gather:
    """Collects, for each frame of a call, the keys or values of the frames that it looks at."""

    places: tuple[tuple[int, ...], ...] = ()
    least_width: int = 0
    least_level: int = 0

    def __call__(self, layer: Layer, x: Float[Tensor, "f heads n d"]) -> Float[Tensor, "f heads k d"]:
        """The features of all frames that a frame looks at, one after the other along the tokens."""
        if not self.places or layer.width < self.least_width or layer.level < self.least_level:
            return x
        return torch.cat([_picked(x, places) for places in self.places], dim=2)


@final
@dataclass(frozen=True)
class Attend:
    """The rule of plain spatio-temporal attention."""

    gather: Gather = Gather()

    def __call__(
        self,
        layer: Layer,
        q: Float[Tensor, "f heads q d"],
        k: Float[Tensor, "f heads k d"],
        v: Float[Tensor, "f heads k d"],
    ) -> Float[Tensor, "f heads q d"]:
        """Looks at the text, or at the frames that the clip's neighbours say."""
        if layer.kind == "cross":
            return attend(q, k, v)
        return attend(q, self.gather(layer, k), self.gather(layer, v))


def _picked(x: Float[Tensor, "f heads n d"], places: tuple[int, ...]) -> Float[Tensor, "f heads n d"]:
    """One frame for all is a view, not copies."""
    if len(set(places)) == 1:
        return x[places[0]].expand(len(places), *x.shape[1:])
    return x[torch.tensor(places, device=x.device)]


def _seen_from(frame: int, reach: Reach, total: int) -> int:
    if isinstance(reach, int):
        return min(max(frame + reach, 0), total - 1)
    return {"first": 0, "mid": (total - 1) // 2, "last": total - 1}[reach]


@final
class _Processor:
    """Attention as diffusers calls it, with the middle left to the call's rule.

    diffusers reads the names of `__call__`'s arguments to find out which call arguments a layer takes.
    """

    def __init__(self, layer: Layer) -> None:
        self.layer = layer

    def __call__(
        self,
        attn: Module,
        hidden_states: Float[Tensor, "f q c"],
        encoder_hidden_states: Float[Tensor, "f words e"] | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,  # noqa: ARG002 - diffusers passes it
        *,
        rule: Rule | None = None,
    ) -> Float[Tensor, "f q c"]:
        if attention_mask is not None:
            raise ModelMismatch(
                "controlled attention takes no attention mask", hint="pad no prompt by a mask"
            )
        if hidden_states.shape[1] != self.layer.tokens:
            raise ModelMismatch(
                f"a layer got {hidden_states.shape[1]} queries a frame and was told of {self.layer.tokens}",
                hint="give controlled() the size of the latents",
            )
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q = _projected(attn, "to_q", hidden_states)
        k, v = _projected(attn, "to_k", context), _projected(attn, "to_v", context)
        answer = (rule or Attend())(self.layer, q, k, v)
        out: Tensor = answer.transpose(1, 2).flatten(2)  # f q (heads d)
        for stage in cast("Sequence[Module]", attn.to_out):
            out = stage(out)
        return out


def _projected(attn: Module, name: str, x: Float[Tensor, "f n c"]) -> Float[Tensor, "f heads n d"]:
    """Queries, keys or values; the same text for every frame is projected once."""
    heads = cast(int, attn.heads)
    same = x.stride(0) == 0 and len(x) > 1
    features: Tensor = attn.get_submodule(name)(x[:1] if same else x)
    split = features.reshape(*features.shape[:2], heads, -1).transpose(1, 2)
    return split.expand(len(x), -1, -1, -1)


def _processors(unet: Module) -> dict[str, object]:
    if not isinstance(unet, ControllableUNet):
        raise ModelMismatch(
            f"{type(unet).__name__} has no attention processors", hint="use a UNet2DConditionModel"
        )
    found = dict(unet.attn_processors)
    for name, processor in found.items():
        if not name.endswith(("attn1.processor", "attn2.processor")):
            raise ModelMismatch(f"{name} is no attention of a Stable Diffusion transformer block")
        if isinstance(processor, Module) and any(True for _ in processor.parameters()):
            raise ModelMismatch(
                f"{name} has weights of its own, which controlled attention would leave out",
                hint="unload the IP adapter first",
            )
    return found


def _install(unet: Module, processors: Mapping[str, object]) -> None:
    cast(ControllableUNet, unet).set_attn_processor(dict(processors))


def _layer(unet: Module, name: str, size: tuple[int, int]) -> Layer:
    attn = unet.get_submodule(name.removesuffix(".processor"))
    level = _level(unet, name)
    height, width = size
    for _ in range(level):
        height, width = -(-height // 2), -(-width // 2)
    return Layer(
        place=cast(Place, name.split("_", 1)[0]),
        kind="self" if name.endswith("attn1.processor") else "cross",
        index=0,
        level=level,
        width=cast(torch.nn.Linear, attn.to_q).in_features,
        grid=(height, width),
    )


def _counted(layers: Mapping[str, Layer]) -> dict[str, Layer]:
    """The layers with their turns: diffusers lists blocks of one place in the order in which they run."""
    turns: dict[tuple[Place, Kind], int] = {}
    counted = {}
    for name, layer in layers.items():
        turn = turns.get((layer.place, layer.kind), 0)
        turns[layer.place, layer.kind] = turn + 1
        counted[name] = Layer(layer.place, layer.kind, turn, layer.level, layer.width, layer.grid)
    return counted


def _level(unet: Module, name: str) -> int:
    """Halvings before the block: each block but the last of its side ends in one, or in a doubling."""
    place, _, rest = name.partition(".")
    halvings = _blocks_with(unet, "down_blocks", "downsamplers")
    if place == "mid_block":
        return len(halvings)
    block = int(rest.split(".", 1)[0])
    if place == "down_blocks":
        return sum(at < block for at in halvings)
    return len(halvings) - sum(at < block for at in _blocks_with(unet, "up_blocks", "upsamplers"))


def _blocks_with(unet: Module, side: str, samplers: str) -> set[int]:
    parts = (name.split(".") for name, _ in unet.named_modules())
    return {int(part[1]) for part in parts if len(part) > 3 and part[0] == side and part[2] == samplers}


def _clip_norms(unet: Module) -> list[GroupNorm]:
    """The norms of the residual blocks and of the output."""
    return [
        module
        for name, module in unet.named_modules()
        if isinstance(module, GroupNorm) and (".resnets." in name or name == "conv_norm_out")
    ]


def _fold(norm: Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:  # noqa: ARG001 - a hook
    """Frames become an axis of one sample, over which the norm takes its statistics too."""
    (x,) = inputs
    return (x.transpose(0, 1)[None],) if x.ndim == 4 else None  # 1 c f h w


def _unfold(norm: Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:  # noqa: ARG001 - a hook
    return output[0].transpose(0, 1) if output.ndim == 5 else None


def _unfold_input(norm: Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:  # noqa: ARG001 - a hook
    """Takes back what an outer block did, so that the inner one decides; the outer then undoes nothing."""
    (x,) = inputs
    return (x[0].transpose(0, 1),) if x.ndim == 5 else None
