"""The ingress of a session, made and removed at a real livekit-server with a real Redis; nobody pushes to it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from livekit import api

from musetalk_tools.livekit_server import LiveKitAccess, LiveKitServer, find
from tests.fakes.stage import Stage, stage
from tests.servers.redis import redis_server

pytestmark = pytest.mark.livekit
_RTMP = "rtmp://127.0.0.1:1935/live"


@pytest.fixture
async def staged() -> AsyncIterator[tuple[Stage, LiveKitAccess]]:
    program = find()
    assert program is not None, "livekit-server is missing: run `tools/setup livekit`"
    async with redis_server() as redis:
        server = LiveKitServer(program, "error", redis=redis.url.split("/")[2], rtmp_base_url=_RTMP)
        keys = {"livekit_api_key": server.access.api_key, "livekit_api_secret": server.access.api_secret}
        try:
            await server.start()
            async with stage(livekit_url=server.access.url, **keys) as running:
                yield running, server.access
        finally:
            await server.stop()


async def listed(access: LiveKitAccess) -> list[api.IngressInfo]:
    livekit = api.LiveKitAPI(access.url, access.api_key, access.api_secret)
    try:
        return list((await livekit.ingress.list_ingress(api.ListIngressRequest())).items)
    finally:
        await livekit.aclose()


async def test_a_session_has_an_ingress_of_its_own_identity_which_goes_with_it(
    staged: tuple[Stage, LiveKitAccess],
) -> None:
    running, access = staged
    started = await running.start(room="made")
    (made,) = await listed(access)
    assert (made.room_name, made.participant_identity) == ("made", started["avatar_identity"])
    target = running.agent.only.request.rtmp
    assert target is not None and target.ingress and target.url == f"{_RTMP}/{made.stream_key}"
    reported = (await running.http.get(f"/session/{started['session_id']}")).json()
    assert made.stream_key not in json.dumps(reported) + json.dumps(started)
    await running.http.post(f"/session/{started['session_id']}/stop")
    assert await listed(access) == []


async def test_the_ingress_takes_any_shape_as_it_is(staged: tuple[Stage, LiveKitAccess]) -> None:
    """LiveKit's ingress fits what comes into the layer's box; a preset's box would show a portrait at 404×720."""
    running, access = staged
    await running.start(room="made")
    (made,) = await listed(access)
    assert made.video.WhichOneof("encoding_options") == "options" and len(made.video.options.layers) == 1
    (layer,) = made.video.options.layers
    assert (layer.width, layer.height, layer.bitrate) == (1920, 1920, 3_000_000)


async def test_only_ingresses_of_this_deployment_are_ours(staged: tuple[Stage, LiveKitAccess]) -> None:
    running, access = staged
    started = await running.start(room="made")
    (made,) = await listed(access)
    ingresses = running.app.state.context.ingresses
    assert await ingresses.ours() == {made.ingress_id: started["avatar_identity"]}
    ingresses._deployment_id = lambda: "dep_another"
    assert await ingresses.ours() == {}


async def test_a_session_with_an_address_of_its_own_needs_none(staged: tuple[Stage, LiveKitAccess]) -> None:
    running, access = staged
    await running.start(room="own", rtmp_url="rtmp://stream.example/live/key")
    target = running.agent.only.request.rtmp
    assert target is not None and not target.ingress and await listed(access) == []
