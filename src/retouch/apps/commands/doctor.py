"""`retouch doctor`: what this machine offers, where things lie, and which plug-ins failed and why."""

import importlib.metadata
import json
import os
import platform
import shutil
import sys

import click

from retouch import __version__, registry
from retouch.compute import free_memory, heeds_alignment, in_words
from retouch.places import home, offline

_LIBRARIES = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "safetensors",
    "numpy",
    "av",
    "opencv-python-headless",
)

_PLUGINS = {
    registry.GROUP: "retouch.spec:MethodSpec",
    "retouch.metrics": "retouch.metrics.registry:Metric",
    "retouch.models": "builtins:type",
}
"""Each group of entry points with what they must name."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of words.")
def doctor(*, as_json: bool) -> None:
    """Say what this machine offers and what is wrong with it."""
    facts = {
        "retouch": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        **{name: _package_version(name) for name in _LIBRARIES},
        "devices": ", ".join(_list_devices()),
        "kernels": _kernels(),
        "free memory": in_words(free_memory()),
        "home": str(home()),
        "models": str(home() / "models"),
        "runs": str(home() / "runs"),
        "kept results": str(home() / "store"),
        "free disk": in_words(_free_disk()),
        "network": "forbidden (RETOUCH_OFFLINE)" if offline() else "only when a download is asked for",
        "methods": ", ".join(registry.names()),
    }
    failed = {
        name: reason
        for group, kind in _PLUGINS.items()
        for name, reason in registry.faults(group, kind).items()
    }
    if as_json:
        click.echo(json.dumps({**facts, "failed plug-ins": failed}))
        return
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        click.echo(f"{name:{width}}  {value}")
    for name, reason in failed.items():
        click.echo(f"plug-in {name} cannot be used: {reason}")
    if not failed:
        click.echo("no plug-in failed")


def _package_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _list_devices() -> list[str]:
    import torch

    found = [f"cpu ({torch.get_num_threads()} threads)"]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        found.append(f"cuda:{index} {facts.name} ({in_words(facts.total_memory)})")
    if sys.platform == "darwin" and torch.backends.mps.is_available():
        found.append("mps")
    return found


def _kernels() -> str:
    import torch

    same = "not always the same bytes" if heeds_alignment() else "the same bytes"
    mode = f"{torch.backends.cpu.get_cpu_capability()}, MKL_CBWR={os.environ['MKL_CBWR']}"
    return f"{mode}: {same} for the same request and threads"


def _free_disk() -> int:
    place = home()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
