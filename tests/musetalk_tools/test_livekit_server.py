"""Where livekit-server comes from: PATH, the cache, Go, the project's release; and what is said where none of them has it."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import re
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from musetalk_tools import livekit_server
from musetalk_tools.livekit_server import VERSION, LiveKitServer, LiveKitServerMissing, cached, find, install, obtain
from tests.waiting import wait_until

PROGRAM = b"#!/bin/sh\necho from the release\n"
ARCHIVE = f"livekit_{VERSION}_linux_amd64.tar.gz"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, a PATH without a server and without Go, an x86 Linux, and a release that cannot be reached."""
    monkeypatch.setattr(livekit_server, "_CACHE", tmp_path / "cache")
    monkeypatch.setattr(livekit_server, "_RELEASE", "http://127.0.0.1:1")
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache"


def program(tmp_path: Path, name: str, script: str) -> Path:
    """A program of that name on PATH. Its shell knows the ordinary programs."""
    path = tmp_path / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
    path.chmod(0o755)
    return path


def in_cache(cache: Path, content: bytes = b"cached") -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    cached().write_bytes(content)
    return cached()


def packed(member: str, content: bytes) -> bytes:
    """A release's archive with one file."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as tar:
        info = tarfile.TarInfo(member)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return held.getvalue()


@contextmanager
def release(monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> Iterator[list[str]]:
    """Serves a release on loopback; yields what was asked for."""
    asked: list[str] = []

    class Files(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix("/")
            asked.append(name)
            body = files.get(name, b"")
            self.send_response(200 if name in files else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: what was asked is in the list."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    serving.start()
    monkeypatch.setattr(livekit_server, "_RELEASE", f"http://127.0.0.1:{server.server_address[1]}")
    try:
        yield asked
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


def checked(archive: bytes, name: str = ARCHIVE) -> dict[str, bytes]:
    """The files of a release: its archive, and its list of checksums, in which others stand too."""
    sums = f"{'0' * 64}  livekit_other.tar.gz\n\n{hashlib.sha256(archive).hexdigest()}  {name}\n"
    return {name: archive, "checksums.txt": sums.encode()}


def test_a_server_on_path_of_the_pinned_version_is_taken_before_the_cached_one(tmp_path: Path, cache: Path) -> None:
    in_cache(cache)
    on_path = program(tmp_path, "livekit-server", f"echo livekit-server version {VERSION}")
    assert find() == on_path


def test_a_server_on_path_of_another_version_is_taken_where_nothing_is_cached_and_that_is_logged(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    on_path = program(tmp_path, "livekit-server", "echo livekit-server version 0.1.2")
    assert find() == on_path
    assert [record.getMessage() for record in caplog.records] == ["livekit-server on PATH is not the pinned version"]
    caplog.clear()
    in_cache(cache)
    assert find() == cached() and caplog.records == []


@pytest.mark.parametrize("script", ["exit 3", "echo", f"echo {VERSION}-rc1"], ids=["fails", "silent", "candidate"])
def test_a_program_that_does_not_say_the_version_is_not_the_pinned_server(
    tmp_path: Path, cache: Path, script: str
) -> None:
    program(tmp_path, "livekit-server", script)
    in_cache(cache)
    assert find() == cached()


def test_nothing_on_path_and_nothing_cached_is_no_server() -> None:
    assert find() is None


def test_go_installs_the_pinned_server_into_the_cache(tmp_path: Path, cache: Path) -> None:
    program(tmp_path, "go", 'mkdir -p "$GOBIN"; echo "$@" > "$GOBIN/../asked"; echo built > "$GOBIN/server"')
    assert install() == cached()
    assert cached().read_text() == "built\n"
    assert (cache / "asked").read_text() == f"install github.com/livekit/livekit-server/cmd/server@v{VERSION}\n"
    assert {path.name for path in cache.iterdir()} == {"asked", cached().name}, "the folder of the build goes"


@pytest.mark.parametrize("script", ["exit 1", 'mkdir -p "$GOBIN"'], ids=["fails", "builds nothing"])
def test_a_go_that_builds_nothing_leaves_it_to_the_release(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    program(tmp_path, "go", script)
    with release(monkeypatch, checked(packed("livekit-server", PROGRAM))) as asked:
        assert install() == cached()
    assert cached().read_bytes() == PROGRAM
    assert asked == ["checksums.txt", ARCHIVE]
    assert [path.name for path in cache.iterdir()] == [cached().name]


@pytest.mark.parametrize(
    ("system", "machine", "name"),
    [("Linux", "aarch64", "linux_arm64"), ("Darwin", "arm64", "darwin_arm64"), ("Linux", "riscv64", "linux_riscv64")],
)
def test_the_archive_of_this_machine_is_downloaded_and_may_be_run(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str, name: str
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    archive = f"livekit_{VERSION}_{name}.tar.gz"
    with release(monkeypatch, checked(packed("livekit-server", PROGRAM), archive)) as asked:
        assert install() == cached()
    assert asked == ["checksums.txt", archive]
    assert cached().read_bytes() == PROGRAM and cached().stat().st_mode & 0o111 == 0o111


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({}, "release download: Client error '404 Not Found'"),
        ({"checksums.txt": b""}, "release download: Client error '404 Not Found'"),
        ({"checksums.txt": b"", ARCHIVE: b"x"}, f"the checksum of {ARCHIVE} is wrong"),
        (checked(b"one") | {ARCHIVE: b"another"}, f"the checksum of {ARCHIVE} is wrong"),
        (checked(packed("README", b"read me")), f"no livekit-server in {ARCHIVE}"),
        (checked(packed("livekit-server", b"")), f"no livekit-server in {ARCHIVE}"),
        (checked(b"no archive"), f"no livekit-server in {ARCHIVE}"),
    ],
    ids=["no release", "no archive", "no checksum", "changed", "another file", "an empty file", "damaged"],
)
def test_a_release_that_cannot_be_used_says_why_and_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes], why: str
) -> None:
    with release(monkeypatch, files), pytest.raises(LiveKitServerMissing, match=re.escape(why)):
        install()
    assert list(cache.iterdir()) == []


def test_a_server_that_cannot_be_kept_says_why(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(livekit_server, "cached", lambda: cache / "a folder that went" / "server")
    with (
        release(monkeypatch, checked(packed("livekit-server", PROGRAM))),
        pytest.raises(LiveKitServerMissing, match=r"release download: .*No such file"),
    ):
        install()


def test_a_machine_without_any_of_them_is_shown_three_ways(tmp_path: Path) -> None:
    program(tmp_path, "go", "exit 2")
    with pytest.raises(LiveKitServerMissing) as missing:
        install()
    sentence, *ways = str(missing.value).splitlines()
    assert sentence.startswith(f"livekit-server {VERSION} is needed and was not found (go install: ")
    assert "exit status 2" in sentence and "; release download: " in sentence
    assert [way.split()[0] for way in ways] == ["1.", "2.", "3."]


async def test_what_is_found_is_not_installed_again(cache: Path) -> None:
    in_cache(cache)
    assert await obtain() == cached()


async def test_what_is_not_found_is_installed_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def installed() -> Path:
        threads.append(threading.current_thread())
        return Path("the server")

    monkeypatch.setattr(livekit_server, "install", installed)
    assert await obtain() == Path("the server")
    assert threads != [threading.current_thread()]


def test_the_command_prints_where_the_server_is_or_why_there_is_none(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert livekit_server.main() == 1
    said = capsys.readouterr()
    assert said.out == "" and "Get it in one of three ways" in said.err
    path = in_cache(cache)
    assert livekit_server.main() == 0
    assert capsys.readouterr().out == f"{path}\n"


async def test_a_server_listens_on_loopback_alone_with_keys_of_its_own(tmp_path: Path) -> None:
    """The configuration as the program gets it, and what is said of how to reach it."""
    kept = tmp_path / "kept"
    path = program(tmp_path, "server", f'printf %s "$LIVEKIT_CONFIG" > {kept}.part; mv {kept}.part {kept}; sleep 600')
    server, other = (LiveKitServer(path, redis="127.0.0.1:6379", rtmp_base_url="rtmp://127.0.0.1/x") for _ in "ab")
    await server.child.start()
    try:
        wait_until(kept.exists)
    finally:
        await server.stop()
    config, access = json.loads(kept.read_text()), server.access
    assert access.url == f"ws://127.0.0.1:{config['port']}" and config["keys"] == {access.api_key: access.api_secret}
    assert config["bind_addresses"] == ["127.0.0.1"] and config["rtc"]["node_ip"] == "127.0.0.1"
    assert config["rtc"]["tcp_port"] == 0 and config["rtc"]["ips"] == {"includes": ["127.0.0.1/32"]}
    assert config["redis"] == {"address": "127.0.0.1:6379"}
    assert config["ingress"] == {"rtmp_base_url": "rtmp://127.0.0.1/x"}
    assert len(access.api_secret) >= 32 and access.api_secret != other.access.api_secret
    assert access.api_key != other.access.api_key
