from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from musetalk_tools.processes import free_port
from tests.fakes.stage import Stage, stage
from tests.waiting import wait_until


@pytest.fixture
async def running() -> AsyncIterator[Stage]:
    """A running orchestrator with one agent."""
    async with stage() as ready:
        yield ready


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A server that speaks S3, in a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert server.poll() is None
        try:
            return httpx.get(url, trust_env=False).status_code < 500
        except httpx.TransportError:
            return False

    try:
        wait_until(answers)
        yield url
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket, and the environment to reach it."""
    name = f"bucket-{secrets.token_hex(4)}"
    assert httpx.put(f"{s3_endpoint}/{name}", trust_env=False).is_success
    for variable, value in {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(variable, value)
    return f"s3://{name}/folder"
