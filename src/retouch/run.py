"""What a method needs from outside, in one value: models, progress, named noise, a store, scratch space."""

import contextlib
import dataclasses
import functools
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, Self, TypeAlias, TypeVar, cast, final, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from retouch.artifacts import ArtifactStore, DraftFile
from retouch.compute import Compute
from retouch.errors import Cancelled, Diverged, ModelMismatch, RetouchError
from retouch.events import Advanced, Ended, Event, Listener, Loaded, Notice, Started, ignore
from retouch.files import take_space
from retouch.video import FRAMES_AT_ONCE, Video

T = TypeVar("T")


@runtime_checkable
class LoadableModel(Protocol):
    """A model class that a run can load by reference; its models say their `identity`."""

    @classmethod
    def from_pretrained(cls, ref: str, compute: Compute) -> Self:
        """The model that lies under a reference, on the device and in the precision asked for."""
        ...


M = TypeVar("M", bound=LoadableModel)
SetProgress: TypeAlias = Callable[[int], None]
OnStep: TypeAlias = Callable[["Step[object]", Tensor], Tensor]


@final
@dataclass(frozen=True, eq=False)
class Step(Generic[T]):
    """One pass of a method's loop."""

    stage: str
    index: int
    total: int
    item: T
    on_step: OnStep | None = None

    def done(self, latents: Tensor) -> Tensor:
        """The latents after this step, as a caller's callback left them.

        Raises:
            Diverged: they are infinite or not a number.
        """
        self._check(latents)
        if self.on_step is None:
            return latents
        changed = self.on_step(cast("Step[object]", self), latents)
        self._check(changed)
        return changed

    def _check(self, latents: Tensor) -> None:
        if not bool(torch.isfinite(latents).all()):
            raise Diverged(
                f"{self.stage} gave values that are not numbers at step {self.index + 1} of {self.total}",
                hint="try --dtype float32, a lower guidance, or fewer steps",
            )


@final
@dataclass(frozen=True, eq=False)
class Run:
    """One run of one method.

    Noise depends on the seed and a name alone, so that one more draw in one stage moves no other, and a
    resumed run draws the same.
    """

    folder: Path
    seed: int
    compute: Compute
    store: ArtifactStore
    draft: DraftFile
    listen: Listener = ignore
    stopped: Callable[[], bool] = field(default=lambda: False)
    on_step: OnStep | None = None

    @classmethod
    def alone(
        cls,
        folder: Path,
        *,
        seed: int = 0,
        compute: Compute | None = None,
        store: Path | None = None,
        listen: Listener = ignore,
        stopped: Callable[[], bool] = lambda: False,
        on_step: OnStep | None = None,
    ) -> Self:
        """Return a run in a folder, where its store lies too unless `store` is another place."""
        kept = ArtifactStore(store or folder / "store")
        draft = DraftFile(folder / "checkpoint.safetensors")
        return cls(folder, seed, compute or Compute(), kept, draft, listen, stopped, on_step)

    def load(self, ref: str, kind: type[M]) -> M:
        """The model of a kind that lies under a reference, loaded once a process."""
        before, started = _load_once.cache_info().misses, time.perf_counter()
        model = _load_once(kind, ref, self.compute)
        if _load_once.cache_info().misses > before:
            self.emit(Loaded(ref, round(time.perf_counter() - started, 3)))
        return cast("M", model)

    def steps(self, stage: str, items: Sequence[T]) -> Iterator[Step[T]]:
        """The items one by one, with progress told before and after each.

        Raises:
            Cancelled: someone asked the run to stop.
        """
        self.emit(Started(stage, len(items)))
        for index, item in enumerate(items):
            self.check()
            yield Step(stage, index, len(items), item, self.on_step)
            self.emit(Advanced(stage, index + 1, len(items)))
        self.emit(Ended(stage))

    def resumable(
        self,
        stage: str,
        items: Sequence[T],
        state: Mapping[str, Tensor | np.memmap],
        *,
        every: int = 1,
        key: str = "",
    ) -> Iterator[Step[T]]:
        """Yield as `steps` does, from where an earlier attempt was stopped.

        Args:
            stage: What progress is told of.
            items: All of them; those that are done already are passed over.
            state: What the loop changes in place and goes on from. Tensors are saved whole, and filled when
                the loop goes on; arrays from `Draft.array` lie in files of their own.
            every: Items between two checkpoints.
            key: The identity of what decides the result, where the folder may hold another run's checkpoint.

        Raises:
            Cancelled: someone asked the run to stop.
        """
        done = self._taken_up(prefix := f"{stage} {key}".strip(), state)
        self.emit(Started(stage, len(items)))
        if done:
            self.emit(Advanced(stage, done, len(items)))
        for index, item in enumerate(items[done:], done):
            self.check()
            yield Step(stage, index, len(items), item, self.on_step)
            if (index + 1) % every == 0:
                self._keep(prefix, state, index + 1)
            self.emit(Advanced(stage, index + 1, len(items)))
        self.emit(Ended(stage))

    @torch.no_grad()
    def _taken_up(self, prefix: str, state: Mapping[str, Tensor | np.memmap]) -> int:
        """Fill a state from the last checkpoint, if it is this loop's; return how many items lie behind."""
        kept = self.draft.load() or {}
        if f"{prefix} done" not in kept:
            return 0
        for name, tensor in state.items():
            if isinstance(tensor, Tensor):
                tensor.copy_(kept[f"{prefix} {name}"])
        return int(kept[f"{prefix} done"])

    def _keep(self, prefix: str, state: Mapping[str, Tensor | np.memmap], done: int) -> None:
        tensors = {"done": torch.tensor(done)}
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[name] = value
            else:
                value.flush()
        self.draft.save({f"{prefix} {name}": tensor for name, tensor in tensors.items()})

    @contextlib.contextmanager
    def progress(self, stage: str, total: int) -> Iterator[SetProgress]:
        """A stage whose progress comes in leaps: tell what this gives how much of `total` is done.

        Raises:
            Cancelled: someone asked the run to stop.
        """
        told = 0

        def set_progress(done: int) -> None:
            nonlocal told
            self.check()
            if told < done <= total:
                told = done
                self.emit(Advanced(stage, done, total))

        self.emit(Started(stage, total))
        yield set_progress
        set_progress(total)
        self.emit(Ended(stage))

    def check(self) -> None:
        """Raises Cancelled if someone asked the run to stop."""
        if self.stopped():
            raise Cancelled("the run was stopped", hint=f"go on with: retouch resume {self.folder.name}")

    def noise(self, name: str, like: Tensor) -> Tensor:
        """Normal noise of a tensor's shape, device and precision, decided by the seed and the name."""
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like)

    def scratch(self, name: str, shape: tuple[int, ...], dtype: type[np.generic] = np.uint8) -> np.memmap:
        """An array of zeros in a file of the run folder, for what must not fill the memory.

        It is gone when the run ends.

        Raises:
            ResourceError: the disk is full.
        """
        path = self.folder / "scratch" / f"{name}.bin"
        take_space(path, math.prod(shape) * np.dtype(dtype).itemsize)
        return np.memmap(path, dtype=dtype, mode="r+", shape=shape)

    def notice(self, text: str) -> None:
        """Tells the user something in a sentence."""
        self.emit(Notice(text))

    def emit(self, event: Event) -> None:
        """Tells whoever listens."""
        self.listen(event)

    @property
    def arithmetic(self) -> str:
        """The device, the precision and the threads, on which results depend in their last digits."""
        device, dtype = self.compute.torch_device().type, self.compute.torch_dtype()
        return f"{device} {dtype} {torch.get_num_threads()} threads"

    def inside(self, draft: DraftFile, *, seed: int) -> "Run":
        """The same run while it makes one artefact, with that artefact's checkpoints and seed."""
        return dataclasses.replace(self, draft=draft, seed=seed)


@final
@dataclass(frozen=True, eq=False)
class Edited:
    """What a method gives back."""

    video: Video
    touched: np.ndarray | None = None
    """Bool, f 1 h w: where pixels may differ from the source; None says anywhere."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Measured numbers for the report."""
    extras: Mapping[str, Video | np.ndarray | str] = field(default_factory=dict)
    """What else is worth keeping: clips, pictures (uint8 h w 3 or 4), texts, by file name without suffix."""

    def untouched(self, source: Video) -> dict[str, object]:
        """Count what was left alone, before encoding: the share of pixels, and whether they are bit-exact."""
        result = self.video
        if result.frames.shape != source.frames.shape:
            return {"share": 0.0, "bit_exact": False, "sentence": "the frame size changed"}
        equal = promised = broken = 0
        for start in range(0, len(source), FRAMES_AT_ONCE):
            part = slice(start, start + FRAMES_AT_ONCE)
            same = (source.frames[part] == result.frames[part]).all(axis=1)
            equal += int(same.sum())
            if self.touched is not None:
                outside = ~self.touched[part, 0]
                promised += int(outside.sum())
                broken += int((outside & ~same).sum())
        total = len(source) * source.height * source.width
        share = promised / total if self.touched is not None else equal / total
        exact = self.touched is not None and broken == 0 and promised > 0
        if exact:
            sentence = (
                f"{share:.1%} of the pixels were out of the edit's reach and are bit for bit the source's"
            )
        elif self.touched is None or not promised:
            sentence = f"the edit may reach every pixel; {equal / total:.1%} are equal to the source"
        else:
            sentence = f"{broken} pixels outside the edit changed"
        return {"share": share, "bit_exact": exact, "changed_outside": broken, "sentence": sentence}


@functools.lru_cache(maxsize=8)
def _load_once(kind: type[LoadableModel], ref: str, compute: Compute) -> LoadableModel:
    """Models are never changed by those who use them, so one copy a process serves all."""
    with loading(ref):
        return kind.from_pretrained(ref, compute)


@contextlib.contextmanager
def loading(ref: str) -> Iterator[None]:
    """Turn whatever the files of a model make their readers raise into our error.

    Raises:
        ModelMismatch: says which reader found what.
    """
    try:
        yield
    except (RetouchError, MemoryError):
        raise
    except Exception as error:  # the libraries meet damaged files with whatever exception comes up in them
        if "OutOfMemory" in type(error).__name__:
            raise
        said = next((line for line in str(error).splitlines() if line.strip()), "")[:200]
        raise ModelMismatch(
            f"{ref} cannot be loaded ({type(error).__name__}: {said})",
            hint=f"its files are damaged or of another kind; see: retouch models check {ref}",
        ) from error
