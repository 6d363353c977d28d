"""Debian's nginx with its RTMP module, on loopback, with a configuration and files of the test's own."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from pathlib import Path

import psutil
import pytest

from musetalk_tools.processes import free_port
from tests.servers.puller import Received, read
from tests.waiting import until

_MODULES = (Path("/usr/lib/nginx/modules"), Path("/usr/lib64/nginx/modules"), Path("/usr/share/nginx/modules"))
_CONFIG = """
load_module {module};
daemon off; master_process off; worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 64; }}
rtmp {{
  access_log off;
  server {{
    listen {host}:{port};
    chunk_size 4096;
    max_streams 32;
    application live {{ live on; wait_key on; wait_video off; drop_idle_publisher 10s; }}
    application kept {{ live on; record all; record_path {folder}; record_unique on; }}
  }}
}}
"""


def module() -> Path | None:
    """The RTMP module, where nginx and it are installed."""
    found = next(
        (folder / "ngx_rtmp_module.so" for folder in _MODULES if (folder / "ngx_rtmp_module.so").exists()), None
    )
    return found if shutil.which("nginx") or Path("/usr/sbin/nginx").exists() else None


class NginxRtmp:
    """One nginx process; `url(key)` can be pushed to and pulled from. It may be started again after `stop` or `kill`."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._host = host
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="nginx-rtmp-"))
        self._process: asyncio.subprocess.Process | None = None

    def url(self, key: str = "secret-key", app: str = "live") -> str:
        """Where to push to and to pull from. What is pushed to the application `kept` is kept in files too."""
        return f"rtmp://{self._host}:{self.port}/{app}/{key}"

    async def kept(self, push: int = 0) -> Received:
        """What came with one of the pushes to `kept`, once it has ended: nginx closes its file then."""
        path = self.files()[push]
        await until(lambda: not self._holds(path))
        return await asyncio.to_thread(read, path)

    def _holds(self, path: Path) -> bool:
        if self._process is None or self._process.returncode is not None:
            return False
        return str(path) in [file.path for file in psutil.Process(self._process.pid).open_files()]

    def files(self) -> list[Path]:
        """One of each push to `kept`, in order."""
        return sorted(self._folder.glob("*.flv"), key=lambda path: path.stat().st_ctime)

    async def start(self) -> None:
        """Returns when it accepts connections; skips the test where nginx is missing."""
        found = module()
        if found is None:
            pytest.skip("nginx with its RTMP module is missing: run tools/setup rtmp")
        config = self._folder / "nginx.conf"
        config.write_text(_CONFIG.format(module=found, folder=self._folder, host=self._host, port=self.port))
        program = shutil.which("nginx") or "/usr/sbin/nginx"
        setpriv = shutil.which("setpriv")  # it ends even when the tests are killed outright
        through = [setpriv, "--pdeathsig", "KILL"] if setpriv else []
        self._process = await asyncio.create_subprocess_exec(
            *through, program, "-p", str(self._folder), "-c", str(config), "-e", str(self._folder / "error.log"),
            stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        await until(self._answers)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.returncode is None, (self._folder / "error.log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex((self._host, self.port)) == 0

    async def kill(self) -> None:
        """As a crash does."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def freeze(self, signal: int) -> None:
        """SIGSTOP or SIGCONT."""
        assert self._process is not None
        os.kill(self._process.pid, signal)

    async def aclose(self) -> None:
        """Ends it and removes its files."""
        await self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
