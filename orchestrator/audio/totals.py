"""Running totals of a session's speech, so that no figure needs a sum over all segments."""

from __future__ import annotations

from dataclasses import dataclass, field


class Tally:
    """Samples at several rates as seconds. Counts are integers, so that additions and subtractions leave no remainder."""

    def __init__(self) -> None:
        self._samples: dict[int, int] = {}

    def add(self, samples: int, rate: int) -> None:
        """Adds `samples` at `rate` Hz; a negative count subtracts."""
        left = self._samples.get(rate, 0) + samples
        if left:
            self._samples[rate] = left
        else:
            self._samples.pop(rate, None)

    @property
    def seconds(self) -> float:
        """Their duration."""
        return sum(samples / rate for rate, samples in self._samples.items())


@dataclass
class Totals:
    """Over all open segments.

    Attributes:
        waiting: PCM that has not been forwarded.
        at_agent: PCM that was forwarded and is not known to be heard.
        heard: PCM that was heard, of segments that are not over.
        audio: PCM of `/audio` that is not known to be heard; cleared PCM does not count.
        speech: the same for `/speak`.
        notes: phonemes and words that are kept with the PCM.
    """

    waiting: Tally = field(default_factory=Tally)
    at_agent: Tally = field(default_factory=Tally)
    heard: Tally = field(default_factory=Tally)
    audio: Tally = field(default_factory=Tally)
    speech: Tally = field(default_factory=Tally)
    notes: int = 0
