from __future__ import annotations

import argparse
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from musetalk_agent.tools import fetch_models
from musetalk_agent.weights import HubSource, Manifest, ModelFile, ModelStore, UrlSource

BODY = bytes(range(256)) * 100


class Files(BaseHTTPRequestHandler):
    """Serves BODY, and parts of it to those who ask."""

    ranges: list[str | None]

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(BODY) - start))
        self.end_headers()
        self.wfile.write(BODY[start:])

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[tuple[str, list[str | None]]]:
    ranges: list[str | None] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Files,), {"ranges": ranges}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/a.bin", ranges
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def store_of(tmp_path: Path, url: str, digest: str | None = None) -> ModelStore:
    entry = ModelFile(
        name="net/a.bin",
        group="test",
        source=UrlSource(kind="url", url=url),
        size=len(BODY),
        sha256=digest or hashlib.sha256(BODY).hexdigest(),
        licence="MIT",
        needed_by="a test",
    )
    return ModelStore(tmp_path / "models", Manifest({entry.name: entry}))


def test_fetched_once_and_verified(tmp_path: Path) -> None:
    with serving() as (url, ranges):
        store = store_of(tmp_path, url)
        assert fetch_models.fetch(store, ["test"], quiet=True) == 1
        assert fetch_models.fetch(store, ["test"], quiet=True) == 0
        assert ranges == [None]
    assert store.path("net/a.bin").read_bytes() == BODY and store.state()["net/a.bin"].verified


def test_a_broken_download_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with serving() as (url, ranges):
        store = store_of(tmp_path, url)
        part = store.directory / "net" / "a.bin.part"
        part.parent.mkdir(parents=True)
        part.write_bytes(BODY[:1000])
        fetch_models.fetch(store, ["test"], quiet=True)
        assert ranges == ["bytes=1000-"]
    assert store.path("net/a.bin").read_bytes() == BODY and not part.exists()


def test_a_wrong_checksum_is_not_kept(tmp_path: Path) -> None:
    with serving() as (url, _):
        store = store_of(tmp_path, url, "0" * 64)
        with pytest.raises(fetch_models.FetchFailed, match="sha256"):
            fetch_models.fetch(store, ["test"], quiet=True)
    assert not list((store.directory / "net").iterdir())


def test_hub_files_need_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_models.importlib.util, "find_spec", lambda name: None)
    store = store_of(tmp_path, "http://127.0.0.1:1/")
    entry = store.manifest.entries["net/a.bin"].model_copy(
        update={"source": HubSource(kind="hub", repo="a/b", revision="main", file="c")}
    )
    with pytest.raises(fetch_models.FetchFailed, match=r"\[musetalk\]"):
        fetch_models.fetch(ModelStore(store.directory, Manifest({entry.name: entry})), ["test"], quiet=True)


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    fetch_models.add_arguments(parser)
    return fetch_models.run(parser.parse_args(list(argv)))


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("nonsense", "--models-dir", str(tmp_path)) == 2
    assert "face, musetalk" in capsys.readouterr().err
    assert run("--list", "--models-dir", str(tmp_path)) == 0
    listed = capsys.readouterr().out
    assert "face/face_landmark.tflite" in listed and "missing" in listed and "no checksum known" in listed
