"""Commands that pages and messages name are there to be typed."""

from __future__ import annotations

import re
from pathlib import Path

from musetalk_agent.weights import Manifest

ROOT = Path(__file__).resolve().parents[2]
_FETCHES = re.compile(r"musetalk-agent fetch-models((?: [a-z]+)+)|\bfetch-models ([a-z]+)`")


def test_the_groups_that_are_to_be_fetched_are_in_the_manifest() -> None:
    groups, named = set(Manifest.load().groups), set()
    for folder, kind in (("docs", "*.md"), ("models", "*.md"), ("musetalk_agent", "*.py"), (".", "README*.md")):
        for path in (ROOT / folder).glob(kind if folder == "." else f"**/{kind}"):
            for found in _FETCHES.finditer(path.read_text("utf-8")):
                named |= {(word, path.name) for word in (found[1] or found[2]).split()}
    assert {"musetalk", "fast"} <= {word for word, _ in named}
    assert not {(word, name) for word, name in named if word not in groups}
