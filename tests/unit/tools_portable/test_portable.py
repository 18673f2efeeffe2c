"""The table of settings: filled in where the page says, and under load while the tests run."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[3] / "tools" / "portable.py"


@pytest.fixture(scope="module")
def portable() -> ModuleType:
    spec = importlib.util.spec_from_file_location("portable", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_go_into_the_table_of_their_name_and_nowhere_else(portable: ModuleType) -> None:
    page = "# A\n<!-- suite -->\nold\n<!-- end -->\nkept\n<!-- speed -->\n<!-- end -->\n"
    found = {"suite": {"busy": {"fell": "nothing"}, "2 threads": {"fell": "one"}}}
    once = portable.filled(page, found)
    rows = "| setting | fell |\n| --- | --- |\n| busy | nothing |\n| 2 threads | one |"
    assert once == page.replace("old\n", f"\n{rows}\n\n")
    assert portable.filled(once, found) == once


def test_load_lasts_as_long_as_the_block(portable: ModuleType) -> None:
    with portable.busy(1) as (loop,):
        assert loop.poll() is None
    assert loop.poll() is not None


def test_every_setting_says_what_pytest_runs_under(portable: ModuleType) -> None:
    assert {"busy", "MKL_CBWR=COMPATIBLE, 2 threads"} <= set(portable.SETTINGS)
    assert {kept["OMP_NUM_THREADS"] for kept in portable.SETTINGS.values()} == {"1", "2"}
