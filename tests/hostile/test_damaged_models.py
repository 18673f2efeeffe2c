"""Damaged models: what keeps `models check` from a model keeps an edit from it, with the same exit code."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Shell
from safetensors.torch import load_file, save_file

from retouch.errors import ModelMismatch
from retouch.models.check import inspect_model
from retouch.models.image import StableDiffusion
from retouch.models.refs import read_index, resolve
from retouch.run import loading

Damage = Callable[[Path], object]


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def text(words: str) -> Damage:
    return lambda path: path.write_text(words)


def said(**words: object) -> Damage:
    return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), **words}))


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


WEIGHTS = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")
CONFIGS = (
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
)
DAMAGES: list[tuple[str, Damage]] = [
    *((f"{name}.safetensors", half) for name in WEIGHTS),
    *((name, text(words)) for name in CONFIGS for words in ("null", '{"a": ')),
    *((f"tokenizer/{name}", text("null")) for name in ("vocab.json", "merges.txt", "tokenizer_config.json")),
    ("tokenizer/vocab.json", text("")),
    ("unet/config.json", said(block_out_channels=None)),
    ("unet/config.json", said(cross_attention_dim=10**9)),
    ("text_encoder/config.json", said(num_hidden_layers=10**7)),
    ("scheduler/scheduler_config.json", said(beta_schedule="x")),
    ("model_index.json", said(unet=["antigravity", "X"])),
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(resolve("tiny:sd"), tmp_path / "model"))


@pytest.mark.parametrize("name", sorted({name for name, _ in DAMAGES}))
def test_a_damaged_part_is_refused_by_the_check_and_by_the_loader(name: str, model: Path) -> None:
    sound = (model / name).read_bytes()
    for which, damage in DAMAGES:
        if which == name:
            damage(model / name)
            assert inspect_model(model).faults
            with pytest.raises(ModelMismatch) as caught, loading(str(model)):
                StableDiffusion.from_pretrained(str(model))
            assert caught.value.exit_code == 3
            assert caught.value.hint
            (model / name).write_bytes(sound)
    assert inspect_model(model).faults == ()


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "text_encoder/model"])
def test_weights_that_are_missing_are_not_made_up(part: str, model: Path) -> None:
    path = model / f"{part}.safetensors"
    tensors = load_file(path)
    save_file(dict(list(tensors.items())[1:]), path, metadata={"format": "pt"})
    with pytest.raises(ModelMismatch), loading(str(model)):
        StableDiffusion.from_pretrained(str(model))


def test_every_embedded_model_passes_the_check() -> None:
    for ref in ("tiny:sd", "tiny:svd", "tiny:clip", "tiny:sd-canny", "tiny:ip"):
        assert inspect_model(resolve(ref)).faults == ()


@pytest.mark.parametrize(
    "name", ["unet/config.json", "tokenizer/vocab.json", "vae/diffusion_pytorch_model.safetensors"]
)
def test_a_pipe_in_a_model_is_refused_at_once(name: str, model: Path) -> None:
    pipe(model / name)
    with pytest.raises(ModelMismatch, match="is no file"):
        resolve(str(model))


def test_a_part_of_another_package_is_not_imported(model: Path) -> None:
    for named in (["antigravity", "X"], ["os", "system"], ["pipeline.py", "X"], ["diffusers"]):
        said(scheduler=named)(model / "model_index.json")
        with pytest.raises(ModelMismatch, match="of no library that models come from"):
            read_index(model, str(model))


@pytest.mark.parametrize("shard", ["../unet.safetensors", "/etc/passwd", "gone.safetensors", None])
def test_weights_are_read_from_the_folder_alone(shard: str | None, model: Path) -> None:
    index = {"weight_map": {"a": shard}} if shard else {"weight_map": None}
    (model / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copy(model / "unet" / "diffusion_pytorch_model.safetensors", model / "unet.safetensors")
    assert "lacks" in "".join(inspect_model(model).faults)
    with pytest.raises(ModelMismatch, match="lacks"):
        StableDiffusion.from_pretrained(str(model))


def test_an_edit_and_the_check_end_alike(shell: Shell, model: Path) -> None:
    half(model / "vae" / "diffusion_pytorch_model.safetensors")
    checked = shell("models", "check", model)
    edited = shell(
        "edit",
        "fatezero",
        "clip.mp4",
        "--model",
        model,
        "--source-prompt",
        "a ball",
        "--prompt",
        "a red ball",
    )
    assert (checked.code, edited.code) == (3, 3), edited.err
    assert "damaged or cut short" in checked.out
    assert "damaged or cut short" in edited.err
