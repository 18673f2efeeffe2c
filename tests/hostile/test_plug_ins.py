"""Plug-ins as strangers write them: a broken one costs its own row in `retouch doctor` alone."""

import json
from pathlib import Path

import pytest
from command_line import Shell

from retouch import registry
from retouch.errors import PluginError
from retouch.metrics import registry as metrics

GOOD = """
from retouch.params import Params, Steps
from retouch.spec import MethodSpec
class P(Params):
    steps: Steps = 3
SPEC = MethodSpec(name="NAME", title="Good", summary="Works.", params=P, edit="NAME:edit")
def edit(video, params, run):
    print("good is at work")
    from retouch.run import Edited
    return Edited(video)
"""
LOUD = "import sys, os; print('hello'); os.write(1, b'hello'); sys.__stdout__.close(); os.close(1)"
WRONG = {
    "quits": ("import sys; sys.exit('no licence')", "SystemExit: no licence"),
    "dies": ("import os; os._exit(3)", "it ended the process with 3 when it was imported"),
    "breaks": ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    "raises": ("class Odd(BaseException): pass\nraise Odd('so')", "Odd: so"),
    "foreign": ("SPEC = 3", "PluginError: foreign:SPEC is a int, not a MethodSpec"),
    "mute": (GOOD.replace("Steps = 3", "int = 3"), "PluginError: P.steps has no description"),
    "other": (GOOD.replace("NAME", "good"), "PluginError: the method 'good' has the entry point 'other'"),
    "paint": (GOOD, "PluginError: the name 'paint' is taken"),
}


def install(folder: Path, name: str, code: str, group: str = registry.GROUP) -> None:
    """Puts a package of one module where Python finds it, as pip would; it leaves a mark when imported."""
    mark = f"import pathlib; (pathlib.Path(__file__).parent / '{name}.imported').touch()\n"
    (folder / f"{name}.py").write_text(mark + code.replace("NAME", name))
    facts = folder / f"{name}-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nSummary: Is {name}.\n"
    )
    (facts / "entry_points.txt").write_text(f"[{group}]\n{name} = {name}:SPEC\n")


def imported(folder: Path) -> list[str]:
    return sorted(mark.stem for mark in folder.glob("*.imported"))


@pytest.fixture
def strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Good, loud and broken packages, where Python finds them."""
    folder = tmp_path / "strangers"
    folder.mkdir()
    install(folder, "good", GOOD)
    install(folder, "loud", LOUD + GOOD)
    for name, (code, _) in WRONG.items():
        install(folder, name, code)
    monkeypatch.syspath_prepend(folder)
    return folder


def test_each_broken_plug_in_costs_its_own_row_and_nothing_else(strangers: Path) -> None:
    told = registry.faults(registry.GROUP, "retouch.spec:MethodSpec", patience=200)
    assert told == {name: reason for name, (_, reason) in WRONG.items()}
    assert imported(strangers) == sorted(["good", "loud", *WRONG])


def test_a_plug_in_that_hangs_is_given_up_on(strangers: Path) -> None:
    for path in strangers.iterdir():
        path.rename(path.with_suffix(".gone"))
    install(strangers, "hangs", "import time\nwhile True: time.sleep(9)")
    told = registry.faults(registry.GROUP, "retouch.spec:MethodSpec", patience=0.5)
    assert told["hangs"] == "it is still being imported, and may hang"


def test_listing_and_editing_with_others_imports_no_plug_in(strangers: Path, shell: Shell) -> None:
    listed = shell("methods", "--json")
    assert listed.code == 0
    rows = {row["name"]: row["summary"] for row in json.loads(listed.out)}
    assert rows["good"] == "Is good."
    assert "Is breaks." in shell("edit", "--help").out
    assert shell("edit", "tint", "clip.mp4", "--quiet").code == 0
    assert shell("methods", "paint").code == 0
    assert imported(strangers) == []


@pytest.mark.usefixtures("strangers")
def test_what_a_plug_in_prints_stays_out_of_the_output(shell: Shell) -> None:
    ended = shell("edit", "loud", "clip.mp4", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["method"] == "loud"
    assert "good is at work" in ended.err
    assert json.loads(shell("methods", "loud", "--json").out)["title"] == "Good"


@pytest.mark.usefixtures("strangers")
@pytest.mark.parametrize("name", ["quits", "breaks", "raises", "foreign", "mute", "other"])
def test_asking_for_a_broken_plug_in_says_why(name: str, shell: Shell) -> None:
    ended = shell("edit", name, "clip.mp4")
    assert ended.code == PluginError.exit_code
    assert WRONG[name][1].removeprefix("PluginError: ") in ended.err
    assert "unexpected" not in ended.err


def test_a_broken_metric_breaks_no_other(strangers: Path) -> None:
    install(strangers, "worse", "raise BaseException('no')", "retouch.metrics")
    metrics.loaded.cache_clear()
    try:
        assert "psnr" in metrics.metrics()
        with pytest.raises(PluginError, match="BaseException: no"):
            metrics.find_metric("worse")
    finally:
        metrics.loaded.cache_clear()
