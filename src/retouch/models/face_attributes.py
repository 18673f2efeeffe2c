"""What can be read off an identity and changed in it: a linear classifier, and directions from files."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, cast, final

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from retouch.errors import InputError, ModelMismatch, ParamsError
from retouch.fields import near
from retouch.models.refs import check_weights, read_config

KIND: Final = "FaceAttributes"


@final
@dataclass(frozen=True, eq=False)
class Attributes:
    """A linear classifier of standardised identities: a row of weights for each attribute.

    Attributes of one group exclude each other, such as the colours of hair; `places` are where identities
    lie that show them, all else being equal. The authors' classifier has neither.
    """

    names: Sequence[str]
    weight: Float[Tensor, "attributes d"]
    bias: Float[Tensor, " attributes"]
    mean: Float[Tensor, " d"]
    std: Float[Tensor, " d"]
    groups: Sequence[str] = ()
    places: Float[Tensor, "attributes d"] | None = None

    @classmethod
    def from_folder(cls, folder: Path, ref: str) -> Self:
        """Load them.

        Raises:
            ModelMismatch: the folder holds something else, or is damaged.
        """
        names, groups = read_names(folder, ref)
        check_weights(folder, ref)
        try:
            tensors = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
            found = cls(names, groups=groups, **cast("dict[str, Any]", tensors))
            found.scores(found.mean[None])
            if len(found.weight) != len(names):
                raise ValueError(f"{len(found.weight)} rows for {len(names)} names")
        except (TypeError, ValueError, RuntimeError) as problem:
            raise ModelMismatch(
                f"the attributes of {ref} do not fit: {problem}", hint="get it again"
            ) from None
        return found

    def save(self, folder: Path) -> None:
        """Write them, for `from_folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        parts = {"weight": self.weight, "bias": self.bias, "mean": self.mean, "std": self.std}
        parts |= {} if self.places is None else {"places": self.places}
        save_file({name: value.contiguous() for name, value in parts.items()}, folder / "model.safetensors")
        config = {"_class_name": KIND, "names": list(self.names), "groups": list(self.groups)}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")

    def standardised(self, identity: Float[Tensor, "f d"]) -> Float[Tensor, "f d"]:
        """Return identities less the mean over their deviation."""
        return (identity - self.mean) / self.std

    def scores(self, identity: Float[Tensor, "f d"]) -> Float[Tensor, "f attributes"]:
        """Return how clearly faces show each attribute; above 0 they do."""
        return self.standardised(identity) @ self.weight.T + self.bias

    def loss(self, identity: Float[Tensor, "f d"], shown: Float[Tensor, "f attributes"]) -> Float[Tensor, ""]:
        """Return what the classifier is trained by: cross-entropy against what is shown, 0 or 1."""
        return binary_cross_entropy_with_logits(self.scores(identity), shown)

    def number(self, name: str) -> int:
        """Return which attribute has a name.

        Raises:
            ParamsError: none has; the hint has the near ones.
        """
        check_name(name, self.names)
        return list(self.names).index(name)

    def moved(self, identity: Float[Tensor, "1 d"], strengths: Mapping[str, float]) -> Float[Tensor, "1 d"]:
        """Return an identity moved so that it shows attributes, or, where the strength is negative, does not.

        Strength 1 goes the whole way from what the face shows of that group now. A model that does not know
        groups is moved as the authors do.
        """
        if self.places is None:
            return self.steered(identity, strengths)
        moved = identity.clone()
        for name, strength in strengths.items():
            here, there = self._way(identity, name, back=strength < 0)
            moved += abs(strength) * (self.places[there] - self.places[here])
        return normalize(moved, dim=1)

    def _way(self, identity: Float[Tensor, "1 d"], name: str, *, back: bool) -> tuple[int, int]:
        """Return the attributes that a change leads from and to, equal where there is none to make."""
        wanted, scores = self.number(name), self.scores(identity)[0]
        group = [n for n, of in enumerate(self.groups) if of == self.groups[wanted]]
        shown, *rivals = sorted(group, key=lambda n: -float(scores[n]))
        if not back:
            return shown, wanted
        return wanted, rivals[0] if shown == wanted and rivals else wanted

    def steered(
        self, identity: Float[Tensor, "f d"], strengths: Mapping[str, float], *, standardise: bool = True
    ) -> Float[Tensor, "f d"]:
        """Return identities moved along the rows of some attributes, each strength in deviations per number.

        The authors' formula; in their code identities are always standardised.
        """
        scale = self.weight.shape[1] ** 0.5
        rows = {name: self.weight[self.number(name)] for name in strengths}
        if not standardise:
            moved = identity + sum(strengths[name] * scale * row for name, row in rows.items())
            return normalize(moved, dim=1)
        along = sum(strengths[name] * scale * normalize(row, dim=0) for name, row in rows.items())
        return normalize((self.standardised(identity) + along) * self.std + self.mean, dim=1)


def read_names(folder: Path, ref: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of a model's attributes and the groups that they belong to; no weights are read.

    Raises:
        ModelMismatch: the folder holds something else, or is damaged.
    """
    config = read_config(folder / "config.json", ref)
    names, groups = config.get("names"), config.get("groups")
    if config.get("_class_name") != KIND or not isinstance(names, list) or not isinstance(groups, list):
        raise ModelMismatch(f"{folder} holds no attributes of faces", hint="get the model again")
    return tuple(map(str, names)), tuple(map(str, groups))


def check_name(name: str, names: Sequence[str]) -> None:
    """Raise ParamsError where no attribute has a name."""
    if name not in names:
        raise ParamsError(
            f"the model knows no attribute {name!r}",
            hint=near(name, names) or "list them with: retouch face attributes",
        )


DIRECTION: Final = "direction"


def save_direction(path: Path, direction: Float[Tensor, "1 d"], about: Mapping[str, str]) -> Path:
    """Write a direction, for `read_direction`, with what is known about it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({DIRECTION: direction.contiguous()}, path, metadata={"kind": DIRECTION, **about})
    return path


def read_direction(path: Path, features: int | None = None) -> Float[Tensor, "1 d"]:
    """Return a direction of identities, of so many features if they are said.

    Raises:
        InputError: the file holds none, or one of identities of another model.
    """
    about_direction(path)
    direction = load_file(path)[DIRECTION].float()
    if features is not None and direction.shape != (1, features):
        raise InputError(
            f"{path.name} is for identities of {direction.numel()} features; this model's have {features}",
            hint="make one with the model that it is for: retouch face train-direction --model",
        )
    return direction


def about_direction(path: Path) -> dict[str, str]:
    """Return what a direction's file says about it.

    Raises:
        InputError: the file is not there, or holds no direction.
    """
    try:
        with safe_open(path, "pt") as file:
            about = dict(file.metadata() or {})
            if about.pop("kind", "") == DIRECTION and DIRECTION in file.keys():  # noqa: SIM118 - not a dict
                return about
    except (OSError, SafetensorError):
        pass
    raise InputError(f"{path} holds no direction of faces", hint="make one: retouch face train-direction")
