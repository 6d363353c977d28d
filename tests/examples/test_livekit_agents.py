"""The example of livekit-agents, exactly as printed, as a worker of the real package: a viewer hears it from the avatar."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.bench.stack import Demo, demo
from tests.examples.printed import ROOT, example
from tests.integrations.livekit_agents.world import MISSING, PYTHON
from tests.viewer import Viewer

pytestmark = [
    pytest.mark.livekit,
    pytest.mark.timeout(180),
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
]
_WORKER = Path(__file__).with_name("livekit_agents_worker.py")


@asynccontextmanager
async def _worker(folder: Path, stack: Demo) -> AsyncIterator[asyncio.subprocess.Process]:
    """The worker, registered: it takes a job for every room that is made from now on."""
    (folder / "as_printed.py").write_text(example("livekit-agents").code)
    info = stack.info
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ["HOME"],
        "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT / "integrations/livekit_agents"))),
        "LIVEKIT_URL": info["livekit_url"],
        "LIVEKIT_API_KEY": info["livekit_api_key"],
        "LIVEKIT_API_SECRET": info["livekit_api_secret"],
        "MUSETALK_URL": info["orchestrator_url"],
        "MUSETALK_API_KEY": info["api_key"],
    }
    process = await asyncio.create_subprocess_exec(
        *(str(PYTHON), str(_WORKER), "start"), cwd=folder, env=environment, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    log: list[bytes] = []
    registered = asyncio.Event()

    async def read(stdout: asyncio.StreamReader) -> None:
        async for line in stdout:
            log.append(line)
            if b'"registered worker"' in line:
                registered.set()
        registered.set()

    reading = asyncio.create_task(read(process.stdout))
    try:
        async with asyncio.timeout(90):
            await registered.wait()
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading
        print(b"".join(log).decode())  # shown when the test fails


async def test_the_example_of_livekit_agents(tmp_path: Path) -> None:
    async with demo("--engine", "pattern") as stack, _worker(tmp_path, stack) as process:
        ticket = (await stack.http.post("/token", json={"room": "demo", "identity": "viewer"})).json()
        viewer = await Viewer().join(stack.info["livekit_url"], ticket["token"])
        try:
            assert await viewer.until(90, lambda: process.returncode is not None or len(viewer.heard(0.0)) > 100)
            assert process.returncode is None
            assert any(centre > 160 for _, centre, _, _ in viewer.video)  # the pattern's lips
            speakers = {
                viewer.owners[sid]
                for sid, strand in viewer.strands.items()
                if any(np.abs(block.astype(int)).max(initial=0) > 1500 for _, block in strand)
            }
            (session,) = (await stack.http.get("/sessions")).json()["sessions"]
            assert speakers == {session["avatar_identity"]}  # once, and not from the agent as well
            assert session["room"] == "demo"
        finally:
            await viewer.leave()
