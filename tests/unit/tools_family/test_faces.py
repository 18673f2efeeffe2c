"""The recipes of the face model, on a few faces and a few steps."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from retouch.world import LANDMARKS, PARTS

RECIPES = Path(__file__).parents[3] / "tools" / "family"
FEW = 24
HALF_A_PIXEL = 0.5 / 64


class Recipes:
    """The recipes' modules; they are scripts that import each other by name."""

    def __getattr__(self, name: str) -> ModuleType:
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def recipes() -> Iterator[Recipes]:
    sys.path.insert(0, str(RECIPES))
    yield Recipes()
    sys.path.remove(str(RECIPES))


@pytest.fixture(scope="module")
def work(recipes: Recipes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which the identity encoder has been trained for a few steps."""
    folder = tmp_path_factory.mktemp("family")
    fit = recipes.train_face_identity.train(folder, images=2 * FEW * 16, count=FEW, tested=4)
    assert fit.losses[-1] < 0.9 * fit.losses[0]
    return folder


def test_drawing_goes_on_where_it_stopped(recipes: Recipes, tmp_path: Path) -> None:
    first = np.array(recipes.faces.prepared(tmp_path, 2).pixels)
    more = recipes.faces.prepared(tmp_path, 4)
    assert np.array_equal(more.pixels[:2], first)
    pixels, parts, points = recipes.faces.draw(recipes.faces.HELD_OUT + 3)
    assert np.array_equal(more.pixels[3], pixels)
    assert np.array_equal(more.parts[3], parts)
    assert np.array_equal(more.points[3], points)


def test_points_and_parts_belong_to_the_pixels(recipes: Recipes) -> None:
    drawn = recipes.faces.held_out(6)
    nose = PARTS.index("nose")
    for person in range(6):
        for moment in range(2):
            x, y = (64 * drawn.points[person, moment, LANDMARKS.index("nose tip")]).astype(int)
            assert nose in drawn.parts[person, moment, y - 1 : y + 2, x - 1 : x + 2]
    mirrored = drawn.points[:, :, recipes.faces.MIRRORED] * [-1, 1] + [1, 0]
    left, right = (LANDMARKS.index(f"{side} eye") for side in ("left", "right"))
    assert (mirrored[:, :, left, 0] < mirrored[:, :, right, 0] + HALF_A_PIXEL).all()


def test_a_person_has_the_same_looks_at_both_moments_and_another_place(recipes: Recipes) -> None:
    one, other = recipes.faces.person(9, 0), recipes.faces.person(9, 1)
    assert one.identity == other.identity
    assert one.motion != other.motion


@pytest.mark.slow
def test_the_reader_learns(recipes: Recipes, tmp_path: Path) -> None:
    fit = recipes.train_face_reader.train(tmp_path, images=FEW * 60, count=FEW, tested=2)
    assert np.mean(fit.losses[-4:]) < 0.9 * np.mean(fit.losses[:4])
    figures = recipes.train_face_reader.figures_of(fit.network, recipes.faces.held_out(2))
    assert 0 <= figures["parts_right"] <= 1


@pytest.mark.slow
def test_the_network_learns_and_a_stopped_training_goes_on(recipes: Recipes, work: Path) -> None:
    judged = recipes.faces.held_out(3)
    vectors = recipes.face_network.identities(work, judged, "held-out")
    fit = recipes.train_face_unet.train(work, images=16 * 2, count=FEW, tested=2)
    early, first = recipes.train_face_unet.swap_probe(fit.network, judged, vectors), list(fit.losses)
    again = recipes.train_face_unet.train(work, images=16 * 16, count=FEW, tested=2)
    assert again.step == 16
    assert again.losses[:2] == pytest.approx(first, rel=1e-5)
    late = recipes.train_face_unet.swap_probe(again.network, judged, vectors)
    assert late["own_900"] < early["own_900"]


def test_the_folded_network_takes_vectors_and_points_as_they_are(recipes: Recipes) -> None:
    torch.manual_seed(0)
    network = recipes.face_network.new_network()
    vectors = torch.nn.functional.normalize(torch.randn(3, 64), dim=1)
    points = torch.rand(3, len(LANDMARKS), 2)
    with torch.no_grad():
        trained = network.code(recipes.face_network.GAIN * vectors, recipes.face_network.motion_of(points))
        plain = points[:, recipes.face_network.MOTION].flatten(1)
        folded = recipes.face_network.folded(network).code(vectors, plain)
    assert torch.allclose(trained, folded, atol=1e-4)


def test_another_persons_vector_is_seen_by_the_probe(recipes: Recipes, work: Path) -> None:
    judged = recipes.faces.held_out(3)
    vectors = recipes.face_network.identities(work, judged, "held-out")
    assert vectors.shape == (3, 2, 2, 64)
    torch.manual_seed(0)
    network = recipes.face_network.new_network()
    torch.nn.init.normal_(network.unet.conv_out.weight, std=0.1)
    figures = recipes.train_face_unet.swap_probe(network, judged, vectors)
    assert figures["swap_600"] != 0
    assert figures["own_600"] > 0


def test_sentences_are_true_of_whom_they_are_about(recipes: Recipes) -> None:
    words, labels = recipes.train_face_words, recipes.faces.held_out(6).labels
    dice = np.random.default_rng(0)
    for number, row in enumerate(labels):
        claims = words.claims_of(row, dice)
        if "hair_colour" not in dict(claims):  # of the bald no colour is true
            assert words.true_of(claims, labels)[number], claims
        known = set(words.vocabulary())
        assert set(words.words_in(words.said(claims, dice))) <= known
    glasses = labels[:, words.FACTOR_NAMES.index("glasses")] == 1
    assert (words.true_of([("glasses", "yes")], labels) == glasses).all()
    assert words.said([("hair", "short"), ("hair_colour", "red")], dice) == "a face with short red hair"
    for seed in range(20):
        told = words.said([("hat", "none")], np.random.default_rng(seed))
        assert "no hat" in told or "without a hat" in told
        assert "with without" not in told


@pytest.mark.slow
def test_words_are_learnt_from_identities(recipes: Recipes, work: Path) -> None:
    fit = recipes.train_face_words.train(work, images=FEW * 40, count=FEW, tested=4)
    assert np.mean(fit.losses[-4:]) < 0.9 * np.mean(fit.losses[:4])
