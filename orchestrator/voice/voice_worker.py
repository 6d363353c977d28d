"""The voice worker seen from the core: one process behind a pipe, kept running, and the lines in rooms that it holds.

Lines join again after the process was lost. A line keeps the audio that was not heard, and sends at most two seconds ahead.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import BaseModel

from orchestrator.metrics import Metrics
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
    WorkerReport,
    worker_reports,
)
from orchestrator.worker_process import WorkerLink, WorkerProcess, WorkerTimes, bare_environment

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
class _KeptSegment:
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
        self._kept: dict[int, _KeptSegment] = {}
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
            kept = self._kept[segment] = _KeptSegment(rate, start, start)
        if start > kept.past:
            raise ValueError(f"segment {segment}: samples {kept.past} to {start} are missing")
        kept.pcm += pcm[_BYTES * (kept.past - start) :]
        self._feed()

    def end(self, segment: int, rate: int = 16000) -> None:
        """No more PCM for the segment."""
        self._kept.setdefault(segment, _KeptSegment(rate, 0, 0)).ended = True
        self._feed()

    def follow(self, segment: int, heard_s: float, at: float, *, held: bool = False) -> None:
        """Second `heard_s` of the segment leaves at `at` (monotonic); see `SyncTo`. Segment 0: nothing is due yet."""
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
        """What has been heard by now; reported every 100 ms and extrapolated in between."""
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
        """Takes a report of the worker."""
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

    def _said(self, number: int, kept: _KeptSegment) -> int:
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


COMMAND = (sys.executable, "-m", "orchestrator.voice.worker")
LINES_MAX = 32
"""Lines at once. Each costs the worker 3 % of a core while it is on the air."""
BACKOFF_S = (0.05, 5.0)
"""First and longest wait before a lost worker is started again; it doubles until one has lived for a while."""
_SETTLED_S = 10.0
_HELLO_TIMEOUT_S = 30.0
SILENCE_S = 5.0
"""The worker gives a sign of life every second; after this long without one it hangs and is killed."""
_EXIT_TIMEOUT_S = 5.0
_UNSENT_BYTES = 16 << 20
"""A worker that leaves this much unread hangs; lines send two seconds ahead, so it is never reached by one that does not."""


class VoiceBusyError(Exception):
    """All lines are taken."""


@dataclass
class VoiceStatistics:
    """Counters since the start."""

    starts: int = 0
    losses: int = 0


class VoiceWorker:
    """Runs the worker for the lines of one event loop. `open()` starts it at once; otherwise the first line does."""

    def __init__(self, metrics: Metrics, command: tuple[str, ...] = COMMAND) -> None:
        self.statistics = VoiceStatistics()
        self._metrics = metrics
        self._lines: dict[str, VoiceLine] = {}
        self._numbers = 0
        self._process = WorkerProcess(
            "voice worker",
            command,
            self._serve,
            times=WorkerTimes(BACKOFF_S, _SETTLED_S, _EXIT_TIMEOUT_S, _UNSENT_BYTES),
            environment=bare_environment(),  # its tokens come with its commands
            lost=self._on_lost,
            metrics=metrics,
        )
        self._send = self._process.send
        self._ready = asyncio.Event()
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Process id of the running worker."""
        return self._process.pid

    @property
    def lines(self) -> list[VoiceLine]:
        """Those that have not left."""
        return list(self._lines.values())

    def open(self) -> None:
        """Starts the worker in the background: it takes half a second until it is warm."""
        if not self._closed:
            self._process.open()

    async def wait_ready(self) -> None:
        """Returns once the worker is warm. Cancelling is harmless."""
        await self._ready.wait()

    async def aclose(self) -> None:
        """Lines leave, the process ends, within six seconds. Afterwards lines say nothing any more."""
        self._closed = True
        await self._process.aclose()

    def line(
        self, url: str, token: Callable[[], str], on_report: Callable[[LineReport], None] | None = None
    ) -> VoiceLine:
        """A new line; it does nothing until it joins.

        Args:
            url: LiveKit's address.
            token: mints a join token; called for every join.
            on_report: called on the event loop with each of its reports; must not block.

        Raises:
            VoiceBusyError: there are `LINES_MAX` already.
        """
        if len(self._lines) >= LINES_MAX:
            raise VoiceBusyError(f"all {LINES_MAX} voice lines are taken")
        self._numbers += 1
        name = f"line-{self._numbers}"
        line = VoiceLine(name, url, token, self._send, on_report, self._drop)
        self._lines[name] = line
        self._metrics.voice_lines.set(len(self._lines))
        self.open()
        return line

    def _drop(self, line: VoiceLine) -> None:
        self._lines.pop(line.name, None)
        self._metrics.voice_lines.set(len(self._lines))

    def _on_lost(self, _: str) -> None:
        self.statistics.losses += 1
        self._metrics.voice_losses.inc()

    async def _serve(self, link: WorkerLink) -> None:
        try:
            await link.listen(worker_reports.validate_json, self._take, _HELLO_TIMEOUT_S, SILENCE_S)
        finally:
            self._ready.clear()
            for line in self.lines:
                line.worker_lost()

    def _take(self, message: WorkerReport) -> None:
        if isinstance(message, LineReport | HandoffDone):
            line = self._lines.get(message.line)
            if line is not None:
                line.take(message)
        elif not self._ready.is_set():
            self.statistics.starts += 1
            self._ready.set()
            for line in self.lines:
                line.worker_ready()
