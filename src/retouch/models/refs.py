"""Where a model's folder is.

A reference is a folder (`./folder`, `/somewhere/folder`), a name from the catalogue (`sd15`), an embedded
model (`tiny:sd`) or a repository of the Hugging Face hub (`hf:org/name@revision`). Names are looked for in
`RETOUCH_HOME/models`, then in the Hugging Face cache. Looking never opens a connection; `fetch_model` does,
and only because somebody asked for it by name.
"""

import difflib
import json
import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import final

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from retouch.errors import DownloadRefused, ModelMismatch, ModelNotFound
from retouch.places import home, offline

TINY = "tiny:"
HUB = "hf:"
PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth", "*.pkl")
"""What a download leaves out: files that run code when they are opened."""
_LIBRARIES = (None, "diffusers", "transformers", "stable_diffusion", "deepfloyd_if")
"""Where the parts of a pipeline come from; the last two are diffusers' own names for its safety checkers."""
_LAYERS, _NUMBER = 512, 1 << 24
"""The most layers, and the largest other number, that a configuration can mean."""


@final
@dataclass(frozen=True)
class CatalogueEntry:
    """What the catalogue knows about one model."""

    name: str
    title: str
    kind: str
    source: str
    revision: str
    size_mb: int
    licence: str
    gated: bool
    tiny: str
    notice: str
    files: tuple[str, ...]

    @property
    def ref(self) -> str:
        """The repository and revision as one reference."""
        return f"{HUB}{self.source}@{self.revision}"


@cache
def catalogue() -> Mapping[str, CatalogueEntry]:
    """Every model that has a name here, by that name."""
    text = resources.files("retouch.models").joinpath("catalog.toml").read_text("utf-8")
    rows = tomllib.loads(text)
    return {
        name: CatalogueEntry(name=name, files=tuple(row.pop("files")), **row) for name, row in rows.items()
    }


def embedded() -> Mapping[str, Path]:
    """The models that come with the package, by reference (`tiny:sd`)."""
    root = Path(str(resources.files("retouch.models").joinpath("_tiny")))
    folders = sorted(f for f in root.glob("*") if (f / "PROVENANCE.json").is_file()) if root.is_dir() else []
    return {TINY + folder.name: folder for folder in folders}


def resolve(ref: str) -> Path:
    """The folder that `ref` names, found without the network.

    Raises:
        ModelNotFound: with the command that gets the model and the embedded one that works now.
        ModelMismatch: what lies in it is no file: a pipe would keep its reader waiting.
    """
    folder = _found(ref)
    for path in (*folder.glob("*"), *folder.glob("*/*")):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ModelMismatch(f"{path} is no file", hint="remove it, or get the model again")
    return folder


def _found(ref: str) -> Path:
    if ref.startswith(TINY):
        return _embedded_folder(ref)
    if ref.startswith(HUB):
        return _cached_folder(ref, ref, _split_ref(ref), tiny="tiny:sd")
    if _is_path(ref):
        return _folder_of(ref)
    entry = catalogue().get(ref)
    if entry is None:
        raise ModelNotFound(f"no model is called {ref!r}", hint=_suggest_model(ref))
    own = home() / "models" / entry.name
    if own.is_dir():
        return own
    return _cached_folder(ref, entry.title, (entry.source, entry.revision), tiny=entry.tiny)


def fetch_model(ref: str) -> Path:
    """Download what `ref` names, because the user asked for it, and give its folder.

    Catalogue models go to `RETOUCH_HOME/models`, others to the Hugging Face cache; pickles stay there.

    Raises:
        DownloadRefused: offline, or the hub said no.
    """
    if ref.startswith(TINY) or _is_path(ref):
        return resolve(ref)
    entry = catalogue().get(ref)
    if entry is None and not ref.startswith(HUB):
        raise ModelNotFound(f"no model is called {ref!r}", hint=_suggest_model(ref))
    if offline():
        raise DownloadRefused(
            f"RETOUCH_OFFLINE is set, so {ref} is not downloaded",
            hint="unset RETOUCH_OFFLINE, or copy the model's folder and name it",
        )
    source, revision = (entry.source, entry.revision) if entry else _split_ref(ref)
    where = home() / "models" / entry.name if entry else None
    allow = list(entry.files) if entry else None
    try:
        got = snapshot_download(
            source, revision=revision, local_dir=where, allow_patterns=allow, ignore_patterns=list(PICKLES)
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as problem:
        raise DownloadRefused(
            f"{source} could not be downloaded: {problem}", hint=_refuse_download(entry)
        ) from problem
    return Path(got)


def read_index(folder: Path, ref: str) -> Mapping[str, object]:
    """The pipeline index (`model_index.json`) of a model folder.

    Raises:
        ModelMismatch: the folder has none, it is no JSON object, or it names classes of other packages, which
            would be imported.
    """
    index = read_config(folder / "model_index.json", ref)
    for part, named in index.items():
        if isinstance(named, list) and (len(named) != 2 or named[0] not in _LIBRARIES):
            raise ModelMismatch(
                f"the {part} of {ref} is {named}, of no library that models come from",
                hint=f"models are made of parts of {' and '.join(map(str, _LIBRARIES[1:3]))}",
            )
    return index


def read_config(path: Path, ref: str) -> Mapping[str, object]:
    """One JSON configuration file of a model.

    Raises:
        ModelMismatch: it is missing or damaged.
    """
    if not path.is_file():
        raise ModelMismatch(
            f"{ref} has no {path.name} in {path.parent}",
            hint="`retouch models check FOLDER` says what a model folder needs and what is missing",
        )
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as problem:
        raise ModelMismatch(
            f"{path} is not JSON: {problem}", hint="the file is damaged; get the model again"
        ) from problem
    if not isinstance(config, dict):
        raise ModelMismatch(f"{path} holds no JSON object", hint="the file is damaged; get the model again")
    for key, value in config.items():
        if isinstance(value, int) and value > (_LAYERS if "layers" in key else _NUMBER):
            raise ModelMismatch(
                f"{path} says {key} is {value}", hint="the file is damaged; get the model again"
            )
    return config


def check_weights(folder: Path, ref: str) -> None:
    """See that a component folder holds whole safetensors, so that nothing is unpickled, and a configuration.

    Raises:
        ModelMismatch: the folder is missing, its weights are pickles only, cut short, or not there at all.
    """
    if not folder.is_dir():
        raise ModelMismatch(
            f"{ref} has no {folder.name} folder",
            hint="the download may be incomplete; `retouch models check FOLDER` lists every part",
        )
    if (folder / "config.json").exists():
        read_config(folder / "config.json", ref)
    if files := sorted(folder.glob("*.safetensors")):
        for path in files:
            numbers_in(path)
        if missing := missing_shards(folder):
            raise ModelMismatch(f"{folder} lacks {', '.join(missing)}", hint="get the model again")
        return
    pickles = sorted(f.name for pattern in PICKLES for f in folder.glob(pattern))
    if pickles:
        raise ModelMismatch(
            f"{ref} has its {folder.name} weights as a pickle ({pickles[0]}), which can run code",
            hint="use a revision with .safetensors files, or convert it; pickles are never loaded",
        )
    raise ModelMismatch(
        f"{ref} has no weights (*.safetensors) in {folder.name}",
        hint="the download may be incomplete; `retouch models check FOLDER` lists every part",
    )


def missing_shards(folder: Path) -> list[str]:
    """Give the weight files that a component's index names and that are not beside it."""
    missing = set()
    for index in folder.glob("*.safetensors.index.json"):
        named = read_config(index, str(folder)).get("weight_map")
        names = set(named.values()) if isinstance(named, dict) else {"weight_map"}
        missing |= {
            str(name) for name in names if Path(str(name)).name != name or not (folder / name).is_file()
        }
    return sorted(missing)


def weight_variant(folder: Path) -> str | None:
    """The variant (`fp16`) that a component's weight files carry in their name, if only that one is there."""
    names = [f.name for f in folder.glob("*.safetensors")]
    return "fp16" if names and all(".fp16." in name for name in names) else None


def numbers_in(path: Path) -> int:
    """How many numbers a file of weights holds, by its header alone.

    Raises:
        ModelMismatch: it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            return sum(math.prod(stored.get_slice(name).get_shape()) for name in stored.keys())  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError) as problem:
        raise ModelMismatch(
            f"{path} is damaged or cut short ({problem})", hint="get the model again"
        ) from None


def stored_bytes(ref: str) -> int:
    """How many bytes the weights of the model that `ref` names take on disk.

    Raises:
        ModelNotFound: it is not on this machine.
    """
    return sum(path.stat().st_size for path in resolve(ref).rglob("*.safetensors"))


def _is_path(ref: str) -> bool:
    return ref.startswith((".", "/", "~")) or os.sep in ref or (Path(ref).is_dir() and ref not in catalogue())


def _folder_of(ref: str) -> Path:
    folder = Path(ref).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ModelMismatch(
            f"{ref} is a file, not a model folder",
            hint="single-file checkpoints are not read; name a folder in the diffusers layout",
        )
    raise ModelNotFound(
        f"there is no folder {ref}",
        hint="give an existing folder, a name from `retouch models list`, or tiny:sd, which works now",
    )


def _embedded_folder(ref: str) -> Path:
    found = embedded()
    if ref not in found:
        raise ModelNotFound(
            f"no embedded model is called {ref!r}",
            hint=_near_refs(ref, found) or f"there are {', '.join(found)}",
        )
    return found[ref]


def _split_ref(ref: str) -> tuple[str, str]:
    source, _, revision = ref.removeprefix(HUB).partition("@")
    if source.count("/") != 1 or not all(source.split("/")):
        raise ModelNotFound(f"{ref} is no hub reference", hint="write it as hf:org/name@revision")
    return source, revision or "main"


def _cached_folder(ref: str, title: str, where: tuple[str, str], *, tiny: str) -> Path:
    source, revision = where
    try:
        return Path(snapshot_download(source, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError) as problem:
        hint = (
            f"get it with: retouch models get {ref}\n{tiny} works now, without a download"
            if tiny
            else f"get it with: retouch models get {ref}"
        )
        raise ModelNotFound(f"{title} is not on this machine", hint=hint) from problem


def _near_refs(ref: str, names: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(ref, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else ""


def _suggest_model(ref: str) -> str:
    names = {**catalogue(), **embedded()}
    return _near_refs(ref, names) or "see `retouch models list`; tiny:sd works now, without a download"


def _refuse_download(entry: CatalogueEntry | None) -> str:
    if entry and entry.gated:
        return f"accept the licence on https://huggingface.co/{entry.source} and log in with `hf auth login`"
    return "check the connection and the name; a model folder copied by hand works too"
