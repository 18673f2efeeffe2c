"""What clips need that are longer than the model's own length: windows, and what one hands to the next."""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn.functional import max_pool2d

from retouch.compute import Compute
from retouch.diffusion.latents import KnownLatents
from retouch.diffusion.resize import Resize
from retouch.diffusion.windows import SequentialWindow, sequential
from retouch.methods.videoshop.spec import VideoshopParams
from retouch.models.estimate import Estimate
from retouch.models.image_to_video import (
    Condition,
    ImageToVideo,
    VideoTraits,
    steps_within,
    svd_activations,
    svd_traits,
)
from retouch.models.refs import numbers_in, read_config, read_index, resolve
from retouch.run import Run
from retouch.tracking.region import Track
from retouch.video import Video

Latents: TypeAlias = Float[Tensor, "g c h w"]
Keyframes: TypeAlias = Mapping[int, UInt8[np.ndarray, "3 height width"]]
Previous: TypeAlias = tuple[SequentialWindow, Float[Tensor, "before c h w"]]
"""The window before, and its edited latents."""


def windows_of(frames: int, traits: VideoTraits, params: VideoshopParams) -> list[SequentialWindow]:
    """Cover a clip with windows, of which one begins afresh at every key frame."""
    return sequential(
        frames,
        [at for at in params.keyframes() if at < frames],
        size=params.window or traits.native_frames,
        overlap=params.overlap,
        stride=traits.frame_stride,
    )


def conditions(
    video: Video,
    window: SequentialWindow,
    keyframes: Keyframes,
    previous: Previous | None,
    model: ImageToVideo,
    resize: Resize,
    params: VideoshopParams,
    run: Run,
) -> tuple[Condition, Condition]:
    """Return the condition of the old first frame and that of the new one, made alike."""
    first = video[window.frames.start : window.frames.start + 1]
    old = resize.to_model(first.pixels(model.device))
    latents: tuple[Tensor | None, Tensor | None] = (None, None)
    if previous is None or not window.known:
        key = first.like(keyframes[window.frames.start][None])
        new, eps = resize.to_model(key.pixels(model.device)), run.noise("picture", old[0])
    else:
        # What the window before hands over has been through the autoencoder; the source's frame takes the
        # same way, or the two would differ where nothing was edited.
        before, edited = previous
        old_latents, eps = model.encode(old), None
        if model.traits.one_latent_per_frame:
            latents = old_latents[0], edited[-window.known].to(old_latents)
            new = model.decode(edited[-window.known].to(old_latents)[None])
        else:
            new = model.decode(edited.to(old_latents))[window.frames.start - before.frames.start :]
        old = model.decode(old_latents)
    frames = model.traits.padded_length(len(window.frames))
    prompts = params.source_prompt or params.prompt or "", params.prompt or params.source_prompt or ""
    source, target = (
        model.condition(picture[0], frames=frames, prompt=prompt, noise=eps, latent=latent)
        for picture, prompt, latent in zip((old, new), prompts, latents, strict=True)
    )
    return source, target


def known_latents(
    clip: Video,
    window: SequentialWindow,
    source: Latents,
    held: Track | None,
    previous: Previous | None,
    model: ImageToVideo,
    resize: Resize,
) -> KnownLatents | None:
    """Return what the window before has edited, in front, and the edit wherever flow can follow it."""
    if not model.traits.one_latent_per_frame:
        return None
    latents = source.to(model.device).clone()
    where = torch.zeros_like(latents[:, :1], dtype=torch.bool)
    if held is not None:
        warped = clip.like(held.warped[window.slice]).pixels(model.device)
        latents = model.encode(resize.to_model(warped)).to(latents)
        where = ~reached_latents(255 - held.confidence[window.slice], model, resize).to(model.device)
    if previous is not None and window.known:
        latents[: window.known] = previous[1][-window.known :].to(latents)
        where[: window.known] = True
    return KnownLatents(latents, where) if where.any() else None


def reached_latents(
    mask: UInt8[np.ndarray, "g 1 h w"], model: ImageToVideo, resize: Resize
) -> Bool[Tensor, "g 1 y x"]:
    """Mark the latents that a pixel of a mask reaches."""
    return max_pool2d(resize.to_model(torch.tensor(mask).float()), model.traits.latent_factor) > 0


def write_window(
    frames: UInt8[np.ndarray, "g 3 h w"], window: SequentialWindow, result: UInt8[np.ndarray, "f 3 h w"]
) -> None:
    """Put a window's frames into the result; those it shares with the one before fade over."""
    for at, number in enumerate(window.frames[: window.known]):
        share = (at + 1) / (window.known + 1)
        frames[at] = np.round(result[number] * (1 - share) + frames[at] * share)
    result[window.slice] = frames


def estimate(frames: int, height: int, width: int, params: VideoshopParams, compute: Compute) -> Estimate:
    """Return the memory and the network calls of an edit; of unknown models, the weights alone.

    Raises:
        ModelNotFound: the model is not on this machine.
        ParamsError: steps and strength, or windows, do not go together.
    """
    folder, number = resolve(params.model), 4 if compute.torch_dtype().itemsize == 4 else 2
    weights = sum(map(numbers_in, folder.rglob("*.safetensors"))) * number
    if read_index(folder, params.model).get("_class_name") != "StableVideoDiffusionPipeline":
        return Estimate(weights)
    unet, vae = (read_config(folder / part / "config.json", params.model) for part in ("unet", "vae"))
    traits = svd_traits(unet, vae)
    (rows, columns) = size = Resize.to_area(height, width, traits, params.short_side).padded
    windows = windows_of(frames, traits, params)
    longest, steps = (
        max(len(window.frames) for window in windows),
        steps_within(params.steps, params.strength),
    )
    calls = steps * params.fixed_point * len(windows) + steps * params.check_inversion
    return Estimate(
        weights + svd_activations(unet, vae, longest, size, params.decode_chunk_size) * number,
        notes=(
            f"{len(windows)} windows of up to {longest} frames at {columns}x{rows}",
            f"{calls} network calls find the noise, which is kept, and {steps * len(windows)} carry the edit",
        ),
    )
