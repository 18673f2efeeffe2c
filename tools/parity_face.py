"""Holds the face method against numbers of the authors' code: `python tools/parity.py face DIR`.

Every group of the fixture has a function here that makes its tensors from its inputs with what this package
ships. A tensor that none of them makes fails.
"""

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import load_file
from tools.convert.dva import converted, places
from tools.parity_report import Report
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate, normalize

from retouch.errors import ParamsError, RetouchError
from retouch.methods.face.steer import WordSearch, applied, descend, text_direction
from retouch.models import face_parts
from retouch.models.face import (
    CLEAN,
    FaceDiffusion,
    FaceNetwork,
    alphas_cumprod,
    encoding,
    follow,
    noised,
    published_timesteps,
    schedule_at,
)
from retouch.models.face_attributes import Attributes
from retouch.models.face_irse import Unit
from retouch.models.face_losses import clean_in, losses, losses_of
from retouch.models.noise_path import Level, step
from retouch.tracking.face_squares import FaceSquares

Tensors = Mapping[str, Tensor]
UNCAPPED: Final = float("inf")
TOLERANCE: Final = 1e-6
"""Where an entry states none."""
GIVEN: Final[Mapping[str, set[str]]] = {
    "unet_forward": {"x_start", "x_t", "t"},
    "ddim_unet_T10": {"x_start", "z_face"},
    "ddim_analytic": {"x_start", "cond", "cond_edit"},
    "train_loss_unet": {"x_start", "noise1", "noise2", "t", "mask"},
    "train_loss_fixed": {"x_start", "noise1", "noise2", "pred1", "pred2", "mask", "t"},
    "classifier": {"id_feats", "conds_mean", "conds_std", "weight", "bias", "labels", "avg_id"},
    "encoder_preproc": {"img256", "lnd_raw136", "labels64"},
    "alignment": {"landmarks68", "frame", "paste_src64"},
    "clip_opt": {
        "start_img",
        "mask",
        "init_param",
        "clip_proj",
        "src_text",
        "trg_text",
        "avg_for_final",
        "scale_final",
    },
}
"""What a group's tensors are made from."""


OF_THE_NETWORK: Final = ("unet_forward", "ddim_unet_T10", "train_loss_unet", "clip_opt")
"""Groups that need the reference model's weights."""


def check(folder: Path, report: Report, *, only: str = "") -> None:
    """Compare every tensor of every group of the fixture in `folder`."""
    groups = json.loads((folder / "fixture.json").read_text())["groups"]
    shipped = {name for name in groups if (folder / f"{name}.safetensors").is_file()}
    model = Standing(folder, groups["unet_weights"]["config"]["image_size"])
    for name, entry in groups.items():
        if only not in name or name == "unet_weights":
            continue
        if name not in shipped or (name in OF_THE_NETWORK and "unet_weights" not in shipped):
            report.not_shipped(name)
            continue
        path = folder / f"{name}.safetensors"
        theirs = load_file(path)
        try:
            ours = GROUPS[name](theirs, entry, model)
        except (RetouchError, RuntimeError, KeyError, ValueError, IndexError, OSError) as error:
            report.fail(name, f"{type(error).__name__}: {error}")
            continue
        compare(report, name, entry, ours, theirs)


def compare(report: Report, group: str, entry: Mapping[str, Any], ours: Tensors, theirs: Tensors) -> None:
    """Compare a group's tensors, each by the tolerance that its entry states for its kind."""
    for key in sorted({*entry.get("tensors", {}), *theirs, *ours} - GIVEN.get(group, set())):
        name = f"{group}/{key}"
        if key.startswith(("a.w", "b.w", "c.w")) or key in ("a.in", "b.in", "c.in"):
            continue
        if key not in theirs:
            report.fail(name, "is listed in fixture.json but not in the file")
        elif key not in ours:
            report.fail(name, "is not a tensor that this check knows how to make")
        elif (relative := relative_tolerance(key, entry)) is not None:
            report.relative(name, ours[key], theirs[key], tolerance=relative)
        elif not theirs[key].is_floating_point() and group != "alignment":
            report.exact(name, ours[key], theirs[key])
        else:
            report.absolute(name, ours[key], theirs[key], tolerance=tolerance_of(key, entry))


def relative_tolerance(key: str, entry: Mapping[str, Any]) -> float | None:
    """Return the relative tolerance of what grows with the noise; the fixture's notes state 1e-4."""
    if "grad" in key and "rtol_grad" in entry:
        return float(entry["rtol_grad"])
    if "blocks" in entry and key.endswith((".in", ".lateral")):
        return float(entry["atol"])  # features reach 20, and rounding with them
    if "atol_loss" in entry and key.endswith((".reg", ".total", "_masked")):
        return 1e-4
    return float(entry["rtol"]) if "rtol" in entry else None


def tolerance_of(key: str, entry: Mapping[str, Any]) -> float:
    """Return how far a tensor may be off, by what its group's entry states."""
    if "atol_geom" in entry:
        pixels = key in ("crops128", "pasted")
        return float(entry["atol_pixels"] if pixels else 1e-6 if key == "inv_coef64" else entry["atol_geom"])
    return float(entry.get("atol", entry.get("atol_loss", TOLERANCE)))


class Standing:
    """The reference model with our classes, and the stand-ins for its frozen encoders."""

    def __init__(self, folder: Path, side: int) -> None:
        self.folder, self.side = folder, side

    @cached_property
    def weights(self) -> Tensors:
        """The reference model's weights, under the authors' names."""
        return load_file(self.folder / "unet_weights.safetensors")

    @cached_property
    def network(self) -> FaceNetwork:
        """The network with those weights."""
        return converted(self.weights, side=self.side, identity=len(self.weights["encoder.idnet.w"]))

    @property
    def model(self) -> FaceDiffusion:
        """The model around it."""
        return FaceDiffusion.wrap(self.network)

    def encoders(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Identity and motion of pictures."""
        seen = adaptive_avg_pool2d(x, 4).flatten(1)
        identity = normalize(seen @ self.weights["encoder.idnet.w"].T, dim=1)
        return identity, (0.5 + seen @ self.weights["encoder.lndnet.w"].T).clamp(0, 1)

    def code(self, x: Tensor) -> Tensor:
        """The code of pictures."""
        return self.model.code(*self.encoders(x))


def schedule(theirs: Tensors, entry: Mapping[str, Any], _: Standing) -> Tensors:
    """The timesteps of each number of steps, and the shares of signal power there."""
    ours = {}
    for name in theirs:
        kind, steps = name.rsplit("_", 1)
        times = torch.tensor(published_timesteps(int(steps)))
        ours[name] = times if kind == "timesteps" else torch.from_numpy(alphas_cumprod())[times]
    for steps in entry["T_that_raise_ValueError"]:
        try:
            published_timesteps(steps)
        except ParamsError:
            continue
        raise ValueError(f"{steps} steps were not refused")
    return ours


@torch.no_grad()
def unet_forward(theirs: Tensors, entry: Mapping[str, Any], standing: Standing) -> Tensors:
    """One call of the network, and what goes through some of its blocks."""
    names, network = places(standing.weights), standing.network
    ours: dict[str, Tensor] = {}

    def noting(label: str, width: int) -> Callable[..., None]:
        def note(_: Any, inputs: tuple[Tensor, ...]) -> None:
            ours[f"{label}.in"] = inputs[0][:, :width]
            if len(inputs) > 1:
                ours[f"{label}.emb"], ours[f"{label}.cond"] = inputs[1].chunk(2, dim=1)

        return note

    def noting_lateral(label: str, width: int) -> Callable[..., None]:
        def note(_: Any, inputs: tuple[Tensor, ...]) -> None:
            ours[f"{label}.lateral"] = inputs[0][:, -width:]  # what comes from the way down stands behind

        return note

    hooks = []
    for there, label in entry["blocks"].items():
        block = network.get_submodule(names[there])
        hooks.append(block.register_forward_pre_hook(noting(label, theirs[f"{label}.in"].shape[1])))
        if (lateral := theirs.get(f"{label}.lateral")) is not None:
            first = network.get_submodule(names[f"{there.rpartition('.')[0]}.0"])
            hooks.append(first.register_forward_pre_hook(noting_lateral(label, lateral.shape[1])))
    identity, motion = standing.encoders(theirs["x_start"])
    code = standing.model.code(identity, motion)
    ours["eps"] = network(theirs["x_t"], theirs["t"], code)
    for hook in hooks:
        hook.remove()
    for there, label in entry["blocks"].items():  # each block by itself, on what the authors' one was given
        block, given = network.get_submodule(names[there]), theirs[f"{label}.in"]
        if label == "attn":
            ours["attn.out"] = block(given)
            continue
        if given.shape[1] < block.conv1.in_channels:
            given = torch.cat([given, theirs[f"{label}.lateral"]], dim=1)
        both = torch.cat([theirs[f"{label}.emb"], theirs[f"{label}.cond"]], dim=1)
        ours[f"{label}.out"] = block(given, both)
    sines = network.unet.time_proj(theirs["t"])
    times = network.unet.time_embedding(sines)[:, : code.shape[1]]
    return {
        **ours,
        "id_feats": identity,
        "lnd_feats": motion,
        "z_face": code,
        "sin_emb": sines,
        "time_emb": times,
    }


@torch.no_grad()
def ddim_unet(theirs: Tensors, entry: Mapping[str, Any], standing: Standing) -> Tensors:
    """The network's way up and down again, each step from where the authors' own step before it led.

    At the noisiest levels the clean picture is the network's answer times 160. Over a whole chain this
    makes of rounding, which differs from processor to processor, as much as thousandths; the same chain in
    double precision is as far from the authors' numbers.
    """
    levels, code = schedule_at(published_timesteps(entry["T"])), theirs["z_face"]

    def clean(x: Tensor, level: Level) -> Tensor:
        return standing.model.clean(x, level, code)

    def each(starts: list[Tensor], steps: list[tuple[Level, Level]]) -> tuple[Tensor, Tensor]:
        went = [next(follow(x, [step], clean)) for x, step in zip(starts, steps, strict=True)]
        return torch.stack([x for x, _ in went]), torch.stack([seen for _, seen in went])

    up, up_clean = each([theirs["x_start"], *theirs["enc_traj"][:-1]], encoding(levels))
    down, down_clean = each([theirs["x_T"], *theirs["dec_traj"][:-1]], levels.down())
    return {
        "enc_traj": up,
        "enc_x0": up_clean,
        "x_T": up[-1],
        "dec_traj": down,
        "dec_x0": down_clean,
        "dec": down[-1],
        "one_encode_i4": next(follow(theirs["x_start"], encoding(levels)[4:], clean))[0],
        "one_decode_i9": next(follow(theirs["x_T"], levels.down(), clean))[0],
    }


def ddim_analytic(theirs: Tensors, entry: Mapping[str, Any], _: Standing) -> Tensors:
    """The same chains with a formula for the noise in the place of the network."""

    def seeing(cond: Tensor, *, clamp: bool = True) -> Callable[[Tensor, Level], Tensor]:
        def clean(x: Tensor, level: Level) -> Tensor:
            wave = float(np.cos(0.01 * level.t))
            eps = 0.35 * x + 0.5 * x.tanh() * wave + 0.4 * cond[:, :3, None, None]
            seen = step(x, eps, level, CLEAN)
            return seen.clamp(-1, 1) if clamp else seen

        return clean

    ours, own, other = {}, theirs["cond"], theirs["cond_edit"]
    for steps in entry["T"]:
        levels = schedule_at(published_timesteps(steps))
        up = list(follow(theirs["x_start"], encoding(levels), seeing(own)))
        free = list(follow(theirs["x_start"], encoding(levels), seeing(own, clamp=False)))
        ours[f"x_T_{steps}"], ours[f"x_T_noclip_{steps}"] = up[-1][0], free[-1][0]
        ours[f"dec_{steps}"] = list(follow(up[-1][0], levels.down(), seeing(own)))[-1][0]
        ours[f"dec_edit_{steps}"] = list(follow(up[-1][0], levels.down(), seeing(other)))[-1][0]
        ours[f"enc_traj_{steps}"] = torch.stack([x for x, _ in up])
        ours[f"enc_x0_{steps}"] = torch.stack([seen for _, seen in up])
    return {name: tensor for name, tensor in ours.items() if name in theirs}


def train_loss_unet(theirs: Tensors, _: Mapping[str, Any], standing: Standing) -> Tensors:
    """The losses of the network, and where the published one would move its weights."""
    x, t, network, ours = theirs["x_start"], theirs["t"], standing.network, {}
    noises = (theirs["noise1"], theirs["noise2"])
    for name, power in (("mse", 2), ("l1", 1)):
        network.zero_grad()
        found = losses(network, x, standing.code(x), t, noises, theirs["mask"], power=power, cap=UNCAPPED)
        found.total.backward()
        ours |= {
            f"{name}.simple": found.simple,
            f"{name}.reg": found.consistency,
            f"{name}.total": found.total,
        }
    grads = {name: p.grad for name, p in network.named_parameters()}
    names = places(standing.weights)
    for key in (key for key in theirs if key.startswith("l1.grad.")):
        module, _dot, kind = key.removeprefix("l1.grad.").rpartition(".")
        ours[key] = grads[f"{names[module]}.{kind}"]
    ours["l1.grad_norm"] = torch.stack([g.norm() for g in grads.values() if g is not None]).norm()
    ours["x_t1"] = noised(x, noises[0], t)
    for number, noise in enumerate(noises, 1):
        eps = network(noised(x, noise, t), t, standing.code(x))
        ours[f"x0_est{number}_masked"] = theirs["mask"] * clean_in(eps, x, noise, t)
    return {name: tensor.detach() for name, tensor in ours.items()}


def train_loss_fixed(theirs: Tensors, _: Mapping[str, Any], __: Standing) -> Tensors:
    """The losses of given answers."""
    answers, noises = (theirs["pred1"], theirs["pred2"]), (theirs["noise1"], theirs["noise2"])
    ours = {}
    for name, power in (("mse", 2), ("l1", 1)):
        found = losses_of(
            answers, theirs["x_start"], theirs["t"], noises, theirs["mask"], power=power, cap=UNCAPPED
        )
        ours |= {
            f"{name}.simple": found.simple,
            f"{name}.reg": found.consistency,
            f"{name}.total": found.total,
        }
    return {name: tensor for name, tensor in ours.items() if name in theirs}


def classifier(theirs: Tensors, entry: Mapping[str, Any], _: Standing) -> Tensors:
    """A step of the classifier's training, and identities moved along its rows."""
    weight, bias = (theirs[name].clone().requires_grad_() for name in ("weight", "bias"))
    rows = [str(number) for number in range(len(weight))]
    head = Attributes(rows, weight, bias, theirs["conds_mean"], theirs["conds_std"])
    loss = head.loss(theirs["id_feats"], (theirs["labels"] > 0).float())
    loss.backward()
    standardised = head.standardised(theirs["id_feats"])
    ours = {
        "normalized": standardised,
        "roundtrip": standardised * head.std + head.mean,
        "train_loss": loss,
        "grad_weight": weight.grad,
        "grad_bias": bias.grad,
    }
    for case in entry["cases"]:
        _edit, row, scale, how = (
            case.replace(".norm", "|norm").replace(".s", "|s").replace("edit.", "edit|").split("|")
        )
        strengths = {row.removeprefix("a"): float(scale.removeprefix("s"))}
        ours[case] = head.steered(theirs["avg_id"], strengths, standardise=how == "norm1")
    return {name: tensor.detach() for name, tensor in ours.items() if tensor is not None}


def encoder_preproc(theirs: Tensors, _: Mapping[str, Any], __: Standing) -> Tensors:
    """What the published encoders are shown, and what is made of their answers."""
    crops, size = theirs["img256"], theirs["mask_train"].shape[-2:]
    labels = interpolate(theirs["labels64"][:, None].float(), size).long()[:, 0]
    masks = {}
    for name, outside in (
        ("mask_train", face_parts.OUTSIDE_TRAINING),
        ("mask_video", face_parts.OUTSIDE_VIDEO),
    ):
        masks[name] = 1 - face_parts.mask_of(labels, face_parts.CELEBA_MASK, outside)
    return {
        "id_in_112": face_parts.identity_input(crops),
        "lnd_in_224_sub8": face_parts.points_input(crops)[..., ::8, ::8],
        "seg_in_512_sub16": face_parts.parser_input(crops)[..., ::16, ::16],
        "lnd_feats102": face_parts.motion_of_68(theirs["lnd_raw136"]),
        **masks,
    }


@torch.no_grad()
def irse_block(theirs: Tensors, _: Mapping[str, Any], __: Standing) -> Tensors:
    """The units of the identity network."""
    ours = {}
    for name in ("a", "b", "c"):
        weights = {k.removeprefix(f"{name}.w."): v for k, v in theirs.items() if k.startswith(f"{name}.w.")}
        given = theirs[f"{name}.in"]
        stride = given.shape[-1] // theirs[f"{name}.out"].shape[-1]
        unit = Unit(given.shape[1], theirs[f"{name}.out"].shape[1], stride).eval()
        unit.load_state_dict(weights)
        ours[f"{name}.out"] = unit(given)
    return ours


def alignment(theirs: Tensors, _: Mapping[str, Any], __: Standing) -> Tensors:
    """From points to squares, smoothed squares, crops, and back into the frame."""
    points = theirs["landmarks68"].double().numpy()
    eyes, mouth = (points[:, 36:42].mean(1), points[:, 42:48].mean(1)), (points[:, 48], points[:, 54])
    raw = FaceSquares.around(eyes, mouth)
    squares, count = raw.smoothed(), len(points)
    frame = theirs["frame"].permute(2, 0, 1)[None].float()
    frames = frame.expand(count, -1, -1, -1)
    side, small = theirs["crops128"].shape[1], theirs["paste_src64"].shape[0]
    # PIL puts the middle of the first pixel at a half; its coefficients go from frame to crop.
    corner, right, below = (
        small * squares.inside(np.tile([[spot]], (count, 1, 1)))[:, 0] for spot in UNIT_SPOTS
    )
    rows = [np.stack([(right - corner)[:, k], (below - corner)[:, k], corner[:, k]], 1) for k in (0, 1)]
    source = theirs["paste_src64"].permute(2, 0, 1)[None].float().expand(count, -1, -1, -1)
    size = (int(frame.shape[2]), int(frame.shape[3]))
    cover = squares.paste(torch.ones_like(source[:, :1]), size)
    pasted = cover * squares.paste(source, size) + (1 - cover) * frames
    return {
        "raw_cxy": torch.from_numpy(np.stack([raw.centre, raw.right, raw.down])),
        "smooth_cxy": torch.from_numpy(np.stack([squares.centre, squares.right, squares.down])),
        "quads": torch.from_numpy(squares.corners),
        "crops128": squares.crop(frames, side, beyond="zero").round().permute(0, 2, 3, 1),
        "inv_coef64": torch.from_numpy(np.concatenate([*rows, np.zeros((count, 2))], axis=1)),
        "pasted": pasted.round().permute(0, 2, 3, 1),
    }


UNIT_SPOTS: Final = ((-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5))


def clip_opt(theirs: Tensors, entry: Mapping[str, Any], standing: Standing) -> Tensors:
    """The search for the identity that words ask for, iteration by iteration."""
    x, model = theirs["start_img"], standing.model
    identity, motion = standing.encoders(x)
    code, count = model.code(identity, motion), len(theirs["src_chain"]) - 1
    levels = schedule_at(published_timesteps(count))
    with torch.no_grad():
        up = list(follow(x, encoding(levels), lambda x, level: model.clean(x, level, code)))
        down = list(follow(up[-1][0], levels.down(), lambda x, level: model.clean(x, level, code)))
    chain = torch.cat([up[-1][0], *(x for x, _ in down)])

    def seen(pictures: Tensor) -> Tensor:
        return normalize(adaptive_avg_pool2d(pictures, 8).flatten(1) @ theirs["clip_proj"].T, dim=1)

    direction = text_direction(theirs["src_text"], theirs["trg_text"])
    search = WordSearch(
        identity,
        chain[:-1, None],
        levels.down(),
        lambda x, level, who: model.clean(x, level, model.code(who, motion)),
        seen,
        direction,
        theirs["mask"],
        weights_of(entry),
        float(entry["lr"]),
    )
    search.was = chain[1:, None]
    search.found.data.copy_(theirs["init_param"].view_as(search.found))
    first, rows = search.one_step_each(), []
    for found in descend(search, len(theirs["loss"])):
        grad = torch.as_tensor(search.found.grad).clone()
        rows.append((*(part.detach() for part in found), grad, search.found.detach().clone()))
    names = ("loss", "loss_clip", "loss_id", "loss_l1", "grad", "edit_cond")
    ours = {name: torch.stack(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    scale = float(theirs.get("scale_final", entry.get("scale_final", 1.0)))
    ours |= {
        "start_id": identity,
        "start_z": code,
        "x_T": up[-1][0],
        "src_chain": chain,
        "backward_first": first.detach(),
        "text_direction": direction,
        "final_edit_avg": applied(theirs["avg_for_final"], search.found.detach() - identity, scale),
    }
    return {
        name: tensor.detach().reshape(theirs[name].shape) for name, tensor in ours.items() if name in theirs
    }


def weights_of(entry: Mapping[str, Any]) -> tuple[float, float, float]:
    """The weights of words, identity and pixels, listed in this order or by name."""
    given = entry["weights"]
    if isinstance(given, Mapping):
        by_first = {name.removeprefix("loss_")[:1]: float(value) for name, value in given.items()}
        return by_first["c"], by_first["i"], by_first["l"]
    return float(given[0]), float(given[1]), float(given[2])


GROUPS: Final[Mapping[str, Callable[[Tensors, Mapping[str, Any], Standing], Tensors]]] = {
    "schedule": schedule,
    "unet_forward": unet_forward,
    "ddim_unet_T10": ddim_unet,
    "ddim_analytic": ddim_analytic,
    "train_loss_unet": train_loss_unet,
    "train_loss_fixed": train_loss_fixed,
    "classifier": classifier,
    "encoder_preproc": encoder_preproc,
    "irse_block": irse_block,
    "alignment": alignment,
    "clip_opt": clip_opt,
}
