"""The methods there are: a plug-in comes in by its entry point, and a broken one breaks nothing else."""

import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import retouch_tint.spec

from retouch import registry
from retouch.errors import ParamsError, PluginError


def entry(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, registry.GROUP)


def test_a_plug_in_is_found_by_its_entry_point() -> None:
    assert registry.method("tint") is retouch_tint.spec.SPEC
    assert list(registry.methods())[: len(registry.BUILT_IN)] == list(registry.BUILT_IN)


def test_our_own_methods_hold_together_and_lie_where_their_name_says() -> None:
    for name in registry.BUILT_IN:
        spec = registry.method(name)
        spec.check()
        assert spec.name == name
        assert spec.edit.startswith(f"retouch.methods.{name}.")


def test_an_unknown_method_is_answered_with_the_near_one() -> None:
    with pytest.raises(ParamsError, match="there is no method 'tnit'") as caught:
        registry.method("tnit")
    assert caught.value.hint == "did you mean tint?"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("retouch_nowhere:SPEC", "ModuleNotFoundError: No module named 'retouch_nowhere'"),
        ("retouch_tint.spec:NOTHING", "AttributeError"),
        (
            "retouch_tint.spec:TintParams",
            "PluginError: retouch_tint.spec:TintParams is a ModelMetaclass, not a MethodSpec",
        ),
    ],
)
def test_a_plug_in_that_cannot_be_loaded_is_left_out_with_the_reason(value: str, reason: str) -> None:
    found, failed = registry.collect([entry("bad", value), entry("tint", "retouch_tint.spec:SPEC")])
    assert "tint" in found
    assert list(failed) == ["bad"]
    assert failed["bad"].startswith(reason)


def test_a_name_is_given_once() -> None:
    found, failed = registry.collect([entry(name, "retouch_tint.spec:SPEC") for name in ("tint", "again")])
    assert "tint" in found
    assert failed == {"again": "PluginError: the name 'tint' is taken"}


GOOD = """
from retouch.params import Params, Steps
from retouch.spec import MethodSpec
class P(Params):
    steps: Steps = 3
SPEC = MethodSpec(name="good", title="Good", summary="Works.", params=P, edit="good:edit")
"""
BAD = {
    "quits": "import sys; sys.exit('no licence')",
    "breaks": "import no_such_module",
    "foreign": "SPEC = 3",
    "mute": GOOD.replace("steps: Steps = 3", "steps: int = 3").replace('"good"', '"mute"'),
}


def install(folder: Path, name: str, code: str) -> None:
    """Puts a package of one module where Python finds it, as pip would."""
    (folder / f"{name}.py").write_text(code)
    facts = folder / f"{name}-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{name} = {name}:SPEC\n")


def test_installed_packages_work_or_are_told_and_none_spoils_the_others(tmp_path: Path) -> None:
    install(tmp_path, "good", GOOD)
    for name, code in BAD.items():
        install(tmp_path, name, code)
    code = (
        "import json; from retouch import registry\n"
        "print(json.dumps([list(registry.methods()), dict(registry.failures())]))\n"
        "try: registry.method('breaks')\n"
        "except registry.PluginError as error: print(error, '|', error.hint)"
    )
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": paths}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=True, text=True
    )
    lists, complaint = ended.stdout.splitlines()
    found, failed = json.loads(lists)
    assert "good" in found
    assert "tint" in found
    assert failed == {
        "quits": "SystemExit: no licence",
        "breaks": "ModuleNotFoundError: No module named 'no_such_module'",
        "foreign": "PluginError: foreign:SPEC is a int, not a MethodSpec",
        "mute": "PluginError: P.steps has no description",
    }
    assert complaint == (
        "the method 'breaks' cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'"
        " | see: retouch doctor"
    )
    assert PluginError.exit_code == 7
