"""Stand-ins for a language model and a speech recogniser in OpenAI's dialect: they answer what the test decides."""

from __future__ import annotations

import asyncio
import io
import json
import wave
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

KEY = "models-key-of-the-tests"
BEGINNING_S = 0.75
"""Seconds of a recording by which the same speech is known again: half a second before it, and some of it."""

Calls = list[tuple[str, dict[str, object]]]
"""Functions that the model calls, with their arguments."""
Trouble = Literal["refuses", "hangs", "breaks off"]
"""What becomes of a request instead of its answer: status 503; nothing, ever; the connection is cut after three words."""


@dataclass
class FakeModels:
    """`replies` are given in turn, the last one again and again; `transcripts` likewise. A recording that begins as the one before
    did is the same speech and has the same transcript, and the same messages have the same reply: a conversation begins its answer
    before a turn is over. A reply may be calls of functions, and `offered` are the functions of the last request. `asked` are the
    messages of each request to the language model, `heard_s` the seconds of each recording. A transcript comes after
    `transcript_s`, the first word of a reply after `first_word_s`, and the others `word_s` apart. `llm_troubles` and `stt_troubles`
    are the next requests' instead of answers, which keep their turn.
    """

    replies: list[str | Calls] = field(default_factory=lambda: ["I have heard you."])
    transcripts: list[str] = field(default_factory=lambda: ["What is your name?"])
    asked: list[list[tuple[str, str]]] = field(default_factory=list)
    heard_s: list[float] = field(default_factory=list)
    offered: list[dict[str, Any]] = field(default_factory=list)
    spoken: list[tuple[str, str, str, str]] = field(default_factory=list)
    """Text, voice, model and format of each request for speech."""
    key: str | None = KEY
    """What the language model wants; None: anything."""
    transcript_s: float = 0.0
    first_word_s: float = 0.0
    word_s: float = 0.0
    llm_troubles: list[Trouble] = field(default_factory=list)
    stt_troubles: list[Trouble] = field(default_factory=list)
    marks: list[tuple[str, float]] = field(default_factory=list)
    _speech: tuple[bytes, str] = (b"", "")
    _answer: tuple[list[tuple[str, str]], str | Calls] | None = None
    """Requests and answers of the loop's time: `stt asked`, `stt answered`, `llm asked`, `llm first word`."""

    @property
    def app(self) -> Starlette:
        """The server."""
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/audio/transcriptions", self._transcribe, methods=["POST"]),
                Route("/v1/audio/speech", self._speak, methods=["POST"]),
            ]
        )

    async def chat(self, request: Request) -> Response:
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "no such key"}}, 401)
        body = await request.json()
        self._mark("llm asked")
        self.asked.append([(message["role"], _text(message.get("content"))) for message in body["messages"]])
        self.offered = body.get("tools") or []
        if self.llm_troubles:
            return await _troubled(self.llm_troubles.pop(0), body["model"])
        messages = self.asked[-1]
        if self._answer is None or self._answer[0] != messages:
            self._answer = messages, self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        reply = self._answer[1]
        await asyncio.sleep(self.first_word_s)
        self._mark("llm first word")
        made = _chunks(reply, body["model"], self.word_s) if isinstance(reply, str) else _called(reply, body["model"])
        return StreamingResponse(made, media_type="text/event-stream")

    async def _transcribe(self, request: Request) -> Response:
        try:
            body = await request.body()
        except ClientDisconnect:
            return Response(status_code=400)
        self._mark("stt asked")
        with wave.open(io.BytesIO(body[body.index(b"RIFF") :])) as file:  # the only part of the form that is a file
            rate = file.getframerate()
            self.heard_s.append(file.getnframes() / rate)
            beginning = file.readframes(int(BEGINNING_S * rate))
        if self.stt_troubles:
            return await _troubled(self.stt_troubles.pop(0), "")
        if beginning != self._speech[0]:
            self._speech = beginning, self.transcripts.pop(0) if len(self.transcripts) > 1 else self.transcripts[0]
        text = self._speech[1]
        await asyncio.sleep(self.transcript_s)
        self._mark("stt answered")
        return JSONResponse({"text": text})

    def _mark(self, what: str) -> None:
        self.marks.append((what, asyncio.get_running_loop().time()))

    async def _speak(self, request: Request) -> Response:
        """200 ms of 440 Hz for each word."""
        body = await request.json()
        self.spoken.append((body["input"].strip(), body["voice"], body["model"], body["response_format"]))
        t = np.arange(len(body["input"].split()) * 4800) / 24_000
        return Response((6000 * np.sin(2 * np.pi * 440 * t)).astype("<i2").tobytes(), media_type="audio/pcm")


def _text(content: str | list[dict[str, str]] | None) -> str:
    if content is None:  # a message of nothing but calls
        return ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


async def _troubled(trouble: Trouble, model: str) -> Response:
    if trouble == "hangs":
        await asyncio.Event().wait()
    if trouble == "breaks off":
        return StreamingResponse(_broken(model), media_type="text/event-stream")
    return JSONResponse({"error": {"message": "overloaded"}}, 503)


async def _broken(model: str) -> AsyncIterator[bytes]:
    async for chunk in _chunks("Once upon a", model, 0.0):
        if b'"stop"' in chunk:
            raise ConnectionAbortedError("the model breaks off")
        yield chunk


async def _chunks(reply: str, model: str, word_s: float) -> AsyncIterator[bytes]:
    common = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": model}
    for word in [*reply.split(" "), None]:
        delta = {} if word is None else {"role": "assistant", "content": word + " "}
        choice = {"index": 0, "delta": delta, "finish_reason": "stop" if word is None else None}
        yield b"data: " + json.dumps({**common, "choices": [choice]}).encode() + b"\n\n"
        await asyncio.sleep(word_s)
    yield b"data: [DONE]\n\n"


async def _called(calls: Calls, model: str) -> AsyncIterator[bytes]:
    common = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": model}
    made = [
        {"index": n, "id": f"id{n}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for n, (name, arguments) in enumerate(calls)
    ]
    for delta, reason in (({"role": "assistant", "content": None, "tool_calls": made}, None), ({}, "tool_calls")):
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        yield b"data: " + json.dumps({**common, "choices": [choice]}).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"
