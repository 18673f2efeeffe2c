"""Expensive results, kept under the hash of everything that decided them.

An artefact is a folder with `manifest.json` and `tensors.safetensors`. It is written as a draft and
renamed, so it is there whole or not at all; its bytes are checked whenever it is read, and a damaged one is
remade. Long fits save checkpoints into a `DraftFile`, from which the next attempt goes on.
"""

import contextlib
import dataclasses
import errno
import fcntl
import functools
import glob
import inspect
import json
import math
import os
import secrets
import stat
import time
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast, final, get_args, get_origin

import numpy as np
import torch
from numpy.typing import DTypeLike
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from retouch.errors import ArtifactError
from retouch.events import Event, Kept, Notice, Reused
from retouch.files import FULL, OCCUPIED, beside, remove, replace_whole, sync, system_error, take_space
from retouch.identity import file_digest, identity

FORMAT = 1
_MANIFEST = "manifest.json"
_TENSORS = "tensors.safetensors"

P = ParamSpec("P")
R = TypeVar("R")


@typing.runtime_checkable
class ArtifactContext(typing.Protocol):
    """What `@artifact` needs of a run: a store, a listener, and a copy of itself with a draft inside."""

    @property
    def store(self) -> "ArtifactStore": ...  # noqa: D102

    @property
    def arithmetic(self) -> str: ...  # noqa: D102

    def emit(self, event: Event) -> None: ...  # noqa: D102

    def check(self) -> None: ...  # noqa: D102

    def inside(self, draft: "DraftFile", *, seed: int) -> "ArtifactContext": ...  # noqa: D102


def artifact(kind: str, *, version: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Keeps what a function returns, under the identities of all its arguments but `run`.

    The function takes `run` as a keyword and returns a frozen dataclass of tensors, arrays and plain
    values, nested if need be. `version` goes up when the function would give another result for the same
    arguments. What comes back lies in main memory, whether it was made now or earlier.

    The arguments, the device and the precision decide the result, and nothing else: inside, the run's seed
    is one that follows from the arguments. A function whose result should differ from seed to seed takes
    the seed as an argument.
    """

    def wrap(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def keep(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            run = bound.arguments.pop("run")
            assert isinstance(run, ArtifactContext)
            hint = typing.get_type_hints(function)["return"]
            key = identity((kind, version, run.arithmetic, dict(bound.arguments)))
            kept = _find_kept(run, kind, key, hint)
            if kept is None:
                with run.store.making(kind, key, check=run.check) as draft:
                    kept = _find_kept(run, kind, key, hint)  # another process may have made it meanwhile
                    if kept is None:
                        if run.store.keeps_older(kind, version):
                            old = f"a {kind} kept by an earlier version cannot be used"
                            run.emit(Notice(f"{old}; `retouch cache prune` removes it"))
                        inside = run.inside(draft, seed=int(key[:15], 16))
                        made = function(*args, **{**kwargs, "run": inside})  # type: ignore[arg-type]
                        tree, tensors = pack_value(made)
                        value = unpack_value(hint, tree, tensors)
                        run.store.keep(kind, key, tree, tensors, version=version)
                        draft.drop()
                        run.emit(Kept(kind, key))
                        return cast("R", value)
            run.emit(Reused(kind, key))
            return cast("R", kept)

        return keep

    return wrap


def _find_kept(run: ArtifactContext, kind: str, key: str, hint: object) -> object | None:
    """The kept value, or nothing; a damaged one is thrown away with a notice."""
    try:
        parts = run.store.find(kind, key)
        return None if parts is None else unpack_value(hint, *parts)
    except ArtifactError as error:
        run.emit(Notice(f"a kept {kind} is damaged and will be made again ({error})"))
        run.store.forget(kind, key)
        return None


@final
@dataclass(frozen=True)
class StoreEntry:
    """One kept artefact, or a piece of one that is being made, as `retouch cache list` shows it."""

    kind: str
    key: str
    folder: Path
    size: int
    made: float
    used: float

    def unused_for(self) -> float:
        """Return the seconds since it was last used."""
        return time.time() - self.used


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
        while (lies := _folder_state(folder)) is not None:
            try:
                manifest = self.check(folder)
                tensors = _read_tensors(folder / _TENSORS)
            except ArtifactError:
                if _folder_state(folder) == lies:
                    raise
                continue  # another process removed or replaced it just now
            with contextlib.suppress(OSError):  # a store that may only be read serves as well
                os.utime(folder)
            return manifest["tree"], tensors
        return None

    def keeps_older(self, kind: str, version: int) -> bool:
        """Whether artefacts of a kind are kept that can no longer be asked for: of a lower version."""
        for manifest in self.folder.glob(f"{kind}/*/{_MANIFEST}"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                if json.loads(manifest.read_text(encoding="utf-8"))["version"] < version:
                    return True
        return False

    def keep(self, kind: str, key: str, tree: object, tensors: Mapping[str, Tensor], *, version: int) -> Path:
        """Writes an artefact in one piece and says where it lies; a sound one that is there already stays.

        Raises:
            ResourceError: the disk is full.
        """
        folder = self._place(kind, key)
        draft = beside(folder)
        try:
            draft.mkdir(parents=True)
            write_tensors(tensors, draft / _TENSORS)
            manifest = {
                "format": FORMAT,
                "kind": kind,
                "key": key,
                "version": version,
                "digest": file_digest(draft / _TENSORS),
                "tree": tree,
            }
            text = json.dumps({**manifest, "seal": identity(json.dumps(manifest))})
            (draft / _MANIFEST).write_text(text, encoding="utf-8")
            sync(draft)
            while not self._settled(draft, folder):
                remove(folder)
        except OSError as error:
            raise system_error(error, folder) from None
        finally:
            remove(draft)
        return folder

    def _settled(self, draft: Path, folder: Path) -> bool:
        """Whether the artefact is in its place now, by our hands or those of another process."""
        try:
            draft.rename(folder)
        except OSError as error:
            if error.errno not in OCCUPIED and not folder.exists():
                raise
            try:
                self.check(folder)
            except ArtifactError:
                return False
        return True

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
            if seal != identity(json.dumps(manifest)):
                raise ArtifactError(f"the manifest of {folder.name} was changed")
            if (manifest["kind"], manifest["key"]) != (folder.parent.name, folder.name):
                raise ArtifactError(f"{folder.name} was made as {manifest['kind']}/{manifest['key']}")
            if manifest["digest"] != file_digest(folder / _TENSORS):
                raise ArtifactError(f"the tensors of {folder.name} were changed")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{folder.name} cannot be read ({type(error).__name__}: {error})") from None
        return manifest

    def forget(self, kind: str, key: str) -> None:
        """Removes an artefact, if it is there."""
        remove(self._place(kind, key))

    def entries(self) -> Iterator[StoreEntry]:
        """Every kept artefact, the longest unused first."""
        found = []
        for folder in self.folder.glob("*/*/"):
            if folder.name.startswith("."):
                continue
            with contextlib.suppress(FileNotFoundError):  # another process removes it just now
                used = folder.stat().st_mtime
                files = [file.stat() for file in folder.iterdir()]
                made = min((file.st_mtime for file in files), default=used)
                size = sum(file.st_size for file in files)
                found.append(StoreEntry(folder.parent.name, folder.name, folder, size, made, used))
        yield from sorted(found, key=lambda entry: (entry.used, entry.key))

    def prune(self, *, keep_bytes: int = 0, older_than: float = 0.0) -> list[StoreEntry]:
        """Removes the longest unused artefacts until `keep_bytes` are left, and what unfinished work left.

        Args:
            keep_bytes: What may stay; 0 removes all.
            older_than: Seconds since the last use that an artefact must have to be removed.
        """
        entries = list(self.entries())
        left = sum(entry.size for entry in entries)
        removed = []
        for entry in entries:
            if left > keep_bytes and entry.unused_for() >= older_than:
                remove(entry.folder)
                left -= entry.size
                removed.append(entry)
        for draft in self.unfinished():
            if draft.unused_for() >= max(older_than, _DRAFT_LIFETIME):
                remove(draft.folder)
                removed.append(draft)
        return removed

    def unfinished(self) -> list[StoreEntry]:
        """Checkpoints, what lies beside them, and half-written artefacts: work going on, or stopped.

        Whether it goes on cannot be told, so that `prune` lets them live for an hour after their last step.
        """
        found = []
        for path in self.folder.glob("*/.*"):
            with contextlib.suppress(FileNotFoundError):  # another process removes it just now
                files = [file.stat() for file in (path, *path.glob("*"))]
                used = max(file.st_mtime for file in files)
                size = sum(file.st_size for file in files[path.is_dir() :])
                found.append(StoreEntry(path.parent.name, path.name, path, size, used, used))
        return found

    def draft(self, kind: str, key: str) -> "DraftFile":
        """The checkpoints of an artefact that is being made."""
        return DraftFile(self.folder / kind / f".{key}.checkpoint.safetensors")

    @contextlib.contextmanager
    def making(self, kind: str, key: str, *, check: Callable[[], None]) -> Iterator["DraftFile"]:
        """Give the checkpoints of an artefact to one process at a time, which is to make it.

        Others wait, asking `check` if they may go on to, and look again for what was made. Where a maker
        shows no sign for long, or the file system knows no locks, the work is done beside, with checkpoints
        of its own.
        """
        draft = self.draft(kind, key)
        lock = draft.path.with_name(f".{key}.lock")
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            while (held := _try_lock(lock)) is None and time.time() - _last_sign(
                lock, draft.path
            ) < _PATIENCE:
                check()
                time.sleep(0.1)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise system_error(error, self._place(kind, key)) from None
            held = None
        if held is None:
            yield self.draft(kind, f"{key}.{secrets.token_hex(4)}")
            return
        try:
            yield draft
        finally:
            lock.unlink(missing_ok=True)
            os.close(held)

    def _place(self, kind: str, key: str) -> Path:
        assert kind.replace("_", "").isalnum(), kind
        assert key.isalnum(), key
        return self.folder / kind / key


_PATIENCE = 600.0
"""Seconds without a checkpoint after which whoever makes an artefact is no longer waited for."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""What a file system says that knows no locks."""
_DRAFT_LIFETIME = 3600.0
"""Seconds after which an unfinished write, or a checkpoint that nobody renews, is taken for dead."""


@final
@dataclass(frozen=True)
class DraftFile:
    """Checkpoints of long work: the last one saved is there whole, whatever happened since."""

    path: Path

    def load(self) -> dict[str, Tensor] | None:
        """The tensors of the last checkpoint, or nothing; a damaged one counts as none."""
        if not self.path.exists():
            return None
        try:
            return _read_tensors(self.path, sealed=True)
        except ArtifactError:
            self.drop()
            return None

    def save(self, tensors: Mapping[str, Tensor]) -> None:
        """Replaces the checkpoint in one step.

        Raises:
            ResourceError: the disk is full; the last checkpoint is still there.
        """
        plain = _plain_tensors(tensors)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise system_error(error, self.path) from None
        with replace_whole(self.path, force=True) as draft:
            write_tensors(plain, draft, {"seal": identity(plain)})

    def array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> np.memmap:
        """Return numbers in a file beside the checkpoint, for what is too long to be saved whole each time.

        They are those of an earlier attempt, or zeros where there is none; a checkpoint without them goes.
        """
        path = self.path.with_suffix(f".{name}")
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if self.path.exists() and path.exists() and path.stat().st_size == size:
            return np.memmap(path, dtype, "r+", shape=shape)
        self.drop()
        take_space(path, size)
        return np.memmap(path, dtype, "r+", shape=shape)

    def drop(self) -> None:
        """Remove the checkpoint and what lies beside it."""
        self.path.unlink(missing_ok=True)
        for path in self.path.parent.glob(f"{glob.escape(self.path.stem)}.*"):
            if path.suffix != ".part":  # what another process is writing
                path.unlink(missing_ok=True)


def pack_value(value: object) -> tuple[object, dict[str, Tensor]]:
    """A value as a JSON tree and the tensors that it refers to."""
    tensors: dict[str, Tensor] = {}
    tree = _pack_tree(value, "value", tensors)
    return tree, _plain_tensors(tensors)


def _pack_tree(value: object, name: str, tensors: dict[str, Tensor]) -> object:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (Tensor, np.ndarray)):
        name = name if name not in tensors else f"{name} {len(tensors)}"
        tensors[name] = value if isinstance(value, Tensor) else _as_tensor(value)
        return {"$tensor" if isinstance(value, Tensor) else "$array": name}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Fraction):
        return {"$fraction": str(value)}
    if isinstance(value, Path):
        return {"$path": str(value)}
    if isinstance(value, (tuple, list)):
        return [_pack_tree(inner, f"{name}.{index}", tensors) for index, inner in enumerate(value)]
    if isinstance(value, Mapping):
        return {
            "$map": {str(key): _pack_tree(inner, f"{name}.{key}", tensors) for key, inner in value.items()}
        }
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        parts = {f.name: _pack_tree(getattr(value, f.name), f"{name}.{f.name}", tensors) for f in fields}
        return {"$fields": [type(value).__name__, parts]}
    raise TypeError(f"a {type(value).__name__} cannot be kept")


def unpack_value(hint: object, tree: object, tensors: Mapping[str, Tensor]) -> object:
    """The value that `pack_value` took apart; classes come from the type hints, never from the file.

    Raises:
        ArtifactError: the parts do not fit the type.
    """
    try:
        return _unpack_tree(hint, tree, tensors)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"its parts do not fit {hint} ({type(error).__name__}: {error})") from None


def _unpack_tree(hint: Any, tree: Any, tensors: Mapping[str, Tensor]) -> object:
    if isinstance(tree, list):
        hint = _one_of(hint, lambda part: get_origin(part) in (list, tuple, Sequence))
        inner = get_args(hint) or (object,)
        alike = get_origin(hint) is not tuple or inner[1:] == (...,)
        each = [inner[0]] * len(tree) if alike else inner
        values = [_unpack_tree(part, branch, tensors) for part, branch in zip(each, tree, strict=True)]
        return values if list in (hint, get_origin(hint)) else tuple(values)
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
            hint = _one_of(hint, lambda part: get_origin(part) in (dict, Mapping))
            inner_hint = (get_args(hint) or (str, object))[1]
            return {key: _unpack_tree(inner_hint, branch, tensors) for key, branch in content.items()}
    if mark != "$fields":
        raise TypeError(f"{mark} where {hint} is expected")
    name, parts = content
    kind = _one_of(
        hint, lambda part: dataclasses.is_dataclass(part) and getattr(part, "__name__", "") == name
    )
    hints = typing.get_type_hints(kind)
    return kind(**{key: _unpack_tree(hints[key], branch, tensors) for key, branch in parts.items()})


def _one_of(hint: Any, fits: Callable[[Any], bool]) -> Any:
    """The type of a union that fits; a type that is no union is given back when it fits."""
    parts = get_args(hint) if get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    found = [part for part in parts if fits(part)]
    if not found and hint in (object, tuple, list, dict):
        return hint
    if len(found) != 1:
        raise TypeError(f"{hint} does not say what to make of it")
    return found[0]


def _as_tensor(array: np.ndarray) -> Tensor:
    """An array's numbers as a tensor; they are copied if the array may not be written to."""
    ordered = np.asarray(array, order="C")
    return torch.from_numpy(ordered if ordered.flags.writeable else ordered.copy())


def _plain_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
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


def _read_tensors(path: Path, *, sealed: bool = False) -> dict[str, Tensor]:
    """The tensors of a file; a sealed one is held against the hash that it carries."""
    try:
        with safe_open(path, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - it is no mapping
            seal = (stored.metadata() or {}).get("seal", "")
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:  # torch raises its own for no file
        raise ArtifactError(f"{path.name} cannot be read ({error})") from None
    if sealed and seal != identity(tensors):
        raise ArtifactError(f"{path.name} was changed")
    return tensors


def write_tensors(tensors: Mapping[str, Tensor], path: Path, about: Mapping[str, str] | None = None) -> None:
    """Write tensors; raise OSError where safetensors wraps it into an error of its own."""
    try:
        save_file(dict(tensors), path, metadata=dict(about) if about else None)
    except SafetensorError as error:
        code = next((code for code in FULL if f"os error {code}" in str(error)), None)
        if code is None:
            raise
        raise OSError(code, os.strerror(code), str(path)) from None


def _try_lock(path: Path) -> int | None:
    """Return the descriptor of a lock that is ours now; None where another process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), path.stat()):  # and not one that was removed meanwhile
            os.utime(descriptor)
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _last_sign(*paths: Path) -> float:
    """Return when the youngest of some files was written; now, where none is there."""
    signs = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            signs.append(path.stat().st_mtime)
    return max(signs, default=time.time())


def _folder_state(folder: Path) -> tuple[int, int] | None:
    """Which folder lies there and since which change, or nothing."""
    try:
        about = folder.stat()
    except OSError:
        return None
    return (about.st_ino, about.st_ctime_ns) if stat.S_ISDIR(about.st_mode) else None
