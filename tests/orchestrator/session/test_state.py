from __future__ import annotations

from itertools import product

import pytest

from musetalk_agent.protocol.http import SessionState as S
from orchestrator.session.model import ENDED, NEXT, IllegalTransition, step

LEGAL = {
    (S.STARTING, S.READY), (S.STARTING, S.DRAINING), (S.STARTING, S.FAILED),
    (S.READY, S.SPEAKING), (S.READY, S.DRAINING), (S.READY, S.FAILED),
    (S.SPEAKING, S.READY), (S.SPEAKING, S.DRAINING), (S.SPEAKING, S.FAILED),
    (S.READY, S.RECOVERING), (S.SPEAKING, S.RECOVERING), (S.RECOVERING, S.READY),
    (S.RECOVERING, S.DRAINING), (S.RECOVERING, S.FAILED),
    (S.DRAINING, S.STOPPED), (S.DRAINING, S.FAILED),
}  # fmt: skip


@pytest.mark.parametrize(("current", "to"), list(product(S, S)))
def test_every_step_is_legal_or_refused(current: S, to: S) -> None:
    if current == to or (current, to) in LEGAL:
        assert step(current, to) is to
    else:
        with pytest.raises(IllegalTransition, match=f"{current.value} cannot become {to.value}"):
            step(current, to)


def test_the_end_is_the_end() -> None:
    assert {state for state in S if not NEXT[state]} == ENDED
