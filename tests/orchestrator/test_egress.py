"""Rooms are not recorded at a real livekit-server that has no Egress: the caller learns why, and the session runs on."""

from __future__ import annotations

from pathlib import Path

import pytest

from musetalk_tools.livekit_server import LiveKitAccess
from tests.fakes.stage import stage

pytestmark = pytest.mark.livekit


async def test_a_server_without_egress(livekit_server: LiveKitAccess, tmp_path: Path) -> None:
    keys = {"livekit_api_key": livekit_server.api_key, "livekit_api_secret": livekit_server.api_secret}
    async with stage(livekit_url=livekit_server.url, egress_dir=tmp_path, **keys) as running:
        started = await running.start(room="filmed")
        address = f"/session/{started['session_id']}/recording"
        refused = await running.http.post(address, json={"state": "recording", "of": "room"})
        problem = refused.json()
        assert (refused.status_code, problem["code"]) == (503, "recording_unavailable")
        assert "Egress" in problem["detail"] and refused.headers["Retry-After"] == "5"
        assert (await running.http.get(address)).json()["state"] == "none"
        assert (await running.http.post(address, json={"state": "recording"})).status_code == 200, "the avatar is"
