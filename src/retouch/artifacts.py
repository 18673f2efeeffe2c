"""Expensive results, kept under the hash of everything that decided them.

An artefact is a folder with `manifest.json` and `tensors.safetensors`. It is written as a draft and
renamed, so it is there whole or not at all; its bytes are checked whenever it is read, and a damaged one is
remade. Long fits save checkpoints into a `Draft`, from which the next attempt goes on.
"""

import dataclasses
import functools
import inspect
import itertools
import json
import os
import shutil
import time
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast, final, get_args, get_origin

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from retouch.errors import ArtifactError
from retouch.events import Event, Kept, Notice, Reused
from retouch.identity import file_digest, identity

FORMAT = 1
_MANIFEST = "manifest.json"
_TENSORS = "tensors.safetensors"
_COUNTER = itertools.count()

P = ParamSpec("P")
R = TypeVar("R")


@typing.runtime_checkable
class Keeper(typing.Protocol):
    """What `@artifact` needs of a run: a store, a listener, and a copy of itself with a draft inside."""

    @property
    def store(self) -> "ArtifactStore": ...  # noqa: D102

    def emit(self, event: Event) -> None: ...  # noqa: D102

    def inside(self, draft: "Draft") -> "Keeper": ...  # noqa: D102


def artifact(kind: str, *, version: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Keeps what a function returns, under the identities of all its arguments but `run`.

    The function takes `run` as a keyword and returns a frozen dataclass of tensors, arrays and plain
    values, nested if need be. `version` goes up when the function would give another result for the same
    arguments. What comes back lies in main memory, whether it was made now or earlier.
    """

    def wrap(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def keep(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            run = bound.arguments.pop("run")
            assert isinstance(run, Keeper)
            hint = typing.get_type_hints(function)["return"]
            key = identity((kind, version, dict(bound.arguments)))
            kept = _find(run, kind, key, hint)
            if kept is not None:
                run.emit(Reused(kind, key))
                return cast("R", kept)
            draft = run.store.draft(kind, key)
            made = function(*args, **{**kwargs, "run": run.inside(draft)})  # type: ignore[arg-type]
            tree, tensors = pack(made)
            run.store.keep(kind, key, tree, tensors, version=version)
            draft.drop()
            run.emit(Kept(kind, key))
            return cast("R", unpack(hint, tree, tensors))

        return keep

    return wrap


def _find(run: Keeper, kind: str, key: str, hint: object) -> object | None:
    """The kept value, or nothing; a damaged one is thrown away with a notice."""
    try:
        parts = run.store.find(kind, key)
        return None if parts is None else unpack(hint, *parts)
    except ArtifactError as error:
        run.emit(Notice(f"a kept {kind} is damaged and will be made again ({error})"))
        run.store.forget(kind, key)
        return None


@final
@dataclass(frozen=True)
class Entry:
    """One kept artefact as `retouch cache list` shows it."""

    kind: str
    key: str
    folder: Path
    size: int
    made: float
    used: float


@final
@dataclass(frozen=True)
class ArtifactStore:
    """The folder in which artefacts lie, as `KIND/KEY/`."""

    folder: Path

    def find(self, kind: str, key: str) -> tuple[object, dict[str, Tensor]] | None:
        """The parts of a kept artefact, checked byte for byte, or nothing.

        Raises:
            ArtifactError: it is there, but damaged or of another program.
        """
        folder = self._place(kind, key)
        if not folder.is_dir():
            return None
        manifest = self.check(folder)
        os.utime(folder)
        return manifest["tree"], _read_tensors(folder / _TENSORS)

    def keep(self, kind: str, key: str, tree: object, tensors: Mapping[str, Tensor], *, version: int) -> Path:
        """Writes an artefact in one piece and says where it lies."""
        folder = self._place(kind, key)
        draft = folder.with_name(f".{key}.{os.getpid()}.{next(_COUNTER)}.draft")
        draft.mkdir(parents=True)
        try:
            save_file(dict(tensors), draft / _TENSORS)
            manifest = {
                "format": FORMAT,
                "kind": kind,
                "key": key,
                "version": version,
                "digest": file_digest(draft / _TENSORS),
                "tree": tree,
            }
            text = json.dumps(manifest, ensure_ascii=False)
            (draft / _MANIFEST).write_text(
                json.dumps({**manifest, "seal": identity(text)}, ensure_ascii=False)
            )
            _settle(draft)
            if folder.exists():
                shutil.rmtree(folder)
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return folder

    def check(self, folder: Path) -> dict[str, Any]:
        """The manifest of an artefact whose every byte is as it was written.

        Raises:
            ArtifactError: says what is wrong.
        """
        try:
            manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
            seal = manifest.pop("seal")
            if manifest["format"] != FORMAT:
                raise ArtifactError(
                    f"{folder.name} has format {manifest['format']}; this version reads {FORMAT}"
                )
            if seal != identity(json.dumps(manifest, ensure_ascii=False)):
                raise ArtifactError(f"the manifest of {folder.name} was changed")
            if manifest["digest"] != file_digest(folder / _TENSORS):
                raise ArtifactError(f"the tensors of {folder.name} were changed")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{folder.name} cannot be read ({type(error).__name__}: {error})") from None
        return manifest

    def forget(self, kind: str, key: str) -> None:
        """Removes an artefact, if it is there."""
        shutil.rmtree(self._place(kind, key), ignore_errors=True)

    def entries(self) -> Iterator[Entry]:
        """Every kept artefact, the longest unused first."""
        found = []
        for folder in self.folder.glob("*/*/"):
            if folder.name.startswith(".") or not (folder / _MANIFEST).exists():
                continue
            size = sum(file.stat().st_size for file in folder.iterdir())
            made = (folder / _MANIFEST).stat().st_mtime
            found.append(Entry(folder.parent.name, folder.name, folder, size, made, folder.stat().st_mtime))
        yield from sorted(found, key=lambda entry: (entry.used, entry.key))

    def prune(self, *, keep_bytes: int = 0, older_than: float = 0.0) -> list[Entry]:
        """Removes the longest unused artefacts until `keep_bytes` are left, and unfinished writes.

        Args:
            keep_bytes: What may stay; 0 removes all.
            older_than: Seconds since the last use that an artefact must have to be removed.
        """
        entries = list(self.entries())
        left = sum(entry.size for entry in entries)
        removed = []
        now = time.time()
        for entry in entries:
            if left > keep_bytes and now - entry.used >= older_than:
                shutil.rmtree(entry.folder, ignore_errors=True)
                left -= entry.size
                removed.append(entry)
        for stale in self.folder.glob("*/.*.draft"):
            if now - stale.stat().st_mtime >= max(older_than, _DRAFT_LIFETIME):
                shutil.rmtree(stale, ignore_errors=True)
        return removed

    def draft(self, kind: str, key: str) -> "Draft":
        """The checkpoints of an artefact that is being made."""
        return Draft(self.folder / kind / f".{key}.checkpoint.safetensors")

    def _place(self, kind: str, key: str) -> Path:
        assert kind.replace("_", "").isalnum(), kind
        assert key.isalnum(), key
        return self.folder / kind / key


_DRAFT_LIFETIME = 3600.0
"""Seconds after which an unfinished write is taken for dead."""


@final
@dataclass(frozen=True)
class Draft:
    """Checkpoints of long work: the last one saved is there whole, whatever happened since."""

    path: Path

    def load(self) -> dict[str, Tensor] | None:
        """The tensors of the last checkpoint, or nothing; a damaged one counts as none."""
        if not self.path.exists():
            return None
        try:
            return _read_tensors(self.path)
        except ArtifactError:
            self.drop()
            return None

    def save(self, tensors: Mapping[str, Tensor]) -> None:
        """Replaces the checkpoint in one step."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        save_file(_plain(tensors), part)
        with part.open("rb") as stream:
            os.fsync(stream.fileno())
        part.replace(self.path)

    def drop(self) -> None:
        """Removes the checkpoint."""
        self.path.unlink(missing_ok=True)


def pack(value: object) -> tuple[object, dict[str, Tensor]]:
    """A value as a JSON tree and the tensors that it refers to."""
    tensors: dict[str, Tensor] = {}
    tree = _pack(value, "value", tensors)
    return tree, _plain(tensors)


def _pack(value: object, name: str, tensors: dict[str, Tensor]) -> object:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"$tensor": name}
    if isinstance(value, np.ndarray):
        tensors[name] = torch.from_numpy(np.ascontiguousarray(value))
        return {"$array": name}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Fraction):
        return {"$fraction": str(value)}
    if isinstance(value, Path):
        return {"$path": str(value)}
    if isinstance(value, (tuple, list)):
        return [_pack(inner, f"{name}.{index}", tensors) for index, inner in enumerate(value)]
    if isinstance(value, Mapping):
        return {"$map": {str(key): _pack(inner, f"{name}.{key}", tensors) for key, inner in value.items()}}
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {
            "$fields": {f.name: _pack(getattr(value, f.name), f"{name}.{f.name}", tensors) for f in fields}
        }
    raise TypeError(f"a {type(value).__name__} cannot be kept")


def unpack(hint: object, tree: object, tensors: Mapping[str, Tensor]) -> object:
    """The value that `pack` took apart; classes come from the type hints, never from the file.

    Raises:
        ArtifactError: the parts do not fit the type.
    """
    try:
        return _unpack(hint, tree, tensors)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"its parts do not fit {hint} ({type(error).__name__}: {error})") from None


def _unpack(hint: Any, tree: Any, tensors: Mapping[str, Tensor]) -> object:
    if isinstance(tree, list):
        inner = [part for part in get_args(hint) if part is not Ellipsis] or [object]
        each = inner * len(tree) if len(inner) == 1 else inner
        values = [_unpack(part, branch, tensors) for part, branch in zip(each, tree, strict=True)]
        return values if get_origin(hint) is list else tuple(values)
    if not isinstance(tree, dict):
        return tree
    ((mark, content),) = tree.items()
    match mark:
        case "$tensor":
            return tensors[content]
        case "$array":
            return tensors[content].numpy()
        case "$fraction":
            return Fraction(content)
        case "$path":
            return Path(content)
        case "$map":
            inner_hint = (get_args(hint) or (str, object))[1]
            return {key: _unpack(inner_hint, branch, tensors) for key, branch in content.items()}
    kind = next((part for part in (hint, *get_args(hint)) if dataclasses.is_dataclass(part)), None)
    if mark != "$fields" or kind is None:
        raise TypeError(f"{mark} where {hint} is expected")
    hints = typing.get_type_hints(kind)
    return cast("Any", kind)(**{key: _unpack(hints[key], branch, tensors) for key, branch in content.items()})


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors in main memory that share nothing, as safetensors wants them."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        ours = tensor.detach().cpu().contiguous()
        if ours.untyped_storage().data_ptr() in seen or ours.untyped_storage().nbytes() != ours.nbytes:
            ours = ours.clone()
        seen.add(ours.untyped_storage().data_ptr())
        plain[name] = ours
    return plain


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - it is no mapping
    except (OSError, SafetensorError, ValueError) as error:
        raise ArtifactError(f"{path.name} cannot be read ({error})") from None


def _settle(folder: Path) -> None:
    """Waits until the files and the folder's names are on the disk, so that a power cut finds them whole."""
    for inner in (*folder.iterdir(), folder):
        handle = os.open(inner, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
