"""A fit that is killed in any of its stages goes on to the same bytes as one that never was."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from retouch.atlas.atlas import Atlas, PackedMattes
from retouch.atlas.decompose import STAGES, kept_atlas
from retouch.atlas.file import save_atlas
from retouch.atlas.pyramid import AtlasSettings
from retouch.compute import Compute
from retouch.events import Advanced, Event, Started
from retouch.run import Run
from retouch.video import Video

SETTINGS = AtlasSettings(steps=2, side=60, gain=2)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A forked child has one thread, and last digits depend on how many there are."""
    with Compute(device="cpu", threads=1).repeatable():
        yield


def fitted(clip: Video, mattes: tuple[PackedMattes, ...], folder: Path, heard: list[Event]) -> Atlas:
    run = Run.alone(folder, compute=Compute(device="cpu"), listen=heard.append)
    return kept_atlas(clip, mattes, ("object", "background"), SETTINGS, run=run)


def killed_in(stage: str, clip: Video, mattes: tuple[PackedMattes, ...], folder: Path) -> None:
    """Fit in a process of its own, which dies as soon as something of a stage is done."""

    def die(event: Event) -> None:
        if isinstance(event, Advanced) and event.stage == f"atlas: {stage}":
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        run = Run.alone(folder, compute=Compute(device="cpu"), listen=die)
        kept_atlas(clip, mattes, ("object", "background"), SETTINGS, run=run)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


def test_a_fit_killed_in_every_stage_in_turn_ends_with_the_same_bytes(
    clip: Video, mattes: tuple[PackedMattes, ...], tmp_path: Path
) -> None:
    for stage in STAGES:
        killed_in(stage, clip, mattes, tmp_path / "killed")
    heard: list[Event] = []
    broken = save_atlas(fitted(clip, mattes, tmp_path / "killed", heard), tmp_path / "broken.atlas")
    begun = [event.stage for event in heard if isinstance(event, Started)]
    assert begun == [f"atlas: {STAGES[-1]}"]  # what was done before the last kill is not done again
    whole = save_atlas(fitted(clip, mattes, tmp_path / "whole", []), tmp_path / "whole.atlas")
    assert broken.read_bytes() == whole.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_fit_killed_once_ends_with_the_same_bytes(
    clip: Video, mattes: tuple[PackedMattes, ...], tmp_path: Path, stage: str
) -> None:
    killed_in(stage, clip, mattes, tmp_path / "killed")
    broken = save_atlas(fitted(clip, mattes, tmp_path / "killed", []), tmp_path / "broken.atlas")
    whole = save_atlas(fitted(clip, mattes, tmp_path / "whole", []), tmp_path / "whole.atlas")
    assert broken.read_bytes() == whole.read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command_killed_after_every_checkpoint_ends_with_the_same_bytes(
    clip: Video, tmp_path: Path
) -> None:
    import subprocess
    import sys

    from retouch.media.io import Encoding, write

    source = write(clip, tmp_path / "clip.mkv", encoding=Encoding(lossless=True))
    outline = "4:35,25 79,25 79,55 35,55"
    command = [
        str(Path(sys.executable).with_name("retouch")),
        "atlas",
        "fit",
        str(source),
        "--polygon",
        outline,
    ]
    command += ["--set", "steps=2", "--device", "cpu", "--force", "-o"]

    def environment(name: str) -> dict[str, str]:
        return {**os.environ, "RETOUCH_HOME": str(tmp_path / name)}

    subprocess.run([*command, str(tmp_path / "whole.atlas")], check=True, env=environment("whole"))
    kills, seen = 0, 0.0
    while True:
        child = subprocess.Popen([*command, str(tmp_path / "broken.atlas")], env=environment("broken"))
        while child.poll() is None:
            last = seen
            for path in (tmp_path / "broken").glob("store/atlas/.*.safetensors"):
                with contextlib.suppress(FileNotFoundError):  # a draft that was renamed meanwhile
                    last = max(last, path.stat().st_mtime)
            if last > seen:
                seen, kills = last, kills + 1
                child.kill()
                break
            time.sleep(0.002)
        if child.wait() == 0:
            break
    assert kills >= len(STAGES) - 2  # a quick stage may be over before it is seen
    assert (tmp_path / "broken.atlas").read_bytes() == (tmp_path / "whole.atlas").read_bytes()
