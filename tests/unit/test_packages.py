"""What an installation brings: the page's two packages come with its extra alone."""

import importlib.metadata
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from retouch.apps.commands.web import web
from retouch.errors import ResourceError

PAGE = {"starlette", "uvicorn"}


def brought(wanted: Iterable[str]) -> set[str]:
    """The names of all packages that some requirements bring here, each with what it needs itself."""
    seen = set[tuple[str, str]]()
    waiting = [Requirement(each) for each in wanted]
    while waiting:
        requirement = waiting.pop()
        for extra in ("", *requirement.extras):
            if (name := (canonicalize_name(requirement.name), extra)) in seen:
                continue
            seen.add(name)
            try:
                needs = importlib.metadata.requires(requirement.name) or []
            except importlib.metadata.PackageNotFoundError:
                continue
            found = [Requirement(each) for each in needs]
            waiting += [each for each in found if not each.marker or each.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}


def test_the_page_needs_two_packages_that_nothing_else_brings() -> None:
    project: dict[str, Any] = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())[
        "project"
    ]
    extra = project["optional-dependencies"]["web"]
    assert {Requirement(each).name for each in extra} == PAGE
    base = brought(project["dependencies"])
    assert not base & PAGE
    for name in PAGE:
        pytest.importorskip(name, reason="the extra `web` is not installed")
    assert brought([*project["dependencies"], *extra]) - base == PAGE


@pytest.mark.parametrize("name", sorted(PAGE))
def test_the_page_says_the_command_that_brings_what_is_missing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    error = CliRunner().invoke(web, []).exception
    assert isinstance(error, ResourceError)
    assert error.hint == "pip install 'retouch[web]'"
