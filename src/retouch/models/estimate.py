"""What an edit will need, worked out from shapes before any weight is loaded."""

from dataclasses import dataclass
from typing import final

from retouch.compute import Compute, in_words
from retouch.errors import OutOfBudget


@final
@dataclass(frozen=True)
class Estimate:
    """What a run will need."""

    memory: int
    """Peak bytes of main memory, models included."""
    notes: tuple[str, ...] = ()
    """Sentences for the user: windows, chunks, what will be slow."""

    def require(self, compute: Compute) -> None:
        """Raise OutOfBudget where it does not fit, with the numbers and two ways out."""
        if self.memory > (budget := compute.budget()):
            raise OutOfBudget(
                f"this needs about {in_words(self.memory)} of memory and {in_words(budget)} may be used",
                hint="use smaller windows or a smaller clip, or raise the limit with --memory",
            )
