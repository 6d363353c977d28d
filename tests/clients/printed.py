"""Examples out of the documentation, as they are printed there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def printed(page: str, language: str, number: int = 0) -> str:
    """The text of a page's `number`-th fenced block in a language, as a reader would copy it. Raises IndexError without one."""
    text = (ROOT / page).read_text("utf-8")
    blocks: list[str] = re.findall(rf"^```{re.escape(language)}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return blocks[number]


def lines(example: str) -> int:
    """How many lines of code a reader must write: blank ones do not count."""
    return sum(bool(line.strip()) for line in example.splitlines())
