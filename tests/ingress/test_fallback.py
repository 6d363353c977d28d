"""WebRTC fails where LiveKit has Ingress: the avatar comes back to its own room by RTMP, and by WebRTC later."""

from __future__ import annotations

import pytest

from tests.net.inside import inside, unavailable


@pytest.mark.skipif(bool(unavailable()), reason=unavailable())
async def test_the_avatar_is_in_its_room_again_under_its_identity_and_no_word_is_lost() -> None:
    figures = await inside("tests.bench.reliability_failover:to_ingress", within_s=200, seconds=30)
    found = {figure["name"].removeprefix("ingress: "): figure for figure in figures}
    assert found["speech lost"]["value"] == 0, found["speech lost"]["note"]
    assert found["the avatar seen in its room again"]["value"] < 20
    met = found["the avatar heard in its room again"]["note"]
    assert "'kind': 'INGRESS'" in met and "'lk.publish_on_behalf': 'somebody'" in met and "avatar.state" in met
    assert "'kind': 'AGENT'" in found["on the way back, longest without a picture"]["note"]
    assert found["possible again to picture by WebRTC"]["value"] < 40
    assert found["ingresses while the session ran"]["value"] == 1
    assert found["ingresses left"]["value"] == 0
