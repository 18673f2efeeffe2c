"""Parameters as a vocabulary: what every form can show, and what a fault is told as."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, create_model, model_validator

from retouch.compute import Compute
from retouch.errors import ParamsError, PluginError
from retouch.fields import Option, describe, near, pair, parse, renamed
from retouch.params import Formerly, MaskFile, Params, Prompt, Steps, Strength
from retouch.request import EditRequest


class Every(Params):
    """One parameter of each kind."""

    prompt: Prompt
    steps: Steps = 20
    strength: Strength = 1.0
    mask: MaskFile | None = None
    limit: Annotated[int, Field(ge=1, description="At most so many.")] | None = None
    exact: bool = Field(default=False, description="To the letter.")
    mode: Literal["over", "delta"] = Field(default="over", description="How.")
    bits: Literal[8, 10] = Field(default=8, description="Per channel.")
    words: tuple[str, ...] = Field(default=(), description="Which.")
    pictures: tuple[Path, ...] = Field(default=(), description="Painted frames.")

    @model_validator(mode="after")
    def _fits(self) -> "Every":
        if self.exact and self.steps > 100:
            raise ValueError("exact takes at most 100 steps")
        return self


def options() -> dict[str, Option]:
    return {option.name: option for option in describe(Every)}


def test_every_parameter_is_described_by_kind_bounds_and_default() -> None:
    found = options()
    assert list(found) == list(Every.model_fields)
    assert [option.kind for option in found.values()] == [
        "text", "int", "float", "path", "int", "flag", "choice", "choice", "list", "list",
    ]  # fmt: skip
    assert (found["prompt"].required, found["steps"].required) == (True, False)
    assert (found["steps"].bounds, found["steps"].default) == ("1 to 1000", 20)
    assert (found["bits"].choices, found["mode"].choices) == (("8", "10"), ("over", "delta"))
    assert (found["words"].item, found["pictures"].item) == ("text", "path")


def test_a_shared_parameter_made_optional_keeps_its_words_and_bounds() -> None:
    found = options()
    assert found["mask"].description.startswith("Mask that says where to edit")
    assert (found["limit"].description, found["limit"].bounds) == ("At most so many.", "at least 1")


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ({"steps": 0}, "steps is 0; it must be greater than or equal to 1", "Denoising steps."),
        ({"steps": "many"}, "steps is 'many'; it must be a valid integer", "Denoising steps."),
        ({"strength": 0}, "strength is 0; it must be greater than 0", "How far back"),
        ({"mode": "under"}, "mode is 'under'; it must be 'over' or 'delta'", "How."),
        ({"bits": 9}, "bits is 9; it must be 8 or 10", "Per channel."),
        ({"prompt": ""}, "prompt is ''; string should have at least 1 character", "What the edited clip"),
        ({"step": 3}, "there is no parameter 'step'", "did you mean steps?"),
        ({"zzzz": 3}, "there is no parameter 'zzzz'", ""),
        ({"exact": True, "steps": 200}, "exact takes at most 100 steps", ""),
        ({"limit": 0}, "limit is 0; it must be greater than or equal to 1", "At most so many."),
        ({"pictures": [1]}, "pictures.0 is 1; ", "Painted frames."),
        ({"strength": float("nan")}, "strength is nan; it must be ", "How far back"),
        ({"mode": "x" * 1000}, "mode is '" + "x" * 79 + "...; it must be", "How."),
    ],
    ids=str,
)
def test_a_fault_is_told_by_name_value_and_bound(given: dict[str, object], message: str, hint: str) -> None:
    with pytest.raises(ParamsError) as caught:
        parse(Every, {"prompt": "a fox", **given})
    assert str(caught.value).startswith(message)
    assert caught.value.hint.startswith(hint)


def test_what_is_missing_is_named_with_its_meaning() -> None:
    with pytest.raises(ParamsError, match=r"^prompt is missing$") as caught:
        parse(Every, {})
    assert caught.value.hint == "What the edited clip should show."


def test_a_fault_inside_a_part_is_told_with_the_words_of_that_part() -> None:
    with pytest.raises(ParamsError) as caught:
        parse(EditRequest, {"video": "a", "method": "b", "compute": {"devise": "cpu"}})
    assert (str(caught.value), caught.value.hint) == (
        "there is no parameter 'compute.devise'",
        "did you mean device?",
    )
    with pytest.raises(ParamsError, match=r"compute\.offload is 'all'; it must be 'none'") as caught:
        parse(EditRequest, {"video": "a", "method": "b", "compute": {"offload": "all"}})
    assert caught.value.hint == Compute.model_fields["offload"].description


def test_a_number_among_choices_may_be_given_as_text() -> None:
    assert parse(Every, {"prompt": "a", "bits": "10"}) == Every(prompt="a", bits=10)
    assert parse(Every, {"prompt": "10"}).prompt == "10"


@pytest.mark.parametrize("annotation", [dict[str, int], int | str, bytes, tuple, object], ids=str)
def test_a_type_that_no_form_can_show_is_a_fault_of_the_plug_in(annotation: Any) -> None:
    odd = create_model("Odd", __base__=Params, it=(annotation, Field(default=None, description="It.")))
    with pytest.raises(PluginError, match=r"Odd\.it has the type .* no form can show"):
        describe(odd)


def test_a_parameter_without_words_is_a_fault_of_the_plug_in() -> None:
    mute = create_model("Mute", __base__=Params, it=(int, 3))
    with pytest.raises(PluginError, match=r"Mute\.it has no description"):
        describe(mute)


def test_near_names_are_named_and_far_ones_are_not() -> None:
    assert near("fatezro", ["paint", "fatezero"]) == "did you mean fatezero?"
    assert near("xyz", ["paint", "fatezero"]) == ""


class Renewed(Params):
    """Parameters that were called otherwise."""

    fps: Annotated[int, Field(ge=1, description="Frames a second."), Formerly("rate")] = 8
    start: Annotated[
        Literal["random", "none"],
        Field(description="Where to begin."),
        Formerly("guess", {"drawn": "random"}),
    ] = "none"
    mode: Annotated[
        Literal["over", "under"], Field(description="How."), Formerly("mode", {"above": "over"})
    ] = "over"


@pytest.mark.parametrize(
    ("given", "meant", "told"),
    [
        ({"rate": 5}, {"fps": 5}, "rate is now called fps"),
        ({"guess": "drawn"}, {"start": "random"}, "guess drawn is now start random"),
        ({"guess": "none"}, {"start": "none"}, "guess is now called start"),
        ({"mode": "above"}, {"mode": "over"}, "mode above is now mode over"),
    ],
)
def test_a_former_name_is_taken_for_todays_and_told(
    given: dict[str, object], meant: dict[str, object], told: str
) -> None:
    heard: list[str] = []
    assert renamed(Renewed, given, heard.append) == meant
    assert len(heard) == 1
    assert heard[0].startswith(told)


def test_todays_names_are_left_alone_and_nothing_is_told() -> None:
    heard: list[str] = []
    given = {"fps": 5, "mode": "under", "other": 1}
    assert renamed(Renewed, given, heard.append) == given
    assert not heard


def test_a_parameter_under_both_names_is_refused() -> None:
    with pytest.raises(ParamsError, match="fps is given twice") as caught:
        renamed(Renewed, {"fps": 5, "rate": 6}, print)
    assert "rate" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "parts"), [("a=1", ("a", "1")), ("a=b=c", ("a", "b=c")), ("a b= c", ("a b", " c"))]
)
def test_a_pair_is_split_at_its_first_mark(text: str, parts: tuple[str, str]) -> None:
    assert pair(text, example="a=1") == parts
    assert pair(text.replace("=", "."), mark=".", example="a.1")[0] == parts[0]


@pytest.mark.parametrize("text", ["", "a", "=1", "a=", "="])
def test_a_text_that_is_no_pair_is_refused_with_its_form_and_an_example(text: str) -> None:
    with pytest.raises(ParamsError, match="is not FRAME=PICTURE") as caught:
        pair(text, "FRAME=PICTURE", example="40=k40.png")
    assert "40=k40.png" in caught.value.hint
