"""A Ray cluster of several nodes on this machine, in a process of its own: `python ray_nodes.py 3`.

It says where the cluster is, then does what its input says, a word a line: `lose` ends a node as if its
machine were gone, `add` starts another. It ends when the input does. `Nodes` is for whoever starts it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOM = 80_000_000
"""Bytes of shared memory for each node; rows are words and paths."""
START = 300.0
"""Seconds within which nodes are there, where the machine is busy."""
ALONE = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""What has nodes listen on this machine alone, and report nothing."""


class NoNodes(Exception):
    """Ray does not start nodes on this machine."""


class Nodes:
    """A cluster, as its owner sees it."""

    def __init__(self, count: int, variables: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(count)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address = self.answer()

    def answer(self) -> str:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("{"):
                return str(json.loads(line)["address"])
        self.close()
        raise NoNodes

    def do(self, order: str) -> None:
        """Have a node lost or added."""
        assert self.process.stdin
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()
        self.answer()

    def close(self) -> None:
        self.process.communicate()


def start_nodes(count: int, variables: dict[str, str]) -> Nodes:
    """Start a cluster, twice if need be: Ray waits half a minute for each part, which may not be enough."""
    try:
        return Nodes(count, variables)
    except NoNodes:
        return Nodes(count, variables)


def variables_of(folder: Path) -> dict[str, str]:
    """What tells nodes and drivers of each other; the folder's name must be short enough for sockets."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text("0123456789abcdef" * 4)
    shared = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_TMPDIR": str(folder)}
    ours = {"RETOUCH_OFFLINE": "1", "RETOUCH_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    return {**ALONE, **shared, **ours}


def main() -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "include_dashboard": False,
            "object_store_memory": ROOM,
            "wait": False,
        },
    )

    def add() -> object:
        return cluster.add_node(num_cpus=1, object_store_memory=ROOM, wait=False)

    nodes = [add() for _ in range(int(sys.argv[1]))]
    cluster.wait_for_nodes(START)
    tell(cluster.address)
    for order in sys.stdin:
        if order.strip() == "lose":
            cluster.remove_node(nodes.pop(), allow_graceful=False)
        else:
            nodes.append(add())
            cluster.wait_for_nodes(START)
        tell(cluster.address)
    cluster.shutdown()


def tell(address: str) -> None:
    sys.stdout.write(json.dumps({"address": address}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
