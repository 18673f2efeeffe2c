"""Editing one picture by words: what is asked of an editor, and any image-edit pipeline of diffusers as one.

Such pipelines are called alike, and yet each a little otherwise. What a pipeline takes is read off the
signature of its call: it is given what it names, and what it does not name is refused before its weights are
loaded.
"""

import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, Protocol, Self, cast, final, runtime_checkable

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline
from jaxtyping import Bool, UInt8
from PIL import Image

from retouch.compute import Compute
from retouch.errors import MethodError, ModelMismatch, ParamsError
from retouch.models.loading import folder_identity, placed, quiet, weights_identity
from retouch.models.refs import check_weights, read_index, resolve, weight_variant
from retouch.run import Run

SEVERAL: Final = (
    "Flux2Pipeline",
    "Flux2KleinPipeline",
    "Flux2KleinKVPipeline",
    "QwenImageEditPlusPipeline",
    "QwenImage21Pipeline",
    "ZImageOmniPipeline",
)
"""Pipelines that read a list of pictures as one to edit and others to look at; elsewhere it is a batch."""
OTHER_WORK: Final = ("Upscale", "Prior", "Layered", "Refiner", "ToVideo")
"""Parts of the names of pipelines that take a picture and words, and do something else with them."""
OTHER_INPUTS: Final = ("video", "num_frames", "noise_level", "adapter_conditioning_scale")
OWN_SIDE: Final = 1024
"""Side of the square as large as the pictures that pipelines without a UNet were trained on."""
STRETCH: Final = 0.05
"""By how much the logarithm of an answer's proportions may differ: some pipelines round sizes themselves."""


@runtime_checkable
class PictureEditor(Protocol):
    """Anything that edits a picture by words."""

    @property
    def identity(self) -> str:
        """What decides the result besides picture, words, mask, references and seed."""
        ...

    def edit(
        self,
        picture: UInt8[np.ndarray, "h w 3"],
        prompt: str,
        *,
        mask: Bool[np.ndarray, "h w"] | None,
        references: Sequence[UInt8[np.ndarray, "y x 3"]],
        seed: int,
        run: Run,
    ) -> UInt8[np.ndarray, "h w 3"]:
        """Return the picture as edited, of the same size; it may have shifted, and differ anywhere.

        Args:
            picture: What to edit.
            prompt: What to do, or what to show, as the model reads it.
            mask: Where to edit; anywhere, if None.
            references: Pictures to look at beside the words.
            seed: Decides what is drawn.
            run: Progress, and whether to stop.
        """
        ...


@final
@dataclass(frozen=True)
class PictureCanvas:
    """A size at which a model works, and the part of it that shows the picture: padded, never stretched."""

    height: int
    width: int
    inner: tuple[int, int]

    @classmethod
    def fitting(cls, size: tuple[int, int], scale: float, multiple: int) -> Self:
        """Return the canvas for a picture of a size, scaled by so much, with sides of whole multiples."""
        tall, wide = (max(1, round(side * scale)) for side in size)
        return cls(-(-tall // multiple) * multiple, -(-wide // multiple) * multiple, (tall, wide))

    def filled(self, picture: UInt8[np.ndarray, "h w *c"]) -> UInt8[np.ndarray, "y x *c"]:
        """Return a picture on the canvas; its last row and column go on to the border."""
        tall, wide = self.inner
        shown = np.asarray(Image.fromarray(picture).resize((wide, tall), Image.Resampling.BICUBIC))
        border = ((0, self.height - tall), (0, self.width - wide), *[(0, 0)] * (shown.ndim - 2))
        return np.pad(shown, border, mode="edge")

    def taken(self, answer: UInt8[np.ndarray, "y x 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
        """Return what an answer shows of the picture, brought back to the picture's size.

        Raises:
            MethodError: the answer has another shape than the canvas.
        """
        rows, columns = answer.shape[:2]
        if abs(math.log(columns * self.height / (rows * self.width))) > STRETCH:
            raise MethodError(
                f"the model answered a {self.width}x{self.height} picture with one of {columns}x{rows}",
                hint="it is no editor of this picture; name another model",
            )
        shown = Image.fromarray(answer)
        box = (0, 0, columns * self.inner[1] / self.width, rows * self.inner[0] / self.height)
        return np.asarray(shown.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box))


@final
@dataclass(frozen=True, eq=False)
class PipelineEditor:
    """An image-edit pipeline of diffusers as an editor of pictures."""

    pipe: DiffusionPipeline
    steps: int | None = None
    guidance: float | None = None
    strength: float | None = None
    """What is None is left to the pipeline."""
    side: int | None = None
    """Side of the square as large as what the pipeline is shown; its own, if None."""
    stored: str = ""

    @classmethod
    def from_pretrained(cls, ref: str, compute: Compute | None = None) -> Self:
        """Load the pipeline that `ref` names, from this machine only.

        Raises:
            ModelNotFound: it is not here; the hint says how to get it.
            ModelMismatch: its class edits no pictures, or its weights are damaged or pickles.
        """
        from retouch.models.check import WITHOUT_WEIGHTS

        kind, folder = editing_class(ref), resolve(ref)
        parts = {name: of for name, of in read_index(folder, ref).items() if isinstance(of, list) and of[1]}
        weighty = [folder / name for name in parts if name not in WITHOUT_WEIGHTS]
        for part in weighty:
            check_weights(part, ref)
        device, dtype = placed(compute)
        variants = {weight_variant(part) for part in weighty}
        with quiet(), warnings.catch_warnings():
            # The newest diffusers say `dtype`, and those before do not know it.
            warnings.filterwarnings("ignore", ".*torch_dtype.*", FutureWarning)
            pipe = kind.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                torch_dtype=dtype,
                variant=variants.pop() if len(variants) == 1 else None,
            )
        pipe.set_progress_bar_config(disable=True)
        offload = "none" if compute is None or device.type == "cpu" else compute.offload
        match offload:
            case "none":
                pipe.to(device)
            case "model":
                pipe.enable_model_cpu_offload(device=device)
            case "sequential":
                pipe.enable_sequential_cpu_offload(device=device)
        return cls(pipe, stored=folder_identity(folder))

    @classmethod
    def wrap(cls, pipe: DiffusionPipeline) -> Self:
        """Use a pipeline that the caller already has; nothing is copied, moved or changed.

        Raises:
            ModelMismatch: it edits no pictures.
        """
        check_editing(type(pipe), type(pipe).__name__)
        return cls(pipe)

    def told(
        self,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        strength: float | None = None,
        side: int | None = None,
    ) -> "PipelineEditor":
        """Return the same editor with settings over its own.

        Raises:
            ParamsError: the pipeline has no such setting.
        """
        named = {
            "steps": "num_inference_steps",
            "guidance": guidance_name(self._call),
            "strength": "strength",
        }
        given = {"steps": steps, "guidance": guidance, "strength": strength, "side": side}
        given = {name: value for name, value in given.items() if value is not None}
        for name in given:
            if name in named and named[name] not in self._call:
                raise ParamsError(f"a {type(self.pipe).__name__} has no {name}", hint=f"leave --{name} away")
        return replace(self, **given)  # type: ignore[arg-type]

    @cached_property
    def identity(self) -> str:
        """A hash of weights and configurations, and of what is set."""
        modules = {
            name: part for name, part in self.pipe.components.items() if isinstance(part, torch.nn.Module)
        }
        weights = self.stored or weights_identity(modules, repr(sorted(self.pipe.config.items(), key=str)))
        return f"{weights} {self.steps} {self.guidance} {self.strength} {self.side}"

    @property
    def _call(self) -> Mapping[str, inspect.Parameter]:
        return call_of(type(self.pipe))

    def canvas(self, size: tuple[int, int]) -> PictureCanvas:
        """Return the size at which a picture is edited."""
        factor = int(getattr(self.pipe, "vae_scale_factor", 8))
        if unet := getattr(self.pipe, "unet", None):
            scale = (self.side or int(unet.config.sample_size) * factor) / min(size)
        else:
            scale = (self.side or OWN_SIDE) / math.sqrt(math.prod(size))
        return PictureCanvas.fitting(size, scale, 2 * factor)

    @torch.no_grad()
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
        """Return the picture as the pipeline answers it.

        Raises:
            ParamsError: the pipeline looks at no, or fewer, references.
            MethodError: the answer has another shape, or the pipeline's own filter withheld it.
        """
        check_references(type(self.pipe), len(references))
        canvas = self.canvas(picture.shape[:2])
        given = self._settings(canvas) | {"prompt": prompt, "image": Image.fromarray(canvas.filled(picture))}
        others = [Image.fromarray(other) for other in references]
        if others and "image_reference" in self._call:
            given["image_reference"] = others[0]
        elif others:
            given["image"] = [given["image"], *others]
        if "mask_image" in self._call:
            where = np.ones(picture.shape[:2], bool) if mask is None else mask
            given["mask_image"] = Image.fromarray(canvas.filled(np.uint8(255) * where))
        total = self.steps or int(getattr(self._call.get("num_inference_steps"), "default", 1))
        with run.progress("edit picture", total) as reached:

            def tell(pipe: object, index: int, t: object, values: Any) -> Any:
                del pipe, t
                reached(index + 1)
                return values

            if "callback_on_step_end" in self._call:
                given["callback_on_step_end"] = tell
            made = self.pipe(**given, generator=torch.Generator("cpu").manual_seed(seed), output_type="np")
        answer = np.asarray(made.images[0])
        if not answer.any():
            raise MethodError(
                "the model's own filter withheld the picture", hint="use other words or another seed"
            )
        return canvas.taken((np.clip(answer, 0, 1) * 255).round().astype(np.uint8), picture.shape[:2])

    def _settings(self, canvas: PictureCanvas) -> dict[str, Any]:
        """Return what the pipeline takes besides words and pictures."""
        scale = guidance_name(self._call)
        values = {
            "height": canvas.height,
            "width": canvas.width,
            "max_area": canvas.height * canvas.width,
            "_auto_resize": False,  # it would stretch the picture to a size from a list
            "num_inference_steps": self.steps,
            scale: self.guidance,
            "strength": self.strength,
            # Without something to keep away from, such a pipeline does not look at its scale.
            "negative_prompt": " " if scale == "true_cfg_scale" else None,
        }
        return {name: value for name, value in values.items() if name in self._call and value is not None}


def editing_class(ref: str) -> type[DiffusionPipeline]:
    """Return the class of the pipeline that `ref` names, which its index states; no weights are read.

    Raises:
        ModelNotFound: it is not on this machine.
        ModelMismatch: the installed diffusers has no such class, or it edits no pictures.
    """
    name = str(read_index(resolve(ref), ref).get("_class_name"))
    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, DiffusionPipeline)):
        raise ModelMismatch(
            f"{ref} is a {name}, which diffusers {diffusers.__version__} does not know",
            hint="install a newer diffusers, or name another model",
        )
    check_editing(kind, ref)
    return cast("type[DiffusionPipeline]", kind)


def check_editing(kind: type, ref: str) -> None:
    """Refuse a class of pipeline whose call does not edit a picture by words.

    Raises:
        ModelMismatch: says why.
    """
    call = call_of(kind)
    known = {"prompt", "image", "mask_image"}
    needed = [p.name for p in call.values() if p.default is p.empty and p.name not in known]
    other = [name for name in call if "control" in name or name in OTHER_INPUTS]
    why = (
        "reads no words" * ("prompt" not in call)
        or "takes no picture" * ("image" not in call)
        or (f"works with {other[0]}" if other else "")
        or (f"asks for {needed[0]} as well" if needed else "")
        or "does other things with pictures" * any(part in kind.__name__ for part in OTHER_WORK)
    )
    if why:
        raise ModelMismatch(
            f"{ref} is a {kind.__name__}, no editor of pictures: it {why}",
            hint="name one that edits pictures by words, such as InstructPix2Pix; tiny:sd works now",
        )


def check_references(kind: type, count: int) -> None:
    """Refuse more reference pictures than a class of pipeline looks at.

    Raises:
        ParamsError: says how many it does.
    """
    most = 1 if "image_reference" in call_of(kind) else 0
    if count > most and kind.__name__ not in SEVERAL:
        raise ParamsError(
            f"a {kind.__name__} looks at {most or 'no'} reference picture{'s' * (not most)}, not at {count}",
            hint="leave --reference away, or name a model that does, such as FLUX.2",
        )


def guidance_name(call: Mapping[str, inspect.Parameter]) -> str:
    """Return which argument says how strongly the words steer: distilled models have two, one asleep at 1."""
    true = call.get("true_cfg_scale")
    return "true_cfg_scale" if true and true.default > 1 else "guidance_scale"


def call_of(kind: type) -> Mapping[str, inspect.Parameter]:
    """Return the named arguments of a pipeline's call."""
    named = inspect.signature(cast("Any", kind).__call__).parameters
    return {name: p for name, p in named.items() if name != "self" and p.kind is p.POSITIONAL_OR_KEYWORD}
