"""The Chinese pages have the structure of the English ones: headings, lists, tables, code and links, in the same order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUFFIX = ".zh-CN.md"
TRANSLATED = ("README.md", "docs/index.md", "docs/tutorial/first-face.md")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def chinese(page: str) -> str:
    return page.removesuffix(".md") + SUFFIX


def structure(text: str) -> list[str]:
    """One entry for each heading, list item, table row and code block; code is kept to the letter."""
    parts: list[str] = []
    for part in re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL):
        if part.startswith("```"):
            parts.append(part)
            continue
        for line in part.splitlines():
            if line.startswith("|"):
                parts.append(f"row of {len(re.split(r'(?<!`) [|] ', line))}")
            elif found := re.match(r"#+ |- |\d+\. |<!-- .* -->", line):
                parts.append(found[0])
    return parts


def links(text: str) -> list[str]:
    """Targets in order; those of a translated page as the English page's."""
    return [target.replace(SUFFIX, ".md") for target in re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", text))]


@pytest.mark.parametrize("page", TRANSLATED)
def test_a_chinese_page_has_the_english_structure(page: str) -> None:
    english, translated = ((ROOT / name).read_text("utf-8") for name in (page, chinese(page)))
    assert structure(translated) == structure(english)
    assert links(translated) == links(english)
    codes = [sorted(re.findall(r"`[^`\n]+`", _FENCE.sub("", text))) for text in (translated, english)]
    assert codes[0] == codes[1]
    assert sum("\u4e00" <= letter <= "\u9fff" for letter in translated) > 150


def test_links_of_chinese_pages_stay_in_chinese_where_there_is_a_page() -> None:
    for page in TRANSLATED:
        path = ROOT / chinese(page)
        for target in re.findall(r"\]\(([^)\s#]+)", path.read_text("utf-8"))[1:]:
            other = (path.parent / target).with_name(Path(target).name.removesuffix(".md") + SUFFIX)
            assert target.endswith(SUFFIX) or not other.exists(), f"{path.name}: {target}"


def test_no_other_page_is_translated_without_this_test() -> None:
    found = {
        path.relative_to(ROOT).as_posix() for path in [*ROOT.glob(f"*{SUFFIX}"), *(ROOT / "docs").rglob(f"*{SUFFIX}")]
    }
    assert found == {chinese(page) for page in TRANSLATED}
