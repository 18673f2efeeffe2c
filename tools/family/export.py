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
from fit import load_average
from latents import finished_autoencoder
from safetensors import safe_open
from torch import nn
from train_clip import MEAN, STD
from train_unet import Pair

SHIPPED: Final = Path(__file__).parents[2] / "src" / "retouch" / "models" / "_tiny"
HISTORY_ROWS: Final = 24


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
    part.half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    for key in ("dtype", "torch_dtype", "_name_or_path"):
        config.pop(key, None)
    if "transformers_version" in config:
        config["dtype"] = "float32"
        for tower in ("text_config", "vision_config"):
            if tower in config:
                config[tower]["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def write_index(folder: Path, pipeline: str, parts: Mapping[str, tuple[str | None, str | None]]) -> None:
    """The pipeline's index."""
    index = {
        "_class_name": pipeline,
        "_diffusers_version": "0.35.0",
        **{k: list(v) for k, v in parts.items()},
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def write_provenance(folder: Path, trainings: Mapping[str, Path], seed: int = 0) -> None:
    """Where the weights come from; the figures are measured on them later."""
    weights = hashlib.sha256(
        b"".join(p.read_bytes() for p in sorted(folder.rglob("*.safetensors")))
    ).hexdigest()
    about = {
        "recipe": "tools/family",
        "recipe_digest": recipe_digest(),
        "weights_digest": weights,
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


def export_sd(work: Path, size: int) -> None:
    """tiny:sd."""
    folder = fresh("sd")
    tokenizer = architecture.tokenizer(folder / "tokenizer")
    pair = load_average(Pair(len(tokenizer)), work / f"unet-{size}px")
    vae = finished_autoencoder(work, size)
    save_half(pair.text, folder / "text_encoder")
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
    write_provenance(folder, {"autoencoder": work / f"vae-{size}px", "unet": work / f"unet-{size}px"})


def export_clip(work: Path, size: int) -> None:  # noqa: ARG001 - one signature for every export
    """tiny:clip."""
    folder = fresh("clip")
    tokenizer = architecture.tokenizer(folder)
    save_half(load_average(architecture.clip(len(tokenizer)), work / "clip"), folder)
    side = architecture.CLIP_SIDE
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
    write_provenance(folder, {"clip": work / "clip"})


EXPORTS: Final[Mapping[str, Callable[[Path, int], None]]] = {"sd": export_sd, "clip": export_clip}


def main() -> None:
    """Export from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", choices=[*EXPORTS, []], default=list(EXPORTS))
    parser.add_argument("--work", type=Path, default=Path(".family"))
    parser.add_argument("--size", type=int, default=64, choices=(64, 128))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for name in asked.models:
        EXPORTS[name](asked.work, asked.size)
        size = sum(p.stat().st_size for p in (SHIPPED / name).rglob("*") if p.is_file())
        print(f"tiny:{name}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
