"""Tokens and rooms against a real livekit-server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from livekit import api, rtc

from tests.fakes.stage import stage
from tests.waiting import NEVER_S

pytestmark = pytest.mark.livekit


def overrides(server: Any) -> dict[str, Any]:
    return {"livekit_url": server.url, "livekit_api_key": server.api_key, "livekit_api_secret": server.api_secret}


async def test_a_viewer_joins_with_its_token_and_may_not_publish(livekit_server: Any) -> None:
    async with stage(**overrides(livekit_server)) as running:
        reported = (await running.http.post("/token", json={"room": "watch", "identity": "me"})).json()
        assert reported["livekit_url"] == livekit_server.url and (reported["room"], reported["identity"]) == (
            "watch",
            "me",
        )
        room = rtc.Room()
        await room.connect(reported["livekit_url"], reported["token"])
        livekit = api.LiveKitAPI(livekit_server.url, livekit_server.api_key, livekit_server.api_secret)
        try:
            assert room.name == "watch" and room.local_participant.identity == "me"
            (seen,) = (await livekit.room.list_participants(api.ListParticipantsRequest(room="watch"))).participants
            assert seen.permission.can_subscribe
            assert not (seen.permission.can_publish or seen.permission.can_publish_data)
        finally:
            await livekit.aclose()
            await room.disconnect()


async def test_the_room_exists_rightly_configured_before_anybody_joins(livekit_server: Any) -> None:
    async with stage(**overrides(livekit_server)) as running:
        await running.http.post("/token", json={"room": "made", "identity": "me"})
        livekit = api.LiveKitAPI(livekit_server.url, livekit_server.api_key, livekit_server.api_secret)
        try:
            (room,) = (await livekit.room.list_rooms(api.ListRoomsRequest(names=["made"]))).rooms
            assert (room.empty_timeout, room.departure_timeout) == (300, 20)
        finally:
            await livekit.aclose()


async def test_a_room_holds_pictures_back_where_packets_are_lost(livekit_server: Any) -> None:
    async with stage(**overrides(livekit_server), livekit_playout_delay_ms=200) as running:
        token = (await running.http.post("/token", json={"room": "lossy", "identity": "me"})).json()["token"]
        config = api.TokenVerifier(livekit_server.api_key, livekit_server.api_secret).verify(token).room_config
        assert config is not None
        assert (config.min_playout_delay, config.max_playout_delay, config.sync_streams) == (200, 200, True)


async def test_stop_removes_an_avatar_that_lingers(livekit_server: Any) -> None:
    async with stage(**overrides(livekit_server)) as running:
        started = await running.start(room="lingers")
        gone = asyncio.Event()
        avatar = rtc.Room()
        avatar.on("disconnected", lambda reason: gone.set())
        await avatar.connect(livekit_server.url, running.agent.only.request.livekit_token)
        assert avatar.local_participant.identity == started["avatar_identity"]
        assert avatar.local_participant.kind == rtc.ParticipantKind.PARTICIPANT_KIND_AGENT
        await running.http.post(f"/session/{started['session_id']}/stop")
        async with asyncio.timeout(NEVER_S):
            await gone.wait()
        await avatar.disconnect()


async def test_a_wrong_secret_is_livekit_unavailable(livekit_server: Any) -> None:
    wrong = overrides(livekit_server) | {"livekit_api_secret": "x" * 32}
    async with stage(**wrong) as running:
        answer = await running.http.post("/token", json={"room": "r", "identity": "me"})
        assert (answer.status_code, answer.json()["code"]) == (503, "livekit_unavailable")
