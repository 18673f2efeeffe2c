"""How networks come from a folder onto a device, and how their weights are told apart."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final, TypeVar, cast

import torch
from diffusers.utils import logging as diffusers_logging
from torch.nn import Module
from transformers.utils import logging as transformers_logging

from retouch.compute import Compute
from retouch.errors import ModelMismatch
from retouch.models.refs import weight_variant

M = TypeVar("M", bound=Module)

UNREAD: Final = "neck.fusion_stage.layers.0.residual_layer1."
"""Weights that depth models hold and never read: published files leave them out."""


def placed(compute: Compute | None) -> tuple[torch.device, torch.dtype]:
    """Where networks go and in which precision."""
    chosen = compute or Compute()
    return chosen.torch_device(), chosen.torch_dtype()


def load_network(kind: type[M], folder: Path, device: torch.device, dtype: torch.dtype) -> M:
    """One network from one folder: safetensors only, from this machine only, frozen."""
    from_pretrained = kind.from_pretrained  # type: ignore[attr-defined]
    with quiet():
        network, told = from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            variant=weight_variant(folder),
            torch_dtype=dtype,
            output_loading_info=True,
        )
    # Some readers fill these with noise and go on.
    if missing := sorted(name for name in told["missing_keys"] if not name.startswith(UNREAD)):
        raise ModelMismatch(
            f"{folder} lacks {missing[0]}", hint="its weights are damaged; get the model again"
        )
    return cast("M", network.to(device).eval().requires_grad_(False))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from progress bars and diffusers from remarks; what matters comes as events."""
    shown, level = transformers_logging.is_progress_bar_enabled(), diffusers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()


def folder_identity(folder: Path) -> str:
    """A hash of every weight and configuration file under `folder`; each file is read once per process."""
    files = sorted(
        p
        for p in folder.rglob("*")
        if p.suffix in (".safetensors", ".json", ".txt") and p.name != "PROVENANCE.json"
    )
    total = hashlib.sha256()
    for path in files:
        status = path.stat()
        content = _file_hash(path.resolve(), status.st_size, status.st_mtime_ns)
        total.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return total.hexdigest()


def weights_identity(parts: Mapping[str, Module], more: str) -> str:
    """A hash of the values of every parameter and buffer of `parts`, and of the text `more`."""
    total = hashlib.sha256(more.encode())
    for part, module in sorted(parts.items()):
        for name, value in sorted(module.state_dict().items()):
            total.update(f"{part}.{name} {value.dtype} {tuple(value.shape)}".encode())
            total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


@cache
def _file_hash(path: Path, size: int, changed: int) -> str:  # noqa: ARG001 - size and time of change are the cache's key
    """The file's SHA-256; a blob of the Hugging Face cache carries it as its name."""
    if path.parent.name == "blobs" and len(path.name) == 64:
        return path.name
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
