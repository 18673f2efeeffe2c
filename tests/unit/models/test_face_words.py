from pathlib import Path

import pytest
import torch

from retouch.models.face_model import FaceModel
from retouch.models.face_words import EncodedWords, SmallWords
from retouch.models.refs import resolve
from retouch.models.vocabulary import declared_words
from retouch.world import FaceClip, Portrait

SEEDS = (5, 8, 13, 21)
"""Nobody that a training has seen."""


@pytest.fixture(scope="module")
def words() -> EncodedWords:
    words = FaceModel.from_pretrained("tiny:face").words
    assert isinstance(words, EncodedWords)
    return words


def faces(change: str) -> torch.Tensor:
    drawn = [FaceClip.of(Portrait.sample(seed).changed(change), 1, 64).video for seed in SEEDS]
    return torch.cat([video.pixels() for video in drawn])


@pytest.mark.parametrize(
    ("said", "true", "false"),
    [
        ("a face with glasses", "glasses=yes", "glasses=no"),
        ("a face with a beard", "beard=yes", "beard=no"),
        ("a face with a red hat", "hat=red", "hat=none"),
        ("a face without a beard", "beard=no", "beard=yes"),
    ],
)
def test_a_sentence_is_truer_of_faces_that_show_it(
    words: EncodedWords, said: str, true: str, false: str
) -> None:
    with torch.no_grad():
        sentence = words.texts([said])
        shown, other = (
            words.network.truth(words.pixels(faces(change)), sentence) for change in (true, false)
        )
    assert (shown > other).all()


def test_a_direction_of_words_is_reached_by_gradients_in_the_pixels(words: EncodedWords) -> None:
    pixels = faces("glasses=no").requires_grad_()
    said, plain = words.texts(["a face with glasses", "a face"])
    (slope,) = torch.autograd.grad((words.pixels(pixels) @ (said - plain)).sum(), pixels)
    assert torch.isfinite(slope).all()
    assert (slope.flatten(1).norm(dim=1) > 0).all()


def test_sentences_do_not_depend_on_those_beside_them_and_unknown_words_are_passed_over() -> None:
    torch.manual_seed(0)
    network = SmallWords(["a", "face", "with", "glasses"])
    alone = network.texts(["a face"])
    beside = network.texts(["A face!", "a face with glasses, a face with glasses", "a qqq face"])
    assert torch.allclose(beside[[0, 2]], alone.expand(2, -1), atol=1e-6)
    assert network.texts([""]).shape == (1, 64)


def test_the_words_that_were_taught_are_declared() -> None:
    known = declared_words(Path(resolve("tiny:face")))
    assert {"face", "beard", "glasses", "hat", "blond"} <= known
    assert "moustache" not in known
