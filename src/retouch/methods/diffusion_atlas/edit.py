"""DiffusionAtlas (Chang, Chen and Liu 2023), reconstructed: the atlas edited by words and by a picture.

The paper in seven lines, and where to find them:
    a clip is an object's texture and a background                          `atlas_for`
    the texture is a picture: set it before its own background              `cut_out`
    a visual-textual model learns that one picture                          `tune_picture`
    invert it, under its own words and its own embedding                    `invert_picture`
    sample under other words and another picture's embedding                `edit_texture`
    mend where the edited texture lies, by what the model says of frames    `refine`
    every frame shows the texture through the atlas' map                    `render`

The paper's method section could not be had: what is between these lines is ours. The background is edited
first, for the refinement to see. Any editor of pictures may take the model's place (`answered_texture`).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias, final

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from retouch.atlas.atlas import Atlas
from retouch.atlas.edit import TexturePatch
from retouch.atlas.keyframes import editor_answer
from retouch.atlas.prepare import marks_from
from retouch.atlas.textures import as_picture
from retouch.diffusion.guidance import nested
from retouch.diffusion.picture_editor import check_editor, denoises, editor_named
from retouch.diffusion.sampling import sample
from retouch.diffusion.tune_picture import Said, TunedModel, invert_picture, tune_picture
from retouch.diffusion.words import read_prompt
from retouch.errors import ParamsError
from retouch.events import Listener
from retouch.media.pictures import read_rgb
from retouch.media.probe import ClipFacts
from retouch.methods.diffusion_atlas.compose import (
    Crop,
    Look,
    all_but_border,
    atlas_of,
    change_mask,
    chart_matte,
    chart_to_edit,
    check_references,
    complete_ground,
    ground_around,
    grown,
    in_place_of,
    outline,
    render,
    solid_matte,
)
from retouch.methods.diffusion_atlas.refine import Refinement, refine
from retouch.methods.diffusion_atlas.spec import DiffusionAtlasParams
from retouch.models.image import StableDiffusion
from retouch.models.image_prompt import ImagePrompt
from retouch.models.noise_path import Level
from retouch.models.picture_edit import PictureEditor
from retouch.run import Edited, Run
from retouch.tracking.register import register_answer
from retouch.video import Video

HELPFUL_STEPS: Final = 50
"""Steps of tuning where it helps; more changed nothing that could be measured."""
FLAT: Final = 2.0
"""Deviation of a picture's levels below which it shows nothing."""
TextureEditor: TypeAlias = StableDiffusion | PictureEditor
"""Who edits the textures: by inversion and sampling, or by an answer."""


@torch.no_grad()
def edit(video: Video, params: DiffusionAtlasParams, run: Run) -> Edited:
    """Show what is asked for in the place of an object, and of what is behind it, in every frame."""
    if params.editor is None:
        return edit_with(run.load(params.model, StableDiffusion), video, params, run)
    told = {"steps": params.editor_steps, "guidance": params.editor_guidance}
    adapter = params.adapter if denoises(params.editor) and params.references else ""
    editor = editor_named(params.editor, run, prompt=params.prompt, adapter=adapter, **told)  # type: ignore[arg-type]
    return edit_with_editor(editor, video, params, run)


@torch.no_grad()
def edit_with(sd: StableDiffusion, video: Video, params: DiffusionAtlasParams, run: Run) -> Edited:
    """Do as `edit` does with a model that is there already."""
    for prompt in (params.source_prompt, params.prompt, params.background_prompt):
        read_prompt(sd.tokenizer, prompt)
    return edit_layers(sd, video, params, run)


@torch.no_grad()
def edit_with_editor(editor: PictureEditor, video: Video, params: DiffusionAtlasParams, run: Run) -> Edited:
    """Do as `edit` does with an editor of pictures; only a refinement asks `params.model`."""
    return edit_layers(editor, video, params, run)


def edit_layers(editor: TextureEditor, video: Video, params: DiffusionAtlasParams, run: Run) -> Edited:
    """Edit the textures of a clip, and show them in every frame."""
    check_references(video, params)
    atlas = atlas_of(video, params, run)
    index = chart_to_edit(atlas, params.layer, run)
    atlas = complete_ground(atlas, run) if params.outline == "new" else atlas
    ground = edited_ground(atlas, editor, params, run)
    look, figures, warp = edited_object(atlas, index, editor, params, run), {}, None
    if params.refine != "no":
        sd = editor if isinstance(editor, StableDiffusion) else run.load(params.model, StableDiffusion)
        words = params.prompt or params.source_prompt, params.source_prompt
        how = Refinement(
            *words, params.refine, params.refine_steps, params.refine_bend,
            params.refine_guidance, params.refine_least, params.refine_least_move,
        )  # fmt: skip
        found = refine(atlas, video, look, ground, sd, how, run=run)
        warp, figures = found.warp, found.figures
        if warp is None:
            run.notice(f"the map stays as it was: {found.why}")
    frames, touched = render(atlas, video, look, ground, warp, run)
    extras = {"texture": as_picture(look.picture[0])}
    return Edited(video.like(frames), touched=touched, figures=figures, extras=extras)


def edited_object(
    atlas: Atlas, index: int, editor: TextureEditor, params: DiffusionAtlasParams, run: Run
) -> Look:  # fmt: skip
    """Return the object as it should look; as it is, where nothing is asked of it."""
    matte = chart_matte(atlas, index)
    side = editor.native if isinstance(editor, StableDiffusion) else None
    crop = Crop.around(index, matte, side)
    old, behind = crop.cut(matte), ground_around(atlas, crop)
    new = params.outline == "new"
    solid = old if new else solid_matte(old)
    before = solid * crop.cut(atlas.charts[index].texture) + (1 - solid) * behind
    if not (params.prompt or params.reference):
        return Look(crop, before, torch.zeros_like(old), old)
    reach = max(1, round(crop.height / (16 if new else 32)))
    free = all_but_border(old, reach) if new else grown(solid, reach, hull=False)
    asked = Asked("object", params.prompt, params.reference)
    after, trip = edit_texture(before, free, old, asked, editor, params, run)
    after = after * free + before * (1 - free)
    if not new:
        return Look(crop, after, change_mask(after, trip * free + before * (1 - free)), old)
    shape = outline(after, behind, free)
    if float(shape.sum()) < 0.05 * float(old.sum()):
        run.notice("nothing stands out from the ground in the edited texture: the old outline is kept")
        return Look(crop, after, torch.ones_like(old), old)
    if isinstance(editor, StableDiffusion):  # an editor has seen where the object stands
        after, shape = in_place_of(old, after, shape, behind)
    return Look(crop, after, torch.ones_like(old), old, shape)


def edited_ground(
    atlas: Atlas, editor: TextureEditor, params: DiffusionAtlasParams, run: Run
) -> TexturePatch | None:
    """Return the background's edit, if one is asked for: the whole of its texture, without the object."""
    if not (params.background_prompt or params.background_reference):
        return None
    last = len(atlas.names) - 1
    index = max((c.blend.sum().item(), n) for n, c in enumerate(atlas.charts) if c.layer == last)[1]
    texture = atlas.charts[index].texture
    own = texture.shape[1], texture.shape[2]
    size = editor.working_size(*own) if isinstance(editor, StableDiffusion) else own
    crop = Crop.of_ground(index, texture, *size)
    before = crop.cut(texture).clamp(0, 1)
    everywhere = torch.ones_like(before[:, :1])
    asked = Asked("background", params.background_prompt, params.background_reference)
    after, _ = edit_texture(before, everywhere, everywhere, asked, editor, params, run)
    return crop.patch(after, everywhere)


@final
@dataclass(frozen=True)
class Asked:
    """What is asked for, of what."""

    of: str
    prompt: str
    reference: Path | None


def edit_texture(
    before: Float[Tensor, "1 3 y x"], free: Float[Tensor, "1 1 y x"], matte: Float[Tensor, "1 1 y x"],
    asked: Asked, editor: TextureEditor, params: DiffusionAtlasParams, run: Run,
) -> tuple[Float[Tensor, "1 3 y x"], Float[Tensor, "1 3 y x"]]:  # fmt: skip
    """Return a texture edited where it is free, and as the model gives it back unedited; colours 0 to 1."""
    if not isinstance(editor, StableDiffusion):
        return answered_texture(before, free, matte, asked, editor, params, run), before
    sd = editor
    shown = np.ascontiguousarray(as_picture(before[0]).transpose(2, 0, 1))
    size = (before.shape[-2] // sd.factor, before.shape[-1] // sd.factor)
    where = torch.nn.functional.adaptive_max_pool2d(free, size) > 0.5
    z = sd.encode((before * 2 - 1).to(sd.device))
    steps = tuning_steps(params, asked)
    if asked.reference is None and not steps:
        model, own, other = TunedModel(sd), None, None
        return _sampled(z, where, model, asked, own, other, params, run), _decoded(sd, z)
    adapter = run.load(params.adapter, ImagePrompt)
    own = adapter.seen(shown)
    other = adapter.seen(read_rgb(asked.reference)) if asked.reference else None
    learned = None
    if steps:
        small = torch.nn.functional.adaptive_avg_pool2d(matte, size)
        learned = tune_picture(
            shown, small, sd, adapter, prompt=params.source_prompt, steps=steps,
            rate=params.tune_rate, rank=params.tune_rank, scale=params.reference_scale, run=run,
        )  # fmt: skip
    model = TunedModel(sd, learned, params.tune_strength, params.tune_late)
    with adapter.applied_to(sd, scale=params.reference_scale):
        return _sampled(z, where, model, asked, own, other, params, run), _decoded(sd, z)


def answered_texture(
    before: Float[Tensor, "1 3 y x"], free: Float[Tensor, "1 1 y x"], matte: Float[Tensor, "1 1 y x"],
    asked: Asked, editor: PictureEditor, params: DiffusionAtlasParams, run: Run,
) -> Float[Tensor, "1 3 y x"]:  # fmt: skip
    """Return a texture as an editor answers it, told the hull of a new outline and not held to it."""
    reach = round(before.shape[-2] / 16)
    near = grown(solid_matte(matte), reach, hull=True) if params.outline == "new" else free
    shown, where, taken = as_picture(before[0]), *(m[0, 0].cpu().numpy() > 0.5 for m in (near, free))
    told = None if where.all() else where
    seen = () if asked.reference is None else (read_rgb(asked.reference).transpose(1, 2, 0),)
    words = asked.prompt or params.source_prompt
    answer = editor_answer(
        shown, words, editor=editor, mask=told, references=seen, seed=run.seed, run=run
    ).picture
    made = answer if told is None else register_answer(shown, answer, mask=where, taken=taken).picture
    return torch.from_numpy(made).movedim(2, 0)[None].to(before) / 255


def _sampled(
    z: Float[Tensor, "1 c h w"], where: Bool[Tensor, "1 1 h w"], model: TunedModel, asked: Asked,
    own: Float[Tensor, " e"] | None, other: Float[Tensor, " e"] | None,
    params: DiffusionAtlasParams, run: Run,
) -> Float[Tensor, "1 3 y x"]:  # fmt: skip
    """Invert latents and sample back under what is asked for, holding what is not free to its own path."""
    sd = model.sd
    deaf = None if own is None else torch.zeros_like(own)
    words = sd.embed(params.source_prompt)
    source = Said(words, own if other is not None else deaf)
    shown = source if other is None else Said(words, other)
    wanted = Said(sd.embed(asked.prompt), shown.seen) if asked.prompt else shown
    base = source if params.guide_from == "source" else Said(sd.embed(""), deaf)
    shown = base if other is None else shown

    voice = params.adapter if own is not None else ""
    scale = params.reference_scale if own is not None else 0.0
    path = invert_picture(
        z, model, source, steps=params.steps, calls=params.fixed_point, voice=voice, scale=scale, run=run
    ).latents.to(z)
    schedule = sd.schedule(params.steps)
    start = params.steps - max(1, round(params.strength * params.steps))
    passed = {level: path[-1 - number] for number, level in enumerate(schedule.levels)}

    def predict(x: Tensor, level: Level) -> Tensor:
        answers = model.predict_each(x, level, base, shown, wanted)
        return nested(*answers, picture_guidance=params.reference_guidance, guidance=params.guidance)

    x = sample(
        passed[schedule.levels[start]],
        predict,
        run.steps(f"edit {asked.of}", replace(schedule, start=start).down()),
        replace=lambda x, level: torch.where(where.to(x.device), x, passed[level]),
    )
    return _decoded(sd, x)


def tuning_steps(params: DiffusionAtlasParams, asked: Asked) -> int:
    """Return how long to tune: where it was found to help, unless the number was given."""
    helps = asked.reference is not None or (params.outline == "new" and asked.of == "object")
    return HELPFUL_STEPS * helps if params.tune_steps is None else params.tune_steps


def preflight(clip: ClipFacts, params: DiffusionAtlasParams, tell: Listener) -> None:
    """Refuse what cannot be edited, before the clip is taken apart.

    Raises:
        ParamsError: nothing says where the object is, a reference shows nothing, or an editor looks at none.
        ModelNotFound: the editor is not on this machine.
        ModelMismatch: it edits no pictures.
    """
    del clip, tell
    if params.editor is not None:
        adapter = params.adapter if denoises(params.editor) else ""
        check_editor(params.editor, references=min(1, len(params.references)), adapter=adapter)
    marks = marks_from(box=params.box, stroke=params.stroke, polygon=params.polygon, outside=params.outside)
    if not (params.atlas or params.mask or marks or params.drawn):
        raise ParamsError(
            "nothing says what the object is", hint="give an atlas file, a mask, or a box with a stroke"
        )
    for path in params.references:
        if float(read_rgb(path).std((1, 2)).max()) < FLAT:
            raise ParamsError(
                f"{path.name} shows nothing: it is one colour", hint="give a picture of something"
            )


def _decoded(sd: StableDiffusion, z: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 3 y x"]:
    return sd.decode(z).cpu() / 2 + 0.5
