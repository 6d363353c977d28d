"""The buffer of a live microphone: drops or lengthens silence to hold the delay at its target. Decisions only, without waiting or
I/O.

A live source sends at its own pace. What comes too fast, or in a burst, makes all that follows late; what comes too slowly uses up
what is in hand, and the voice breaks off. Both are mended where it cannot be heard: silence is left out, or said twice.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from musetalk_agent.media_types import Pcm

BLOCK_S = 0.01
"""What comes at once: the SDK's own frames are so long."""
QUIET_RMS = 32768 * 10 ** (-55 / 20)
"""Audio below −55 dBFS is silence (design, "Silence"), in int16 units."""
_QUIET_BELOW = 10 ** (-30 / 20)
"""Audio 30 dB below the loudest of the last seconds is a pause, for a microphone whose room is not silent."""
_LOUDEST_OF = round(3.0 / BLOCK_S)
_QUIET_FOR_S = 0.05
"""The end of a word and its echo are kept."""
SLACK_S = 0.015
"""Later than the target by less than this is the grain of blocks."""
ASLEEP_S = 3.0
"""After so much silence nothing goes on until there is a sound: an open microphone in a silent room then costs little."""
LATE_S = 0.2
"""Speech that comes with more than this in hand above the target is not said: it would make the rest late until the next pause."""
OVERDUE_S = 1.0
"""With more than this, which only a replay or a stall of the whole agent leaves, what waits is not said either."""
_RAMP = 240  # samples over which what follows a cut is joined to what came before it (5 ms at 48 kHz)


class LiveBuffer:
    """Follows one microphone. Counts are in samples.

    Attributes:
        left_out: silence that was left out.
        stretched: silence that was put in.
        late: speech that came too late to be said.
    """

    def __init__(self) -> None:
        self.left_out = self.stretched = self.late = 0
        self._levels: deque[float] = deque(maxlen=_LOUDEST_OF)
        self._quiet_s = 0.0
        self._silent_s = ASLEEP_S
        self._last: int | None = None  # the last sample that went on
        self._cut = False

    @property
    def quiet(self) -> bool:
        """Nothing has been said for a moment."""
        return self._quiet_s >= _QUIET_FOR_S

    @property
    def asleep(self) -> bool:
        """There has been nothing but silence for so long that nothing need go on."""
        return self._silent_s >= ASLEEP_S

    def begin(self) -> None:
        """A new track, or speech after a clear: nothing is joined to what came before."""
        self._last, self._cut, self._quiet_s = None, False, 0.0
        self._levels.clear()

    def overdue(self, waiting_s: float, target_s: float) -> bool:
        """Whether what waits is so late that it should be dropped."""
        return waiting_s - target_s > OVERDUE_S

    def pass_on(self, block: Pcm, waiting_s: float, target_s: float, *, flows: bool = True) -> Pcm:
        """What of 10 ms that came now is to be said: the block, nothing, or in silence the block twice.

        Args:
            block: int16 `[n]` at 48 kHz, which `listen` has heard.
            waiting_s: seconds that came and were not heard yet.
            target_s: what they are when nothing is late.
            flows: the voice is being heard. Before it begins, what waits says nothing of how late it will be.
        """
        excess_s = waiting_s - target_s
        if flows and excess_s > SLACK_S and self.quiet:
            self.left_out += len(block)
        elif excess_s > LATE_S:
            self.late += len(block)
        elif flows and self.quiet and waiting_s < target_s / 2:
            self.stretched += len(block)
            return np.concatenate([self._joined(block), self._joined(block)])
        else:
            return self._joined(block)
        self._cut = True
        return block[:0]

    def listen(self, block: Pcm) -> None:
        """Judges 10 ms that came now."""
        level = float(np.sqrt(np.mean(np.square(block, dtype=np.float32)))) if len(block) else 0.0
        self._levels.append(level)
        quiet = level < max(QUIET_RMS, _QUIET_BELOW * max(self._levels))
        self._quiet_s = self._quiet_s + BLOCK_S if quiet else 0.0
        self._silent_s = self._silent_s + BLOCK_S if level < QUIET_RMS else 0.0

    def _joined(self, block: Pcm) -> Pcm:
        if self._cut and self._last is not None and len(block):
            ramp = np.linspace(1, 0, min(_RAMP, len(block)), dtype=np.float32)
            joined = block.copy()
            moved = joined[: len(ramp)] + (self._last - int(block[0])) * ramp
            joined[: len(ramp)] = np.clip(moved, -32768, 32767).astype(np.int16)
            block = joined
        self._cut = False
        if len(block):
            self._last = int(block[-1])
        return block
