"""What FateZero does inside attention, and when: fuse the source's into the edit's, find the object.

The paper keeps softmax(QK') of every layer and step of the inversion and puts it in place of the edit's.
Since a map only ever multiplies values, that is attention from the source's queries to the source's keys
with the edit's values, and nothing need be kept: the source's queries and keys come from asking the
network again at a kept latent.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, final

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from retouch.diffusion.attention import Attend, Gather, Layer, Neighbours, attend
from retouch.diffusion.capture import ObjectMask, SourceQK, WordAttention, capture_source
from retouch.diffusion.inversion import Trajectory
from retouch.diffusion.windows import Window
from retouch.diffusion.words import (
    Alignment,
    CrossFusion,
    PromptTokens,
    Tokenizer,
    changed_things,
    emphasis_table,
    phrase_finder,
    refine_mapper,
    replace_matrix,
    required,
    same_word_count,
    step_range,
    weight_table,
)
from retouch.errors import MethodError, ParamsError
from retouch.methods.fatezero.spec import FateZeroParams, factor, word_window
from retouch.models.image import StableDiffusion
from retouch.models.noise_path import Level, guided
from retouch.run import Run

MOST_TOKENS: Final = 32 * 32
"""Layers with more queries a frame are never fused by the released code; here they are at larger sizes."""


# ---------------------------------------------------------------- fuse


@final
@dataclass(frozen=True, eq=False)
class FusedAttention:
    """The rule of the edit's call: the source's attention where it was captured, the edit's own elsewhere.

    Whether self-attention, cross-attention or both are fused follows from the layers that were captured.
    """

    gather: Gather
    source: SourceQK
    cross: tuple[Float[Tensor, "words words"], Float[Tensor, " words"]] | None = None
    """Factors on the source's and the edit's text values."""
    inside: Mapping[tuple[int, int], Bool[Tensor, "f _ _"]] | None = None
    """Where self-attention stays the edit's own, per grid; nowhere if None."""
    words: WordAttention = field(default_factory=WordAttention)

    def __call__(
        self,
        layer: Layer,
        q: Float[Tensor, "f heads q d"],
        k: Float[Tensor, "f heads k d"],
        v: Float[Tensor, "f heads k d"],
    ) -> Float[Tensor, "f heads q d"]:
        """Answer with fused attention."""
        self.words.read(layer, q, k)
        if layer not in self.source.queries:
            return Attend(self.gather)(layer, q, k, v)
        return (self._cross if layer.kind == "cross" else self._self)(layer, q, k, v)

    def _cross(self, layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Mix columns of both maps by mixing values: (A @ M) V = A @ (M V)."""
        assert self.cross is not None
        taken, kept = self.cross
        text = v[:1]  # the prompt is the same for every frame
        mixed = (taken.to(text) @ text).expand(v.shape)
        fused = attend(self.source.queries[layer], self.source.keys[layer], mixed)
        if not bool(kept.any()):
            return fused
        return fused + attend(q, k, (kept.to(text)[:, None] * text).expand(v.shape))

    def _self(self, layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Choose rows of the answers: the mask chooses the map's rows."""
        near = self.gather(layer, v)
        fused = attend(self.source.queries[layer], self.gather(layer, self.source.keys[layer]), near)
        if self.inside is None:
            return fused
        own = attend(q, self.gather(layer, k), near)
        inside = self.inside[layer.grid].flatten(1)[:, None, :, None]  # f 1 q 1
        return torch.where(inside, own, fused)


# ---------------------------------------------------------------- when


def fused_layers(layers: Sequence[Layer], most_tokens: int) -> frozenset[Layer]:
    """Return the layers that take part: finer ones, with more queries a frame, are left to the edit."""
    return frozenset(layer for layer in layers if layer.tokens <= most_tokens)


@final
@dataclass(frozen=True, eq=False)
class FusionSchedule:
    """What is the source's in which steps, counted from the noisiest."""

    most_tokens: int
    """Layers with more queries a frame are left alone."""
    self_steps: range = range(0)
    """Steps in which self-attention is the source's."""
    cross: CrossFusion | None = None
    object: ObjectMask | None = None
    mask_self: bool = False
    """Whether self-attention inside the object stays the edit's own."""
    mask_steps: range = range(0)
    """Steps after which the object is found in the latents."""
    blend_steps: range = range(0)
    """Steps after which what lies outside the object is put back."""
    source_words: Float[Tensor, " n"] | None = None
    """1 at the tokens of the object that changes, in the source's prompt."""
    target_words: Float[Tensor, " n"] | None = None
    """1 at the tokens of what it becomes, in the new prompt."""
    fuse_negative: bool = False
    """Whether what guidance leads away from has the source's attention too, as it must where that is the
    source prompt: only what the prompts differ in is then amplified."""
    source_lag: int = 0
    """How many levels cleaner than the edit the source is asked."""
    blend_lag: int = 0
    """How many levels noisier than the edit the latents put back are."""

    def kinds_at(self, step: int) -> set[str]:
        """Return the kinds of attention that are the source's in a step."""
        crossed = self.cross is not None and self.cross.at(step) is not None
        return {kind for kind, held in (("self", step in self.self_steps), ("cross", crossed)) if held}

    def word_layers(self, layers: Sequence[Layer]) -> frozenset[Layer]:
        """Return the layers whose attention to words shows the object; none where the user shows it.

        Raises:
            MethodError: they do not fit on each other.
        """
        if self.object is None or self.object.given is not None:
            return frozenset()
        chosen = self.object.choose(fused_layers(layers, self.most_tokens))
        if len({layer.grid for layer in chosen}) != 1:
            raise MethodError(
                "the layers in which the released code looks for the object have several sizes at this one",
                hint="use 512 x 512 pixels, or leave faithful off",
            )
        return chosen


def fusion_schedule(
    params: FateZeroParams,
    source: PromptTokens,
    target: PromptTokens,
    tokenizer: Tokenizer,
    *,
    size: tuple[int, int],
    given: Bool[Tensor, "f h w"] | None,
    run: Run,
) -> FusionSchedule:
    """Return what the parameters ask for.

    Args:
        params: Windows as shares of the steps there are, and words.
        source: The source's prompt.
        target: The new prompt.
        tokenizer: Read them.
        size: Rows and columns of the latents.
        given: The object, if the user says where it is; then it is put back from the first step on.
        run: Is told which words name the object, where the user names none: those that the prompts differ in.

    Raises:
        ParamsError: a word is not in its prompt, or the prompts cannot be aligned as asked.
    """
    find, length = phrase_finder(tokenizer), int(tokenizer.model_max_length)
    old, new = params.object_words, params.new_words
    masked = params.mask_self or params.blend
    if masked and given is None:
        found = changed_things(source, target)
        old, new = old or found[0], new or found[1]
        names = (", ".join(words) or "nothing" for words in (old, new))
        run.notice("object found by: {}; in the edit by: {}".format(*names))
    source_words, target_words = required(source, old, find), required(target, new, find)
    if masked and given is None and not source_words:
        raise ParamsError(
            "an object is to be masked, but no word names it", hint="say --object-words or give a mask"
        )
    blend = range(0)
    if params.blend or given is not None:
        blend = step_range(
            (0.0 if given is not None else params.blend_from, params.blend_until), params.steps
        )
    thing = ObjectMask(params.threshold, params.smooth_mask, given)
    return FusionSchedule(
        params.most_tokens or max(MOST_TOKENS, math.prod(size) // 4),
        self_steps=step_range((params.self_from, params.self_until), params.steps),
        cross=CrossFusion(
            _alignment(params, source, target, length),
            weight_table(
                params.steps,
                length,
                (params.cross_from, params.cross_until),
                {required(target, (word,), find): span for word, span in map(word_window, params.word_cross)},
            ),
            emphasis_table(
                length, {required(target, (word,), find): by for word, by in map(factor, params.emphasise)}
            ),
        ),
        object=thing if source_words or given is not None else None,
        mask_self=params.mask_self,
        mask_steps=blend,
        blend_steps=blend,
        source_words=marked(length, source_words),
        target_words=marked(length, target_words),
        fuse_negative=params.guide_from == "source",
    )


def _alignment(params: FateZeroParams, source: PromptTokens, target: PromptTokens, length: int) -> Alignment:
    alike = same_word_count(source, target)
    if params.alignment == "replace" or (params.alignment == "auto" and alike):
        return Alignment.replaced(replace_matrix(source, target, length))
    return Alignment.refined(refine_mapper(source, target, length))


def marked(length: int, numbers: Sequence[int]) -> Float[Tensor, " n"]:
    """Return 1 at the tokens of these numbers, 0 at all others."""
    marks = torch.zeros(length)
    marks[list(numbers)] = 1
    return marks


# ---------------------------------------------------------------- predict


@final
@dataclass(frozen=True, eq=False)
class Texts:
    """The prompts as the network reads them."""

    source: Float[Tensor, "n d"]
    target: Float[Tensor, "n d"]
    negative: Float[Tensor, "n d"]
    """What guidance leads away from."""

    @classmethod
    def embed(cls, sd: StableDiffusion, params: FateZeroParams) -> "Texts":
        """Read the prompts of an edit."""
        source = sd.embed(params.source_prompt)
        negative = source if params.guide_from == "source" else sd.embed(params.negative_prompt)
        return cls(source, sd.embed(params.prompt), negative)


@final
@dataclass(frozen=True, eq=False)
class StepResult:
    """What was predicted in a step, for whoever looks on; of the last window."""

    index: int
    positive: Float[Tensor, "g c h w"]
    """The network's output for the new prompt, attention fused."""
    negative: Float[Tensor, "g c h w"] | None
    inside: Mapping[tuple[int, int], Bool[Tensor, "g _ _"]] | None
    """Where self-attention stayed the edit's own, per grid."""

    def guided(self, guidance: float) -> Float[Tensor, "g c h w"]:
        """Return the prediction that the sampler takes."""
        return self.positive if self.negative is None else guided(self.negative, self.positive, guidance)


@final
@dataclass(frozen=True, eq=False)
class FusedPrediction:
    """The network's prediction with the source's attention in it, at any step."""

    model: StableDiffusion
    trajectory: Trajectory
    texts: Texts
    fusion: FusionSchedule
    guidance: float
    neighbours: Neighbours
    layers: tuple[Layer, ...]

    def predict(self, state: "State", window: Window, index: int, hi: Level) -> StepResult:
        """Predict for one window: capture the source, fuse it into the edit, and into what it leaves."""
        fusion, texts = self.fusion, self.texts
        gather = self.neighbours.among(window.frames, len(state.z))
        z = window.take(state.z, texts.source.device)
        source, inside = self._captured(state, window, gather, index, hi)
        words = self._words(fusion.target_words if index in fusion.mask_steps else None)
        cross = fusion.cross.at(index) if fusion.cross else None
        rule = FusedAttention(gather, source, cross, inside, words)
        positive = self.model.predict(z, hi.t, texts.target, attention={"rule": rule})
        if words.maps:
            window.add(state.edit_words, words.mean_map()[:, 0])
        if self.guidance == 1:
            return StepResult(index, positive, None, inside)
        held = FusedAttention(gather, source, _same_words(len(texts.source)), inside)
        plain = {"rule": held if fusion.fuse_negative else Attend(gather)}
        return StepResult(
            index, positive, self.model.predict(z, hi.t, texts.negative, attention=plain), inside
        )

    def _captured(
        self, state: "State", window: Window, gather: Gather, index: int, hi: Level
    ) -> tuple[SourceQK, Mapping[tuple[int, int], Bool[Tensor, "g _ _"]] | None]:
        """Ask the network at the source's latents; return its attention, and the object by it."""
        fusion, text, kinds = self.fusion, self.texts.source, self.fusion.kinds_at(index)
        taken = frozenset(x for x in fused_layers(self.layers, fusion.most_tokens) if x.kind in kinds)
        masking = fusion.mask_self and "self" in kinds
        words = self._words(fusion.source_words if masking or index in fusion.mask_steps else None)
        level = len(self.trajectory.latents) - 1 - index - fusion.source_lag
        z = window.take(self.trajectory.latents[level], text.device)
        source = capture_source(
            lambda rule: self.model.predict(z, hi.t, text, attention={"rule": rule}), gather, taken, words
        )
        word_map = words.mean_map()[:, 0] if words.maps else z[:, 0]
        if words.maps:
            window.add(state.source_words, word_map)
        if not masking or fusion.object is None:
            return source, None
        grids = {layer.grid for layer in taken if layer.kind == "self"}
        return source, {grid: fusion.object.at(word_map, window.frames, grid) for grid in grids}

    def _words(self, marks: Float[Tensor, " n"] | None) -> WordAttention:
        """Return room for attention to the object's words, in the layers that show it."""
        layers = self.fusion.word_layers(self.layers)
        return WordAttention(layers, marks[:, None]) if layers and marks is not None else WordAttention()


@final
@dataclass(frozen=True, eq=False)
class State:
    """What sampling keeps of the whole clip; may lie in files."""

    z: Float[Tensor, "f c h w"]
    output: Float[Tensor, "f c h w"]
    """The network's guided output, added up over the windows of a step."""
    source_words: Float[Tensor, "f y x"]
    """How strongly the source looks at the object's words in this step."""
    edit_words: Float[Tensor, "f y x"]
    """How strongly the edit did so far, added up."""
    mask: Bool[Tensor, "f h w"]
    """Where the edit is kept when the source's latents are put back."""

    @classmethod
    def allocate(cls, fused: FusedPrediction, run: Run) -> "State":
        """Take room in files for a clip, its latents at the noisy end of the trajectory."""
        noise = fused.trajectory.latents[-1]
        frames, _, *size = noise.shape
        grid = next((layer.grid for layer in fused.fusion.word_layers(fused.layers)), (1, 1))
        numbers = np.float64 if noise.dtype == torch.float64 else np.float32
        z, output = (
            torch.from_numpy(run.scratch(name, tuple(noise.shape), numbers)) for name in ("z", "out")
        )
        source_words, edit_words = (
            torch.from_numpy(run.scratch(name, (frames, *grid), numbers)) for name in ("source", "edit")
        )
        mask = torch.from_numpy(run.scratch("mask", (frames, *size), np.bool_))
        return cls(z.copy_(noise), output, source_words, edit_words, mask)

    def kept(self) -> dict[str, Tensor]:
        """Return what the next step needs of the last one."""
        return {"z": self.z, "edit_words": self.edit_words, "mask": self.mask}


def _same_words(length: int) -> tuple[Float[Tensor, "n n"], Float[Tensor, " n"]]:
    """Return the factors of cross-attention that is the source's, word by word."""
    return torch.eye(length), torch.zeros(length)
