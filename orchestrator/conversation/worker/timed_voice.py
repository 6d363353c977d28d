"""The orchestrator's voices as a TTS of livekit-agents, with the time of each word."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any

import aiohttp
from livekit import rtc
from livekit.agents import APIConnectionError, APIConnectOptions, APIStatusError, APITimeoutError, tts
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS, TimedString
from livekit.agents.utils import shortuuid

from orchestrator.conversation.conversation_messages import Provider

SAMPLE_RATE = 24_000
"""Hz: what OpenAI's `pcm` is."""
_READ_S = 30.0
"""A voice that is made elsewhere takes its time; one that sends nothing for so long hangs."""
_KEEP_S = 2.0
"""A connection is kept this long between sentences: uvicorn closes one after 5 s, and a request that meets its end is lost."""
_EVENT_BYTES = 1 << 22
"""Room for one event: at most twice this, which is more than a minute of audio in base64."""


class TimedVoice(tts.TTS):  # type: ignore[misc]  # livekit-agents lives in an environment of its own
    """`POST /v1/audio/speech` of the orchestrator, as events. Frames carry their words as `TimedString`s, in seconds from the
    first sample of what is synthesised.

    Args:
        provider: the orchestrator.
        voice: one of `GET /voices`; empty for the default.
    """

    def __init__(self, provider: Provider, voice: str) -> None:
        super().__init__(
            capabilities=tts.TTSCapabilities(streaming=False, aligned_transcript=True),
            sample_rate=SAMPLE_RATE,
            num_channels=1,
        )
        self.request_to = provider
        self.voice = voice or "default"
        self._http: aiohttp.ClientSession | None = None

    @property
    def model(self) -> str:
        return self.request_to.model

    @property
    def http(self) -> aiohttp.ClientSession:
        """Connections are kept between sentences."""
        if self._http is None:
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(keepalive_timeout=_KEEP_S), read_bufsize=_EVENT_BYTES
            )
        return self._http

    def synthesize(
        self, text: str, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS
    ) -> tts.ChunkedStream:
        """Speaks one text. What fails before its first sound is tried again as `conn_options` say."""
        return _Utterance(tts=self, input_text=text, conn_options=conn_options)

    async def aclose(self) -> None:
        """Closes the connections. Idempotent."""
        http, self._http = self._http, None
        if http is not None:
            await http.close()


class _Utterance(tts.ChunkedStream):  # type: ignore[misc]  # livekit-agents lives in an environment of its own
    async def _run(self, output_emitter: tts.AudioEmitter) -> None:
        voice = self._tts
        assert isinstance(voice, TimedVoice)
        body = {
            "input": self.input_text,
            "model": voice.model,
            "voice": voice.voice,
            "response_format": "pcm",
            "stream_format": "sse",
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._conn_options.timeout, sock_read=_READ_S)
        headers = {"Authorization": f"Bearer {voice.request_to.api_key}"}
        try:
            async with voice.http.post(
                f"{voice.request_to.base_url}/audio/speech", json=body, headers=headers, timeout=timeout
            ) as answer:
                if answer.status >= 400:
                    problem = await answer.text(errors="replace")
                    raise APIStatusError(problem[:300], status_code=answer.status, request_id=None, body=None)
                output_emitter.initialize(
                    request_id=shortuuid(), sample_rate=SAMPLE_RATE, num_channels=1, mime_type="audio/pcm"
                )
                async for line in answer.content:
                    if line.startswith(b"data:"):
                        self._take(json.loads(line[5:]), output_emitter)
            output_emitter.flush()
        except TimeoutError as error:
            raise APITimeoutError from error
        except (aiohttp.ClientError, ValueError, KeyError) as error:
            raise APIConnectionError(f"the voice broke off: {error!r}") from error

    def _take(self, event: dict[str, Any], output_emitter: tts.AudioEmitter) -> None:
        if event.get("type") == "error":
            raise ValueError(str(event["error"].get("message"))[:300])
        if event.get("type") != "speech.audio.delta":
            return
        words: Iterable[dict[str, Any]] = event.get("words", ())
        output_emitter.push_timed_transcript(
            [TimedString(word["text"], start_time=word["start"], end_time=word["end"]) for word in words]
        )
        pcm = base64.b64decode(event["audio"])
        if pcm:  # whole: cut into frames of 20 ms, as bytes are, the avatar would get its first 0.1 s in many messages
            output_emitter.push_frame(rtc.AudioFrame(pcm, SAMPLE_RATE, 1, len(pcm) // 2))
