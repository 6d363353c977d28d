"""When a session has outlived its use."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.session.options import SessionOptions


@dataclass
class Lifetime:
    """The deadlines of one session, on the clock its caller passes in (seconds).

    `note_*` move them; `over` tells the reason once one has passed, `next_at` when to look again.
    """

    options: SessionOptions
    begun_at: float
    expires_at: float
    counts_viewers: bool = True
    counts_speaker: bool = False

    def __post_init__(self) -> None:
        self._audio_at = self.begun_at
        self._viewer_at = self.begun_at
        self._speaker_at = self.begun_at

    def note_audio(self, at: float) -> None:
        """Audio came, or speech is being heard."""
        self._audio_at = max(self._audio_at, at)

    def note_viewers(self, count: int, at: float) -> None:
        """So many viewers are in the room."""
        if count > 0:
            self._viewer_at = max(self._viewer_at, at)

    def note_speaker(self, at: float) -> None:
        """Whoever sends speech through the room is there, and may do so any time."""
        self._speaker_at = max(self._speaker_at, at)
        self.note_audio(at)

    def over(self, now: float) -> str | None:
        """`expired`, `idle`, `no_viewers`, `speaker_left`: the deadline that passed first. None while the session may live."""
        reason, at = min(self._deadlines(), key=lambda deadline: deadline[1])
        return reason if now >= at else None

    def next_at(self) -> float:
        """The earliest deadline."""
        return min(at for _, at in self._deadlines())

    def _deadlines(self) -> list[tuple[str, float]]:
        deadlines = [("expired", self.expires_at), ("idle", self._audio_at + self.options.idle_ttl_s)]
        if self.counts_viewers:
            deadlines.append(("no_viewers", self._viewer_at + self.options.viewer_grace_s))
        if self.counts_speaker:
            deadlines.append(("speaker_left", self._speaker_at + self.options.speaker_grace_s))
        return deadlines
