"""The web page and its files, its Content-Security-Policy, and the token that the demo gives it."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from starlette.responses import Response

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.keys import is_loopback
from orchestrator.routes.context import Ctx
from orchestrator.session.model import iso

WEB = Path(__file__).resolve().parent.parent / "web"
PAGE_TOKEN_PATH = "/page/token"
ASSETS = "/assets/"
"""Below it every file of the page has an address that contains the version: `/assets/VERSION/app.js`."""
_REVALIDATE = "no-cache"
_IMMUTABLE = "public, max-age=31536000, immutable"
"""A year, the longest that caches honour (RFC 9111 gives no limit, RFC 2616 14.21 named a year)."""
_TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_TYPES |= {".html": "text/html", ".json": "application/json", ".webmanifest": "application/manifest+json"}
_LINK = re.compile(r'(?<=\s)(href|src)="([^":/][^":]*)"')
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:\d{1,5})?")
_CLOUD = ".livekit.cloud"
router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class PageFile:
    """One file in memory. `media_type` is None for a kind that the browser finds out by itself."""

    body: bytes
    media_type: str | None

    @cached_property
    def etag(self) -> str:
        """Weak, since the compressed and the plain body have the same tag."""
        return f'W/"{hashlib.sha256(self.body).hexdigest()[:32]}"'

    @cached_property
    def compressed(self) -> bytes | None:
        """The body as gzip, None where that is not shorter by a tenth (images). Takes 0.1 s for a large file, once."""
        packed = gzip.compress(self.body, 9, mtime=0)
        return packed if len(packed) < 0.9 * len(self.body) else None

    def answer(self, request: Request, cache_control: str) -> Response:
        """200 with the body in an encoding that the client takes, or 304 when it has this body already."""
        headers = {"ETag": self.etag, "Cache-Control": cache_control, "Vary": "Accept-Encoding"}
        if self.media_type != "text/html":
            headers["Access-Control-Allow-Origin"] = "*"  # pages elsewhere import the modules; nothing here is private
        known = [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]
        if self.etag in known or "*" in known:
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", "") and self.compressed is not None:
            headers["Content-Encoding"] = "gzip"
            return Response(self.compressed, media_type=self.media_type, headers=headers)
        return Response(self.body, media_type=self.media_type, headers=headers)


class PageFiles:
    """Every file of the page by its address, as it was when it was read. `version` changes with any of them."""

    def __init__(self, root: Path = WEB) -> None:
        read = {address: file for address, file in files(root) if address != "/"}
        self.by_address = {at: PageFile(file.read_bytes(), _TYPES.get(file.suffix)) for at, file in read.items()}
        content = hashlib.sha256()
        for address, file in self.by_address.items():
            content.update(f"{address} {len(file.body)}\n".encode() + file.body)
        self.version = content.hexdigest()[:16]
        if (index := self.by_address.get("/index.html")) is not None:
            html = _LINK.sub(self._versioned, index.body.decode())
            self.by_address["/"] = self.by_address["/index.html"] = PageFile(html.encode(), index.media_type)

    def _versioned(self, link: re.Match[str]) -> str:
        """The link of `index.html` with the version in it. Modules import each other by relative addresses: they stay in it."""
        attribute, name = link.groups()
        known = f"/{name}" in self.by_address
        return f'{attribute}="{ASSETS}{self.version}/{name}"' if known else link[0]


def files(root: Path = WEB) -> Iterator[tuple[str, Path]]:
    """Address and file of everything the page consists of. `index.html` is `/`."""
    for file in sorted(root.rglob("*")):
        relative = file.relative_to(root)
        if file.is_file() and not any(part.startswith((".", "_")) for part in relative.parts):
            yield "/" + relative.as_posix(), file
    if (root / "index.html").is_file():
        yield "/", root / "index.html"


@lru_cache(maxsize=4)
def load(root: Path = WEB) -> PageFiles:
    """Reads the files once a process."""
    return PageFiles(root)


def page_router(root: Path = WEB) -> APIRouter:
    """One route per file, and one for the addresses with a version: nothing else of the disk can be asked for."""
    pages = APIRouter(include_in_schema=False)
    page = load(root)
    for address, file in page.by_address.items():
        # a plain route: there is nothing in it that FastAPI would have to read
        pages.add_route(address, _serve(file), methods=["GET", "HEAD"])

    @pages.api_route(ASSETS + "{version}/{name:path}", methods=["GET", "HEAD"])
    async def asset(request: Request, version: str, name: str) -> Response:
        file = page.by_address.get(f"/{name}") if name else None
        if file is None:
            raise ProblemError(ErrorCode.NOT_FOUND, f"The page has no file {name[:64]!r}.")
        # While an update is rolled out a page of the old version may ask here for its files: it gets today's, not for keeps.
        keeps = _IMMUTABLE if version == page.version else _REVALIDATE
        return await asyncio.to_thread(file.answer, request, keeps)

    return pages


def _serve(file: PageFile) -> Callable[[Request], Awaitable[Response]]:
    async def serve(request: Request) -> Response:
        return await asyncio.to_thread(file.answer, request, _REVALIDATE)

    return serve


def content_policy(livekit_url: str, public_url: str | None) -> str:
    """The page's Content-Security-Policy: code, styles and images come from here, connections go here and to LiveKit.

    Args:
        livekit_url: LiveKit's address as clients have it; its HTTP address is asked when its WebSocket fails.
        public_url: this service's address in `audio_url`, where it is not the page's own.
    """
    connect = ["'self'", *_origins(livekit_url)]
    if (urlsplit(livekit_url).hostname or "").endswith(_CLOUD):
        connect += [f"{scheme}//*{_CLOUD}" for scheme in ("wss:", "https:")]  # regions have hosts of their own
    if public_url:
        connect += _origins(public_url)
    directives = (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "media-src 'self' blob:",
        "connect-src " + " ".join(dict.fromkeys(connect)),
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
    return "; ".join(directives)


def _origins(url: str) -> list[str]:
    """WebSocket and HTTP origin of an address. A host that a policy cannot name (IPv6) opens the two schemes."""
    parts = urlsplit(url)
    schemes = ("wss:", "https:") if parts.scheme in ("wss", "https") else ("ws:", "http:")
    host = parts.netloc.rpartition("@")[2]
    return [f"{scheme}//{host}" if _HOST.fullmatch(host) else scheme for scheme in schemes]


@router.get(PAGE_TOKEN_PATH)
async def page_token(request: Request, ctx: Ctx) -> dict[str, str | None]:
    """A short-lived key for the page, where the demo allows it and the caller sits on this machine; elsewhere 404."""
    if not ctx.options.page_token_enabled or not _is_local(request):
        raise ProblemError(ErrorCode.NOT_FOUND, "This server hands out no page token: enter an API key.")
    ttl_s = ctx.options.page_token_ttl_s
    return {"token": ctx.credentials.page_token(ttl_s), "expires_at": iso(time.time() + ttl_s)}


def _is_local(request: Request) -> bool:
    """From this machine, to a loopback name (so that no other site's name can be pointed here), by the page itself."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    client = request.client.host if request.client else ""
    host = request.url.hostname or ""
    return is_loopback(client) and (host == "localhost" or is_loopback(host))
