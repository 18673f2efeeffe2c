"""Trains what tiny:face knows of words: whether a sentence is true of a face, by its identity vector.

Sentences say one to three things, rightly or not, or nothing; every one is held against every face.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from command import options, tell
from face_network import identities
from faces import FACTORS, Faces, held_out, prepared
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from retouch.models.face_words import SmallWords, words_in
from retouch.models.fit import Fit
from retouch.world.faces import HATS

BATCH: Final = 64
MOST_SAID: Final = 3
OFF: Final = 0.03
"""How far each number of a vector is off, as it may be of faces that a network drew."""
FACTOR_NAMES: Final = list(FACTORS)
Claim = tuple[str, str]
"""A factor and a word of it; the word `any` is any hat."""


def claims_of(labels: np.ndarray, dice: np.random.Generator) -> list[Claim]:
    """Return some of what is true of a face: up to three things, each said once."""
    chosen = dice.permutation(len(FACTOR_NAMES))[: dice.integers(0, MOST_SAID + 1)]
    claims = [(FACTOR_NAMES[n], FACTORS[FACTOR_NAMES[n]][labels[n]]) for n in chosen]
    if ("hair", "bald") in claims:
        claims = [claim for claim in claims if claim[0] != "hair_colour"]
    if dice.random() < 0.4:
        claims = [("hat", "any") if f == "hat" and w != "none" else (f, w) for f, w in claims]
    return claims


def said(claims: Sequence[Claim], dice: np.random.Generator) -> str:
    """Return claims as a sentence."""
    words = dict(claims)
    shape, colour = words.pop("shape", ""), ""
    if words.get("hair", "bald") != "bald":
        colour = words.pop("hair_colour", "")
    phrases = [phrase(factor, word, without=dice.random() < 0.3) for factor, word in words.items()]
    phrases = [text.replace("hair", f"{colour} hair") if colour else text for text in phrases]
    article = "an" if shape == "oval" else "a"
    subject = f"{article} {shape} face" if shape else ("a face" if dice.random() < 0.8 else "face")
    if not phrases:
        return subject
    listed = " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)
    joined = "wearing" if {*words} <= {"glasses", "hat"} and dice.random() < 0.3 else "with"
    return f"{subject} {joined} {listed}".replace("with without", "without").replace(
        "wearing without", "without"
    )


def phrase(factor: str, word: str, *, without: bool) -> str:
    """Return what one claim is in words."""
    no = "without" if without else "no"
    match factor, word:
        case ("glasses", "yes"):
            return "glasses"
        case ("beard", "yes"):
            return "a beard"
        case ("hat", "any"):
            return "a hat"
        case ("hat", colour) if colour in HATS:
            return f"a {colour} hat"
        case ("glasses" | "beard" | "hat", _):
            article = "a " if without and factor != "glasses" else ""
            return f"{no} {article}{factor}"
        case ("hair", "bald"):
            return f"{no} hair"
        case ("hair_colour", _):
            return f"{word} hair"
    return f"{word} {factor}"


def true_of(claims: Sequence[Claim], labels: np.ndarray) -> np.ndarray:
    """Return of which faces all claims hold; a colour of hair holds of nobody without hair and beard."""
    holds = np.ones(len(labels), bool)
    for factor, word in claims:
        column, words = labels[:, FACTOR_NAMES.index(factor)], FACTORS[factor]
        holds &= column != words.index("none") if word == "any" else column == words.index(word)
        if factor == "hair_colour":
            bald = labels[:, FACTOR_NAMES.index("hair")] == FACTORS["hair"].index("bald")
            holds &= ~bald | (labels[:, FACTOR_NAMES.index("beard")] == FACTORS["beard"].index("yes"))
    return holds


def vocabulary() -> list[str]:
    """Return every word of the sentences."""
    every = [
        (factor, word) for factor, words in FACTORS.items() for word in (*words, *["any"] * (factor == "hat"))
    ]
    phrases = [phrase(f, w, without=without) for f, w in every for without in (False, True) if f != "shape"]
    shapes = [f"an {word}" for word in FACTORS["shape"]]
    return sorted(
        {word for text in (*phrases, *shapes, "a face with and wearing") for word in words_in(text)}
    )


def batch(faces: Faces, vectors: Tensor, generator: torch.Generator) -> tuple[Tensor, list[str], Tensor]:
    """Vectors of faces, sentences, and which are true of which; most sentences are about these faces."""
    dice = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
    rows = np.sort(dice.permutation(len(faces))[:BATCH])
    seen = vectors[rows, dice.integers(2, size=len(rows)), dice.integers(2, size=len(rows))]
    noise = torch.randn(seen.shape, generator=generator)
    labels = faces.labels[rows]
    others = faces.labels[np.sort(dice.integers(len(faces), size=len(rows) // 2))]
    claims = [claims_of(row, dice) for row in (*labels, *others)]
    truth = np.stack([true_of(claim, labels) for claim in claims], axis=1)
    return (
        normalize(seen + OFF * noise, dim=1),
        [said(claim, dice) for claim in claims],
        torch.from_numpy(truth).float(),
    )


def loss_of(network: SmallWords, vectors: Tensor, sentences: Sequence[str], truth: Tensor) -> Tensor:
    """The cross-entropy of true and false."""
    answers = network.truth(network.faces(vectors), network.texts(sentences))
    return binary_cross_entropy_with_logits(answers, truth)


def figures_of(network: SmallWords, faces: Faces, vectors: Tensor) -> dict[str, float]:
    """How often a claim of each factor is held truer of a face that it is true of than of another."""
    labels, dice, figures = faces.labels.repeat(2, 0), np.random.default_rng(0), {}
    with torch.no_grad():
        seen = network.faces(vectors[:, :, 0].flatten(0, 1))
        for factor, words in FACTORS.items():
            right = []
            for word in words:
                holds = true_of([(factor, word)], labels)
                (answers,) = network.truth(seen, network.texts([said([(factor, word)], dice)])).T.numpy()
                if holds.any() and not holds.all():
                    right.append(float((answers[holds][:, None] > answers[~holds]).mean()))
            figures[factor] = round(float(np.mean(right)), 3)
    return figures


def train(work: Path, *, images: int, count: int, device: str = "cpu", tested: int = 100) -> Fit[SmallWords]:
    """Train until `images` have been seen, counting those of earlier calls."""
    torch.manual_seed(0)
    fit = Fit(
        SmallWords(vocabulary()), work / "face-words", tell=tell, rate=3e-3, keep=0.99, warmup=50, decay=0.05,
        device=device, precision=torch.float32,
    )  # fmt: skip
    faces, judged = prepared(work, count), held_out(tested)
    vectors, known = identities(work, faces, "train"), identities(work, judged, "held-out")

    def look(generator: torch.Generator) -> tuple[Tensor, int]:
        fit.settle(images)
        return loss_of(fit.network, *batch(faces, vectors, generator)), min(BATCH, len(faces))

    return fit.until(images, look, every=200, figures=lambda: figures_of(fit.network, judged, known))


def main() -> None:
    """Train from the command line."""
    parser = options(__doc__, images=300_000)
    parser.add_argument("--persons", type=int, default=15_000)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    train(asked.work, images=asked.images, count=asked.persons, device=asked.device)


if __name__ == "__main__":
    main()
