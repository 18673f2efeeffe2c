"""Writes what has been trained as it is shipped: half precision, in the layouts of the big siblings.

Each model folder also gets PROVENANCE.json: which recipe made it (a digest of the scripts), from which
seed, how long, how the loss went, and the figures that `benchmarks/family.py` measured.
"""

import argparse
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import architecture
import torch
from face_attributes import fitted
from face_network import finished_identity, folded, identities, new_network
from faces import prepared
from latents import finished_autoencoder
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import interpolate
from train_clip import MEAN, STD
from train_control import Controlled
from train_face_words import vocabulary
from train_ip import save_adapter
from train_unet import Pair
from transformers import CLIPVisionModelWithProjection

from retouch.models.face import FaceDiffusion
from retouch.models.face_model import save_part
from retouch.models.face_parts import SmallReader
from retouch.models.face_words import SmallWords
from retouch.models.fit import load_average
from retouch.world import LANDMARKS, PARTS

SHIPPED: Final = Path(__file__).parents[2] / "src" / "retouch" / "models" / "_tiny"
HISTORY_ROWS: Final = 24
VIDEO_SIDE: Final = 224


def recipe_digest() -> str:
    """A digest of every script that decides what the weights become."""
    scripts = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(script.read_bytes() for script in scripts)).hexdigest()


def training(folder: Path) -> Mapping[str, object]:
    """What a training's checkpoint says about itself, its history thinned."""
    with safe_open(folder / "checkpoint.safetensors", "pt") as file:
        about = json.loads(file.metadata()["about"])
    history = about["history"]
    every = max(1, len(history) // HISTORY_ROWS)
    return {"steps": about["step"], "images": about["images"], "history": history[::-1][::every][::-1]}


def save_half(part: nn.Module, folder: Path) -> None:
    """The part in half precision; its config says float32, so that stock pipelines load all parts alike."""
    part.half().save_pretrained(folder)  # type: ignore[operator]
    config = json.loads((folder / "config.json").read_text("utf-8"))
    for key in ("dtype", "torch_dtype", "_name_or_path"):
        config.pop(key, None)
    if "transformers_version" in config:
        config["dtype"] = "float32"
        for tower in ("text_config", "vision_config"):
            if tower in config:
                config[tower]["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def prefix_keys(path: Path, prefix: str) -> None:
    """Name tensors as every version of transformers reads them; from version 5 on it writes them without."""
    tensors = load_file(path)
    if not all(name.startswith(prefix) for name in tensors):
        save_file({prefix + name: value for name, value in tensors.items()}, path, metadata={"format": "pt"})


def write_index(folder: Path, pipeline: str, parts: Mapping[str, tuple[str | None, str | None]]) -> None:
    """The pipeline's index."""
    index = {
        "_class_name": pipeline,
        "_diffusers_version": "0.35.0",
        **{k: list(v) for k, v in parts.items()},
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def weights_digest(folder: Path) -> str:
    """A digest of all weights of a model."""
    files = sorted(folder.rglob("*.safetensors"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def write_provenance(folder: Path, trainings: Mapping[str, Path], seed: int = 0) -> None:
    """Where the weights come from; the figures are measured on them later."""
    about = {
        "recipe": "tools/family",
        "recipe_digest": recipe_digest(),
        "weights_digest": weights_digest(folder),
        "seed": seed,
        "trainings": {name: training(path) for name, path in trainings.items()},
        "licence": "Apache-2.0",
        "quality": {},
    }
    (folder / "PROVENANCE.json").write_text(json.dumps(about, indent=1) + "\n", "utf-8")


def fresh(name: str) -> Path:
    """An empty folder for one model."""
    folder = SHIPPED / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def write_preparation(folder: Path, side: int = architecture.CLIP_SIDE) -> None:
    """How pictures are prepared for the picture tower."""
    folder.mkdir(exist_ok=True)
    preparation = {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": side},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preparation, indent=2) + "\n", "utf-8")


def export_sd(work: Path, size: int) -> None:
    """tiny:sd."""
    folder = fresh("sd")
    tokenizer = architecture.tokenizer(folder / "tokenizer")
    pair = load_average(Pair(len(tokenizer)), work / f"unet-{size}px")
    vae = finished_autoencoder(work, size)
    save_half(pair.text, folder / "text_encoder")
    prefix_keys(folder / "text_encoder" / "model.safetensors", "text_model.")
    save_half(pair.unet, folder / "unet")
    save_half(vae, folder / "vae")
    (folder / "scheduler").mkdir()
    schedule = json.dumps(architecture.SCHEDULER, indent=2) + "\n"
    (folder / "scheduler" / "scheduler_config.json").write_text(schedule, "utf-8")
    parts = {
        "feature_extractor": (None, None),
        "safety_checker": (None, None),
        "scheduler": ("diffusers", "DDIMScheduler"),
        "text_encoder": ("transformers", "CLIPTextModel"),
        "tokenizer": ("transformers", "CLIPTokenizer"),
        "unet": ("diffusers", "UNet2DConditionModel"),
        "vae": ("diffusers", "AutoencoderKL"),
    }
    write_index(folder, "StableDiffusionPipeline", parts)
    trainings = {"autoencoder": work / f"vae-{size}px", "unet": work / f"unet-{size}px"}
    if (refined := work / f"decoder-{size}px").exists():
        trainings["decoder"] = refined
    write_provenance(folder, trainings)


def export_clip(work: Path, size: int) -> None:  # noqa: ARG001 - one signature for every export
    """tiny:clip."""
    folder = fresh("clip")
    tokenizer = architecture.tokenizer(folder)
    save_half(load_average(architecture.clip(len(tokenizer)), work / "clip"), folder)
    write_preparation(folder)
    write_provenance(folder, {"clip": work / "clip"})


def export_canny(work: Path, size: int) -> None:
    """tiny:sd-canny."""
    folder = fresh("sd-canny")
    tokenizer = architecture.tokenizer(work / "tokenizer")
    model = load_average(Controlled(Pair(len(tokenizer)), size), work / f"canny-{size}px")
    save_half(model.net, folder)
    write_provenance(folder, {"control": work / f"canny-{size}px"})


def export_ip(work: Path, size: int) -> None:
    """tiny:ip, with the picture tower that it listens to."""
    folder = fresh("ip")
    save_adapter(work, size, folder / "ip_adapter.safetensors")
    save_half(vision_tower(work), folder / "image_encoder")
    write_provenance(folder, {"adapter": work / f"ip-{size}px"})


def export_svd(work: Path, size: int) -> None:
    """tiny:svd."""
    folder = fresh("svd")
    unet = load_average(architecture.video_unet(), work / f"svd-{size}px")
    vae = load_average(architecture.temporal_autoencoder(size), work / f"svd-vae-{size}px")
    vae.register_to_config(scaling_factor=1.0)
    save_half(unet, folder / "unet")
    save_half(vae, folder / "vae")
    save_half(enlarged(vision_tower(work)), folder / "image_encoder")
    write_preparation(folder / "feature_extractor", VIDEO_SIDE)
    (folder / "scheduler").mkdir()
    schedule = json.dumps(architecture.VIDEO_SCHEDULER, indent=2) + "\n"
    (folder / "scheduler" / "scheduler_config.json").write_text(schedule, "utf-8")
    parts = {
        "feature_extractor": ("transformers", "CLIPImageProcessor"),
        "image_encoder": ("transformers", "CLIPVisionModelWithProjection"),
        "scheduler": ("diffusers", "EulerDiscreteScheduler"),
        "unet": ("diffusers", "UNetSpatioTemporalConditionModel"),
        "vae": ("diffusers", "AutoencoderKLTemporalDecoder"),
    }
    write_index(folder, "StableVideoDiffusionPipeline", parts)
    write_provenance(folder, {"unet": work / f"svd-{size}px", "autoencoder": work / f"svd-vae-{size}px"})


def export_face(work: Path, size: int) -> None:  # noqa: ARG001 - one signature for every export
    """tiny:face: the network, the identity encoder, the reader, and what attributes are called."""
    folder = fresh("face")
    network = folded(load_average(new_network(), work / "face-unet")).half()
    FaceDiffusion.wrap(network).save(folder)
    encoder = finished_identity(work)
    about = {"_class_name": "SmallIdentity", "features": encoder.head.out_features}
    save_part(encoder, folder / "identity", about)
    reader = load_average(SmallReader(len(LANDMARKS), PARTS), work / "face-reader")
    said = {"_class_name": "SmallReader", "points": list(LANDMARKS), "parts": list(PARTS)}
    save_part(reader, folder / "reader", said)
    faces = prepared(work, int((work / "face-pictures" / "drawn").read_text()))
    fitted(identities(work, faces, "train"), faces).save(folder / "attributes")
    names = ("face-identity", "face-reader", "face-unet")
    write_provenance(folder, {name: work / name for name in names})
    add_face_words(work, folder)


def add_face_words(work: Path, folder: Path = SHIPPED / "face") -> None:
    """The words of tiny:face, beside the rest of it, which stays."""
    words = load_average(SmallWords(vocabulary()), work / "face-words")
    told = {"_class_name": "SmallWords", "identity": words.face.in_features, "words": list(words.words)}
    save_part(words, folder / "words", told)
    path = folder / "PROVENANCE.json"
    about = json.loads(path.read_text("utf-8"))
    about["weights_digest"] = weights_digest(folder)
    about["trainings"]["face-words"] = training(work / "face-words")
    path.write_text(json.dumps(about, indent=1) + "\n", "utf-8")


def vision_tower(work: Path) -> CLIPVisionModelWithProjection:
    """The picture tower of tiny:clip by itself."""
    tokenizer = architecture.tokenizer(work / "tokenizer")
    clip = load_average(architecture.clip(len(tokenizer)), work / "clip")
    tower = CLIPVisionModelWithProjection(architecture.vision_config())
    tower.vision_model.load_state_dict(clip.vision_model.state_dict())
    tower.visual_projection.load_state_dict(clip.visual_projection.state_dict())
    return tower


def enlarged(tower: CLIPVisionModelWithProjection) -> CLIPVisionModelWithProjection:
    """The tower for pictures of 224 pixels, the size that stock StableVideoDiffusionPipeline always prepares.

    As many patches, each larger: a patch's new weights answer to an enlarged patch as the old ones do to the
    patch itself, by the pseudo-inverse of the enlargement (FlexiViT, Beyer et al. 2023).
    """
    old = architecture.CLIP_PATCH
    new = old * VIDEO_SIDE // architecture.CLIP_SIDE
    config = architecture.vision_config()
    config.image_size, config.patch_size = VIDEO_SIDE, new
    large = CLIPVisionModelWithProjection(config)
    state = tower.state_dict()
    name = "vision_model.embeddings.patch_embedding.weight"
    unit = torch.eye(old * old).reshape(old * old, 1, old, old)
    enlarge = interpolate(unit, (new, new), mode="bilinear").flatten(1).T  # new pixels, old pixels
    state[name] = (state[name].flatten(2) @ torch.linalg.pinv(enlarge)).unflatten(2, (new, new))
    large.load_state_dict(state)
    return large


EXPORTS: Final[Mapping[str, tuple[Callable[[Path, int], None], str]]] = {
    "sd": (export_sd, "unet-{size}px"),
    "clip": (export_clip, "clip"),
    "sd-canny": (export_canny, "canny-{size}px"),
    "ip": (export_ip, "ip-{size}px"),
    "svd": (export_svd, "svd-{size}px"),
    "face": (export_face, "face-words"),
}
"""What writes each model, and the training without which there is nothing to write."""


def main() -> None:
    """Export from the command line: the models named, or all that have been trained."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--work", type=Path, default=Path(".family"))
    parser.add_argument("--size", type=int, default=64, choices=(64, 128))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for name, (export, needs) in EXPORTS.items():
        trained = (asked.work / needs.format(size=asked.size) / "checkpoint.safetensors").exists()
        if name in asked.models or (not asked.models and trained):
            export(asked.work, asked.size)
            size = sum(p.stat().st_size for p in (SHIPPED / name).rglob("*") if p.is_file())
            print(f"tiny:{name}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
