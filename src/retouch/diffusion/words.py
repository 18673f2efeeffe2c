"""Which words of one prompt are which words of another, and how attention to them is carried over.

Cross-attention maps have one column per text token. To fuse the map of a source prompt into that of a
target prompt (Prompt-to-Prompt, Hertz et al. 2022), an `Alignment` says for each target token which
source columns it takes and how much of its own it keeps. Since that is linear in the columns, it can be
applied to the values instead of the maps.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeAlias, final, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from retouch.errors import ParamsError
from retouch.fields import near

PHRASE_ENDS = frozenset(
    {
        *("a", "an", "the", "and", "or", "while"),
        *("on", "in", "at", "of", "with", "to", "from", "into", "onto", "over", "under", "near", "by"),
        *("beside", "behind", "between", "through", "against"),
    }
)
"""Words between the names of things."""
NEW = -1
"""Marks a target token that no source token belongs to."""


@runtime_checkable
class TokenEncoding(Protocol):
    """What a tokenizer returns, as far as it is needed here."""

    @property
    def input_ids(self) -> list[int]:
        """Token ids, special ones included."""
        ...


@runtime_checkable
class Tokenizer(Protocol):
    """A CLIP tokenizer, as far as it is needed here."""

    @property
    def model_max_length(self) -> int:
        """How many tokens the text encoder takes, special ones included."""
        ...

    def __call__(self, text: str) -> TokenEncoding:
        """The tokens of a text."""
        ...

    def decode(self, token_ids: list[int]) -> str:
        """The text of tokens."""
        ...


@final
@dataclass(frozen=True)
class PromptTokens:
    """A prompt as the text encoder sees it."""

    prompt: str
    ids: tuple[int, ...]
    """Start and end tokens included, padding not."""
    pieces: tuple[str, ...]
    """The text of each token between start and end."""

    @property
    def words(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The words between single spaces, each with the numbers of its tokens.

        Two spaces in a row make an empty word that swallows a token, which is how Prompt-to-Prompt counts.
        """
        words = self.prompt.split(" ")
        numbers: list[list[int]] = [[] for _ in words]
        at = length = 0
        for number, piece in enumerate(self.pieces, 1):
            if at == len(words):
                break
            numbers[at].append(number)
            length += len(piece)
            if length >= len(words[at]):
                at, length = at + 1, 0
        return tuple((word, tuple(found)) for word, found in zip(words, numbers, strict=True))


Finder: TypeAlias = Callable[[PromptTokens, str], tuple[int, ...]]
"""The numbers of the tokens that a word has in a prompt; none if it is not there."""


def read_prompt(tokenizer: Tokenizer, prompt: str) -> PromptTokens:
    """A prompt's tokens, with runs of spaces made single.

    Raises:
        ParamsError: it is longer than the text encoder can read.
    """
    prompt = " ".join(prompt.split())
    ids = tuple(tokenizer(prompt).input_ids)
    if len(ids) > tokenizer.model_max_length:
        raise ParamsError(
            f"the prompt {prompt[:40]!r}... has {len(ids)} tokens;"
            f" the text encoder reads {tokenizer.model_max_length}",
            hint="say it in fewer words",
        )
    return PromptTokens(prompt, ids, tuple(tokenizer.decode([token]).strip() for token in ids[1:-1]))


def exact_word(tokens: PromptTokens, word: str) -> tuple[int, ...]:
    """Finds what stands between single spaces, letter for letter, wherever it occurs."""
    return tuple(number for other, numbers in tokens.words if other == word for number in numbers)


def phrase_finder(tokenizer: Tokenizer) -> Finder:
    """Finds words and phrases by their tokens: punctuation beside them and capitals do not matter."""

    def find(tokens: PromptTokens, phrase: str) -> tuple[int, ...]:
        wanted = tuple(tokenizer(phrase).input_ids)[1:-1]
        starts = range(1, len(tokens.ids) - len(wanted)) if wanted else ()
        found = [at for at in starts if tokens.ids[at : at + len(wanted)] == wanted]
        return tuple(sorted({number for at in found for number in range(at, at + len(wanted))}))

    return find


def required(tokens: PromptTokens, words: Sequence[str], find: Finder) -> tuple[int, ...]:
    """The tokens of all these words.

    Raises:
        ParamsError: one of them is not in the prompt.
    """
    for word in words:
        if not find(tokens, word):
            known = [other.strip(",.;:!?") for other, _ in tokens.words]
            raise ParamsError(
                f"the word {word!r} is not in the prompt {tokens.prompt!r}",
                hint=near(word, known) or "name words that the prompt has",
            )
    return tuple(sorted({number for word in words for number in find(tokens, word)}))


def changed_things(source: PromptTokens, target: PromptTokens) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What changes, as the source's prompt names it and as the target's does.

    English puts the name of a thing last: from a word that the other prompt lacks, what it belongs to is
    the last word before the next preposition, article or comma. Pink becomes blue in "a pink striped car on
    snow", and it is the car that changes. Where one prompt only says more, the thing goes by one name in
    both.
    """
    old, new = _heads(source, target), _heads(target, source)
    return (
        old or tuple(word for word in new if word in _plain(source)),
        new or tuple(word for word in old if word in _plain(target)),
    )


@final
@dataclass(frozen=True, eq=False)
class Alignment:
    """How columns of the source's map become columns of the target's."""

    taken: Float[Tensor, "words words"]
    """Source token by target token: how much of the source's column goes into the target's."""
    kept: Float[Tensor, " words"]
    """How much each target token keeps of its own column."""

    @classmethod
    def refined(cls, mapper: Sequence[int]) -> Self:
        """Return one where each target token takes its source token's column; a new one keeps its own."""
        length = len(mapper)
        taken = torch.zeros(length, length)
        for target, source in enumerate(mapper):
            if source != NEW:
                taken[source, target] = 1
        return cls(taken, torch.tensor([float(source == NEW) for source in mapper]))

    @classmethod
    def replaced(cls, matrix: Float[Tensor, "words words"]) -> Self:
        """Return one where every target token's column comes from the source."""
        return cls(matrix, torch.zeros(matrix.shape[1]))


def refine_mapper(source: PromptTokens, target: PromptTokens, length: int) -> tuple[int, ...]:
    """The source token that each of `length` target tokens is, or `NEW`: Needleman-Wunsch on token ids.

    A match scores 1, a mismatch -1, a gap 0, so different tokens are never paired. Among equally good
    alignments the one with insertions last, then deletions, is taken, as Prompt-to-Prompt does. Beyond
    the target's end tokens keep their numbers.
    """
    a, b = source.ids, target.ids
    scores = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            paired = scores[i - 1][j - 1] + (1 if a[i - 1] == b[j - 1] else -1)
            scores[i][j] = max(scores[i][j - 1], scores[i - 1][j], paired)
    mapper = [NEW] * len(b)
    i, j = len(a), len(b)
    while i and j:
        if scores[i][j] == scores[i][j - 1]:
            j -= 1
        elif scores[i][j] == scores[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            mapper[j] = i
    return (*mapper, *range(len(b), length))[:length]


def replace_matrix(source: PromptTokens, target: PromptTokens, length: int) -> Float[Tensor, "words words"]:
    """Carries a prompt over to one with as many words: word by word, in order.

    A word of equally many tokens goes token by token; else its attention is spread evenly over the new
    tokens. What follows moves along, padding included.

    Raises:
        ParamsError: the prompts differ in the number of words.
    """
    matrix = torch.zeros(length, length)
    i = j = 0
    for old, new in [((0,), (0,)), *_word_pairs(source, target)]:
        _spread(matrix, old, new)
        i, j = old[-1] + 1, new[-1] + 1
    for column in range(j, length):
        matrix[min(i + column - j, length - 1), column] = 1
    return matrix


def released_replace_matrix(
    source: PromptTokens, target: PromptTokens, length: int
) -> Float[Tensor, "words words"]:
    """As `replace_matrix`, with two faults of the code that Prompt-to-Prompt and FateZero released.

    After the last word that differs, tokens map to their own numbers even where the prompts have shifted
    against each other; and the loop ends with the longer side, which can leave the last columns empty.
    """
    changed = [
        (old, new)
        for (before, old), (after, new) in zip(source.words, target.words, strict=True)
        if before != after
    ]
    matrix = torch.zeros(length, length)
    i = j = 0
    for old, new in changed:
        while i < old[0] and max(i, j) < length:
            matrix[i, j] = 1
            i, j = i + 1, j + 1
        _spread(matrix, old, new)
        i, j = i + len(old), j + len(new)
    while max(i, j) < length:
        matrix[j, j] = 1
        i, j = i + 1, j + 1
    return matrix


def same_word_count(source: PromptTokens, target: PromptTokens) -> bool:
    """Whether the prompts can be carried over word by word."""
    return len(source.words) == len(target.words)


@final
@dataclass(frozen=True, eq=False)
class CrossFusion:
    """Fusion of cross-attention over a whole edit."""

    alignment: Alignment
    weight: Float[Tensor, "steps words"]
    """Per step and target token: 1 takes from the source, 0 leaves the edit alone."""
    emphasis: Float[Tensor, " words"]
    """Factor on each target token's fused column, while it is fused."""

    def at(self, step: int) -> tuple[Float[Tensor, "words words"], Float[Tensor, " words"]] | None:
        """What the source's and the edit's values are multiplied with in a step; nothing if it fuses nothing.

        With maps A of the source and B of the edit the fused map is `A @ taken + B * kept`.
        """
        fused = self.weight[step]
        if not bool(fused.any()):
            return None
        scale = fused * self.emphasis
        return self.alignment.taken * scale, self.alignment.kept * scale + (1 - fused)


def weight_table(
    steps: int,
    length: int,
    window: tuple[float, float],
    tokens: Mapping[tuple[int, ...], tuple[float, float]],
) -> Float[Tensor, "steps words"]:
    """In which steps each token is fused, windows given as shares of all steps.

    Args:
        steps: How many rows; bounds are shares of that.
        length: How many tokens.
        window: From where to where, for all tokens.
        tokens: Windows of certain tokens, instead.
    """
    table = torch.zeros(steps, length)
    table[_rows(window, steps)] = 1
    for numbers, own in tokens.items():
        for number in numbers:
            table[:, number] = 0
            table[_rows(own, steps), number] = 1
    return table


def emphasis_table(length: int, factors: Mapping[tuple[int, ...], float]) -> Float[Tensor, " words"]:
    """The factor on each token; 1 where none is given."""
    table = torch.ones(length)
    for numbers, factor in factors.items():
        table[list(numbers)] = factor
    return table


def step_range(window: tuple[float, float], steps: int) -> range:
    """The steps in a window given as shares of all steps, rounded down."""
    start, end = (int(share * steps) for share in window)
    return range(start, end)


def _plain(tokens: PromptTokens) -> list[str]:
    """The words without what is written beside them."""
    return [word.strip(",.;:!?").lower() for word, _ in tokens.words]


def _heads(one: PromptTokens, other: PromptTokens) -> tuple[str, ...]:
    """The names of the things that words belong to which the other prompt lacks."""
    words, known = _plain(one), {*_plain(other), *PHRASE_ENDS}
    found = []
    for at, word in enumerate(words):
        if word not in known:
            found.append(words[_end_of_phrase(at, one, words)])
    return tuple(dict.fromkeys(found))


def _end_of_phrase(at: int, tokens: PromptTokens, words: Sequence[str]) -> int:
    """The last word before one that begins another phrase, or at which something is written to close it."""
    while (
        at + 1 < len(words) and words[at + 1] not in PHRASE_ENDS and tokens.words[at][0].lower() == words[at]
    ):
        at += 1
    return at


def _rows(window: tuple[float, float], steps: int) -> slice:
    rows = step_range(window, steps)
    return slice(rows.start, max(rows.start, rows.stop))


def _word_pairs(source: PromptTokens, target: PromptTokens) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    if not same_word_count(source, target):
        raise ParamsError(
            f"{source.prompt!r} has {len(source.words)} words and {target.prompt!r} has {len(target.words)}",
            hint="use as many words, or alignment refine",
        )
    return [(old, new) for (_, old), (_, new) in zip(source.words, target.words, strict=True) if old and new]


def _spread(matrix: Float[Tensor, "words words"], old: Sequence[int], new: Sequence[int]) -> None:
    if len(old) == len(new):
        matrix[list(old), list(new)] = 1
    else:
        matrix[old[0] : old[-1] + 1, new[0] : new[-1] + 1] = 1 / len(new)
