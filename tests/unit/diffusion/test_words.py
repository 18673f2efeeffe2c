import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retouch.diffusion.words import (
    NEW,
    Alignment,
    CrossFusion,
    PromptTokens,
    changed_things,
    emphasis_table,
    exact_word,
    phrase_finder,
    read_prompt,
    refine_mapper,
    released_replace_matrix,
    replace_matrix,
    required,
    step_range,
    weight_table,
)
from retouch.errors import ParamsError

LENGTH = 77
START, END = 0, 1


class Encoding:
    def __init__(self, ids: list[int]) -> None:
        self.input_ids = ids


class Letters:
    """A tokenizer that makes a token of every two letters of a word, so that most words have several."""

    model_max_length = LENGTH

    def __call__(self, text: str) -> Encoding:
        pieces = [word[i : i + 2] for word in text.lower().split() for i in range(0, len(word), 2)]
        return Encoding([START, *(2 + int.from_bytes(piece.encode()) for piece in pieces), END])

    def decode(self, token_ids: list[int]) -> str:
        return "".join((token - 2).to_bytes(8).lstrip(b"\0").decode() for token in token_ids)


def read(prompt: str) -> PromptTokens:
    return read_prompt(Letters(), prompt)


words = st.lists(st.text("abcd", min_size=1, max_size=5), min_size=1, max_size=6)


def test_words_know_their_tokens() -> None:
    assert read("a silver jeep").words == (("a", (1,)), ("silver", (2, 3, 4)), ("jeep", (5, 6)))


@pytest.mark.parametrize(
    ("source", "target", "things"),
    [
        ("a pink striped car on snow", "a blue striped car on snow", (("car",), ("car",))),
        ("a red ball on grass", "an orange ball on grass", (("ball",), ("ball",))),
        ("a red car on snow", "a red boat on snow", (("car",), ("boat",))),
        ("a red ball on grass", "a red dotted ball on grass", (("ball",), ("ball",))),
        ("a dotted ball, on grass", "a ball, on grass", (("ball",), ("ball",))),
        ("a ball on grass", "a ball on sand", (("grass",), ("sand",))),
        ("a Cat, asleep", "a Dog, asleep", (("cat",), ("dog",))),
        ("a ball", "a ball", ((), ())),
        ("a cat", "a cat with a hat", ((), ("hat",))),
    ],
)
def test_what_changes_is_the_thing_that_the_changed_words_belong_to(
    source: str, target: str, things: tuple[tuple[str, ...], tuple[str, ...]]
) -> None:
    assert changed_things(read(source), read(target)) == things


def test_a_word_is_found_wherever_it_occurs() -> None:
    tokens = read("cat and cat")
    assert exact_word(tokens, "cat") == (1, 2, 5, 6)
    assert phrase_finder(Letters())(tokens, "cat") == (1, 2, 5, 6)
    assert phrase_finder(Letters())(tokens, "and cat") == (3, 4, 5, 6)
    assert exact_word(tokens, "dog") == phrase_finder(Letters())(tokens, "dog") == ()


def test_a_missing_word_is_an_error_with_a_near_one() -> None:
    with pytest.raises(ParamsError, match="'jep' is not in the prompt") as error:
        required(read("a silver jeep"), ("jep",), phrase_finder(Letters()))
    assert "jeep" in error.value.hint


def test_a_prompt_longer_than_the_encoder_reads_is_an_error() -> None:
    with pytest.raises(ParamsError, match="82 tokens"):
        read("ab " * 80)


@given(words)
def test_a_prompt_is_aligned_with_itself(prompt: list[str]) -> None:
    tokens = read(" ".join(prompt))
    assert refine_mapper(tokens, tokens, LENGTH) == tuple(range(LENGTH))
    eye = torch.eye(LENGTH)
    assert torch.equal(replace_matrix(tokens, tokens, LENGTH), eye)
    assert torch.equal(released_replace_matrix(tokens, tokens, LENGTH), eye)


@given(words, words)
def test_refining_pairs_equal_tokens_only_and_in_order(before: list[str], after: list[str]) -> None:
    source, target = read(" ".join(before)), read(" ".join(after))
    mapper = refine_mapper(source, target, LENGTH)[: len(target.ids)]
    paired = [(i, j) for j, i in enumerate(mapper) if i != NEW]
    assert all(source.ids[i] == target.ids[j] for i, j in paired)
    assert [i for i, _ in paired] == sorted({i for i, _ in paired})
    assert mapper[0] == 0
    assert mapper[-1] == len(source.ids) - 1


@given(words, words)
def test_refining_pairs_as_many_tokens_as_can_be(before: list[str], after: list[str]) -> None:
    source, target = read(" ".join(before)), read(" ".join(after))
    longest = [[0] * (len(target.ids) + 1) for _ in range(len(source.ids) + 1)]
    for i, a in enumerate(source.ids):
        for j, b in enumerate(target.ids):
            longest[i + 1][j + 1] = longest[i][j] + 1 if a == b else max(longest[i][j + 1], longest[i + 1][j])
    paired = sum(i != NEW for i in refine_mapper(source, target, LENGTH)[: len(target.ids)])
    assert paired == longest[-1][-1]


@given(words, st.data())
def test_replacing_keeps_all_attention_of_every_word(before: list[str], data: st.DataObject) -> None:
    after = data.draw(
        st.lists(st.text("abcd", min_size=1, max_size=5), min_size=len(before), max_size=len(before))
    )
    source, target = read(" ".join(before)), read(" ".join(after))
    matrix = replace_matrix(source, target, LENGTH)
    for (_, old), (_, new) in zip(source.words, target.words, strict=True):
        assert matrix[list(old)][:, list(new)].sum().item() == pytest.approx(len(old))
        assert matrix[list(old)].sum().item() == pytest.approx(len(old))
    assert bool((matrix.sum(0) > 0).all())


def test_what_follows_a_replaced_word_moves_along() -> None:
    source, target = read("a cat sits"), read("a cathedral sits")
    right = replace_matrix(source, target, LENGTH)
    released = released_replace_matrix(source, target, LENGTH)
    sits = (source.words[2][1][0], target.words[2][1][0])
    assert sits == (4, 7)
    assert right[sits] == 1
    assert released[sits] == 0
    assert released[7, 7] == 1


def test_replacing_asks_for_as_many_words() -> None:
    with pytest.raises(ParamsError, match="has 2 words"):
        replace_matrix(read("a cat"), read("a red cat"), LENGTH)


def test_fusing_values_is_fusing_maps() -> None:
    mapper = refine_mapper(read("a cat sits"), read("a red cat sits"), LENGTH)
    alignment = Alignment.refined(mapper)
    weight = weight_table(4, LENGTH, (0.0, 0.5), {(3, 4): (0.5, 1.0)})
    fusion = CrossFusion(alignment, weight, emphasis_table(LENGTH, {(2,): 3.0}))
    a, b = torch.rand(5, LENGTH).softmax(-1), torch.rand(5, LENGTH).softmax(-1)
    values = torch.rand(LENGTH, 6)
    for step in range(4):
        fused = torch.empty_like(a)
        for j in range(LENGTH):
            base = b[:, j] if mapper[j] == NEW else a[:, mapper[j]]
            on = weight[step, j]
            fused[:, j] = on * base * (3.0 if j == 2 else 1.0) + (1 - on) * b[:, j]
        factors = fusion.at(step)
        assert factors is not None
        taken, kept = factors
        assert torch.allclose(a @ (taken @ values) + b @ (kept[:, None] * values), fused @ values, atol=1e-6)


def test_a_step_that_fuses_nothing_says_so() -> None:
    nothing = Alignment(torch.eye(3), torch.zeros(3))
    fusion = CrossFusion(nothing, weight_table(4, 3, (0.0, 0.5), {}), torch.ones(3))
    assert fusion.at(1) is not None
    assert fusion.at(2) is None


def test_windows_are_whole_steps_rounded_down() -> None:
    assert step_range((0.0, 0.8), 10) == range(8)
    assert step_range((0.25, 0.5), 10) == range(2, 5)
    assert weight_table(11, 2, (0.0, 0.8), {})[:, 0].tolist() == [1] * 8 + [0] * 3
