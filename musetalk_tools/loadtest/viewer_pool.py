"""Runs the viewers' processes, a few rooms each. A process that dies loses only its own viewers."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from pydantic import ValidationError

from musetalk_tools.loadtest.viewer_messages import (
    LINE_LIMIT,
    Joined,
    JoinViewer,
    LeaveViewer,
    Left,
    Link,
    Seen,
    ViewersReady,
    line,
    viewer_reports,
)
from orchestrator.worker_process import kill

ROOMS_PER_PROCESS = 4
COMMAND = (sys.executable, "-m", "musetalk_tools.loadtest.viewer")
_SECRET = ("_KEY", "_SECRET")
_HELLO_S = 60.0
_JOIN_S = 30.0
_LEAVE_S = 15.0
_EXIT_S = 15.0
log = logging.getLogger(__name__)


class ViewerLost(Exception):
    """There is no viewer: it could not join, or its process ended. The message says which."""


@dataclass
class Watch:
    """One viewer. `on_seen` and `on_link` are called on the event loop and must not block."""

    name: str
    on_seen: Callable[[Seen], None]
    on_link: Callable[[Link], None]
    joined: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    left: asyncio.Future[Left] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def __post_init__(self) -> None:
        self.joined.add_done_callback(
            lambda joined: joined.cancelled() or joined.exception()
        )  # the caller may have stopped waiting

    def take(self, message: Joined | Seen | Link | Left) -> None:
        """What its process reports of it."""
        if isinstance(message, Seen):
            self.on_seen(message)
        elif isinstance(message, Link):
            self.on_link(message)
        elif isinstance(message, Left):
            if not self.left.done():
                self.left.set_result(message)
        elif not self.joined.done():
            if message.error is None:
                self.joined.set_result(None)
            else:
                self.joined.set_exception(ViewerLost(f"could not join: {message.error}"))

    def lose(self, why: str) -> None:
        """Its process is gone."""
        if not self.joined.done():
            self.joined.set_exception(ViewerLost(why))
        if not self.left.done():
            self.left.set_result(Left(name=self.name))
            self.on_link(Link(name=self.name, state="disconnected", reason=why))


class ViewerPool:
    """Opens processes as viewers come, `ROOMS_PER_PROCESS` to each."""

    def __init__(self) -> None:
        self._processes: list[_Process] = []

    async def join(self, watch: Watch, url: str, token: str) -> None:
        """Returns when the viewer is in the room. Raises ViewerLost. When cancelled, `leave` is to be called all the same."""
        process = next((each for each in self._processes if each.has_room), None)
        if process is None:
            process = _Process()
            self._processes.append(process)
        process.add(watch)
        try:
            async with asyncio.timeout(_HELLO_S + _JOIN_S):
                await process.ready()
                process.send(JoinViewer(name=watch.name, url=url, token=token))
                await asyncio.shield(watch.joined)
        except TimeoutError as error:
            raise ViewerLost("it was not in the room in time") from error
        except OSError as error:
            raise ViewerLost(f"its process cannot be started: {error.strerror}") from error

    async def leave(self, watch: Watch) -> Left:
        """Returns what WebRTC counted; zeros of a viewer that never joined or was lost."""
        process = next((each for each in self._processes if watch.name in each.watches), None)
        if process is None or not process.running:
            return Left(name=watch.name)
        process.send(LeaveViewer(name=watch.name))
        try:
            async with asyncio.timeout(_LEAVE_S):
                return await asyncio.shield(watch.left)
        except TimeoutError:
            return Left(name=watch.name)

    async def aclose(self) -> None:
        """Ends every process, within 15 s."""
        await asyncio.gather(*(process.aclose() for process in self._processes))


class _Process:
    def __init__(self) -> None:
        self.watches: dict[str, Watch] = {}
        self._taken = 0
        self._hello = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._starting = asyncio.Lock()
        self._reader: asyncio.Task[None] | None = None
        self._ended: str | None = None

    @property
    def has_room(self) -> bool:
        return self._taken < ROOMS_PER_PROCESS and self._ended is None

    @property
    def running(self) -> bool:
        return self._process is not None and self._ended is None

    def add(self, watch: Watch) -> None:
        self._taken += 1
        self.watches[watch.name] = watch

    async def ready(self) -> None:
        async with self._starting:
            if self._process is None:
                pipe = asyncio.subprocess.PIPE
                # no key of the deployment: a viewer gets its token with its order. A group of its own: Ctrl-C is for us
                environment = {name: value for name, value in os.environ.items() if not name.endswith(_SECRET)}
                environment |= {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
                self._process = await asyncio.create_subprocess_exec(
                    *COMMAND, stdin=pipe, stdout=pipe, env=environment, limit=LINE_LIMIT, start_new_session=True
                )
                self._reader = asyncio.create_task(self._read(self._process), name="loadtest-viewers")
        await self._hello.wait()
        if self._ended:
            raise ViewerLost(self._ended)

    def send(self, message: JoinViewer | LeaveViewer) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(line(message))

    async def aclose(self) -> None:
        process, reader = self._process, self._reader
        if process is None or reader is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(_EXIT_S):
                await process.wait()
                await reader
        except TimeoutError:
            pass  # it is killed
        finally:
            kill(process)
            await process.wait()
            await asyncio.wait([reader])

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        why = "the viewers' process ended"
        try:
            while text := await process.stdout.readline():
                message = viewer_reports.validate_json(text)
                if isinstance(message, ViewersReady):
                    self._hello.set()
                elif message.name in self.watches:
                    self.watches[message.name].take(message)
        except (ValidationError, ValueError) as error:
            why = f"the viewers' process talks nonsense: {type(error).__name__}"
            kill(process)
        self._ended = why
        self._hello.set()
        for watch in self.watches.values():
            watch.lose(why)
