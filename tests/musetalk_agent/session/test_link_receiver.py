"""What the agent refuses of the link's items, and what it says of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from musetalk_agent.protocol import messages as m
from musetalk_agent.session.link import LinkReceiver
from tests.musetalk_agent.stand import RATE, Stand, stand, tone


def make(made: Stand, backlog_s: int = 120) -> LinkReceiver:
    return LinkReceiver(made.pipeline, backlog_s, 25, lambda event: made.events.append((made.clock.now(), event)))


def begin(inbox: LinkReceiver, number: int) -> None:
    inbox.take(m.SegmentStart(segment=number, sample_rate=RATE, received=0).model_dump_json())


def end(inbox: LinkReceiver, number: int) -> None:
    inbox.take(m.SegmentEnd(segment=number).model_dump_json())


def warnings(made: Stand) -> list[str]:
    return [event.code for _, event in made.events if isinstance(event, m.WarningEvent)]


async def test_the_257th_segment_is_refused_and_the_256_before_it_are_spoken(executor: ThreadPoolExecutor) -> None:
    async with stand(executor) as made:
        inbox = make(made)
        for number in range(1, 258):
            begin(inbox, number)
            inbox.take(tone(0.04).tobytes())
            end(inbox, number)
        assert inbox.items == 3 * 257 and inbox.received_samples == 640, "each item counts as taken"
        assert warnings(made)[-1] == "backlog_exceeded"
        refused = [event for _, event in made.events if isinstance(event, m.PlaybackFinished)]
        assert refused == [m.PlaybackFinished(segment=257, position_s=0.0, interrupted=True)]
        await made.pass_time(20)
        begin(inbox, 258)
        inbox.take(tone(0.2).tobytes())
        end(inbox, 258)
        await made.pass_time(2)
        finished = [event for _, event in made.events if isinstance(event, m.PlaybackFinished)]
        assert [(e.segment, e.interrupted) for e in finished[1:]] == [(n, False) for n in [*range(1, 257), 258]]


async def test_speech_beyond_the_backlog_ends_its_segment_with_a_warning(executor: ThreadPoolExecutor) -> None:
    async with stand(executor) as made:
        inbox = make(made, backlog_s=1)
        begin(inbox, 1)
        for _ in range(10):
            inbox.take(tone(1).tobytes())
        assert warnings(made) == ["backlog_exceeded"], "once for a segment"
        end(inbox, 1)
        await made.pass_time(12)
        finished = [event for _, event in made.events if isinstance(event, m.PlaybackFinished)]
        assert len(finished) == 1 and 6.0 <= finished[0].position_s <= 8.0 and not finished[0].interrupted


@pytest.mark.parametrize(("seconds", "reported"), [(0.02, 1), (0.039, 1), (0.04, 0), (0.0, 0)])
async def test_many_segments_shorter_than_a_picture_are_reported_once(
    executor: ThreadPoolExecutor, seconds: float, reported: int
) -> None:
    async with stand(executor) as made:
        inbox = make(made)
        for number in range(1, 60):
            begin(inbox, number)
            inbox.take(np.ones(round(seconds * RATE), "<i2").tobytes())
            end(inbox, number)
        assert warnings(made).count("segments_very_short") == reported


async def test_a_short_word_now_and_then_is_no_mistake(executor: ThreadPoolExecutor) -> None:
    async with stand(executor) as made:
        inbox = make(made)
        for number in range(1, 60):
            begin(inbox, number)
            inbox.take(tone(0.3 if number % 10 == 0 else 0.02).tobytes())
            end(inbox, number)
        assert warnings(made) == []
