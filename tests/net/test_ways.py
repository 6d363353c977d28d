"""The whole product while its network fails: a short form of `tests.bench.reliability`, which has the figures."""

from __future__ import annotations

import pytest

from tests.net.inside import inside, unavailable
from tests.servers import nginx_rtmp

pytestmark = [
    pytest.mark.livekit,
    pytest.mark.network,
    pytest.mark.skipif(bool(unavailable()), reason=unavailable()),
]


@pytest.mark.skipif(nginx_rtmp.module() is None, reason="nginx with its RTMP module is missing: run tools/setup rtmp")
async def test_webrtc_made_impossible_goes_to_rtmp_and_back_without_losing_a_word() -> None:
    figures = await inside("tests.bench.reliability_failover:to_rtmp", within_s=150, seconds=6, stay_s=1)
    found = {figure["name"].removeprefix("WebRTC impossible: "): figure["value"] for figure in figures}
    assert found["speech lost"] == 0
