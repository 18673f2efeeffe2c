"""What FateZero does inside attention: look at the source, fuse it into the edit, find the object.

The paper keeps softmax(QK') of every layer and step of the inversion and puts it in place of the edit's.
Since a map only ever multiplies values, that is attention from the source's queries to the source's keys
with the edit's values, and nothing need be kept: the source's queries and keys come from asking the
network again at a kept latent.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from retouch.diffusion.attention import Attend, Gather, Layer, attend


@final
@dataclass(frozen=True, eq=False)
class Reading:
    """How strongly pixels look at some words, added up over the layers that were read."""

    layers: frozenset[Layer] = frozenset()
    words: Float[Tensor, "words columns"] | None = None
    """One column per group of words: 1 at the tokens that belong to it."""
    answers: list[Tensor] = field(default_factory=list)

    def read(
        self, layer: Layer, q: Float[Tensor, "f heads q d"], k: Float[Tensor, "f heads words d"]
    ) -> None:
        """Adds a layer: attention whose values are the columns is the sum of the map over their tokens."""
        if self.words is None or layer not in self.layers:
            return
        columns = self.words.to(q.device, q.dtype).expand(*k.shape[:2], *self.words.shape)
        answer = attend(q, k, columns).mean(1).transpose(1, 2)  # f columns q
        heat = answer.reshape(*answer.shape[:2], *layer.grid)
        self.answers.append(heat.to(torch.promote_types(q.dtype, torch.float32)))

    @property
    def complete(self) -> bool:
        """Whether every layer that is to be read was."""
        return self.words is None or len(self.answers) == len(self.layers)

    def heat(self) -> Float[Tensor, "f columns h w"]:
        """The mean over the layers read and their heads."""
        return torch.stack(self.answers).mean(0)


@final
@dataclass(frozen=True, eq=False)
class Seen:
    """The source's queries and keys at one step, per layer, before frames are gathered."""

    queries: dict[Layer, Tensor] = field(default_factory=dict)
    keys: dict[Layer, Tensor] = field(default_factory=dict)


@final
class SeenAll(Exception):
    """Ends a call of the network from which nothing more is wanted."""


@final
@dataclass(frozen=True, eq=False)
class Watch:
    """The rule of the source's call: plain attention, of which queries and keys of some layers are kept."""

    gather: Gather
    layers: frozenset[Layer]
    reading: Reading = Reading()
    seen: Seen = field(default_factory=Seen)
    brief: bool = False
    """Whether the call ends, by `SeenAll`, at the last layer that is looked at."""

    def during(self, call: Callable[["Watch"], object]) -> None:
        """Makes a call of the network as short as what is looked at allows.

        The finest layers of the way up, which are the slowest, come last, and mostly are not looked at.
        """
        with suppress(SeenAll):
            call(replace(self, brief=True))

    def __call__(
        self,
        layer: Layer,
        q: Float[Tensor, "f heads q d"],
        k: Float[Tensor, "f heads k d"],
        v: Float[Tensor, "f heads k d"],
    ) -> Float[Tensor, "f heads q d"]:
        """Answers plainly and remembers what was asked.

        Raises:
            SeenAll: the call is to be brief, and nothing more is wanted of it.
        """
        if layer in self.layers:
            self.seen.queries[layer], self.seen.keys[layer] = q, k
        self.reading.read(layer, q, k)
        if self.brief and self.reading.complete and len(self.seen.queries) == len(self.layers):
            raise SeenAll
        return Attend(self.gather)(layer, q, k, v)


@final
@dataclass(frozen=True, eq=False)
class Fuse:
    """The rule of the edit's call: the source's attention where it was seen, the edit's own elsewhere.

    Whether self-attention, cross-attention or both are fused follows from the layers that the source's
    `Watch` kept.
    """

    gather: Gather
    seen: Seen
    cross: tuple[Float[Tensor, "words words"], Float[Tensor, " words"]] | None = None
    """Factors on the source's and the edit's text values."""
    object_at: Mapping[tuple[int, int], Bool[Tensor, "f _ _"]] | None = None
    """Where self-attention stays the edit's own, per grid; nowhere if None."""
    reading: Reading = Reading()

    def __call__(
        self,
        layer: Layer,
        q: Float[Tensor, "f heads q d"],
        k: Float[Tensor, "f heads k d"],
        v: Float[Tensor, "f heads k d"],
    ) -> Float[Tensor, "f heads q d"]:
        """Answers with fused attention."""
        self.reading.read(layer, q, k)
        if layer not in self.seen.queries:
            return Attend(self.gather)(layer, q, k, v)
        return (self._cross if layer.kind == "cross" else self._self)(layer, q, k, v)

    def _cross(self, layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Columns of both maps are mixed by mixing values: (A @ M) V = A @ (M V)."""
        assert self.cross is not None
        taken, kept = self.cross
        text = v[:1]  # the prompt is the same for every frame
        mixed = (taken.to(text) @ text).expand(v.shape)
        fused = attend(self.seen.queries[layer], self.seen.keys[layer], mixed)
        if not bool(kept.any()):
            return fused
        return fused + attend(q, k, (kept.to(text)[:, None] * text).expand(v.shape))

    def _self(self, layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The map's rows are chosen by the mask, so rows of the answers are."""
        near = self.gather(layer, v)
        fused = attend(self.seen.queries[layer], self.gather(layer, self.seen.keys[layer]), near)
        if self.object_at is None:
            return fused
        own = attend(q, self.gather(layer, k), near)
        inside = self.object_at[layer.grid].flatten(1)[:, None, :, None]  # f 1 q 1
        return torch.where(inside, own, fused)


def object_mask(
    heat: Float[Tensor, "f h w"], size: tuple[int, int], threshold: float
) -> Bool[Tensor, "f y x"]:
    """Where the words of the object are looked at: eq. 8 of FateZero, grown by a pixel, frame by frame.

    A map without any heat gives no object rather than a fault, as NaN is above no threshold.
    """
    grown = interpolate(max_pool2d(heat[:, None], 3, stride=1, padding=1), size)[:, 0]
    return (grown / grown.amax(dim=(1, 2), keepdim=True)) > threshold


def captured(layers: Sequence[Layer], most_tokens: int) -> frozenset[Layer]:
    """The layers that take part: finer ones, with more queries a frame, are left to the edit."""
    return frozenset(layer for layer in layers if layer.tokens <= most_tokens)


def released_mask_layers(layers: frozenset[Layer]) -> frozenset[Layer]:
    """The cross layers that the released code reads: third and fourth going down, first three going up.

    At 512 pixels these are the five of 16 x 16. Counted among those that take part, as the code counts.
    """
    cross = sorted((layer for layer in layers if layer.kind == "cross"), key=lambda layer: layer.index)
    down = [layer for layer in cross if layer.place == "down"][2:4]
    return frozenset([*down, *[layer for layer in cross if layer.place == "up"][:3]])


def mask_layers(layers: frozenset[Layer]) -> frozenset[Layer]:
    """The cross layers of the level nearest to 256 queries a frame, where words are told apart best.

    At 512 pixels these are the same five as in the released code; at other sizes the code reads levels
    that do not fit together, or fewer of them.
    """
    cross = [layer for layer in layers if layer.kind == "cross" and layer.place != "mid"]
    cross = cross or [layer for layer in layers if layer.kind == "cross"]
    if not cross:
        return frozenset()
    best = min(
        {layer.tokens for layer in cross}, key=lambda tokens: (max(tokens, 256) / min(tokens, 256), tokens)
    )
    return frozenset(layer for layer in cross if layer.tokens == best)
