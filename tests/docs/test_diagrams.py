"""Each Mermaid diagram of the documentation can be drawn, by the Mermaid that the site serves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.browser.chromium import browser, find_chromium

ROOT = Path(__file__).resolve().parents[2]
MERMAID = Path.home() / ".cache" / "musetalk-livekit" / "docs" / "mermaid.min.js"
DIAGRAMS = [
    (path.relative_to(ROOT).as_posix(), diagram)
    for path in sorted((ROOT / "docs").rglob("*.md"))
    for diagram in re.findall(r"^```mermaid\n(.*?)^```$", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)
]
DRAWN = """mermaid.render('drawn', %r).then(
  ({svg}) => svg.includes('Unsupported markdown') ? 'a label is a Markdown list' : '', String)"""
"""Empty, or why the diagram cannot be drawn."""


def test_the_main_flows_have_a_diagram() -> None:
    pages = {page for page, _ in DIAGRAMS}
    assert pages >= {
        "docs/architecture.md",
        "docs/protocol.md",
        "docs/explanation/failover.md",
        "docs/explanation/survival.md",
    }


@pytest.mark.browser
async def test_diagrams_can_be_drawn() -> None:
    program = find_chromium()
    if program is None or not MERMAID.is_file():
        pytest.skip("no Chromium, or no Mermaid: `tools/setup docs` fetches it")
    async with browser(program) as page:
        await page.run(MERMAID.read_text("utf-8") + "\n;mermaid.initialize({startOnLoad: false}), null")
        assert "Parse error" in await page.run(DRAWN % "flowchart LR\n A --> --> B\n")
        assert await page.run(DRAWN % "flowchart LR\n A[+ B]\n") != ""
        for name, diagram in DIAGRAMS:
            assert await page.run(DRAWN % diagram) == "", f"{name}:\n{diagram}"
