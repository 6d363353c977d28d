"""The example of `docs/how-to/livekit-agents.md`, as printed, as a job of a real worker."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from musetalk_tools.livekit_server import LiveKitAccess
from tests.clients.printed import lines, printed
from tests.integrations.livekit_agents.world import MISSING, talker
from tests.orchestrator.voice.stack import stack
from tests.orchestrator.voice.tones import Ears, heard_all, once
from tests.viewer import join_token
from tests.waiting import NEVER_S

pytestmark = pytest.mark.livekit


async def test_a_job_gets_a_face_and_gives_it_back(livekit_server: LiveKitAccess, tmp_path: Path) -> None:
    example = printed("docs/how-to/livekit-agents.md", "python")
    assert lines(example) <= 10
    if MISSING is not None:
        pytest.skip(MISSING)
    (tmp_path / "example.py").write_text(example)
    async with stack(livekit_server, agents=1, voice_standby="off") as running:
        http, ears = running.stage.http, Ears()
        try:
            path = str(tmp_path / "example.py")
            async with talker(livekit_server, running.stage.url, "example_agent.py", path) as worker:
                await ears.join(livekit_server.url, join_token(livekit_server, "example", "viewer"))
                assert await ears.until(NEVER_S, lambda: ears.video), worker.reported
                assert await heard_all(ears, 9), worker.reported
                durations = ears.durations(10)
                begun = int(np.argmax(durations > 0))  # it speaks as soon as it is there: a viewer may still subscribe
                assert begun < 5 and once(durations[begun + 1 :]), durations
                (session,) = (await http.get("/sessions")).json()["sessions"]
                assert session["room"] == "example" and session["state"] in ("ready", "speaking")
            assert worker.of("left") and worker.complaints == []
            (session,) = (await http.get("/sessions")).json()["sessions"]
            assert session["state"] == "stopped" and session["end_reason"] == "stopped"
        finally:
            await ears.leave()
