import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast, final

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from retouch.apps.bench import (
    BASELINE,
    HELD_OUT,
    KINDS,
    SOURCE,
    TRUTH,
    BenchPlan,
    BenchRow,
    _kept_row,
    contact_sheet,
    make_trials,
    markdown_table,
    paired_differences,
    params_for,
    run_bench,
    summarise_rows,
    write_results,
)
from retouch.errors import InputError
from retouch.events import Event, Started
from retouch.media.io import read_picture
from retouch.metrics.fidelity import Frames
from retouch.params import Model, Params, Prompt, SourcePrompt
from retouch.spec import MethodSpec
from retouch.video import CEILING_DB

SMALL = BenchPlan(methods=(), kinds=("colour", "object"), clips=2, frames=2, size=32)
TRAINED_BELOW = 10**9


@final
class Worded(Params):
    prompt: Prompt
    source_prompt: SourcePrompt
    model: Model = "sd15"
    strength: float = 0.5
    steps: int = 50


@final
class Named(Params):
    prompt: Prompt
    source_prompt: SourcePrompt
    object_words: tuple[str, ...] = ()


NAMED = MethodSpec("named", "", "", Named, "x:edit")


@final
class Drawn(Params):
    first: Path
    model: Model = "svd"


@final
class Painted(Params):
    keyframe: tuple[str, ...] = ()
    box: tuple[str, ...] = ()


@final
class Odd(Params):
    wish: str
    model: Model = "mine"


WORDED = MethodSpec(
    "worded",
    "",
    "",
    Worded,
    "x:edit",
    presets={"shape": {"strength": 0.7}, "style": {"strength": 0.8}, "attribute": {}},
)


@final
class Blind:
    """An encoder to which every picture is the same, and every text another."""

    def images(self, frames: Frames, /) -> Float[Tensor, "f d"]:
        return torch.ones(len(frames), 1)

    def texts(self, sentences: Sequence[str], /) -> Float[Tensor, "n d"]:
        return torch.tensor([[1.0], [-1.0]])[: len(sentences)]


def test_held_out_seeds_are_never_those_of_training() -> None:
    assert HELD_OUT > TRAINED_BELOW


def test_the_world_seed_is_that_of_the_first_clip_and_the_others_count_on() -> None:
    first, second = (t for t in make_trials(replace(SMALL, kinds=("colour",), world_seed=7)))
    (alone,) = make_trials(replace(SMALL, kinds=("colour",), clips=1, world_seed=8))
    assert np.array_equal(second.clip.video.frames, alone.clip.video.frames)
    assert not np.array_equal(first.clip.video.frames, alone.clip.video.frames)


def test_rows_of_other_clips_are_not_mixed_and_older_folders_go_on(tmp_path: Path) -> None:
    small = replace(SMALL, kinds=("colour",), clips=1)
    rows = run_bench(small, tmp_path)
    path = tmp_path / "settings.json"
    older = json.loads(path.read_text())
    assert older.pop("world_seed") == HELD_OUT
    path.write_text(json.dumps(older))
    assert run_bench(small, tmp_path) == rows
    with pytest.raises(InputError, match="world_seed"):
        run_bench(replace(small, world_seed=7), tmp_path)


def test_trials_change_one_thing_each_and_are_the_same_every_time() -> None:
    bench = BenchPlan(methods=(), kinds=tuple(KINDS), clips=3, frames=2, size=32)
    made = list(make_trials(bench))
    assert [trial.name for trial in made] == [trial.name for trial in make_trials(bench)]
    assert len({trial.name for trial in made}) == 3 * len(KINDS)
    for trial in made:
        assert trial.clip.caption != trial.target.caption
        assert trial.change in trial.target.caption
        assert trial.inside.any()
        assert not trial.inside.all()


def test_the_source_wins_outside_and_the_truth_wins_inside(tmp_path: Path) -> None:
    means = summarise_rows(run_bench(SMALL, tmp_path))
    inside, outside = (f"fidelity-{where}@rgb8/32x32/2f" for where in ("inside", "outside"))
    for kind in SMALL.kinds:
        assert means[kind][TRUTH][inside].mean == CEILING_DB
        assert means[kind][SOURCE][outside].mean == CEILING_DB
        assert means[kind][SOURCE][inside].mean < 30
        assert means[kind][SOURCE][inside].clips == 2


def test_a_bench_that_was_stopped_goes_on_and_measures_nothing_twice(tmp_path: Path) -> None:
    whole = run_bench(SMALL, tmp_path / "whole")
    half = tmp_path / "half"
    lines = (tmp_path / "whole" / "rows.jsonl").read_text().splitlines(keepends=True)
    run_bench(BenchPlan(**{**SMALL.__dict__, "clips": 1}), half)
    with (half / "rows.jsonl").open("a") as kept:
        kept.write(lines[5][: len(lines[5]) // 2])  # cut short by a kill
    assert run_bench(SMALL, half) == whole
    assert (half / "rows.jsonl").read_text().splitlines(keepends=True) == lines


def test_rows_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    run_bench(SMALL, tmp_path)
    with pytest.raises(InputError, match="other settings"):
        run_bench(BenchPlan(**{**SMALL.__dict__, "frames": 3}), tmp_path)


def test_rows_from_before_a_default_changed_are_not_mixed_with_those_after(tmp_path: Path) -> None:
    both = BenchPlan(**{**SMALL.__dict__, "methods": (BASELINE, "paint"), "clips": 1, "kinds": ("colour",)})
    _kept_row(both, tmp_path)
    _kept_row(BenchPlan(**{**both.__dict__, "methods": (BASELINE,)}), tmp_path)
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["methods"].keys() == {BASELINE, "paint"}
    assert len(settings["weights"]) == 64
    settings["methods"]["paint"] = "as it was last week"
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    _kept_row(BenchPlan(**{**both.__dict__, "methods": (BASELINE,)}), tmp_path)
    with pytest.raises(InputError, match="other settings: paint"):
        _kept_row(both, tmp_path)
    settings["weights"] = "of another training"
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="other settings: weights"):
        _kept_row(BenchPlan(**{**both.__dict__, "methods": (BASELINE,)}), tmp_path)


def test_a_null_edit_is_made_once_a_clip_and_measured_for_every_kind(tmp_path: Path) -> None:
    quick = {"steps": 1, "strength": 0.5}
    bench = BenchPlan(**{**SMALL.__dict__, "methods": (BASELINE,), "clips": 1, "settings": {BASELINE: quick}})
    events: list[Event] = []
    rows = run_bench(bench, tmp_path, listen=events.append)
    nulls = [row for row in rows if row.contender == f"null edit: {BASELINE}"]
    assert [row.kind for row in nulls] == ["colour", "object"]
    key = "psnr-source@rgb8/32x32/2f"
    assert nulls[0].figures[key] == nulls[1].figures[key] < CEILING_DB
    assert sum(isinstance(event, Started) for event in events) == 3, "two edits and one null edit"


def test_clip_direction_is_measured_where_there_are_eyes(tmp_path: Path) -> None:
    seeing = BenchPlan(**{**SMALL.__dict__, "clips": 1, "encoder": Blind(), "network": "blind", "crop": "8c"})
    rows = run_bench(seeing, tmp_path)
    assert {row.figures["clip-direction@blind/8c/2f"] for row in rows} == {0.0}


def test_a_change_is_given_by_the_names_of_the_parameters(tmp_path: Path) -> None:
    trial = next(iter(make_trials(SMALL)))
    words = params_for(WORDED, trial, tmp_path, SMALL)
    assert (words["prompt"], words["source_prompt"]) == (trial.target.caption, trial.clip.caption)
    assert words["model"] == "tiny:sd"
    spec = MethodSpec("drawn", "", "", Drawn, "x:edit", needs=("image-to-video",))
    picture = params_for(spec, trial, tmp_path, SMALL)
    assert isinstance(picture["first"], Path)
    assert picture["first"].is_file()
    assert picture["model"] == "tiny:svd"
    painted = params_for(MethodSpec("painted", "", "", Painted, "x:edit"), trial, tmp_path, SMALL)
    (keyframe,) = cast("tuple[str]", painted["keyframe"])
    number, _, path = keyframe.partition("=")
    assert (read_picture(Path(path)) == trial.target.video.frames[int(number)].transpose(1, 2, 0)).all()


def test_the_box_holds_the_object_in_the_middle_frame_and_nothing_more(tmp_path: Path) -> None:
    trial = next(iter(make_trials(SMALL)))
    (box,) = cast(
        "tuple[str]",
        params_for(MethodSpec("painted", "", "", Painted, "x:edit"), trial, tmp_path, SMALL)["box"],
    )
    frame, _, corners = box.partition(":")
    (left, top), (right, bottom) = (map(int, corner.split(",")) for corner in corners.split())
    mask = trial.clip.masks[0, int(frame), 0]
    inner = mask[top : bottom + 1, left : right + 1]
    assert inner.sum() == mask.sum() > 0
    assert all(side.any() for side in (inner[0], inner[-1], inner[:, 0], inner[:, -1]))


def test_settings_go_over_the_preset_that_belongs_to_the_kind(tmp_path: Path) -> None:
    shape = next(trial for trial in make_trials(SMALL) if trial.kind == "object")
    assert params_for(WORDED, shape, tmp_path, SMALL)["strength"] == 0.7
    assert params_for(WORDED, shape, tmp_path, SMALL)["steps"] == SMALL.steps
    told = BenchPlan(**{**SMALL.__dict__, "settings": {"worded": {"strength": 0.3, "steps": 3}}})
    assert params_for(WORDED, shape, tmp_path, told)["strength"] == 0.3
    assert params_for(WORDED, shape, tmp_path, told)["steps"] == 3


def test_a_null_edit_is_of_no_kind_and_takes_no_preset(tmp_path: Path) -> None:
    shape = next(trial for trial in make_trials(SMALL) if trial.kind == "object")
    null = params_for(WORDED, replace(shape, target=shape.clip), tmp_path, SMALL)
    assert "strength" not in null


def test_a_null_edit_says_the_same_twice_and_names_the_object(tmp_path: Path) -> None:
    trial = next(iter(make_trials(SMALL)))
    null = params_for(NAMED, replace(trial, target=trial.clip), tmp_path, SMALL)
    assert null["prompt"] == null["source_prompt"] == trial.clip.caption
    assert null["object_words"] == (trial.clip.scene.actors[0].object,)
    assert "object_words" not in params_for(NAMED, trial, tmp_path, SMALL)


def test_a_method_that_asks_for_something_unknown_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="asks for wish") as caught:
        params_for(MethodSpec("odd", "", "", Odd, "x:edit"), next(iter(make_trials(SMALL))), tmp_path, SMALL)
    assert "--set odd.wish=" in caught.value.hint


def test_a_method_of_another_kind_keeps_its_own_model(tmp_path: Path) -> None:
    told = BenchPlan(**{**SMALL.__dict__, "settings": {"odd": {"wish": "x"}}})
    values = params_for(
        MethodSpec("odd", "", "", Odd, "x:edit"), next(iter(make_trials(SMALL))), tmp_path, told
    )
    assert "model" not in values


def rows_of(
    name: str, values: Sequence[float | None], key: str = "warp-error@true-flow/8x8/2f"
) -> list[BenchRow]:
    return [
        BenchRow(
            f"{i:03}",
            "colour",
            name,
            {} if value is None else {key: value},
            "Boom: x" if value is None else "",
        )
        for i, value in enumerate(values)
    ]


def test_differences_are_paired_on_the_trials_where_neither_failed() -> None:
    rows = rows_of("ours", [0.1, 0.2, None, 0.4]) + rows_of(BASELINE, [0.3, 0.4, 0.5, None])
    found = paired_differences(rows)["colour"]["ours"]["warp-error@true-flow/8x8/2f"]
    assert found.clips == 2
    assert found.mean == pytest.approx(-0.2)


def test_the_table_says_better_for_a_lower_warp_error_and_names_what_failed() -> None:
    rows = rows_of("ours", [0.1, 0.2, None, 0.1, 0.2, 0.1]) + rows_of(
        BASELINE, [0.3, 0.4, 0.5, 0.4, 0.5, 0.6]
    )
    told = markdown_table(BenchPlan(methods=("ours", BASELINE)), rows)
    assert "better |" in told
    assert "worse" not in told
    assert "- ours on 002: Boom: x" in told
    assert "Doing nothing wins warp-error" in told


def test_the_results_are_figures_table_and_sheet(tmp_path: Path) -> None:
    told, found = write_results(SMALL, run_bench(SMALL, tmp_path), tmp_path)
    assert (tmp_path / "table.md").read_text() == told
    assert json.loads((tmp_path / "figures.json").read_text()) == json.loads(json.dumps(found))
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_the_contact_sheet_shows_every_kind_and_source_beside_truth(tmp_path: Path) -> None:
    run_bench(SMALL, tmp_path)
    drawn = contact_sheet(SMALL, tmp_path, edits=2)
    trial = next(iter(make_trials(SMALL)))
    for clip in (trial.clip, trial.target):
        picture = clip.video.frames[1].transpose(1, 2, 0).repeat(6, axis=0).repeat(6, axis=1)
        places = np.argwhere((drawn[:, :, :] == picture[0, 0]).all(axis=2))
        assert any(
            (drawn[y : y + 192, x : x + 192] == picture).all() for y, x in places if y + 192 <= len(drawn)
        )


@pytest.mark.parametrize(("values", "message"), [({"kinds": ("size",)}, "size"), ({"frames": 1}, "1 frames")])
def test_a_bench_of_nothing_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BenchPlan(**{**SMALL.__dict__, **values})
