"""What the licences in the catalogue allow, in one line each: a reminder, not legal advice."""

from collections.abc import Mapping
from typing import Final

LICENCES: Final[Mapping[str, str]] = {
    "Apache-2.0": "free for any use; keep the notices",
    "MIT": "free for any use; keep the notices",
    "CC-BY-NC-4.0": "no commercial use; name the authors",
    "creativeml-openrail-m": "commercial use allowed; the listed harmful uses are forbidden, also downstream",
    "openrail++": "commercial use allowed; the listed harmful uses are forbidden, also downstream",
    "openrail": "commercial use allowed; the listed harmful uses are forbidden, also downstream",
    "stabilityai-community": "free below one million US dollars of yearly revenue, by agreement above",
}


def meaning(licence: str) -> str:
    """What `licence` allows, or where to look when it is unknown here."""
    return LICENCES.get(licence, "unknown here: read it at the model's source before use")
