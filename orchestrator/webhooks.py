"""Posts events of sessions to webhooks: over https to public addresses, signed, in order, with retries.

The scheme is Standard Webhooks: the headers `webhook-id`, `webhook-timestamp` and `webhook-signature`. The queue has no I/O.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import random
import ssl
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from musetalk_agent.protocol.addresses import AddressRefused, Resolver, parse, system_resolver
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.checked_post import FAILURES, CheckedPosts
from orchestrator.events import SessionEvent
from orchestrator.metrics import Metrics

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


DELAYS_S = (1.0, 5.0, 25.0, 90.0)
"""Between five tries: about two minutes, give or take a fifth."""
TRY_S = 10.0
CLOSE_S = 3.0
_PORTS = {"https": 443}
_PREFIX = "whsec_"
_SECRET_BYTES = (24, 64)
_GONE = 410
_log = logging.getLogger(__name__)


def secret(text: str) -> bytes:
    """The bytes of a secret `whsec_…`. Raises ValueError."""
    try:
        decoded = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except ValueError:
        decoded = b""
    low, high = _SECRET_BYTES
    if not text.startswith(_PREFIX) or not low <= len(decoded) <= high:
        raise ValueError(f"a webhook secret is {_PREFIX} and the base64 of {low} to {high} random bytes")
    return decoded


def signature(secrets: Iterable[bytes], message_id: str, timestamp: int, body: bytes) -> str:
    """Value of `webhook-signature`: one signature for each secret."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    made = (hmac.new(key, signed, hashlib.sha256).digest() for key in secrets)
    return " ".join(f"v1,{base64.b64encode(one).decode()}" for one in made)


def secure_address(url: str) -> str:
    """The address, when it is one of https. Raises ValueError that says what is wrong."""
    try:
        parse(url, _PORTS)
    except AddressRefused as error:
        raise ValueError(error.detail) from None
    return url


class Webhooks:
    """Posts events. `on_event` is the bus's listener; nothing there blocks.

    Args:
        endpoints: those of a session, by its id.
        metrics: where deliveries are counted.
        allow_private: whether loopback and private addresses may be posted to.
        resolver, ssl_context: how names are resolved, and whom https trusts; by default the public authorities.
        delays_s: waiting times between the tries.
    """

    def __init__(
        self,
        endpoints: Callable[[str], Sequence[Endpoint]],
        metrics: Metrics,
        *,
        allow_private: bool = False,
        resolver: Resolver = system_resolver,
        ssl_context: ssl.SSLContext | None = None,
        delays_s: Sequence[float] = DELAYS_S,
    ) -> None:
        self._endpoints = endpoints
        self._metrics = metrics
        self._posts = CheckedPosts(_PORTS, allow_private=allow_private, resolver=resolver, ssl_context=ssl_context)
        self._delays_s = delays_s
        self._queue = Queue()
        self._lanes: dict[Lane, asyncio.Task[None]] = {}
        self._slots = Slots()
        self._closing = asyncio.Event()

    def on_event(self, event: SessionEvent) -> None:
        """Queues the event for each of its session's endpoints."""
        if self._closing.is_set():
            return
        for endpoint in self._endpoints(event.session_id):
            delivery = Delivery(endpoint, event)
            if self._queue.put(delivery) is not None:
                self._metrics.webhooks.labels(outcome="dropped").inc()
            if delivery.lane not in self._lanes:
                task = asyncio.create_task(self._run(delivery.lane), name=f"webhook-{event.session_id}")
                self._lanes[delivery.lane] = task
        self._metrics.webhooks_pending.set(len(self._queue))

    async def check(self, url: str) -> None:
        """Raises ProblemError `webhook_url_forbidden` for an address that nothing would ever be posted to."""
        try:
            await self._posts.check(url)
        except AddressRefused as error:
            raise _forbidden(error.detail, error.value) from error

    async def aclose(self) -> None:
        """Gives what waits some seconds, and takes nothing more. Idempotent."""
        self._closing.set()
        tasks = list(self._lanes.values())
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if len(self._queue):
            _log.warning("webhooks were not delivered before the end", extra={"count": len(self._queue)})

    async def _run(self, lane: Lane) -> None:
        try:
            while (head := self._queue.head(lane)) is not None:
                ticket, delivery = head
                outcome = await self._deliver(ticket, delivery)
                self._queue.done(ticket)
                if outcome is not None:
                    self._metrics.webhooks.labels(outcome=outcome).inc()
                self._metrics.webhooks_pending.set(len(self._queue))
        finally:
            del self._lanes[lane]

    async def _deliver(self, ticket: int, delivery: Delivery) -> str | None:
        """Tries until it is taken or given up. Returns which, None when it was dropped meanwhile."""
        reason = ""
        for delay_s in (*self._delays_s, None):
            try:
                async with self._slots.one(delivery.endpoint):
                    if not self._queue.holds(ticket):  # it was dropped, and counted so, while it waited
                        return None
                    async with asyncio.timeout(TRY_S):
                        status = await self._post(delivery)
            except AddressRefused as error:
                reason = error.detail
            except FAILURES as error:
                reason = type(error).__name__
            except Exception as error:  # noqa: BLE001 - task boundary: one endpoint's trouble is not the others'
                _log.exception("a webhook broke", extra={"session_id": delivery.event.session_id})
                reason = type(error).__name__
            else:
                if 200 <= status < 300:
                    return "delivered"
                reason = f"HTTP {status}"
                if status == _GONE:
                    break
            if delay_s is None or await self._closes_within(delay_s * random.uniform(0.8, 1.2)):
                break
        extra = {"session_id": delivery.event.session_id, "type": delivery.event.type, "reason": reason}
        _log.warning("a webhook was given up", extra=extra)
        return "failed"

    async def _closes_within(self, delay_s: float) -> bool:
        """Waits, unless the service ends: then each event is tried once more at most."""
        try:
            async with asyncio.timeout(delay_s):
                await self._closing.wait()
        except TimeoutError:
            return False
        return True

    async def _post(self, delivery: Delivery) -> int:
        """One try. Returns the status; whatever the answer says beside that is not read."""
        body = delivery.event.text.encode()
        headers = signed_headers(delivery.endpoint.secrets, delivery.message_id, body)
        return (await self._posts.post(delivery.endpoint.url, headers, body)).status


def signed_headers(secrets: Sequence[bytes], message_id: str, body: bytes) -> dict[str, str]:
    """Headers of one JSON message, signed now; without secrets the signature is left out."""
    timestamp = int(time.time())
    headers = {"Content-Type": "application/json", "webhook-id": message_id, "webhook-timestamp": str(timestamp)}
    if secrets:
        headers["webhook-signature"] = signature(secrets, message_id, timestamp, body)
    return headers


def _forbidden(why: str, value: str | None) -> ProblemError:
    return ProblemError(ErrorCode.WEBHOOK_URL_FORBIDDEN, f"webhook_url: {why}", field="webhook_url", value=value)
