"""What a sink pushes again after its connection broke, and what it must not: sound that was cleared meanwhile."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field

import numpy as np
import pytest

from musetalk_agent.clock import MonotonicClock
from musetalk_agent.publishers.stream.encoder import QueuedAudio, QueuedFrame, StreamShape
from musetalk_agent.publishers.stream.sink import StreamConnection, StreamOptions, StreamSink
from tests.waiting import until

BLOCK = np.full(1920, 9000, np.int16)


@dataclass
class ScriptedPush:
    """Takes sound and acknowledges none of it; breaks when `broken` is set. Every kind of `StreamConnection`'s calls is there."""

    played: list[float] = field(default_factory=list)
    broken: threading.Event = field(default_factory=threading.Event)
    sent: int = 0

    def open(self, shape: StreamShape) -> None:
        pass

    def play(self, sound: QueuedAudio) -> None:
        self.played.append(sound.at)
        self.sent += len(sound.block)

    def show(self, picture: QueuedFrame) -> None:
        pass

    def set_bitrate(self, bitrate: int) -> None:
        pass

    def poll(self) -> None:
        if self.broken.is_set():
            raise ConnectionResetError(104, "the server closed the connection")

    def pending(self) -> int:
        return self.sent

    def finish(self) -> None:
        pass

    def abort(self) -> None:
        self.broken.set()

    def close(self) -> None:
        pass


class ScriptedSink(StreamSink):
    def __init__(self) -> None:
        super().__init__(StreamOptions("", 25, 64, 64, 100_000), MonotonicClock(), lambda: None)
        self.pushes: list[ScriptedPush] = []

    def _connect(self, attempt: int) -> StreamConnection:
        self.pushes.append(ScriptedPush())
        return self.pushes[-1]

    async def until_played(self, push: int, count: int) -> list[float]:
        await until(lambda: not (len(self.pushes) <= push or len(self.pushes[push].played) < count))
        return self.pushes[push].played


async def test_sound_that_was_not_acknowledged_is_pushed_again_and_cleared_sound_is_not() -> None:
    sink = ScriptedSink()
    sink.start()
    try:
        for index in range(5):
            sink.offer_audio(100.0 + index * 0.04, BLOCK)
        await sink.until_played(0, 5)
        sink.pushes[0].broken.set()
        assert (await sink.until_played(1, 5))[:5] == [100.0 + index * 0.04 for index in range(5)]
        sink.clear_audio()
        assert sink.pushed_until == pytest.approx(100.2)  # a server has it: it is heard
        sink.offer_audio(100.1, BLOCK)  # the next words may be due before the last of the cleared ones was
        await sink.until_played(1, 6)
        sink.pushes[1].broken.set()
        sink.offer_audio(100.14, BLOCK)
        assert (await sink.until_played(2, 2)) == [100.1, 100.14]
    finally:
        await sink.aclose()


async def test_a_clear_while_the_server_is_away_leaves_nothing_to_push() -> None:
    sink = ScriptedSink()
    for index in range(25):
        sink.offer_audio(100.0 + index * 0.04, BLOCK)
    assert sink._queue.seconds() > 0.9
    sink.clear_audio()
    assert sink._queue.seconds() == 0.0 and sink.pushed_until == -math.inf
    sink.start()
    try:
        sink.offer_audio(101.0, BLOCK)
        assert await sink.until_played(0, 1) == [101.0]
        assert sink.pushed_until == pytest.approx(101.04)
    finally:
        await sink.aclose()
