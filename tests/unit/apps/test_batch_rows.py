"""Rows of a batch: what is wrong with a line, what makes a key, which rows go together, and making them."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from retouch.apps.batch_rows import (
    Fault,
    Row,
    check_all,
    groups_of,
    in_shard,
    make_rows,
    parse_shard,
    read_rows,
    write_rows,
)
from retouch.errors import ParamsError, RequestError
from retouch.media.io import write, write_picture
from retouch.testing import Bouncing


@pytest.fixture
def folder(tmp_path: Path, bouncing: Bouncing) -> Path:
    write(bouncing.video, tmp_path / "clip.mp4")
    write(bouncing.video[:5], tmp_path / "five.mp4")
    return tmp_path


def tint(video: str = "clip.mp4", **more: object) -> dict[str, object]:
    return {"video": video, "method": "tint", **more}


def read(folder: Path, *rows: object, **options: list[Path]) -> tuple[list[Row], list[Fault]]:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return read_rows(path, roots=options.get("roots"))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (tint(params={"steps": 0}), "line 2: steps is 0; it must be greater than or equal to 1"),
        (tint(params={"stepz": 1}), "line 2: there is no parameter 'stepz' (did you mean steps?)"),
        (tint("gone.mp4"), "line 2: video: "),
        (tint(range="3-99"), "line 2: video: "),
        ({"video": "clip.mp4", "method": "tnit"}, "line 2: there is no method 'tnit' (did you mean tint?)"),
        ({"method": "tint"}, "line 2: video is missing"),
        (tint(compute={"threads": -1}), "line 2: compute.threads is -1"),
        ("{", "line 2: it is no JSON"),
        ("[1]", "line 2: it is a list, no JSON object"),
        ({"id": "../x", "request": tint()}, "line 2: id is '../x'"),
        ({"id": "a", "request": tint(), "tag": {}}, "line 2: a row has no 'tag' (did you mean tags?)"),
        ({"id": "a", "request": tint(), "tags": 3}, "line 2: tags is 3"),
        ({"id": "one", "request": tint(seed=9)}, "line 2: id 'one' is that of line 1"),
        (
            {"video": "clip.mp4", "method": "frame_by_frame", "params": {"prompt": "x", "model": "sd99"}},
            "line 2: no model is called 'sd99'",
        ),
        (
            {"video": "clip.mp4", "method": "paint", "params": {"keyframe": ["0=gone.png"]}},
            "line 2: keyframe: ",
        ),
    ],
)
@pytest.mark.usefixtures("plugins")
def test_a_fault_names_line_and_field_and_the_other_rows_are_read(
    folder: Path, row: object, said: str
) -> None:
    rows, faults = read(folder, {"id": "one", "request": tint()}, row, tint(seed=3))
    assert [row.line for row in rows] == [1, 3]
    assert [fault.line for fault in faults] == [2]
    assert str(faults[0]).startswith(said)
    with pytest.raises(RequestError, match="1 of the rows of x cannot be used") as caught:
        check_all(faults, "x")
    assert said in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot be read"):
        read_rows(tmp_path / "none.jsonl")


@pytest.mark.usefixtures("plugins")
def test_a_key_is_decided_by_what_decides_the_result_and_by_nothing_else(folder: Path) -> None:
    same: list[Mapping[str, object]] = [
        tint(params={"steps": 6}),
        tint(str(folder / "clip.mp4")),
        tint(compute={"threads": 3}),
        tint(out="x.mp4"),
        {"request": tint(), "tags": {"shot": 3}},
    ]
    other: list[Mapping[str, object]] = [
        tint(seed=1),
        tint(params={"steps": 7}),
        tint("five.mp4"),
        tint(range="0-3"),
        tint(out="x.gif"),
        tint(output={"lossless": True}),
    ]
    plain = read(folder, tint())[0][0].key
    assert {row.key for row in read(folder, *same[:3], same[4])[0]} == {plain}
    keys = [read(folder, given)[0][0].key for given in other]
    assert len({plain, *keys}) == 1 + len(other)
    (named,) = read(folder, {"id": "mine", "request": tint()})[0]
    assert (named.key, named.identity[:20]) == ("mine", plain)


def test_a_picture_painted_anew_makes_another_key(folder: Path, bouncing: Bouncing) -> None:
    frame = bouncing.video.frames[0].transpose(1, 2, 0)
    row = {
        "video": "clip.mp4",
        "method": "paint",
        "params": {"keyframe": ["0=k.png"], "box": ["0:8,8 40,40"]},
    }
    keys = set()
    for picture in (frame, 255 - frame):
        write_picture(picture, folder / "k.png", force=True)
        rows, faults = read(folder, row)
        assert not faults
        keys.add(rows[0].key)
    assert len(keys) == 2
    assert rows[0].request.params["keyframe"] == [f"0={folder / 'k.png'}"]


@pytest.mark.usefixtures("plugins")
def test_rows_from_outside_reach_only_the_folders_they_may_use(folder: Path, tmp_path: Path) -> None:
    (folder / "in").mkdir()
    (folder / "in" / "link.mp4").symlink_to(folder / "clip.mp4")
    (folder / "in" / "clip.mp4").write_bytes((folder / "clip.mp4").read_bytes())
    text = {"prompt": "x", "model": str(tmp_path)}
    rows, faults = read(
        folder,
        tint("in/clip.mp4"),
        tint(),
        tint("in/link.mp4"),
        tint("in/clip.mp4", out="out.mp4"),
        {"video": "in/clip.mp4", "method": "frame_by_frame", "params": text},
        roots=[folder / "in"],
    )
    assert [row.line for row in rows] == [1]
    assert [(fault.line, fault.message.partition(":")[0]) for fault in faults] == [
        (2, "video"), (3, "video"), (4, "out"), (5, "model"),
    ]  # fmt: skip


def words(model: str, video: str, **more: object) -> dict[str, object]:
    return {"video": video, "method": "frame_by_frame", "params": {"prompt": "x", "model": model}, **more}


def test_rows_of_a_model_and_a_clip_go_together_the_longest_first(folder: Path) -> None:
    rows, faults = read(
        folder,
        words("tiny:sd", "five.mp4"),
        words("tiny:svd", "clip.mp4"),
        words("tiny:sd", "clip.mp4"),
        words("tiny:sd", "five.mp4", seed=1),
        words("tiny:sd", "five.mp4", seed=1),
        words("tiny:sd", "clip.mp4", seed=1),
    )
    assert not faults
    assert [[row.line for row in group] for group in groups_of(rows)] == [[3, 6], [1, 4], [2]]
    assert [[row.line for row in group] for group in groups_of(rows, largest=1)] == [[3], [6], [1], [4], [2]]
    assert [group[0].line for group in groups_of(rows, keep_order=True)] == [1, 2, 3]
    parts = [{row.key for row in rows if in_shard(row, (i, 3))} for i in (1, 2, 3)]
    assert sum(map(len, parts)) == len({row.key for row in rows}) == 5
    for group in groups_of(rows):
        assert sum({row.key for row in group} <= part for part in parts) == 1
    assert Row.from_json(json.loads(json.dumps(rows[0].as_json()))) == rows[0]


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/"])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ParamsError):
        parse_shard(text)
    assert parse_shard("3/16") == (3, 16)


@pytest.mark.usefixtures("plugins")
def test_rows_are_made_of_clips_and_sweeps_and_read_back(folder: Path) -> None:
    patterns = [str(folder / "*.mp4")]
    made = make_rows(patterns, "tint", sweeps=["seed=0..2", "red=-0.5,0.5"], values=["steps=3"])
    write_rows(folder / "made.jsonl", made)
    rows, faults = read_rows(folder / "made.jsonl")
    assert not faults
    assert len({row.key for row in rows}) == 2 * 3 * 2
    assert {(row.request.seed, row.request.params["red"]) for row in rows} == {
        (seed, red) for seed in range(3) for red in (-0.5, 0.5)
    }
    assert {row.request.params["steps"] for row in rows} == {3}
    with pytest.raises(RequestError, match="no clip is called"):
        make_rows([str(folder / "*.mov")], "tint")
    with pytest.raises(ParamsError, match="'shade'"):
        make_rows(patterns, "tint", sweeps=["shade=1"])
