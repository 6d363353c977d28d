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
from musetalk_agent.tools.fetch_models import FetchFailed, Transfer
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


def partial(store: ModelStore) -> Path:
    path = store.directory / ".cache" / "parts" / "net--a.bin.part"
    path.parent.mkdir(parents=True)
    return path


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
        part = partial(store)
        part.write_bytes(BODY[:1000])
        fetch_models.fetch(store, ["test"], quiet=True)
        assert ranges == ["bytes=1000-"]
    assert store.path("net/a.bin").read_bytes() == BODY and not part.exists()


def test_a_download_that_was_complete_is_only_checked(tmp_path: Path) -> None:
    store = store_of(tmp_path, "http://127.0.0.1:1/")
    partial(store).write_bytes(BODY)
    assert fetch_models.fetch(store, ["test"], quiet=True) == 1
    assert store.state()["net/a.bin"].verified


def test_a_wrong_checksum_is_not_kept(tmp_path: Path) -> None:
    with serving() as (url, _):
        store = store_of(tmp_path, url, "0" * 64)
        with pytest.raises(FetchFailed, match="sha256"):
            fetch_models.fetch(store, ["test"], quiet=True)
    assert not list((store.directory / "net").iterdir())
    assert not list((store.directory / ".cache" / "parts").iterdir())


def test_what_is_there_is_replaced_only_by_what_is_right(tmp_path: Path) -> None:
    with serving() as (url, _):
        store = store_of(tmp_path, url, "0" * 64)
        mine = store.directory / "net" / "a.bin"
        mine.parent.mkdir(parents=True)
        mine.write_bytes(b"my own")
        with pytest.raises(FetchFailed):
            fetch_models.fetch(store, ["test"], quiet=True)
    assert mine.read_bytes() == b"my own"


def test_a_dead_host_is_tried_again_and_then_reported(tmp_path: Path) -> None:
    waits: list[float] = []
    store = store_of(tmp_path, "http://127.0.0.1:1/a.bin")
    with pytest.raises(FetchFailed, match=r"net/a\.bin could not be fetched.*run the command again"):
        fetch_models.fetch(store, ["test"], quiet=True, network=Transfer(pause=waits.append))
    assert waits == [1, 2, 4, 8]


def test_hub_files_need_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_models.importlib.util, "find_spec", lambda name: None)
    store = store_of(tmp_path, "http://127.0.0.1:1/")
    entry = store.manifest.entries["net/a.bin"].model_copy(
        update={"source": HubSource(kind="hub", repo="a/b", revision="main", file="c")}
    )
    with pytest.raises(FetchFailed, match=r"\[musetalk\]"):
        fetch_models.fetch(ModelStore(store.directory, Manifest({entry.name: entry})), ["test"], quiet=True)


def nest(store: ModelStore, content: bytes) -> Path:
    path = store.directory / "net" / "net" / "a.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def test_a_nested_folder_is_put_right(tmp_path: Path) -> None:
    store = store_of(tmp_path, "http://127.0.0.1:1/")
    nested = nest(store, BODY)
    assert fetch_models.repair(store) == ["net/net/a.bin to net/a.bin"]
    assert not nested.parent.exists()
    assert fetch_models.faults(store, ["test"], quiet=True) == {}
    assert fetch_models.repair(store) == []


def test_a_nested_file_replaces_a_cut_one_but_not_a_whole_one(tmp_path: Path) -> None:
    store = store_of(tmp_path, "http://127.0.0.1:1/")
    nested = nest(store, b"another")
    (nested.parent / "README.md").write_text("not ours")
    target = store.directory / "net" / "a.bin"
    target.write_bytes(BODY)
    assert fetch_models.repair(store) == [] and nested.exists()
    target.write_bytes(BODY[:10])
    assert fetch_models.repair(store) == ["net/net/a.bin to net/a.bin"]
    assert target.read_bytes() == b"another"
    assert [path.name for path in nested.parent.iterdir()] == ["README.md"]


@pytest.mark.parametrize(
    ("content", "reported"),
    [
        (None, "missing"),
        (BODY[:-1], "damaged: 25599 bytes instead of 25600"),
        (b"\1" + BODY[1:], "damaged: its sha256 is another than the manifest's"),
    ],
)
def test_faults_are_named(tmp_path: Path, content: bytes | None, reported: str) -> None:
    store = store_of(tmp_path, "http://127.0.0.1:1/")
    (store.directory / "net").mkdir(parents=True)
    if content is not None:
        (store.directory / "net" / "a.bin").write_bytes(content)
    assert fetch_models.faults(store, ["test"], quiet=True) == {"net/a.bin": reported}


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    fetch_models.add_arguments(parser)
    return fetch_models.run(parser.parse_args(list(argv)))


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("nonsense", "--models-dir", str(tmp_path)) == 2
    assert "face, musetalk" in capsys.readouterr().err
    assert run("--list", "--models-dir", str(tmp_path)) == 0
    listed = capsys.readouterr().out
    assert "face/face_landmark.tflite" in listed and "missing" in listed


def test_check_says_exactly_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sd-vae-ft-mse").mkdir()
    (tmp_path / "sd-vae-ft-mse" / "diffusion_pytorch_model.bin").write_bytes(b"cut")
    assert run("musetalk", "--check", "--quiet", "--models-dir", str(tmp_path)) == 1
    reported = capsys.readouterr().err
    assert "musetalkV15/unet.pth is missing" in reported
    assert "sd-vae/diffusion_pytorch_model.bin is damaged: 3 bytes instead of 334707217" in reported
    assert f"7 files to fetch in {tmp_path}" in reported
    assert "face-parse-bisent" not in reported


def test_check_of_what_is_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of(tmp_path, "http://127.0.0.1:1/")
    (store.directory / "net").mkdir(parents=True)
    (store.directory / "net" / "a.bin").write_bytes(BODY)
    monkeypatch.setattr(Manifest, "load", classmethod(lambda cls, path=None: store.manifest))
    assert run("test", "--check", "--quiet", "--models-dir", str(store.directory)) == 0
    assert f"no files to fetch in {store.directory}" in capsys.readouterr().err
