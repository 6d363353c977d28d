"""What waits to be encoded and pushed: bounded by age, the event loop on one side and a thread on the other."""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass

from musetalk_agent.media.segment import ROOM_RATE
from musetalk_agent.media_types import Pcm, VideoFrame

AUDIO_S = 3.0
"""Sound that may wait, over a reconnect; of more the oldest is given up."""
VIDEO_S = 0.5
"""A picture older than this is never pushed."""


@dataclass(frozen=True, slots=True)
class Sound:
    """int16 mono samples at `ROOM_RATE`; the first is heard at `at` (monotonic seconds)."""

    at: float
    block: Pcm


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that is seen at `at`. `key`: pictures before it were dropped, it has to be a key frame."""

    at: float
    frame: VideoFrame
    key: bool = False


class MediaQueue:
    """Media in the order of their times. `offer_*` and `take` never wait; `wait` does. All are safe from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sounds: deque[Sound] = deque()
        self._pictures: deque[Picture] = deque()
        self._gap = False
        self._stopped = False
        self._cut: float | None = None
        self.dropped_pictures = 0
        self.dropped_sounds = 0

    def offer_audio(self, sound: Sound) -> None:
        """Adds sound; what is more than `AUDIO_S` older than its end is given up."""
        with self._changed:
            self._sounds.append(sound)
            limit = sound.at + len(sound.block) / ROOM_RATE - AUDIO_S
            while self._sounds[0].at < limit:
                self._sounds.popleft()
                self.dropped_sounds += 1
            self._changed.notify()

    def offer_video(self, picture: Picture) -> None:
        """Adds a picture; when that makes more than `VIDEO_S` wait, all before it are dropped."""
        with self._changed:
            if self._pictures and picture.at - self._pictures[0].at > VIDEO_S:
                self._drop(len(self._pictures))
            self._pictures.append(picture)
            self._changed.notify()

    def take(self, now: float) -> Sound | Picture | None:
        """The next in time, sound first; None when nothing waits. Pictures that are too old by `now` are dropped before."""
        with self._changed:
            while self._pictures and now - self._pictures[0].at > VIDEO_S:
                self._drop(1)
            if self._sounds and not (self._pictures and self._pictures[0].at < self._sounds[0].at):
                return self._sounds.popleft()
            if not self._pictures:
                return None
            picture = self._pictures.popleft()
            if self._gap:
                self._gap = False
                return Picture(picture.at, picture.frame, key=True)
            return picture

    def clear_audio(self, since: float = -math.inf) -> None:
        """Drops the sound that would be heard at `since` (monotonic seconds) or later; `take_cut` tells the reader of it once."""
        with self._changed:
            while self._sounds and self._sounds[-1].at >= since:
                self._sounds.pop()
            self._cut = since if self._cut is None else min(self._cut, since)

    def take_cut(self) -> float | None:
        """The `since` of the clears after the last call, or None. Sound taken before it from then on must not be given back."""
        with self._changed:
            cut, self._cut = self._cut, None
            return cut

    def give_back(self, sound: Sound) -> None:
        """Puts sound that could not be pushed to the front again."""
        with self._changed:
            self._sounds.appendleft(sound)

    def wait(self, timeout_s: float) -> None:
        """Until something waits, or the queue is stopped, or the time is over."""
        with self._changed:
            if not (self._sounds or self._pictures or self._stopped):
                self._changed.wait(timeout_s)

    def rest(self, timeout_s: float) -> None:
        """Until the queue is stopped or the time is over, whatever waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped, timeout_s)

    def stop(self) -> None:
        """Ends all waiting, now and later."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    @property
    def stopped(self) -> bool:
        """`stop` was called."""
        return self._stopped

    def seconds(self) -> float:
        """From the oldest that waits to the newest."""
        with self._changed:
            heads = [queue[0].at for queue in (self._sounds, self._pictures) if queue]
            tails = [self._sounds[-1].at + len(self._sounds[-1].block) / ROOM_RATE] if self._sounds else []
            tails += [self._pictures[-1].at] if self._pictures else []
            return max(tails) - min(heads) if heads else 0.0

    def _drop(self, count: int) -> None:
        for _ in range(count):
            self._pictures.popleft()
        self.dropped_pictures += count
        self._gap = True
