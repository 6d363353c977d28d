"""The documentation's pages: links lead somewhere, each page is on one shelf, and the site's menu has all of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    [*ROOT.glob("README*.md"), ROOT / "CHANGELOG.md", *DOCS.rglob("*.md"), *(ROOT / "models").rglob("README.md")]
)
CODE = ("orchestrator", "musetalk_agent", "musetalk_tools", "integrations", "tests", "tools", "docs/examples")
SHELVES = {"tutorial", "how-to", "reference", "explanation"}
ELSEWHERE = {"index.md": "", "index.zh-CN.md": "中文", "protocol.md": "Reference", "architecture.md": "Explanation"}
"""Pages that keep the addresses which clients and other repositories link to."""
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def text_of(page: Path) -> str:
    """The page without its code blocks."""
    return _FENCE.sub("", page.read_text("utf-8"))


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", text_of(page))


def anchors(page: Path) -> set[str]:
    """The headings as GitHub and the site address them."""
    headings = re.findall(r"^#+ +(.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def menu(entries: list[object], section: str = "") -> Iterator[tuple[str, str]]:
    """Pairs of top-level section and page of the site's `nav`."""
    for entry in entries:
        if isinstance(entry, str):
            yield section, entry
        else:
            assert isinstance(entry, dict)
            for title, value in entry.items():
                yield from menu(value if isinstance(value, list) else [value], section or str(title))


def test_each_page_is_on_one_shelf_and_in_the_menu() -> None:
    # BaseLoader: the file's tags name Python functions of mkdocs, which is not installed here
    config = yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader=yaml.BaseLoader)  # noqa: S506
    listed = [(section, page) for section, page in menu(config["nav"]) if not page.startswith("repository/")]
    assert len(listed) == len({page for _, page in listed})
    pages = {page for page in DOCS.rglob("*.md") if page.parent.name != "decisions"}  # which tools/docs_hooks.py lists
    assert {page for _, page in listed} == {page.relative_to(DOCS).as_posix() for page in pages}
    for section, page in listed:
        folder = page.split("/")[0]
        if page in ELSEWHERE:
            assert section == ELSEWHERE[page], page
        else:
            assert folder in SHELVES and section.lower() == folder, page


def test_the_home_page_lists_every_page_but_the_decisions() -> None:
    listed = {(DOCS / link).resolve() for link in links(DOCS / "index.md") if ":" not in link}
    wanted = {
        page
        for page in DOCS.rglob("*.md")
        if page.parent.name != "decisions"
        and not page.name.startswith("index.")
        and not page.name.endswith(".zh-CN.md")
    }
    assert {page.relative_to(ROOT).as_posix() for page in wanted - listed} == set()


def test_files_that_pages_name_exist() -> None:
    """Code is named as `folder/file.py`; a page that still names a file that has moved misleads."""
    listed = ["/" + path.relative_to(ROOT).as_posix() for folder in CODE for path in (ROOT / folder).rglob("*.*")]
    for page in PAGES:
        if page.name in ("CHANGELOG.md", "tests.md") or page.parent.name == "decisions":  # which tell of the past
            continue
        for name in re.findall(r"`((?:[\w.-]+/)+[\w-]+\.(?:py|js|dart))`", text_of(page)):
            assert any(path.endswith("/" + name) for path in listed), f"{page.relative_to(ROOT)} names {name}"
