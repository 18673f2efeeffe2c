from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from retouch.errors import ModelMismatch, ParamsError
from retouch.models.face_attributes import Attributes

NAMES, GROUPS = ("no-glasses", "glasses", "black-hair", "red-hair", "blond-hair"), ("g", "g", "h", "h", "h")


def attributes() -> Attributes:
    rows = torch.eye(8)[:5]
    return Attributes(NAMES, 4 * rows, torch.zeros(5), torch.zeros(8), torch.ones(8), GROUPS, rows)


def who() -> torch.Tensor:
    """A face with black hair and no glasses."""
    return normalize(torch.tensor([[1.0, 0, 1, 0, 0, 2, 0, 0]]), dim=1)


def test_a_change_leads_from_what_is_shown_to_what_is_asked_for_and_leaves_other_groups() -> None:
    moved = attributes().moved(who(), {"red-hair": 1.0})
    scores = attributes().scores(moved)[0]
    assert scores[3] > scores[2]
    assert scores[0] > scores[1]
    assert moved.norm() == pytest.approx(1)


def test_what_is_shown_already_is_not_shown_more() -> None:
    assert torch.allclose(attributes().moved(who(), {"black-hair": 1.0}), who())


def test_a_negative_strength_takes_away_only_what_is_there() -> None:
    assert torch.allclose(attributes().moved(who(), {"glasses": -1.0}), who())
    taken = attributes().scores(attributes().moved(who(), {"black-hair": -1.0}))[0]
    assert taken[2] < taken[3:].max()


def test_they_survive_a_file(tmp_path: Path) -> None:
    attributes().save(tmp_path / "attributes")
    read = Attributes.from_folder(tmp_path / "attributes", "mine")
    assert torch.equal(read.moved(who(), {"glasses": 0.5}), attributes().moved(who(), {"glasses": 0.5}))


def test_an_unknown_name_has_a_near_one_in_its_hint() -> None:
    with pytest.raises(ParamsError) as caught:
        attributes().moved(who(), {"blonde-hair": 1.0})
    assert "blond-hair" in caught.value.hint


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "FaceDiffusion"}')
    with pytest.raises(ModelMismatch, match="holds no attributes"):
        Attributes.from_folder(tmp_path, "mine")
