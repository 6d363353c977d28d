"""The life of a session as a table.

    starting ──► ready ◄──► speaking ◄──► recovering
        │          │            │             │
        │          └────────────┴──► draining ┴──► stopped
        └──► failed ◄── (any but the ended ones)

`recovering` is entered from `ready` too, and left for it. `stopped` and `failed` are the end. `ready` and `speaking` are told apart
by what is being heard, see `LiveSession.state`.
"""

from __future__ import annotations

from musetalk_agent.protocol.http import SessionState

NEXT: dict[SessionState, frozenset[SessionState]] = {
    SessionState.STARTING: frozenset({SessionState.READY, SessionState.DRAINING, SessionState.FAILED}),
    SessionState.READY: frozenset(
        {SessionState.SPEAKING, SessionState.RECOVERING, SessionState.DRAINING, SessionState.FAILED}
    ),
    SessionState.SPEAKING: frozenset(
        {SessionState.READY, SessionState.RECOVERING, SessionState.DRAINING, SessionState.FAILED}
    ),
    SessionState.RECOVERING: frozenset({SessionState.READY, SessionState.DRAINING, SessionState.FAILED}),
    SessionState.DRAINING: frozenset({SessionState.STOPPED, SessionState.FAILED}),
    SessionState.STOPPED: frozenset(),
    SessionState.FAILED: frozenset(),
}
ENDED = frozenset({SessionState.STOPPED, SessionState.FAILED})
RUNNING = frozenset({SessionState.READY, SessionState.SPEAKING, SessionState.RECOVERING})


class IllegalTransition(Exception):
    """The table does not allow this step."""


def step(current: SessionState, to: SessionState) -> SessionState:
    """Returns `to` when the table allows it, or when it is where the session already is. Raises IllegalTransition."""
    if to != current and to not in NEXT[current]:
        raise IllegalTransition(f"{current.value} cannot become {to.value}")
    return to
