import socket
from pathlib import Path

import pytest

from retouch.errors import DownloadRefused, ModelMismatch, ModelNotFound
from retouch.models.licences import LICENCES, meaning
from retouch.models.refs import (
    catalogue,
    check_weights,
    embedded,
    fetch_model,
    resolve,
    weight_variant,
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RETOUCH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RETOUCH_OFFLINE", raising=False)
    return tmp_path / "home"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    tried: list[object] = []

    def refuse(*where: object, **_: object) -> None:
        tried.append(where)
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tried


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert resolve(str(tmp_path)) == tmp_path


def test_a_folder_that_is_not_there_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no folder") as caught:
        resolve(str(tmp_path / "none"))
    assert "tiny:sd" in caught.value.hint


def test_a_single_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "v1-5.safetensors").write_bytes(b"")
    with pytest.raises(ModelMismatch, match="is a file"):
        resolve(str(tmp_path / "v1-5.safetensors"))


def test_an_embedded_model_is_found() -> None:
    assert (resolve("tiny:sd") / "model_index.json").is_file()
    assert (resolve("tiny:clip") / "config.json").is_file()


@pytest.mark.parametrize(
    ("wrong", "near"), [("tiny:ds", "tiny:sd"), ("tiny:clpi", "tiny:clip"), ("sd51", "sd15")]
)
@pytest.mark.usefixtures("home")
def test_an_unknown_name_suggests_the_near_one(wrong: str, near: str) -> None:
    with pytest.raises(ModelNotFound, match=wrong) as caught:
        resolve(wrong)
    assert near in caught.value.hint


def test_the_own_folder_comes_before_the_cache(home: Path) -> None:
    (home / "models" / "sd15").mkdir(parents=True)
    assert resolve("sd15") == home / "models" / "sd15"


@pytest.mark.usefixtures("home")
def test_a_missing_model_says_how_to_get_it_and_what_works_now(no_network: list[object]) -> None:
    for ref in ("sd15", "hf:nobody/nothing@main"):
        with pytest.raises(ModelNotFound, match="not on this machine") as caught:
            resolve(ref)
        assert f"retouch models get {ref}" in caught.value.hint
        assert "tiny:sd works now" in caught.value.hint
    assert no_network == []


@pytest.mark.usefixtures("home")
def test_a_damaged_hub_reference_is_explained() -> None:
    with pytest.raises(ModelNotFound, match="no hub reference") as caught:
        resolve("hf:stable-diffusion")
    assert "hf:org/name@revision" in caught.value.hint


@pytest.mark.usefixtures("home")
def test_offline_refuses_a_download_without_trying(
    monkeypatch: pytest.MonkeyPatch, no_network: list[object]
) -> None:
    monkeypatch.setenv("RETOUCH_OFFLINE", "1")
    with pytest.raises(DownloadRefused, match="RETOUCH_OFFLINE"):
        fetch_model("sd15")
    assert no_network == []


@pytest.mark.usefixtures("home")
def test_fetching_what_is_embedded_gives_its_folder() -> None:
    assert fetch_model("tiny:sd") == resolve("tiny:sd")


def test_pickles_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelMismatch, match=r"pickle.*diffusion_pytorch_model\.bin"):
        check_weights(tmp_path, "x")


def test_the_variant_is_taken_only_where_there_is_nothing_else(tmp_path: Path) -> None:
    assert weight_variant(tmp_path) is None
    (tmp_path / "model.fp16.safetensors").write_bytes(b"")
    assert weight_variant(tmp_path) == "fp16"
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert weight_variant(tmp_path) is None


def test_every_catalogue_entry_is_complete_and_downloads_no_pickle() -> None:
    assert {"sd15", "svd"} <= set(catalogue())
    for entry in catalogue().values():
        assert entry.source.count("/") == 1
        assert entry.licence in LICENCES, entry.licence
        assert len(entry.notice.strip().splitlines()) == 2
        assert entry.tiny.startswith("tiny:") or entry.kind == "depth"  # none comes with the package
        assert entry.size_mb > 0
        assert not any(
            name.endswith((".bin", ".ckpt", ".pt", "*")) and "/" not in name for name in entry.files
        )
        assert entry.ref == f"hf:{entry.source}@{entry.revision}"


def test_a_licence_that_forbids_commercial_work_is_said_beside_the_model() -> None:
    forbidden = [entry for entry in catalogue().values() if "NC" in entry.licence]
    assert forbidden
    for entry in forbidden:
        assert "no commercial use" in meaning(entry.licence)
        assert "Not for commercial work" in entry.notice


@pytest.mark.usefixtures("home")
def test_a_model_that_nothing_stands_in_for_says_how_to_get_it_and_no_more() -> None:
    with pytest.raises(ModelNotFound) as refused:
        resolve("dpt-large")
    assert refused.value.hint == "get it with: retouch models get dpt-large"


def test_an_unknown_licence_is_not_guessed() -> None:
    assert "read it" in meaning("home-made")


def test_embedded_models_are_named_by_their_folders() -> None:
    assert all(resolve(ref) == folder for ref, folder in embedded().items())


def test_what_stands_for_a_model_of_the_catalogue_comes_with_the_package() -> None:
    assert {entry.tiny for entry in catalogue().values() if entry.tiny} <= set(embedded())
