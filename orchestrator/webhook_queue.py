"""What waits to be posted, and how many posts run at once: each receiver and each caller has a share, so none slows the others."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from orchestrator.events import SessionEvent

PENDING = 4096
"""Deliveries that may wait, all together; past it the oldest of the party with most of them goes."""
PENDING_EACH = 512
"""Deliveries that may wait for one party; past it its own oldest goes."""
AT_ONCE = 64
"""Posts that run at once, all together."""
AT_ONCE_OWNER = 16
"""Posts to the receivers of one caller."""
AT_ONCE_PARTY = 4
"""Posts to one host for one caller. One that never answers holds these until their deadline, and no others."""


@dataclass(frozen=True)
class Endpoint:
    """Where events go. Each secret signs, so that the receiver may change from one to the next at any time.

    `owner` is the name of the key whose session named it; empty for the service's own endpoints.
    """

    url: str = field(repr=False)
    secrets: tuple[bytes, ...] = field(repr=False)
    owner: str = ""

    @property
    def party(self) -> tuple[str, str]:
        """Who has one share of the queue and of the posts: a caller's receivers at one host."""
        return self.owner, urlsplit(self.url).netloc.lower()


Lane = tuple[Endpoint, str]
"""What is delivered in order: the events of one session at one endpoint."""


@dataclass(frozen=True)
class Delivery:
    """One event for one endpoint."""

    endpoint: Endpoint
    event: SessionEvent

    @property
    def lane(self) -> Lane:
        """Where it stands in line."""
        return self.endpoint, self.event.session_id

    @property
    def message_id(self) -> str:
        """The same for every try."""
        return f"{self.event.session_id}-{self.event.id}"


class Queue:
    """Deliveries that wait, by lane; bounded for each party and over all. Pure."""

    def __init__(self, most: int = PENDING, each: int = PENDING_EACH) -> None:
        self._most, self._each = most, each
        self._pending: dict[int, Delivery] = {}
        self._parties: dict[tuple[str, str], OrderedDict[int, None]] = {}
        self._lanes: dict[Lane, deque[int]] = {}
        self._next = 0

    def __len__(self) -> int:
        """Deliveries that wait."""
        return len(self._pending)

    def put(self, delivery: Delivery) -> Delivery | None:
        """Queues it. Returns the one that had to make room for it, if any."""
        self._next += 1
        self._pending[self._next] = delivery
        mine = self._parties.setdefault(delivery.endpoint.party, OrderedDict())
        mine[self._next] = None
        self._lanes.setdefault(delivery.lane, deque()).append(self._next)
        if len(mine) > self._each:
            return self._drop(next(iter(mine)))
        if len(self._pending) > self._most:
            largest = max(self._parties, key=lambda party: len(self._parties[party]))
            return self._drop(next(iter(self._parties[largest])))
        return None

    def head(self, lane: Lane) -> tuple[int, Delivery] | None:
        """The lane's first delivery with its ticket; None, and the lane is gone, when there is no more."""
        tickets = self._lanes.get(lane)
        if not tickets:
            self._lanes.pop(lane, None)
            return None
        return tickets[0], self._pending[tickets[0]]

    def holds(self, ticket: int) -> bool:
        """Whether it still waits, and was not dropped."""
        return ticket in self._pending

    def done(self, ticket: int) -> None:
        """Delivered, or given up. Without effect for one that was dropped."""
        if ticket in self._pending:
            self._drop(ticket)

    def _drop(self, ticket: int) -> Delivery:
        delivery = self._pending.pop(ticket)
        self._lanes[delivery.lane].remove(ticket)  # the lane's first: what goes is always the oldest
        party = self._parties[delivery.endpoint.party]
        del party[ticket]
        if not party:
            del self._parties[delivery.endpoint.party]
        return delivery


class Slots:
    """Bounds the posts that run at once: for each party, for each caller, and over all. First come, first served in each."""

    def __init__(self) -> None:
        self._all = asyncio.Semaphore(AT_ONCE)
        self._shares: dict[tuple[str, ...], tuple[asyncio.Semaphore, int]] = {}

    @asynccontextmanager
    async def one(self, endpoint: Endpoint) -> AsyncIterator[None]:
        """A slot for one post. A party's share is taken before the caller's and the common one, so it holds none while it waits."""
        async with AsyncExitStack() as held:
            await held.enter_async_context(self._share(endpoint.party, AT_ONCE_PARTY))
            if endpoint.owner:
                await held.enter_async_context(self._share((endpoint.owner,), AT_ONCE_OWNER))
            await held.enter_async_context(self._all)
            yield

    @asynccontextmanager
    async def _share(self, name: tuple[str, ...], most: int) -> AsyncIterator[None]:
        semaphore, users = self._shares.get(name, (asyncio.Semaphore(most), 0))
        self._shares[name] = semaphore, users + 1
        try:
            async with semaphore:
                yield
        finally:
            semaphore, users = self._shares[name]
            if users > 1:
                self._shares[name] = semaphore, users - 1
            else:
                del self._shares[name]
