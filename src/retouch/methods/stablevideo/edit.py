"""Key frames edited by words, each agreeing with those before: StableVideo (Chai et al. 2023).

The paper in five lines, and where to find them:
    a clip is a few textures and where each pixel lies in them             `atlas_for`
    what is decided so far is rendered into the next key frame             `render_patches`
    that key frame is noised in part and denoised under text and edges     `edit_keyframe`
    all key frames are aggregated into one texture                         `patches_from_frames`
    each frame is the source with the texture in place of the old one      `render_edit`

The paper hands on what the one key frame before decided; here all of them do, and only what none has seen is
drawn anew. The paper aggregates by a median and a small network; here a texel is the least-squares answer to
the key frames, weighted by how well each sees it. The paper shows both layers off the atlas; here the edit
takes the place of one layer's colours in the source, so what it does not touch stays as it was, bit for bit.
The background is edited in key frames as well, under edges or depth, where the paper redraws its texture. In
place of text and edges any editor of pictures may draw the key frames (`WordsAlone`). `released` has what the
authors' code does, and the paper's network.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from retouch.atlas.atlas import Atlas
from retouch.atlas.edit import PaintedFrame, TexturePatch, patches_from_frames, render_edit
from retouch.atlas.prepare import atlas_for, drawn_marks, marks_from
from retouch.atlas.pyramid import AtlasSettings
from retouch.diffusion.image_edit import control_of
from retouch.diffusion.picture_editor import check_editor, denoises, editor_named
from retouch.diffusion.words import read_prompt
from retouch.errors import EmptyMask, ParamsError
from retouch.events import Listener
from retouch.media.probe import ClipFacts
from retouch.methods.stablevideo import released
from retouch.methods.stablevideo.layer import (
    LAYER_PIXEL,
    LEAST_NEW,
    KeyframeEditor,
    WordsAlone,
    WordsAndEdges,
    brush_out,
    choose_keyframes,
    decided_colours,
    extend_patch,
    key_cover,
    outer_pixels,
    without_light,
)
from retouch.methods.stablevideo.spec import StableVideoParams
from retouch.models.annotate import DepthReader, depth_class
from retouch.models.image import Control, StableDiffusion
from retouch.models.picture_edit import PictureEditor
from retouch.models.refs import resolve
from retouch.run import Edited, Run
from retouch.video import Video, decibels, release_pages

DEPTH_CONTROLS: Final = {"sd15": "sd15-depth"}
"""What holds a model to depth unless another is named."""


@torch.no_grad()
def edit(video: Video, params: StableVideoParams, run: Run) -> Edited:
    """Show `params.prompt` on the object, or on the background, in every frame where its place is seen."""
    if params.editor is not None:
        editor = editor_named(
            params.editor,
            run,
            prompt=params.prompt,
            steps=params.editor_steps,
            guidance=params.editor_guidance,
            control=params.control if denoises(params.editor) else "",
            edges=params.edges,
        )
        return edit_with_editor(editor, video, params, run)
    sd = run.load(params.model, StableDiffusion)
    return edit_with(sd, control_of(params.control, params.edges, sd, run), video, params, run)


@torch.no_grad()
def edit_with(
    sd: StableDiffusion, control: Control | None, video: Video, params: StableVideoParams, run: Run
) -> Edited:
    """As `edit`, with models that are there already; `params.model` and `params.control` are not read."""
    for prompt in (params.prompt, params.negative_prompt, params.background_prompt):
        read_prompt(sd.tokenizer, prompt)
    if params.faithful:
        if control is None:
            raise ParamsError("faithful holds edits to edges", hint="give the pipeline a controlnet")
        return released.edit(sd, control, atlas_of(video, params, run), video, params, run)
    editor = WordsAndEdges(sd, control, params, run)
    # What a prompt names is drawn in every tile: an object, too.
    ground = replace(editor, scale=params.background_scale or (2 if params.background_prompt else 1))
    if params.depth is not None:
        held = control_of(depth_control_of(params), params.edges, sd, run)
        ground = replace(ground, control=held, depth=run.load(params.depth, DepthReader))
    return edit_layers(video, params, editor, run, ground=ground)


@torch.no_grad()
def edit_with_editor(editor: PictureEditor, video: Video, params: StableVideoParams, run: Run) -> Edited:
    """As `edit`, with key frames that an editor of pictures draws; `params.editor` is not read."""
    return edit_layers(video, params, WordsAlone(editor, run), run)


def edit_layers(
    video: Video,
    params: StableVideoParams,
    editor: KeyframeEditor,
    run: Run,
    *,
    ground: KeyframeEditor | None = None,
) -> Edited:
    """Edit layer after layer of a clip in key frames, and show in every frame what they say together.

    `ground` edits the background, where that is another than `editor`.
    """
    atlas = atlas_of(video, params, run)
    patches, agreements, extras = list[TexturePatch](), list[float](), dict[str, np.ndarray]()
    for layer in layers_to_edit(atlas, params):
        drawing = (layer == len(atlas.names) - 1 and ground) or editor
        keys, agreed = edit_keyframes(atlas, layer, video, drawing, params, run)
        agreements += agreed
        lit = without_light(atlas, layer, keys)
        solved = patches_from_frames(atlas, lit, [layer])
        if params.aggregation == "network":
            solved = [released.patch_by_network(atlas, lit, patch, run) for patch in solved]
        patches += [brush_out(atlas, extend_patch(atlas, patch), layer, video, params) for patch in solved]
        for key in keys:
            picture = (key.colours.movedim(0, 2) * 255).round().to(torch.uint8)
            extras[f"{atlas.names[layer]}-k{key.frame}"] = picture.numpy()
    frames = run.scratch("edited", video.frames.shape)
    touched = run.scratch("touched", (len(video), 1, video.height, video.width), np.bool_)
    blocks, reached = render_edit(atlas, video, patches, "replace"), 0
    for step in run.steps("render", range(0, len(video), 8)):
        start, made, where = next(blocks)
        assert start == step.item
        frames[start : start + len(made)], touched[start : start + len(made)] = made, where
        reached += int(where.sum())
        release_pages(frames)
        release_pages(touched)
    figures = {"touched": reached / touched.size, "keyframes": float(len(extras))}
    if agreements:
        figures["agreement_db"] = float(np.mean(agreements))
    return Edited(video.like(frames), touched=touched, figures=figures, extras=extras)


def atlas_of(video: Video, params: StableVideoParams, run: Run) -> Atlas:
    """Return the clip's atlas; of one picture a layer, as the released code knows it, where that is asked."""
    return atlas_for(
        video,
        run,
        file=params.atlas,
        masks=[params.mask] if params.mask else [],
        marks=marks_from(box=params.box, stroke=params.stroke) + drawn_marks(params.drawn, video),
        settings=AtlasSettings(charts=1) if params.faithful else None,
    )


def edit_keyframes(
    atlas: Atlas,
    layer: int,
    video: Video,
    editor: KeyframeEditor,
    params: StableVideoParams,
    run: Run,
) -> tuple[list[PaintedFrame], list[float]]:
    """Edit key frame after key frame of a layer; return them, and how well each agrees with those before.

    Raises:
        EmptyMask: none of them shows the layer.
    """
    background = layer == len(atlas.names) - 1
    prompt = (background and params.background_prompt) or params.prompt
    keys, agreements = list[PaintedFrame](), list[float]()
    for t in params.at or choose_keyframes(atlas, layer, params.keyframes):
        frame, share = video[t : t + 1], atlas.shares(t, t + 1)[layer].cpu()
        source, own = frame.pixels() / 2 + 0.5, share > LAYER_PIXEL
        told = {"all": keys, "previous": keys[-1:]}.get(params.carry, [])
        place = box_to_show(own, params.view, editor.least)
        outer = outer_pixels(atlas, place)
        colours, new = decided_colours(atlas, layer, told, t, own, outer)
        known = own & ~new if params.carry == "all" else torch.zeros_like(own)
        if (own & ~known).sum() <= LEAST_NEW * own.sum():
            if params.at:
                run.notice(f"{video.named_frames([t])} shows nothing of the {atlas.names[layer]} that is new")
            continue
        seen = torch.where(own & ~new, colours, source)
        made = editor.edit(
            np.array(frame.frames[place]),
            np.array(frame.like(seen * 2 - 1).frames[place]),
            own[place].numpy(),
            known[place].numpy(),
            prompt=prompt,
            noise="keyframe" if params.carry == "noise" else f"keyframe {layer} {t}",
            first=not keys,
        )
        seen[place] = torch.from_numpy(made).float() / 255
        agreements += agreement(atlas, layer, keys, t, own, outer, seen)
        keys.append(PaintedFrame(t, seen[0], key_cover(atlas, layer, share, outer)[0]))
    if not keys:
        raise EmptyMask(f"no key frame shows the {atlas.names[layer]}", hint="name others with --at, or none")
    return keys, agreements


def agreement(
    atlas: Atlas,
    layer: int,
    keys: Sequence[PaintedFrame],
    t: int,
    own: Bool[Tensor, "1 1 h w"],
    outer: Bool[Tensor, "1 1 h w"],
    made: Float[Tensor, "1 3 h w"],
) -> list[float]:
    """Return in dB how well a key frame shows what those before decided; nothing where they do not meet."""
    before, apart = decided_colours(atlas, layer, keys, t, own, outer)
    both = (own & ~apart).expand_as(made)
    return [decibels(float((before - made)[both].square().mean()), peak=1)] if both.any() else []


def box_to_show(own: Bool[Tensor, "1 1 h w"], view: str, least: int) -> tuple[slice, slice, slice, slice]:
    """Return the part of a frame that the model is shown: all of it, or the layer's box with a border."""
    sides = []
    for axis in (2, 3):
        size = own.shape[axis]
        there = own.any(5 - axis).flatten().nonzero() if view == "layer" else torch.tensor([[0], [size - 1]])
        low, high = int(there[0]), int(there[-1]) + 1
        border = max((high - low) // 8, (least - high + low + 1) // 2, 0)
        sides.append(slice(max(0, low - border), min(size, high + border)))
    return (slice(None), slice(None), sides[0], sides[1])


def layers_to_edit(atlas: Atlas, params: StableVideoParams) -> list[int]:
    """Return the layers that are asked for: the front one is the object, the last one the background."""
    last = len(atlas.names) - 1
    return {"object": [0], "background": [last], "both": [0, last]}[params.edits]


def depth_control_of(params: StableVideoParams) -> str:
    """Return the ControlNet that holds the background to its depth.

    Raises:
        ParamsError: none is named, and none is known for the model.
    """
    control = params.depth_control or DEPTH_CONTROLS.get(params.model)
    if control is None:
        raise ParamsError(
            f"nothing holds {params.model} to depth",
            hint="name a ControlNet that was made for it with --depth-control, or leave --depth out",
        )
    return control


def preflight(clip: ClipFacts, params: StableVideoParams, tell: Listener) -> None:
    """Refuse what cannot be edited, before the clip is read.

    Raises:
        ParamsError: nothing says what the object is, or a key frame is not in the clip or named twice.
        ModelNotFound: the editor is not on this machine.
        ModelMismatch: it edits no pictures, or the depth model reads no depth.
    """
    del tell
    if params.editor is not None:
        check_editor(params.editor)
    if params.depth is not None:
        depth_class(params.depth)
        resolve(depth_control_of(params))
    if not (params.atlas or params.mask or params.box or params.drawn):
        raise ParamsError(
            "nothing says what the object is", hint="give --mask, a --box with a stroke or two, or --atlas"
        )
    frames, size = clip.video.frames, (clip.video.width, clip.video.height)
    if params.faithful and min(size) < released.LEAST_SIDE:
        raise ParamsError(
            f"the clip is {size[0]}x{size[1]}; the released code takes boxes of {released.LEAST_SIDE} pixels",
            hint="give a larger clip, or leave --faithful out",
        )
    for t in params.at:
        if not 0 <= t < frames:
            raise ParamsError(f"key frame {t} is not in the clip", hint=f"frames are 0 to {frames - 1}")
        if params.at.count(t) > 1:
            raise ParamsError(f"key frame {t} is named twice", hint="name each once")
