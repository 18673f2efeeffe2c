"""A run: noise by name, steps and their totals, stopping, scratch space, models once a process."""

from pathlib import Path
from typing import Self, final

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retouch.compute import Compute
from retouch.errors import Cancelled, Diverged
from retouch.events import Advanced, Ended, Event, Loaded, Started
from retouch.run import Run, Step


def run(folder: Path = Path("unused"), seed: int = 0, **more: object) -> Run:
    from dataclasses import replace

    return replace(Run.alone(folder, seed=seed), **more)  # type: ignore[arg-type]


@settings(max_examples=30)
@given(st.permutations(["a", "b", "c/1", "c/2"]), st.integers(0, 2**63 - 1))
def test_noise_depends_on_seed_and_name_and_not_on_what_was_drawn_before(names: list[str], seed: int) -> None:
    like = torch.zeros(2, 3)
    drawn = {name: run(seed=seed).noise(name, like) for name in sorted(names)}
    torch.randn(5)
    one = run(seed=seed)
    assert all(torch.equal(one.noise(name, like), drawn[name]) for name in names)
    assert not torch.equal(drawn["a"], drawn["b"])
    assert not torch.equal(run(seed=seed ^ 1).noise("a", like), drawn["a"])


def test_noise_is_standard_normal_in_the_kind_of_what_it_is_like() -> None:
    noise = run().noise("x", torch.zeros(100, 100, dtype=torch.float16))
    assert noise.dtype == torch.float16
    # The deviations of mean and variance over 10^4 draws are 0.01 and 0.014; these are six of them.
    assert abs(noise.float().mean()) < 0.06
    assert abs(noise.float().var() - 1) < 0.09
    wide = run().noise("x", torch.zeros(100, 100, dtype=torch.float64))
    assert torch.equal(wide.half(), noise)


def test_steps_tell_each_step_and_its_total() -> None:
    told: list[Event] = []
    items = [step.item for step in run(listen=told.append).steps("fit", "ab")]
    assert items == ["a", "b"]
    assert told == [Started("fit", 2), Advanced("fit", 1, 2), Advanced("fit", 2, 2), Ended("fit")]


def test_a_stage_of_no_steps_begins_and_ends() -> None:
    told: list[Event] = []
    assert list(run(listen=told.append).steps("fit", [])) == []
    assert told == [Started("fit", 0), Ended("fit")]


def test_a_stop_is_heard_before_the_next_step() -> None:
    told: list[Event] = []
    stopping = run(Path("20260101-paint"), listen=told.append, stopped=lambda: len(told) > 2)
    with pytest.raises(Cancelled, match="the run was stopped") as caught:
        list(stopping.steps("fit", range(9)))
    assert caught.value.hint == "go on with: retouch resume 20260101-paint"
    assert told[-1] == Advanced("fit", 2, 9)


def counted(run: Run, total: int, every: int, key: str = "") -> tuple[list[int], torch.Tensor]:
    """Adds the numbers below `total` to a tensor that goes on from step to step; says which it saw."""
    state, seen = {"sum": torch.zeros(1)}, []
    for step in run.resumable("add", range(total), state, every=every, key=key):
        seen.append(step.item)
        assert (step.index, step.total) == (step.item, total)
        state["sum"] += step.item
    return seen, state["sum"]


@pytest.mark.parametrize(("every", "again"), [(1, [4, 5, 6]), (3, [3, 4, 5, 6]), (9, [0, 1, 2, 3, 4, 5, 6])])
def test_a_loop_goes_on_from_its_last_checkpoint_to_the_same_end(
    tmp_path: Path, every: int, again: list[int]
) -> None:
    told: list[Event] = []
    stopping = run(tmp_path, listen=told.append, stopped=lambda: Advanced("add", 4, 7) in told)
    with pytest.raises(Cancelled):
        counted(stopping, 7, every)
    told.clear()
    assert counted(run(tmp_path, listen=told.append), 7, every) == (again, torch.tensor([21.0]))
    done = [event.done for event in told if isinstance(event, Advanced)]
    assert done == list(range(again[0] or 1, 8))
    assert told[0] == Started("add", 7)


def test_a_checkpoint_of_something_else_is_not_taken_up(tmp_path: Path) -> None:
    stopping = run(
        tmp_path, listen=(told := list[Event]()).append, stopped=lambda: Advanced("add", 2, 5) in told
    )
    with pytest.raises(Cancelled):
        counted(stopping, 5, 1, "this")
    assert counted(run(tmp_path), 5, 1, "that")[0] == [0, 1, 2, 3, 4]


def test_arrays_beside_a_checkpoint_stay_and_a_checkpoint_without_them_goes(tmp_path: Path) -> None:
    draft = run(tmp_path).draft
    array = draft.array("long", (3, 2))
    assert not array.any()
    array[:] = 5
    array.flush()
    draft.save({"done": torch.tensor(1)})
    assert (draft.array("long", (3, 2)) == 5).all()
    assert not draft.array("long", (4, 2)).any(), "an array of another shape is another"
    assert draft.load() is None
    draft.drop()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_diverged_says_where(value: float) -> None:
    (first, *_) = list(run().steps("denoise", range(3)))
    with pytest.raises(Diverged, match="denoise gave values that are not numbers at step 1 of 3"):
        first.done(torch.tensor([0.0, value]))


def test_a_callback_may_replace_the_latents_of_a_step_and_is_held_to_numbers() -> None:
    seen: list[tuple[str, int, object]] = []

    def double(step: Step[object], latents: Tensor) -> Tensor:
        seen.append((step.stage, step.index, step.item))
        return latents * 2

    (step,) = list(run(on_step=double).steps("denoise", "x"))
    assert torch.equal(step.done(torch.ones(2)), torch.full((2,), 2.0))
    assert seen == [("denoise", 0, "x")]
    (step,) = list(run(on_step=lambda _, latents: latents / 0).steps("denoise", "x"))
    with pytest.raises(Diverged):
        step.done(torch.ones(2))


def test_scratch_is_a_file_of_zeros_in_the_run_folder_and_a_second_one_takes_nothing_from_the_first(
    tmp_path: Path,
) -> None:
    ours = run(tmp_path)
    first = ours.scratch("frames", (4, 5), np.int16)
    assert isinstance(first, np.memmap)
    assert (first.shape, first.dtype.name, int(first.sum())) == ((4, 5), "int16", 0)
    first[:] = 7
    second = ours.scratch("frames", (1,))
    assert second[0] == 0
    assert int(first.sum()) == 140
    assert (tmp_path / "scratch" / "frames.bin").stat().st_blocks > 0


@final
class Counted:
    """A model that remembers how often it was loaded."""

    loaded = 0

    @classmethod
    def from_pretrained(cls, ref: str, compute: Compute) -> Self:
        cls.loaded += 1
        assert (ref, compute) == ("tiny:none", Compute())
        return cls()

    @property
    def identity(self) -> str:
        return "counted"


def test_a_model_is_loaded_once_a_process(tmp_path: Path) -> None:
    told: list[Event] = []
    one = run(tmp_path / "a", listen=told.append).load("tiny:none", Counted)
    assert run(tmp_path / "b", listen=told.append).load("tiny:none", Counted) is one
    assert Counted.loaded == 1
    assert [event.model for event in told if isinstance(event, Loaded)] == ["tiny:none"]
