"""`[wave]` in what the avatar of a conversation says: a gesture at its word, and in no history, caption or sound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from musetalk_tools.livekit_server import LiveKitAccess
from orchestrator.conversation.conversations import find_python
from tests.fakes.openai_models import FakeModels
from tests.fakes.stage import Stage
from tests.integrations.conversation.room_lines import follow_captions
from tests.integrations.conversation.test_talk import talk
from tests.musetalk_agent.avatars.clips import frames_zip, moving
from tests.waiting import until

pytestmark = [
    pytest.mark.livekit,
    pytest.mark.skipif(
        find_python() is None, reason="no environment for conversations: run `tools/setup conversation`"
    ),
]
FACE = [np.ascontiguousarray(frame) for frame in moving(6, 128)]
MIRRORED = [np.ascontiguousarray(frame[:, ::-1]) for frame in FACE]
REPLY = "Well [wave] this is a long answer of mine. [sic] And the end [nod] of it. [wave]"
SPOKEN = "Well this is a long answer of mine. [sic] And the end [nod] of it."


async def with_a_wave(running: Stage) -> dict[str, Any]:
    """An avatar of the library that can wave."""
    made = await running.http.post("/avatars", content=frames_zip(FACE), headers={"X-Filename": "a.zip"})
    avatar_id = made.json()["avatar_id"]
    put = await running.http.put(f"/avatars/{avatar_id}/clips/wave", content=frames_zip(MIRRORED))
    assert put.status_code == 201, put.text
    return {"avatar_id": avatar_id}


async def test_a_reply_and_a_line_wave(livekit_server: LiveKitAccess) -> None:
    models = FakeModels(replies=[REPLY])
    lines: list[tuple[str, dict[str, str], str]] = []
    async with talk(livekit_server, models, prepare=with_a_wave, greeting="[wave] Good morning.") as here:
        follow_captions(here.running.ears.room, lines)
        await until(lambda: len(here.of("reply.finished")) == 1)
        await here.chat("Hello.")
        await until(lambda: len(here.of("reply.finished")) == 2)
        said = [event["text"].strip() for event in here.of("reply.finished")]
        assert said == ["Good morning.", SPOKEN]
        assert [text for role, text, _ in await here.messages() if role == "assistant"] == said
        assert [event["data"]["name"] for event in here.of("reply.action")] == ["wave", "wave", "wave"]
        kinds = [event["type"] for event in here.events if event["type"].startswith("reply.")]
        assert kinds.index("reply.action") < kinds.index("reply.finished"), "while it is heard"
        await until(lambda: any("of it" in text for _, _, text in lines))
        assert not any("wave" in text for _, _, text in lines)
        (system,) = [text for role, text in models.asked[0] if role == "system"]
        assert system.startswith("Be brief.") and "these gestures: [wave]." in system
