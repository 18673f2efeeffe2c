"""FateZero's way down, on latents: nothing here knows of videos, prompts or parameters.

The paper in five lines, and where to find them. Invert the clip (`retouch.diffusion.ddim`). From its
noise walk down with the target prompt (`walk`); at each step ask the network what attention the source
had there (`_look`), put that in place of the edit's own (`Fuse`), in self-attention only outside the
object (`object_mask`), and, if wanted, put the source's latents back outside the object (`_keep_outside`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, final, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from retouch.diffusion.attention import Attend, Gather, Layer, Neighbours
from retouch.diffusion.inversion import Trajectory
from retouch.diffusion.windows import Window
from retouch.diffusion.words import CrossFusion
from retouch.errors import MethodError
from retouch.methods.fatezero.fusion import Fuse, Reading, Watch, captured, mask_layers, object_mask
from retouch.models.noise_path import Level, Schedule, Timestep, guided, step
from retouch.video import chunks

Latents: TypeAlias = Float[Tensor, "f c h w"]
Room: TypeAlias = Callable[[str, tuple[int, ...], type[np.generic]], Tensor]
"""Zeroed space for numbers at rest, by name, shape and kind."""


@runtime_checkable
class Network(Protocol):
    """What the walk asks of a model; `retouch.models.image.StableDiffusion` has it."""

    def predict(
        self,
        z: Float[Tensor, "f c h w"],
        t: Timestep,
        text: Float[Tensor, "*f n d"],
        *,
        attention: Mapping[str, object] | None = None,
    ) -> Float[Tensor, "f c h w"]:
        """The network's own output."""
        ...


@final
@dataclass(frozen=True, eq=False)
class Texts:
    """The prompts as the network reads them."""

    source: Float[Tensor, "n d"]
    target: Float[Tensor, "n d"]
    against: Float[Tensor, "n d"]
    """What guidance goes away from."""
    source_words: Float[Tensor, " n"]
    """1 at the tokens of the object that changes."""
    target_words: Float[Tensor, " n"]
    """1 at the tokens of what it becomes."""


@final
@dataclass(frozen=True, eq=False)
class Object:
    """How the object that changes is found."""

    threshold: float
    """Share of a frame's greatest heat that is still object."""
    pick: Callable[[frozenset[Layer]], frozenset[Layer]] = mask_layers
    """The layers whose attention to words is read."""
    smoothing: int = 0
    """Frames to each side over which the source's heat is averaged."""
    given: Tensor | None = None
    """Bool, `f h w` at the size of the latents: the object itself, from the user."""


@final
@dataclass(frozen=True, eq=False)
class Recipe:
    """Everything that decides an edit besides the clip and the prompts."""

    guidance: float
    neighbours: Neighbours
    most_tokens: int
    """Layers with more queries a frame are left alone."""
    self_steps: range
    """Steps in which self-attention is the source's."""
    cross: CrossFusion | None = None
    thing: Object | None = None
    mask_self: bool = False
    """Whether self-attention inside the object stays the edit's own."""
    mask_steps: range = range(0)
    """Steps after which the object is found in the latents."""
    blend_steps: range = range(0)
    """Steps after which what lies outside the object is put back."""
    fuse_both: bool = False
    """Whether what guidance leads away from has the source's attention too, as it must where that is the
    source prompt: only what the prompts differ in is then amplified. The released code leaves that half
    alone."""
    source_lag: int = 0
    """How many levels cleaner than the edit the source is asked. The released code asks one level
    cleaner, since it keeps what inversion computed on its way up."""
    blend_lag: int = 0
    """How many levels noisier than the edit the latents put back are; 1 in the released code, by a slip."""


@final
@dataclass(frozen=True, eq=False)
class Scene:
    """What stays the same over the walk."""

    network: Network
    schedule: Schedule
    layers: tuple[Layer, ...]
    windows: tuple[Window, ...]
    texts: Texts
    recipe: Recipe
    device: torch.device


@final
@dataclass(frozen=True, eq=False)
class Moment:
    """One step of the walk, for whoever looks on; tensors are those of the last window."""

    index: int
    z: Latents
    """The latents after the step; the next step starts from what lies here then."""
    shown: Float[Tensor, "g c h w"]
    """The network's output for the target prompt, attention fused."""
    against: Float[Tensor, "g c h w"] | None
    self_masks: Mapping[tuple[int, int], Bool[Tensor, "g _ _"]] | None
    changed: Tensor | None
    """Bool, `f h w`: where the edit is kept when the source's latents are put back."""


@final
@dataclass(frozen=True, eq=False)
class Space:
    """What a walk keeps of the whole clip; may lie in files. It can go on from `z` and `target_heat`."""

    z: Latents
    out: Latents
    source_heat: Tensor
    """`f h w`: how strongly the source looks at the object's words in this step."""
    target_heat: Tensor
    """`f h w`: how strongly the edit did so far, added up."""
    changed: Tensor


def space(ladder: Trajectory, scene: Scene, room: Room) -> Space:
    """Room for a walk, its latents at the top of the ladder."""
    shape = tuple(ladder.latents.shape[1:])
    kind = np.float64 if ladder.latents.dtype == torch.float64 else np.float32
    read = _read_layers(scene)
    grid = next(iter(read)).grid if read else (1, 1)
    z = room("z", shape, kind)
    z[:] = ladder.latents[-1]
    return Space(
        z,
        out=room("out", shape, kind),
        source_heat=room("source_heat", (shape[0], *grid), kind),
        target_heat=room("target_heat", (shape[0], *grid), kind),
        changed=room("changed", (shape[0], *shape[2:]), np.bool_),
    )


def walk(ladder: Trajectory, scene: Scene, space: Space, *, done: int = 0) -> Iterator[Moment]:
    """Walks from the ladder's top to a clean clip, one step at a time, in `space.z`.

    Args:
        ladder: The inversion of the source.
        scene: Network, prompts, recipe.
        space: Where the latents are, and what else goes from step to step.
        done: How many steps lie behind.
    """
    for index, (hi, lo) in list(enumerate(scene.schedule.down()))[done:]:
        space.out[:] = 0
        space.source_heat[:] = 0
        for window in scene.windows:
            guess = _guess(ladder, scene, space, window, index, hi)
            window.add(space.out, guess.value)
        for part in chunks(len(space.z)):
            space.z[part] = step(space.z[part], space.out[part], hi, lo)
        if index in scene.recipe.mask_steps:
            _find_changed(scene, space)
        if index in scene.recipe.blend_steps:
            _keep_outside(space, ladder, len(ladder.latents) - index - 2 + scene.recipe.blend_lag)
        changed = space.changed if index in scene.recipe.mask_steps else None
        yield Moment(index, space.z, guess.shown, guess.against, guess.self_masks, changed)


@final
@dataclass(frozen=True, eq=False)
class _Guess:
    value: Tensor
    shown: Tensor
    against: Tensor | None
    self_masks: Mapping[tuple[int, int], Tensor] | None


def _guess(ladder: Trajectory, scene: Scene, space: Space, window: Window, index: int, hi: Level) -> _Guess:
    """The guided output for one window: source asked, edit fused, guidance's other half left plain."""
    recipe, texts = scene.recipe, scene.texts
    gather = recipe.neighbours.among(window.frames, len(space.z))
    watch = _look(ladder, scene, window, gather, index, hi)
    if watch.reading.answers:
        window.add(space.source_heat, watch.reading.heat()[:, 0])
    masks = _self_masks(scene, watch, window) if recipe.mask_self and index in recipe.self_steps else None
    cross = recipe.cross.at(index) if recipe.cross else None
    fuse = Fuse(
        gather, watch.seen, cross, masks, _reading(scene, texts.target_words, index in recipe.mask_steps)
    )
    z = window.take(space.z, scene.device)
    shown = scene.network.predict(z, hi.t, texts.target, attention={"rule": fuse})
    if fuse.reading.answers:
        window.add(space.target_heat, fuse.reading.heat()[:, 0])
    if recipe.guidance == 1:
        return _Guess(shown, shown, None, masks)
    held = Fuse(gather, watch.seen, _unchanged(scene), masks) if recipe.fuse_both else Attend(gather)
    against = scene.network.predict(z, hi.t, texts.against, attention={"rule": held})
    return _Guess(guided(against, shown, recipe.guidance), shown, against, masks)


def _unchanged(scene: Scene) -> tuple[Tensor, Tensor]:
    """The factors of cross-attention that is the source's, word by word."""
    length = len(scene.texts.source)
    return torch.eye(length), torch.zeros(length)


def _look(ladder: Trajectory, scene: Scene, window: Window, gather: Gather, index: int, hi: Level) -> Watch:
    """Asks the network about the source, if anything of the source's attention is wanted in this step."""
    recipe = scene.recipe
    taking = captured(scene.layers, recipe.most_tokens)
    kinds = {"self"} if index in recipe.self_steps else set()
    if recipe.cross and recipe.cross.at(index):
        kinds.add("cross")
    masked = index in recipe.mask_steps or (recipe.mask_self and index in recipe.self_steps)
    watch = Watch(
        gather,
        frozenset(layer for layer in taking if layer.kind in kinds),
        _reading(scene, scene.texts.source_words, masked),
    )
    if watch.layers or watch.reading.layers:
        rung = len(ladder.latents) - 1 - index - recipe.source_lag
        z = window.take(ladder.latents[rung], scene.device)
        watch.during(
            lambda rule: scene.network.predict(z, hi.t, scene.texts.source, attention={"rule": rule})
        )
    return watch


def _reading(scene: Scene, words: Tensor, wanted: bool) -> Reading:
    thing = scene.recipe.thing
    if not wanted or thing is None or thing.given is not None:
        return Reading()
    return Reading(_read_layers(scene), words[:, None])


def _read_layers(scene: Scene) -> frozenset[Layer]:
    """The layers whose attention to words shows the object.

    Raises:
        MethodError: they do not fit on each other.
    """
    thing = scene.recipe.thing
    if thing is None or thing.given is not None:
        return frozenset()
    layers = thing.pick(captured(scene.layers, scene.recipe.most_tokens))
    if len({layer.grid for layer in layers}) != 1:
        raise MethodError(
            "the layers in which the released code looks for the object have several sizes at this one",
            hint="use 512 x 512 pixels, or leave faithful off",
        )
    return layers


def _self_masks(scene: Scene, watch: Watch, window: Window) -> dict[tuple[int, int], Tensor]:
    """The object at every grid on which self-attention is fused."""
    thing = scene.recipe.thing
    assert thing is not None
    grids = {layer.grid for layer in watch.layers if layer.kind == "self"}
    if thing.given is not None:
        given = thing.given[list(window.frames)].to(scene.device)
        return {grid: adaptive_max_pool2d(given.float(), grid) > 0 for grid in grids}
    heat = _smoothed(watch.reading.heat()[:, 0], window.frames, thing.smoothing)
    return {grid: object_mask(heat, grid, thing.threshold) for grid in grids}


def _smoothed(heat: Float[Tensor, "f h w"], frames: Sequence[int], reach: int) -> Float[Tensor, "f h w"]:
    """Means over the frames at most `reach` away, nearer ones counting more."""
    if not reach:
        return heat
    at = torch.tensor(frames, dtype=heat.dtype, device=heat.device)
    weight = (1 - (at[:, None] - at[None]).abs() / (reach + 1)).clamp(min=0)
    return torch.einsum("fg,ghw->fhw", weight / weight.sum(1, keepdim=True), heat)


def _find_changed(scene: Scene, space: Space) -> None:
    """Where the object is or was: in the source at this step, and in the edit so far."""
    thing = scene.recipe.thing
    assert thing is not None
    if thing.given is not None:
        space.changed[:] = thing.given
        return
    size = (space.z.shape[2], space.z.shape[3])
    for part in chunks(len(space.z)):
        frames = range(part.start, part.stop)
        was, is_now = (
            object_mask(_smoothed(heat[part], frames, thing.smoothing), size, thing.threshold)
            for heat in (space.source_heat, space.target_heat)
        )
        space.changed[part] = was | is_now


def _keep_outside(space: Space, ladder: Trajectory, rung: int) -> None:
    """Puts the source's latents of a level back outside the object."""
    for part in chunks(len(space.z)):
        source, edit = ladder.latents[rung, part], space.z[part]
        inside = space.changed[part][:, None].to(edit.dtype)
        space.z[part] = source + inside * (edit - source)
