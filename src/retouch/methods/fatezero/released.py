"""FateZero's fusion as its authors released it, slips included, to hold our numbers against theirs.

Cross windows are shares of one step more than there are. Words that a prompt lacks are passed over, and an
object without words is no object. The source's attention is read one level cleaner than the edit, since the
code keeps what inversion computed on its way up; what is put back outside the object lies one level noisier,
strictly between a fifth and four fifths of the steps. Guidance's negative half is left alone.
"""

from retouch.diffusion.attention import Layer
from retouch.diffusion.capture import ObjectMask
from retouch.diffusion.words import (
    Alignment,
    CrossFusion,
    PromptTokens,
    Tokenizer,
    emphasis_table,
    exact_word,
    refine_mapper,
    released_replace_matrix,
    same_word_count,
    step_range,
    weight_table,
)
from retouch.methods.fatezero.fusion import MOST_TOKENS, FusionSchedule, marked
from retouch.methods.fatezero.spec import FateZeroParams, factor, word_window
from retouch.run import Run


def released_schedule(
    params: FateZeroParams, source: PromptTokens, target: PromptTokens, tokenizer: Tokenizer, run: Run
) -> FusionSchedule:
    """Return what the released code makes of the parameters, and tell what it does in silence."""
    if params.alignment == "replace" and not same_word_count(source, target):
        run.notice(
            "the prompts differ in the number of words: aligned by equal tokens, as the released code does"
        )
    if not params.tuned:
        run.notice(
            "the released code also adds a random offset after each block; none can repeat it; left out"
        )
    return schedule(params, source, target, length=int(tokenizer.model_max_length))


def schedule(
    params: FateZeroParams, source: PromptTokens, target: PromptTokens, *, length: int
) -> FusionSchedule:
    """Return the same for a text encoder that reads so many tokens."""
    steps, named = params.steps, bool(params.object_words)
    blend = range(int(0.2 * steps), int(0.8 * steps) - 1) if named and params.blend else range(0)
    return FusionSchedule(
        MOST_TOKENS,
        self_steps=step_range((params.self_from, params.self_until), steps),
        cross=CrossFusion(
            _alignment(params, source, target, length),
            weight_table(
                steps + 1,
                length,
                (params.cross_from, params.cross_until),
                {exact_word(target, word): span for word, span in map(word_window, params.word_cross)},
            ),
            emphasis_table(
                length, {exact_word(target, word): by for word, by in map(factor, params.emphasise)}
            ),
        ),
        object=ObjectMask(params.threshold, choose=released_mask_layers) if named else None,
        mask_self=named and params.mask_self,
        mask_steps=range(steps) if blend else range(0),
        blend_steps=blend,
        source_words=marked(length, [n for word in params.object_words for n in exact_word(source, word)]),
        target_words=marked(length, [n for word in params.new_words for n in exact_word(target, word)]),
        source_lag=1,
        blend_lag=1,
    )


def released_mask_layers(layers: frozenset[Layer]) -> frozenset[Layer]:
    """Return the cross layers that the code reads: third and fourth going down, first three going up.

    At 512 pixels these are the five of 16 x 16. Counted among those that take part, as the code counts.
    """
    cross = sorted((layer for layer in layers if layer.kind == "cross"), key=lambda layer: layer.index)
    down = [layer for layer in cross if layer.place == "down"][2:4]
    return frozenset([*down, *[layer for layer in cross if layer.place == "up"][:3]])


def _alignment(params: FateZeroParams, source: PromptTokens, target: PromptTokens, length: int) -> Alignment:
    """Align word by word where that was asked and the prompts have as many words, else by token ids."""
    if params.alignment == "replace" and same_word_count(source, target):
        return Alignment.replaced(released_replace_matrix(source, target, length))
    return Alignment.refined(refine_mapper(source, target, length))
