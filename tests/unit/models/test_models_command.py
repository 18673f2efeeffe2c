import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from retouch.apps.commands.models import models
from retouch.errors import DownloadRefused


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETOUCH_HOME", str(tmp_path))
    monkeypatch.setenv("RETOUCH_OFFLINE", "1")


def test_list_names_embedded_and_catalogue_models() -> None:
    ended = CliRunner().invoke(models, ["list", "--json"])
    rows = {row["name"]: row for row in json.loads(ended.output)}
    assert rows["tiny:sd"]["here"]
    assert not rows["sd15"]["here"]
    text = CliRunner().invoke(models, ["list"]).output
    assert all(name in text for name in rows)


def test_show_says_what_the_licence_allows() -> None:
    ended = CliRunner().invoke(models, ["show", "svd"])
    assert ended.exit_code == 0
    assert "stabilityai-community" in ended.output
    assert "one million" in ended.output
    assert "not here" in ended.output


def test_show_tells_where_embedded_weights_come_from() -> None:
    about = json.loads(CliRunner().invoke(models, ["show", "tiny:sd", "--json"]).output)
    assert about["recipe"] == "tools/family"
    assert about["licence"] == "Apache-2.0"


def test_get_is_refused_offline() -> None:
    ended = CliRunner().invoke(models, ["get", "sd15"])
    assert isinstance(ended.exception, DownloadRefused)
    assert "2750 MB" in ended.output


def test_check_passes_an_embedded_model_and_fails_an_empty_folder(tmp_path: Path) -> None:
    good = CliRunner().invoke(models, ["check", "tiny:sd"])
    assert good.exit_code == 0, good.output
    assert "StableDiffusionPipeline" in good.output
    bad = CliRunner().invoke(models, ["check", str(tmp_path), "--json"])
    assert bad.exit_code == 3
    assert json.loads(bad.output)["faults"]
