"""Ingresses against the real thing, and against a deployment that has none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from livekit import api

from musetalk_tools.livekit_server import LiveKitAccess, LiveKitServer, find
from orchestrator.livekit_rooms import Ingresses, IngressMode, LiveKitKeys
from tests.servers.ingress import Deployment, deployment
from tests.servers.redis import redis_server


@pytest.fixture
async def deployed() -> AsyncIterator[Deployment]:
    async with deployment() as running:
        yield running


@asynccontextmanager
async def ingresses(access: LiveKitAccess, mode: IngressMode = IngressMode.AUTO) -> AsyncIterator[Ingresses]:
    made = Ingresses(LiveKitKeys(access.url, access.url, access.api_key, access.api_secret), mode)
    await made.open()
    try:
        yield made
    finally:
        await made.aclose()


async def listed(access: LiveKitAccess) -> list[str]:
    livekit = api.LiveKitAPI(access.url, access.api_key, access.api_secret)
    try:
        return [item.ingress_id for item in (await livekit.ingress.list_ingress(api.ListIngressRequest())).items]
    finally:
        await livekit.aclose()


async def test_made_for_a_room_and_an_identity_and_removed(deployed: Deployment) -> None:
    async with ingresses(deployed.access) as made:
        way = await made.create("stage", "avatar-ses_1", "Avatar")
        assert way is not None and way.target.ingress and way.target.url.startswith(deployed.rtmp + "/")
        key = way.target.url.rpartition("/")[2]
        assert len(key) >= 8 and key not in repr(way)
        assert await listed(deployed.access) == [way.ingress_id]
        await made.remove(way.ingress_id)
        assert await listed(deployed.access) == []
        await made.remove(way.ingress_id)  # gone already: nothing is raised


async def test_switched_off_nothing_is_asked(deployed: Deployment) -> None:
    async with ingresses(deployed.access, IngressMode.OFF) as made:
        assert await made.create("stage", "avatar-ses_1", "Avatar") is None
        assert await listed(deployed.access) == []


async def test_a_deployment_without_redis_is_asked_once(
    livekit_server: LiveKitAccess, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with ingresses(livekit_server) as made:
        for _ in range(3):
            assert await made.create("stage", "avatar-ses_1", "Avatar") is None
    (reported,) = [record for record in caplog.records if record.message.startswith("no ingress")]
    assert (reported.reason, reported.asked_again_s) == ("no Redis", 300.0)  # type: ignore[attr-defined]  # `extra` puts them on the record


async def test_a_deployment_with_redis_and_no_address_is_asked_once_and_nothing_is_left() -> None:
    program = find()
    assert program is not None
    async with redis_server() as redis:
        server = LiveKitServer(program, "error", redis=redis.url.split("/")[2])
        try:
            await server.start()
            async with ingresses(server.access) as made:
                assert await made.create("stage", "avatar-ses_1", "Avatar") is None
                assert await made.create("stage", "avatar-ses_1", "Avatar") is None
            assert await listed(server.access) == []
        finally:
            await server.stop()
