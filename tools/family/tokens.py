"""A CLIP tokenizer for the world's words, by byte-pair training on a list of words."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from retouch.world.scene import Scene

EMPTY: Final = ""
"""The caption of a picture that is shown without words; what guidance steps away from."""

PLAIN: Final = (
    *(
        "a",
        "an",
        "the",
        "of",
        "on",
        "in",
        "at",
        "and",
        "with",
        "under",
        "over",
        "near",
        "left",
        "right",
        "front",
    ),
    *("small", "big", "large", "tiny", "moving", "still", "two", "one", "photo", "picture", "video", "style"),
    *("ball", "box", "star", "heart", "car", "fish", "cup", "house", "boat", "bird"),
    *("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black", "brown", "grey"),
    *("plain", "striped", "dotted", "checked", "checkered", "stripes", "dots"),
    *("grass", "sand", "water", "sky", "bricks", "snow", "wood", "night", "background"),
    *(
        "pencil",
        "neon",
        "pixel",
        "watercolour",
        "watercolor",
        "poster",
        "sketch",
        "art",
        "drawing",
        "painting",
    ),
    *("cartoon", "pastel", "sepia", "negative", "comic", "mosaic", "light", "dark", "bright"),
    *(
        "face",
        "man",
        "woman",
        "person",
        "smiling",
        "beard",
        "glasses",
        "hat",
        "hair",
        "blond",
        "blonde",
        "long",
    ),
    *("short", "eyes", "mouth", "open", "closed", "young", "old", "portrait", ",", ".", "-"),
)
WORDS: Final = tuple(dict.fromkeys(PLAIN))
"""Every word that captions use, and some that a user may try; others fall apart into letters."""

SEEN: Final = 6000
"""Scenes whose captions are read for the words that models are taught: every word comes up many times."""


def taught_words() -> list[str]:
    """Return the words of the captions that models are trained on; no picture ever went with another."""
    captions = (Scene.sample(seed).caption for seed in range(SEEN))
    return sorted({word for caption in captions for word in re.findall(r"[a-z]+", caption)})


def byte_letters() -> dict[int, str]:
    """The printable letter that stands for each byte in CLIP's vocabulary."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + n) for n, byte in enumerate(rest)}


def merges_and_vocabulary(words: Sequence[str]) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """Merge the most frequent neighbours until every word is one token.

    Applying the merges in the order in which they were learnt retraces the training, so each word of the
    list ends as one token, whatever the words share.
    """
    letters = list(byte_letters().values())
    split = {word: (*word[:-1], word[-1] + "</w>") for word in sorted(set(words))}
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for parts in split.values() for pair in itertools.pairwise(parts)):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        split = {word: _merged(parts, best) for word, parts in split.items()}
    tokens = letters + [letter + "</w>" for letter in letters] + [a + b for a, b in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return merges, {token: number for number, token in enumerate(tokens)}


def _merged(parts: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for part in parts:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return tuple(out)


def write_tokenizer(
    folder: Path,
    merges: Sequence[tuple[str, str]],
    vocabulary: Mapping[str, int],
    length: int,
    taught: Sequence[str],
) -> None:
    """Write the files that `CLIPTokenizer` has read in every version of transformers.

    The words that the model is `taught` go into the configuration, where `retouch` looks for them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=1) + "\n", "utf-8")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": length,
        "do_lower_case": True,
        **special,
        "words": list(taught),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")
