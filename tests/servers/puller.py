"""What a viewer of a stream server gets: pulled while it is live, or read from a file the server has kept."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np

from tests.waiting import NEVER_S, wait_until

RATE = 48_000
_SILENT_S = 2.0
"""A stream in which nothing comes for so long is over: the server does not say that its sender has left."""


@dataclass
class Received:
    """Pictures as (stream time, luma of the middle, key frame), sound as (stream time, float samples)."""

    pictures: list[tuple[float, float, bool]] = field(default_factory=list)
    sound: list[tuple[float, np.ndarray]] = field(default_factory=list)

    def keep(self, frame: av.AudioFrame | av.VideoFrame) -> None:
        if isinstance(frame, av.VideoFrame):
            luma = frame.to_ndarray()[frame.height // 2, frame.width // 2]
            self.pictures.append((float(frame.time or 0), float(luma), bool(frame.key_frame)))
        else:
            self.sound.append((float(frame.time or 0), frame.to_ndarray()[0].copy()))

    def wave(self) -> tuple[float, np.ndarray]:
        """Stream time of the first sample, and all samples, whose blocks have to follow on one another."""
        for (at, block), (after, _) in itertools.pairwise(self.sound):
            assert abs(at + len(block) / RATE - after) < 0.003, (at, after)
        return self.sound[0][0], np.concatenate([block for _, block in self.sound])

    def keys(self) -> list[float]:
        """Stream times of the key frames."""
        return [at for at, _, key in self.pictures if key]

    def whites(self) -> list[float]:
        """Stream times at which the picture turned white."""
        return [at for (_, before, _), (at, now, _) in itertools.pairwise(self.pictures) if before < 128 < now]

    def onsets(self, level: float = 0.1) -> list[float]:
        """Stream times at which loud sound began after 100 ms of quiet."""
        start, wave = self.wave()
        loud = np.flatnonzero(np.abs(wave) > level)
        fresh = np.flatnonzero(np.diff(loud, prepend=-RATE) > RATE // 10)
        return [start + float(loud[index]) / RATE for index in fresh]


def read(path: Path) -> Received:
    """All of a file."""
    received = Received()
    with av.open(str(path)) as film:
        for frame in film.decode(video=0, audio=0):
            received.keep(frame)
    return received


class Puller(Received):
    """Pulls `url` in a thread until `close`, again and again; what is pushed before it has joined it does not see."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self.begun: list[int] = []  # the first sound of each pull
        self._stopping = self.watching = False
        self._thread = threading.Thread(target=self._pull, daemon=True)
        self._thread.start()

    def _pull(self) -> None:
        while not self._stopping:
            try:
                with av.open(self._url, timeout=(8.0, _SILENT_S)) as stream:
                    self.watching = True
                    self.begun.append(len(self.sound))
                    for frame in stream.decode(video=0, audio=0):
                        self.keep(frame)
                        if self._stopping:
                            return
            except (OSError, av.FFmpegError, IndexError):
                time.sleep(0.05)  # before it asks again
            finally:
                self.watching = False

    def close(self) -> None:
        """Ends the thread once the stream, whose sender has left, has been seen to its end."""
        wait_until(lambda: not self.watching)
        self._stopping = True
        self._thread.join(NEVER_S)
        assert not self._thread.is_alive()
