"""FateZero (Qi et al., ICCV 2023): a clip edited by text alone, without training.

The paper in six lines, and where to find them:
    invert the clip to noise under its own prompt                          `inverted`
    walk back from that noise under the new prompt                         `walk.walk`
    let attention be the source's, for the first part of the steps         `fusion.Fuse`
    carry the words over from prompt to prompt                             `recipe.plan`, `words.align`
    let the object's self-attention be its own where shape should change   `fusion.object_mask`
    let frames look at each other                                          `attention.Neighbours`

Instead of 36 to 70 GiB of attention maps the inversion's latents are kept, 13 MiB for the paper's clips,
and the network is asked again. `params.faithful` does what the released code does, slips included; without it

    what the source attended to is read at the edit's own noise level, not one level cleaner;
    what is put back outside the object lies at the edit's own level, not one level noisier;
    guidance leads away from the source prompt, held alike, so that equal prompts give the source back;
    inversion repeats each step until it is one that sampling retraces;
    words are found beside punctuation too, and one that is not there is an error.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, interpolate

from retouch.diffusion.attention import Neighbours, controlled
from retouch.diffusion.inversion import Trajectory, invert_clip
from retouch.diffusion.resize import Resize, decode_clip
from retouch.diffusion.tune import Tuned, Tuning, load_tuned, tune, tuned
from retouch.diffusion.windows import overlapping
from retouch.diffusion.words import (
    Tokens,
    changed_things,
    phrase_finder,
    read_prompt,
    same_word_count,
    step_range,
)
from retouch.errors import EmptyMask
from retouch.identity import identity
from retouch.media.composite import composite
from retouch.media.masks import read_masks
from retouch.methods.fatezero.recipe import RELEASED_TOKENS, Plan, Wish, plan, released_plan
from retouch.methods.fatezero.spec import FateZeroParams, factor, reach, word_window
from retouch.methods.fatezero.walk import Object, Recipe, Scene, Space, Texts, space, walk
from retouch.models.image import StableDiffusion
from retouch.run import Edited, Run
from retouch.video import Video, chunks

SAVE_EVERY = 5
"""Steps between checkpoints."""
HALF = 128
"""From here on a mask's pixel is selected."""


@torch.no_grad()
def edit(video: Video, params: FateZeroParams, run: Run) -> Edited:
    """Shows `params.prompt` where the clip shows `params.source_prompt`."""
    return edit_with(run.load(params.model, StableDiffusion), video, params, run)


@torch.no_grad()
def edit_with(sd: StableDiffusion, video: Video, params: FateZeroParams, run: Run) -> Edited:
    """As `edit`, with a model that is there already; `params.model` is not read."""
    frame = Resize.for_image_model(video.height, video.width, sd, params.size)
    made = _plan(video, params, sd, frame, run)
    learned = _learned(video, params, sd, frame, run)
    laid = overlapping(
        len(video),
        size=len(video) if params.faithful else params.window,
        overlap=0 if params.faithful else params.overlap,
        anchors=made.recipe.neighbours.anchors(len(video)),
    )
    with tuned(sd.unet, learned):
        ladder = invert_clip(
            video,
            sd,
            frame,
            prompt=params.source_prompt,
            steps=params.steps,
            windows=laid,
            fixed_point=params.fixed_point,
            neighbours=made.recipe.neighbours,
            clip_norm=params.clip_norm,
            weights="" if learned is None else identity(learned),
            run=run,
        )
        with controlled(sd.unet, size=frame.latents, clip_norm=params.clip_norm) as layers:
            scene = Scene(
                network=sd,
                schedule=sd.schedule(params.steps),
                layers=layers,
                windows=laid,
                texts=_texts(params, sd, made),
                recipe=made.recipe,
                device=sd.device,
            )
            rooms = _walked(ladder, scene, run, identity((video, params, run.seed, sd)))
    result = decode_clip(rooms.z, video, sd, frame, run)
    if params.mask is not None:
        return composite(video, result, read_masks(params.mask, video), params.feather, run)
    if params.keep_outside:
        return composite(video, result, _at_clip_size(rooms.changed, frame, run), params.feather, run)
    return Edited(result)


def _walked(ladder: Trajectory, scene: Scene, run: Run, job: str) -> Space:
    """Walks down step by step; goes on where an earlier attempt was stopped."""
    rooms = space(ladder, scene, lambda name, shape, kind: torch.from_numpy(run.scratch(name, shape, kind)))
    state = {"z": rooms.z, "heat": rooms.target_heat, "changed": rooms.changed}
    walking = None
    for step in run.resumable("edit", scene.schedule.down(), state, every=SAVE_EVERY, key=job):
        walking = walking or walk(ladder, scene, rooms, done=step.index)
        moment = next(walking)
        given = step.done(moment.z)
        if given is not moment.z:
            moment.z[:] = given
    return rooms


def _learned(
    video: Video, params: FateZeroParams, sd: StableDiffusion, frame: Resize, run: Run
) -> Tuned | None:
    """What the model learned of this clip, read or made now."""
    if params.tuned is not None:
        return load_tuned(params.tuned)
    if not params.tune_steps:
        return None
    neighbours = _neighbours(params)
    how = Tuning(
        params.source_prompt, frame, params.tune_steps, neighbours=neighbours, clip_norm=params.clip_norm
    )
    return tune(video, sd, how, run=run)


def _neighbours(params: FateZeroParams) -> Neighbours:
    return Neighbours(tuple(reach(text) for text in params.attend), least_level=params.attend_level)


def _texts(params: FateZeroParams, sd: StableDiffusion, made: Plan) -> Texts:
    source = sd.embed(params.source_prompt)
    against = source if params.guide_from == "source" else sd.embed(params.negative_prompt)
    return Texts(source, sd.embed(params.prompt), against, made.source_words, made.target_words)


def _plan(video: Video, params: FateZeroParams, sd: StableDiffusion, frame: Resize, run: Run) -> Plan:
    """What the parameters ask of the walk, as the released code would have it or as it should be.

    Raises:
        ParamsError: a word is not in its prompt, a prompt is too long, or the prompts cannot be aligned
            as asked.
        EmptyMask: the mask given selects nothing.
    """
    source = read_prompt(sd.tokenizer, params.source_prompt)
    target = read_prompt(sd.tokenizer, params.prompt)
    _notices(params, source, target, run)
    wish = _wish(params, source, target, run)
    length = int(sd.tokenizer.model_max_length)
    neighbours = _neighbours(params)
    if params.faithful:
        made = released_plan(
            source,
            target,
            wish,
            steps=params.steps,
            length=length,
            guidance=params.guidance,
            neighbours=neighbours,
        )
    else:
        made = plan(
            source,
            target,
            wish,
            find=phrase_finder(sd.tokenizer),
            steps=params.steps,
            length=length,
            guidance=params.guidance,
            neighbours=neighbours,
            most_tokens=params.most_tokens or max(RELEASED_TOKENS, frame.latents[0] * frame.latents[1] // 4),
        )
    made = replace(
        made, recipe=replace(made.recipe, fuse_both=params.guide_from == "source" and not params.faithful)
    )
    if params.mask is None:
        return made
    return replace(
        made, recipe=_with_mask(made.recipe, _object_given(video, params.mask, frame, run), params)
    )


def _wish(params: FateZeroParams, source: Tokens, target: Tokens, run: Run) -> Wish:
    """The parameters in the words of the recipe; an object without a name is what the prompts differ in."""
    masked = (params.mask_self or params.blend) and params.mask is None
    old, new = params.object_words, params.new_words
    if masked and not params.faithful:
        found = changed_things(source, target)
        old, new = old or found[0], new or found[1]
        run.notice(
            f"object found by: {', '.join(old) or 'nothing'}; in the edit by: {', '.join(new) or 'nothing'}"
        )
    return Wish(
        alignment=params.alignment,
        cross=(params.cross_from, params.cross_until),
        word_cross=dict(word_window(text) for text in params.word_cross),
        self_attention=(params.self_from, params.self_until),
        emphasis=dict(factor(text) for text in params.emphasise),
        source_words=old,
        target_words=new,
        mask_self=params.mask_self and params.mask is None,
        blend=(params.blend_from, params.blend_until) if params.blend and params.mask is None else None,
        threshold=params.threshold,
        smoothing=params.smooth_mask,
    )


def _notices(params: FateZeroParams, source: Tokens, target: Tokens, run: Run) -> None:
    """Tells what is allowed, and perhaps not meant."""
    if params.guidance == 1:
        run.notice("guidance is 1: the prompt is followed no further than the model does by itself")
    if source.prompt == target.prompt:
        run.notice("both prompts are the same: the clip comes back as the model rebuilds it")
    if params.alignment == "replace" and params.faithful and not same_word_count(source, target):
        run.notice(
            "the prompts differ in the number of words: aligned by equal tokens, as the released code does"
        )
    if params.faithful and not params.tuned:
        run.notice(
            "the released code also adds a random offset after each block; none can repeat it; left out"
        )


def _object_given(video: Video, path: Path, frame: Resize, run: Run) -> Bool[Tensor, "f h w"]:
    """The user's mask at the size of the latents, any selected pixel counting.

    Raises:
        EmptyMask: it selects nothing.
    """
    masks = read_masks(path, video)
    given = torch.from_numpy(run.scratch("given", (len(video), *frame.latents), np.bool_))
    for part in chunks(len(video), 8):
        selected = torch.tensor(masks[part] >= HALF).float()
        given[part] = (adaptive_max_pool2d(frame.to_model(selected), frame.latents) >= 0.5)[:, 0]
    if not given.any():
        raise EmptyMask(f"{path} selects nothing", hint="white is edited: paint what should change")
    return given


def _with_mask(recipe: Recipe, given: Bool[Tensor, "f h w"], params: FateZeroParams) -> Recipe:
    """The same recipe with the object from the user: what lies outside is put back from the first step on."""
    blend = step_range((0.0, params.blend_until), params.steps)
    return replace(
        recipe,
        thing=Object(params.threshold, given=given),
        mask_self=params.mask_self,
        mask_steps=blend,
        blend_steps=blend,
    )


def _at_clip_size(changed: Bool[Tensor, "f h w"], frame: Resize, run: Run) -> np.ndarray:
    """Where latents changed, in the clip's pixels."""
    masks = run.scratch("masks", (len(changed), 1, *frame.clip))
    for part in chunks(len(changed), 8):
        grown = interpolate(changed[part][:, None].float(), frame.padded)
        masks[part] = (frame.to_clip(grown) >= 0.5).numpy() * np.uint8(255)
    return masks
