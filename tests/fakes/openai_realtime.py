"""A stand-in for a model of OpenAI's realtime dialect: it hears loud sound, and answers what the test decides by words and tone."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from tests.fakes.openai_models import Calls

RATE = 24_000
_LOUD = 500
_TURN_S, _PAUSE_S = 0.3, 0.3


@dataclass
class FakeRealtime:
    """`replies` are given in turn, the last one again and again; one may be calls of functions. `sent` are the client's events but
    for sound, `keys` its keys, `heard_s` the seconds of its sound.
    """

    replies: list[str | Calls] = field(default_factory=lambda: ["I have heard you."])
    transcript: str = "What is your name?"
    sent: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    heard_s: float = 0.0

    @property
    def app(self) -> Starlette:
        """The server."""
        return Starlette(routes=[WebSocketRoute("/v1/realtime", self._serve)])

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The client's events of this type."""
        return [event for event in self.sent if event["type"] == kind]

    async def _serve(self, socket: WebSocket) -> None:
        self.keys.append(socket.headers.get("authorization", "").removeprefix("Bearer "))
        self.models.append(socket.query_params["model"])
        await socket.accept()
        try:
            await _Connection(self, socket).run()
        except WebSocketDisconnect:
            pass


class _Connection:
    def __init__(self, fake: FakeRealtime, socket: WebSocket) -> None:
        self._fake = fake
        self._socket = socket
        self._items: list[str] = []
        self._response: asyncio.Task[None] | None = None
        self._number = 0
        self._loud = self._quiet = 0.0
        self._speech: str | None = None

    async def run(self) -> None:
        await self._send("session.created", session={"type": "realtime"})
        try:
            while True:
                event = json.loads(await self._socket.receive_text())
                if event["type"] == "input_audio_buffer.append":
                    await self._hear(np.frombuffer(base64.b64decode(event["audio"]), "<i2"))
                    continue
                self._fake.sent.append(event)
                await self._take(event)
        finally:
            if self._response is not None:
                self._response.cancel()
                await asyncio.gather(self._response, return_exceptions=True)

    async def _take(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        if kind == "session.update":
            await self._send("session.updated", session=event["session"])
        elif kind == "conversation.item.create":
            await self._add(event["item"])
        elif kind == "conversation.item.delete":
            await self._send("conversation.item.deleted", item_id=event["item_id"])
        elif kind == "conversation.item.truncate":
            await self._send(
                "conversation.item.truncated",
                **{key: event[key] for key in ("item_id", "content_index", "audio_end_ms")},
            )
        elif kind == "response.create":
            self._answer(event.get("response", {}).get("metadata"))
        elif kind == "response.cancel" and self._response is not None:
            self._response.cancel()

    async def _hear(self, sound: np.ndarray[Any, np.dtype[np.int16]]) -> None:
        seconds = len(sound) / RATE
        self._fake.heard_s += seconds
        loud = len(sound) > 0 and float(np.sqrt(np.mean(sound.astype(float) ** 2))) > _LOUD
        self._quiet = 0.0 if loud else self._quiet + seconds
        self._loud += seconds if loud else 0.0
        if self._speech is None and self._loud >= _TURN_S:
            self._speech = self._name("item")
            if self._response is not None:
                self._response.cancel()
            await self._send("input_audio_buffer.speech_started", item_id=self._speech, audio_start_ms=0)
        elif self._speech is not None and self._quiet >= _PAUSE_S:
            item, self._speech, self._loud = self._speech, None, 0.0
            await self._send("input_audio_buffer.speech_stopped", item_id=item, audio_end_ms=0)
            await self._send("input_audio_buffer.committed", item_id=item)
            await self._add({"id": item, "type": "message", "role": "user", "content": [{"type": "input_audio"}]})
            await self._send(
                "conversation.item.input_audio_transcription.completed",
                item_id=item,
                content_index=0,
                transcript=self._fake.transcript,
            )
            self._answer(None)

    async def _add(self, item: dict[str, Any]) -> None:
        previous = self._items[-1] if self._items else None
        self._items.append(item["id"])
        await self._send("conversation.item.added", previous_item_id=previous, item=item)

    def _answer(self, metadata: dict[str, str] | None) -> None:
        replies = self._fake.replies
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        self._response = asyncio.create_task(self._respond(reply, metadata))

    async def _respond(self, reply: str | Calls, metadata: dict[str, str] | None) -> None:
        response = {"id": self._name("resp"), "object": "realtime.response", "metadata": metadata, "output": []}
        if not isinstance(reply, str):
            await self._call(reply, response)
            return
        item = {"id": self._name("item"), "type": "message", "role": "assistant", "content": []}
        part = {"item_id": item["id"], "response_id": response["id"], "output_index": 0, "content_index": 0}
        status = "completed"
        await self._send("response.created", response={**response, "status": "in_progress"})
        try:
            await self._send("response.output_item.added", **part, item=item)
            await self._add(item)
            await self._send("response.content_part.added", **part, part={"type": "audio", "transcript": ""})
            for n, word in enumerate(reply.split()):
                t = np.arange(n * RATE // 5, (n + 1) * RATE // 5) / RATE
                pcm = (6000 * np.sin(2 * np.pi * 440 * t)).astype("<i2").tobytes()
                await self._send("response.output_audio_transcript.delta", **part, delta=word + " ")
                await self._send("response.output_audio.delta", **part, delta=base64.b64encode(pcm).decode())
            await self._send("response.output_audio.done", **part)
        except asyncio.CancelledError:
            status = "cancelled"
        await self._send("response.output_item.done", **part, item=item)
        await self._send("response.done", response={**response, "status": status})

    async def _call(self, calls: Calls, response: dict[str, Any]) -> None:
        await self._send("response.created", response={**response, "status": "in_progress"})
        for number, (name, arguments) in enumerate(calls):
            item = {"id": self._name("item"), "type": "function_call", "name": name, "call_id": self._name("call")}
            part = {"response_id": response["id"], "output_index": number}
            await self._send("response.output_item.added", **part, item={**item, "arguments": ""})
            await self._add({**item, "arguments": ""})
            await self._send("response.output_item.done", **part, item={**item, "arguments": json.dumps(arguments)})
        await self._send("response.done", response={**response, "status": "completed"})

    def _name(self, kind: str) -> str:
        self._number += 1
        return f"{kind}_{self._number}"

    async def _send(self, kind: str, **fields: Any) -> None:
        await self._socket.send_text(json.dumps({"type": kind, "event_id": self._name("event"), **fields}))
