"""Where and how exactly a request is computed.

`Compute` is part of the request and imports nothing heavy; torch is asked only when a device is really
chosen.
"""

import contextlib
import ctypes
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, final

from pydantic import BaseModel, ConfigDict, Field, field_validator

from retouch.errors import DeviceUnavailable

if TYPE_CHECKING:
    import torch

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_SHARE_OF_FREE_MEMORY = 0.85
"""The rest stays for the page cache and for whatever else runs."""
_CBWR_BRANCH = _CBWR_OFF = 1
"""MKL's numbers for the question and for the answer, from its mkl_types.h."""


@final
class Compute(BaseModel):
    """Device, precision and limits of a run.

    Example:
        >>> Compute(device="cpu").dtype
        'auto'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1 or mps.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto", description="Precision of the networks; auto is half on a GPU and full on a CPU."
    )
    offload: Literal["none", "model", "sequential"] = Field(
        default="none", description="Keep networks in main memory until they are called."
    )
    memory: str = Field(
        default="auto", description="How much memory the run may take: auto, or for example 8GB."
    )
    deterministic: bool = Field(default=True, description="Same request, same bytes; may cost some speed.")
    threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Threads of the processor, on which last digits depend; 0 is as many as torch takes.",
    )

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
            raise ValueError("input should be auto, cpu, cuda, cuda:N or mps")
        return device

    @field_validator("memory")
    @classmethod
    def _known_memory(cls, memory: str) -> str:
        if memory != "auto":
            as_bytes(memory)
        return memory

    def torch_device(self) -> "torch.device":
        """The device that this machine offers for what was asked.

        Raises:
            DeviceUnavailable: it is not there.
        """
        import torch

        if self.device == "auto":
            if torch.cuda.is_available():
                return torch.device("cuda")
            return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
        there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        kind, _, index = self.device.partition(":")
        if not there[kind] or (index and int(index) >= torch.cuda.device_count()):
            raise DeviceUnavailable(f"there is no device {self.device} here", hint="try --device cpu")
        return torch.device(self.device)

    def torch_dtype(self) -> "torch.dtype":
        """The precision of the networks on that device."""
        import torch

        if self.dtype == "auto":
            return torch.float16 if self.torch_device().type == "cuda" else torch.float32
        return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[self.dtype]

    def budget(self) -> int:
        """Bytes that a run may take in main memory."""
        if self.memory != "auto":
            return as_bytes(self.memory)
        return int(free_memory() * _SHARE_OF_FREE_MEMORY)

    def here(self) -> Self:
        """Return it with the threads that it takes here, as a request that is to replay is kept."""
        import torch

        return self.model_copy(update={"threads": self.threads or torch.get_num_threads()})

    @contextlib.contextmanager
    def repeatable(self) -> Iterator[None]:
        """Make torch choose repeatable kernels where that was asked, and its threads; undo both."""
        import torch

        threads = torch.get_num_threads()
        before = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        torch.use_deterministic_algorithms(self.deterministic, warn_only=True)
        if self.threads and self.threads != threads:  # to set what is set changes how MKL shares its work
            torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def heeds_alignment() -> bool:
    """Return whether kernels of the processor give other last digits where numbers lie elsewhere in memory.

    Only MKL's can. It reads MKL_CBWR, which `import retouch` sets, at its first call: whoever multiplied
    matrices before is too late, and this asks MKL itself.
    """
    import torch

    if not torch._C.has_mkl:
        return False
    library = ctypes.CDLL(torch._C.__file__)
    asked = next((n for n in ("mkl_serv_cbwr_get", "MKL_CBWR_Get") if hasattr(library, n)), None)
    return asked is not None and library[asked](_CBWR_BRANCH) == _CBWR_OFF


def as_bytes(text: str) -> int:
    """The number of bytes that a text such as 8GB means.

    Example:
        >>> as_bytes("1.5 GB") == 3 * 2**29
        True
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*", text.lower())
    if not match:
        raise ValueError(f"{text!r} is no amount of memory; write for example 8GB")
    return int(float(match[1]) * _UNITS[match[2]])


def in_words(size: float) -> str:
    """A number of bytes as a person reads it.

    Example:
        >>> in_words(13 * 2**20)
        '13.0 MB'
    """
    for unit in ("bytes", "KB", "MB", "GB"):
        if abs(size) < 1024 or unit == "GB":
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError


def free_memory() -> int:
    """Bytes of main memory that can be had now, bounds of a container included."""
    free = 4 * 2**30
    if "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", {}):
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    facts = Path("/proc/meminfo")
    if facts.exists():
        lines = dict(line.split(":", 1) for line in facts.read_text().splitlines() if ":" in line)
        free = int(lines["MemAvailable"].split()[0]) * 1024
    bound = Path("/sys/fs/cgroup/memory.max")
    used = Path("/sys/fs/cgroup/memory.current")
    if bound.exists() and used.exists() and (limit := bound.read_text().strip()) != "max":
        free = min(free, max(0, int(limit) - int(used.read_text()) + _reclaimable_bytes()))
    return free


def _reclaimable_bytes() -> int:
    """Bytes that a container counts as used and gives up on demand: files it has read before."""
    facts = Path("/sys/fs/cgroup/memory.stat")
    lines = facts.read_text().splitlines() if facts.exists() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
