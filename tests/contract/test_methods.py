"""Methods keep the contract, on a tiny clip with cheap parameters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, final

import numpy as np
import pytest

from retouch import registry
from retouch.atlas.file import save_atlas
from retouch.atlas.prepare import atlas_for
from retouch.atlas.pyramid import AtlasSettings
from retouch.media.io import write, write_picture
from retouch.run import Run
from retouch.testing import Bouncing, NoOp, check_method
from retouch.video import Video
from retouch.world import Clip, FaceClip, Portrait, Scene, film

Given: TypeAlias = dict[str, object]

CLIP_MODEL = str(Path(__file__).parents[1] / "parity" / "data" / "videoshop" / "pipeline")
"""The smallest image-to-video model there is; its weights are random, which a promise does not mind."""
EXACT = 99.0
"""Decibels that only equal frames reach."""
BALL = Scene.of("a red ball on sand", seed=1)
TINY_MODEL = 20.0
"""Decibels with which few steps bring a clip of the world back; the autoencoder alone has 28."""


@final
@dataclass(frozen=True)
class Row:
    """How a method is tried cheaply, and how it is asked to change nothing."""

    params: Callable[[Bouncing, Path], Given]
    nothing: Callable[[Bouncing, Path], Given] | None = None
    psnr: float = EXACT
    of_the_world: bool = False
    """Whether the clip is one that the embedded models know."""
    of_a_face: bool = False


def words(source: str, target: str, **more: object) -> Callable[[Bouncing, Path], Given]:
    """Parameters of a method that is told what is there and what should be."""
    return lambda _clip, _folder: {"source_prompt": source, "prompt": target, "steps": 4, **more}


def painted(clip: Bouncing, folder: Path) -> Given:
    """A bar painted over a frame, and the disc as a layer of its own."""
    picture = frame(clip)
    picture[20:30, 10:54] = (250, 220, 20)
    write_picture(picture, folder / "painted.png")
    return {"keyframe": (f"1={folder / 'painted.png'}",), "mask": masks(clip, folder)}


def unpainted(clip: Bouncing, folder: Path) -> Given:
    write_picture(frame(clip), folder / "same.png")
    return {"keyframe": (f"1={folder / 'same.png'}",), "mask": masks(clip, folder)}


def repainted(clip: Bouncing, folder: Path) -> Given:
    """A first frame with a patch of another colour."""
    picture = frame(clip, 0)
    picture[4:24, 4:24] = (20, 60, 220)
    write_picture(picture, folder / "first.png")
    return {"first": folder / "first.png", "steps": 4, "model": CLIP_MODEL}


def unchanged(clip: Bouncing, folder: Path) -> Given:
    write_picture(frame(clip, 0), folder / "same.png")
    return {"first": folder / "same.png", "steps": 4, "model": CLIP_MODEL}


def in_atlas(source: str, target: str) -> Callable[[Bouncing, Path], Given]:
    """What is there, what should be, and a rough atlas of the clip, so that none is solved in each run."""
    given = words(source, target, tune_steps=0)

    def asked(clip: Bouncing, folder: Path) -> Given:
        file = folder / "clip.atlas"
        if not file.exists():
            rough, run = AtlasSettings(charts=1, steps=1, gain=0), Run.alone(folder / "solving")
            save_atlas(atlas_for(clip.video, run, masks=[masks(clip, folder)], settings=rough), file)
        return {**given(clip, folder), "atlas": file}

    return asked


def frame(clip: Bouncing, number: int = 1) -> np.ndarray:
    return np.ascontiguousarray(clip.video.frames[number].transpose(1, 2, 0)).copy()


def recoloured(_: Bouncing, folder: Path) -> Given:
    """Two key frames that the embedded models know, and an atlas of them that was quick to make."""
    drawn = Clip.of(BALL, 4, 64)
    mask = np.repeat((drawn.masks[0] > 0) * np.uint8(255), 3, axis=1)
    path = write(Video(mask, drawn.video.fps), folder / "mask", force=True)
    settings = AtlasSettings(side=64, steps=1)
    made = atlas_for(drawn.video, Run.alone(folder / "fit"), masks=[path], settings=settings)
    atlas = save_atlas(made, folder / "ball.atlas", force=True)
    return {"prompt": "a blue ball on sand", "atlas": atlas, "at": (0, 3), "carry": "previous", "steps": 2}


def masks(clip: Bouncing, folder: Path) -> Path:
    return write(Video(np.repeat(clip.mask, 3, axis=1), clip.video.fps), folder / "mask", force=True)


ROWS: Mapping[str, Row] = {
    "tint": Row(lambda _clip, _folder: {"steps": 2}, lambda _clip, _folder: {"steps": 2, "red": 0.0}),
    "paint": Row(painted, unpainted),
    "stablevideo": Row(recoloured, of_the_world=True),
    "diffusion_atlas": Row(
        in_atlas("a red ball on sand", "a blue ball on sand"),
        in_atlas("a red ball on sand", "a red ball on sand"),
        psnr=TINY_MODEL,
    ),
    "fatezero": Row(
        words("a red ball on sand", "a blue ball on sand"),
        words("a red ball on sand", "a red ball on sand"),
        psnr=TINY_MODEL,
        of_the_world=True,
    ),
    "tune_a_video": Row(words("a red ball on sand", "a blue ball on sand", tune_steps=2)),
    "videoshop": Row(repainted, unchanged),
    "face": Row(
        lambda _clip, _folder: {"attribute": ("beard=1",), "steps": 4},
        lambda _clip, _folder: {"attribute": ("beard=0",), "steps": 4},
        of_a_face=True,
    ),
    "frame_by_frame": Row(lambda _clip, _folder: {"prompt": "a blue ball on sand", "steps": 4}),
}


def test_every_method_of_ours_is_tried() -> None:
    assert set(registry.BUILT_IN) <= set(ROWS)


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize("name", ROWS)
def test_the_method_keeps_the_contract(name: str, bouncing: Bouncing, tmp_path: Path) -> None:
    row = ROWS[name]
    clip = Bouncing(bouncing.video[:4], bouncing.mask[:4], bouncing.flow[:3])
    given, folder = tmp_path / "given", tmp_path / "runs"
    given.mkdir()
    video = film(BALL, 4, 64) if row.of_the_world else clip.video
    video = FaceClip.of(Portrait.sample(5), 4, 64).video if row.of_a_face else video
    no_op = NoOp(row.nothing(clip, given), row.psnr) if row.nothing else None
    check_method(registry.method(name), video, row.params(clip, given), folder, no_op=no_op)
