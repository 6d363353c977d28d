"""The page's files: their addresses, caches, compression, and the policy they are run under."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import httpx
import pytest

from orchestrator.routes.page import ASSETS, PageFiles, content_policy, files
from tests.fakes.stage import Stage, stage
from tests.waiting import NEVER_S

WEB = Path(__file__).resolve().parents[3] / "orchestrator" / "web"
IMMUTABLE = "public, max-age=31536000, immutable"
IMPORT = re.compile(r'^(?:import|export) .*?from "(\./[^"]+)";', re.MULTILINE | re.DOTALL)


def anybody(running: Stage) -> httpx.AsyncClient:
    """A client without a key."""
    return httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=NEVER_S)


async def test_files_are_served_to_anybody_with_the_policy(running: Stage) -> None:
    async with anybody(running) as client:
        for address, file in files():
            answer = await client.get(address)
            assert answer.status_code == 200
            assert file.name == "index.html" or answer.content == file.read_bytes()
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "script-src 'self';" in answer.headers["content-security-policy"]
            assert answer.headers["cache-control"] == "no-cache"
            if address.endswith(".js"):
                assert answer.headers["content-type"].startswith("text/javascript")
        page = await client.get("/")
        assert page.headers["content-type"].startswith("text/html")
        for path in ("/../settings.py", "/%2e%2e/settings.py", "/..%2fsettings.py", "/__init__.py"):
            assert (await client.get(path)).status_code in (401, 404)
        for path in ("x/../../settings.py", "x/%2e%2e/settings.py", "x/..%2fsettings.py", "x/", "x/none.js"):
            assert (await client.get(ASSETS + path)).status_code in (401, 404)


async def test_the_page_names_files_by_an_address_that_never_changes_its_content(running: Stage) -> None:
    async with anybody(running) as client:
        html = (await client.get("/")).text
        links = re.findall(r'(?:href|src)="([^"]+)"', html)
        assert "docs" in links
        named = [link for link in links if link != "docs"]
        assert len(named) > 5 and all(re.match(r"/assets/[0-9a-f]{16}/\w", link) for link in named)
        for link in named:
            answer = await client.get(link)
            assert (answer.status_code, answer.headers["cache-control"]) == (200, IMMUTABLE), link
            assert answer.content == (WEB / link.split("/", 3)[3]).read_bytes()
        older = re.sub(r"/[0-9a-f]{16}/", "/0123456789abcdef/", named[-1])
        answer = await client.get(older)  # of another orchestrator's version, while an update is rolled out
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-cache")


def test_the_version_is_that_of_all_files(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text('<script src="app.js"></script><a href="docs">')
    (tmp_path / "app.js").write_text("one")
    before = PageFiles(tmp_path)
    assert (
        before.by_address["/"].body
        == f'<script src="/assets/{before.version}/app.js"></script><a href="docs">'.encode()
    )
    (tmp_path / "app.js").write_text("two")
    assert PageFiles(tmp_path).version != before.version
    (tmp_path / "app.js").write_text("one")
    assert PageFiles(tmp_path).version == before.version
    (tmp_path / "app.js").rename(tmp_path / "application.js")
    assert PageFiles(tmp_path).version != before.version


async def test_text_is_compressed_and_what_is_known_is_not_sent_again(running: Stage) -> None:
    async with anybody(running) as client:
        for address, packed in (("/avatar.js", True), ("/vendor/livekit-client.esm.js", True), ("/poster.jpg", False)):
            plain = await client.get(address, headers={"Accept-Encoding": "identity"})
            assert "content-encoding" not in plain.headers and plain.headers["vary"] == "Accept-Encoding"
            answer = await client.get(address, headers={"Accept-Encoding": "br, gzip"})
            assert answer.headers.get("content-encoding") == ("gzip" if packed else None), address
            assert answer.content == plain.content
            if packed:
                async with client.stream("GET", address) as raw:
                    sent = b"".join([chunk async for chunk in raw.aiter_raw()])
                assert len(sent) < 0.5 * len(plain.content) and gzip.decompress(sent) == plain.content
            tag = plain.headers["etag"]
            for known, status in ((tag, 304), (f'"x", {tag}', 304), ("*", 304), ('"x"', 200)):
                again = await client.get(address, headers={"If-None-Match": known})
                assert (again.status_code, again.headers["etag"]) == (status, tag)
            assert (await client.get(address, headers={"If-None-Match": tag})).content == b""
            head = await client.head(address)
            assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", tag)


def test_every_module_of_the_page_is_preloaded() -> None:
    """A browser would find a module only when the module that imports it has come: one round trip for each step."""
    found: set[str] = set()

    def visit(name: str) -> None:
        if name not in found:
            found.add(name)
            for module in IMPORT.findall((WEB / name).read_text("utf-8")):
                visit(module.removeprefix("./"))

    visit("app.js")
    html = (WEB / "index.html").read_text("utf-8")
    assert set(re.findall(r'rel="modulepreload" href="([^"]+)"', html)) == found - {"app.js"}


@pytest.mark.parametrize(
    ("livekit", "public", "sources"),
    [
        ("ws://127.0.0.1:7880", None, "ws://127.0.0.1:7880 http://127.0.0.1:7880"),
        ("wss://rtc.example/", None, "wss://rtc.example https://rtc.example"),
        ("https://rtc.example", None, "wss://rtc.example https://rtc.example"),
        (
            "wss://avatars-x1y2.livekit.cloud",
            None,
            "wss://avatars-x1y2.livekit.cloud https://avatars-x1y2.livekit.cloud wss://*.livekit.cloud https://*.livekit.cloud",
        ),
        ("wss://livekit.cloud.example", None, "wss://livekit.cloud.example https://livekit.cloud.example"),
        (
            "wss://rtc.example",
            "https://avatars.example/",
            "wss://rtc.example https://rtc.example wss://avatars.example https://avatars.example",
        ),
        ("ws://[::1]:7880", None, "ws: http:"),
        ("wss://rtc.example; script-src *", None, "wss: https:"),
    ],
)
async def test_the_page_connects_to_its_service_and_to_livekit_only(
    livekit: str, public: str | None, sources: str
) -> None:
    directives = dict(part.split(" ", 1) for part in content_policy(livekit, public).split("; "))
    assert directives["connect-src"] == f"'self' {sources}"
    assert directives["default-src"] == directives["base-uri"] == directives["frame-ancestors"] == "'none'"
    assert directives["script-src"] == directives["style-src"] == "'self'"


async def test_clients_address_of_livekit_is_in_the_policy() -> None:
    async with stage(livekit_public_url="wss://rtc.example") as running, anybody(running) as client:
        for path in ("/", "/avatar.js", "/health"):
            policy = (await client.get(path)).headers["content-security-policy"]
            assert "connect-src 'self' wss://rtc.example https://rtc.example;" in policy
        docs = (await client.get("/docs")).headers["content-security-policy"]
        assert "rtc.example" not in docs and "script-src 'self' 'unsafe-inline'" in docs


def test_the_page_reaches_rooms_and_sessions_through_the_published_client_only() -> None:
    """What `avatar.js` is made of; the page's own modules name these in types at most."""
    inner = {"./viewer.js", "./captions.js", "./audio-link.js", "./vendor/livekit-client.esm.js"}
    inner |= {"./conversation.js", "./event-stream.js", "./room-microphone.js"}
    client = {
        "avatar.js",
        "avatar-client.js",
        "viewer.js",
        "captions.js",
        "audio-link.js",
        "conversation.js",
        "event-stream.js",
        "room-microphone.js",
        "statistics.js",
        "retries.js",
    }
    for file in sorted(WEB.glob("*.js")):
        if file.name not in client:
            assert not inner & set(IMPORT.findall(file.read_text("utf-8"))), file.name
