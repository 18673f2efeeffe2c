"""Holds StableVideo's faithful mode, and the reader of its checkpoints, against numbers of the authors' code.

Everything is driven by the fields of `fixture.json` and by the tensors listed there: sizes, boxes, key
frames, steps, noise, tolerances. Each stage is fed with the stage before as the fixture has it, because bytes
that are cut down and edges that are found make a walk from end to end jump.
"""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast, final

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from tools.convert.lna import Trained, read_checkpoint
from tools.parity_report import Report
from torch import Tensor

from retouch.atlas.mapping import PixelWindow
from retouch.errors import RetouchError
from retouch.methods.stablevideo import released
from retouch.models.image import Control, StableDiffusion
from retouch.models.noise_path import guided

NOT_COMPARED = ("input", "helper")
FIFTY = 50
"""Steps after which the fixture has the aggregation network's weights."""


def check(folder: Path, report: Report, *, only: str = "") -> None:
    """Compares every tensor of every file that the fixture lists in `folder`, and its single numbers."""
    fixture = json.loads((folder / "fixture.json").read_text())
    sd, control, texts = networks(folder / "weights")
    _compare_boxes(folder, fixture, report, only)
    for name, listed in fixture["files"].items():
        case, _, group = name.rpartition("/")
        wanted = {
            key: facts for key, facts in listed.items() if facts["tolerance"]["kind"] not in NOT_COMPARED
        }
        if not wanted or only not in name:
            continue
        if not (folder / name).is_file():
            report.not_shipped(name)
            continue
        try:
            if case:
                made = _GROUPS[group.partition(".")[0]](
                    Case(folder / case, fixture["cases"][case], sd, control, texts)
                )
            else:
                made = _SINGLE[group](load_file(folder / name), fixture)
        except (RetouchError, RuntimeError, KeyError, ValueError, IndexError, OSError) as error:
            report.fail(name, f"{type(error).__name__}: {error}")
            continue
        theirs = load_file(folder / name)
        for key, facts in wanted.items():
            _compare(report, f"{name}/{key}", made.get(key), theirs, key, facts["tolerance"])


def _compare(
    report: Report, name: str, ours: Any, theirs: Mapping[str, Tensor], key: str, tolerance: Mapping[str, Any]
) -> None:
    if key not in theirs:
        report.fail(name, "is listed in fixture.json but not in the file")
        return
    if ours is None:
        report.fail(name, "is not a tensor that this check knows how to make")
        return
    ours, wanted = (
        torch.from_numpy(np.array(ours if not isinstance(ours, Tensor) else ours.detach())),
        theirs[key],
    )
    if "where" in tolerance and ours.shape == wanted.shape:
        seen = theirs[key.replace("partial", "coverage")] != 1
        ours, wanted = ours * seen, wanted * seen
    match tolerance["kind"]:
        case "exact":
            report.exact(name, ours, wanted)
        case "max_abs":
            report.absolute(name, ours, wanted, tolerance=tolerance["value"])
        case "rel_l2":
            report.by_norm(name, ours, wanted, tolerance=tolerance["value"])
        case "u8":
            report.absolute(name, ours, wanted, tolerance=tolerance["max_diff"])
            if ours.shape == wanted.shape:
                share = float((ours != wanted).float().mean())
                report.absolute(f"{name}: share", share, 0.0, tolerance=tolerance["share_differing"])
        case kind:
            report.fail(name, f"has a tolerance of an unknown kind, {kind}")


def networks(folder: Path) -> tuple[StableDiffusion, Control, tuple[Tensor, Tensor]]:
    """The authors' networks, and the embeddings that guidance leads away from and to."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32).eval()
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
    net = ControlNetModel.from_pretrained(folder / "controlnet", torch_dtype=torch.float32).eval()
    schedule = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    sd = StableDiffusion(  # words come embedded
        tokenizer=cast("Any", None),
        text_encoder=cast("Any", None),
        unet=unet,
        vae=vae,
        scheduler_config=schedule,
    )
    texts = load_file(folder / "text_embeddings.safetensors")
    return sd, Control(net), (texts["neg"][0], texts["pos"][0])


def _compare_boxes(folder: Path, fixture: Mapping[str, Any], report: Report, only: str) -> None:
    """Compares boxes and sizes at the released numbers."""
    for name, case in fixture.get("g2_boxes", {}).items():
        path = folder / "g2_alpha" / f"{name}.png"
        if only not in f"g2_boxes/{name}":
            continue
        if not path.is_file():
            report.not_shipped(f"g2_boxes/{name}")
            continue
        alpha = torch.from_numpy(np.asarray(Image.open(path)).copy()).float()[None, None] / 255
        report.exact(f"g2_boxes/{name}", released.object_boxes(alpha)[0], case["box_yxhw"])
    for case in fixture.get("g2_sizes", []):
        (height, width), side = case["hw"], case["resolution"]
        if only in (name := f"g2_sizes/{width}x{height} at {side}"):
            report.exact(name, released.model_size(height, width, side), case["out_hw"])


@final
class Case:
    """One case: its settings, its files, and the networks."""

    def __init__(
        self,
        folder: Path,
        given: Mapping[str, Any],
        sd: StableDiffusion,
        control: Control,
        texts: tuple[Tensor, Tensor],
    ) -> None:
        self.folder, self.given, self.sd, self.control, self.texts = folder, given, sd, control, texts
        self.res = int(given["res"])
        self.count = len(given["keyframe_list"])

    def group(self, number: int) -> dict[str, Tensor]:
        """The tensors of a group."""
        return load_file(self.folder / f"g{number}.safetensors")

    @cached_property
    def frames(self) -> int:
        """How many frames the training had, as the configuration beside the checkpoint says."""
        config = json.loads((self.folder / "lna" / "config.json").read_text())
        return int(config.get("number_of_frames", config["maximum_number_of_frames"]))

    @cached_property
    def layers(self) -> dict[str, Any]:
        """Group 1 as the fixture has it, and what it leaves out as we read it off the checkpoint."""
        return {**_read_layers(self), **self.group(1)}

    def crop(self, which: int) -> tuple[int, slice, slice]:
        """The frame of a key frame's recorded crop, its rows and its columns."""
        crop = self.given["crops"][which]
        y, x, h, w = crop["frame_yxhw"]
        return int(crop["frame"]), slice(y, y + h), slice(x, x + w)

    def window(self, whole: Tensor) -> Tensor:
        """The part of a square atlas that is stored."""
        y, x, h, w = self.given["texel_window_yxhw"]
        return whole[:, y : y + h, x : x + w]

    def whole(self, part: Tensor) -> Tensor:
        """The square atlas of which a part is stored; the rest is zero."""
        y, x, h, w = self.given["texel_window_yxhw"]
        made = torch.zeros(3, self.res, self.res)
        made[:, y : y + h, x : x + w] = part
        return made


def _read_layers(case: Case) -> dict[str, Any]:
    """Group 1: what the checkpoint says of every pixel and every texel."""
    trained = read_checkpoint(case.folder / "lna")
    size, frames = (trained.height, trained.width), case.frames
    window = PixelWindow(torch.zeros(1, 2, dtype=torch.long), *size)
    paths = sorted((case.folder / "lna" / "lna").iterdir())[:frames]
    video = np.stack(
        [np.asarray(Image.open(p).convert("RGB").resize(size[::-1], Image.Resampling.LANCZOS)) for p in paths]
    )
    alpha = torch.stack([trained.share(t, frames, window, size)[None] for t in range(frames)])
    made: dict[str, Any] = {"video_u8": video, "alpha": alpha}
    made["fg_video"] = torch.from_numpy(video.copy()).movedim(3, 1).float() / 255 * alpha
    for layer, name in enumerate(("fg", "bg")):
        made |= _read_layer(case, trained, layer, name, window)
    boxes = released.object_boxes(alpha, border=case.given["border"], least=2 ** case.given["num_scales"] + 1)
    y, x, h, w = _atlas_box(made["fg_texel_uv"], boxes)
    made["fg_atlas_cropped_u8"] = released.bytes_of(made["fg_atlas"][:, y : y + h, x : x + w])
    made["bg_atlas_u8"] = released.bytes_of(made["bg_atlas"])
    return {f"g1.{key}": value for key, value in made.items()}


def _read_layer(
    case: Case, trained: Trained, layer: int, name: str, window: PixelWindow
) -> dict[str, Tensor]:
    size, frames = (trained.height, trained.width), case.frames
    raw = torch.cat([trained.uv(layer, t, frames, window, size) for t in range(frames)]).movedim(1, 3)
    uv = raw / 2 + (-0.5 if layer else 0.5)
    colours = trained.atlas(uv.flatten(0, 2))
    texels = (uv + layer) * case.res
    low = texels.amin((0, 1, 2)).floor()
    texels = texels - low
    width, height = (int(n) for n in texels.amax((0, 1, 2)).ceil())
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    at = (torch.stack([columns, rows], -1) + low) / case.res - layer
    return {
        f"{name}_uv": uv,
        f"{name}_recon": ((colours + 1) / 2).view(frames, *size, 3).movedim(3, 1),
        f"{name}_texel_uv": texels,
        f"{name}_norm_uv": (2 * texels / torch.tensor([width, height]) - 1).flatten(0, 2),
        f"{name}_atlas": ((trained.atlas(at.flatten(0, 1)) + 1) / 2).T.view(3, height, width),
    }


def _atlas_box(texels: Tensor, boxes: Tensor) -> tuple[int, int, int, int]:
    """The part of the atlas that the object boxes of all frames see, as y, x, height and width."""
    seen = [
        uv[y : y + h, x : x + w].flatten(0, 1)
        for uv, (y, x, h, w) in zip(texels, boxes.tolist(), strict=True)
    ]
    low, high = torch.cat(seen).amin(0).floor().long(), torch.cat(seen).amax(0).ceil().long()
    return int(low[1]), int(low[0]), int(high[1] - low[1]), int(high[0] - low[0])


def _cut_key_frames(case: Case) -> dict[str, Any]:
    """Group 2: boxes, crops, and what the model is shown."""
    first, given = case.layers, case.group(2)
    least = 2 ** case.given["num_scales"] + 1
    made: dict[str, Any] = {
        "g2.boxes": released.object_boxes(first["g1.alpha"], border=case.given["border"], least=least)
    }
    for i in range(case.count):
        t, rows, columns = case.crop(i)
        grid = 2 * first["g1.fg_texel_uv"][t, rows, columns] / case.res - 1
        crop = given[f"g2.k{i}.crop_u8"].numpy()
        made |= {
            f"g2.k{i}.alpha": first["g1.alpha"][t, :, rows, columns],
            f"g2.k{i}.grid": grid,
            f"g2.k{i}.crop_u8": released.bytes_of(first["g1.fg_video"][t, :, rows, columns]),
            f"g2.k{i}.image_u8": released.shown_to_model(crop, case.given["image_res"]),
            f"g2.k{i}.canny": released.edges_of(given[f"g2.k{i}.image_u8"].numpy()),
        }
    return made


def _push_and_read(case: Case) -> dict[str, Any]:
    """Group 3: edited key frames into the atlas, and what the next one sees of them."""
    cut, given, drawn = case.group(2), case.group(3), case.group(4)
    made: dict[str, Any] = {}
    for i in range(case.count):
        alpha, grid = cut[f"g2.k{i}.alpha"], cut[f"g2.k{i}.grid"]
        height, width = alpha.shape[1:]
        picture = released.bicubic(drawn[f"g4.k{i}.decoded_u8"].numpy(), height, width)
        made[f"g3.k{i}.edited"] = alpha * released.numbers_of(picture)
        pushed = released.pushed(given[f"g3.k{i}.edited"], (grid / 2 + 0.5) * case.res, case.res)
        made[f"g3.k{i}.partial"] = case.window(pushed)
        if i:
            before = case.whole(given[f"g3.k{i - 1}.partial"])
            made[f"g3.k{i}.appearance"] = released.read_at(before, grid[None])[0]
            seen = released.bytes_of(given[f"g3.k{i}.appearance"])
            made[f"g3.k{i}.appearance_u8"] = released.bicubic(seen, *cut[f"g2.k{i}.canny"].shape)
    return made


def _denoise(case: Case) -> dict[str, Any]:
    """Group 4: the key frames' latents on their way down."""
    cut, given, seen = case.group(2), case.group(4), case.group(3)
    levels = released.levels_of(case.sd, int(case.given["steps"]))
    signals = [level.signal**2 for level in levels]
    made: dict[str, Any] = {"g4.ddim_alphas": signals}
    made["g4.ddim_alphas_prev"] = [case.sd.level(0).signal ** 2, *signals[:-1]]
    for i in range(case.count):
        k = f"g4.k{i}"
        z, down = given[f"{k}.noise"], levels[::-1]
        if i:
            above = int(case.given["steps"] * case.given["s"])
            picture = seen[f"g3.k{i}.appearance_u8"].numpy()
            made[f"{k}.z0"], z = released.noised(
                case.sd,
                picture,
                posterior_noise=given[f"{k}.vae_noise"],
                noise=z,
                level=levels[above],
            )
            made[f"{k}.z_start"], down = z, levels[:above][::-1]
            pixels = released.numbers_of(picture)[None] * 2 - 1
            made[f"{k}.vae_mean"], made[f"{k}.vae_std"] = case.sd.posterior(pixels)
        hint = released.as_hint(cut[f"g2.k{i}.canny"].numpy())
        both = released.predictions(case.sd, case.control, z, hint, case.texts, down[0])
        walk = released.denoised(case.sd, case.control, z, hint, case.texts, down)
        made |= {
            f"{k}.eps_neg_pos_first": torch.cat(both),
            f"{k}.pred_x0_first": (z - down[0].noise * guided(*both, 9.0)) / down[0].signal,
            f"{k}.trajectory": torch.cat(walk),
            f"{k}.latent": walk[-1],
            f"{k}.decoded": case.sd.vae.decode(given[f"{k}.latent"] / 0.18215).sample[0],
            f"{k}.decoded_u8": released.decoded(case.sd, given[f"{k}.latent"]),
        }
    return made


def _aggregate(case: Case) -> dict[str, Any]:
    """Group 5: the median, and the aggregation network."""
    cut, pushed, given = case.group(2), case.group(3), case.group(5)
    partials = [case.whole(pushed[f"g3.k{i}.partial"]) for i in range(case.count)]
    made: dict[str, Any] = {"g5.median": case.window(released.median_of(torch.stack(partials)))}
    median = case.whole(given["g5.median"])
    y, x, h, w = case.given["agg_box_yxhw"]
    made["g5.median_cropped_u8"] = released.bytes_of(median[:, y : y + h, x : x + w])
    views = [(cut[f"g2.k{i}.grid"][None], pushed[f"g3.k{i}.edited"]) for i in range(case.count)]
    start = [given[f"g5.init.stage{n}.0.weight"] for n in (1, 2)]
    for name, steps in (("after50", FIFTY), ("trained", int(case.given["agg"]["iterations"]))):
        first, second, losses = released.trained(median, views, start[0], start[1], steps=steps)
        made[f"g5.{name}.stage1.0.weight"], made[f"g5.{name}.stage2.0.weight"] = first, second
    made["g5.loss"] = losses
    made["g5.net_atlas"] = case.window(released.aggregated(median, first, second))
    return made


def _edit_background(case: Case) -> dict[str, Any]:
    """Group 6: the background's whole atlas under its depth."""
    given, atlas = case.group(6), np.asarray(case.layers["g1.bg_atlas_u8"])
    height, width = atlas.shape[:2]
    depth = given["g6.depth_u8"].numpy()
    size = released.model_size(height, width, case.given["image_res"])
    levels = released.levels_of(case.sd, int(case.given["steps"]))[::-1]
    hint = released.as_hint(given["g6.control_u8"].numpy())
    walk = released.denoised(case.sd, case.control, given["g6.noise"], hint, case.texts, levels)
    return {
        "g6.depth_in_u8": released.shown_to_model(atlas, case.given["detect_res"]),
        "g6.control_u8": cv2.resize(depth, size[::-1], interpolation=cv2.INTER_LINEAR),
        "g6.latent": walk[-1],
        "g6.latent_after_1": walk[1],
        "g6.decoded_u8": released.decoded(case.sd, given["g6.latent"]),
        "g6.atlas_u8": released.bicubic(given["g6.decoded_u8"].numpy(), height, width),
    }


def _show(case: Case) -> dict[str, Any]:
    """Group 7: the clip, read off both atlases."""
    layers, given = case.layers, case.group(7)
    frames, _, height, width = layers["g1.alpha"].shape
    grids = {n: layers[f"g1.{n}_norm_uv"].view(frames, height, width, 2) for n in ("fg", "bg")}
    median = released.numbers_of(case.group(5)["g5.median_cropped_u8"].numpy())
    kept = released.numbers_of(np.asarray(layers["g1.fg_atlas_cropped_u8"]))
    whole = layers["g1.fg_atlas"].shape[1:]
    y, x, *_ = case.given["fg_atlas_box_yxhw"]
    ground = released.numbers_of(case.group(6)["g6.atlas_u8"].numpy())
    brushed = released.restored(median, kept, given["g7.brush_u8"].numpy())
    plain = released.numbers_of(np.asarray(layers["g1.bg_atlas_u8"]))
    made: dict[str, Any] = {}
    for name, part, behind in (("edited", brushed, ground), ("plain", kept, plain)):
        atlas = released.padded(part, (y, x), *whole)
        front, back = released.read_at(atlas, grids["fg"]), released.read_at(behind, grids["bg"])
        video = layers["g1.alpha"] * front + (1 - layers["g1.alpha"]) * back
        made |= {
            f"g7.{name}.fg_atlas_padded": atlas,
            f"g7.{name}.fg": front,
            f"g7.{name}.bg": back,
            f"g7.{name}.video": video,
            f"g7.{name}.video_u8": (video * 255).to(torch.uint8).movedim(1, 3),
        }
    return made


def _synthetic(given: Mapping[str, Tensor], fixture: Mapping[str, Any]) -> dict[str, Any]:
    """A larger picture made smaller, and its edges."""
    side = min(given["g2.shrink.resized_u8"].shape[:2])
    picture = given["g2.shrink.image_u8"]
    resized = released.shown_to_model(picture.numpy(), side)
    edges = released.edges_of(given["g2.shrink.resized_u8"].numpy())
    del fixture
    return {"g2.shrink.image_u8": picture, "g2.shrink.resized_u8": resized, "g2.shrink.canny": edges}


def _affine(given: Mapping[str, Tensor], fixture: Mapping[str, Any]) -> dict[str, Any]:
    """Key frames pushed by affine maps, over a whole square atlas."""
    size, made = int(fixture["g3_affine"]["res"]), dict[str, Any]()
    count = int(fixture["g3_affine"]["keyframes"])
    for i in range(count):
        edited, grid = given[f"g3.k{i}.edited"], given[f"g3.k{i}.grid"]
        made[f"g3.k{i}.edited"] = edited
        made[f"g3.k{i}.partial"] = released.pushed(edited, (grid / 2 + 0.5) * size, size)
    made["g5.median"] = released.median_of(torch.stack([given[f"g3.k{i}.partial"] for i in range(count)]))
    return made


_GROUPS = {
    "g1": _read_layers,
    "g2": _cut_key_frames,
    "g3": _push_and_read,
    "g4": _denoise,
    "g5": _aggregate,
    "g6": _edit_background,
    "g7": _show,
}
_SINGLE = {"g2_synthetic.safetensors": _synthetic, "g3_affine.safetensors": _affine}
