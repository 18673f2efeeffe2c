"""The one file of an IP-Adapter, found and looked at by its header alone."""

from pathlib import Path
from typing import Final

from safetensors import safe_open

from retouch.errors import ModelMismatch
from retouch.models.refs import check_weights

ENCODER: Final = "image_encoder"
PROJECTION: Final = "image_proj."
ATTENTION: Final = "ip_adapter."
PARTS: Final = (PROJECTION, ATTENTION)
"""What the names of the tensors begin with."""


def is_adapter(folder: Path) -> bool:
    """Whether an image encoder lies there, as beside every IP-Adapter, and no pipeline around it."""
    return _parts_folder(folder) is not None and not (folder / "model_index.json").exists()


def adapter_file(folder: Path, ref: str) -> Path:
    """The adapter in a model's folder; its image encoder lies beside it.

    Raises:
        ModelMismatch: a part is missing or a pickle, there is more than one adapter, or it is of a kind that
            takes more than one embedding of the picture.
    """
    place = _parts_folder(folder) or folder
    check_weights(place / ENCODER, ref)
    check_weights(place, ref)
    files = sorted(place.glob("*.safetensors"))
    if len(files) > 1:
        raise ModelMismatch(
            f"{ref} holds {len(files)} adapters: {', '.join(f.name for f in files)}",
            hint="make a folder with the one that you mean, and image_encoder beside it",
        )
    with safe_open(files[0], "pt") as stored:
        names = list(stored.keys())
    if f"{PROJECTION}proj.weight" not in names or not any(name.startswith(ATTENTION) for name in names):
        raise ModelMismatch(
            f"{files[0].name} is no plain IP-Adapter (one embedding of the picture, a few tokens)",
            hint="the Plus, Full and FaceID kinds are not read; ip-adapter_sd15.safetensors is",
        )
    return files[0]


def _parts_folder(folder: Path) -> Path | None:
    """Where the parts lie: the published repository keeps them in `models`."""
    return next((place for place in (folder, folder / "models") if (place / ENCODER).is_dir()), None)
