"""Where a face's identity is moved to, so that it shows something else: by what is known, or by words.

Identities are unit vectors; every way ends on one again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from retouch.artifacts import artifact
from retouch.errors import InputError, NoFace, ParamsError
from retouch.media.pictures import read_picture
from retouch.methods.face.align import NOT_FACE, Crops, ReaderFinder, vector_of
from retouch.methods.face.spec import FaceParams
from retouch.models.face import CLEAN, follow
from retouch.models.face_attributes import read_direction
from retouch.models.face_model import FaceModel
from retouch.models.face_parts import OUTSIDE_TRAINING, YuNetFinder
from retouch.models.face_words import EncodedWords
from retouch.models.noise_path import Level, Schedule, extrapolate
from retouch.run import Run
from retouch.video import Video

Clean = Callable[[Float[Tensor, "f 3 h w"], Level, Float[Tensor, "f d"]], Float[Tensor, "f 3 h w"]]
"""What the network sees in noisy pictures when faces have these identities."""
Vectors = Callable[[Float[Tensor, "f 3 h w"]], Float[Tensor, "f e"]]
NO_CHANGE: Final = 1e-7
"""Added to the length of a change before dividing by it, as published: pictures that are equal have none."""
SAME_WORDS: Final = 1e-4
"""The least distance of sentences that say different things."""
WORD_LEVELS: Final = 5
"""Noise levels of the search, as published."""
NOISIEST: Final = 3
"""Levels of those that are enough: at the others the pictures show already what they will."""
PATIENCE: Final = 10
"""Steps without a gain after which the search ends."""
LEAST_GAIN: Final = 1e-3
LOOKS: Final = 4
"""About how many frames of a clip are looked at for who it shows."""


def steer(
    target: Float[Tensor, "1 d"], clip: Video, model: FaceModel, params: FaceParams
) -> Float[Tensor, "f d"]:
    """Return who each frame is to show: line 4."""
    if not params.attribute:
        return target.expand(len(clip), -1)
    if model.attributes is None:
        raise ParamsError("the model knows no attributes", hint="give another identity")
    move = model.attributes.steered if params.faithful else model.attributes.moved
    numbers = range(clip.origin.first, clip.origin.first + len(clip))
    return torch.cat([move(target, params.strengths(number)) for number in numbers])


def towards(who: Float[Tensor, "1 d"], model: FaceModel, params: FaceParams) -> Float[Tensor, "1 d"]:
    """Return an identity moved to another person's, and along a direction from a file."""
    moved = torch.zeros_like(who)
    if params.identity:
        moved = moved + vector_in(params, model) - who
    if params.direction:
        moved = moved + read_direction(params.direction, who.shape[1])
    return normalize(who + params.strength * moved, dim=1) if moved.any() else who


def vector_in(params: FaceParams, model: FaceModel) -> Float[Tensor, "1 d"]:
    """Return who the picture of another person shows.

    Raises:
        NoFace: nobody.
    """
    assert params.identity
    picture = read_picture(params.identity).transpose(2, 0, 1)
    finder = YuNetFinder(params.finder) if params.finder else ReaderFinder(model)
    found = finder.find(picture)
    if not found:
        raise NoFace(
            f"no face was found in {params.identity.name}", hint="give an upright picture of one face"
        )
    return vector_of(picture, found[0], model)


def learn_direction(
    showing: Sequence[Video], without: Sequence[Video], model: FaceModel, run: Run
) -> tuple[Float[Tensor, "1 d"], float]:
    """Return the way from faces without something to those that show it, and how well these are told apart.

    Raises:
        NoFace: a clip shows nobody.
        InputError: there are fewer than two on a side.
    """
    sides = [torch.cat([who_in(clip, model, run) for clip in clips]) for clips in (without, showing)]
    if min(map(len, sides)) < 2:
        raise InputError("a direction is learnt from two faces with and two without", hint="give more files")
    return sides[1].mean(0, keepdim=True) - sides[0].mean(0, keepdim=True), told_apart(*sides)


def told_apart(without: Float[Tensor, "n d"], showing: Float[Tensor, "m d"]) -> float:
    """Return the share of faces nearer to the mean of their own side than to the other's, left out of it."""
    right = []
    for side, other in ((without, showing.mean(0)), (showing, without.mean(0))):
        own = (side.sum(0) - side) / (len(side) - 1)
        right.append((side - own).norm(dim=1) < (side - other).norm(dim=1))
    return float(torch.cat(right).float().mean())


def who_in(clip: Video, model: FaceModel, run: Run) -> Float[Tensor, "1 d"]:
    """Return who a clip shows: the mean over a few of its frames.

    Raises:
        NoFace: nobody.
    """
    looked_at = range(0, len(clip), max(1, len(clip) // LOOKS))
    finder, rows = ReaderFinder(model), []
    for step in run.steps("look at faces", [clip.frames[n] for n in looked_at]):
        rows += [vector_of(step.item, face, model) for face in finder.find(step.item)[:1]]
    if not rows:
        raise NoFace(f"no face was found in {clip.named_frames(looked_at)}", hint="leave the file out")
    return normalize(torch.cat(rows).mean(0, keepdim=True), dim=1)


class WordLosses(NamedTuple):
    """What an identity is pulled by when words say what to show."""

    total: Float[Tensor, ""]
    words: Float[Tensor, ""]
    identity: Float[Tensor, ""]
    pixels: Float[Tensor, ""]


@artifact("face_words", version=1)
def moved_by_words(
    noise: Crops,
    who: Float[Tensor, "1 d"],
    motion: Float[Tensor, "f motion"],
    parts: Int[Tensor, "f side side"],
    model: FaceModel,
    schedule: Schedule,
    prompts: tuple[str, str],
    *,
    iterations: int,
    faithful: bool,
    run: Run,
) -> Float[Tensor, "1 d"]:
    """Return how far an identity moves to show what words say (section 3.4 of the paper).

    Args:
        noise: some of the clip's faces as noise.
        who: the identity that they were told.
        motion: how they move.
        parts: what their pixels show.
        model: the face model, with words.
        schedule: noise levels of the search.
        prompts: what is shown, and what is to be.
        iterations: the most steps of the search.
        faithful: compare noisy pictures, as published, and end only after all steps.
        run: where progress is told.
    """
    assert model.words is not None
    texts = model.words.texts(list(prompts))
    shown, wanted = texts[:1], texts[1:]
    if (wanted - shown).norm() < SAME_WORDS:
        return torch.zeros_like(who)
    direction = text_direction(shown, wanted)
    if isinstance(model.words, EncodedWords) and not faithful:
        known = IdentitySearch(who, model.words.network.faces, direction)
        return run_search(known, iterations, patience=PATIENCE, run=run)
    net, motion = model.diffusion, motion.to(model.device)

    def clean(x: Crops, level: Level, identity: Float[Tensor, "1 d"]) -> Crops:
        return net.clean(x, level, net.code(identity.expand(len(x), -1), motion))

    start, down = who.to(model.device), schedule.down()
    states = [noise.to(model.device)]
    states += [x for x, _ in follow(states[0], down, lambda x, level: clean(x, level, start))]
    how: Mapping[str, Any] = {} if faithful else GENTLE
    steps = down if faithful else [(hi, CLEAN) for hi, _ in down[:NOISIEST]]
    mask = 1 - model.mask(parts, *OUTSIDE_TRAINING) if faithful else model.mask(parts, *NOT_FACE)
    search = WordSearch(
        start, torch.stack(states[: len(steps)]), steps, clean, model.words.pixels, direction,
        mask.to(model.device), **how,
    )  # fmt: skip
    return run_search(search, iterations, patience=iterations if faithful else PATIENCE, run=run)


GENTLE: Final[Mapping[str, Any]] = {"weights": (3.0, 0.2, 0.5), "rate": 0.02, "least": 0.5}
"""What the search goes by when it may end early: longer steps, and less of a pull back to the start."""


@final
@dataclass(eq=False)
class WordSearch:
    """The search for the identity that shows what words say.

    Faces are decoded once at a few noise levels. One step from each of them with the identity sought is
    compared with the one that its own made: the change in CLIP's space should go where that of the words
    goes.

    Args:
        start: the identity as it is, of unit length.
        noisy: the pictures at each level, noisiest first.
        steps: from each level to where its pictures are compared.
        clean: what the network sees.
        seen: CLIP's unit vectors of pictures.
        direction: from the words for what is shown to those for what is to be, of unit length.
        mask: where pixels should stay.
        weights: of words, identity and pixels.
        rate: of Adam.
        least: a change of vectors shorter than this counts by its length; as published each counts whole.
    """

    start: Float[Tensor, "1 d"]
    noisy: Float[Tensor, "levels f 3 h w"]
    steps: Sequence[tuple[Level, Level]]
    clean: Clean
    seen: Vectors
    direction: Float[Tensor, " e"]
    mask: Float[Tensor, "f 1 h w"]
    weights: tuple[float, float, float] = (3.0, 5.0, 5.0)
    rate: float = 0.002
    least: float = 0.0
    found: nn.Parameter = field(init=False)
    was: Float[Tensor, "levels f 3 h w"] = field(init=False)

    def __post_init__(self) -> None:
        """Begin at the start."""
        self.found = nn.Parameter(self.start.clone())
        with torch.no_grad():
            self.was = self.one_step_each()

    def one_step_each(self) -> Float[Tensor, "levels f 3 h w"]:
        """Return the pictures of each level one step on, with the identity as it is now."""
        identity = normalize(self.found, dim=1)
        rows = zip(self.noisy, self.steps, strict=True)
        return torch.stack([extrapolate(self.clean(x, hi, identity), x, hi, lo) for x, (hi, lo) in rows])

    def losses(self) -> WordLosses:
        """Return the losses of the identity as it is now."""
        changed = self.one_step_each()
        change = self.seen(changed.flatten(0, 1)) - self.seen(self.was.flatten(0, 1))
        words = word_loss(change, self.direction, self.least)
        identity = 1 - (normalize(self.found, dim=1) * self.start).sum()
        pixels = (self.mask * (self.was - changed)).abs().mean()
        parts = (words, identity, pixels)
        total = torch.stack([weight * part for weight, part in zip(self.weights, parts, strict=True)]).sum()
        return WordLosses(total, *parts)


@final
@dataclass(eq=False)
class IdentitySearch:
    """The same search where words are compared with identities themselves: no picture is drawn for it."""

    start: Float[Tensor, "1 d"]
    seen: Callable[[Float[Tensor, "f d"]], Float[Tensor, "f e"]]
    direction: Float[Tensor, " e"]
    found: nn.Parameter = field(init=False)
    rate: float = 0.02

    def __post_init__(self) -> None:
        """Begin at the start."""
        self.found = nn.Parameter(self.start.clone())

    def losses(self) -> WordLosses:
        """Return the losses of the identity as it is now."""
        now = normalize(self.found, dim=1)
        words = word_loss(self.seen(now) - self.seen(self.start), self.direction, GENTLE["least"])
        identity = 1 - (now * self.start).sum()
        return WordLosses(3 * words + 0.2 * identity, words, identity, torch.zeros(()))


def word_loss(
    change: Float[Tensor, "n e"], direction: Float[Tensor, " e"], least: float
) -> Float[Tensor, ""]:
    """Return how far changes are from going where words go; those below `least` count by their length."""
    change = change / (change.norm(dim=1, keepdim=True) + NO_CHANGE).clamp(min=least)
    return -((1 + (change @ direction).mean()) / 2).log()


def descend(search: WordSearch | IdentitySearch, iterations: int) -> Iterator[WordLosses]:
    """Take steps of Adam and yield the losses before each; `found` is then the identity after it."""
    adam = torch.optim.Adam([search.found], lr=search.rate)
    for _ in range(iterations):
        adam.zero_grad()
        with torch.enable_grad():
            losses = search.losses()
        torch.autograd.backward(losses.total)
        adam.step()
        yield losses


def run_search(
    search: WordSearch | IdentitySearch, iterations: int, *, patience: int, run: Run
) -> Float[Tensor, "1 d"]:
    """Return how far the identity moves; the search ends when so many steps have gained nothing."""
    best, since, descent = float("inf"), 0, descend(search, iterations)
    for _ in run.steps("search the words", range(iterations)):
        if since < patience:
            loss = float(next(descent).total.detach())
            best, since = (loss, 0) if loss < best - LEAST_GAIN else (best, since + 1)
    return search.found.detach().cpu() - search.start.cpu()


def applied(
    identity: Float[Tensor, "f d"], moved: Float[Tensor, "1 d"], strength: float = 1.0
) -> Float[Tensor, "f d"]:
    """Return identities moved as far as another one was; where that is nowhere, as they are."""
    return normalize(identity + strength * moved, dim=1) if moved.any() else identity


def text_direction(shown: Float[Tensor, "n e"], wanted: Float[Tensor, "n e"]) -> Float[Tensor, " e"]:
    """Return the mean way from sentences for what is shown to those for what is wanted, of unit length."""
    return normalize((wanted - shown).mean(0), dim=0)
