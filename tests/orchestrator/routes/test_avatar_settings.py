"""`avatar_settings`: checked at the start, and handed to the agent as they are."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from musetalk_agent.protocol.avatar_settings import AvatarSettings
from tests.fakes.stage import Stage
from tests.orchestrator.test_protocol_doc import DOC

BODY = {"room": "stage", "engine": "pattern"}
SETTINGS = {
    "bbox_shift": -7,
    "mouth_gain": 1.25,
    "av_offset_ms": -80,
    "smoothing": "strong",
    "blend": "poisson",
    "sharpen": 0.5,
    "restore": True,
    "background": "#00ff00",
}


async def test_the_agent_gets_what_was_asked_for_and_else_the_defaults(running: Stage) -> None:
    await running.start(avatar_settings=SETTINGS)
    assert running.agent.only.request.avatar_settings == AvatarSettings(**SETTINGS)


async def test_a_field_left_out_has_its_default(running: Stage) -> None:
    await running.start(avatar_settings={"sharpen": 1})
    asked = running.agent.only.request.avatar_settings
    assert (asked.sharpen, asked.mouth_gain, asked.av_offset_ms, asked.bbox_shift) == (1, 1, 0, None)
    assert (asked.smoothing, asked.blend) == ("light", "feather")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bbox_shift", 51),
        ("bbox_shift", -51),
        ("mouth_gain", 0.4),
        ("mouth_gain", 2.1),
        ("mouth_gain", "NaN"),
        ("av_offset_ms", 201),
        ("av_offset_ms", -201),
        ("av_offset_ms", 1.5),
        ("smoothing", "medium"),
        ("blend", "alpha"),
        ("sharpen", 1.01),
        ("sharpen", -0.1),
        ("sharpness", 1),
        ("restore", "film"),
        ("background", "green"),
        ("background", "image:file:///a.png"),
    ],
)
async def test_what_cannot_be_is_named(running: Stage, field: str, value: Any) -> None:
    answer = await running.http.post("/session/start", json={**BODY, "avatar_settings": {field: value}})
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["field"]) == (
        422,
        "invalid_request",
        f"avatar_settings.{field}",
    )
    assert running.agent.starts == 0


CLEAR = {"background": "transparent"}


async def test_a_session_is_transparent_where_it_asks_for_that(running: Stage) -> None:
    body = {"engine": "warp", "avatar_id": "demo"}
    started = await running.start(avatar_settings=CLEAR, **body)
    assert started["alpha"] == "below"
    request = running.agent.only.request
    assert request.avatar_settings.background == "transparent"
    payload = request.livekit_token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert claims["attributes"]["avatar.alpha"] == "below"
    path = f"/session/{started['session_id']}"
    shown = await running.http.post(
        f"{path}/avatar", json={"avatar_id": "demo", "avatar_settings": {"background": "#ff0000"}}
    )
    assert shown.status_code == 200, shown.text
    assert running.agent.avatars.shown[-1].avatar_settings.background == "transparent", "the tracks have alpha"
    recorded = await running.http.post(f"{path}/recording", json={"state": "recording"})
    assert (recorded.status_code, recorded.json()["code"], recorded.json()["field"]) == (
        422,
        "invalid_request",
        "state",
    )


@pytest.mark.parametrize("more", [{"record": True}, {"rtmp_url": "rtmp://203.0.113.9/live/key"}, {"engine": "pattern"}])
async def test_what_has_no_alpha_is_refused_beside_it(running: Stage, more: dict[str, Any]) -> None:
    body = {"room": "stage", "engine": "warp", "avatar_id": "demo", "avatar_settings": CLEAR, **more}
    refused = (await running.http.post("/session/start", json=body)).json()
    assert (refused["code"], refused["field"]) == ("invalid_request", next(iter(more))), refused
    assert running.agent.starts == 0


def test_every_setting_is_described() -> None:
    for name in AvatarSettings.model_fields:
        assert f"| `{name}` |" in DOC, name
