"""What a method says of itself: filled by flags over a preset over defaults, and checked."""

from dataclasses import replace
from typing import Any

import pytest
from pydantic import Field, create_model
from retouch_tint.spec import SPEC, TintParams

from retouch.apps.cli_fields import request_options
from retouch.errors import ParamsError, PluginError
from retouch.params import Params
from retouch.spec import RESERVED


def test_what_is_given_wins_over_the_preset_and_that_over_the_defaults() -> None:
    assert SPEC.fill({}) == TintParams()
    assert SPEC.fill({}, preset="laptop") == TintParams(steps=3, red=0.25)
    assert SPEC.fill({"steps": 5}, preset="laptop") == TintParams(steps=5, red=0.25)


def test_an_unknown_preset_is_answered_with_the_near_one_or_all() -> None:
    with pytest.raises(ParamsError, match="tint has no preset 'laptp'") as caught:
        SPEC.fill({}, preset="laptp")
    assert caught.value.hint == "did you mean laptop?"
    with pytest.raises(ParamsError) as caught:
        SPEC.fill({}, preset="zzz")
    assert caught.value.hint == "presets: paper, laptop"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"edit": "retouch_tint.edit"}, "names its edit function as 'retouch_tint.edit'"),
        ({"name": "no name"}, "method 'no name' names"),
        ({"params": dict}, "parameters that are no retouch.params.Params"),
        (
            {"presets": {"laptop": {"stepz": 1}}},
            "preset 'laptop' of 'tint' sets 'stepz', which is no parameter",
        ),
    ],
    ids=str,
)
def test_a_description_that_does_not_hold_together_is_refused(change: Any, complaint: str) -> None:
    SPEC.check()
    with pytest.raises(PluginError, match=complaint):
        replace(SPEC, **change).check()


@pytest.mark.parametrize("name", ["seed", "device", "from", "force", "out"])
def test_a_parameter_may_not_take_the_name_of_what_every_edit_has(name: str) -> None:
    field: Any = (int, Field(default=1, description="It."))
    taken = create_model("Taken", __base__=Params, **{name: field})
    with pytest.raises(PluginError, match=f"has a parameter '{name}'"):
        replace(SPEC, params=taken, presets={}).check()


def test_the_reserved_names_are_those_of_the_options_that_every_edit_has() -> None:
    assert {option.name for option in request_options()} <= RESERVED


def test_a_function_is_loaded_when_asked_for_and_a_missing_one_is_the_methods_fault() -> None:
    assert callable(SPEC.load(SPEC.edit))
    for place in ("retouch_tint.edit:missing", "retouch_tint.missing:edit"):
        with pytest.raises(PluginError, match=f"{place} cannot be loaded"):
            SPEC.load(place)
