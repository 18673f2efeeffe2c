"""Where a face's identity is moved to, so that it shows something else: by a learnt direction, or by words.

Identities are unit vectors; every way ends on one again.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from retouch.models.noise_path import Level, Schedule, extrapolate

Clean = Callable[[Float[Tensor, "f 3 h w"], Level, Float[Tensor, "f d"]], Float[Tensor, "f 3 h w"]]
"""What the network sees in noisy pictures when faces have these identities."""
Vectors = Callable[[Float[Tensor, "f 3 h w"]], Float[Tensor, "f d"]]
NO_CHANGE: Final = 1e-7
"""Added to the length of a change before dividing by it, as published: pictures that are equal have none."""


class WordLosses(NamedTuple):
    """What an identity is pulled by when words say what to show."""

    total: Float[Tensor, ""]
    words: Float[Tensor, ""]
    identity: Float[Tensor, ""]
    pixels: Float[Tensor, ""]


@final
@dataclass(eq=False)
class WordSearch:
    """The search for the identity that shows what words say (section 3.4 of the paper).

    The face is decoded once at a few noise levels. At each of them one step down with the identity sought
    is compared with the one that was made: the change in CLIP's space should go where the change of the
    words goes.

    Args:
        start: the identity as it is, of unit length.
        chain: the pictures at each level, noisiest first, and the clean one.
        schedule: their levels.
        clean: what the network sees.
        seen: CLIP's unit vectors of pictures.
        direction: from the words for what is shown to those for what is to be, of unit length.
        mask: where pixels should stay.
        weights: of words, identity and pixels.
        rate: of Adam.
    """

    start: Float[Tensor, "1 d"]
    chain: Float[Tensor, "levels_and_clean 3 h w"]
    schedule: Schedule
    clean: Clean
    seen: Vectors
    direction: Float[Tensor, " e"]
    mask: Float[Tensor, "1 1 h w"]
    weights: tuple[float, float, float] = (3.0, 5.0, 5.0)
    rate: float = 0.002
    found: nn.Parameter = field(init=False)

    def __post_init__(self) -> None:
        """Begin at the start."""
        self.found = nn.Parameter(self.start.clone())

    def one_step_each(self) -> Float[Tensor, "levels 3 h w"]:
        """Return each picture of the chain one step down, with the identity as it is now."""
        identity, here = normalize(self.found, dim=1), self.chain[:-1]
        rows = zip(here[:, None], self.schedule.down(), strict=True)
        return torch.cat([extrapolate(self.clean(x, hi, identity), x, hi, lo) for x, (hi, lo) in rows])

    def losses(self) -> WordLosses:
        """Return the losses of the identity as it is now."""
        changed, was = self.one_step_each(), self.chain[1:]
        change = self.seen(changed) - self.seen(was)
        change = change / (change.norm(dim=1, keepdim=True) + NO_CHANGE)
        words = -((1 + (change @ self.direction).mean()) / 2).log()
        identity = 1 - (normalize(self.found, dim=1) * self.start).sum()
        pixels = (self.mask * (was - changed)).abs().mean()
        parts = (words, identity, pixels)
        total = torch.stack([weight * part for weight, part in zip(self.weights, parts, strict=True)]).sum()
        return WordLosses(total, *parts)

    def descend(self, iterations: int) -> Iterator[WordLosses]:
        """Take steps of Adam and yield the losses before each; `found` is then the identity after it."""
        adam = torch.optim.Adam([self.found], lr=self.rate)
        for _ in range(iterations):
            adam.zero_grad()
            with torch.enable_grad():
                losses = self.losses()
            torch.autograd.backward(losses.total)
            adam.step()
            yield losses

    def applied(self, identity: Float[Tensor, "f d"], scale: float = 1.0) -> Float[Tensor, "f d"]:
        """Return other identities moved as far as the start was."""
        return normalize(identity + scale * (self.found.detach() - self.start), dim=1)


def text_direction(shown: Float[Tensor, "n e"], wanted: Float[Tensor, "n e"]) -> Float[Tensor, " e"]:
    """Return the mean way from sentences for what is shown to those for what is wanted, of unit length."""
    return normalize((wanted - shown).mean(0), dim=0)
