"""What every method promises, as a check that anybody can run over theirs, and a small clip to run it on.

For the authors of plug-ins, and for our own tests. A broken promise is a `PluginError` that says which.

Example:
    def test_tint_keeps_the_contract(tmp_path):
        check_method(SPEC, bouncing().video, {"strength": 0.5}, tmp_path)
"""

import dataclasses
import gc
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import Float, UInt8

from retouch.artifacts import ArtifactStore
from retouch.compute import Compute
from retouch.errors import ArtifactError, Cancelled, PluginError
from retouch.events import Advanced, Ended, Event, Kept, Notice, Reused, Started
from retouch.identity import identity
from retouch.params import Params
from retouch.run import Edited, Run
from retouch.spec import MethodSpec
from retouch.video import Video, decibels


@final
@dataclass(frozen=True)
class NoOp:
    """Parameters that ask for no change, and how near to the source the result must then be."""

    params: Mapping[str, object]
    psnr: float
    """In decibels, over the whole clip."""


def check_method(
    spec: MethodSpec,
    video: Video,
    params: Mapping[str, object],
    folder: Path,
    *,
    no_op: NoOp | None = None,
    compute: Compute | None = None,
) -> None:
    """Holds a method to what every method promises; runs it about three times in `folder`, which is empty.

    The description is light and sound. Parameters survive JSON. Size, length, rate and origin stay. An edit
    changes something, and only where it says. Steps are reported and their totals are right. A run that is
    stopped half way leaves models and store as they were, and goes on to the very bytes of an unbroken one.
    A second run reuses what the first kept. Parameters that ask for nothing give the source back.

    Raises:
        PluginError: names the promise that does not hold.
    """
    check_description(spec)
    filled = spec.fill(params)
    check_json(spec, filled)
    trial = Trial(spec, video, filled, compute or Compute())
    unbroken = trial.run(folder / "unbroken")
    check_clip(trial, unbroken.edited)
    check_steps(trial, unbroken.events)
    check_stop_and_resume(trial, unbroken, folder / "stopped")
    check_reuse(trial, unbroken, folder / "unbroken")
    if no_op is not None:
        check_no_op(dataclasses.replace(trial, params=spec.fill(no_op.params)), no_op.psnr, folder / "no-op")


@final
@dataclass(frozen=True, eq=False)
class Outcome:
    """What one run gave back and told."""

    edited: Edited
    events: tuple[Event, ...]

    @property
    def steps(self) -> int:
        """How many steps were taken."""
        return sum(isinstance(event, Advanced) for event in self.events)

    def of_store(self, kind: type[Kept] | type[Reused]) -> Counter[tuple[str, str]]:
        """The artefacts that were kept, or reused, by kind and key."""
        return Counter((event.kind, event.key) for event in self.events if isinstance(event, kind))


@final
@dataclass(frozen=True, eq=False)
class Trial:
    """A method with what it is tried on."""

    spec: MethodSpec
    video: Video
    params: Params
    compute: Compute = field(default_factory=Compute)

    def run(self, folder: Path, *, stop_after: int | None = None) -> Outcome:
        """One run in a folder; asked to stop after that many steps, it raises Cancelled."""
        folder.mkdir(parents=True, exist_ok=True)
        events: list[Event] = []
        run = Run.alone(
            folder,
            seed=1,
            compute=self.compute,
            listen=events.append,
            stopped=lambda: stop_after is not None and Outcome(_NOTHING, tuple(events)).steps >= stop_after,
        )
        with self.compute.repeatable():
            edited = self.spec.load(self.spec.edit)(self.video, self.params, run)
        if not isinstance(edited, Edited):
            raise self.broken(f"gave back a {type(edited).__name__}, not an Edited")
        return Outcome(edited, tuple(events))

    def broken(self, what: str) -> PluginError:
        """The error for a promise that does not hold."""
        return PluginError(f"{self.spec.name} {what}")


def check_description(spec: MethodSpec) -> None:
    """The specification holds together, and describing the method loads no torch."""
    spec.check()
    code = f"import sys, {spec.params.__module__}; sys.exit('torch' in sys.modules)"
    paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ended = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **paths}, capture_output=True, check=False
    )
    if ended.returncode:
        said = ended.stderr.decode(errors="replace").strip().splitlines()
        raise PluginError(
            f"{spec.params.__module__}, which describes {spec.name}, cannot be imported without torch"
            + (f": {said[-1]}" if said else ""),
            hint="name the edit function in the spec and import torch in that module only",
        )


def check_json(spec: MethodSpec, params: Params) -> None:
    """The parameters are equal after a trip through JSON."""
    if spec.params.model_validate_json(params.model_dump_json()) != params:
        raise PluginError(f"{spec.name} has parameters that JSON changes: {params!r}")
    if spec.fill(params.model_dump(mode="json")) != params:
        raise PluginError(f"{spec.name} has parameters that a request changes: {params!r}")


def check_clip(trial: Trial, edited: Edited) -> None:
    """Size, length, rate and origin are the source's; something changed, and only where it may."""
    result, source = edited.video, trial.video
    for what, got, given in (
        ("length", len(result), len(source)),
        ("size", (result.width, result.height), (source.width, source.height)),
        ("rate", result.fps, source.fps),
        ("origin", result.origin, source.origin),
    ):
        if got != given:
            raise trial.broken(f"changed the clip's {what} from {given} to {got}")
    changed = (result.frames != source.frames).any(axis=1, keepdims=True)
    if not changed.any():
        raise trial.broken("changed nothing")
    if edited.touched is None:
        return
    if edited.touched.dtype != bool or edited.touched.shape != changed.shape:
        kind = f"{edited.touched.dtype} {edited.touched.shape}"
        raise trial.broken(f"says where it worked as {kind}; it must be bool {changed.shape}")
    if outside := int((changed & ~edited.touched).sum()):
        raise trial.broken(f"changed {outside} pixels outside of where it says it worked")


def check_steps(trial: Trial, events: tuple[Event, ...]) -> None:
    """At least one stage is reported, and each one counts upwards to its total and ends."""
    open_stages: dict[str, tuple[int, int]] = {}
    for event in events:
        match event:
            case Started(stage, total):
                open_stages[stage] = (0, total)
            case Advanced(stage, done, total):
                before, planned = open_stages.get(stage, (total, -1))
                if total != planned or not before < done <= total:
                    raise trial.broken(f"told of step {done} of {total} of {stage!r} out of turn")
                open_stages[stage] = (done, total)
            case Ended(stage):
                done, total = open_stages.pop(stage, (-1, 0))
                if done != total:
                    raise trial.broken(f"ended {stage!r} after {done} of {total} steps")
    if open_stages:
        raise trial.broken(f"never ended {', '.join(map(repr, open_stages))}")
    if not any(isinstance(event, Started) for event in events):
        raise trial.broken("reported no steps")


def check_stop_and_resume(trial: Trial, unbroken: Outcome, folder: Path) -> None:
    """A run stopped half way leaves models and store sound, and goes on to the bytes of an unbroken one."""
    before = dict(_state_of_models())
    try:
        trial.run(folder, stop_after=unbroken.steps // 2)
    except Cancelled:
        pass
    else:
        raise trial.broken("did not stop when it was asked to")
    after = dict(_state_of_models())
    if changed := sorted(
        {str(before[name][0]) for name in before.keys() & after.keys() if before[name] != after[name]}
    ):
        raise trial.broken(f"left models changed when it was stopped: {', '.join(changed)}")
    store = ArtifactStore(folder / "store")
    try:
        for entry in store.entries():
            store.check(entry.folder)
    except ArtifactError as error:
        raise trial.broken(f"left a damaged artefact when it was stopped: {error}") from None
    if left := sorted(path.name for path in store.folder.glob("*/.*.draft")):
        raise trial.broken(f"left half an artefact when it was stopped: {left[0]}")
    resumed = trial.run(folder)
    if resumed.edited.video.digest != unbroken.edited.video.digest:
        raise trial.broken("gave other frames when it was stopped and resumed than in one go")


def check_reuse(trial: Trial, unbroken: Outcome, folder: Path) -> None:
    """A second run on the same store agrees, keeps nothing anew, and reuses what was kept."""
    again = trial.run(folder)
    if again.edited.video.digest != unbroken.edited.video.digest:
        raise trial.broken("gave other frames for the same request")
    if remade := again.of_store(Kept):
        raise trial.broken(f"made {', '.join(kind for kind, _ in remade)} again for the same request")
    if unbroken.of_store(Kept) and not again.of_store(Reused):
        raise trial.broken("reused nothing of what it had kept")
    if damaged := [
        event.text for event in again.events if isinstance(event, Notice) and "damaged" in event.text
    ]:
        raise trial.broken(f"could not read what it had kept: {damaged[0]}")


def check_no_op(trial: Trial, psnr: float, folder: Path) -> None:
    """Parameters that ask for nothing give the source back, at least as near as stated."""
    result = trial.run(folder).edited.video
    error = np.square(result.frames.astype(np.float64) - trial.video.frames).mean()
    found = decibels(float(error), peak=255)
    if found < psnr:
        raise trial.broken(f"gave back the source at {found:.1f} dB; it must be at least {psnr:g}")


def _state_of_models() -> Iterator[tuple[int, tuple[str, str]]]:
    """Of every network in this process: its class, and a hash of its weights, hooks, mode and processors."""
    for module in gc.get_objects():
        if not issubclass(type(module), torch.nn.Module):  # asking an instance may run its code
            continue
        own = {name: tensor.detach() for name, tensor in module.named_parameters(recurse=False)}
        processor = getattr(module, "processor", None)
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
        parts = (own, module.training, hooks, type(processor).__qualname__, "forward" in vars(module))
        yield id(module), (type(module).__qualname__, identity(parts))


@final
@dataclass(frozen=True, eq=False)
class Bouncing:
    """A textured disc that bounces over a textured ground, with the truth about it."""

    video: Video
    mask: UInt8[np.ndarray, "f 1 h w"]
    """255 where the disc is."""
    flow: Float[np.ndarray, "pairs 2 h w"]
    """How far, in pixels right and down, what each frame shows moves until the next."""


def bouncing(frames: int = 8, side: int = 64) -> Bouncing:
    """Draws the clip; the same call draws the same bytes."""
    rows, columns = np.mgrid[0:side, 0:side].astype(np.float32)
    ground = 96 + 40 * np.sin(columns / 5) * np.cos(rows / 7)
    radius = side / 6
    places = [_bounce(frame, side, radius) for frame in range(frames)]
    pictures = np.empty((frames, 3, side, side), np.uint8)
    mask = np.zeros((frames, 1, side, side), np.uint8)
    flow = np.zeros((frames - 1, 2, side, side), np.float32)
    for frame, (x, y) in enumerate(places):
        inside = np.square(columns - x) + np.square(rows - y) <= radius**2
        disc = 170 + 60 * np.sin((columns - x) / 2) * np.sin((rows - y) / 3)
        for channel, (tint, share) in enumerate(((1.0, 1.0), (0.9, 0.5), (0.8, 0.3))):
            pictures[frame, channel] = np.where(inside, disc * share, ground * tint)
        mask[frame, 0] = inside * np.uint8(255)
        if frame + 1 < frames:
            flow[frame, :, inside] = np.subtract(places[frame + 1], (x, y))
    return Bouncing(Video(pictures, Fraction(12)), mask, flow)


def _bounce(frame: int, side: int, radius: float) -> tuple[float, float]:
    """The disc's middle: to the right by two pixels a frame, up and down by three, off the edges."""
    room = int(side - 2 * radius)
    across, down = (2 * frame) % (2 * room), (3 * frame) % (2 * room)
    return radius + min(across, 2 * room - across), radius + min(down, 2 * room - down)


_NOTHING = Edited(Video(np.zeros((1, 3, 1, 1), np.uint8), Fraction(1)))
