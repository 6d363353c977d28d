"""Looks up names that strangers gave, in threads of its own: a name server that does not answer holds up no other look-ups.

asyncio's own `getaddrinfo` shares a pool of a few threads with all that runs in threads, and a thread in it cannot be given up.
These threads are bounded over all and for each domain, and being daemons they do not hold up the end of the process. Standard
library only.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress

THREADS = 32
"""Look-ups that may be under way, all together."""
THREADS_PER_DOMAIN = 2
"""Those of one domain: the last two labels of a name."""
WAITING = 1024
"""Names that may wait for a thread; past it a look-up fails at once."""
WITHIN_S = 5.0
"""Longest wait for one look-up. It goes on in its thread, and who asks for the same name meanwhile waits for it too."""
_Name = tuple[str, int]
_Waiter = tuple[asyncio.AbstractEventLoop, "asyncio.Future[list[str]]"]


class NameResolver:
    """A `Resolver`. One for each process; may be used from several event loops."""

    def __init__(
        self, threads: int = THREADS, per_domain: int = THREADS_PER_DOMAIN, within_s: float = WITHIN_S
    ) -> None:
        self._threads, self._per_domain, self._within_s = threads, per_domain, within_s
        self._lock = threading.Lock()
        self._running: dict[_Name, list[_Waiter]] = {}
        self._waiting: dict[_Name, list[_Waiter]] = {}  # in the order in which they came

    @property
    def running(self) -> int:
        """Look-ups under way."""
        return len(self._running)

    async def __call__(self, host: str, port: int) -> list[str]:
        """Addresses of the host as text. Raises OSError when there are none, when it takes too long, or when too many wait already.

        Cancelling gives up the waiting; a look-up under way ends by itself.
        """
        answer = self._ask((host, port), asyncio.get_running_loop())
        async with asyncio.timeout(self._within_s):
            return await answer

    def _ask(self, wanted: _Name, loop: asyncio.AbstractEventLoop) -> asyncio.Future[list[str]]:
        answer: asyncio.Future[list[str]] = loop.create_future()
        with self._lock:
            for known in (self._running, self._waiting):
                if wanted in known:
                    known[wanted].append((loop, answer))
                    return answer
            if len(self._waiting) >= WAITING:
                raise OSError(f"{WAITING} look-ups wait already")
            self._waiting[wanted] = [(loop, answer)]
            self._begin()
        return answer

    def _begin(self) -> None:
        """Gives threads to those who wait and may have one. The lock is held."""
        for wanted in list(self._waiting):
            if all(answer.done() for _, answer in self._waiting[wanted]):
                del self._waiting[wanted]  # all of them have given up
                continue
            if len(self._running) >= self._threads:
                return
            if sum(_domain(host) == _domain(wanted[0]) for host, _ in self._running) < self._per_domain:
                self._running[wanted] = self._waiting.pop(wanted)
                try:
                    threading.Thread(target=self._look_up, args=(wanted,), name="resolver", daemon=True).start()
                except RuntimeError:  # the machine has no more threads; those who wait give up at their deadline
                    del self._running[wanted]

    def _look_up(self, wanted: _Name) -> None:
        found: list[str] = []
        failure: Exception | None = None
        try:
            entries = socket.getaddrinfo(*wanted, type=socket.SOCK_STREAM)
            found = list(dict.fromkeys(str(entry[4][0]) for entry in entries))
        except Exception as error:  # noqa: BLE001 - thread boundary: whatever it is, those who wait hear of it
            failure = error if isinstance(error, OSError) else OSError(f"{type(error).__name__}: {error}")
        with self._lock:
            waiters = self._running.pop(wanted)
            self._begin()
        for loop, answer in waiters:
            with suppress(RuntimeError):  # its event loop has ended
                loop.call_soon_threadsafe(_tell, answer, found, failure)


def _tell(answer: asyncio.Future[list[str]], found: list[str], failure: Exception | None) -> None:
    if answer.done():
        return
    if failure is not None:
        answer.set_exception(failure)
    else:
        answer.set_result(found)


def _domain(host: str) -> str:
    return ".".join(host.lower().rstrip(".").split(".")[-2:])
