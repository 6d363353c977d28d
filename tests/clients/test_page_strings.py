"""The page's texts: both languages have the same keys and placeholders, and nothing of the page is outside the tables."""

from __future__ import annotations

import re

from tests.clients.printed import ROOT

WEB = ROOT / "orchestrator" / "web"
PAGE = (WEB / "index.html").read_text("utf-8")
SOURCES = [(WEB / name).read_text("utf-8") for name in ("gallery-texts.js", "strings.js")]
MODULES = (
    "add-avatar",
    "app",
    "avatar-clips",
    "avatar-dialog",
    "camera",
    "captions-view",
    "choices",
    "chooser",
    "credentials",
    "gallery",
    "hold-button",
    "microphone",
    "panel",
    "preview",
    "problem-view",
    "recording",
    "say",
    "session-view",
    "talk",
)
"""The page's own modules. The published client's errors are English, and translated by their code."""
SPOKEN = {"Hello! What would you like to talk about?"}
"""The avatar says it, in the language that the embedded models understand."""
PREFIXES = ("code.", "funnel.", "chip.", "camera.")
"""Keys that are made at run time."""


def table(name: str) -> dict[str, str]:
    entries: list[tuple[str, str]] = []
    for source in SOURCES:
        start = source.index(f"const {name} = {{")
        body = source[start : source.index("\n};", start)]
        found = re.findall(r'^  "?([\w.]+)"?: "(.*)",$', body, re.MULTILINE)
        assert len(found) == sum(1 for line in body.splitlines()[1:] if not line.startswith(("  //", "  ...")))
        entries += found
    assert len(entries) == len(dict(entries))
    return dict(entries)


ENGLISH, CHINESE = table("EN"), table("ZH")


def test_both_languages_have_the_same_keys() -> None:
    assert list(ENGLISH) == list(CHINESE)
    assert len(ENGLISH) > 100


def test_placeholders_are_the_same() -> None:
    for key, english in ENGLISH.items():
        wanted, found = (set(re.findall(r"\{(\w+)\}", text)) for text in (english, CHINESE[key]))
        if key.startswith("code."):  # a sentence that says all may leave the server's own out
            assert wanted == {"detail"} and found <= wanted, key
        else:
            assert wanted == found, key


def test_chinese_is_chinese() -> None:
    for key, text in CHINESE.items():
        assert re.search(r"[\u4e00-\u9fff]", text), key
        words = re.sub(
            r"\{\w+\}|“[^”]*”|https?://|API|ID|PCM|RTMP|WebRTC|LiveKit|JavaScript|[A-Za-z_/]+(?=[\u4e00-\u9fff（，。])",
            "",
            text,
        )
        assert not re.search(r"[a-z]{3,} [a-z]{3,}", words), key


def test_the_html_shows_the_english_table() -> None:
    texts = re.findall(r'data-t="([\w.]+)"[^>]*>([^<]*)<', PAGE)
    labels = re.findall(r'data-t-label="([\w.]+)" aria-label="([^"]*)"', PAGE)
    placeholders = re.findall(r'data-t-placeholder="([\w.]+)" placeholder="([^"]*)"', PAGE)
    assert len(texts) == len(re.findall(r'data-t="', PAGE)) and len(labels) == len(re.findall("data-t-label=", PAGE))
    for key, text in texts + labels + placeholders:
        assert ENGLISH[key] == text
    assert len(re.findall("aria-label=", PAGE)) == len(labels)


def test_every_key_is_used_and_every_use_has_a_key() -> None:
    code = "".join((WEB / f"{name}.js").read_text("utf-8") for name in MODULES)
    used = set(re.findall(r'data-t(?:-label|-placeholder)?="([\w.]+)"', PAGE))
    quoted = set(re.findall(r'"([\w.]+)"', code)) & ENGLISH.keys()
    used |= set(re.findall(r'\bt\("([\w.]+)"', code)) | quoted | {"title"}
    assert used <= ENGLISH.keys()
    assert {key for key in ENGLISH.keys() - used if not key.startswith(PREFIXES)} == set()


def test_no_sentence_stands_in_a_module_of_the_page() -> None:
    for name in MODULES:
        code = re.sub(
            r"/\*.*?\*/|^\s*//.*?$", "", (WEB / f"{name}.js").read_text("utf-8"), flags=re.DOTALL | re.MULTILINE
        )
        found = re.findall(r'["`][A-Z][a-z]+[^"`\n]* [a-z][^"`\n]*["`]', code)
        assert [sentence for sentence in found if sentence.strip('"`') not in SPOKEN] == [], name


def test_the_element_has_the_same_texts_in_both_languages() -> None:
    source = (WEB / "embed-texts.js").read_text("utf-8")
    tables = [source[source.index(f"const {name} = {{") :].split("\n};", 1)[0] for name in ("EN", "ZH")]
    english, chinese = (dict(re.findall(r'^  "?([\w.]+)"?: "(.*)",$', text, re.MULTILINE)) for text in tables)
    assert list(english) == list(chinese) and len(english) > 30
    assert all(re.search(r"[\u4e00-\u9fff]", text) for text in chinese.values())
