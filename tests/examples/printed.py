"""Examples as they are printed: fenced blocks of README.md and docs/ that follow a comment `<!-- example: NAME -->`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_MARKER = re.compile(r"^<!-- example: (?P<name>[a-z0-9-]+) -->[ \t]*$", re.MULTILINE)
_BLOCK = re.compile(r"\s*\n```(?P<language>\w+)\n(?P<code>.*?\n)```[ \t]*$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Example:
    """`code` is the block to the letter; `places` are the pages that print it."""

    name: str
    language: str
    code: str
    places: tuple[str, ...]


def pages() -> list[Path]:
    """README.md, its translation and everything under docs/."""
    return [*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def examples(paths: Iterable[Path] | None = None) -> dict[str, Example]:
    """Every marked example. Raises ValueError for a marker without a block, and for one name with two texts."""
    found: dict[str, Example] = {}
    for path in pages() if paths is None else paths:
        text = path.read_text()
        place = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
        for marker in _MARKER.finditer(text):
            name, block = marker["name"], _BLOCK.match(text, marker.end())
            if block is None:
                raise ValueError(f"{place}: no fenced block follows the marker of {name!r}")
            before = found.get(name)
            if before is not None and before.code != block["code"]:
                raise ValueError(f"{place}: {name!r} is not what {before.places[0]} prints")
            places = (*before.places, place) if before else (place,)
            found[name] = Example(name, block["language"], block["code"], places)
    return found


def example(name: str) -> Example:
    """One of them. Raises KeyError when no page prints it."""
    return examples()[name]
