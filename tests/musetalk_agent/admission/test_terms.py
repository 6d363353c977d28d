"""Each term by itself: what it says at the start, how service corrects it, and that it does not open and shut at each look."""

from __future__ import annotations

import pytest

from musetalk_agent.admission.costs import Demand, demand_of
from musetalk_agent.admission.machine import Memory
from musetalk_agent.admission.terms import LATE_LOOKS, WELL_LOOKS, MemoryTerm, Pacing, Processor, SessionLoad, Steady
from musetalk_agent.card_estimates import PACED_MOST
from musetalk_agent.protocol.http import AgentStartRequest, AvatarSource, Picture, RtmpTarget, VideoCodec

MIB = 1 << 20
SMALL = Demand("pattern", 512, 512)


@pytest.mark.parametrize(
    ("demand", "cores"),
    [
        (Demand("musetalk"), 0.05 + 0.05 + 0.045 + 0.313),
        (Demand("musetalk", codecs=(VideoCodec.H264,)), 0.05 + 0.05 + 0.045 + 0.175),
        (Demand("musetalk", 512, 512), 0.05 + 0.05 + 0.045 + 0.089),
        (Demand("warp", 512, 512, simulcast=True), 0.05 + 0.2 + 0.045 + 1.4 * 0.089),
        (Demand("pattern", 512, 512, fps=50), 0.05 + 2 * 0.02 + 0.045 + 2 * 0.089),
        (Demand("pattern", codecs=()), 0.05 + 0.02),
        (Demand("warp", 512, 512, living=True), 0.05 + 0.2 + 0.079 + 0.045 + 0.089),
        (Demand("pattern", 512, 512, fps=50, living=True), 0.05 + 2 * 0.02 + 2 * 0.079 + 0.045 + 2 * 0.089),
    ],
)
def test_the_cost_of_a_session_is_that_of_the_table(demand: Demand, cores: float) -> None:
    assert demand.cores == pytest.approx(cores, abs=0.002)


def test_sessions_that_nobody_watches_do_not_make_the_machine_look_faster() -> None:
    processor, large = Processor(4.0), Demand("warp", 1280, 720)
    assert large.cores_unwatched == pytest.approx(0.095) and Demand("pattern", codecs=()).cores_unwatched == 0.07
    for _ in range(20):
        processor.observe(3 * 0.095, [SessionLoad(large, 0.0, watched=False)] * 3)
    assert processor.factor == 1.0
    for _ in range(20):
        processor.observe(
            large.cores_unwatched + large.cores, [SessionLoad(large, 0.0, False), SessionLoad(large, 1.0)]
        )
    assert processor.factor == 1.0


def request(**more: object) -> AgentStartRequest:
    common = {"session_id": "s", "room": "r", "livekit_url": "ws://x", "livekit_token": "t", "avatar": AvatarSource()}
    return AgentStartRequest.model_validate({**common, **more})


def test_what_a_request_asks_for() -> None:
    assert demand_of(request(), "warp") == Demand("warp", 1280, 720, 25, (VideoCodec.VP8,))
    small = request(picture=Picture(width=512, height=480, fps=30), video_codec=VideoCodec.AUTO, simulcast=True)
    assert demand_of(small, "warp") == Demand("warp", 512, 480, 30, (VideoCodec.H264,), simulcast=True)
    assert demand_of(request(connect_livekit=False, simulcast=True), "warp").codecs == ()
    stream = RtmpTarget(url="rtmp://host/app/key")
    assert demand_of(request(rtmp=stream, connect_livekit=False), "warp").codecs == (VideoCodec.H264,)
    assert demand_of(request(rtmp=stream), "warp").codecs == (VideoCodec.VP8,), "it is the fallback"
    beside = RtmpTarget(url="rtmp://host/app/key", beside=True)
    assert demand_of(request(rtmp=beside), "warp").codecs == (VideoCodec.VP8, VideoCodec.H264)


def test_the_processor_holds_as_many_as_its_cores_have_room_for() -> None:
    processor = Processor(2.0)
    assert processor.holds([], SMALL) == int(2 / SMALL.cores) == 9
    assert processor.holds([SMALL] * 4, SMALL) == 9, "those that are there count as what they are"
    large = Demand("warp", 1920, 1080)
    assert processor.holds([SMALL] * 4, large) == 5, "and the next as what it is"
    assert processor.holds([large] * 3, SMALL) < 3, "too many already: the door is shut, and nobody is put out"
    assert Processor(0.1).holds([], large) == 1, "one is always tried"
    processor.started(2.0)
    assert processor.holds([], SMALL) == 4
    assert processor.why(SMALL) == "its processor: 2 cores, 0.41 of one for each more"


def test_what_the_process_uses_corrects_what_the_table_says() -> None:
    processor = Processor(2.3)
    speaking, idle = SessionLoad(SMALL, 1.0), SessionLoad(SMALL, 0.0)
    for _ in range(30):
        processor.observe(4 * 2 * SMALL.cores, [speaking] * 4)
    assert processor.factor == pytest.approx(2.0, rel=0.11) and processor.holds([SMALL] * 4, SMALL) == 5
    for _ in range(30):
        processor.observe(4 * 0.5 * SMALL.cores, [idle] * 4)
    assert processor.factor == pytest.approx(1.0, rel=0.11), (
        "four that are silent cost half, and say so of a speaking one"
    )


def test_one_strange_look_changes_little_and_nothing_is_learnt_without_sessions() -> None:
    processor = Processor(4.0)
    processor.observe(3.0, [])
    assert processor.factor == 1.0
    processor.observe(1e9, [SessionLoad(SMALL, 1.0)])
    assert processor.factor == pytest.approx(1 + 0.3 * 7), "a look is bounded, and counts for a third"


def test_a_figure_that_wavers_by_a_tenth_does_not_move() -> None:
    figure = Steady(1.0)
    seen = set()
    for number in range(100):
        figure.add(1.09 if number % 2 else 0.91)
        seen.add(figure.value)
    assert seen == {1.0}
    figure.add(2.0)
    assert figure.value > 1.2


def test_memory_that_is_free_less_what_is_kept_back() -> None:
    term = MemoryTerm()
    assert term.holds(SMALL) is None, "a system that says nothing sets no limit"
    term.observe(Memory(limit=8192 * MIB, free=1512 * MIB, own=300 * MIB), [])
    each = SMALL.memory / MIB
    assert term.holds(SMALL) == int(1000 / each)
    assert term.why(SMALL) == f"its memory: 1512 MiB free, of which 512 are kept back, {each:.0f} for each more"
    term.observe(Memory(limit=400 * MIB, free=110 * MIB, own=300 * MIB), [])
    assert term.holds(SMALL) == 1, "of a small machine a quarter is kept back, and one is always tried"
    term.observe(None, [])
    assert term.holds(SMALL) is None


def test_memory_of_sessions_that_are_there_is_not_taken_twice_and_corrects_the_table() -> None:
    term = MemoryTerm()
    term.observe(Memory(limit=8192 * MIB, free=2512 * MIB, own=300 * MIB), [])
    before = term.holds(SMALL)
    each = SMALL.memory / MIB
    term.observe(
        Memory(limit=8192 * MIB, free=round(2512 - 4 * each) * MIB, own=round(300 + 4 * each) * MIB), [SMALL] * 4
    )
    assert before is not None and term.holds(SMALL) in (before - 1, before)
    for _ in range(30):  # each takes five times as much
        free, own = round(2512 - 20 * each), round(300 + 20 * each)
        term.observe(Memory(limit=8192 * MIB, free=free * MIB, own=own * MIB), [SMALL] * 4)
    assert term.holds(SMALL) == pytest.approx(4 + (free - 512) / (5 * each), abs=1.5)


def test_less_memory_is_believed_at_once_and_a_little_more_is_not() -> None:
    term = MemoryTerm()

    def reported(free: int) -> int | None:
        term.observe(Memory(limit=8192 * MIB, free=free * MIB, own=1), [])
        return term.holds(SMALL)

    most = reported(2512)
    less = reported(2000)
    assert most is not None and less is not None and less < most
    assert reported(2100) == less and reported(2512) == most


def looks(pacing: Pacing, late: float, rooms: int, count: int) -> list[int]:
    seen = []
    for _ in range(count):
        pacing.observe([late] * 100, rooms)
        seen.append(pacing.limit)
    return seen


def test_rooms_that_one_process_paces() -> None:
    pacing = Pacing()
    assert pacing.limit == PACED_MOST
    pacing.started(0.5)
    assert pacing.limit == PACED_MOST, "a faster machine was not measured"
    pacing.started(2.0)
    assert pacing.limit == PACED_MOST // 2
    pacing.started(1000)
    assert pacing.limit == 1
    assert pacing.why() == "what one process paces: 1 rooms"


def test_frames_that_come_late_shut_the_door_and_it_opens_a_room_at_a_time() -> None:
    pacing = Pacing()
    assert looks(pacing, 0.8, 6, LATE_LOOKS - 1) == [PACED_MOST] * (LATE_LOOKS - 1), "one bad look may be an accident"
    assert looks(pacing, 0.8, 6, 1) == [5]
    assert "its frames came late (95th percentile: 80% of a frame's time now)" in pacing.why()
    assert looks(pacing, 0.8, 6, 10)[-1] == 5, "it falls below what is there, and no further"
    assert looks(pacing, 0.8, 5, LATE_LOOKS)[-1] == 4, "until one has left and it is still too much"
    assert looks(pacing, 0.4, 4, 50)[-1] == 4, "neither late nor well: it stays"
    assert looks(pacing, 0.1, 4, WELL_LOOKS) == [4] * (WELL_LOOKS - 1) + [5]
    assert looks(pacing, 0.1, 4, WELL_LOOKS * PACED_MOST)[-1] == PACED_MOST, "never more than at the start"


def test_it_does_not_flap_where_every_second_look_is_late() -> None:
    pacing = Pacing()
    seen = {PACED_MOST}
    for number in range(100):
        pacing.observe([0.8 if number % 2 else 0.1] * 100, 6)
        seen.add(pacing.limit)
    assert seen == {PACED_MOST}


def test_one_late_frame_in_a_hundred_is_nothing_and_an_agent_without_sessions_gets_well() -> None:
    pacing = Pacing()
    for _ in range(10):
        pacing.observe([3.0] + [0.0] * 99, 6)
    assert pacing.limit == PACED_MOST and pacing.late == 0.0
    looks(pacing, 0.9, 3, LATE_LOOKS)
    assert pacing.limit == 2
    for _ in range(WELL_LOOKS):
        pacing.observe([], 0)
    assert pacing.limit == 3 and "no frame is sent now" in pacing.why()
