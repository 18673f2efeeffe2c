"""What tiny:face calls what it knows of faces, and where its identities show it: two linear fits."""

from typing import Final

import torch
from faces import FACTORS, Faces
from torch import Tensor
from torch.nn.functional import one_hot

from retouch.models.face_attributes import Attributes

NOUNS: Final = {
    "skin": "skin",
    "shape": "face",
    "eyes": "eyes",
    "hair": "hair",
    "hair_colour": "hair",
    "glasses": "glasses",
    "beard": "beard",
    "hat": "hat",
}
YES_NO: Final = {"yes": "", "no": "no-", "none": "no-"}
REACH: Final = 1.25
"""How much further a change goes than from mean to mean; what is not reached there shows faintly."""
RIDGE: Final = 1e-3
ROUNDS: Final = 300


def attribute_name(factor: str, word: str) -> str:
    """Return what an attribute is called, such as `blond-hair`, `glasses` or `no-hat`."""
    if word == "bald":
        return word
    return f"{YES_NO[word]}{NOUNS[factor]}" if word in YES_NO else f"{word}-{NOUNS[factor]}"


def fitted(vectors: Tensor, faces: Faces) -> Attributes:
    """Return the classifier of identities, `n 2 mirrored d`, and where those lie that show each attribute."""
    rows = vectors.flatten(1, 2).flatten(0, 1)
    labels = torch.from_numpy(faces.labels[:].astype("int64")).repeat_interleave(4, 0)
    shown = torch.cat(
        [one_hot(labels[:, n], len(words)) for n, words in enumerate(FACTORS.values())], 1
    ).float()
    names = [attribute_name(factor, word) for factor, words in FACTORS.items() for word in words]
    groups = [factor for factor, words in FACTORS.items() for _ in words]
    hide_hair(shown, names)
    mean, std = rows.mean(0), rows.std(0)
    seen = torch.cat([torch.ones(len(rows), 1), shown], 1)
    gram = seen.T @ seen / len(rows) + RIDGE * torch.eye(seen.shape[1])
    places = REACH * torch.linalg.solve(gram, seen.T @ rows / len(rows))[1:]
    head = Attributes(
        names, torch.zeros(len(names), rows.shape[1], requires_grad=True),
        torch.zeros(len(names), requires_grad=True), mean, std, groups, places,
    )  # fmt: skip
    learn = torch.optim.LBFGS([head.weight, head.bias], max_iter=ROUNDS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        learn.zero_grad()
        total = head.loss(rows, shown) + 1e-4 * head.weight.square().sum()
        total.backward()
        return total

    learn.step(loss)
    return Attributes(names, head.weight.detach(), head.bias.detach(), mean, std, groups, places)


def hide_hair(shown: Tensor, names: list[str]) -> None:
    """Say nothing of the colour of hair that is not there, unless a beard has it."""
    bald = (shown[:, names.index("bald")] > 0) & (shown[:, names.index("beard")] == 0)
    start = names.index("black-hair")
    shown[bald, start : start + len(FACTORS["hair_colour"])] = 0.0
