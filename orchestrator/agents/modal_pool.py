"""Agents in Modal's containers: each session has a place of its own, and the autoscaler decides how many containers there are.

Modal's sticky sessions route requests with a session's token to one container. Only this file knows the package `modal`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from musetalk_agent.protocol.http import VERSION, WARMING, AgentHealth, Capacity
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.agents.agent_client import AgentClient, AgentLease, unavailable
from orchestrator.agents.pool import LOST_S, AgentStatus, limited_by
from orchestrator.store.session_store import Seal, SealBroken, derive

HEADER = "Modal-Authorization"
_FULL = frozenset({"429", "503", "504"})
"""What the proxy answers when no container has room and none can be had."""
_RETRY_AFTER_S = 5


@dataclass(frozen=True)
class Ticket:
    """A place in one container. `token` leads to it, at the address that all containers share."""

    url: str
    token: str = field(repr=False)


class ModalSessions:
    """Sticky sessions of a server that was deployed with Modal: places in its containers, asked for as the container's workspace.

    Cancelling is harmless: an unused place ends by itself after its idle time.

    Args:
        app, server: their names at Modal.
    """

    def __init__(self, app: str, server: str) -> None:
        self._modal: Any = import_module("modal")
        self._errors = (self._modal.Error, import_module("aiohttp").ClientError, OSError)
        self._name = f"{app}/{server}"
        self._server = self._modal.Server.from_name(app, server)
        self._url = ""

    async def check(self) -> None:
        """Returns when there is such a server. Raises ProblemError `agent_unavailable`."""
        if self._url:
            return
        try:
            url = await self._server.get_url.aio()
        except self._errors as error:
            raise self._problem(error) from error
        if not url:
            raise ProblemError(ErrorCode.AGENT_UNAVAILABLE, f"Modal's {self._name} has no address: it is no server.")
        self._url = url.rstrip("/")

    async def start(self, idle_s: int) -> Ticket:
        """A place; waits while there is none. It ends after `idle_s` without a request or a connection.

        Raises ProblemError: `at_capacity`, or `agent_unavailable` when the server cannot be used at all.
        """
        await self.check()
        try:
            answer = await self._server.sessions.start.aio(idle_timeout=idle_s)
        except self._errors as error:
            raise self._problem(error) from error
        return Ticket(self._url, answer.token)

    async def terminate(self, token: str) -> None:
        """Ends the place. Raises ProblemError `agent_unavailable` when Modal did not take the call."""
        try:
            await self._server.sessions.terminate.aio(token)
        except self._errors as error:
            raise self._problem(error) from error

    def _problem(self, error: Exception) -> ProblemError:
        status = re.search(r"\bstatus (\d{3})\b", str(error))
        timeouts = (TimeoutError, self._modal.exception.TimeoutError)
        if isinstance(error, timeouts) or (status and status[1] in _FULL):
            return full(f"no container of {self._name} has room ({error})")
        self._url = ""
        text = f"Modal's {self._name} cannot be used ({type(error).__name__}: {error}). Is it deployed, and MODAL_APP right?"
        return ProblemError(ErrorCode.AGENT_UNAVAILABLE, text, retry_after_s=_RETRY_AFTER_S)


def full(reason: str) -> ProblemError:
    """No session has a place now."""
    text = f"No agent has a free place: {reason}. Try again later, or allow more containers."
    return ProblemError(ErrorCode.AT_CAPACITY, text, retry_after_s=_RETRY_AFTER_S)


TRIES = 3
"""Places looked at before one is taken whose container lost a session lately."""
BROKEN_MOST = 3
"""Containers that say they are not well before the search ends: a fourth one would most likely be no better, and each one is a card
that is paid for."""
AGAIN_S = 1.0
"""Until Modal is asked again after it had no room, or after a place did not answer."""
TERMINATE_S = 10.0
CHECK_S = 2.0
"""How long `status` waits for Modal's word on the server."""
_NAMES_REMEMBERED = 4096
_FAILED_S = 10.0
"""How long a start that failed, for other reasons than capacity, makes the fleet count as not usable."""
_KIND = "modal:"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModalOptions:
    """How places are asked for.

    Attributes:
        wait_s: longest wait for one; a cold container has to load its weights within it. So long places that are refused are kept,
            which makes Modal start another container.
        idle_s: an unused place ends after so long; an orchestrator must be back by then.
        sessions_max: what the fleet may hold at most, for people; 0 where it is not set.
    """

    wait_s: float = 90.0
    idle_s: int = 120
    sessions_max: int = 0


@dataclass(frozen=True)
class _Place:
    lease: AgentLease
    ticket: Ticket
    instance: str = ""


@dataclass
class _Search:
    """A place is being looked for. `refused` are held meanwhile; `problem` is what was wrong with the last of them."""

    avoided: set[str]
    refused: list[_Place] = field(default_factory=list)
    problem: ProblemError | None = None
    broken: set[str] = field(default_factory=set)
    second: _Place | None = None
    """At a container that is well and lost a session lately."""

    def take_second(self) -> _Place | None:
        if self.second is not None:
            self.refused.remove(self.second)
        return self.second


class ModalAgentPool:
    """An `AgentPool` over sticky sessions. Which container a session gets is Modal's choice; the pool looks at it before it is
    taken, and keeps it until it has a better one when the agent in it is not well, is full or drains.

    Args:
        sticky: where places come from.
        api_key: the agents' key. Places are sealed under it before the store sees them.
        client: speaks to agents.
        options: see there.
    """

    def __init__(
        self, sticky: ModalSessions, api_key: str, client: AgentClient, options: ModalOptions | None = None
    ) -> None:
        self._sticky = sticky
        self._api_key = api_key
        self._client = client
        self._options = options or ModalOptions()
        self._seal = Seal(derive(api_key, "modal place", ""))
        self._held: dict[str, _Place] = {}
        self._instances: OrderedDict[str, str] = OrderedDict()
        self._lost: dict[str, float] = {}
        self._failed_at = float("-inf")
        self._ending: set[asyncio.Task[None]] = set()

    async def acquire(
        self, session_id: str, *, avatar_id: str | None = None, avoid: frozenset[str] = frozenset()
    ) -> AgentLease:
        search = _Search({self._instances[name] for name in avoid if name in self._instances})
        try:
            async with asyncio.timeout(self._options.wait_s):
                place = await self._find(search)
        except TimeoutError:
            problem = search.problem or full(f"none came within {self._options.wait_s:g} s")
            self._note_failure(problem)
            raise problem from None
        except ProblemError as error:
            self._note_failure(error)
            raise
        finally:
            for each in search.refused:
                self._end(each.ticket)
        self._remember(place)
        self._held[session_id] = (
            place  # an earlier one is left to its idle time: its agent may still have to stop the session
        )
        return place.lease

    def _note_failure(self, problem: ProblemError) -> None:
        """A full fleet is not a broken one."""
        if problem.code is not ErrorCode.AT_CAPACITY:
            self._failed_at = time.monotonic()

    async def _find(self, search: _Search) -> _Place:
        """A place at an agent that is well; runs until it is cancelled, for containers start and sessions end meanwhile.

        Raises ProblemError when Modal cannot be used, or when `BROKEN_MOST` containers are broken.
        """
        looked = 0
        while len(search.broken) < BROKEN_MOST:
            try:
                place = self._place(await self._sticky.start(self._options.idle_s))
            except ProblemError as error:
                if error.code is not ErrorCode.AT_CAPACITY:
                    raise
                if second := search.take_second():
                    return second
                search.problem = search.problem or error
                await asyncio.sleep(AGAIN_S)
                continue
            looked += 1
            search.refused.append(place)
            if (good := await self._look(place, search)) is not None:
                search.refused.remove(place)
                return good
            if looked >= TRIES and (second := search.take_second()):
                return second
        raise search.problem or unavailable("none is ready")

    async def _look(self, place: _Place, search: _Search) -> _Place | None:
        """The place with its agent's name when it may be taken; else notes why not."""
        try:
            health = await self._client.health(place.lease)
        except ProblemError as error:
            search.problem = error
            await asyncio.sleep(AGAIN_S)  # a place that does not answer may be refused at once, and again at once
            return None
        if health.status != "ok" or health.draining:
            search.problem = unavailable(f"it is {'draining' if health.draining else health.status[:40]}")
            if not health.draining and health.status != WARMING:
                search.broken.add(health.instance)
        elif health.instance in search.avoided:
            search.problem = full("the only containers that are there have just refused the session")
        elif health.capacity.sessions >= health.capacity.sessions_max:
            search.problem = full(f"the container holds {health.capacity.sessions} sessions{limited_by([health])}")
        else:
            good = _Place(place.lease, place.ticket, health.instance)
            if not self._lost_lately(health.instance):
                return good
            search.refused[search.refused.index(place)] = search.second = good
        return None

    def _place(self, ticket: Ticket) -> _Place:
        headers = {"Authorization": f"Bearer {self._api_key}", HEADER: f"Bearer {ticket.token}"}
        name = _KIND + self._seal.encrypt(json.dumps([ticket.url, ticket.token]))
        return _Place(AgentLease(ticket.url, headers, name), ticket)

    def _remember(self, place: _Place) -> None:
        """Which container a name led to, also when the place is given back: each place has a new name, and `avoid` has names."""
        if place.instance:
            self._instances[place.lease.name] = place.instance
        while len(self._instances) > _NAMES_REMEMBERED:
            self._instances.popitem(last=False)

    def _lost_lately(self, instance: str) -> bool:
        now = time.monotonic()
        self._lost = {each: at for each, at in self._lost.items() if now - at < LOST_S}
        return instance in self._lost

    @asynccontextmanager
    async def borrow(self) -> AsyncIterator[AgentLease]:
        name = f"errand-{secrets.token_hex(4)}"
        lease = await self.acquire(name)
        try:
            yield lease
        finally:
            self.release(name)

    def adopt(self, session_id: str, name: str) -> AgentLease | None:
        """None too for a place of another key, or of another kind of pool."""
        try:
            url, token = json.loads(self._seal.decrypt(name.removeprefix(_KIND)))
        except (SealBroken, ValueError):
            return None
        place = self._place(Ticket(url, token))
        self._held[session_id] = place
        return place.lease

    def release(self, session_id: str) -> None:
        place = self._held.pop(session_id, None)
        if place is not None:
            self._end(place.ticket)

    def detach(self, session_id: str) -> None:
        self._held.pop(session_id, None)

    def lost(self, lease: AgentLease) -> None:
        instance = self._instances.get(lease.name)
        if instance is not None:
            self._lost[instance] = time.monotonic()

    async def status(self) -> list[AgentStatus]:
        """One line for the fleet: containers have no address, and there may rightly be none until a session wants one."""
        held = len(self._held)
        try:
            async with asyncio.timeout(CHECK_S):
                await self._sticky.check()
        except (ProblemError, TimeoutError):
            return [AgentStatus("modal", None, held)]
        if time.monotonic() - self._failed_at < _FAILED_S:
            return [AgentStatus("modal", None, held)]
        capacity = Capacity(sessions=held, sessions_max=max(held, self._options.sessions_max))
        return [AgentStatus("modal", AgentHealth(status="ok", version=VERSION, engine="", capacity=capacity), held)]

    def leases(self) -> list[AgentLease]:
        """A way to every container that holds a session of ours."""
        ways = {place.instance or place.lease.name: place.lease for place in self._held.values()}
        return list(ways.values())

    def remember_avatar(self, avatar_id: str, lease: AgentLease) -> None:
        """Without effect: containers share the volume of prepared avatars, and none can be asked for."""

    async def aclose(self) -> None:
        await asyncio.gather(*self._ending, return_exceptions=True)

    def _end(self, ticket: Ticket) -> None:
        task = asyncio.create_task(self._terminate(ticket), name="modal-terminate")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _terminate(self, ticket: Ticket) -> None:
        try:
            async with asyncio.timeout(TERMINATE_S):
                await self._sticky.terminate(ticket.token)
        except (ProblemError, TimeoutError) as error:
            _log.warning("a place was not ended; it will be after its idle time", extra={"error": str(error)})
