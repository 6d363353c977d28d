"""Every example that a page marks is run by a test, and taken to the letter."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.clients.printed import printed
from tests.examples.printed import ROOT, example, examples

RUN_BY = {
    "http": ("tests/examples/test_http.py", 'example("http")'),
    "javascript": ("tests/browser/test_browser_client.py", 'printed("docs/how-to/javascript.md", "html")'),
    "livekit-agents": (
        "tests/integrations/livekit_agents/test_example.py",
        'printed("docs/how-to/livekit-agents.md", "python")',
    ),
    "pipecat": (
        "tests/integrations/pipecat/test_example.py",
        'printed("docs/how-to/pipecat.md", "python")',
    ),
}
"""The one test that runs an example, and how it takes the text: by its marker, or as the first such block of its page."""


def test_every_marked_example_is_run_by_one_test() -> None:
    found = examples()
    assert set(found) <= set(RUN_BY)
    for name, (path, taken) in RUN_BY.items():
        assert taken in (ROOT / path).read_text(), f"{path} does not take {name!r}"
        page = re.fullmatch(r'printed\("(.+)", "(.+)"\)', taken)
        run = printed(page[1], page[2]) if page else found[name].code
        assert name not in found or found[name].code == run, f"{found[name].places} print another {name!r} than is run"


def test_every_example_of_the_readme_that_is_code_is_marked() -> None:
    text = (ROOT / "README.md").read_text()
    marked = {each.code for each in examples().values() if "README.md" in each.places}
    blocks = re.findall(r"^```(?:python|javascript|js|html|dart)\n(.*?\n)```", text, re.DOTALL | re.MULTILINE)
    assert blocks and set(blocks) == marked


def test_the_block_is_taken_to_the_letter(tmp_path: Path) -> None:
    code = 'if True:\n    print("`a`")  # é\n\n\nprint(1)\n'
    page = tmp_path / "page.md"
    page.write_text(
        f"# Page\n```python\nother()\n```\n<!-- example: one -->\n\n```python\n{code}```\ntext\n```\nmore\n```\n"
    )
    (found,) = examples([page]).values()
    assert (found.name, found.language, found.code, found.places) == ("one", "python", code, ("page.md",))


def test_what_is_wrong_with_a_marker_is_reported(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- example: one -->\nwords\n```python\npass\n```\n")
    with pytest.raises(ValueError, match="no fenced block follows the marker of 'one'"):
        examples([page])
    page.write_text("<!-- example: one -->\n```python\npass\n```\n")
    other = tmp_path / "other.md"
    other.write_text("<!-- example: one -->\n```python\n...\n```\n")
    with pytest.raises(ValueError, match=r"other.md: 'one' is not what page.md prints"):
        examples([page, other])
    with pytest.raises(KeyError):
        example("nowhere")
