import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from retouch.world import (
    BACKGROUNDS,
    COLOURS,
    OBJECTS,
    PATTERNS,
    STYLES,
    WORLD_VERSION,
    Actor,
    Motion,
    Portrait,
    Scene,
    Variety,
    face_picture,
    film,
    picture,
)

DIGEST_OF_PICTURES = "8085e0f48c5ad18d6abe8202737ca23f5d24d54e761c0ec60828fd377999a5d1"
"""What 40 scenes and 10 portraits look like. It changes only together with `WORLD_VERSION`."""

PRINT_DIGEST = """
import sys
sys.path.insert(0, {folder!r})
from test_render import digest_of_pictures
print(digest_of_pictures())
"""


def digest_of_pictures() -> str:
    seen = hashlib.sha256()
    for seed in range(40):
        size = 64 if seed % 4 else (50, 83)
        seen.update(picture(Scene.sample(seed, Variety(pair=0.5)), seed * 0.37, size).tobytes())
    for seed in range(10):
        seen.update(face_picture(Portrait.sample(seed), seed * 0.37, 64).tobytes())
    return seen.hexdigest()


def other_process(**environment: str) -> str:
    code = PRINT_DIGEST.format(folder=str(Path(__file__).parent))
    ran = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return ran.stdout.strip()


def test_the_world_looks_as_its_version_says() -> None:
    assert WORLD_VERSION == 1
    assert digest_of_pictures() == DIGEST_OF_PICTURES


def test_another_process_on_an_older_processor_draws_the_same_bytes() -> None:
    # NumPy is told to leave out the vector instructions that its newer code paths use.
    known = np._core._multiarray_umath.__cpu_dispatch__  # type: ignore[attr-defined]
    there = np._core._multiarray_umath.__cpu_features__  # type: ignore[attr-defined]
    newer = " ".join(name for name in known if there.get(name))
    assert other_process(NPY_DISABLE_CPU_FEATURES=newer, PYTHONHASHSEED="7") == DIGEST_OF_PICTURES


def plain(object_: str = "ball", colour: str = "red", pattern: str = "plain", scale: float = 0.7) -> Scene:
    return Scene((Actor(object_, colour, pattern, Motion(scale=scale)),), "sky")


def far(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


def test_every_word_changes_the_picture() -> None:
    pictures = [picture(plain(object_=word)) for word in OBJECTS]
    pictures += [picture(plain(colour=word)) for word in COLOURS[1:]]
    pictures += [picture(plain(pattern=word)) for word in PATTERNS[1:]]
    pictures += [picture(replace(plain(), background=word)) for word in BACKGROUNDS if word != "sky"]
    pictures += [picture(replace(plain(), style=word)) for word in STYLES[1:]]
    for number, one in enumerate(pictures):
        for other in pictures[number + 1 :]:
            assert far(one, other) > 2


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_keep_within_their_reach(name: str) -> None:
    sheet = picture(replace(plain(name, scale=1.0), background="night", ground=(0.0, 0.0)), size=(256, 256))
    bare = picture(
        replace(
            plain(name),
            actors=(Actor(name, "red", motion=Motion(centre=(9.0, 9.0))),),
            background="night",
        ),
        size=256,
    )
    changed = (sheet != bare).any(axis=2)
    assert 0.15 < changed.mean() < 0.85


@pytest.mark.parametrize("colour", COLOURS)
def test_a_colour_word_is_the_colour_most_seen_on_a_plain_ball(colour: str) -> None:
    from retouch.world.render import PAINT

    middle = picture(plain("ball", colour), size=64)[30:38, 28:36].reshape(-1, 3).mean(axis=0)
    nearest = min(PAINT, key=lambda name: float(np.abs(middle - PAINT[name]).sum()))
    assert nearest == colour


def test_a_larger_picture_shows_the_same_scene() -> None:
    scene = Scene.sample(3, Variety(styles=("none",)))
    small, large = picture(scene, 0.4, 64), picture(scene, 0.4, 256)
    shrunk = large.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3)).round().astype(np.uint8)
    assert far(small, shrunk) < 6


def test_a_wide_picture_shows_more_to_the_sides_and_the_same_in_the_middle() -> None:
    scene = Scene.sample(4, Variety(styles=("none",)))
    square, wide = picture(scene, 0.1, 64), picture(scene, 0.1, (64, 128))
    assert np.array_equal(wide[:, 32:96], square)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (17, 9), (33, 65)])
@pytest.mark.parametrize("style", STYLES)
def test_any_size_is_drawn_in_every_style(size: tuple[int, int], style: str) -> None:
    assert picture(replace(Scene.sample(2), style=style), 0.0, size).shape == (*size, 3)


def test_a_film_is_its_pictures_one_after_another() -> None:
    scene = Scene.sample(5)
    clip = film(scene, 3, 48)
    assert clip.fps == 12
    for number in range(3):
        assert np.array_equal(clip.frames[number].transpose(1, 2, 0), picture(scene, number / 12, 48))


def test_a_styled_clip_of_a_still_scene_does_not_flicker() -> None:
    for style in STYLES:
        clip = film(replace(plain(), style=style), 3, 48)
        assert (clip.frames == clip.frames[0]).all()
