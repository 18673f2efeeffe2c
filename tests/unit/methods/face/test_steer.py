from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from retouch.errors import InputError
from retouch.methods.face.steer import (
    WordSearch,
    applied,
    descend,
    learn_direction,
    text_direction,
    told_apart,
)
from retouch.models.face import schedule_at
from retouch.models.face_attributes import Attributes
from retouch.models.face_model import FaceModel
from retouch.models.noise_path import Level
from retouch.run import Run
from retouch.world import FaceClip, Portrait


def attributes() -> Attributes:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 8, generator=generator)
    mean, std = 0.1 * torch.randn(8, generator=generator), 0.3 + torch.rand(8, generator=generator)
    return Attributes(("glasses", "beard", "hat"), weight, torch.zeros(3), mean, std)


def faces(count: int = 5) -> torch.Tensor:
    return normalize(torch.randn(count, 8, generator=torch.Generator().manual_seed(1)), dim=1)


def test_a_steered_face_scores_higher_on_what_it_is_steered_to_and_lower_the_other_way() -> None:
    head, who = attributes(), faces()
    before = head.scores(who)[:, 1]
    assert (head.scores(head.steered(who, {"beard": 0.3}))[:, 1] > before).all()
    assert (head.scores(head.steered(who, {"beard": -0.3}))[:, 1] < before).all()
    assert torch.allclose(head.steered(who, {"beard": 0.3}).norm(dim=1), torch.ones(5))


@pytest.mark.parametrize("standardise", [True, False])
def test_strength_zero_changes_nothing(standardise: bool) -> None:
    steered = attributes().steered(faces(), {"hat": 0.0}, standardise=standardise)
    assert torch.allclose(steered, faces(), atol=1e-6)


def test_several_attributes_are_moved_along_together() -> None:
    head, who = attributes(), faces()
    both = head.scores(head.steered(who, {"beard": 0.4, "hat": 0.4}))
    assert (both[:, 1:] > head.scores(who)[:, 1:]).all()


def test_the_classifier_learns_by_its_loss() -> None:
    weight = torch.zeros(1, 8, requires_grad=True)
    head = Attributes(("hat",), weight, torch.zeros(1), torch.zeros(8), torch.ones(8))
    who = faces(40)
    shown = (who[:, :1] > 0).float()
    loss = head.loss(who, shown)
    (slope,) = torch.autograd.grad(loss, weight)
    better = Attributes(("hat",), weight - slope, torch.zeros(1), torch.zeros(8), torch.ones(8))
    assert better.loss(who, shown) < loss
    assert slope.abs().argmax() == 0


def search(least: float = 0.0) -> WordSearch:
    """A network that paints the first three numbers of an identity, and a CLIP that sees mean colours."""
    start, schedule = normalize(torch.tensor([[0.2, 0.5, 0.4, 0.7]]), dim=1), schedule_at([0, 300, 600])

    def clean(x: torch.Tensor, _: Level, who: torch.Tensor) -> torch.Tensor:
        return who[:, :3, None, None].expand(len(x), -1, *x.shape[2:])

    noisy = torch.randn(3, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return WordSearch(
        start, noisy, schedule.down(), clean, lambda pixels: normalize(pixels.mean((2, 3)), dim=1),
        torch.tensor([1.0, 0.0, 0.0]), torch.zeros(2, 1, 4, 4), weights=(3.0, 0.1, 0.0), rate=0.02,
        least=least,
    )  # fmt: skip


@pytest.mark.parametrize("least", [0.0, 0.3])
def test_the_search_turns_the_face_towards_the_words(least: float) -> None:
    task = search(least)
    losses = [found.total.item() for found in descend(task, 60)]
    assert losses[-1] < losses[0]
    assert normalize(task.found, dim=1)[0, 0] > task.start[0, 0] + 0.1
    other = normalize(torch.tensor([[0.1, 0.9, 0.1, 0.3]]), dim=1)
    moved = applied(other, task.found.detach() - task.start)
    assert moved[0, 0] > other[0, 0]
    assert torch.allclose(moved.norm(), torch.tensor(1.0))
    assert torch.allclose(applied(other, task.found.detach() - task.start, 0.0), other)
    assert applied(other, torch.zeros(1, 4)) is other


def test_pictures_that_do_not_change_give_a_loss_and_a_gradient_that_are_numbers() -> None:
    task = search()
    losses = task.losses()
    torch.autograd.backward(losses.total)
    assert torch.isfinite(losses.total)
    assert task.found.grad is not None
    assert torch.isfinite(task.found.grad).all()


@pytest.mark.slow
def test_a_direction_tells_faces_with_something_from_those_without(tmp_path: Path) -> None:
    model, run = FaceModel.from_pretrained("tiny:face"), Run.alone(tmp_path)
    people = [Portrait.sample(seed) for seed in (5, 8)]
    without, showing = (
        [FaceClip.of(who.changed(f"beard={word}"), 1, 64).video for who in people] for word in ("no", "yes")
    )
    direction, _ = learn_direction(showing, without, model, run)
    assert model.attributes is not None
    along = dict(
        zip(
            model.attributes.names, model.attributes.weight / model.attributes.std @ direction[0], strict=True
        )
    )
    assert along["beard"] > 0 > along["no-beard"]
    with pytest.raises(InputError, match="two faces"):
        learn_direction(showing[:1], without, model, run)


def test_faces_are_told_apart_by_the_others_of_their_side() -> None:
    noise = 0.1 * torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    away = torch.tensor([1.0, 0.0, 0.0])
    assert told_apart(noise[0], noise[1] + away) == 1.0
    assert told_apart(noise[0], noise[1]) < 0.9
    mixed = torch.cat([noise[1][:3] + away, noise[1][3:]])
    assert told_apart(noise[0], mixed) < 1.0


def test_words_point_from_what_is_shown_to_what_is_wanted() -> None:
    shown, wanted = torch.tensor([[1.0, 0.0], [1.0, 0.2]]), torch.tensor([[0.0, 1.0], [0.0, 1.2]])
    assert torch.allclose(text_direction(shown, wanted), torch.tensor([-1.0, 1.0]) / 2**0.5)
