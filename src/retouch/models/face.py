"""The network of the diffusion video autoencoder (Kim et al. 2023): a face from a code and a noise picture.

diffusers' UNet2DModel with the published residual unit in the place of its own: that unit is modulated
twice, by the noise level and by the code of the face, and has one convolution more than the unit of DiffAE.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self, cast, final

import numpy as np
import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from jaxtyping import Float, Float64, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle, silu

from retouch.compute import Compute
from retouch.errors import ModelMismatch, ParamsError
from retouch.models.loading import folder_identity, placed, quiet, weights_identity
from retouch.models.noise_path import Level, Schedule, extrapolate, step
from retouch.models.refs import check_weights, read_config, resolve

TRAIN_STEPS: Final = 1000
KIND: Final = "FaceDiffusion"
WEIGHTS: Final = "model.safetensors"


CLEAN: Final = Level(1.0, 0.0, -1, "epsilon")
"""Where every way down ends."""


@final
class FaceDiffusion:
    """A diffusion video autoencoder: what it knows of a face as a code, and the rest as a noise picture."""

    def __init__(self, network: "FaceNetwork", *, identity: str | None = None) -> None:
        """Take the network as it is; `from_pretrained` is the usual way here."""
        self.network = network
        self._identity = identity

    @classmethod
    def from_pretrained(cls, ref: str, compute: Compute | None = None) -> Self:
        """Load the model that `ref` names, from this machine only.

        Raises:
            ModelNotFound: it is not here.
            ModelMismatch: the folder holds another kind of model, or one that is damaged.
        """
        folder = resolve(ref)
        config = dict(read_config(folder / "config.json", ref))
        if config.pop("_class_name", None) != KIND:
            raise ModelMismatch(
                f"{ref} is no face model", hint="tools/convert/dva.py makes one of the authors'"
            )
        check_weights(folder, ref)
        try:
            network = FaceNetwork(FaceConfig(**cast("dict[str, Any]", config)))
            network.load_state_dict({name: v.float() for name, v in load_file(folder / WEIGHTS).items()})
        except (TypeError, ValueError, KeyError, RuntimeError) as problem:
            raise ModelMismatch(
                f"the weights of {ref} do not fit its config.json: {problem}", hint="get the model again"
            ) from None
        device, dtype = placed(compute)
        network = network.to(device, dtype).eval().requires_grad_(False)
        return cls(network, identity=folder_identity(folder))

    @classmethod
    def untrained(cls, ref: str, compute: Compute | None = None, **features: int) -> Self:
        """Return a network of random weights, built as the one in the folder of `ref`, or as published.

        `features` are those of the encoders: `identity` and `motion`.

        Raises:
            ModelMismatch: its config.json is none of a face network.
        """
        path = resolve(ref) / "config.json"
        config = dict(read_config(path, ref)) if path.is_file() else {"_class_name": KIND, "unet": PUBLISHED}
        if config.pop("_class_name", None) != KIND:
            raise ModelMismatch(f"{ref} is no face model", hint="leave its config.json out")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = FaceNetwork(FaceConfig(**{**cast("dict[str, Any]", config), **features}))
            begin_still(network)
        return cls(network.to(placed(compute)[0]).eval().requires_grad_(False))

    @classmethod
    def wrap(cls, network: "FaceNetwork") -> Self:
        """Use a network that is loaded already; it is not changed."""
        return cls(network)

    @property
    def identity(self) -> str:
        """A hash of weights and configuration."""
        if self._identity is None:
            self._identity = weights_identity({"face": self.network}, json.dumps(asdict(self.config)))
        return self._identity

    @property
    def config(self) -> "FaceConfig":
        """What the network was built from."""
        return self.network.config

    def save(self, folder: Path) -> None:
        """Write the model, for `from_pretrained`."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()
        }
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        config = {"_class_name": KIND, **asdict(self.config)}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")

    def schedule(self, steps: int) -> Schedule:
        """Return the noise levels of so many network calls, evenly spaced."""
        return schedule_at(np.linspace(self.config.lo, self.config.hi, steps).round().astype(int).tolist())

    def code(
        self, identity: Float[Tensor, "f identity"], motion: Float[Tensor, "f motion"]
    ) -> Float[Tensor, "f z"]:
        """Return the codes of faces: who it is, and how each moves."""
        like = self.network.merge.weight
        return self.network.code(identity.to(like), motion.to(like))

    def clean(
        self, x: Float[Tensor, "f 3 h w"], level: Level, code: Float[Tensor, "f z"]
    ) -> Float[Tensor, "f 3 h w"]:
        """Return the clean pictures that the network sees in noisy ones, in [-1, 1]."""
        t = torch.full((len(x),), int(level.t), device=x.device)
        out = self.network(x.to(code), t, code).to(x)
        return (step(x, out, level, CLEAN) if self.config.prediction == "epsilon" else out).clamp(-1, 1)


def schedule_at(timesteps: Sequence[int]) -> Schedule:
    """Return the noise levels at timesteps, given cleanest first, and below them the clean picture's."""
    alphas = alphas_cumprod()
    levels = [Level(float(alphas[t] ** 0.5), float((1 - alphas[t]) ** 0.5), t, "epsilon") for t in timesteps]
    return Schedule((*reversed(levels), CLEAN))


def encoding(schedule: Schedule) -> list[tuple[Level, Level]]:
    """Return the steps from the cleanest noise level to the noisiest: the picture itself enters there."""
    return schedule.up()[1:]


def published_timesteps(steps: int) -> list[int]:
    """Return the timesteps of the authors' sampling: multiples of a whole number, so many below 1000.

    Raises:
        ParamsError: no whole number gives so many.
    """
    for stride in range(1, TRAIN_STEPS):
        times = range(0, TRAIN_STEPS, stride)
        if len(times) == steps:
            return list(times)
    legal = sorted({len(range(0, TRAIN_STEPS, stride)) for stride in range(1, TRAIN_STEPS)})
    near = sorted(legal, key=lambda n: abs(n - steps))[:2]
    raise ParamsError(
        f"steps is {steps}; the published sampling knows no such number", hint=f"near it: {sorted(near)}"
    )


def shares_at(
    t: Int[Tensor, " f"], like: Float[Tensor, "f c h w"]
) -> tuple[Float[Tensor, "f 1 1 1"], Float[Tensor, "f 1 1 1"]]:
    """Return the shares of signal and of noise at timesteps, one for each picture."""
    alphas = torch.from_numpy(alphas_cumprod())[t.long().cpu()][:, None, None, None]
    return alphas.sqrt().to(like), (1 - alphas).sqrt().to(like)


def noised(
    pixels: Float[Tensor, "f 3 h w"], noise: Float[Tensor, "f 3 h w"], t: Int[Tensor, " f"]
) -> Float[Tensor, "f 3 h w"]:
    """Return pictures with noise in them, each at its own timestep."""
    signal, share = shares_at(t, pixels)
    return signal * pixels + share * noise


def follow(
    x: Float[Tensor, "f 3 h w"],
    steps: Iterable[tuple[Level, Level]],
    clean: Callable[[Float[Tensor, "f 3 h w"], Level], Float[Tensor, "f 3 h w"]],
) -> Iterator[tuple[Float[Tensor, "f 3 h w"], Float[Tensor, "f 3 h w"]]]:
    """Take deterministic steps, up or down; yield where each led, and the clean pictures seen before it.

    A step keeps the clean pictures and the noise that is left beside them, which follows when those were
    clamped. They are seen at the level that is left, at its own timestep, in both directions. So the authors
    encode; the way down therefore does not come back exactly.
    """
    for here, there in steps:
        seen = clean(x, here)
        x = extrapolate(seen, x, here, there)
        yield x, seen


@final
@dataclass(frozen=True)
class FaceConfig:
    """What a face network is built from, and how it was trained.

    Args:
        unet: what diffusers' UNet2DModel is built with, `unet_options` filled in.
        identity: features that say who it is.
        motion: features that say how the face moves: two for each point.
        prediction: what the network gives: the noise, as published, or the clean picture.
        patch: side of the squares of pixels that the UNet takes as one.
        detail: channels of the convolutions that draw inside those squares; 0 for none.
        lo: the timestep at which the clean picture enters; as published 0, and without noise.
        hi: the timestep of the noise picture.
        scale: how much larger the cut square is than FFHQ's.
    """

    unet: Mapping[str, object]
    identity: int = 512
    motion: int = 102
    prediction: Literal["epsilon", "sample"] = "epsilon"
    patch: int = 1
    detail: int = 0
    lo: int = 0
    hi: int = TRAIN_STEPS - 1
    scale: float = 1.0

    @property
    def side(self) -> int:
        """The side of the pictures, in pixels."""
        return int(str(self.unet["sample_size"])) * self.patch


def alphas_cumprod() -> Float64[np.ndarray, " t"]:
    """Return the share of signal power at each training timestep: betas rise linearly from 1e-4 to 0.02."""
    return np.cumprod(1 - np.linspace(1e-4, 0.02, TRAIN_STEPS))


def published_unet(
    side: int, widths: Sequence[int], attends: Sequence[bool], *, layers: int = 2, code: int = 512
) -> dict[str, object]:
    """Return what the published UNet is built with: the width of each level, and which of them attend."""
    return {
        "sample_size": side,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": list(widths),
        "layers_per_block": layers,
        "down_block_types": ["AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attends],
        "up_block_types": ["AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attends)],
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "attention_head_dim": None,
        "norm_num_groups": 32,
        "attn_norm_num_groups": 32,
        "norm_eps": 1e-5,
        "freq_shift": 0,
        "flip_sin_to_cos": True,
        "class_embed_type": "identity",
        "time_embedding_dim": code,
    }


PUBLISHED: Final = published_unet(
    256, (128, 128, 256, 256, 512, 512), (False, False, False, False, True, False)
)
"""At 256 pixels; faces attend at 16 x 16, and in the middle."""


def begin_still(network: "FaceNetwork") -> None:
    """Let a new network's units, attention and answer begin at nothing, as published.

    Identities are unit vectors and points lie about one half: the code of a face begins as large as noise.
    """
    last = [m.conv2 for m in network.modules() if isinstance(m, FaceUnit)]
    last += [m.to_out[0] for m in network.modules() if isinstance(m, Attention)]
    last += [network.detail.conv_out] if network.detail else []
    for layer in (*last, network.unet.conv_out):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    nn.init.normal_(network.merge.weight, std=0.8)
    with torch.no_grad():
        network.merge.bias.copy_(-0.5 * network.merge.weight[:, network.config.identity :].sum(1))


@final
class FaceNetwork(nn.Module):
    """The UNet, and the layer that makes one code of who it is and how it moves."""

    def __init__(self, config: FaceConfig) -> None:
        """Build it with random weights."""
        super().__init__()
        self.config = config
        self.unet = face_unet(config.unet)
        self.merge = nn.Linear(config.identity + config.motion, int(str(config.unet["time_embedding_dim"])))
        self.detail = Detail(config.detail) if config.detail else None

    def code(
        self, identity: Float[Tensor, "f identity"], motion: Float[Tensor, "f motion"]
    ) -> Float[Tensor, "f z"]:
        """Return the codes of faces (z_face of the paper; its "MLP" is one linear layer)."""
        return torch.as_tensor(self.merge(torch.cat([identity, motion], dim=1)))

    def forward(
        self, x: Float[Tensor, "f 3 h w"], t: Int[Tensor, " f"], code: Float[Tensor, "f z"]
    ) -> Float[Tensor, "f 3 h w"]:
        """Return the noise or the clean picture in `x`, whichever the network was trained to give."""
        patch = self.config.patch
        if patch == 1:
            return torch.as_tensor(self.unet(x, t, code).sample)
        drawn = pixel_shuffle(self.unet(pixel_unshuffle(x, patch), t, code).sample, patch)
        return drawn if self.detail is None else torch.as_tensor(self.detail(drawn, x))


@final
class Detail(nn.Module):
    """Two convolutions at the pictures' own size, so that squares of pixels taken as one leave no grid."""

    def __init__(self, channels: int) -> None:
        """Build it with random weights."""
        super().__init__()
        self.conv_in = nn.Conv2d(channels + 3, channels, 3, padding=1)
        self.conv_out = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(
        self, drawn: Float[Tensor, "f c h w"], x: Float[Tensor, "f 3 h w"]
    ) -> Float[Tensor, "f 3 h w"]:
        """Return the picture of what the UNet drew, beside the noisy one; its first three channels pass."""
        seen = silu(self.conv_in(torch.cat([drawn, x], dim=1)))
        return torch.as_tensor(drawn[:, :3] + self.conv_out(seen))


@final
class FaceUnit(nn.Module):
    """The published residual unit, made from one of diffusers', which it takes the place of.

    Beside that unit's parts it has a convolution and a norm between the two, and a modulation of the norm
    by the code.
    """

    def __init__(self, block: ResnetBlock2D, time_width: int) -> None:
        """Take over the parts of `block` and add what it lacks."""
        super().__init__()
        channels, width = block.out_channels, block.time_emb_proj.in_features
        self.time_width = time_width
        self.norm1, self.conv1, self.time_emb_proj = block.norm1, block.conv1, block.time_emb_proj
        self.norm2, self.conv2, self.dropout = block.norm2, block.conv2, block.dropout
        self.conv_shortcut = block.conv_shortcut
        self.resample = block.upsample or block.downsample or nn.Identity()
        self.conv_mid = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm3 = nn.GroupNorm(block.norm2.num_groups, channels, eps=block.norm2.eps)
        self.cond_proj = nn.Linear(width, 2 * channels)

    def forward(
        self, input_tensor: Float[Tensor, "f c h w"], temb: Float[Tensor, "f time_and_z"]
    ) -> Float[Tensor, "f d v u"]:
        """Return the unit's answer; `temb` holds the time's features and, behind them, the code."""
        time, code = silu(temb).tensor_split([self.time_width], dim=1)
        h = self.conv1(self.resample(silu(self.norm1(input_tensor))))
        h = _modulated(self.norm2(h), self.time_emb_proj(time))
        h = _modulated(self.norm3(self.conv_mid(silu(h))), self.cond_proj(code))
        x = self.resample(input_tensor)
        kept = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return torch.as_tensor(kept + self.conv2(self.dropout(silu(h))))


@final
class Beside(nn.Module):
    """Puts zeros before or behind features: diffusers' sum of time and code becomes the two side by side."""

    def __init__(self, before: int = 0, behind: int = 0) -> None:
        """Say how many zeros."""
        super().__init__()
        self.zeros = (before, behind)

    def forward(self, features: Float[Tensor, "f n"]) -> Float[Tensor, "f wider"]:
        """Return the features with their zeros."""
        return nn.functional.pad(features, self.zeros)


def face_unet(options: Mapping[str, object]) -> UNet2DModel:
    """Return diffusers' UNet with the published unit in it, weights random."""
    with quiet():  # it remarks that one head is not recommended; one head is what was published
        unet = UNet2DModel(**options)
    width = int(str(options["time_embedding_dim"]))
    for module in list(unet.modules()):
        for name, part in list(module.named_children()):
            if isinstance(part, ResnetBlock2D):
                setattr(module, name, FaceUnit(part, width))
    unet.time_embedding.post_act = Beside(behind=width)
    unet.class_embedding = Beside(before=width)
    return unet


def _modulated(h: Float[Tensor, "f c h w"], by: Float[Tensor, "f twice_c"]) -> Float[Tensor, "f c h w"]:
    scale, shift = by[:, :, None, None].chunk(2, dim=1)
    return h * (1 + scale) + shift
