"""Kept results: there whole or not at all, found when damaged, made once; drafts that survive."""

import itertools
import multiprocessing
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import final

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retouch.artifacts import ArtifactStore, DraftFile, artifact, pack_value, unpack_value
from retouch.errors import ArtifactError
from retouch.events import Event, Kept, Notice, Reused
from retouch.run import Run

KEY = "0" * 64
OLD = 10 * 86400.0


@final
@dataclass(frozen=True)
class Leaf:
    pixels: np.ndarray
    share: float = 0.5


@final
@dataclass(frozen=True)
class Twig:
    length: int


@final
@dataclass(frozen=True)
class Tree:
    weights: Tensor
    leaves: tuple[Leaf, ...]
    names: Mapping[str, Tensor] = field(default_factory=dict)
    pair: tuple[int, str] = (1, "a")
    rate: Fraction = Fraction(1)
    place: Path | None = None
    steps: list[int] = field(default_factory=list)
    some: tuple[Leaf, ...] | None = None
    either: Leaf | Twig | None = None
    inner: Mapping[str, tuple[Twig, ...]] | None = None


def tree(seed: int = 0) -> Tree:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 255, (3, 4), np.uint8)
    return Tree(
        torch.from_numpy(rng.standard_normal((2, 3))),
        (Leaf(pixels), Leaf(pixels[:, ::2], 0.25)),
        {"a.b": torch.ones(2), "a": torch.zeros(0, 3), "half": torch.ones(3, dtype=torch.bfloat16)},
        (7, "schön \udcff"),
        Fraction(24000, 1001),
        Path("somewhere"),
        [3, 1],
        (Leaf(np.array(2.5)),),
        Twig(4),
        {"x": (Twig(1), Twig(2))},
    )


def assert_equal(one: object, other: object) -> None:
    """Equal in kind and value, arrays and tensors included."""
    assert type(one) is type(other)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert np.array_equal(one, other)
    elif isinstance(one, Tensor) and isinstance(other, Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_equal(left, right)
    elif isinstance(one, dict) and isinstance(other, dict):
        assert_equal(sorted(one.items()), sorted(other.items()))
    elif isinstance(one, (Tree, Leaf, Twig)):
        assert_equal(vars(one), vars(other))
    else:
        assert one == other


def test_everything_comes_back_from_the_store_as_it_was(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    store.keep("tree", KEY, *pack_value(tree()), version=1)
    found = store.find("tree", KEY)
    assert found is not None
    assert_equal(unpack_value(Tree, *found), tree())


@settings(max_examples=40)
@given(st.lists(st.sampled_from(["a", "a.b", "b", "a.0", "0"]), unique=True), st.integers(0, 4), st.data())
def test_names_never_mix_tensors_up(names: list[str], depth: int, data: st.DataObject) -> None:
    values: Mapping[str, Mapping[str, Tensor]] = {
        name: {
            inner: torch.tensor(data.draw(st.integers(0, 99)))
            for inner in itertools.islice(("a", "b", "0", "b.a"), depth)
        }
        for name in names
    }
    assert_equal(unpack_value(Mapping[str, Mapping[str, Tensor]], *pack_value(values)), values)


def test_parts_of_one_tensor_and_arrays_that_may_not_be_written_are_kept() -> None:
    whole = torch.arange(10.0)
    fixed = np.arange(4)
    fixed.flags.writeable = False
    value = (whole[:5], whole[2:], whole, fixed)
    assert_equal(unpack_value(tuple[Tensor, Tensor, Tensor, np.ndarray], *pack_value(value)), value)


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, b"bytes", (1, len)], ids=["object", "set", "bytes", "function"]
)
def test_what_would_come_back_as_something_else_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="cannot be kept"):
        pack_value(value)


def test_parts_that_do_not_fit_the_type_are_an_artifact_error() -> None:
    with pytest.raises(ArtifactError, match="do not fit"):
        unpack_value(Twig, *pack_value(Leaf(np.zeros(2))))


@final
class Maker:
    """A run that counts what is made in it, and remembers what it was told."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.told: list[Event] = []
        self.run = Run.alone(folder, seed=seed, listen=self.told.append)

    def make(self, seed: int = 0) -> Tree:
        return grow(seed, run=self.run)

    def kinds(self) -> list[str]:
        return [type(event).__name__ for event in self.told]


@artifact("tree", version=1)
def grow(seed: int, *, run: Run) -> Tree:
    """Grows the tree of a seed."""
    run.notice("growing")
    return tree(seed)


def test_a_result_is_made_once(tmp_path: Path) -> None:
    maker = Maker(tmp_path)
    first, second, other = maker.make(), maker.make(), maker.make(1)
    assert_equal(first, second)
    assert not torch.equal(first.weights, other.weights)
    assert maker.kinds() == ["Notice", "Kept", "Reused", "Notice", "Kept"]
    kept, reused = maker.told[1], maker.told[2]
    assert isinstance(kept, Kept)
    assert isinstance(reused, Reused)
    assert kept.key == reused.key


def test_what_an_earlier_version_kept_is_made_again_with_a_notice(tmp_path: Path) -> None:
    heard: list[Event] = []
    run = Run.alone(tmp_path, listen=heard.append)
    for version in (1, 2, 2):
        artifact("twig", version=version)(lengthen)(3, run=run)
    assert [type(event) for event in heard] == [Kept, Notice, Kept, Reused]
    assert "a twig kept by an earlier version" in next(e.text for e in heard if isinstance(e, Notice))


def lengthen(length: int, *, run: Run) -> Twig:
    del run
    return Twig(length)


def test_a_flipped_byte_anywhere_is_found_and_the_result_made_again(tmp_path: Path) -> None:
    maker = Maker(tmp_path)
    sound = maker.make()
    (entry,) = maker.run.store.entries()
    rng = np.random.default_rng(5)
    for name in ("manifest.json", "tensors.safetensors"):
        file = entry.folder / name
        whole = file.read_bytes()
        for place in [0, len(whole) - 1, *rng.integers(0, len(whole), 30)]:
            spoilt = bytearray(whole)
            spoilt[place] ^= int(rng.integers(1, 256))
            file.write_bytes(spoilt)
            maker.told.clear()
            assert_equal(maker.make(), sound)
            assert maker.kinds() in (
                ["Notice", "Notice", "Kept"],
                ["Reused"],
            )  # white space of JSON may change
            assert (maker.kinds() == ["Reused"]) <= (name == "manifest.json")
            assert file.read_bytes() == whole or maker.kinds() == ["Reused"]


@pytest.mark.parametrize("name", ["manifest.json", "tensors.safetensors"])
def test_a_missing_or_cut_file_is_found_and_the_result_made_again(name: str, tmp_path: Path) -> None:
    maker = Maker(tmp_path)
    sound = maker.make()
    (entry,) = maker.run.store.entries()
    (entry.folder / name).write_bytes((entry.folder / name).read_bytes()[:-1])
    assert_equal(maker.make(), sound)
    (entry.folder / name).unlink()
    assert list(maker.run.store.entries())  # what is damaged can still be listed and removed
    assert_equal(maker.make(), sound)
    damaged = [event.text for event in maker.told if isinstance(event, Notice) and "damaged" in event.text]
    assert len(damaged) == 2


def test_an_artefact_moved_to_another_key_is_foreign(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    folder = store.keep("tree", KEY, *pack_value(tree()), version=1)
    folder.rename(folder.with_name("1" * 64))
    with pytest.raises(ArtifactError, match="was made as tree/000"):
        store.find("tree", "1" * 64)


def test_what_is_sound_stays_when_it_is_kept_again(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    first = store.keep("tree", KEY, *pack_value(tree()), version=1)
    node = (first / "manifest.json").stat().st_ino
    store.keep("tree", KEY, *pack_value(tree()), version=1)
    assert (first / "manifest.json").stat().st_ino == node
    (first / "manifest.json").write_text("{}")
    store.keep("tree", KEY, *pack_value(tree()), version=1)
    assert store.find("tree", KEY) is not None


def keep_often(folder: Path, number: int) -> None:
    store = ArtifactStore(folder)
    for attempt in range(25):
        store.keep("tree", KEY, *pack_value(Twig(3)), version=1)
        if (number + attempt) % 4 == 0 and attempt < 24:  # the last to act leaves it there
            store.forget("tree", KEY)
        store.find("tree", KEY)


def test_processes_that_keep_find_and_forget_one_key_do_not_disturb_each_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=keep_often, args=(tmp_path, number)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    found = ArtifactStore(tmp_path).find("tree", KEY)
    assert found is not None
    assert unpack_value(Twig, *found) == Twig(3)
    assert [path.name for path in (tmp_path / "tree").iterdir()] == [KEY]


@artifact("noisy", version=1)
def draw(size: int, *, run: Run) -> Leaf:
    """Draws noise by the run's seed."""
    return Leaf(run.noise("leaf", torch.zeros(size)).numpy() + run.seed % 7)


def make_slowly(folder: Path, begun: Path) -> None:
    """Holds the right to make the artefact, until it is killed."""
    with ArtifactStore(folder).making("tree", KEY, check=lambda: None):
        begun.touch()
        time.sleep(60)


def test_who_needs_what_another_makes_waits_unless_that_one_dies_or_shows_no_sign(tmp_path: Path) -> None:
    store, waited = ArtifactStore(tmp_path / "store"), itertools.count()
    lock, begun = tmp_path / "store" / "tree" / f".{KEY}.lock", tmp_path / "begun"

    def check() -> None:
        if next(waited) == 3:
            os.utime(lock, (time.time() - OLD, time.time() - OLD))

    other = multiprocessing.get_context("fork").Process(target=make_slowly, args=(tmp_path / "store", begun))
    other.start()
    while not begun.exists():
        assert other.is_alive()
        time.sleep(0.01)
    with store.making("tree", KEY, check=check) as beside:
        assert beside != store.draft("tree", KEY)
    assert next(waited) == 4
    other.kill()
    other.join()
    with store.making("tree", KEY, check=check) as draft:
        assert draft == store.draft("tree", KEY)
    assert not lock.exists()


def test_what_is_kept_does_not_depend_on_the_run_that_made_it(tmp_path: Path) -> None:
    one, other = (draw(5, run=Maker(tmp_path / str(seed), seed).run) for seed in (1, 2))
    assert_equal(one, other)
    assert not np.array_equal(draw(6, run=Maker(tmp_path / "3").run).pixels[:5], one.pixels)


@artifact("slow", version=1)
def fit(steps: int, *, run: Run) -> Twig:
    """Counts to `steps`, with a checkpoint at each."""
    kept = run.draft.load() or {"done": torch.tensor(0)}
    for step in run.steps("fit", range(int(kept["done"]), steps)):
        run.draft.save({"done": torch.tensor(step.item + 1)})
        if step.item == 3 and not (run.folder / "again").exists():
            (run.folder / "again").touch()
            raise KeyboardInterrupt
    return Twig(steps)


def test_work_that_was_stopped_goes_on_from_its_draft_and_leaves_none(tmp_path: Path) -> None:
    maker = Maker(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit(6, run=maker.run)
    assert not list(maker.run.store.entries())
    maker.told.clear()
    assert fit(6, run=maker.run) == Twig(6)
    assert maker.kinds() == ["Started", "Advanced", "Advanced", "Ended", "Kept"]
    assert not list((tmp_path / "store" / "slow").glob(".*"))


@pytest.mark.parametrize("place", [0, 9, 60, -1])
def test_a_damaged_draft_counts_as_none(place: int, tmp_path: Path) -> None:
    draft = DraftFile(tmp_path / "folder" / "draft")
    assert draft.load() is None
    draft.save({"a": torch.arange(30.0)})
    draft.save({"a": torch.arange(30.0), "b": torch.tensor(2)})
    loaded = draft.load()
    assert loaded is not None
    assert_equal(loaded, {"a": torch.arange(30.0), "b": torch.tensor(2)})
    spoilt = bytearray(draft.path.read_bytes())
    spoilt[place] ^= 1
    draft.path.write_bytes(spoilt)
    assert draft.load() is None
    assert not draft.path.exists()


def aged(store: ArtifactStore) -> None:
    """Four artefacts, of which number 0 was not used for longest."""
    for number in range(4):
        folder = store.keep("tree", str(number) * 64, *pack_value(Leaf(np.zeros(1000))), version=1)
        os.utime(folder, (time.time() - OLD + number,) * 2)


def test_prune_removes_the_longest_unused_first_until_the_rest_fits(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    aged(store)
    assert [entry.key[0] for entry in store.entries()] == ["0", "1", "2", "3"]
    store.find("tree", "0" * 64)  # used now, so the last to go
    size = next(store.entries()).size
    assert [entry.key[0] for entry in store.prune(keep_bytes=2 * size)] == ["1", "2"]
    assert [entry.key[0] for entry in store.entries()] == ["3", "0"]
    assert [entry.key[0] for entry in store.prune(older_than=60)] == ["3"]
    assert [entry.key[0] for entry in store.prune()] == ["0"]
    assert not list(store.entries())


def test_prune_leaves_work_in_progress_alone_and_removes_what_is_long_dead(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    store.draft("tree", KEY).save({"a": torch.zeros(1)})
    store.draft("tree", "1" * 64).save({"a": torch.zeros(1)})
    os.utime(store.draft("tree", KEY).path, (time.time() - OLD,) * 2)
    (dead := tmp_path / "tree" / ".dead.draft").mkdir()
    os.utime(dead, (time.time() - OLD,) * 2)
    removed = {entry.folder for entry in store.prune()}
    assert removed == {dead, store.draft("tree", KEY).path}
    assert [path.name for path in (tmp_path / "tree").iterdir()] == [store.draft("tree", "1" * 64).path.name]


def test_prune_counts_what_unfinished_work_left_beside_its_checkpoint(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    draft = store.draft("ladder", KEY)
    draft.save({"done": torch.tensor(3)})
    rungs = draft.path.with_suffix(".rungs")
    rungs.write_bytes(bytes(1000))
    assert {entry.folder for entry in store.unfinished()} == {draft.path, rungs}
    assert store.prune() == []
    assert rungs.exists(), "it may be in the making"
    for path in (draft.path, rungs):
        os.utime(path, (0, 0))
    removed = store.prune()
    assert sum(entry.size for entry in removed) > 1000
    assert not rungs.exists()
    assert not draft.path.exists()
    assert store.unfinished() == []
