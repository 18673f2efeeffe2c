"""The authors' RAFT checkpoints become folders that are read without running anything in them."""

import runpy
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner, Result

from retouch.models.flow_raft import LayerWidths, RaftFlow, RaftNetwork

TINY = LayerWidths(4, (4, 6, 8), 8, 8, 8, 2, (8, 6), (6, 4), 10, 8)


@pytest.fixture(scope="module")
def command() -> click.Command:
    tool = Path(__file__).parents[3] / "tools" / "convert" / "raft.py"
    found = runpy.run_path(str(tool))["main"]
    assert isinstance(found, click.Command)
    return found


def run(command: click.Command, *words: object) -> Result:
    return CliRunner().invoke(command, [str(word) for word in words])


def test_a_checkpoint_becomes_a_folder_with_the_same_weights(command: click.Command, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = RaftNetwork(TINY)
    saved = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save(saved, tmp_path / "raft-things.pth")
    done = run(command, tmp_path / "raft-things.pth", "-o", tmp_path / "raft")
    assert done.exit_code == 0, done.output
    read = RaftFlow.from_pretrained(str(tmp_path / "raft")).model.state_dict()
    assert all(torch.equal(value, read[name].cpu()) for name, value in model.state_dict().items())
    again = run(command, tmp_path / "raft-things.pth", "-o", tmp_path / "raft")
    assert again.exit_code == 1
    assert "exists" in again.output


@pytest.mark.parametrize("content", ["nothing", "others"])
def test_what_is_no_checkpoint_of_a_raft_is_refused(
    command: click.Command, tmp_path: Path, content: str
) -> None:
    if content == "others":
        torch.save({"weight": torch.zeros(3)}, tmp_path / "raft.pth")
    else:
        (tmp_path / "raft.pth").write_bytes(b"nothing")
    refused = run(command, tmp_path / "raft.pth", "-o", tmp_path / "raft")
    assert refused.exit_code == 1
    assert "no weights of a RAFT" in refused.output
    assert not (tmp_path / "raft").exists()
