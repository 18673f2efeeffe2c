"""What can be known before the first expensive step: by cheap reads of headers, and of the pictures given.

Every command asks here before it begins, so that nothing is refused after hours that could be at once.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from retouch.errors import ParamsError
from retouch.events import Listener
from retouch.files import check_free
from retouch.media.encoding import Encoding, choose_settings
from retouch.media.masks import check_fits
from retouch.media.opening import pictures_at
from retouch.media.pictures import check_suffix, is_picture, read_header, read_picture
from retouch.media.probe import ClipFacts, probe
from retouch.models.refs import resolve
from retouch.models.vocabulary import check_words, declared_words
from retouch.params import Params, Role, given_as

ASPECT_TOLERANCE = 0.01
"""By how much the logarithm of a picture's proportions may differ from that of the clip's."""


def check_clip_output(
    path: Path,
    encoding: Encoding = Encoding(),  # noqa: B008 - frozen
    *,
    force: bool,
    clip: ClipFacts | None = None,
) -> None:
    """Refuse a place for a clip that is taken, cannot be written to, or cannot hold what is asked for.

    Raises:
        VideoError: the place, the suffix or the codec will not do, for any clip or for this one.
        ParamsError: the codec cannot do what `encoding` asks.
    """
    width, height = (clip.video.width, clip.video.height) if clip else (64, 64)
    planned = choose_settings(path, encoding, width=width, height=height, alpha=False)
    check_free(path, force=force, folder=not planned.container)
    if clip is not None:
        sounds = [sound.codec for sound in clip.sounds] if encoding.sound else []
        rate, varies = clip.video.fps, clip.video.variable_rate
        planned.check_source(path, fps=rate, variable_rate=varies, sounds=sounds)


def check_picture_output(path: Path, *, force: bool) -> None:
    """Refuse a place for a picture that is taken, cannot be written to, or names no kind of picture.

    Raises:
        VideoError: the place or the suffix will not do.
    """
    check_free(path, force=force)
    check_suffix(path.suffix)


def check_prompts(params: Params, *, anyway: bool, tell: Listener) -> None:
    """Refuse words that the model was not taught, where it says which it was; with `anyway`, say so.

    Raises:
        ModelNotFound: the model is not on this machine.
        ParamsError: it does not know a word.
    """
    prompts = [prompt for _, prompt in given_as(params, Role.PROMPT)]
    for _, ref in [*given_as(params, Role.EDITOR)] or given_as(params, Role.MODEL):
        check_words(prompts, declared_words(resolve(ref)), model=ref, anyway=anyway, tell=tell)


def check_edit_words(prompt: str, model: str, *, anyway: bool, tell: Listener) -> None:
    """Refuse words of an edit that its model was not taught, as `check_prompts` does.

    Raises:
        ModelNotFound: the model is not on this machine.
        ParamsError: it does not know a word.
    """
    check_words([prompt], declared_words(resolve(model)), model=model, anyway=anyway, tell=tell)


def check_keyframes(at: Sequence[int], clip: ClipFacts, *, mask: Path | None, agreeing: bool) -> None:
    """Refuse key frames that are not in a clip, several that nothing lets agree, and masks that do not fit.

    Raises:
        ParamsError: says which frame, or what is missing.
        VideoError: the mask is of another size or number, or cannot be read.
    """
    frames = clip.video.frames
    if max(at) >= frames:
        raise ParamsError(
            f"frame {max(at)} is not in the clip", hint=f"its {frames} frames are 0 to {frames - 1}"
        )
    if len(at) > 1 and not agreeing:
        raise ParamsError(
            "several key frames agree through the clip's atlas, and there is none",
            hint="give --atlas, from retouch atlas fit, or a --box around the object and a --stroke or two",
        )
    if mask is not None:
        check_masks(mask, clip)


def check_given(params: Params, clip: ClipFacts, part: range | None = None) -> None:
    """Refuse the pictures and masks in a method's parameters that do not fit a clip or cannot be read.

    Raises:
        VideoError: a mask is of another size or number, or a picture cannot be read.
        ParamsError: a key frame is not in the clip, or a picture of another shape than it.
    """
    for name, value in given_as(params, Role.KEYFRAME):
        _check_keyframe(name, value, clip)
    for _, value in given_as(params, Role.MASK):
        check_masks(value, clip, part)
    for _, value in given_as(params, Role.PICTURE):
        read_picture(value if isinstance(value, Path) else value.partition("=")[2])


def _check_keyframe(name: str, value: Path | str, clip: ClipFacts) -> None:
    """Refuse a picture, a path for the first frame or FRAME=PICTURE, that is none of the clip's."""
    at, equals, path = ("0", "=", str(value)) if isinstance(value, Path) else value.partition("=")
    if not (at and equals and path):
        raise ParamsError(f"{name} {value!r} is not FRAME=PICTURE", hint="for example 40=k40.png")
    frames, width, height = clip.video.frames, clip.video.width, clip.video.height
    if not at.isdecimal() or int(at) >= frames:
        raise ParamsError(f"{name} names frame {at}", hint=f"the clip's frames are 0 to {frames - 1}")
    rows, columns = read_picture(path).shape[:2]
    if abs(math.log(columns * height / (rows * width))) > ASPECT_TOLERANCE:
        raise ParamsError(
            f"the picture for frame {at} is {columns}x{rows}, the clip {width}x{height}",
            hint=f"edit the frame itself, uncropped: retouch keyframe CLIP --at {at} -o k{at}.png",
        )


def check_masks(path: Path, clip: ClipFacts, part: range | None = None) -> None:
    """Refuse masks that do not fit a clip, or the part of it that is worked on, by what their headers say.

    Raises:
        VideoError: they are of another size, neither one nor one a frame, or cannot be read.
    """
    listed = pictures_at(path)
    if not listed and is_picture(path):
        sizes = [(1, *read_picture(path).shape[:2])]
    elif not listed:
        video = probe(path).video
        sizes = [(video.frames, video.height, video.width)]
    else:
        headers = [read_header(picture) for picture in listed]
        sizes = [(len(listed), found.height, found.width) for found in headers]
    for name, size in zip(listed or [path], sizes, strict=True):
        frames = len(part) if part and size[0] == len(part) else clip.video.frames
        check_fits(name, size, (frames, clip.video.height, clip.video.width))
