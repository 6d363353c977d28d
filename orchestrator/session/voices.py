"""Which sessions have a voice of the orchestrator's own, and its part in their lives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Any

from musetalk_agent.protocol.http import VoiceSource
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.metrics import Metrics
from orchestrator.session.record import Session
from orchestrator.session.voicing import Voicing
from orchestrator.tokens import Rooms, TokenMinter
from orchestrator.voice.line import VoiceLine
from orchestrator.voice.messages import Report
from orchestrator.voice.process import LINES_MAX, VoiceBusyError, VoiceWorker

_RETRY_AFTER_S = 5


class VoiceStandby(StrEnum):
    """`VOICE_STANDBY`: how ready the voice is for the loss of an agent.

    `off`: there is no stand-in. `warm`: the worker runs, and joins a room when its agent is lost. `joined`: it is in every room
    from the session's start, without a track, so that it speaks a join's time earlier.
    """

    OFF = "off"
    WARM = "warm"
    JOINED = "joined"


class SessionVoices:
    """Gives sessions their voice. The worker is the caller's to close."""

    def __init__(
        self, worker: VoiceWorker, minter: TokenMinter, rooms: Rooms, metrics: Metrics, standby: VoiceStandby
    ) -> None:
        self._worker = worker
        self._minter, self._rooms = minter, rooms
        self._metrics = metrics
        self._standby = standby
        self._voicings: dict[str, Voicing] = {}
        self._reserved: set[str] = set()

    def open(self) -> None:
        """Starts the worker in the background, unless nothing is to stand by."""
        if self._standby is not VoiceStandby.OFF:
            self._worker.open()

    async def aclose(self) -> None:
        """Ends the worker."""
        await self._worker.aclose()

    def reserve(self, session: Session) -> None:
        """Keeps a line for a session that is starting. Raises ProblemError `at_capacity` when it needs one and none is left."""
        order = session.order
        if order.voice is not VoiceSource.ORCHESTRATOR or not order.connect_livekit:
            return
        if len(self._worker.lines) + len(self._reserved) >= LINES_MAX:
            raise _busy()
        self._reserved.add(session.session_id)

    def begin(self, session: Session) -> None:
        """The session's audio path is there. Raises ProblemError `at_capacity` when it is to speak and has no line left."""
        order, live = session.order, session.live
        self._reserved.discard(session.session_id)
        if live is None or not order.connect_livekit:
            return
        always = order.voice is VoiceSource.ORCHESTRATOR
        if self._standby is VoiceStandby.OFF and not always:
            return
        voicing = Voicing(live, self._maker(session), always=always, joined=self._standby is VoiceStandby.JOINED)
        try:
            voicing.open()
        except VoiceBusyError as error:
            raise _busy() from error
        self._voicings[session.session_id] = voicing

    def end(self, session: Session) -> None:
        """The session is over."""
        self._reserved.discard(session.session_id)
        voicing = self._voicings.pop(session.session_id, None)
        if voicing is not None:
            voicing.close()

    @asynccontextmanager
    async def stand_in(self, session: Session) -> AsyncIterator[None]:
        """Speaks from the moment the session's agent is lost until the next one is ready to."""
        voicing = self._voicings.get(session.session_id)
        if voicing is None:
            yield
            return
        self._metrics.voice_stand_ins.inc()
        voicing.stand_in()
        muting = asyncio.create_task(self._mute_agent(session), name=f"mute-{session.session_id}")
        try:
            yield
        finally:
            muting.cancel()
            await asyncio.gather(muting, return_exceptions=True)
        await voicing.hand_over()

    def view(self, session: Session) -> dict[str, Any] | None:
        """The voice's part of `/debug/audio`; None while it is not in the room."""
        voicing = self._voicings.get(session.session_id)
        return voicing.view() if voicing is not None else None

    async def _mute_agent(self, session: Session) -> None:
        """An agent that only we have lost may go on speaking; its next tracks have other ids."""
        tracks = session.snapshot.tracks if session.snapshot is not None else []
        for track in tracks:
            if track.kind == "audio":
                await self._rooms.mute(session.order.room, session.identity, track.sid)

    def _maker(self, session: Session) -> Callable[[Callable[[Report], None]], VoiceLine]:
        minter, order = self._minter, session.order

        def token() -> str:
            return minter.avatar(
                order.room,
                f"voice-{session.session_id}",
                max(1.0, session.expires_at - time.time()),
                name="Voice",
                on_behalf_of=session.identity,
            )

        return lambda on_report: self._worker.line(minter.url, token, on_report)


def _busy() -> ProblemError:
    return ProblemError(
        ErrorCode.AT_CAPACITY,
        f"The orchestrator speaks in {LINES_MAX} rooms already: stop a session, or let the agent speak.",
        retry_after_s=_RETRY_AFTER_S,
        limit=LINES_MAX,
    )
