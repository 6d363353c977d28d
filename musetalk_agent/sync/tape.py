"""A queue of samples that can be wound back a little."""

from __future__ import annotations

from collections import deque

import numpy as np

from musetalk_agent.media import Pcm


class Tape:
    """First in, first out of int16 samples. What was taken stays until it is forgotten, so that it can be taken again.

    `len()` counts what was not taken yet; `kept` counts what was taken and can be had again.
    """

    def __init__(self) -> None:
        self._taken: deque[Pcm] = deque()
        self._waiting: deque[Pcm] = deque()
        self._size = 0
        self.kept = 0

    def __len__(self) -> int:
        return self._size

    def push(self, samples: Pcm) -> None:
        """Adds samples at the end."""
        if len(samples):
            self._waiting.append(samples)
            self._size += len(samples)

    def take(self, most: int) -> Pcm:
        """Takes up to `most` samples from the front."""
        taken: list[Pcm] = []
        missing = min(most, self._size)
        while missing > 0:
            part = self._waiting.popleft()
            if len(part) > missing:
                self._waiting.appendleft(part[missing:])
                part = part[:missing]
            taken.append(part)
            missing -= len(part)
        if not taken:
            return np.zeros(0, np.int16)
        result = (np.concatenate(taken) if len(taken) > 1 else taken[0]).astype(np.int16, copy=False)
        self._size -= len(result)
        self._taken.append(result)
        self.kept += len(result)
        return result

    def forget(self, keep: int) -> None:
        """Drops what was taken, but for its last `keep` samples (to the part)."""
        while self._taken and self.kept - len(self._taken[0]) >= keep:
            self.kept -= len(self._taken.popleft())

    def rest(self, back: int) -> Tape:
        """A new tape of the last `back` samples taken and all that wait; a negative `back` skips as many that wait.

        Raises ValueError when fewer are kept.
        """
        if back > self.kept:
            raise ValueError(f"{back} samples back, but only {self.kept} are kept")
        rest, skip = Tape(), self.kept - back
        for part in (*self._taken, *self._waiting):
            rest.push(part[skip:])
            skip = max(0, skip - len(part))
        return rest
