"""From what a user asks to what the walk does: once as the released code has it, once as it should be."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from retouch.diffusion.attention import Neighbours
from retouch.diffusion.words import (
    Alignment,
    CrossFusion,
    Finder,
    Tokens,
    emphasis_table,
    exact_word,
    refine_mapper,
    refined,
    released_replace_matrix,
    replace_matrix,
    replaced,
    required,
    same_word_count,
    step_range,
    weight_table,
)
from retouch.errors import ParamsError
from retouch.methods.fatezero.fusion import released_mask_layers
from retouch.methods.fatezero.walk import Object, Recipe

RELEASED_TOKENS: Final = 32 * 32
"""Layers with more queries a frame are neither kept nor edited by the released code, at any size."""


@final
@dataclass(frozen=True)
class Wish:
    """What a user asks of the fusion, in shares of the steps and in words."""

    alignment: Literal["auto", "replace", "refine"] = "auto"
    cross: tuple[float, float] = (0.0, 0.8)
    word_cross: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    self_attention: tuple[float, float] = (0.0, 0.8)
    emphasis: Mapping[str, float] = field(default_factory=dict)
    source_words: tuple[str, ...] = ()
    target_words: tuple[str, ...] = ()
    mask_self: bool = False
    blend: tuple[float, float] | None = None
    """When the source's latents are put back outside the object."""
    threshold: float = 0.3
    smoothing: int = 0


@final
@dataclass(frozen=True, eq=False)
class Plan:
    """A recipe, and the tokens of the object in both prompts."""

    recipe: Recipe
    source_words: Float[Tensor, " n"]
    target_words: Float[Tensor, " n"]


def released_plan(
    source: Tokens,
    target: Tokens,
    wish: Wish,
    *,
    steps: int,
    length: int,
    guidance: float,
    neighbours: Neighbours,
) -> Plan:
    """What the released code does with a wish, slips included.

    Cross windows are shares of one step more than there are. Words that a prompt lacks are passed over,
    and an object without words is no object. The source is read one level cleaner than the edit, and what
    is put back outside the object lies one level noisier, strictly between a fifth and four fifths of the
    steps.
    """
    named = bool(wish.source_words)
    blend = range(int(0.2 * steps), int(0.8 * steps) - 1) if named and wish.blend else range(0)
    recipe = Recipe(
        guidance=guidance,
        neighbours=neighbours,
        most_tokens=RELEASED_TOKENS,
        self_steps=step_range(wish.self_attention, steps),
        cross=CrossFusion(
            released_alignment(source, target, wish, length),
            weight_table(
                steps + 1,
                length,
                wish.cross,
                {exact_word(target, word): window for word, window in wish.word_cross.items()},
            ),
            emphasis_table(length, {exact_word(target, word): by for word, by in wish.emphasis.items()}),
        ),
        thing=Object(wish.threshold, released_mask_layers) if named else None,
        mask_self=named and wish.mask_self,
        mask_steps=range(steps) if blend else range(0),
        blend_steps=blend,
        source_lag=1,
        blend_lag=1,
    )
    return Plan(
        recipe,
        _marked(length, [n for word in wish.source_words for n in exact_word(source, word)]),
        _marked(length, [n for word in wish.target_words for n in exact_word(target, word)]),
    )


def released_alignment(source: Tokens, target: Tokens, wish: Wish, length: int) -> Alignment:
    """Word by word where that was asked and the prompts have as many words, else by token ids."""
    if wish.alignment == "replace" and same_word_count(source, target):
        return replaced(released_replace_matrix(source, target, length))
    return refined(refine_mapper(source, target, length))


def plan(
    source: Tokens,
    target: Tokens,
    wish: Wish,
    *,
    find: Finder,
    steps: int,
    length: int,
    guidance: float,
    neighbours: Neighbours,
    most_tokens: int,
) -> Plan:
    """What should be done with a wish.

    The source is read at the edit's own level, and put back at it. Windows are shares of the steps there are.

    Raises:
        ParamsError: a word is not in its prompt, or the prompts cannot be aligned as asked.
    """
    source_words = required(source, wish.source_words, find)
    target_words = required(target, wish.target_words, find)
    if (wish.mask_self or wish.blend) and not source_words:
        raise ParamsError(
            "an object is to be masked, but no word names it", hint="say --object-words or give a mask"
        )
    blend = step_range(wish.blend, steps) if wish.blend else range(0)
    recipe = Recipe(
        guidance=guidance,
        neighbours=neighbours,
        most_tokens=most_tokens,
        self_steps=step_range(wish.self_attention, steps),
        cross=CrossFusion(
            _alignment(source, target, wish, length),
            weight_table(
                steps,
                length,
                wish.cross,
                {required(target, (word,), find): window for word, window in wish.word_cross.items()},
            ),
            emphasis_table(
                length, {required(target, (word,), find): by for word, by in wish.emphasis.items()}
            ),
        ),
        thing=Object(wish.threshold, smoothing=wish.smoothing) if source_words else None,
        mask_self=wish.mask_self,
        mask_steps=blend,
        blend_steps=blend,
    )
    return Plan(recipe, _marked(length, source_words), _marked(length, target_words))


def _alignment(source: Tokens, target: Tokens, wish: Wish, length: int) -> Alignment:
    alike = same_word_count(source, target)
    if wish.alignment == "replace" or (wish.alignment == "auto" and alike):
        return replaced(replace_matrix(source, target, length))
    return refined(refine_mapper(source, target, length))


def _marked(length: int, numbers: "list[int] | tuple[int, ...]") -> Float[Tensor, " n"]:
    marks = torch.zeros(length)
    marks[list(numbers)] = 1
    return marks
