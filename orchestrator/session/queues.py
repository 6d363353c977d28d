"""How much of a session waits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Queues:
    """How much of a session waits, each with a bound of its own.

    Attributes:
        audio_s: seconds of `/audio` that are to be heard.
        speech_s: seconds of texts that are to be heard.
        segments: open segments, without those that were cleared.
        texts: texts that are spoken or wait for their turn.
        clears: clears that the agent has not answered.
        notes: phonemes and words that are kept with the speech.
        messages: messages for the sender that have not been sent.
    """

    audio_s: float
    speech_s: float
    segments: int
    texts: int
    clears: int
    notes: int
    messages: int
