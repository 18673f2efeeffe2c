"""What trainings share: the loop and its checkpoints.

A working copy in the precision that the machine is quick in, float32 masters, a running average.

Checkpoints are written every few minutes to a draft and renamed, so a kill at any moment costs minutes.
Batches are drawn by the step's number, so a resumed training sees the same pictures as an unbroken one.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Generic, Self, TypeAlias, TypeVar, final

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import Conv3d, Module

from retouch.artifacts import write_tensors
from retouch.errors import Diverged
from retouch.files import replace_whole

N = TypeVar("N", bound=Module)
Figures: TypeAlias = Callable[[], Mapping[str, float]]
Tell: TypeAlias = Callable[[Mapping[str, object]], object]
CHECKPOINT: Final = "checkpoint.safetensors"

CHECKPOINT_SECONDS: Final = 150.0
STATES: Final = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")
"""What the optimizers remember of a variable."""
MEANINGFUL_LOSSES: Final = 200
"""Over how many last steps the reported loss is averaged."""
LOWER: Final = "lower the rate"
REFUSALS: Final = 10
"""So many steps in a row may have a gradient that is not a number."""


@final
class Fit(Generic[N]):
    """Trains `network` in place; `averaged` gives what to ship.

    The rate rises over `warmup` steps and then stays, so that a training may go on for as long as there is
    time for it; `settle` lets it fall towards the planned end.

    Args:
        network: what to train.
        folder: where its checkpoint lies, or will.
        rate: how far a step goes.
        warmup: over how many steps the rate rises.
        decay: by how much matrices shrink, times the rate.
        keep: how much of the running average stays at each step.
        device: where to train.
        precision: of the working copy; None is `working_precision(device)`.
        betas: how long AdamW remembers gradients, and their squares.
        orthogonal: matrices take steps of one length in all directions (Muon), and only vectors go by AdamW.
        tell: is given each row of figures.
    """

    def __init__(
        self,
        network: N,
        folder: Path,
        *,
        rate: float,
        warmup: int = 200,
        decay: float = 0.01,
        keep: float = 0.998,
        device: str = "cpu",
        precision: torch.dtype | None = None,
        betas: tuple[float, float] = (0.9, 0.99),
        orthogonal: bool = False,
        tell: Tell = lambda _: None,
    ) -> None:
        """Take a network, and go on from the checkpoint in the folder if there is one."""
        self.folder = folder
        self.tell = tell
        self.rate = rate
        self.warmup = warmup
        self.keep = keep
        self.device = torch.device(device)
        network.to(self.device)
        self.masters = {
            name: p.detach().float().clone() for name, p in network.named_parameters() if p.requires_grad
        }
        self.average = {name: value.clone() for name, value in self.masters.items()}
        self.precision = precision or working_precision(device)
        self.network = network.to(self.precision)
        if self.device.type == "cpu" and self.precision != torch.float32:
            tell({"computed in float32": ", ".join(convolve_in_full(self.network)) or "nothing"})
        self.share = 1.0
        self.step = 0
        self.refused = 0
        self.images = 0
        self.losses: list[float] = []
        self.history: list[dict[str, float]] = []
        self.variables = {name: v.flatten(1) if v.ndim > 1 else v for name, v in self.masters.items()}
        """What the optimizers see of the masters: vectors, and matrices."""
        plain = [v for v in self.variables.values() if v.ndim < 2]
        matrices = [v for v in self.variables.values() if v.ndim == 2]
        if orthogonal:
            adam = torch.optim.AdamW(plain, lr=rate, betas=betas, eps=1e-8, weight_decay=0.0)
            muon = torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
            self.optimizers: tuple[torch.optim.Optimizer, ...] = (adam, muon)
        else:
            groups = [{"params": matrices, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}]
            self.optimizers = (torch.optim.AdamW(groups, lr=rate, betas=betas, eps=1e-8),)
        self._saved = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        self._resume()

    def until(
        self,
        images: int,
        look: Callable[[torch.Generator], tuple[Tensor, int]],
        *,
        every: int,
        figures: Figures = dict,
    ) -> Self:
        """Train until `images` have been seen, counting those of earlier calls, and save.

        Args:
            images: where to stop.
            look: draws a batch with the step's random numbers and gives the loss, and how many images it saw.
            every: after so many steps figures are noted.
            figures: what to note beside the loss.
        """
        while self.images < images:
            loss, seen = look(self.generator())
            self.descend(loss, seen)
            if self.step % every == 0:
                self.note(**figures())
            self.save_if_due()
        self.save()
        return self

    def generator(self) -> torch.Generator:
        """The random numbers of this step."""
        return torch.Generator().manual_seed(7_919 * self.step + 13 + 104_729 * rank())

    def descend(self, loss: Tensor, images: int) -> None:
        """One step down the gradient of `loss`, which saw so many images.

        A gradient that is not finite never reaches the weights: that step is left out.

        Raises:
            Diverged: the loss is not a number, or the gradients of many steps in a row are not.
        """
        if not math.isfinite(now := float(loss.detach())):
            raise Diverged(f"the loss is {now} at step {self.step + 1}", hint=LOWER)
        torch.autograd.backward(loss)
        live = dict(self.network.named_parameters())
        for name, variable in self.variables.items():
            grad = live[name].grad
            variable.grad = None if grad is None else grad.float().view_as(variable)
            live[name].grad = None
        average_over_processes([v.grad for v in self.variables.values() if v.grad is not None])
        norm = torch.nn.utils.clip_grad_norm_(list(self.variables.values()), 1.0)
        self.refused = 0 if math.isfinite(norm) else self.refused + 1
        if self.refused > REFUSALS:
            raise Diverged(
                f"{self.refused} gradients in a row are not finite, to step {self.step + 1}", hint=LOWER
            )
        for optimizer in () if self.refused else self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.share * self.rate * min(1.0, (self.step + 1) / self.warmup)
            optimizer.step()
        self.step += 1
        self.images += images * processes()
        keep = min(self.keep, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            values, means = list(self.masters.values()), list(self.average.values())
            torch._foreach_lerp_(means, values, 1 - keep)
            for name, master in self.masters.items():
                live[name].copy_(master)
        self.losses.append(now)

    def settle(self, end: int, *, start: float = 0.6, last: float = 0.1) -> None:
        """Let the rate fall to `last` of itself from the share `start` of the way to `end` images on."""
        progress = (self.images / end - start) / (1 - start)
        self.share = last ** min(1.0, max(0.0, progress))

    def loss(self) -> float:
        """The mean of the last losses."""
        last = self.losses[-MEANINGFUL_LOSSES:]
        return sum(last) / max(1, len(last))

    def note(self, **figures: float) -> None:
        """Put figures into the history that goes into PROVENANCE.json."""
        row = {
            "step": float(self.step),
            "images": float(self.images),
            "loss": round(self.loss(), 5),
            **figures,
        }
        self.history.append(row)
        if rank() == 0:
            self.tell(row)

    def save_if_due(self) -> None:
        """Save if the last checkpoint is some minutes old."""
        if time.monotonic() - self._saved > CHECKPOINT_SECONDS:
            self.save()

    def save(self) -> None:
        """Write a checkpoint, whole or not at all.

        Raises:
            ResourceError: the disk is full; the last checkpoint is still there.
        """
        if rank() > 0:
            return
        tensors = {f"master/{name}": value for name, value in self.masters.items()}
        tensors |= {f"average/{name}": value for name, value in self.average.items()}
        for name, variable in self.variables.items():
            for optimizer in self.optimizers:
                for key, state in optimizer.state.get(variable, {}).items():
                    tensors[f"{key}/{name}"] = torch.as_tensor(state)
        about = {
            "step": self.step,
            "images": self.images,
            "losses": self.losses[-MEANINGFUL_LOSSES:],
            "history": self.history,
        }
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        with replace_whole(self.folder / CHECKPOINT, force=True) as draft:
            write_tensors(tensors, draft, {"about": json.dumps(about)})
        self._saved = time.monotonic()

    def averaged(self) -> Mapping[str, Tensor]:
        """The running average of the weights."""
        return self.average

    def _resume(self) -> None:
        path = self.folder / CHECKPOINT
        if not path.exists():
            return
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
            for name, value in self.masters.items():
                value.copy_(file.get_tensor(f"master/{name}"))
                self.average[name].copy_(file.get_tensor(f"average/{name}"))
            for optimizer in self.optimizers:
                self._resume_optimizer(optimizer, file)
        self.step, self.images = about["step"], about["images"]
        self.losses, self.history = about["losses"], about["history"]
        with torch.no_grad():
            for name, live in self.network.named_parameters():
                if name in self.masters:
                    live.copy_(self.masters[name])

    def _resume_optimizer(self, optimizer: torch.optim.Optimizer, file: Any) -> None:
        known = set(file.keys())
        mine = {id(v) for group in optimizer.param_groups for v in group["params"]}
        for name, variable in self.variables.items():
            kept = {key: f"{key}/{name}" for key in STATES if id(variable) in mine}
            state = {key: file.get_tensor(place) for key, place in kept.items() if place in known}
            if state:
                optimizer.state[variable] = {
                    k: s if k == "step" else s.view_as(variable).to(self.device) for k, s in state.items()
                }


def working_precision(device: str) -> torch.dtype:
    """Return bfloat16, or float32 for a processor without instructions for it.

    There bfloat16 costs twelve times as much: 14 s against 1.2 for two steps of the UNet on eight pictures.
    """
    quick = device != "cpu" or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if quick else torch.float32


def convolve_in_full(network: Module) -> list[str]:
    """Let 3-D convolutions compute in float32, whatever their weights are kept in; give their names.

    The gradient of their weights in bfloat16 on a processor is not always a number (oneDNN 3.12).
    """
    found = {name: layer for name, layer in network.named_modules() if isinstance(layer, Conv3d)}
    for layer in found.values():
        layer._conv_forward = partial(_in_full, layer._conv_forward)  # type: ignore[method-assign]
    return list(found)


def _in_full(
    convolve: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    return convolve(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)


def join_processes() -> None:
    """Train together with the other processes that torchrun started, if it did."""
    if torch.distributed.is_torchelastic_launched():
        torch.distributed.init_process_group("gloo")


@contextmanager
def first_alone() -> Iterator[None]:
    """Around what writes files: the others wait until the first process is through."""
    if rank() > 0:
        torch.distributed.barrier()
    yield
    if rank() == 0 and processes() > 1:
        torch.distributed.barrier()


def processes() -> int:
    """How many processes train together."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def rank() -> int:
    """Which of the processes that train together this is."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def average_over_processes(gradients: Sequence[Tensor]) -> None:
    """Replace gradients by their means over all processes that train together."""
    if processes() == 1:
        return
    flat = torch.cat([g.flatten() for g in gradients])
    torch.distributed.all_reduce(flat)
    flat /= processes()
    for gradient, mean in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def load_average(network: N, folder: Path) -> N:
    """`network` with the averaged weights of the training in `folder`, float32, frozen."""
    network.float()
    live = dict(network.named_parameters())
    with safe_open(folder / CHECKPOINT, "pt") as file, torch.no_grad():
        for name in file.keys():  # noqa: SIM118 - not a dict
            if name.startswith("average/"):
                live[name.removeprefix("average/")].copy_(file.get_tensor(name))
    network.eval().requires_grad_(False)
    return network
