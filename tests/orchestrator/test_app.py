"""The beginning and the end of the service as a whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from orchestrator.tts.synthesizer import SpeechChunk, SpeechOptions, VoiceInfo
from orchestrator.tts.voices import Voices
from tests.fakes.stage import stage
from tests.orchestrator.session.test_takeover import seed, view


class Cold:
    """A voice that is warm when the test says so."""

    def __init__(self) -> None:
        self.warm = asyncio.Event()
        self.closed = False

    async def open(self) -> None:
        await self.warm.wait()

    async def aclose(self) -> None:
        self.closed = True

    def names(self) -> list[VoiceInfo]:
        return [VoiceInfo("cold:voice", "en", "cold", 16_000)] if self.warm.is_set() else []

    async def speak(self, text: str, voice: str, options: SpeechOptions) -> AsyncGenerator[SpeechChunk, None]:
        yield SpeechChunk(b"", 16_000, ())


async def test_sessions_are_recovered_while_the_voices_warm_up_and_texts_wait_for_them(tmp_path: Path) -> None:
    await seed(tmp_path / "o.db", agent_url="http://127.0.0.1:9")
    cold = Cold()
    async with (
        asyncio.timeout(60),
        stage(store_path=str(tmp_path / "o.db"), voices=Voices(synthesizers=[cold])) as running,
    ):
        assert (await view(running, "ready"))["moves"] == 1
        path = "/session/ses_old/speak"
        speaking = asyncio.create_task(running.http.post(path, json={"text": "Hello.", "voice": "cold:voice"}))
        listed = asyncio.create_task(running.http.get("/voices"))
        assert (await running.http.get("/health")).status_code == 200
        assert not speaking.done() and not listed.done()
        cold.warm.set()
        assert (await speaking).status_code == 202
        assert [voice["name"] for voice in (await listed).json()["voices"]] == ["cold:voice"]
    assert cold.closed


async def test_an_end_comes_while_the_voices_still_warm_up() -> None:
    cold = Cold()
    async with asyncio.timeout(60):
        async with stage(voices=Voices(synthesizers=[cold])):
            pass
    assert cold.closed


async def test_every_part_is_closed_whatever_the_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []

    async def broken() -> None:
        raise RuntimeError("a bug")

    parts = ("own_voices", "webhooks", "ingresses", "rooms", "pool", "agents")
    async with stage() as running:
        started = await running.start()
        context = running.app.state.context
        monkeypatch.setattr(context.own_voices, "aclose", broken)
        monkeypatch.setattr(context.starts, "aclose", broken)
        for name in parts[1:]:
            part = getattr(context, name)

            async def close(part: str = name, real: object = part.aclose) -> None:
                closed.append(part)
                await real()  # type: ignore[operator]  # the part's own method

            monkeypatch.setattr(part, "aclose", close)
        real_store_close = context.journal.store.aclose

        async def close_store() -> None:
            closed.append("store")
            await real_store_close()

        monkeypatch.setattr(context.journal.store, "aclose", close_store)
    assert closed == ["store", *parts[1:]]
    assert running.agent.stopped == [started["session_id"]]
