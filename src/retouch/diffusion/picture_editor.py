"""Whichever editor of pictures lies under a reference: a text-to-image model that denoises, or a pipeline."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import numpy as np
import torch
from jaxtyping import Bool, UInt8

from retouch.diffusion.image_edit import control_of, descent, edit_picture, goal_of
from retouch.diffusion.words import read_prompt
from retouch.errors import ParamsError
from retouch.models.annotate import canny
from retouch.models.image import Control, StableDiffusion
from retouch.models.loading import folder_identity
from retouch.models.picture_edit import (
    PictureCanvas,
    PictureEditor,
    PipelineEditor,
    check_references,
    editing_class,
)
from retouch.models.refs import read_index, resolve
from retouch.run import Run

TEXT_TO_IMAGE: Final = "StableDiffusionPipeline"
"""The class of models that edit by noise and back; all others are called as pipelines."""
EDGES_OF: Final = {"tiny:sd": "tiny:sd-canny"}
"""What holds a model to the edges unless another is named, or none by an empty text."""


@final
@dataclass(frozen=True, eq=False)
class DenoisingEditor:
    """A text-to-image model as an editor: the picture is noised in part and denoised under the words.

    The words say what the whole picture shows.
    """

    sd: StableDiffusion
    control: Control | None = None
    edges: float = 1.0
    adapter: str = ""
    """The model that shows a reference picture to the base model."""
    steps: int = 20
    guidance: float = 5.0
    strength: float = 0.8

    @property
    def identity(self) -> str:
        """Hashes of the models, and what is set."""
        control = self.control.identity if self.control else ""
        adapter = folder_identity(resolve(self.adapter)) if self.adapter else ""
        told = (self.edges, self.steps, self.guidance, self.strength)
        return f"{self.sd.identity} {control} {adapter} {told}"

    def edit(
        self,
        picture: UInt8[np.ndarray, "h w 3"],
        prompt: str,
        *,
        mask: Bool[np.ndarray, "h w"] | None = None,
        references: Sequence[UInt8[np.ndarray, "y x 3"]] = (),
        seed: int,
        run: Run,
    ) -> UInt8[np.ndarray, "h w 3"]:
        """Return the picture denoised under `prompt`; outside a mask it is put back after every step.

        Raises:
            ParamsError: more references than one, or none can be shown; or more words than the model reads.
        """
        sd, size = self.sd, picture.shape[:2]
        check_shown(len(references), self.adapter)
        read_prompt(sd.tokenizer, prompt)
        canvas = PictureCanvas.fitting(size, sd.native / min(size), sd.multiple)
        shown = canvas.filled(picture)
        known = (
            None if mask is None else torch.from_numpy(canvas.filled(np.uint8(255) * ~mask) > 127)[None, None]
        )
        latents = torch.empty(1, 4, canvas.height // sd.factor, canvas.width // sd.factor)
        reference = references[0].transpose(2, 0, 1) if references else None
        with goal_of(
            sd, prompt, "", self.guidance, reference=reference, adapter=self.adapter, run=run
        ) as goal:
            made = edit_picture(
                torch.from_numpy(shown.transpose(2, 0, 1)[None] / np.float32(127.5) - 1).to(sd.device),
                run.noise(f"picture {seed}", latents),
                goal,
                sd,
                run.steps("edit picture", descent(sd.schedule(self.steps), self.strength)),
                edges=canny(shown.transpose(2, 0, 1)[None]),
                control=self.control,
                scale=self.edges,
                known=known,
            )
        answer = ((made[0].movedim(0, 2).cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
        return canvas.taken(answer, size)


def editor_named(
    ref: str,
    run: Run,
    *,
    prompt: str = "",
    steps: int | None = None,
    guidance: float | None = None,
    strength: float | None = None,
    control: str = "",
    edges: float = 1.0,
    adapter: str = "",
) -> PictureEditor:
    """Load the editor that `ref` names; what is None is left to it.

    Raises:
        ModelNotFound: it is not on this machine.
        ModelMismatch: it edits no pictures.
        ParamsError: it has no such setting, or reads fewer words than `prompt` has.
    """
    set_by_user = {"steps": steps, "guidance": guidance, "strength": strength}
    given = {name: value for name, value in set_by_user.items() if value is not None}
    if not denoises(ref):
        return run.load(ref, PipelineEditor).told(**given)  # type: ignore[arg-type]
    sd = run.load(ref, StableDiffusion)
    read_prompt(sd.tokenizer, prompt)
    held = control_of(control, edges, sd, run) if control else None
    return DenoisingEditor(sd, held, edges, adapter, **given)  # type: ignore[arg-type]


def check_editor(ref: str, *, references: int = 0, control: str = "", adapter: str = "") -> None:
    """Refuse what an editor cannot do, by its class alone, before any weight is read.

    Raises:
        ModelNotFound: it, or a model beside it, is not on this machine.
        ModelMismatch: it edits no pictures.
        ParamsError: it takes no edges or adapter, or fewer reference pictures.
    """
    for beside in filter(None, (control, adapter)):
        resolve(beside)
    if denoises(ref):
        check_shown(references, adapter)
        return
    kind = editing_class(ref)
    check_references(kind, references)
    for name, value in {"control": control, "adapter": adapter}.items():
        if value:
            raise ParamsError(f"a {kind.__name__} takes no {name}", hint=f"leave --{name} away")


def denoises(ref: str) -> bool:
    """Whether a model edits by noise and back, by what its index states."""
    return read_index(resolve(ref), ref).get("_class_name") == TEXT_TO_IMAGE


def check_shown(references: int, adapter: str) -> None:
    """Refuse reference pictures that a text-to-image model cannot be shown.

    Raises:
        ParamsError: there are several, or no adapter shows it.
    """
    if references > 1:
        raise ParamsError(f"this model looks at one reference picture, not {references}", hint="give one")
    if references and not adapter:
        raise ParamsError(
            "nothing shows this model a reference picture",
            hint="name what does: --adapter tiny:ip, for tiny:sd",
        )
