"""Renders at Modal, where every container has a copy of the folder: Modal's own queue, a volume, and a dictionary.

A ticket is a spawned call of the app's class `Renderer` (`spawn`). Modal gives it to a container, and to another one
where that is lost, until it is done; no worker polls. The folder of renders is a volume: what a container writes is seen by others
once it is published, and what they wrote once it is fetched. What must happen once in all containers, as the end of a render, is
decided by an entry of the dictionary that is only written where there is none.

Used by the orchestrator and by the workers; it needs the extra `[modal]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import modal

from musetalk_agent.protocol.render_queue import RenderTicket

SCHEME = "modal://"
"""Of `RENDERS_QUEUE`: `modal://APP`."""
WORKER = "Renderer"
"""The app's class of workers; its method `do` takes a render's id, and a span or None."""


def volume_name(app: str) -> str:
    """The volume that is the folder of renders."""
    return f"{app}-renders"


class ModalRenders:
    """The queue of tickets, and what shares the folder (`RenderSharing`). Its methods block and raise OSError, in any thread.

    Args:
        target: `modal://APP`.

    Raises ValueError for a target without an app.
    """

    def __init__(self, target: str) -> None:
        app = target.removeprefix(SCHEME)
        if not app or app == target:
            raise ValueError(f"RENDERS_QUEUE is {target!r}: write {SCHEME}APP")
        self._volume = modal.Volume.from_name(volume_name(app))
        self._decided = modal.Dict.from_name(f"{app}-renders", create_if_missing=True)
        self._worker = modal.Cls.from_name(app, WORKER)

    def __enter__(self) -> Self:
        """Nothing is opened: Modal's objects are looked up when they are used."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open."""

    def put(self, *tickets: RenderTicket) -> None:
        """Publishes what was written for them, and adds tickets."""
        self.publish()
        with _os_errors():
            worker = self._worker()
            for ticket in tickets:
                worker.do.spawn(ticket.render_id, ticket.span)

    def fetch(self) -> bool:
        """See `RenderSharing.fetch`. Modal refuses while files of the volume are open here."""
        return _reloaded(self._volume.reload)

    def publish(self) -> None:
        """See `RenderSharing.publish`. What others wrote may be fetched with it, where no files are open here."""
        _reloaded(self._volume.commit)

    def first(self, name: str, value: str) -> str:
        """See `RenderSharing.first`."""
        with _os_errors():
            if self._decided.put(name, value, skip_if_exists=True):
                return value
            return str(self._decided.get(name, value))

    def known(self, name: str) -> bool:
        """See `RenderSharing.known`."""
        with _os_errors():
            return bool(self._decided.contains(name))


def _reloaded(call: Callable[[], None]) -> bool:
    """Whether the call could fetch what others wrote; the package has no class of its own for the error where it could not."""
    try:
        with _os_errors():
            call()
    except RuntimeError as error:
        if "open files" not in str(error):
            raise OSError(f"Modal: {error}") from error
        return False
    return True


@contextmanager
def _os_errors() -> Iterator[None]:
    """Raises OSError in place of Modal's errors: callers treat the folder as a disk."""
    try:
        yield
    except modal.Error as error:
        raise OSError(f"Modal: {error}") from error
