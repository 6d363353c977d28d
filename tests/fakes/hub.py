"""A model hub on loopback that speaks the real one's resolve interface and can break transfers off: HEAD and GET with ETag,
X-Repo-Commit and Range; large files are redirected to a store."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "2bcb936e2fddb4d86db4c62fd45b387d0c061571"
_LARGE = (".bin", ".pth", ".safetensors")


@dataclass
class Hub:
    """What the hub has and what it was asked.

    Args:
        files: content by `owner/repo/path`.
        break_after: bytes after which the next GETs of file bodies are cut, one entry a GET.
        refuse: status codes for the next HEAD requests, one entry a request.
    """

    files: Mapping[str, bytes]
    break_after: list[int] = field(default_factory=list)
    refuse: list[int] = field(default_factory=list)
    endpoint: str = ""
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and Range of every request."""

    def gets(self) -> list[str | None]:
        """The Range headers of the requests that bodies answered."""
        return [asked for method, path, asked in self.asked if method == "GET" and not self.redirected(path)]

    def redirected(self, path: str) -> bool:
        return path.startswith("/") and not path.startswith("/store/") and path.endswith(_LARGE)


@contextmanager
def serving_hub(files: Mapping[str, bytes]) -> Iterator[Hub]:
    """Serves a hub; its `endpoint` is what `HF_ENDPOINT` would be."""
    hub = Hub(files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self._note()
        if self.hub.refuse:
            return self._empty(self.hub.refuse.pop(0))
        name = self._name()
        if name is None:
            return self._not_found()
        self._resolve(name)
        self.end_headers()

    def do_GET(self) -> None:
        self._note()
        name = self._name()
        if name is None:
            return self._not_found()
        if self.hub.redirected(self.path):
            self._resolve(name)
            return self.end_headers()
        content = self.hub.files[name]
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            return self._empty(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + self.hub.break_after.pop(0) if self.hub.break_after else len(content)
        self.wfile.write(content[start:end])
        if end < len(content):
            self.close_connection = True

    def _name(self) -> str | None:
        path = self.path.removeprefix("/store").lstrip("/")
        owner, repo, *rest = path.split("/")
        if rest[:1] == ["resolve"]:
            rest = rest[2:]
        name = "/".join((owner, repo, *rest))
        return name if name in self.hub.files else None

    def _resolve(self, name: str) -> None:
        """The hub's answer about a file: large ones lie in a store elsewhere."""
        content = self.hub.files[name]
        large = self.hub.redirected(self.path)
        self.send_response(302 if large else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        if large:
            # Another host, as the real store is: the client follows redirects within the hub's own.
            self.send_header("Location", f"{self.hub.endpoint.replace('127.0.0.1', 'localhost')}/store/{name}")
            self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("X-Linked-ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", "0")
        else:
            self.send_header("ETag", f'"{_blob(content)}"')
            self.send_header("Content-Length", str(len(content)))

    def _not_found(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("X-Error-Message", "Entry not found")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _empty(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _note(self) -> None:
        self.hub.asked.append((self.command, self.path, self.headers.get("Range")))

    def log_message(self, *_: Any) -> None:
        pass


def _blob(content: bytes) -> str:
    """Git's name of a file's content, which is the ETag of small files."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
