"""A pinned livekit-server on loopback: found, or installed into a cache, and run for the demo and the tests."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import logging
import os
import platform
import secrets
import shutil
import socket
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from musetalk_tools.processes import Child, free_port

log = logging.getLogger(__name__)

VERSION = "1.13.5"
_MODULE = f"github.com/livekit/livekit-server/cmd/server@v{VERSION}"
_RELEASE = f"https://github.com/livekit/livekit/releases/download/v{VERSION}"
_CACHE = Path("~/.cache/musetalk-livekit/bin").expanduser()
_PLI_THROTTLE = "300ms"  # WebRTC heeds one request for a key frame in 300 ms; the default asks again after 500 to 1000
_GOGC = "30"  # a server for one machine's demo need not keep twice its live memory


class LiveKitServerMissing(Exception):
    """No livekit-server could be found or installed; the message has the three ways to get it."""


def cached() -> Path:
    """Where an installed server lies."""
    return _CACHE / f"livekit-server-{VERSION}"


def _version_of(program: str) -> str | None:
    try:
        printed = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return printed.strip().rpartition(" ")[2]


def find() -> Path | None:
    """A server on PATH of the pinned version, else the cached one, else one of another version on PATH, else None."""
    on_path = shutil.which("livekit-server")
    if on_path and _version_of(on_path) == VERSION:
        return Path(on_path)
    if cached().exists():
        return cached()
    if on_path:
        log.warning("livekit-server on PATH is not the pinned version", extra={"pinned": VERSION})
        return Path(on_path)
    return None


def install() -> Path:
    """Installs the pinned server into the cache: by `go install`, else the project's release. Raises `LiveKitServerMissing`."""
    _CACHE.mkdir(parents=True, exist_ok=True)
    tried = [_go_install(), _download_release()] if shutil.which("go") else [_download_release()]
    if cached().exists():
        return cached()
    raise LiveKitServerMissing(
        f"livekit-server {VERSION} is needed and was not found ({'; '.join(t for t in tried if t)}). Get it in one of three ways:\n"
        f"  1. install Go 1.26 or newer and run: go install {_MODULE}   (then rename the binary 'server' to 'livekit-server')\n"
        f"  2. download it from {_RELEASE} and put it on PATH\n"
        "  3. use your system's package manager, for example: brew install livekit"
    )


def _go_install() -> str:
    """Returns why it failed, or an empty string."""
    print(f"installing livekit-server {VERSION} with Go (about two minutes, once) …", file=sys.stderr)
    folder = _CACHE / f"go-{os.getpid()}"
    environment = {**os.environ, "GOBIN": str(folder), "GOFLAGS": "-trimpath"}
    try:
        subprocess.run(["go", "install", _MODULE], env=environment, check=True, timeout=900, stdout=sys.stderr)
        (folder / "server").replace(cached())
    except (OSError, subprocess.SubprocessError) as error:
        return f"go install: {error}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ""


def _download_release() -> str:
    """Returns why it failed, or an empty string. The archive is checked against the release's own list of checksums."""
    if cached().exists():
        return ""
    machine = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}.get(platform.machine(), platform.machine())
    name = f"livekit_{VERSION}_{platform.system().lower()}_{machine}.tar.gz"
    try:
        with httpx.Client(follow_redirects=True, timeout=60) as http:
            sums = http.get(f"{_RELEASE}/checksums.txt").raise_for_status().text
            archive = http.get(f"{_RELEASE}/{name}").raise_for_status().content
    except httpx.HTTPError as error:
        return f"release download: {error}"
    wanted = {line.split()[1]: line.split()[0] for line in sums.splitlines() if len(line.split()) == 2}.get(name)
    if hashlib.sha256(archive).hexdigest() != wanted:
        return f"release download: the checksum of {name} is wrong"
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            member = tar.extractfile("livekit-server")
            program = member.read() if member else b""
    except (KeyError, tarfile.TarError):
        program = b""
    if not program:
        return f"release download: no livekit-server in {name}"
    partial = cached().with_suffix(f".{os.getpid()}")
    try:
        partial.write_bytes(program)
        partial.chmod(0o755)
        partial.replace(cached())
    except OSError as error:
        return f"release download: {error}"
    finally:
        partial.unlink(missing_ok=True)
    return ""


@dataclass(frozen=True, slots=True)
class LiveKitAccess:
    """How to reach a server."""

    url: str
    api_key: str
    api_secret: str


class LiveKitServer:
    """One server process on one address of this machine, on free ports, with keys of its own; it may be started again.

    Args:
        program: the binary.
        log_level: its own word for it.
        host: the address it binds and announces to clients.
        redis: `host:port` of the Redis it shares with LiveKit Ingress.
        rtmp_base_url: where that Ingress takes RTMP.
        through: a command that runs the program, for another network namespace.
        log_path: the file that its log is appended to; None sends it to this process's standard error.
    """

    def __init__(
        self,
        program: Path,
        log_level: str = "warn",
        *,
        host: str = "127.0.0.1",
        redis: str | None = None,
        rtmp_base_url: str | None = None,
        through: Sequence[str] = (),
        log_path: Path | None = None,
    ) -> None:
        port, udp = free_port(), free_port(socket.SOCK_DGRAM)
        self.access = LiveKitAccess(f"ws://{host}:{port}", "API" + secrets.token_hex(6), secrets.token_urlsafe(32))
        self._http = f"http://{host}:{port}"
        config: dict[str, Any] = {
            "port": port,
            "bind_addresses": [host],
            "rtc": {
                "udp_port": udp,
                "tcp_port": 0,  # its ICE/TCP listener has no bind address and would listen everywhere
                "use_external_ip": False,
                "node_ip": host,
                "enable_loopback_candidate": True,
                "ips": {"includes": [f"{host}/32"]},
                "stun_servers": [f"{host}:3478"],  # nothing listens there; without it clients get public ones
                "pli_throttle": dict.fromkeys(("low_quality", "mid_quality", "high_quality"), _PLI_THROTTLE),
            },
            "keys": {self.access.api_key: self.access.api_secret},
            "room": {"auto_create": True, "empty_timeout": 300, "departure_timeout": 20, "sync_streams": True},
            "logging": {"level": log_level},
        }
        if redis:
            config["redis"] = {"address": redis}
        if rtmp_base_url:
            config["ingress"] = {"rtmp_base_url": rtmp_base_url}
        environment = {"LIVEKIT_CONFIG": json.dumps(config), "GOGC": _GOGC}
        self.child = Child("livekit-server", [*through, str(program)], environment, log_path)

    async def start(self) -> None:
        """Starts it and waits until it answers. Raises `ChildFailed`."""
        await self.child.start()
        await self.child.ready(self._http)

    async def stop(self) -> None:
        """Ends it. Idempotent."""
        await self.child.stop()


async def obtain() -> Path:
    """Finds the server or installs it, off the event loop. Raises `LiveKitServerMissing`."""
    return await asyncio.to_thread(lambda: find() or install())


def main() -> int:
    """`python -m musetalk_tools.livekit_server`: makes sure that the server is there and prints where."""
    try:
        print(find() or install())
    except LiveKitServerMissing as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
