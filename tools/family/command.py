"""The command line that every training of the family has, and how it tells its figures."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path


def tell(row: Mapping[str, object]) -> None:
    """Print figures as a line."""
    print(json.dumps(row), flush=True)


def options(description: str | None, images: int) -> argparse.ArgumentParser:
    """The command line that every training has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path(".family"))
    parser.add_argument("--size", type=int, default=64, choices=(64, 128))
    parser.add_argument("--images", type=int, default=images, help="stop when so many have been seen")
    parser.add_argument("--device", default="cpu")
    return parser
