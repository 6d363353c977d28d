"""Hooks of mkdocs (`mkdocs.yml`): pages of the repository outside docs/, their links, and Mermaid without a CDN."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
MERMAID = Path.home() / ".cache/musetalk-livekit/docs/mermaid.min.js"
"""Where `tools/setup docs` puts it. Without it the theme would load Mermaid from a CDN."""
OUTSIDE = ("CHANGELOG.md", "models/README.md", "models/mouth/README.md")
"""Pages of the site that lie where the code needs them. In the site they are under repository/."""
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]\n]+)\]\((?P<target>[^)\s]+)\)")


def on_config(config: Any) -> Any:
    """Lists the decision records at the end of the shelf "Explanation", by their headings."""
    records = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    entries = [{path.read_text("utf-8").split("\n", 1)[0].lstrip("# "): f"decisions/{path.name}"} for path in records]
    shelf = next(
        section["Explanation"] for section in config.nav if isinstance(section, dict) and "Explanation" in section
    )
    shelf.append({"Decisions": entries})
    return config


def on_files(files: Files, config: Any) -> Files:
    for name in OUTSIDE:
        files.append(File.generated(config, f"repository/{name}", abs_src_path=str(ROOT / name)))
    if not MERMAID.is_file():
        raise PluginError(f"{MERMAID} is missing: run tools/setup docs")
    files.append(File.generated(config, "assets/mermaid.min.js", abs_src_path=str(MERMAID)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Points links at pages of the site. A file of the repository that is no page becomes plain text; one that is missing fails."""
    src: str = page.file.src_uri
    here = posixpath.dirname(src.removeprefix("repository/") if src.startswith("repository/") else f"docs/{src}")

    def link(found: re.Match[str]) -> str:
        path, hash_, anchor = found["target"].partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return found[0]
        target = posixpath.normpath(posixpath.join(here, path))
        if not (ROOT / target).exists():
            raise PluginError(f"{src}: {found['target']} does not exist")
        if target in OUTSIDE:
            uri = f"repository/{target}"
        elif target.startswith("docs/") and (ROOT / target).is_file():
            uri = target.removeprefix("docs/")
        else:
            return found["text"]
        return f"[{found['text']}]({posixpath.relpath(uri, posixpath.dirname(src) or '.')}{hash_}{anchor})"

    parts = re.split(r"(^```.*?^```)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in parts)
