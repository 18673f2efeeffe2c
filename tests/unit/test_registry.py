"""The methods there are: a plug-in comes in by its entry point, and a broken one breaks nothing else."""

from importlib.metadata import EntryPoint

import pytest
import retouch_tint.spec

from retouch import registry
from retouch.errors import ParamsError, PluginError
from retouch.spec import MethodSpec


def test_a_plug_in_is_found_by_its_entry_point() -> None:
    assert registry.method("tint") is retouch_tint.spec.SPEC
    assert registry.names()[: len(registry.BUILT_IN)] == registry.BUILT_IN
    assert "tint" in registry.names()


def test_our_own_methods_hold_together_and_lie_where_their_name_says() -> None:
    for name in registry.BUILT_IN:
        spec = registry.method(name)
        spec.check()
        assert spec.name == name
        assert spec.edit.startswith(f"retouch.methods.{name}.")
        assert registry.summary(name) == spec.summary


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
            "retouch_tint.spec:TintParams is a ModelMetaclass, not a MethodSpec",
        ),
    ],
)
def test_a_plug_in_that_cannot_be_loaded_says_why(value: str, reason: str) -> None:
    with pytest.raises(PluginError, match=reason):
        registry.load(EntryPoint("bad", value, registry.GROUP), MethodSpec)
