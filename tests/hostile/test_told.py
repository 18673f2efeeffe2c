"""What a user is told: the truth, before it costs anything, and once."""

import json

import pytest
from command_line import Shell

import retouch
from retouch.apps.preflight import check_prompts
from retouch.errors import ParamsError
from retouch.events import ignore
from retouch.models.refs import resolve
from retouch.params import Params, Role, given_as
from retouch.registry import method, names

SAND = "a red car on sand"
STRANGE = "a red jeep on sand"
TEXT = ("edit", "fatezero", "clip.mp4", "--source-prompt", SAND, "--steps", 1)


def asked(name: str, values: dict[str, object]) -> Params:
    """A method's parameters, whatever they say to each other, with a model that declares its words."""
    kind = method(name).params
    usual = {field: SAND if info.is_required() else info.default for field, info in kind.model_fields.items()}
    params = kind.model_construct(None, **usual | {"model": "tiny:sd"} | values)
    assert isinstance(params, Params)
    return params


def readers() -> list[tuple[str, str]]:
    """Every method with each of its parameters that a model reads."""
    told = {name: asked(name, dict.fromkeys(method(name).params.model_fields, SAND)) for name in names()}
    return [(name, prompt) for name, params in told.items() for prompt, _ in given_as(params, Role.PROMPT)]


def test_every_parameter_called_a_prompt_is_marked_as_one() -> None:
    assert set(readers()) == {
        (name, field)
        for name in names()
        for field in method(name).params.model_fields
        if field.endswith("prompt")
    }
    assert {name for name, _ in readers()} >= {"fatezero", "tune_a_video", "frame_by_frame", "videoshop"}


@pytest.mark.parametrize(("name", "prompt"), readers())
def test_no_method_takes_a_word_that_its_model_was_not_taught(name: str, prompt: str) -> None:
    check_prompts(asked(name, {prompt: SAND}), anyway=False, tell=ignore)
    with pytest.raises(ParamsError, match="tiny:sd does not know the word 'jeep'"):
        check_prompts(asked(name, {prompt: STRANGE}), anyway=False, tell=ignore)


def test_a_strange_word_ends_an_edit_before_it_begins_and_anyway_goes_on(shell: Shell) -> None:
    ended = shell(*TEXT, "--prompt", "a bleu car on sand", "--json")
    assert ended.code == 2
    error = json.loads(ended.err.splitlines()[-1])
    assert error["error"] == "tiny:sd does not know the word 'bleu'"
    assert "bleu: blue" in error["hint"]
    assert not any((run / "events.jsonl").exists() for run in shell.runs)
    ended = shell(*TEXT, "--prompt", "a bleu car on sand", "--anyway")
    assert ended.code == 0
    assert ended.err.count("does not know the word 'bleu'; what it makes of that") == 1
    command = json.loads((shell.runs[-1] / "report.json").read_text())["command"]
    assert "--anyway" in command


def test_python_is_told_as_the_command_line_is(shell: Shell) -> None:
    with pytest.raises(ParamsError, match="'jeep'"):
        retouch.edit("fatezero", shell.folder / "clip.mp4", source_prompt=SAND, prompt=STRANGE)


def test_models_show_names_the_words(shell: Shell) -> None:
    shown = shell("models", "show", "tiny:sd").out
    assert "watercolour, white, wood, yellow" in shown
    assert resolve("tiny:sd").name in shown
