"""The queue of renders: tickets with leases, which workers take, hold while they work, and lose when they die.

It is SimpleBroker's (docs/decisions/0025-renders.md): an SQLite file for one machine, Redis for several. A worker takes a ticket by
moving it, in one atomic step, from `waiting` into a queue of its own; it is deleted there when its work is done. A worker's
heartbeat is a message that replaces its last one. The next worker that looks moves the tickets of a silent one back to `waiting`,
so a ticket is done at least once, and its work must be idempotent.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import BaseModel, Field, ValidationError

WAITING = "waiting"
_TAKEN, _ALIVE = "taken.", "alive."
SILENT_S = 15.0
"""A worker without a heartbeat for so long is dead; it sends one every second."""
_NAMESPACE = "musetalk_renders"
_NS = 10**9  # a message's id is the time it was written, in nanoseconds


class RenderTicket(BaseModel):
    """Work on one render: `span` of it, counted from 0, or None for what comes before: fetching, preparing, cutting."""

    render_id: str = Field(pattern=r"^ren_[0-9a-f]{24}$")
    span: int | None = Field(default=None, ge=0)


@dataclass(frozen=True, slots=True)
class TakenTicket:
    """A ticket that a worker holds, and its number in the queue."""

    ticket: RenderTicket
    number: int


class RenderQueue:
    """One process's access to the queue. A context manager; its methods block for as long as a disk or Redis does, and may be
    called from any thread.

    Args:
        target: path of an SQLite file, whose folder must be there, or an address `redis://…`, which needs simplebroker-redis.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._opened: Any = None
        self._broker: Any = None  # SimpleBroker's connection: its own type is not public
        self._lock = threading.Lock()

    def __enter__(self) -> RenderQueue:
        """Raises simplebroker's errors and OSError where the queue cannot be opened."""
        from simplebroker import BrokerTarget, open_broker  # not needed where there are no renders

        on_redis = self._target.startswith(("redis://", "rediss://", "unix://"))
        self._opened = open_broker(
            BrokerTarget("redis", self._target, {"namespace": _NAMESPACE}) if on_redis else self._target
        )
        self._broker = self._opened.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.__exit__(None, None, None)

    def put(self, *tickets: RenderTicket) -> None:
        """Adds tickets at the end."""
        with self._using() as broker:
            for ticket in tickets:
                broker.write(WAITING, ticket.model_dump_json())

    def waiting(self) -> int:
        """Tickets that no worker has taken."""
        with self._using() as broker:
            return int(broker.get_queue_stat(WAITING).pending)

    def take(self, worker: str) -> TakenTicket | None:
        """The oldest ticket, which is then this worker's; None when there is none. One that cannot be read is dropped."""
        with self._using() as broker:
            while (moved := broker.move_one(WAITING, _TAKEN + worker, with_timestamps=True)) is not None:
                body, number = moved
                try:
                    return TakenTicket(RenderTicket.model_validate_json(body), number)
                except ValidationError:
                    broker.delete_message_ids(_TAKEN + worker, [number])
        return None

    def done(self, worker: str, taken: TakenTicket) -> None:
        """The ticket's work is done. Without effect for one that was given back meanwhile."""
        with self._using() as broker:
            broker.delete_message_ids(_TAKEN + worker, [taken.number])

    def give_back(self, worker: str) -> int:
        """Everything that this worker holds waits again; returns how many tickets that is."""
        with self._using() as broker:
            return self._give_back(broker, worker)

    def alive(self, worker: str) -> None:
        """The worker lives."""
        with self._using() as broker:
            broker.write(_ALIVE + worker, "", keep_newest=1)

    def give_back_of_the_dead(self) -> int:
        """Gives back what silent workers hold; returns how many tickets that is."""
        with self._using() as broker:
            now = broker.generate_timestamp()
            count = 0
            for queue in broker.list_queues(prefix=_TAKEN):
                worker = queue.removeprefix(_TAKEN)
                last = broker.peek_many(_ALIVE + worker, limit=1, with_timestamps=True)
                if not last or now - last[0][1] > SILENT_S * _NS:
                    count += self._give_back(broker, worker)
                    broker.delete(_ALIVE + worker)
            return count

    @staticmethod
    def _give_back(broker: Any, worker: str) -> int:
        count = 0
        while broker.move_one(_TAKEN + worker, WAITING) is not None:
            count += 1
        return count

    @contextmanager
    def _using(self) -> Iterator[Any]:
        with self._lock:
            if self._broker is None:
                raise RuntimeError("the queue is not open")
            yield self._broker


def default_target(folder: Path) -> str:
    """The SQLite file of a folder of renders."""
    return str(folder / "queue.db")
