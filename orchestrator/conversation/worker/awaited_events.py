"""The SDK's events go to those who wait for them only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from livekit.rtc._ffi_client import FfiClient, FfiQueue
from livekit.rtc._utils import Queue

T = TypeVar("T")


class _Waiting(Queue[T], Generic[T]):
    """Shows what is being waited for, to another thread too."""

    def __init__(self, wanted: Callable[[T], bool] | None) -> None:
        super().__init__()
        self._wanted = wanted
        self._awaited: Callable[[T], bool] | None = None

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
    """

    def __init__(self) -> None:
        super().__init__()
        self._waiting: list[tuple[_Waiting[T], asyncio.AbstractEventLoop]] = []

    @classmethod
    def install(cls) -> None:
        """For this process. Must be called before anything of the SDK is used."""
        FfiClient.instance._queue = cls()

    def put(self, item: T) -> None:
        """Is called by the SDK's threads; never blocks for long."""
        with self._lock:
            for queue, loop in self._waiting:
                if queue.takes(item) and not loop.is_closed():
                    loop.call_soon_threadsafe(queue.put_nowait, item)

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
