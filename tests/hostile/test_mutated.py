"""Mutated clips, pictures, atlases, requests and run folders: a clean answer, and nothing touched outside.

Every piece of work runs under the watch of `watched`: ten seconds, a gigabyte, no file outside the folder, no
program, no socket. A seed names a piece; the slow tests take many more of them.
"""

import contextlib
import io
import json
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import Shell
from damage import damaged, healthy
from watched import watched

from retouch.apps.cli import run
from retouch.atlas.file import load_atlas
from retouch.errors import RetouchError
from retouch.media.io import read, read_picture, write
from retouch.media.probe import probe
from retouch.testing import Bouncing
from retouch.video import Video

ODD: tuple[object, ...] = (
    None,
    True,
    -1,
    0,
    10**12,
    1e999,
    float("nan"),
    "",
    "../../x",
    "\0",
    "x" * 5000,
    [],
    {},
    [[]],
    {"a": 1},
)
"""What may stand in the place of a value."""

Look = Callable[[Path], object]


def outcome(look: Look, path: Path) -> str:
    """How a look at a file ends; errors that are not ours go on, and end the child."""
    try:
        look(path)
    except RetouchError as error:
        return "refused" if error.hint and str(error) else f"no hint: {error}"
    return "clean"


def check_files(files: dict[str, bytes], looks: tuple[Look, ...], seeds: range, inside: Path) -> None:
    """Each seed damages one of the files, and everybody looks at it."""
    names = sorted(files)

    def work(seed: int) -> str:
        name = names[seed % len(names)]
        path = Path(f"damaged{Path(name).suffix}")
        path.write_bytes(damaged(files[name], random.Random(seed)))
        return " ".join(outcome(look, path) for look in looks)

    seen = watched(work, seeds, inside)
    seen.check()
    assert set(" ".join(seen.said).split()) == {"clean", "refused"}


def odd_value(tree: object, chance: random.Random) -> object:
    """The tree with one of its values, wherever it stands, replaced by an odd one, or with one left out."""
    if isinstance(tree, dict) and tree and chance.random() < 0.9:
        key = chance.choice(sorted(tree))
        if chance.random() < 0.15:
            return {name: value for name, value in tree.items() if name != key}
        return {**tree, key: odd_value(tree[key], chance)}
    if isinstance(tree, list) and tree and chance.random() < 0.9:
        place = chance.randrange(len(tree))
        return [*tree[:place], odd_value(tree[place], chance), *tree[place + 1 :]]
    return chance.choice(ODD)


def mutated_text(text: bytes, chance: random.Random) -> bytes:
    """JSON with an odd value, or with damaged bytes."""
    if chance.random() < 0.7:
        return json.dumps(odd_value(json.loads(text), chance)).encode()
    return damaged(text, chance)


def mutated_archive(content: bytes, chance: random.Random) -> bytes:
    """An archive with damaged bytes, or made anew around one member that says or holds something else."""
    if chance.random() < 0.3:
        return damaged(content, chance)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = chance.choice([*members, *(["atlas.json"] * len(members) if "atlas.json" in members else [])])
    change = mutated_text if name.endswith(".json") else damaged
    members[name] = change(members[name], chance)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for member, held in members.items():
            archive.writestr(member, held)
    return made.getvalue()


def check_atlases(shell: Shell, bouncing: Bouncing, seeds: range, inside: Path) -> None:
    write(Video(np.repeat(bouncing.mask, 3, axis=1), bouncing.video.fps), shell.folder / "mask")
    made = shell("atlas", "fit", "clip.mp4", "--mask", "mask", "-o", "whole.atlas")
    assert made.code == 0, made.err
    whole = (shell.folder / "whole.atlas").read_bytes()

    def work(seed: int) -> str:
        Path("mutated.atlas").write_bytes(mutated_archive(whole, random.Random(seed)))
        return outcome(load_atlas, Path("mutated.atlas"))

    seen = watched(work, seeds, inside)
    seen.check()
    assert set(seen.said) == {"clean", "refused"}


def called(*arguments: str) -> str:
    """How a command ends, and its words, if they are such as no user should see."""
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):
        code = run(list(arguments))
    said = err.getvalue()
    strange = "Traceback" in said or "error: unexpected" in said or (code and "hint:" not in said)
    return f"strange: {arguments} {said}" if strange else str(code)


def check_runs(shell: Shell, seeds: range, inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests, and run folders of which any file may hold anything, are carried out, resumed and shown."""
    made = shell("edit", "paint", "clip.mp4", "--keyframe", "0=k.png", "--mask", "m.png", "--seed", "3")
    assert made.code == 2  # there is no such picture: the run has begun, and has failed
    (folder,) = shell.runs
    request = json.loads((folder / "request.json").read_text())
    inside.mkdir()
    home = inside / "home"
    shutil.copy(shell.folder / "clip.mp4", inside)
    request["video"], request["params"] = str(inside / "clip.mp4"), {"keyframe": [], "tolerance": 4}
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    files["request.json"] = json.dumps(request).encode()
    monkeypatch.setenv("RETOUCH_HOME", str(home))

    def work(seed: int) -> str:
        chance = random.Random(seed)
        shutil.rmtree(home, ignore_errors=True)
        ours = home / "runs" / folder.name
        ours.mkdir(parents=True)
        name = chance.choice([*files, *["request.json"] * len(files)])
        for each, content in files.items():
            (ours / each).write_bytes(content)
        (ours / name).write_bytes(mutated_text(files[name], chance) if ".json" in name else b"\0{")
        Path("request.json").write_bytes(mutated_text(files["request.json"], chance))
        commands = (
            ("runs",),
            ("resume", folder.name),
            ("report", folder.name, "-o", "page.html", "--force"),
            ("edit", "--from", "request.json", "--dry-run"),
        )
        return " ".join(called(*command) for command in commands)

    seen = watched(work, seeds, inside)
    seen.check()
    assert [line for line in seen.said if "strange" in line] == []
    assert any("0 2" in line for line in seen.said)  # `runs` goes on where `resume` refuses


def test_some_mutated_clips_and_pictures_are_read_or_refused(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    files = healthy(tmp_path / "files")
    check_files(files, (read, probe), range(20_000, 20_060), tmp_path / "in")
    stills = {name: files[name] for name in files if name.startswith(("still", "cmyk", "palette"))}
    check_files(stills, (read_picture,), range(30_000, 30_030), tmp_path / "in")


def test_some_mutated_atlases_are_loaded_or_refused(shell: Shell, bouncing: Bouncing, tmp_path: Path) -> None:
    check_atlases(shell, bouncing, range(30), tmp_path / "in")


def test_some_mutated_runs_are_shown_or_refused(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_runs(shell, range(10), tmp_path / "in", monkeypatch)


@pytest.mark.slow
def test_three_thousand_mutated_clips_are_read_or_refused(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    check_files(healthy(tmp_path / "files"), (read, probe), range(40_000, 43_000), tmp_path / "in")


@pytest.mark.slow
def test_two_hundred_mutated_pictures_are_read_or_refused(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    files = healthy(tmp_path / "files")
    stills = {name: files[name] for name in files if name.startswith(("still", "cmyk", "palette"))}
    check_files(stills, (read_picture, read), range(50_000, 50_200), tmp_path / "in")


@pytest.mark.slow
def test_three_hundred_mutated_atlases_are_loaded_or_refused(
    shell: Shell, bouncing: Bouncing, tmp_path: Path
) -> None:
    check_atlases(shell, bouncing, range(1_000, 1_300), tmp_path / "in")


@pytest.mark.slow
def test_two_hundred_mutated_runs_are_shown_or_refused(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_runs(shell, range(2_000, 2_200), tmp_path / "in", monkeypatch)
