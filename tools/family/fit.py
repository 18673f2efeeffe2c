"""What every training of the family shares: the loop, its checkpoints, and its command line.

A bfloat16 working copy, float32 masters, a running average.

Checkpoints are written every few minutes to a draft and renamed, so a kill at any moment costs minutes.
Batches are drawn by the step's number, so a resumed training sees the same pictures as an unbroken one.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Generic, Self, TypeVar, final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Module

N = TypeVar("N", bound=Module)
Figures = Callable[[], Mapping[str, float]]

CHECKPOINT_SECONDS: Final = 150.0
MEANINGFUL_LOSSES: Final = 200
"""Over how many last steps the reported loss is averaged."""


@final
class Fit(Generic[N]):
    """Trains `network` in place; `averaged` gives what to ship.

    The rate rises over `warmup` steps and then stays, so that a training may go on for as long as there is
    time for it; `settle` lets it fall towards the planned end.
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
        precision: torch.dtype = torch.bfloat16,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        self.folder = folder
        self.rate = rate
        self.warmup = warmup
        self.keep = keep
        self.device = torch.device(device)
        network.to(self.device)
        self.masters = {
            name: p.detach().float().clone() for name, p in network.named_parameters() if p.requires_grad
        }
        self.average = {name: value.clone() for name, value in self.masters.items()}
        self.network = network.to(precision)
        self.share = 1.0
        self.step = 0
        self.images = 0
        self.losses: list[float] = []
        self.history: list[dict[str, float]] = []
        plain = [v for v in self.masters.values() if v.ndim < 2]
        matrices = [v for v in self.masters.values() if v.ndim >= 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}],
            lr=rate,
            betas=betas,
            eps=1e-8,
        )
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
        return torch.Generator().manual_seed(7_919 * self.step + 13)

    def descend(self, loss: Tensor, images: int) -> None:
        """One step down the gradient of `loss`, which saw so many images."""
        torch.autograd.backward(loss)
        live = dict(self.network.named_parameters())
        for name, master in self.masters.items():
            grad = live[name].grad
            master.grad = None if grad is None else grad.float()
            live[name].grad = None
        torch.nn.utils.clip_grad_norm_(list(self.masters.values()), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.share * self.rate * min(1.0, (self.step + 1) / self.warmup)
        self.optimizer.step()
        self.step += 1
        self.images += images
        keep = min(self.keep, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            values, means = list(self.masters.values()), list(self.average.values())
            torch._foreach_lerp_(means, values, 1 - keep)
            for name, master in self.masters.items():
                live[name].copy_(master)
        self.losses.append(float(loss.detach()))
        if not math.isfinite(self.losses[-1]):
            raise FloatingPointError(f"the loss is {self.losses[-1]} at step {self.step}")

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
        print(json.dumps(row), flush=True)

    def save_if_due(self) -> None:
        """Save if the last checkpoint is some minutes old."""
        if time.monotonic() - self._saved > CHECKPOINT_SECONDS:
            self.save()

    def save(self) -> None:
        """Write a checkpoint, whole or not at all."""
        tensors = {f"master/{name}": value for name, value in self.masters.items()}
        tensors |= {f"average/{name}": value for name, value in self.average.items()}
        for name, value in self.masters.items():
            for key, state in self.optimizer.state[value].items():
                tensors[f"{key}/{name}"] = torch.as_tensor(state)
        about = {
            "step": self.step,
            "images": self.images,
            "losses": self.losses[-MEANINGFUL_LOSSES:],
            "history": self.history,
        }
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        draft = self.folder / "checkpoint.draft"
        save_file(tensors, draft, metadata={"about": json.dumps(about)})
        draft.replace(self.folder / "checkpoint.safetensors")
        self._saved = time.monotonic()

    def averaged(self) -> Mapping[str, Tensor]:
        """The running average of the weights."""
        return self.average

    def _resume(self) -> None:
        path = self.folder / "checkpoint.safetensors"
        if not path.exists():
            return
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
            for name, value in self.masters.items():
                value.copy_(file.get_tensor(f"master/{name}"))
                self.average[name].copy_(file.get_tensor(f"average/{name}"))
                keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}/{name}" in file.keys()]  # noqa: SIM118
                state = {key: file.get_tensor(f"{key}/{name}") for key in keys}
                if state:
                    self.optimizer.state[value] = {
                        k: s if k == "step" else s.to(self.device) for k, s in state.items()
                    }
        self.step, self.images = about["step"], about["images"]
        self.losses, self.history = about["losses"], about["history"]
        with torch.no_grad():
            for name, live in self.network.named_parameters():
                if name in self.masters:
                    live.copy_(self.masters[name])


def options(description: str | None, images: int) -> argparse.ArgumentParser:
    """The command line that every training has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path(".family"))
    parser.add_argument("--size", type=int, default=64, choices=(64, 128))
    parser.add_argument("--images", type=int, default=images, help="stop when so many have been seen")
    parser.add_argument("--device", default="cpu")
    return parser


def load_average(network: N, folder: Path) -> N:
    """`network` with the averaged weights of the training in `folder`, float32, frozen."""
    network.float()
    live = dict(network.named_parameters())
    with safe_open(folder / "checkpoint.safetensors", "pt") as file, torch.no_grad():
        for name in file.keys():  # noqa: SIM118 - not a dict
            if name.startswith("average/"):
                live[name.removeprefix("average/")].copy_(file.get_tensor(name))
    network.eval().requires_grad_(False)
    return network
