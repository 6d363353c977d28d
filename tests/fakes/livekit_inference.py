"""A stand-in for LiveKit's inference gateway: its chat completions, and its sockets for speech in both directions."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from tests.fakes.openai_models import FakeModels


@dataclass
class FakeInference:
    """`models` answers for the language model. `tokens` are those that each part was called with, `opened` the sessions of the
    sockets, `spoken` the texts.
    """

    models: FakeModels
    tokens: dict[str, str] = field(default_factory=dict)
    opened: dict[str, dict[str, Any]] = field(default_factory=dict)
    spoken: list[str] = field(default_factory=list)

    @property
    def app(self) -> Starlette:
        """The server."""
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                WebSocketRoute("/v1/tts", self._tts),
                WebSocketRoute("/v1/stt", self._stt),
            ]
        )

    def _note(self, part: str, connection: HTTPConnection) -> None:
        self.tokens[part] = connection.headers.get("authorization", "").removeprefix("Bearer ")

    async def _chat(self, request: Request) -> Response:
        self._note("llm", request)
        self.opened["llm"] = {"model": (await request.json())["model"]}
        return await self.models.chat(request)

    async def _tts(self, socket: WebSocket) -> None:
        """200 ms of 440 Hz for each word."""
        self._note("tts", socket)
        await socket.accept()
        words: list[str] = []
        try:
            while True:
                message = json.loads(await socket.receive_text())
                if message["type"] == "session.create":
                    self.opened["tts"] = {**message, "model": socket.query_params["model"]}
                    await socket.send_json({"type": "session.created", "session_id": "s1"})
                elif message["type"] == "input_transcript":
                    words += message["transcript"].split()
                elif message["type"] == "session.flush":
                    self.spoken.append(" ".join(words))
                    t = np.arange(len(words) * 4800) / 24_000
                    pcm = (6000 * np.sin(2 * np.pi * 440 * t)).astype("<i2").tobytes()
                    audio = base64.b64encode(pcm).decode()
                    await socket.send_json({"type": "output_audio", "session_id": "s1", "audio": audio})
                    await socket.send_json({"type": "done", "session_id": "s1"})
                    words = []
        except WebSocketDisconnect:
            pass

    async def _stt(self, socket: WebSocket) -> None:
        """Takes sound, and hears nothing in it."""
        self._note("stt", socket)
        await socket.accept()
        try:
            while True:
                message = json.loads(await socket.receive_text())
                if message["type"] == "session.create":
                    self.opened["stt"] = {**message, "model": socket.query_params["model"]}
                    await socket.send_json({"type": "session.created", "session_id": "s2"})
                elif message["type"] == "session.finalize":
                    await socket.send_json({"type": "session.finalized", "session_id": "s2"})
                elif message["type"] == "session.close":
                    await socket.send_json({"type": "session.closed", "session_id": "s2"})
                await asyncio.sleep(0)
        except WebSocketDisconnect:
            pass
