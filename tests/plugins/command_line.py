"""The command line in processes of their own: forked from this one, which has imported everything already."""

import gc
import importlib
import json
import os
import pkgutil
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch

import retouch
from retouch.apps import run_folder
from retouch.apps.cli import run

for found in pkgutil.walk_packages(retouch.__path__, "retouch."):  # so that no child has to import them
    if found.name != "retouch.__main__":
        importlib.import_module(found.name)

SCRIPT = Path(sys.executable).with_name("retouch")


@final
@dataclass(frozen=True)
class Ended:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def told(self) -> Mapping[str, object]:
        """What it printed for machines."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


@final
class Shell:
    """Calls the command line in a folder."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder = folder
        self.home = home

    def start(self, *arguments: object, largest_file: int | None = None) -> int:
        """A child at work on a command, as its process number; its words go into files of the folder."""
        gc.collect()  # what waits for it may hold threads, which no child has
        if child := os.fork():
            return child
        gc.freeze()
        code = 70
        try:
            torch.set_num_threads(1)  # renews torch's pool before threads race to do it
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            os.chdir(self.folder)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            if largest_file is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
            code = run([str(argument) for argument in arguments])
        except BaseException:  # the child must never go on as a second test session
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def __call__(self, *arguments: object, largest_file: int | None = None) -> Ended:
        """A command carried out."""
        _, status = os.waitpid(self.start(*arguments, largest_file=largest_file), 0)
        words = ((self.folder / name).read_text() for name in ("out", "err"))
        return Ended(os.waitstatus_to_exitcode(status), *words)

    def apart(self, *arguments: object) -> Ended:
        """A command carried out in a process of its own, which may have more threads than one.

        A forked child may not: the threads that it believes to have are its parent's.
        """
        child = self.new(*arguments)
        out, err = child.communicate()
        return Ended(child.returncode, out, err)

    def new(self, *arguments: object) -> "subprocess.Popen[str]":
        """The installed command in a process that shares nothing with this one.

        It hears an interrupt even where the tests themselves were started in the background, deaf to it.
        """
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        paths = (str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))
        return subprocess.Popen(
            [SCRIPT, *map(str, arguments)],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def runs(self) -> list[Path]:
        """The run folders."""
        return run_folder.run_folders()
