"""One session's voice as the core sees it. It keeps what has not been heard, so that a new worker can go on with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import BaseModel

from orchestrator.voice.worker_messages import (
    ClearAudio,
    EndSegment,
    Handoff,
    HandoffDone,
    JoinRoom,
    LeaveRoom,
    LineReport,
    Publish,
    SegmentPcm,
    SyncTo,
)

AHEAD_S = 2.0
"""Sound is sent to the worker this far ahead; the rest waits here."""
_KEPT_S = 0.2
_CUT_ANSWER_S = 0.5
_BYTES = 2


class Send(Protocol):
    """Hands a message to the worker; False when there is none now."""

    def __call__(self, message: BaseModel, payload: bytes = b"") -> bool: ...


@dataclass(frozen=True, slots=True)
class VoicePosition:
    """`heard_s` of `segment` were heard; 0 for both before the first sample."""

    segment: int = 0
    heard_s: float = 0.0


@dataclass
class _Kept:
    """PCM of a segment from input sample `start` on; `sent` samples count from the segment's own beginning."""

    rate: int
    start: int
    sent: int
    pcm: bytearray = field(default_factory=bytearray)
    ended: bool = False
    end_sent: bool = False

    @property
    def past(self) -> int:
        return self.start + len(self.pcm) // _BYTES


class VoiceLine:
    """Made by `VoiceWorker.line`. All methods belong to the event loop and return at once, but `cut` and `wait_live`."""

    def __init__(
        self,
        name: str,
        url: str,
        token: Callable[[], str],
        send: Send,
        on_report: Callable[[LineReport], None] | None,
        on_left: Callable[[VoiceLine], None],
    ) -> None:
        self.name = name
        self._url, self._token = url, token
        self._send, self._on_report, self._on_left = send, on_report, on_left
        self._kept: dict[int, _Kept] = {}
        self._joined = self._on_air = False
        self._follow: SyncTo | None = None
        self._report: LineReport | None = None
        self._live, self._spoken = asyncio.Event(), asyncio.Event()
        self._calls: dict[int, asyncio.Future[HandoffDone]] = {}
        self._numbers = 0
        self._heard = VoicePosition()

    # --- the room

    def join(self, *, on_air: bool = True) -> None:
        """Joins the room and stays until `leave`; a lost room or worker is joined again with back-off."""
        if not self._joined:
            self._joined, self._on_air = True, on_air
            self._ask_to_join()

    def air(self, on: bool) -> None:
        """Publishes the track, or takes it back and forgets what was to be said. Only once it has joined."""
        if self._joined and on != self._on_air:
            self._on_air = on
            if not on:
                self._forget()
            self._send(Publish(line=self.name, on=on))
            self._feed()

    def leave(self) -> None:
        """Leaves the room; the line is of no more use."""
        self._forget()
        if self._joined:
            self._joined = False
            self._send(LeaveRoom(line=self.name))
        self._on_left(self)

    async def wait_live(self, timeout_s: float) -> bool:
        """Waits until the track is published; False when that takes longer."""
        return await _within(self._live, timeout_s)

    async def wait_spoken(self, timeout_s: float) -> bool:
        """Waits until something of what was given was heard; False when that takes longer."""
        return await _within(self._spoken, timeout_s)

    # --- what it says

    def play(self, segment: int, rate: int, start: int, pcm: bytes) -> None:
        """PCM of a segment from its sample `start` on. The first block says where the voice begins; others follow without a gap.

        Raises ValueError for a gap.
        """
        kept = self._kept.get(segment)
        if kept is None:
            kept = self._kept[segment] = _Kept(rate, start, start)
        if start > kept.past:
            raise ValueError(f"segment {segment}: samples {kept.past} to {start} are missing")
        kept.pcm += pcm[_BYTES * (kept.past - start) :]
        self._feed()

    def end(self, segment: int, rate: int = 16000) -> None:
        """No more PCM for the segment."""
        self._kept.setdefault(segment, _Kept(rate, 0, 0)).ended = True
        self._feed()

    def follow(self, segment: int, heard_s: float, at: float, *, held: bool = False) -> None:
        """Second `heard_s` of the segment leaves at `at` (monotonic); see `SyncTo`. Segment 0: nothing is due until told."""
        self._say(SyncTo(line=self.name, segment=segment, heard_s=heard_s, at=at, held=held))

    def free(self) -> None:
        """Says what it has as soon as it can, from where it is; also past a cut that was asked for."""
        self._say(SyncTo(line=self.name, free=True))

    def clear(self) -> None:
        """Silence within 60 ms; what was to be said is dropped."""
        self._kept.clear()
        self._send(ClearAudio(line=self.name))

    async def cut(self, after_s: float, within_s: float) -> HandoffDone | None:
        """Chooses a place to stop at least `after_s` ahead, in a pause of the `within_s` after that, and stops there.

        None when the worker does not answer within half a second; then nothing more is certain than `position`.
        """
        self._numbers += 1
        call = self._numbers
        if not self._send(Handoff(line=self.name, call=call, after_s=after_s, within_s=within_s)):
            return None
        answer: asyncio.Future[HandoffDone] = asyncio.get_running_loop().create_future()
        self._calls[call] = answer
        try:
            async with asyncio.timeout(_CUT_ANSWER_S):
                return await answer
        except TimeoutError:
            return None
        finally:
            del self._calls[call]

    # --- what is known

    def position(self) -> VoicePosition:
        """What has been heard by now, told every 100 ms and extrapolated in between."""
        report, heard = self._report, self._heard
        if report is None or report.segment != heard.segment:
            return heard
        now_s = min(report.heard_s + time.monotonic() - report.at, max(report.handed_s, report.heard_s))
        return VoicePosition(heard.segment, max(heard.heard_s, now_s))

    @property
    def outstanding_s(self) -> float:
        """Seconds it was given and that were not heard by now."""
        heard = self.position()
        total = 0.0
        for number, kept in self._kept.items():
            from_s = max(kept.start / kept.rate, heard.heard_s if number == heard.segment else 0.0)
            total += max(0.0, kept.past / kept.rate - from_s) if number >= heard.segment else 0.0
        return total

    @property
    def live(self) -> bool:
        """Whether its track is published."""
        return self._live.is_set()

    def view(self) -> dict[str, Any]:
        """Its part of `/debug/audio`."""
        report, position = self._report, self.position()
        return {
            "state": report.state if report is not None else "waiting",
            "room": report.room if report is not None else None,
            "track": report.sid if report is not None else None,
            "following": self._follow is not None and not self._follow.free,
            "segment": position.segment,
            "heard_s": round(position.heard_s, 3),
            "buffer_s": round((report.buffer_s if report is not None else 0.0) + self._unsent_s(), 3),
            "level": report.level_dbfs if report is not None else None,
            "corrections": report.corrections if report is not None else 0,
            "error": report.error if report is not None else None,
        }

    # --- what the worker's keeper calls

    def take(self, message: LineReport | HandoffDone) -> None:
        """Something the worker told."""
        if isinstance(message, HandoffDone):
            answer = self._calls.get(message.call)
            if answer is not None and not answer.done():
                answer.set_result(message)
            return
        self._report = message
        if message.state == "live":
            self._live.set()
        else:
            self._live.clear()
        if message.segment:
            self._spoken.set()
            self._heard = VoicePosition(message.segment, message.heard_s)
        self._trim()
        self._feed()
        if self._on_report is not None:
            self._on_report(message)

    def worker_lost(self) -> None:
        """The process is gone; its successor goes on from what was heard last."""
        self._heard = self.position()
        self._report = None
        self._live.clear()

    def worker_ready(self) -> None:
        """A worker is there."""
        if not self._joined:
            return
        for number, kept in list(self._kept.items()):
            if number < self._heard.segment:
                del self._kept[number]
                continue
            heard = round(self._heard.heard_s * kept.rate) if number == self._heard.segment else kept.start
            drop = min(max(0, heard - kept.start), len(kept.pcm) // _BYTES)
            del kept.pcm[: _BYTES * drop]
            kept.start += drop
            kept.sent, kept.end_sent = kept.start, False
        self._ask_to_join()

    # --- inside

    def _ask_to_join(self) -> None:
        if self._send(JoinRoom(line=self.name, url=self._url, token=self._token(), on_air=self._on_air)):
            if self._follow is not None:
                self._send(self._follow)
            self._feed()

    def _say(self, follow: SyncTo) -> None:
        self._follow = follow
        self._send(follow)

    def _forget(self) -> None:
        self._kept.clear()
        self._follow = None
        self._heard = VoicePosition()
        self._spoken.clear()

    def _feed(self) -> None:
        """Sends what the worker will need within `AHEAD_S`."""
        if not (self._joined and self._on_air):
            return
        room_s = AHEAD_S
        for number in sorted(self._kept):
            kept = self._kept[number]
            room_s -= (kept.sent - max(kept.start, self._said(number, kept))) / kept.rate
            count = min(kept.past - kept.sent, int(room_s * kept.rate))
            if count > 0:
                at = _BYTES * (kept.sent - kept.start)
                message = SegmentPcm(line=self.name, segment=number, rate=kept.rate, start=kept.sent)
                if not self._send(message, bytes(kept.pcm[at : at + _BYTES * count])):
                    return
                kept.sent += count
                room_s -= count / kept.rate
            if kept.ended and kept.sent == kept.past and not kept.end_sent:
                kept.end_sent = self._send(EndSegment(line=self.name, segment=number))
            if room_s <= 0 or not kept.ended:
                return

    def _said(self, number: int, kept: _Kept) -> int:
        """Sample of the segment that the worker takes next."""
        report = self._report
        if report is None or report.next_segment < number:
            return kept.start
        return kept.sent if report.next_segment > number else min(kept.sent, int(report.next_s * kept.rate))

    def _trim(self) -> None:
        """Lets go of what was heard."""
        for number in [n for n, kept in self._kept.items() if n < self._heard.segment and kept.end_sent]:
            del self._kept[number]
        kept = self._kept.get(self._heard.segment)
        if kept is not None:
            drop = int((self._heard.heard_s - _KEPT_S) * kept.rate) - kept.start
            drop = min(drop, kept.sent - kept.start)
            if drop > 0:
                del kept.pcm[: _BYTES * drop]
                kept.start += drop

    def _unsent_s(self) -> float:
        return sum((kept.past - kept.sent) / kept.rate for kept in self._kept.values())


async def _within(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
