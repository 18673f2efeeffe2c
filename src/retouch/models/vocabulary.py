"""Which words a model was taught, where it says so: a small model knows few, and of others makes anything.

A model declares them in its tokenizer's configuration, as `words`, so that they go where the tokenizer goes;
a face model in that of its part for words.
"""

import json
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path

from retouch.errors import ParamsError
from retouch.events import Listener, Notice


def declared_words(folder: Path) -> frozenset[str]:
    """Return the words that the model in a folder says it was taught; none where it does not say."""
    places = ("tokenizer/tokenizer_config.json", "tokenizer_config.json", "words/config.json")
    for path in (folder / place for place in places):
        if path.is_file():
            return words_of(json.loads(path.read_text("utf-8")))
    return frozenset()


def words_of(configuration: Mapping[str, object]) -> frozenset[str]:
    """Return the words that a tokenizer's configuration declares."""
    words = configuration.get("words")
    return frozenset(map(str, words)) if isinstance(words, (list, tuple)) else frozenset()


def check_words(
    prompts: Iterable[str], known: frozenset[str], *, model: str, anyway: bool, tell: Listener
) -> None:
    """Refuse prompts with words that a model was not taught, or only say so where they are meant.

    Raises:
        ParamsError: there are such words; the hint names the nearest that it was taught.
    """
    said = dict.fromkeys(word for prompt in prompts for word in re.findall(r"[^\W_]+", prompt.lower()))
    strange = [word for word in said if word not in known] if known else []
    if not strange:
        return
    what = f"{model} does not know the word{'s' * (len(strange) > 1)} {', '.join(map(repr, strange))}"
    if anyway:
        tell(Notice(f"{what}; what it makes of that is left to chance"))
        return
    near = [f"{w}: {', '.join(close)}" for w in strange if (close := get_close_matches(w, sorted(known)))]
    nearest = f"near words that it knows are {'; '.join(near)}. " if near else ""
    raise ParamsError(
        what, hint=f"{nearest}All that it knows: {', '.join(sorted(known))}. --anyway goes on with yours"
    )
