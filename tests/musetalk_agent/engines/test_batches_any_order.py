"""Which frames make the next batch, whatever the sessions, deadlines and cancellations."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.engines.batcher import QUEUE_LIMIT, Batcher
from musetalk_agent.engines.interface import PatchRequest
from musetalk_agent.engines.pattern import PatternEngine, pattern_bundle

ENGINE = PatternEngine()
ACTORS = [ENGINE.open(pattern_bundle(64, 64, 25)) for _ in range(3)]
SOUND = np.ones(1, np.float32)


async def _waiting(frames: list[tuple[int, float, bool]]) -> Batcher:
    """A batcher whose threads do not run, with these frames (session, deadline, cancelled) before it."""
    batcher = Batcher(ENGINE)
    batcher._loop = asyncio.get_running_loop()
    for idle_index, (session, deadline, cancelled) in enumerate(frames):
        result = batcher.submit(PatchRequest(ACTORS[session], idle_index, SOUND), deadline)
        if cancelled:
            result.cancel()
    return batcher


FRAMES = st.lists(st.tuples(st.integers(0, 2), st.floats(0, 9), st.booleans()), max_size=40)


@given(FRAMES, st.integers(1, 8))
async def test_batches_hold_every_frame_once_in_each_session_s_order_and_the_earliest_first(
    frames: list[tuple[int, float, bool]], most: int
) -> None:
    batcher = await _waiting(frames)
    left: dict[int, list[int]] = defaultdict(list)
    for idle_index, (session, _, _) in enumerate(frames):
        left[session].append(idle_index)
    dropped = 0
    while any(left.values()):
        batch = batcher._pop_by_deadline(most)
        assert len(batch) <= most
        for job in batch:
            session = ACTORS.index(job.request.session)
            while frames[left[session][0]][2]:  # cancelled ones were dropped on the way
                left[session].pop(0)
                dropped += 1
            assert left[session][0] == job.request.idle_index
            heads = [frames[row[0]] for row in left.values() if row and not frames[row[0]][2]]
            assert job.deadline <= min(deadline for _, deadline, _ in heads) or any(
                row and frames[row[0]][2] for row in left.values()
            )
            left[session].pop(0)
        if not batch or batcher.statistics().waiting == 0:
            dropped += sum(frames[idle_index][2] for row in left.values() for idle_index in row)
            assert all(frames[idle_index][2] for row in left.values() for idle_index in row)
            break
    assert batcher.statistics().waiting == 0 and batcher.statistics().dropped == dropped
    assert dropped == sum(cancelled for _, _, cancelled in frames)


@given(st.integers(0, 3), st.integers(0, 12), st.integers(0, 3), st.floats(-5, 5))
async def test_a_batch_is_launched_when_the_card_is_idle_or_full_or_about_to_be_and_never_a_third(
    flying: int, waiting: int, undelivered: int, ends_in_s: float
) -> None:
    batcher = await _waiting([(0, 1.0, False)] * waiting)
    batcher._sizes_on_device.extend([1] * flying)
    batcher._undelivered = undelivered
    batcher._expected_end = time.perf_counter() + ends_in_s
    patience = batcher._seconds_until_launch()
    if not waiting or flying >= 2:
        assert patience is None
    elif patience is not None and not flying:
        assert patience == 0.0
    elif patience is not None and waiting < ENGINE.batch_sizes[-1]:
        assert patience <= ends_in_s
    for job in batcher._pop_all():
        job.result.cancel()


async def test_the_queue_takes_no_more_than_its_limit_over_all_sessions() -> None:
    batcher = await _waiting([(k % 3, float(k), False) for k in range(QUEUE_LIMIT)])
    refused = batcher.submit(PatchRequest(ACTORS[0], 0, SOUND), 0.0)
    assert refused.done() and "takes no more" in str(refused.exception())
    batcher._pop_by_deadline(1)
    again = batcher.submit(PatchRequest(ACTORS[0], 0, SOUND), 0.0)
    assert not again.done()
    for job in batcher._pop_all():
        job.result.cancel()
