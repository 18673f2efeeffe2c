"""What a model folder is, and what keeps it from being used; reads configs and file headers, no weights."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from accelerate import init_empty_weights
from diffusers import ModelMixin
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from retouch.errors import ModelMismatch
from retouch.models.adapter_file import ENCODER, adapter_file, is_adapter
from retouch.models.face import KIND as FACE
from retouch.models.loading import UNREAD, quiet
from retouch.models.refs import check_weights, read_config, read_index, weight_variant
from retouch.run import loading

SINGLE: Final = {
    "ControlNetModel": "a control network (ControlNet)",
    "UNet2DConditionModel": "a UNet alone",
    "AutoencoderKL": "an autoencoder alone",
    FACE: "a face model",
}
WITHOUT_WEIGHTS: Final = (
    "scheduler",
    "tokenizer",
    "tokenizer_2",
    "tokenizer_3",
    "processor",
    "text_processor",
    "feature_extractor",
    "safety_checker",
    "image_processor",
)


@final
@dataclass(frozen=True)
class ModelInspection:
    """What was found."""

    kind: str
    faults: tuple[str, ...]
    remarks: tuple[str, ...]

    def plain(self) -> dict[str, object]:
        """Return everything as plain values."""
        return {"kind": self.kind, "faults": list(self.faults), "remarks": list(self.remarks)}

    def words(self) -> str:
        """Return everything as a person reads it, a line each."""
        faults = (f"cannot be used: {fault}" for fault in self.faults)
        return "\n  ".join([self.kind, *self.remarks, *faults])


def inspect_model(folder: Path) -> ModelInspection:
    """Say what lies in `folder`."""
    if (folder / "model_index.json").is_file():
        return _inspect_pipeline(folder)
    if (folder / "config.json").is_file():
        return _inspect_file(folder)
    if is_adapter(folder):
        return _inspect_adapter(folder)
    if any(folder.glob("*.ckpt")) or any(folder.glob("*.safetensors")):
        return ModelInspection("a single-file checkpoint", ("it is not in the layout of diffusers",), ())
    return ModelInspection("no model", ("there is neither model_index.json nor config.json",), ())


def _inspect_pipeline(folder: Path) -> ModelInspection:
    try:
        index = read_index(folder, str(folder))
    except ModelMismatch as problem:
        return ModelInspection("a damaged pipeline", (str(problem),), ())
    faults, remarks = [], []
    for part, of in index.items():
        if part.startswith("_") or not isinstance(of, list) or of[1] is None or part == "safety_checker":
            continue
        if part in WITHOUT_WEIGHTS and not (folder / part).is_dir():
            faults.append(f"{part} is missing")
            continue
        fault: list[str] = []
        if part not in WITHOUT_WEIGHTS:
            fault, remark = _inspect_weights(folder / part, f"{part} ({of[1]})")
            remarks += remark
        faults += fault + _configuration(folder / part, str(of[0]), str(of[1]), weights=not fault)
    return ModelInspection(f"a {index.get('_class_name')}", tuple(dict.fromkeys(faults)), tuple(remarks))


def _configuration(folder: Path, library: str, name: str, *, weights: bool) -> list[str]:
    """What keeps a component from being built: networks are built without memory, what has none is loaded.

    Args:
        folder: The component's.
        library: Of its class.
        name: Of its class.
        weights: Whether its weights are whole files, so that their names can be held against the network's.
    """
    try:
        with loading(folder.name), quiet():
            for path in folder.glob("*config*.json"):
                read_config(path, str(folder))
            kind = getattr(importlib.import_module(library), name)
            if not issubclass(kind, ModelMixin | PreTrainedModel):
                kind.from_pretrained(folder, local_files_only=True)
            elif weights:
                lacking = _missing_weights(kind, folder)
                return [f"{folder.name} lacks {lacking[0]} ({len(lacking)} in all)"] if lacking else []
            else:
                with init_empty_weights():
                    if issubclass(kind, ModelMixin):
                        kind.from_config(kind.load_config(folder, local_files_only=True))
                    else:
                        kind(kind.config_class.from_pretrained(folder, local_files_only=True))
    except ModelMismatch as problem:
        return [str(problem)]
    return []


def _missing_weights(kind: type[ModelMixin | PreTrainedModel], folder: Path) -> list[str]:
    _, told = kind.from_pretrained(
        folder,
        device_map={"": "meta"},
        local_files_only=True,
        use_safetensors=True,
        variant=weight_variant(folder),
        output_loading_info=True,
    )
    return sorted(name for name in told["missing_keys"] if not name.startswith(UNREAD))


def _inspect_file(folder: Path) -> ModelInspection:
    try:
        config = read_config(folder / "config.json", str(folder))
    except ModelMismatch as problem:
        return ModelInspection("a damaged model", (str(problem),), ())
    name = str(config.get("_class_name") or config.get("model_type"))
    faults, remarks = _inspect_weights(folder, name)
    library, kind = (
        ("diffusers", name) if "_class_name" in config else ("transformers", _architecture(config))
    )
    if kind and kind != FACE:
        faults += _configuration(folder, library, kind, weights=not faults)
    return ModelInspection(SINGLE.get(name, f"a {name} model"), tuple(faults), tuple(remarks))


def _architecture(config: Mapping[str, object]) -> str:
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else ""


def _inspect_adapter(folder: Path) -> ModelInspection:
    kind = "an image prompt (IP-Adapter)"
    try:
        file = adapter_file(folder, str(folder))
    except (ModelMismatch, SafetensorError) as problem:
        return ModelInspection(kind, (str(problem),), ())
    faults, remarks = _inspect_weights(file.parent, file.name)
    more, others = _inspect_weights(file.parent / ENCODER, ENCODER)
    return ModelInspection(kind, (*faults, *more), (*remarks, *others))


def _inspect_weights(folder: Path, name: str) -> tuple[list[str], list[str]]:
    """Faults and remarks about one component's weight files; every header is read."""
    try:
        check_weights(folder, name)
    except ModelMismatch as problem:
        return [str(problem)], []
    count = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            count += len(file.keys())
    return [], [f"{name}: {count} tensors"]
