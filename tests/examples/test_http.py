"""README.md's example over HTTP, exactly as printed: a viewer who joins with what it prints sees and hears the avatar."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.bench.engine import speech
from tests.bench.stack import demo
from tests.examples.printed import example
from tests.viewer import Viewer
from tests.waiting import NEVER_S

pytestmark = pytest.mark.livekit
_CALL = """
import asyncio, pathlib, sys
import printed
asyncio.run(printed.main(sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]).read_bytes()))
"""


@pytest.mark.network
async def test_the_example_over_http(tmp_path: Path) -> None:
    (tmp_path / "printed.py").write_text(example("http").code)
    (tmp_path / "said.pcm").write_bytes(speech()[: 3 * 16_000].astype("<i2").tobytes())
    async with demo() as stack:
        viewer = Viewer()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-u", "-W", "error", "-c", _CALL),
            *(stack.info["orchestrator_url"], stack.info["api_key"], "said.pcm"),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            async with asyncio.timeout(2 * NEVER_S):
                url, token = (await process.stdout.readline()).decode().split()
            assert url == stack.info["livekit_url"]
            await viewer.join(url, token)
            assert await viewer.until(NEVER_S, lambda: viewer.video and len(viewer.heard(0.0, 1000)) > 50)
            _, err = await asyncio.wait_for(process.communicate(), 3 * NEVER_S)
            assert (process.returncode, err) == (0, b"")  # it ended by itself: playback.finished came
        finally:
            await viewer.leave()
            if process.returncode is None:
                process.kill()
                await process.communicate()
            for session in (await stack.http.get("/sessions")).json()["sessions"]:
                await stack.http.post(f"/session/{session['session_id']}/stop")
