import pytest

from retouch.errors import RequestError
from retouch.world import BACKGROUNDS, COLOURS, OBJECTS, PATTERNS, STYLES, Actor, Scene, Variety


def test_the_vocabulary_is_as_rich_as_promised() -> None:
    counts = [len(set(words)) for words in (OBJECTS, COLOURS, PATTERNS, BACKGROUNDS, STYLES)]
    assert counts == [10, 8, 4, 8, 5]


def test_a_caption_read_back_says_the_same() -> None:
    for seed in range(300):
        scene = Scene.sample(seed)
        assert Scene.of(scene.caption, seed).caption == scene.caption
        assert Scene.of(scene.caption, seed + 1).caption == scene.caption


def test_a_caption_with_its_own_seed_gives_the_same_scene() -> None:
    for seed in range(100):
        scene = Scene.sample(seed)
        assert Scene.of(scene.caption, seed) == scene


def test_captions_read_as_english() -> None:
    assert (
        Scene.of("an orange dotted fish in the sky, watercolor").caption
        == "an orange dotted fish in sky, watercolour"
    )
    assert Scene.of("A neon picture of a red car at night").caption == "a red car at night, neon"
    both = Scene.of("a blue box and a pink checked heart on wood", 4)
    assert both.caption == "a blue box and a pink checked heart on wood"


@pytest.mark.parametrize("caption", ["a red dragon on grass", "", "a car and a box and a ball on sand"])
def test_a_caption_that_names_no_scene_is_refused_with_a_hint(caption: str) -> None:
    with pytest.raises(RequestError) as refusal:
        Scene.of(caption)
    assert "ball" in refusal.value.hint


def test_what_a_caption_leaves_open_comes_from_the_seed() -> None:
    assert {Scene.of("a car", seed).background for seed in range(60)} == set(BACKGROUNDS)
    assert {Scene.of("a car", seed).actors[0].colour for seed in range(60)} == set(COLOURS)


def test_a_narrower_variety_changes_only_what_it_narrows() -> None:
    for seed in range(50):
        wide, narrow = Scene.sample(seed), Scene.sample(seed, Variety(styles=("none",)))
        assert narrow.style == "none"
        assert (narrow.actors, narrow.background, narrow.camera) == (
            wide.actors,
            wide.background,
            wide.camera,
        )


def test_the_easy_variety_keeps_objects_large_upright_and_near_the_middle() -> None:
    for seed in range(50):
        scene = Scene.sample(seed, Variety.easy())
        assert len(scene.actors) == 1
        pose = scene.actors[0].motion.at(seed / 7)
        assert pose.turn == 0
        assert pose.scale >= 0.6
        assert abs(pose.x) < 0.2
        assert abs(pose.y) < 0.2


def test_the_two_objects_of_a_scene_differ() -> None:
    for seed in range(100):
        first, second = Scene.sample(seed, Variety(pair=1.0)).actors
        assert first.object != second.object
        assert first.colour != second.colour


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_bounds_is_refused(seed: int) -> None:
    with pytest.raises(RequestError, match="seed"):
        Scene.sample(seed)
    assert Scene.sample(2**64 - 1).actors


def test_words_that_the_world_does_not_know_are_refused_with_those_it_knows() -> None:
    for wrong in (
        lambda: Actor("dragon", "red"),
        lambda: Actor("ball", "beige"),
        lambda: Actor("ball", "red", "furry"),
        lambda: Scene((Actor("ball", "red"),), "moon"),
        lambda: Scene((Actor("ball", "red"),), "sky", "oil"),
        lambda: Scene((), "sky"),
    ):
        with pytest.raises(RequestError) as refusal:
            wrong()
        assert ", " in refusal.value.hint
