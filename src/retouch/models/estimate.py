"""What an edit will need, worked out from shapes before any weight is loaded."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, final

from retouch.compute import Compute, in_words
from retouch.errors import OutOfBudget
from retouch.models.image_shapes import ImageShapes
from retouch.models.refs import stored_bytes

DECODED_TOGETHER: Final = 8
"""Frames that pass the autoencoder together."""
LEARNING_LAYERS: Final = 250
"""How many times the network's finest layer is there when it learns: what every layer gave is kept."""
SINGLE: Final = 4
"""Bytes of a number while learning, and of the latents that are kept."""


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


def estimate_inversion(
    model: str,
    compute: Compute,
    padded: Callable[[ImageShapes], tuple[int, int]],
    *,
    frames: int,
    together: int,
    layers: int,
    steps: int,
    inverting: int,
    sampling: int,
    windows: str,
    tuning: int = 0,
    learning: int = 0,
) -> Estimate:
    """Estimate an edit that inverts a clip with a model of Stable Diffusion's layout; of others, the weights.

    Args:
        model: The reference of the model.
        compute: In which precision it runs.
        padded: The height and width that the network sees, by the model's sizes.
        frames: The clip's length.
        together: Frames that pass the network together.
        layers: How many times the network's finest layer is there at once.
        steps: Levels whose latents are kept, less one.
        inverting: Network calls until the noise is found.
        sampling: Network calls after that.
        windows: Says how the clip is cut.
        tuning: Steps of tuning.
        learning: Frames that are learned together.

    Raises:
        ModelNotFound: the model is not on this machine.
    """
    sizes = ImageShapes.read(model)
    if sizes is None:
        return Estimate(stored_bytes(model))
    number, inner = compute.torch_dtype().itemsize, padded(sizes)
    peak = max(
        sizes.layer(together, inner) * layers * number,
        sizes.layer(learning, inner) * LEARNING_LAYERS * SINGLE if tuning else 0,
        sizes.decoding(min(frames, DECODED_TOGETHER), inner) * number,
    )
    kept = in_words((steps + 1) * sizes.latents(frames, inner) * SINGLE)
    notes = (
        f"{windows} at {inner[1]}x{inner[0]}",
        f"{inverting} network calls find the noise, kept ({kept}), and {sampling} carry the edit",
    )
    return Estimate(
        sizes.numbers * number + peak,
        (*notes, f"{tuning} steps of tuning, kept too") if tuning else notes,
    )
