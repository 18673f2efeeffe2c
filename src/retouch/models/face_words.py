"""What words say of faces: pictures and sentences as unit vectors in one space.

A model brings its own in its folder `words`: a small one over its identity encoder, or a CLIP in
transformers' layout.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize, silu

GAIN: Final = 8.0
"""What unit vectors are multiplied by, so that their numbers are about as large as 1."""


@runtime_checkable
class FaceWords(Protocol):
    """Compares faces with sentences; gradients reach the pixels."""

    def pixels(self, pixels: Float[Tensor, "f 3 h w"]) -> Float[Tensor, "f e"]:
        """Return unit vectors of pictures in [-1, 1]."""
        ...

    def texts(self, sentences: Sequence[str]) -> Float[Tensor, "n e"]:
        """Return unit vectors of sentences."""
        ...


@final
class SmallWords(nn.Module):
    """The embedded network: it sees who a face is, and words with their neighbours.

    A sentence is true of a face where the inner product of the two, times `scale`, is above `threshold`.
    """

    def __init__(self, words: Sequence[str], identity: int = 64, features: int = 64) -> None:
        """Build it with random weights; `words` are those that it is taught."""
        super().__init__()
        self.words = tuple(words)
        self.face = nn.Linear(identity, features)
        self.word = nn.Embedding(len(self.words) + 1, features, padding_idx=0)
        self.near = nn.ModuleList(nn.Conv1d(features, features, 3, padding=1) for _ in range(2))
        self.sentence = nn.Linear(features, features)
        self.scale = nn.Parameter(torch.tensor([10.0]))
        self.threshold = nn.Parameter(torch.tensor([5.0]))

    def faces(self, identity: Float[Tensor, "f d"]) -> Float[Tensor, "f e"]:
        """Return unit vectors of faces, given who they are."""
        return normalize(self.face(GAIN * identity), dim=1)

    def texts(self, sentences: Sequence[str]) -> Float[Tensor, "n e"]:
        """Return unit vectors of sentences; a word that it was not taught is passed over."""
        numbers = [[self.words.index(w) + 1 for w in words_in(s) if w in self.words] for s in sentences]
        longest = max(1, *map(len, numbers))
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row in numbers])
        return self.read(tokens.to(self.sentence.weight.device))

    def read(self, tokens: Int[Tensor, "n words"]) -> Float[Tensor, "n e"]:
        """Return unit vectors of sentences given as numbers of words; 0 is none."""
        said = (tokens > 0)[:, None]
        h = self.word(tokens).mT
        for layer in self.near:
            h = (h + silu(layer(h))) * said
        return normalize(self.sentence(h.masked_fill(~said, -1e4).amax(2)), dim=1)

    def truth(self, faces: Float[Tensor, "f e"], sentences: Float[Tensor, "n e"]) -> Float[Tensor, "f n"]:
        """Return how true sentences are of faces: above 0 they are."""
        return self.scale * faces @ sentences.T - self.threshold


@final
@dataclass(frozen=True, eq=False)
class EncodedWords:
    """The embedded network over the identity encoder of its model."""

    network: SmallWords
    encode: Callable[[Float[Tensor, "f 3 h w"]], Float[Tensor, "f d"]]

    def pixels(self, pixels: Float[Tensor, "f 3 h w"]) -> Float[Tensor, "f e"]:
        """As `FaceWords` says."""
        return self.network.faces(self.encode(pixels))

    def texts(self, sentences: Sequence[str]) -> Float[Tensor, "n e"]:
        """As `FaceWords` says."""
        return self.network.texts(sentences)


def words_in(sentence: str) -> list[str]:
    """Return the words of a sentence, in small letters."""
    return re.findall(r"[a-z]+", sentence.lower())
