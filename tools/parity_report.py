"""What every parity check shares: comparing our numbers with the authors' and printing one line for each."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import click
import numpy as np
import torch
from torch import Tensor

NAME_WIDTH = 74


@final
@dataclass
class Report:
    """Prints a line per compared tensor as it comes and counts what failed.

    A method's module (`tools/parity_METHOD.py`) has `check(folder: Path, report: Report, *, only: str)`; it
    calls these methods for everything it compares. `only` is text that a name must have to be compared.
    """

    passed: int = 0
    failed: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    def relative(self, name: str, ours: object, theirs: object, *, tolerance: float) -> None:
        """Compares by the greatest difference over the greatest magnitude in `theirs`."""
        a, b = _numbers(ours), _numbers(theirs)
        if self._same_shape(name, a, b):
            greatest = float(b.abs().max()) if b.numel() else 0.0
            self._line(name, _difference(a, b) / (greatest or 1.0), tolerance)

    def by_norm(self, name: str, ours: object, theirs: object, *, tolerance: float) -> None:
        """Compares by the norm of the difference over the norm of `theirs` (rel-L2)."""
        a, b = _numbers(ours), _numbers(theirs)
        if self._same_shape(name, a, b):
            norm = float(b.norm())
            self._line(name, float((a - b).norm()) / (norm or 1.0), tolerance)

    def absolute(self, name: str, ours: object, theirs: object, *, tolerance: float) -> None:
        """Compares by the greatest difference."""
        a, b = _numbers(ours), _numbers(theirs)
        if self._same_shape(name, a, b):
            self._line(name, _difference(a, b), tolerance)

    def exact(self, name: str, ours: object, theirs: object) -> None:
        """Asks for equality: masks, tables, token numbers."""
        self.absolute(name, ours, theirs, tolerance=0.0)

    def fail(self, name: str, why: str) -> None:
        """Counts a failure that has no number: nothing of ours to compare with, or an error on the way."""
        self.failed.append(name)
        click.echo(f"{name:<{NAME_WIDTH}} FAIL  {why}")

    def not_shipped(self, name: str, what: str = "listed, but its tensors are not in the folder") -> None:
        """Says that something listed could not be compared; neither a pass nor a failure."""
        self.absent.append(name)
        click.echo(f"{name:<{NAME_WIDTH}} not shipped  {what}")

    def close(self) -> int:
        """Prints the summary and gives the exit code: 0 only if something was compared and nothing failed."""
        verdict = "ok" if self.passed and not self.failed else "FAIL"
        why = "" if self.passed or self.failed else " (nothing to compare)"
        for name in self.failed:
            click.echo(f"failed: {name}")
        click.echo(
            f"{verdict}{why}: {self.passed} passed, {len(self.failed)} failed, {len(self.absent)} not shipped"
        )
        return 0 if verdict == "ok" else 1

    def _same_shape(self, name: str, a: Tensor, b: Tensor) -> bool:
        if a.shape != b.shape:
            self.fail(name, f"shape {tuple(a.shape)}, expected {tuple(b.shape)}")
        return a.shape == b.shape

    def _line(self, name: str, error: float, tolerance: float) -> None:
        good = error <= tolerance  # false for NaN, which must not pass
        if good:
            self.passed += 1
        else:
            self.failed.append(name)
        verdict = "ok  " if good else "FAIL"
        click.echo(f"{name:<{NAME_WIDTH}} {verdict}  error {error:9.3e}  tolerance {tolerance:7.1e}")


def _numbers(value: object) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", torch.float64)
    if isinstance(value, (np.ndarray, int, float, Sequence)):
        return torch.from_numpy(np.asarray(value, dtype=np.float64))
    raise TypeError(f"cannot compare {type(value).__name__}")


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max()) if b.numel() else 0.0
