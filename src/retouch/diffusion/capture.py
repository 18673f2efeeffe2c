"""What a network attends to in one call: queries and keys of some layers, and where words are looked at.

A call of which nothing more is wanted ends early. Between pixels no attention map is ever built.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeAlias, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, interpolate, max_pool2d

from retouch.diffusion.attention import Attend, Gather, Layer, Rule, attend

ChooseLayers: TypeAlias = Callable[[frozenset[Layer]], frozenset[Layer]]


@final
@dataclass(frozen=True, eq=False)
class WordAttention:
    """How strongly pixels look at some words, added up over the layers that are read."""

    layers: frozenset[Layer] = frozenset()
    words: Float[Tensor, "words columns"] | None = None
    """One column per group of words: 1 at the tokens that belong to it."""
    maps: list[Tensor] = field(default_factory=list)

    def read(
        self, layer: Layer, q: Float[Tensor, "f heads q d"], k: Float[Tensor, "f heads words d"]
    ) -> None:
        """Add a layer: attention whose values are the columns is the sum of the map over their tokens."""
        if self.words is None or layer not in self.layers:
            return
        columns = self.words.to(q.device, q.dtype).expand(*k.shape[:2], *self.words.shape)
        answer = attend(q, k, columns).mean(1).transpose(1, 2)  # f columns q
        grid = answer.reshape(*answer.shape[:2], *layer.grid)
        self.maps.append(grid.to(torch.promote_types(q.dtype, torch.float32)))

    @property
    def complete(self) -> bool:
        """Whether every layer that is to be read was."""
        return self.words is None or len(self.maps) == len(self.layers)

    def mean_map(self) -> Float[Tensor, "f columns h w"]:
        """Return the mean over the layers read and their heads."""
        return torch.stack(self.maps).mean(0)


@final
@dataclass(frozen=True, eq=False)
class SourceQK:
    """The source's queries and keys at one step, per layer, before frames are gathered."""

    queries: dict[Layer, Tensor] = field(default_factory=dict)
    keys: dict[Layer, Tensor] = field(default_factory=dict)

    def keep(self, layer: Layer, q: Float[Tensor, "f heads q d"], k: Float[Tensor, "f heads k d"]) -> None:
        """Remember what a layer asked, and of what."""
        self.queries[layer], self.keys[layer] = q, k


@final
class StopForward(Exception):
    """Ends a call of the network from which nothing more is wanted."""


@final
@dataclass(frozen=True, eq=False)
class CaptureRule:
    """The rule of the source's call: plain attention, of which queries and keys of some layers are kept."""

    gather: Gather
    layers: frozenset[Layer]
    words: WordAttention = WordAttention()
    source: SourceQK = field(default_factory=SourceQK)
    truncate: bool = False
    """Whether the call ends, by `StopForward`, at the last layer that is wanted."""

    def __call__(
        self,
        layer: Layer,
        q: Float[Tensor, "f heads q d"],
        k: Float[Tensor, "f heads k d"],
        v: Float[Tensor, "f heads k d"],
    ) -> Float[Tensor, "f heads q d"]:
        """Answer plainly and remember what was asked.

        Raises:
            StopForward: the call is to be truncated, and nothing more is wanted of it.
        """
        if layer in self.layers:
            self.source.keep(layer, q, k)
        self.words.read(layer, q, k)
        if self.truncate and self.words.complete and len(self.source.queries) == len(self.layers):
            raise StopForward
        return Attend(self.gather)(layer, q, k, v)


def capture_source(
    ask: Callable[[Rule], object], gather: Gather, layers: frozenset[Layer], words: WordAttention
) -> SourceQK:
    """Ask the network about the source, as far as anything of its attention is wanted.

    The finest layers of the way up, which are the slowest, come last and mostly are not: the call ends there.
    """
    capture = CaptureRule(gather, layers, words, truncate=True)
    if layers or words.layers:
        with suppress(StopForward):
            ask(capture)
    return capture.source


# ---------------------------------------------------------------- the object that words name


def object_mask(
    word_map: Float[Tensor, "f h w"], size: tuple[int, int], threshold: float
) -> Bool[Tensor, "f y x"]:
    """Return where the object's words are looked at: eq. 8 of FateZero, grown by a pixel, frame by frame.

    A map without any attention gives no object rather than a fault, as NaN is above no threshold.
    """
    grown = interpolate(max_pool2d(word_map[:, None], 3, stride=1, padding=1), size)[:, 0]
    return (grown / grown.amax(dim=(1, 2), keepdim=True)) > threshold


def mask_layers(layers: frozenset[Layer]) -> frozenset[Layer]:
    """Return the cross layers of the level nearest to 256 queries a frame, where words are told apart best.

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


@final
@dataclass(frozen=True, eq=False)
class ObjectMask:
    """How the object that changes is found: by attention to its words, or as the user says."""

    threshold: float
    """Share of a frame's greatest attention that is still object."""
    smoothing: int = 0
    """Frames to each side over which attention is averaged."""
    given: Bool[Tensor, "f h w"] | None = None
    """The object itself, from the user, at the size of the latents."""
    choose: ChooseLayers = mask_layers
    """The layers whose attention to words is read."""

    def at(
        self, word_map: Float[Tensor, "f h w"], frames: Sequence[int], size: tuple[int, int]
    ) -> Bool[Tensor, "f y x"]:
        """Return the object in some frames, at some size."""
        if self.given is not None:
            given = self.given[list(frames)].to(word_map.device, torch.float32)
            return adaptive_max_pool2d(given, size) > 0
        return object_mask(self._smoothed(word_map, frames), size, self.threshold)

    def _smoothed(self, word_map: Float[Tensor, "f h w"], frames: Sequence[int]) -> Float[Tensor, "f h w"]:
        """Return means over neighbouring frames, nearer ones counting more."""
        if not self.smoothing:
            return word_map
        at = torch.tensor(frames, dtype=word_map.dtype, device=word_map.device)
        weight = (1 - (at[:, None] - at[None]).abs() / (self.smoothing + 1)).clamp(min=0)
        return torch.einsum("fg,ghw->fhw", weight / weight.sum(1, keepdim=True), word_map)
