"""Judges samples of live sessions: records a few seconds of a session that speaks, judges them, and counts the result in metrics.

Judging takes seconds of CPU time. So samples are rare, one is judged at a time, and the judge runs as a process of the lowest CPU
priority. The sample exists only in a temporary folder, and only while it is judged.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from musetalk_agent.agent_metrics import JUDGE_CORRELATION, JUDGE_FAULTS, JUDGE_LAG, JUDGED
from musetalk_agent.clock import Clock
from musetalk_agent.compose.layers import without_alpha_below
from musetalk_agent.errors import RecordingFailed
from musetalk_agent.media_types import Pcm, VideoFrame
from musetalk_agent.protocol.http import FilmEntry, SessionState
from musetalk_agent.publishers.base import MediaTap
from musetalk_agent.publishers.film.fragment_log import FragmentLog
from musetalk_agent.publishers.film.recorder import PartOptions, PartRecorder
from musetalk_agent.session.session import Session
from musetalk_agent.tasks import supervise

log = logging.getLogger(__name__)

SAMPLE_S = 9.0
"""Length of a sample. The judge's bars were found on clips of 9 s (`docs/reference/judge.md`); shorter ones rarely give a lag."""
_LEAST_S = 3.0
"""A sample of a session that ends during the recording is judged from this length on."""
_LOOK_S = 0.5
_JUDGED_WITHIN_S = 300.0
"""Time limit of the judge's process, which waits for CPU time on a busy machine."""
_NO_FACE_ENGINE = "pattern"


class _PictureTap:
    """A tap that hands everything on; of frames with their alpha below them, which a transparent session has, the picture alone.

    Args:
        height: of the picture.
    """

    def __init__(self, tap: MediaTap, height: int) -> None:
        self._tap, self._height = tap, height

    def offer_audio(self, at: float, block: Pcm) -> None:
        self._tap.offer_audio(at, block)

    def offer_video(self, at: float, frame: VideoFrame) -> None:
        self._tap.offer_video(at, frame if frame.height == self._height else without_alpha_below(frame))

    def clear_audio(self, since: float) -> None:
        self._tap.clear_audio(since)


class LiveJudge:
    """Judges a sample every `every_s` seconds. `run` is its task.

    Args:
        every_s: seconds from the end of one sample to the beginning of the next.
        clock: the sessions' clock.
        sessions: returns the live sessions.
        models_dir: the folder of the judge's networks.
    """

    def __init__(
        self, every_s: float, clock: Clock, sessions: Callable[[], Sequence[Session]], models_dir: Path
    ) -> None:
        self._every_s, self._clock, self._sessions, self._models_dir = every_s, clock, sessions, models_dir
        self._judged_at: dict[str, float] = {}

    async def run(self) -> None:
        """Judges until cancelled, which ends the judge's process and removes the sample."""
        await supervise("judge", self._look_on)

    async def _look_on(self) -> None:
        while True:
            await self._clock.sleep_until(self._clock.now() + self._every_s)
            while (session := self._next()) is None:
                await self._clock.sleep_until(self._clock.now() + _LOOK_S)
            self._judged_at[session.id] = self._clock.now()
            with tempfile.TemporaryDirectory(prefix="judge-") as folder:
                sample = Path(folder) / "sample.mp4"
                if await self.record(session, sample):
                    self._report(session.id, await self._judge(sample))

    def _next(self) -> Session | None:
        """The speaking session that was never judged, or was judged longest ago; None if no session speaks."""
        live = self._sessions()
        known = {session.id for session in live}
        self._judged_at = {name: at for name, at in self._judged_at.items() if name in known}
        speaking = [s for s in live if s.state is SessionState.SPEAKING and s.engine != _NO_FACE_ENGINE]
        return min(speaking, key=lambda session: self._judged_at.get(session.id, float("-inf")), default=None)

    async def record(self, session: Session, target: Path) -> bool:
        """Records the next `SAMPLE_S` seconds that the session publishes. Returns False for a short sample. Cancelling ends it."""
        size, entries = (session.bundle.width, session.bundle.height), FragmentLog()
        recorder = PartRecorder(PartOptions(*size, session.bundle.fps), entries, self._clock)
        tap = _PictureTap(recorder, size[1])
        try:
            await recorder.start()
            if not session.add_tap(tap):
                return False
            begun = self._clock.now()
            await self._until_over(session, begun + SAMPLE_S)
            seconds = self._clock.now() - begun
        except RecordingFailed:
            log.warning("a sample for the judge could not be recorded", extra={"session_id": session.id})
            return False
        finally:
            session.remove_tap(tap)
            await recorder.aclose()
        pieces = [entry.payload for entry in entries.after(0) if entry.kind in (FilmEntry.HEADER, FilmEntry.FRAGMENT)]
        await asyncio.to_thread(target.write_bytes, b"".join(pieces))
        return seconds >= _LEAST_S

    async def _until_over(self, session: Session, deadline: float) -> None:
        while self._clock.now() < deadline and not session.ended.is_set():
            await self._clock.sleep_until(min(deadline, self._clock.now() + _LOOK_S))

    async def _judge(self, sample: Path) -> dict[str, Any] | None:
        """Returns the report of `musetalk-agent judge --json`; None if it fails or takes too long. Cancelling kills it."""
        command = ["-m", "musetalk_agent", "judge", str(sample), "--json", "--background"]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={**os.environ, "MODELS_DIR": str(self._models_dir)},
        )
        try:
            async with asyncio.timeout(_JUDGED_WITHIN_S):
                printed, _ = await process.communicate()
        except TimeoutError:
            return None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await asyncio.shield(process.wait())
        if process.returncode not in (0, 1):
            return None
        found: dict[str, Any] = json.loads(printed)
        return found

    def _report(self, session_id: str, found: dict[str, Any] | None) -> None:
        if found is None:
            JUDGED.labels("not_judged").inc()
            log.warning("the judge could not judge a sample", extra={"session_id": session_id})
            return
        JUDGED.labels("passed" if found["passed"] else "failed").inc()
        for fault in found["faults"]:
            JUDGE_FAULTS.labels(fault).inc()
        for face in found["faces"]:
            if (lag := face["lag_ms"]["value"]) is not None:
                JUDGE_LAG.observe(lag / 1000)
            if (correlation := face["lip_correlation"]["value"]) is not None:
                JUDGE_CORRELATION.observe(correlation)
        if not found["passed"]:
            log.warning("a session did not pass the judge", extra={"session_id": session_id, "faults": found["faults"]})
