"""Parameters: frozen, closed, and the same after a trip through JSON."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from retouch_tint.spec import TintParams

from retouch import registry
from retouch.fields import Option, describe
from retouch.params import Params, from_folder, named_paths

SHARED_BY_DESIGN = {"strength"}
"""Names whose range a method may narrow."""


def values_of(option: Option) -> st.SearchStrategy[object]:
    low, high = option.low, option.high
    strategies: dict[str, st.SearchStrategy[object]] = {
        "int": st.integers(None if low is None else int(low), None if high is None else int(high)),
        "float": st.floats(low, high, allow_nan=False, allow_infinity=False).filter(lambda x: x != low),
        "flag": st.booleans(),
        "text": st.text(min_size=1, max_size=20),
        "path": st.sampled_from(["a.png", "/tmp/ä b.mp4"]),
        "choice": st.sampled_from(option.choices or ("",)),
    }
    if option.kind == "list":
        item = strategies["choice" if option.choices else option.item or "text"]
        return st.lists(item, min_size=1, max_size=3)
    return strategies[option.kind]


def filled(params: type[BaseModel]) -> st.SearchStrategy[dict[str, object]]:
    options = describe(params)
    return st.fixed_dictionaries({}, optional={option.name: values_of(option) for option in options})


@settings(max_examples=60)
@given(filled(TintParams))
def test_parameters_are_equal_after_a_trip_through_json(values: dict[str, object]) -> None:
    params = TintParams.model_validate(values)
    assert TintParams.model_validate_json(params.model_dump_json()) == params
    assert TintParams.model_validate(json.loads(json.dumps(params.model_dump(mode="json")))) == params


def test_parameters_are_frozen_and_closed() -> None:
    params = TintParams()
    with pytest.raises(ValidationError):
        params.steps = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        TintParams.model_validate({"step": 3})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none_are_refused(value: float) -> None:
    with pytest.raises(ValidationError):
        TintParams(red=value)


def test_a_name_that_two_methods_use_means_one_thing() -> None:
    known: dict[str, tuple[str, Option]] = {}
    for spec in map(registry.method, (*registry.BUILT_IN, "tint")):
        assert issubclass(spec.params, Params)
        for option in describe(spec.params):
            name, other = known.setdefault(option.name, (spec.name, option))
            where = f"{option.name} in {name} and {spec.name}"
            assert (option.kind, option.item) == (other.kind, other.item), where
            if option.name not in SHARED_BY_DESIGN:
                assert (option.low, option.high) == (other.low, other.high), where


def test_paths_that_parameters_name_are_found_and_meant_from_a_folder() -> None:
    spec, here = registry.method("paint"), Path("/here")
    given = {"keyframe": ["4=a=b.png"], "mask": "m.mp4", "drawn": ["car@4=/d.png"], "layer": "x=y", "fade": 2}
    placed = from_folder(spec.params, given, here)
    assert placed == {**given, "keyframe": ["4=/here/a=b.png"], "mask": "/here/m.mp4"}
    named = [("keyframe", "/here/a=b.png"), ("mask", "/here/m.mp4"), ("drawn", "/d.png")]
    assert sorted((name, str(path)) for name, path in named_paths(spec.fill(placed))) == sorted(named)
    words = registry.method("frame_by_frame").params
    models = {"model": "./m", "control": "sd15-canny", "prompt": "./p"}
    assert from_folder(words, models, here) == {**models, "model": "/here/m"}
    editing = registry.method("stablevideo").params
    assert from_folder(editing, {"editor": "./e"}, here) == {"editor": "/here/e"}
