"""Words that a model says it was taught, and words that it was not."""

import json
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from retouch.errors import ParamsError
from retouch.events import Event, Notice, ignore
from retouch.models.refs import resolve
from retouch.models.vocabulary import check_words, declared_words, words_of
from retouch.world.scene import Scene

KNOWN = frozenset({"a", "red", "car", "cup", "on", "sand"})


def test_the_embedded_models_declare_the_words_of_the_world() -> None:
    said = {word.strip(",") for seed in range(300) for word in Scene.sample(seed).caption.split()}
    for ref in ("tiny:sd", "tiny:clip"):
        known = declared_words(resolve(ref))
        assert said <= known
        assert not known & {"jeep", "beard", "photo"}
    assert declared_words(resolve("tiny:svd")) == frozenset()


def test_words_go_where_the_tokenizer_goes(tmp_path: Path) -> None:
    CLIPTokenizer.from_pretrained(resolve("tiny:sd") / "tokenizer").save_pretrained(tmp_path / "tokenizer")
    assert declared_words(tmp_path) == declared_words(resolve("tiny:sd"))


def test_a_word_that_is_not_known_is_refused_with_the_near_ones() -> None:
    check_words(["A red car, on sand.", ""], KNOWN, model="it", anyway=False, tell=ignore)
    with pytest.raises(ParamsError, match="it does not know the words 'carr', 'jeep'") as caught:
        check_words(["a carr", "a red JEEP"], KNOWN, model="it", anyway=False, tell=ignore)
    assert "carr: car" in caught.value.hint
    assert "--anyway" in caught.value.hint


def test_whoever_means_it_goes_on_and_is_told() -> None:
    heard: list[Event] = []
    check_words(["a jeep"], KNOWN, model="it", anyway=True, tell=heard.append)
    assert [event.text for event in heard if isinstance(event, Notice)] == [
        "it does not know the word 'jeep'; what it makes of that is left to chance"
    ]


def test_a_model_that_declares_nothing_is_never_asked(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"words": "all"}))
    assert declared_words(tmp_path) == words_of({}) == frozenset()
    check_words(["a jeep"], frozenset(), model="it", anyway=False, tell=ignore)
