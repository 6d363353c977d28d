"""Counts what passes each stage of a session (the *funnel*), and finds the one sentence that says why the lips do not move."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from musetalk_agent.clock import utc_text
from musetalk_agent.protocol.http import (
    FUNNEL_STAGES,
    Diagnosis,
    DiagnosisCode,
    FunnelStage,
    MicrophoneState,
    Suspicion,
)

SILENCE_PEAK = 100
"""Peak below which PCM counts as silence: −50 dBFS, under any microphone's or TTS's speech (int16 units)."""

FAILING_IN_ROW = 3
"""A single frame that fails is shown idle for a fraction of a second and needs no diagnosis; three in a row are visible."""

HEARD = frozenset({MicrophoneState.LIVE, MicrophoneState.MUTED})
"""States of a microphone in which nothing is wrong."""


@dataclass(slots=True)
class StageCount:
    """Counts of one stage; `last_at` is `time.time()`. `failed_in_row`: failures since something went through."""

    count: int = 0
    last_at: float | None = None
    last_error: str | None = None
    failed_in_row: int = 0


@dataclass(slots=True)
class DiagnosisInput:
    """What the diagnosis looks at besides the counts."""

    joined: bool = False
    join_error: str | None = None
    viewers: int = 0
    subscribed: bool = False
    watched: bool = True
    suspicion: Suspicion | None = None
    suspicion_text: str = ""
    failing: str | None = None
    slow: str | None = None
    fallback: bool = False
    note: str | None = None
    missing: str | None = None  # what the microphone that is to be said lacks


@dataclass(slots=True)
class PipelineStats:
    """Counts per stage of one session, in the order of the path."""

    stages: dict[str, StageCount] = field(default_factory=lambda: {name: StageCount() for name in FUNNEL_STAGES})
    peak: int = 0

    def add(self, stage: str, count: int) -> None:
        """`count` more went through `stage`."""
        entry = self.stages[stage]
        entry.count += count
        entry.failed_in_row = 0
        entry.last_at = time.time()

    def fail(self, stage: str, error: str) -> None:
        """Something went wrong in `stage`."""
        entry = self.stages[stage]
        entry.last_error = error
        entry.failed_in_row += 1

    def set_acknowledged(self, count: int, at: float | None) -> None:
        """The SFU's statistics say that it has `count` frames."""
        entry = self.stages["acknowledged"]
        entry.count, entry.last_at = count, at

    def report(self) -> list[FunnelStage]:
        """The stages for `/debug/musetalk`."""
        return [
            FunnelStage(stage=name, count=s.count, last_at=utc_text(s.last_at), last_error=s.last_error)
            for name, s in self.stages.items()
        ]

    def diagnose(self, facts: DiagnosisInput) -> Diagnosis:
        """The first cause that holds, in the order of `DiagnosisCode`."""
        for code, message in self._causes(facts):
            suspicion = facts.suspicion if code is DiagnosisCode.WRONG_FORMAT_SUSPECTED else None
            return Diagnosis(code=code, message=message, suspicion=suspicion)
        message = "Speech comes in and lip-synced video reaches the room."
        return Diagnosis(code=DiagnosisCode.OK, message=f"{message} {facts.note}" if facts.note else message)

    def _engine_error(self) -> str | None:
        """The last error of a stage of the engine that lets nothing through at present, or has let nothing through yet."""
        for name in ("features", "patches"):
            stage = self.stages[name]
            if stage.failed_in_row and (stage.failed_in_row >= FAILING_IN_ROW or not stage.count):
                return stage.last_error
        return None

    def _causes(self, facts: DiagnosisInput) -> list[tuple[DiagnosisCode, str]]:
        heard = self.stages["samples"].count
        error = self._engine_error()
        failing = facts.failing or (error and f"The engine fails on every frame, so the lips stand still: {error}")
        causes: list[tuple[bool, DiagnosisCode, str]] = [
            (
                not facts.joined,
                DiagnosisCode.ROOM_NOT_JOINED,
                facts.join_error or "The avatar is not in the room: it is still joining, or the connection was lost.",
            ),
            (facts.suspicion is not None, DiagnosisCode.WRONG_FORMAT_SUSPECTED, facts.suspicion_text),
            (
                heard == 0 or facts.missing is not None,
                DiagnosisCode.NO_AUDIO,
                facts.missing
                or "No PCM has arrived yet: send int16 little endian mono to audio_url, or text to /speak.",
            ),
            (
                self.peak < SILENCE_PEAK,
                DiagnosisCode.SILENT_AUDIO,
                f"{heard} samples arrived and all are silence (peak {self.peak} of 32767): is the source muted?",
            ),
            (bool(failing), DiagnosisCode.ENGINE_FAILING, failing or ""),
            (facts.slow is not None, DiagnosisCode.ENGINE_SLOW, facts.slow or ""),
            (facts.fallback, DiagnosisCode.RTMP_FALLBACK_ACTIVE, "WebRTC failed; the avatar is sent by RTMP."),
            (
                not (facts.viewers and facts.subscribed),
                DiagnosisCode.TRACK_NOT_SUBSCRIBED,
                "The avatar publishes, but no participant of the room subscribes to it "
                f"({facts.viewers} viewers): join with viewer_token and subscribe to its tracks.",
            ),
            (
                not facts.watched,
                DiagnosisCode.TRACK_NOT_SUBSCRIBED,
                "The avatar is heard, but no viewer subscribes to its video: no frame is drawn until one does.",
            ),
        ]
        return [(code, message) for holds, code, message in causes if holds]
