"""Where the edited texture lies, mended: one warp of the crop for all frames, by what an image model says.

    W(u) = u + w(u), w affine, and a lattice of controls where asked                            (6)
    loss = denoising loss of the rendered frames, or score distillation, or delta denoising     (7)
         + order 1 and 2 structure of w + fold penalty + change of visible area
    the mean of w over the object is taken out: the model knows no place, so it may not move one

One warp serves all frames, so whatever lay on one spot of the surface before does so afterwards. A loss that
falls is no proof: a map that was right gets worse by up to a pixel, which is how well the model knows where
things lie. So unless the object moves farther than that, and the same loss falls on other noise too, the map
is given back as it was, bit for bit.
"""

import math
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias, final

import torch
from jaxtyping import Float
from torch import Tensor

from retouch.artifacts import artifact
from retouch.atlas.atlas import Atlas
from retouch.atlas.edit import TexturePatch
from retouch.atlas.textures import gaussian_blur
from retouch.diffusion.resize import resized
from retouch.diffusion.sds import (
    delta_gradient,
    denoising_loss,
    gradient_as_loss,
    predicted_noise,
    score_gradient,
)
from retouch.methods.diffusion_atlas.compose import Look, View
from retouch.models.image import StableDiffusion
from retouch.models.noise_path import Level, add_noise, guided
from retouch.run import Run
from retouch.video import Video

Says: TypeAlias = Literal["denoise", "sds", "dds"]
LATTICE: Final = 5
"""Controls along a side, where the warp may bend."""
RATES: Final = (0.012, 0.006)
"""How far a step moves the affine part and the lattice, in halves of the crop's side."""
TOGETHER: Final = 2
"""Frames a step."""
LEVELS: Final = (0.1, 0.2, 0.3, 0.45)
HELD_OUT: Final = (0.18, 0.38, 0.6)
"""Noise levels that are asked at, and those at which the result is judged; shares of the schedule.

For maps that are right the loss at the first four together is least within .7 pixels of the truth, of 64;
with levels from .6 on within .9.
"""
NOISES: Final = 2
"""Noises that are drawn of each frame and level."""
KEPT_EVERY: Final = 5
"""Steps between two checkpoints: with a large model one takes seconds."""
JUDGED: Final = 8
"""Frames at which it is judged."""
ORDER_1, ORDER_2, FOLD, AREA = 1e-3, 3e-3, 5.0, 2.0
LEAST_FALL, LEAST_MOVE = 0.02, 0.025
"""Share by which the loss must fall on other noise, and sides of the crop by which the object must move."""
LEAST_AREA: Final = 0.1
"""Area that a unit of the texture may shrink to before it counts as folding."""


@final
@dataclass(frozen=True, eq=False)
class CanonicalWarp:
    """A warp of the crop, the same in every frame; it moves nothing while its numbers are zero."""

    affine: Float[Tensor, "2 3"]
    lattice: Float[Tensor, "2 k k"]
    weight: Float[Tensor, "1 1 y x"]
    """Whose mean movement is taken out."""

    def __call__(self, places: Float[Tensor, "f 2 h w"]) -> Float[Tensor, "f 2 h w"]:
        """Return places in the crop, in its pixels, moved; eq. 6."""
        size = places.new_tensor([self.weight.shape[-1], self.weight.shape[-2]])[:, None, None]
        at = (places + 0.5) / size * 2 - 1
        grid = self._grid()
        still = (self._moved(grid) * self.weight).sum((2, 3), keepdim=True) / self.weight.sum()
        return places + (self._moved(at) - still) * size / 2

    def moves(self) -> float:
        """Return how far it moves what has weight, root mean square, in sides of the crop."""
        places = _pixel_grid(self.weight)
        size = places.new_tensor([self.weight.shape[-1], self.weight.shape[-2]])[:, None, None]
        squares = ((self(places) - places) / size).square().sum(1, keepdim=True)
        return float(((squares * self.weight).sum() / self.weight.sum()).sqrt())

    def jacobian(self) -> Float[Tensor, "1 2 2 y x"]:
        """Return d W / d u at the pixels of the crop, by differences."""
        moved = self._grid() + self._moved(self._grid())
        size = moved.new_tensor([self.weight.shape[-1], self.weight.shape[-2]])
        across, down = torch.gradient(moved, dim=(3, 2))
        return torch.stack([across * size[0] / 2, down * size[1] / 2], 2)

    def _grid(self) -> Float[Tensor, "1 2 y x"]:
        height, width = self.weight.shape[-2:]
        x, y = (((torch.arange(n) + 0.5) / n * 2 - 1).to(self.affine) for n in (width, height))
        return torch.stack(torch.meshgrid(x, y, indexing="xy"))[None]

    def _moved(self, at: Float[Tensor, "f 2 h w"]) -> Float[Tensor, "f 2 h w"]:
        flat = torch.einsum("ij,fjhw->fihw", self.affine[:, :2], at) + self.affine[:, 2][:, None, None]
        bent = torch.nn.functional.grid_sample(
            self.lattice[None].expand(len(at), -1, -1, -1), at.movedim(1, 3), mode="bicubic",
            padding_mode="border", align_corners=True,
        )  # fmt: skip
        return flat + bent


@final
@dataclass(frozen=True)
class Refinement:
    """What decides a refinement, besides the clip, its edit and the model."""

    prompt: str
    source_prompt: str
    says: Says = "denoise"
    steps: int = 80
    bend: bool = False
    """Whether the lattice moves too."""
    guidance: float = 2.0
    """Of score distillation and delta denoising."""
    least: float = LEAST_FALL
    """By which share the loss must fall on other noise."""
    least_move: float = LEAST_MOVE
    """How far the object must move, in sides of the crop."""
    order_1: float = ORDER_1
    area: float = AREA


@final
@dataclass(frozen=True, eq=False)
class Refined:
    """A warp, if it is used, and how far the loss fell on other noise."""

    warp: CanonicalWarp | None
    fell: float
    moved: float = 0.0
    """How far it moves the object, in sides of the crop."""
    folds: float = 0.0
    """Share of the crop that it folds."""

    @property
    def why(self) -> str:
        """What the gate saw."""
        moved = f"the object would move by {self.moved:.1%} of its crop"
        return f"{moved}, and on other noise the loss fell by {self.fell:.1%}"

    @property
    def figures(self) -> dict[str, float]:
        """What a report says of it."""
        return {"refine_fell": self.fell, "refine_moved": self.moved, "refine_folds": self.folds}


@artifact("refined_map", version=3)
@torch.no_grad()
def refine(
    atlas: Atlas, video: Video, look: Look, ground: TexturePatch | None, sd: StableDiffusion, how: Refinement,
    *, run: Run,
) -> Refined:  # fmt: skip
    """Move the edited texture so that the model knows the frames better; go on where it was stopped."""
    studio = Studio(atlas, video, look, ground, sd, how, run)
    weight = look.old_matte if look.new_matte is None else look.new_matte
    numbers = torch.zeros(6 + 2 * LATTICE**2, device=sd.device)
    rates = torch.full_like(numbers, RATES[1])
    rates[:6], rates[6:] = RATES[0], RATES[1] if how.bend else 0.0
    state = {"numbers": numbers, "mean": numbers.clone(), "square": numbers.clone()}
    before, area = studio.judge(_warp(numbers, weight))
    for step in run.resumable("refine", range(how.steps), state, every=KEPT_EVERY):
        with torch.enable_grad():
            free = numbers.clone().requires_grad_()
            warp = _warp(free, weight)
            loss = studio.loss(warp, step.item, area) + structure(warp, how.order_1)
            (gradient,) = torch.autograd.grad(loss, free)
        fade = 0.5 * (1 + math.cos(math.pi * step.item / how.steps))
        numbers -= fade * rates * _adam(step.done(gradient), state["mean"], state["square"], step.item + 1)
    warp = _warp(numbers, weight)
    after, _ = studio.judge(warp)
    fell = 1 - after / before
    moved, folds = warp.moves(), float((_area(warp) <= 0).float().mean())
    believed = fell >= how.least and moved >= how.least_move and folds == 0
    return Refined(warp if believed else None, fell, moved, folds)


def structure(warp: CanonicalWarp, order_1: float = ORDER_1) -> Float[Tensor, ""]:
    """Return what a warp's own shape costs: slope, bend and folds; nothing where it moves nothing."""
    places = _pixel_grid(warp.weight)
    moved = warp(places) - places
    first = torch.stack(torch.gradient(moved, dim=(3, 2)))
    second = torch.stack(torch.gradient(first, dim=(4, 3)))
    fold = (LEAST_AREA - _area(warp)).clamp(min=0).square().mean()
    unit = warp.weight.shape[-1] / 2
    return order_1 * first.square().mean() + ORDER_2 * (unit * second).square().mean() + FOLD * fold


def _area(warp: CanonicalWarp) -> Float[Tensor, "1 y x"]:
    """Return what a unit of the texture becomes."""
    slope = warp.jacobian()
    return slope[:, 0, 0] * slope[:, 1, 1] - slope[:, 0, 1] * slope[:, 1, 0]


def _pixel_grid(like: Float[Tensor, "1 1 y x"]) -> Float[Tensor, "1 2 y x"]:
    x, y = torch.arange(like.shape[-1]).to(like), torch.arange(like.shape[-2]).to(like)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"))[None]


@final
@dataclass(frozen=True, eq=False)
class Studio:
    """Frames drawn with a warp, and what the model says of them."""

    atlas: Atlas
    video: Video
    look: Look
    ground: TexturePatch | None
    sd: StableDiffusion
    how: Refinement
    run: Run
    views: dict[int, View] = field(default_factory=dict)

    def loss(self, warp: CanonicalWarp, step: int, area: Float[Tensor, " f"]) -> Float[Tensor, ""]:
        """Return what the model says of two frames at one level, and what their area costs.

        In each turn all frames are asked for, each at one level; after four turns all were at all levels.
        """
        frames = self._frames(step)
        blur = max(0.0, 2.0 * (1 - step / (0.3 * self.how.steps)))
        pixels, alpha = self._drawn(frames, warp, blur)
        shown = alpha.sum() / sum(float(area[t]) for t in frames)
        turn, place = divmod(step, max(1, len(self.video) // TOGETHER))
        level, drawn = self.sd.level(LEVELS[(turn + place) % len(LEVELS)]), turn // len(LEVELS) % NOISES
        eps = torch.cat([self._noise(f"{t} {level.t} {drawn}", pixels[:1]) for t in frames])
        z = self.sd.encode_with_gradient(pixels)
        said = self._said(z, frames, level, eps, self._near(alpha))
        return said + self.how.area * shown.log().square()

    def judge(self, warp: CanonicalWarp) -> tuple[float, Float[Tensor, " f"]]:
        """Return the denoising loss on noise of its own, and the object's area in each frame."""
        stride = max(1, len(self.video) // JUDGED)
        areas, total, count = torch.zeros(len(self.video)), 0.0, 0
        for t in range(len(self.video)):
            pixels, alpha = self._drawn([t], warp, 0.0)
            areas[t] = alpha.sum()
            if t % stride:
                continue
            z, where = self.sd.encode(pixels), self._near(alpha)
            for share in HELD_OUT:
                level, eps = self.sd.level(share), self._noise(f"held out {t} {share}", pixels)
                total += float(self._denoising(z, level, eps, where))
                count += 1
        return total / count, areas.clamp(min=1)

    def _frames(self, step: int) -> list[int]:
        """Two frames, far apart; all get their turn."""
        half = max(1, len(self.video) // TOGETHER)
        return sorted({(step + half * k) % len(self.video) for k in range(TOGETHER)})

    def _drawn(
        self, frames: list[int], warp: CanonicalWarp, blur: float
    ) -> tuple[Float[Tensor, "f 3 y x"], Float[Tensor, "f 1 h w"]]:
        """Return frames as the model sees them, and the object's share of each pixel."""
        look = self.look
        if blur > 0:
            look = Look(
                look.crop, gaussian_blur(look.picture, blur), look.cover, look.old_matte,
                None if look.new_matte is None else gaussian_blur(look.new_matte, blur),
            )  # fmt: skip
        shown = [self._view(t).show(look, warp) for t in frames]
        pixels = torch.cat([picture for picture, _, _ in shown]) * 2 - 1
        size = self.sd.working_size(self.video.height, self.video.width)
        return resized(pixels, *size), torch.cat([alpha for _, _, alpha in shown])

    def _view(self, t: int) -> View:
        if t not in self.views:
            parts = self.atlas, self.video, self.look.crop, self.look.old_matte, self.ground
            self.views[t] = View.of(*parts, t, t + 1)
        return self.views[t]

    def _near(self, alpha: Float[Tensor, "f 1 h w"]) -> Float[Tensor, "f 1 y x"]:
        """Return where the latents show the object or what is beside it."""
        height, width = self.sd.working_size(self.video.height, self.video.width)
        small = torch.nn.functional.adaptive_max_pool2d(
            alpha.detach(), (height // self.sd.factor, width // self.sd.factor)
        )
        return torch.nn.functional.max_pool2d((small > 0.1).float(), 3, 1, 1)

    def _noise(self, name: str, like: Float[Tensor, "1 3 y x"]) -> Float[Tensor, "1 c h w"]:
        shape = int(self.sd.unet.config.in_channels), *(side // self.sd.factor for side in like.shape[-2:])
        return self.run.noise(name, like.new_empty(1, *shape))

    def _said(
        self, z: Tensor, frames: list[int], level: Level, eps: Tensor, where: Tensor
    ) -> Float[Tensor, ""]:
        """Return eq. 7 as a loss on the latents."""
        if self.how.says == "denoise":
            return self._denoising(z, level, eps, where)
        with torch.no_grad():
            found = self._predicted(z, level, eps, self.how.prompt)
            if self.how.says == "sds":
                gradient = score_gradient(found, eps, level)
            else:
                source = torch.cat([self._view(t).source for t in frames]) * 2 - 1
                size = self.sd.working_size(self.video.height, self.video.width)
                own = self.sd.encode(resized(source, *size))
                gradient = delta_gradient(
                    found, self._predicted(own, level, eps, self.how.source_prompt), level
                )
            gradient = gradient * where
            gradient = gradient / gradient.square().mean().sqrt().clamp(min=1e-8)
        return gradient_as_loss(z, gradient) / z[0].numel()

    def _denoising(self, z: Tensor, level: Level, eps: Tensor, where: Tensor) -> Float[Tensor, ""]:
        out = self.sd.predict(add_noise(z, eps, level), level.t, self.sd.embed(self.how.prompt))
        return denoising_loss(out, z, eps, level, where)

    def _predicted(self, z: Tensor, level: Level, eps: Tensor, prompt: str) -> Tensor:
        x = add_noise(z, eps, level)
        nothing, said = (self.sd.predict(x, level.t, self.sd.embed(text)) for text in ("", prompt))
        return predicted_noise(x, guided(nothing, said, self.how.guidance), level)


def _warp(numbers: Float[Tensor, " n"], weight: Float[Tensor, "1 1 y x"]) -> CanonicalWarp:
    return CanonicalWarp(numbers[:6].view(2, 3), numbers[6:].view(2, LATTICE, LATTICE), weight)


def _adam(
    gradient: Float[Tensor, " n"], mean: Float[Tensor, " n"], square: Float[Tensor, " n"], step: int
) -> Float[Tensor, " n"]:
    """Return the step of Adam (Kingma and Ba 2015, algorithm 1); its moments move on."""
    mean += 0.1 * (gradient - mean)
    square += 0.001 * (gradient.square() - square)
    return (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
