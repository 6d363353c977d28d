"""An event queue for the SDK that delivers events only to code that awaits them, and bounds the microphone audio that waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from livekit.rtc._ffi_client import FfiClient, FfiHandle, FfiQueue
from livekit.rtc._proto.ffi_pb2 import FfiEvent
from livekit.rtc._utils import Queue

T = TypeVar("T")
BEHIND_MOST = 60
"""Events of one stream that wait for the loop: 3 s of sound at 50 ms each. What comes then is dropped, or a machine that is too
busy would answer later with each second."""


class _Waiting(Queue[T], Generic[T]):
    """Shows what is being waited for, to another thread too."""

    def __init__(self, wanted: Callable[[T], bool] | None) -> None:
        super().__init__()
        self._wanted = wanted
        self._awaited: Callable[[T], bool] | None = None
        self.handed = self.arrived = 0  # each is written by one thread only

    def arrive(self, item: T) -> None:
        """On the loop: what was handed to it."""
        self.arrived += 1
        self.put_nowait(item)

    async def wait_for(self, fnc: Callable[[T], bool]) -> T:
        self._awaited = fnc
        try:
            return await super().wait_for(fnc)
        finally:
            self._awaited = None

    def takes(self, item: T) -> bool:
        """Whether it is asked for, and `wait_for` would not throw it away."""
        awaited = self._awaited
        return (self._wanted is None or self._wanted(item)) and (awaited is None or awaited(item))


class AwaitedEvents(FfiQueue[T], Generic[T]):
    """Takes the place of the SDK's own queue. That of livekit 1.1.21, which livekit-agents 1.8.9 asks for, hands the sound of each
    microphone to the streams of all, which throw it away: five thousand wake-ups a second with ten conversations. Here nothing
    is delivered that `wait_for` would throw away. livekit 1.2 does the same for streams of sound.

    `dropped` counts what was dropped since a loop was `BEHIND_MOST` events behind.

    Args:
        drop: is given such an event by the SDK's threads, and returns whether it could be dropped.
    """

    def __init__(self, drop: Callable[[T], bool] = lambda _: False) -> None:
        super().__init__()
        self.dropped = 0
        self._drop = drop
        self._waiting: list[tuple[_Waiting[T], asyncio.AbstractEventLoop]] = []

    @staticmethod
    def install() -> None:
        """For this process. Must be called before anything of the SDK is used."""
        FfiClient.instance._queue = AwaitedEvents[FfiEvent](_drop_sound)

    def put(self, item: T) -> None:
        """Is called by the SDK's threads; never blocks for long."""
        with self._lock:
            for queue, loop in self._waiting:
                if not queue.takes(item) or loop.is_closed():
                    continue
                if queue.handed - queue.arrived >= BEHIND_MOST and self._drop(item):
                    self.dropped += 1
                    continue
                queue.handed += 1
                loop.call_soon_threadsafe(queue.arrive, item)

    def subscribe(
        self, loop: asyncio.AbstractEventLoop | None = None, filter_fn: Callable[[T], bool] | None = None
    ) -> Queue[T]:
        """As the SDK's."""
        queue = _Waiting[T](filter_fn)
        with self._lock:
            self._waiting.append((queue, loop or asyncio.get_event_loop()))
        return queue

    def unsubscribe(self, queue: Queue[T]) -> None:
        """As the SDK's; without effect for one that is not subscribed."""
        with self._lock:
            self._waiting = [each for each in self._waiting if each[0] is not queue]


def dropped() -> int:
    """Pieces of microphones' sound that this process has dropped."""
    installed = FfiClient.instance.queue
    return installed.dropped if isinstance(installed, AwaitedEvents) else 0


def _drop_sound(event: FfiEvent) -> bool:
    if event.WhichOneof("message") != "audio_stream_event" or not event.audio_stream_event.HasField("frame_received"):
        return False
    FfiHandle(event.audio_stream_event.frame_received.frame.handle.id).dispose()
    return True
