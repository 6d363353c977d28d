"""The page and its files, and the token the demo hands to it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, Response

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.credentials import is_loopback
from orchestrator.routes.context import Ctx
from orchestrator.session.record import iso

WEB = Path(__file__).resolve().parent.parent / "web"
PAGE_TOKEN_PATH = "/page/token"
_TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_TYPES |= {".html": "text/html", ".json": "application/json", ".webmanifest": "application/manifest+json"}
router = APIRouter(include_in_schema=False)


def files(root: Path = WEB) -> Iterator[tuple[str, Path]]:
    """Address and file of everything the page consists of. `index.html` is `/`."""
    for file in sorted(root.rglob("*")):
        relative = file.relative_to(root)
        if file.is_file() and not any(part.startswith((".", "_")) for part in relative.parts):
            yield "/" + relative.as_posix(), file
    if (root / "index.html").is_file():
        yield "/", root / "index.html"


def page_router(root: Path = WEB) -> APIRouter:
    """One route per file: nothing else of the disk can be asked for."""
    pages = APIRouter(include_in_schema=False)
    for address, file in files(root):
        pages.add_api_route(address, _serve(file), methods=["GET", "HEAD"])
    return pages


def _serve(file: Path) -> Callable[[], Awaitable[Response]]:
    media_type = _TYPES.get(file.suffix)

    async def serve() -> Response:
        return FileResponse(file, media_type=media_type)

    return serve


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
