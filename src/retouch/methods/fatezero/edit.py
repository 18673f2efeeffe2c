"""FateZero (Qi et al., ICCV 2023): a clip edited by text alone, without training.

The paper in six lines, and where to find them:
    invert the clip to noise under its own prompt                          `retouch.diffusion.inversion`
    sample from that noise under the new prompt                            `sample`
    let attention be the source's, for the first part of the steps         `fusion.FusedAttention`
    carry the words over from prompt to prompt                             `retouch.diffusion.words`
    let the object's self-attention be its own where shape should change   `fusion.object_mask`
    let frames look at each other                                          `diffusion.attention.Neighbours`

Instead of 36 to 70 GiB of attention maps the inversion's latents are kept, 13 MiB for the paper's clips,
and the network is asked again. `released` is what the authors' code does, slips included; here

    what the source attended to is read at the edit's own noise level, not one level cleaner;
    what is put back outside the object lies at the edit's own level, not one level noisier;
    guidance leads away from the source prompt, held alike, so that equal prompts give the source back;
    inversion repeats each step until it is one that sampling retraces;
    words are found beside punctuation too, and one that is not there is an error.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from retouch.compute import Compute
from retouch.diffusion.attention import Neighbours, controlled
from retouch.diffusion.capture import ObjectMask
from retouch.diffusion.inversion import invert_clip
from retouch.diffusion.resize import Resize, decode_clip, masks_to_clip, masks_to_latents
from retouch.diffusion.tune import Tuning, tuned, tuned_weights
from retouch.diffusion.windows import Window, overlapping
from retouch.diffusion.words import (
    PromptTokens,
    read_prompt,
    step_range,
)
from retouch.errors import EmptyMask
from retouch.identity import identity
from retouch.media.composite import composite
from retouch.media.masks import read_masks
from retouch.methods.fatezero import released
from retouch.methods.fatezero.fusion import FusedPrediction, State, StepResult, Texts, fusion_schedule
from retouch.methods.fatezero.spec import FateZeroParams, reach
from retouch.models.estimate import Estimate, estimate_inversion
from retouch.models.image import StableDiffusion
from retouch.models.noise_path import Level
from retouch.models.noise_path import step as ddim_step
from retouch.run import Edited, Run, Step
from retouch.video import Video, chunks

SAVE_EVERY: Final = 5
"""Steps between checkpoints."""
NETWORK_LAYERS: Final = 90
"""How many times the network's finest layer is there at once, with the source's queries and keys of a step;
from measured peaks, 60 to 83."""


@torch.no_grad()
def edit(video: Video, params: FateZeroParams, run: Run) -> Edited:
    """Show `params.prompt` where the clip shows `params.source_prompt`."""
    return edit_with(run.load(params.model, StableDiffusion), video, params, run)


@torch.no_grad()
def edit_with(sd: StableDiffusion, video: Video, params: FateZeroParams, run: Run) -> Edited:
    """As `edit`, with a model that is there already; `params.model` is not read."""
    resize = Resize.for_image_model(video.height, video.width, sd, params.size)
    source, target = (read_prompt(sd.tokenizer, text) for text in (params.source_prompt, params.prompt))
    _notice(params, source, target, run)
    if params.faithful:
        fusion = released.released_schedule(params, source, target, sd.tokenizer, run)
    else:
        given = None if params.mask is None else masks_to_latents(read_masks(params.mask, video), resize, run)
        if given is not None and not given.any():
            raise EmptyMask(
                f"{params.mask} selects nothing", hint="white is edited: paint what should change"
            )
        fusion = fusion_schedule(
            params, source, target, sd.tokenizer, size=resize.latents, given=given, run=run
        )
    neighbours = Neighbours(tuple(map(reach, params.attend)), least_level=params.attend_level)
    windows = _windows(len(video), params, neighbours)
    tuning = Tuning(
        params.source_prompt,
        resize,
        params.tune_steps,
        neighbours=neighbours,
        clip_norm=params.clip_norm,
    )
    weights = tuned_weights(params.tuned, video, sd, tuning, run=run)
    with tuned(sd.unet, weights):
        trajectory = invert_clip(
            video,
            sd,
            resize,
            prompt=params.source_prompt,
            steps=params.steps,
            windows=windows,
            fixed_point=params.fixed_point,
            neighbours=neighbours,
            clip_norm=params.clip_norm,
            weights="" if weights is None else identity(weights),
            run=run,
        )
        with controlled(sd.unet, size=resize.latents, clip_norm=params.clip_norm) as layers:
            texts = Texts.embed(sd, params)
            fused = FusedPrediction(sd, trajectory, texts, fusion, params.guidance, neighbours, layers)
            state = State.allocate(fused, run)
            levels = sd.schedule(params.steps).down()
            job = identity((video, params, run.seed, sd))
            steps = run.resumable("edit", levels, state.kept(), every=SAVE_EVERY, key=job)
            for _ in sample(fused, windows, steps, state):
                pass
    result = decode_clip(state.z, video, sd, resize, run)
    figures = {"reconstruction_db": trajectory.reconstruction}
    if params.mask is None and not params.keep_outside:
        return Edited(result, figures=figures)
    mask = read_masks(params.mask, video) if params.mask else masks_to_clip(state.mask, resize, run)
    kept = composite(video, result, mask, params.feather, run)
    if kept.touched is not None and kept.touched.all():
        run.notice("the object fills every frame, so that keep_outside keeps nothing: raise the threshold")
    return replace(kept, figures=figures)


# ---------------------------------------------------------------- the way down


def sample(
    fused: FusedPrediction,
    windows: Sequence[Window],
    steps: Iterable[Step[tuple[Level, Level]]],
    state: State,
) -> Iterator[StepResult]:
    """Sample in `state.z`: predict all windows on the same latents, step by DDIM, put back what is kept."""
    fusion, levels = fused.fusion, len(fused.trajectory.latents)
    for step in steps:
        hi, lo = step.item
        state.output.zero_()
        state.source_words.zero_()
        for window in windows:
            result = fused.predict(state, window, step.index, hi)
            window.add(state.output, result.guided(fused.guidance))
        for part in chunks(len(state.z)):
            state.z[part] = ddim_step(state.z[part], state.output[part], hi, lo)
        if step.index in fusion.mask_steps:
            find_object(state, fusion.object)
        if step.index in fusion.blend_steps:
            put_back(state, fused.trajectory.latents[levels - 2 - step.index + fusion.blend_lag])
        given = step.done(state.z)
        if given is not state.z:
            state.z.copy_(given)
        yield result


def find_object(state: State, thing: ObjectMask | None) -> None:
    """Mark where the object is or was: in the source at this step, and in the edit so far."""
    assert thing is not None
    rows, columns = state.z.shape[2:]
    for part in chunks(len(state.z)):
        frames = range(len(state.z))[part]
        was, becomes = (
            thing.at(words[part], frames, (rows, columns)) for words in (state.source_words, state.edit_words)
        )
        state.mask[part] = was | becomes


def put_back(state: State, source: Float[Tensor, "f c h w"]) -> None:
    """Put the source's latents back outside the object."""
    for part in chunks(len(state.z)):
        inside = state.mask[part][:, None].to(state.z.dtype)
        state.z[part] = source[part] + inside * (state.z[part] - source[part])


# ---------------------------------------------------------------- what is asked for


def _notice(params: FateZeroParams, source: PromptTokens, target: PromptTokens, run: Run) -> None:
    """Tell what is allowed, and perhaps not meant."""
    if params.guidance == 1:
        run.notice("guidance is 1: the prompt is followed no further than the model does by itself")
    if source.prompt == target.prompt:
        run.notice("both prompts are the same: the clip comes back as the model rebuilds it")


def _windows(frames: int, params: FateZeroParams, neighbours: Neighbours) -> tuple[Window, ...]:
    """Cover the clip; the released code takes it in one piece."""
    size, overlap = (frames, 0) if params.faithful else (params.window, params.overlap)
    return overlapping(frames, size=size, overlap=overlap, anchors=neighbours.anchors(frames))


# ---------------------------------------------------------------- what it will need


def estimate(frames: int, height: int, width: int, params: FateZeroParams, compute: Compute) -> Estimate:
    """Return memory, network calls and disk of an edit, before any weight is loaded.

    Of models that are not of Stable Diffusion's layout nothing is said.

    Raises:
        ModelNotFound: the model is not on this machine.
    """
    windows = _windows(frames, params, Neighbours(tuple(map(reach, params.attend))))
    longest = max(len(window.frames) for window in windows)
    looked = {
        *step_range((params.self_from, params.self_until), params.steps),
        *step_range((params.cross_from, params.cross_until), params.steps),
    }
    if params.blend and params.mask is None:
        looked |= {*step_range((params.blend_from, params.blend_until), params.steps)}
    calls = params.steps * (1 if params.guidance == 1 else 2) + len(looked)
    return estimate_inversion(
        params.model,
        compute,
        lambda sizes: Resize.for_image_model(height, width, sizes, params.size).padded,
        frames=frames,
        together=longest,
        layers=NETWORK_LAYERS,
        steps=params.steps,
        inverting=params.steps * (params.fixed_point * len(windows) + 1),
        sampling=calls * len(windows),
        windows=f"{len(windows)} windows of up to {longest} frames",
        tuning=0 if params.tuned else params.tune_steps,
        learning=longest,
    )
