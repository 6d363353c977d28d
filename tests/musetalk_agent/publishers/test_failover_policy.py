"""The failover's state machine: every state and event in a table, and its times."""

from __future__ import annotations

import pytest

from musetalk_agent.protocol.http import PublisherMode as Mode
from musetalk_agent.publishers.failover import policy as w
from musetalk_agent.publishers.failover.policy import Action, AvailableTransports, Event, State, TransportKind
from tests.musetalk_agent.publishers.policy_stand import ALONE, BESIDE, INGRESS, PLAIN, TICK_S, Stand, begun, reach

S, E, A = State, Event, Action
TABLE: list[tuple[State, AvailableTransports, Event, State, list[Action]]] = [
    (S.NEW, ALONE, E.START, S.JOINING, [A.JOIN]),
    (S.NEW, PLAIN, E.START, S.JOINING, [A.JOIN]),
    (S.NEW, INGRESS, E.START, S.PROBING, []),
    (S.PROBING, INGRESS, E.PROBE_OK, S.JOINING, [A.JOIN]),
    (S.PROBING, INGRESS, E.PROBE_FAILED, S.RTMP_OPENING, [A.OPEN_STREAM]),
    (S.JOINING, ALONE, E.JOINED, S.WEBRTC, []),
    (S.JOINING, ALONE, E.JOIN_FAILED, S.LOST, [A.CLOSE_WHIP, A.GIVE_UP]),
    (S.JOINING, ALONE, E.JOIN_BROKE, S.WHIP_OPENING, [A.OPEN_WHIP]),
    (S.JOINING, ALONE, E.JOIN_REFUSED, S.LOST, [A.CLOSE_WHIP, A.GIVE_UP]),
    (S.JOINING, PLAIN, E.JOIN_FAILED, S.RTMP_OPENING, [A.OPEN_STREAM]),
    (S.JOINING, PLAIN, E.JOIN_BROKE, S.WHIP_OPENING, [A.OPEN_WHIP]),
    (S.JOINING, PLAIN, E.JOIN_REFUSED, S.RTMP_OPENING, [A.OPEN_STREAM]),
    (S.JOINING, INGRESS, E.JOIN_FAILED, S.RTMP_OPENING, [A.OPEN_STREAM]),
    (S.WEBRTC, ALONE, E.ROOM_LOST, S.JOINING, [A.REWIND, A.JOIN]),
    (S.WEBRTC, PLAIN, E.ROOM_LOST, S.RTMP_OPENING, [A.REWIND, A.OPEN_STREAM]),
    (S.WEBRTC, INGRESS, E.ROOM_LOST, S.RTMP_OPENING, [A.REWIND, A.OPEN_STREAM]),
    (S.WEBRTC, PLAIN, E.ROOM_ENDED, S.LOST, [A.CLOSE_STREAM, A.CLOSE_WHIP, A.GIVE_UP]),
    (S.WEBRTC, ALONE, E.STREAM_UP, S.WEBRTC, []),
    (S.SUSPECT, PLAIN, E.ROOM_LOST, S.RTMP_OPENING, [A.REWIND, A.OPEN_STREAM]),
    (S.SUSPECT, PLAIN, E.STREAM_UP, S.SUSPECT, []),
    (S.MOVING, PLAIN, E.STREAM_UP, S.RTMP, [A.REWIND, A.LEAVE_ROOM]),
    (S.MOVING, PLAIN, E.ROOM_LOST, S.RTMP_OPENING, [A.REWIND, A.OPEN_STREAM]),
    (S.SILENT, ALONE, E.ROOM_LOST, S.JOINING, [A.JOIN]),
    (S.SILENT, ALONE, E.ROOM_ENDED, S.LOST, [A.CLOSE_WHIP, A.GIVE_UP]),
    (S.LEAVING, INGRESS, E.ROOM_LEFT, S.RTMP_OPENING, [A.OPEN_STREAM]),
    (S.WHIP_OPENING, ALONE, E.WHIP_UP, S.WHIP, []),
    (S.WHIP_OPENING, ALONE, E.WHIP_DOWN, S.WAITING, [A.CLOSE_WHIP]),
    (S.WHIP, ALONE, E.WHIP_DOWN, S.JOINING, [A.CLOSE_WHIP, A.REWIND, A.JOIN]),
    (S.WHIP, ALONE, E.PROBE_OK, S.DRAINING, []),
    (S.RTMP_OPENING, PLAIN, E.STREAM_UP, S.RTMP, []),
    (S.RTMP_OPENING, PLAIN, E.PROBE_OK, S.JOINING, [A.CLOSE_WHIP, A.CLOSE_STREAM, A.JOIN]),
    (S.RTMP_OPENING, INGRESS, E.STREAM_UP, S.RTMP, []),
    (S.RTMP, PLAIN, E.STREAM_DOWN, S.RTMP_OPENING, []),
    (S.RTMP, INGRESS, E.STREAM_DOWN, S.RTMP_OPENING, [A.REWIND]),
    (S.RTMP, PLAIN, E.PROBE_OK, S.REJOINING, [A.JOIN]),
    (S.RTMP, PLAIN, E.PROBE_FAILED, S.RTMP, []),
    (S.REJOINING, PLAIN, E.JOINED, S.SETTLING, []),
    (S.REJOINING, PLAIN, E.JOIN_FAILED, S.RTMP, []),
    (S.REJOINING, PLAIN, E.JOIN_REFUSED, S.RTMP, []),
    (S.REJOINING, PLAIN, E.STREAM_DOWN, S.JOINING, []),
    (S.SETTLING, PLAIN, E.ROOM_LOST, S.RTMP, []),
    (S.SETTLING, PLAIN, E.STREAM_DOWN, S.WEBRTC, [A.CLOSE_STREAM]),
    (S.DRAINING, INGRESS, E.STREAM_DOWN, S.JOINING, [A.REWIND, A.CLOSE_WHIP, A.CLOSE_STREAM, A.JOIN]),
    (S.LOST, PLAIN, E.JOINED, S.LOST, [A.LEAVE_ROOM]),
    (S.LOST, PLAIN, E.STREAM_UP, S.LOST, []),
]  # fmt: skip


@pytest.mark.parametrize(("state", "ways", "event", "then", "acts"), TABLE)
def test_every_event_does_what_the_table_says(
    state: State, ways: AvailableTransports, event: Event, then: State, acts: list[Action]
) -> None:
    made = reach(state, ways)
    assert (made.on(event), made.state) == (acts, then)


def test_a_short_silence_opens_a_stream_and_closes_it_again() -> None:
    made = reach(S.WEBRTC, PLAIN)
    assert made.after(TICK_S, w.SUSPECT_S) == [A.OPEN_STREAM]
    assert made.on(Event.STREAM_UP) == [] and made.ladder.rung is TransportKind.LIVEKIT
    assert made.after(TICK_S, 0.1) == [A.CLOSE_STREAM] and made.state is S.WEBRTC
    assert A.REWIND not in made.acts


def test_a_dead_room_is_left_and_the_stream_that_is_there_carries_at_once() -> None:
    made = reach(S.SUSPECT, PLAIN)
    made.on(Event.STREAM_UP)
    assert made.after(TICK_S, w.DEAD_S) == [A.REWIND, A.LEAVE_ROOM]
    assert made.ladder.rung is TransportKind.RTMP and made.ladder.reason == "transport_silent"


def test_a_second_of_silence_is_the_sdks_own_affair() -> None:
    for ways in (ALONE, PLAIN, INGRESS):
        made = reach(S.WEBRTC, ways)
        made.after(1.2, grows=True)
        assert made.ladder.rung is TransportKind.LIVEKIT and A.REWIND not in made.acts and A.LEAVE_ROOM not in made.acts


def test_without_another_way_the_sdk_reconnects_then_rooms_are_tried_then_it_is_lost() -> None:
    made = reach(S.SILENT, ALONE)
    assert made.acts == [A.JOIN, A.REWIND]
    made.after(w.SDK_S + 1, w.DEAD_S, grows=True)
    assert made.acts == [A.JOIN, A.REWIND, A.LEAVE_ROOM, A.JOIN] and made.state is S.JOINING
    joins = []
    while made.state is not S.LOST:
        made.on(Event.JOIN_FAILED)
        before = made.now
        acts = made.after(TICK_S)
        while not acts:
            acts = made.after(TICK_S)
        joins.append((made.now - before, acts[0]))
    waits = [wait for wait, act in joins if act is A.JOIN]
    assert waits[:4] == pytest.approx([2.0, 4.0, 8.0, 10.0], abs=0.3) and max(waits) < 10.5
    assert made.ladder.reason == "nothing_reachable" and 115 < made.now - 100 < 135


def test_the_sdk_that_reconnects_goes_on_from_what_was_heard() -> None:
    made = reach(S.SILENT, ALONE)
    made.after(20, w.DEAD_S, grows=True)
    assert made.after(TICK_S, 0.1) == [] and made.state is S.WEBRTC
    assert made.acts.count(A.REWIND) == 1


def test_the_way_back_waits_for_a_pause_three_seconds_at_most() -> None:
    made = reach(S.SETTLING, PLAIN)
    assert made.after(TICK_S, pause=True) == [A.CLOSE_STREAM] and made.state is S.WEBRTC
    made = reach(S.SETTLING, PLAIN)
    assert made.after(w.PAUSE_S - 2 * TICK_S, pause=False) == []
    assert made.after(3 * TICK_S, pause=False) == [A.CLOSE_STREAM] and made.state is S.WEBRTC
    assert A.LEAVE_ROOM in made.acts and made.acts.count(A.REWIND) == 1


def test_a_room_that_dies_while_it_settles_is_left_and_not_trusted_for_a_while() -> None:
    made = reach(S.SETTLING, PLAIN)
    assert made.after(w.DEAD_S + TICK_S, pause=False, grows=True) == [A.LEAVE_ROOM]
    assert made.state is S.RTMP and not made.ladder.probing
    made.after(w.BACK_OFF_S[0] + TICK_S)
    assert made.ladder.probing


def test_returns_back_off_twice_as_long_each_time_up_to_two_minutes() -> None:
    made = reach(S.RTMP, PLAIN)
    waits = []
    for _ in range(6):
        since = made.now
        while not made.ladder.probing:
            made.after(TICK_S)
        waits.append(made.now - since)
        made.on(Event.PROBE_OK, Event.JOINED)
        made.after(TICK_S)
        assert made.state is S.WEBRTC
        made.after(20)
        made.after(TICK_S, w.DEAD_S)
        made.on(Event.STREAM_UP)
    assert waits == pytest.approx([0, 10, 20, 40, 80, 120], abs=0.3)
    made.after(130)
    made.on(Event.PROBE_OK, Event.JOINED)
    made.after(70)
    made.after(TICK_S, w.DEAD_S)
    assert made.ladder.probing  # it had held for more than a minute


def test_an_ingress_is_pushed_to_only_when_the_room_was_left() -> None:
    made = reach(S.WEBRTC, INGRESS)
    assert made.after(TICK_S, w.DEAD_S) == [A.REWIND, A.LEAVE_ROOM] and made.state is S.LEAVING
    assert made.ladder.rung is TransportKind.NONE
    assert made.after(w.LEAVE_S) == [A.OPEN_STREAM]
    made.on(Event.ROOM_LEFT)
    assert made.acts.count(A.OPEN_STREAM) == 1


def test_from_an_ingress_the_voice_is_held_until_all_was_heard() -> None:
    made = reach(S.DRAINING, INGRESS)
    assert made.ladder.rung is TransportKind.RTMP and made.ladder.holding
    assert made.after(w.PAUSE_S + TICK_S, pause=False) == []
    assert made.after(TICK_S, pause=True) == [A.CLOSE_WHIP, A.CLOSE_STREAM, A.JOIN]
    assert made.state is S.JOINING
    assert made.on(Event.JOIN_FAILED) == [A.OPEN_STREAM]


def test_from_whip_a_pause_is_waited_for_before_the_voice_is_held() -> None:
    made = reach(S.WHIP, ALONE)
    made.after(w.BACK_OFF_S[0])
    made.on(Event.PROBE_OK)
    assert made.ladder.rung is TransportKind.WHIP and not made.ladder.holding
    made.after(w.PAUSE_S + TICK_S, pause=False)
    assert made.ladder.holding
    assert made.after(TICK_S, pause=True)[:1] == [A.CLOSE_WHIP] and made.state is S.JOINING


def test_a_start_has_another_way_within_six_seconds() -> None:
    made = begun(PLAIN)
    assert made.after(w.JOIN_AT_START_S + TICK_S) == [A.OPEN_STREAM]
    made.after(w.STREAM_AT_START_S + TICK_S)
    assert made.state is S.LOST and made.now - 100 < 6.1
    made = begun(INGRESS)
    assert made.after(w.PROBE_AT_START_S + TICK_S) == [A.OPEN_STREAM] and not made.ladder.probing
    made.after(w.INGRESS_STAY_S)
    assert made.state is S.LOST
    assert begun(INGRESS).ladder.probing
    made = begun(ALONE)
    made.after(w.ALONE_AT_START_S + TICK_S)
    assert made.state is S.LOST


def test_a_join_that_succeeds_late_brings_the_room_back() -> None:
    made = begun(PLAIN)
    made.after(w.JOIN_AT_START_S + TICK_S)
    assert made.on(Event.JOINED) == [A.CLOSE_STREAM] and made.state is S.WEBRTC
    made = begun(PLAIN)
    made.after(w.JOIN_AT_START_S + TICK_S)
    made.on(Event.STREAM_UP)
    assert not made.ladder.probing  # the join under way is one
    made.on(Event.JOINED)
    assert made.state is S.SETTLING


def test_modes_hold_to_one_way() -> None:
    made = reach(S.WEBRTC, PLAIN)
    assert made.mode(Mode.RTMP) == [A.OPEN_STREAM] and made.ladder.rung is TransportKind.LIVEKIT
    assert made.on(Event.STREAM_UP) == [A.REWIND, A.LEAVE_ROOM] and made.ladder.rung is TransportKind.RTMP
    assert not made.ladder.probing
    assert made.mode(Mode.WEBRTC) == [A.JOIN] and made.state is S.REJOINING
    made.on(Event.JOINED)
    made.after(TICK_S)
    assert made.state is S.WEBRTC
    made.after(TICK_S, w.DEAD_S)
    assert made.state is S.SILENT and A.REWIND in made.acts
    assert made.mode(Mode.AUTO) == [A.LEAVE_ROOM, A.OPEN_STREAM]
    made = begun(PLAIN, Mode.RTMP)
    assert made.acts == [A.OPEN_STREAM]
    made = reach(S.WEBRTC, INGRESS)
    assert made.mode(Mode.RTMP) == [A.REWIND, A.LEAVE_ROOM] and made.state is S.LEAVING


def test_a_stream_beside_has_heard_everything_already() -> None:
    made = reach(S.WEBRTC, BESIDE)
    made.on(Event.STREAM_UP)
    assert A.REWIND not in made.after(TICK_S, w.DEAD_S) and made.ladder.rung is TransportKind.RTMP
    made.on(Event.PROBE_OK, Event.JOINED)
    assert A.CLOSE_STREAM not in made.after(TICK_S) and made.state is S.WEBRTC


def test_the_room_s_connection_that_broke_is_tried_by_whip_once_and_not_again() -> None:
    made = reach(S.WHIP, ALONE)
    made.on(E.WHIP_DOWN)
    assert made.state is S.JOINING
    assert made.on(E.JOIN_BROKE) == [] and made.state is S.WAITING
    made = begun(AvailableTransports(rtmp=True))
    assert made.on(E.JOIN_BROKE) == [A.OPEN_STREAM] and made.ladder.reason == "join_broke"


def test_whip_that_ends_goes_on_by_rtmp_where_there_is_one() -> None:
    made = begun(PLAIN)
    made.on(E.JOIN_BROKE, E.WHIP_UP)
    assert made.on(E.WHIP_DOWN) == [A.CLOSE_WHIP, A.REWIND, A.OPEN_STREAM]
    assert made.state is S.RTMP_OPENING and made.ladder.reason == "whip_lost"


def test_a_room_that_dies_while_its_stream_opens_is_left_for_it() -> None:
    made = reach(S.MOVING, PLAIN)
    assert made.after(TICK_S, w.DEAD_S - 0.5) == [] and made.state is S.MOVING
    assert made.after(TICK_S, w.DEAD_S) == [A.REWIND, A.LEAVE_ROOM, A.OPEN_STREAM]
    assert made.state is S.RTMP_OPENING and made.ladder.reason == "transport_silent"


def test_a_late_join_is_left_while_the_room_is_not_trusted() -> None:
    made = reach(S.SETTLING, PLAIN)
    made.after(TICK_S)
    assert made.state is S.WEBRTC
    made.after(TICK_S, w.DEAD_S)
    made.on(E.STREAM_UP)
    assert made.state is S.RTMP and made.on(E.JOINED) == [A.LEAVE_ROOM] and made.state is S.RTMP
    made.after(w.BACK_OFF_S[0] + 1)
    assert made.on(E.JOINED) == [] and made.state is S.SETTLING


@pytest.mark.parametrize(
    ("made", "mode", "acts", "then"),
    [
        pytest.param(reach(S.WEBRTC, BESIDE), Mode.RTMP, [A.OPEN_STREAM], S.MOVING, id="the stream opens first"),
        pytest.param(reach(S.WHIP, ALONE), Mode.RTMP, [A.CLOSE_WHIP, A.REWIND, A.OPEN_STREAM], S.RTMP_OPENING, id="WHIP"),
        pytest.param(reach(S.DRAINING, INGRESS), Mode.RTMP, [], S.RTMP, id="the return is called off"),
        pytest.param(reach(S.DRAINING, INGRESS), Mode.WEBRTC, [], S.DRAINING, id="it returns already"),
        pytest.param(reach(S.MOVING, PLAIN), Mode.WEBRTC, [A.CLOSE_STREAM], S.WEBRTC, id="the move is called off"),
        pytest.param(reach(S.SETTLING, PLAIN), Mode.RTMP, [A.LEAVE_ROOM], S.RTMP, id="it stays"),
    ],
)  # fmt: skip
def test_a_mode_that_forbids_where_the_policy_is_or_goes(
    made: Stand, mode: Mode, acts: list[Action], then: State
) -> None:
    assert (made.mode(mode), made.state) == (acts, then)


def test_a_stream_that_is_there_takes_over_at_once_when_it_is_asked_for() -> None:
    made = reach(S.SUSPECT, PLAIN)
    made.on(E.STREAM_UP)
    assert made.mode(Mode.RTMP) == [A.REWIND, A.LEAVE_ROOM] and made.state is S.RTMP
    beside = reach(S.SUSPECT, BESIDE)
    beside.on(E.STREAM_UP)
    assert beside.mode(Mode.RTMP) == [A.LEAVE_ROOM] and beside.state is S.RTMP, "it has had all of it already"


def test_a_room_that_is_joined_after_the_mode_forbade_it_is_left() -> None:
    made = reach(S.JOINING, INGRESS)
    assert made.mode(Mode.RTMP) == [] and made.state is S.JOINING, "a join cannot be called off"
    assert made.on(E.JOINED) == [A.LEAVE_ROOM] and made.state is S.LEAVING
    assert made.on(E.ROOM_LEFT) == [A.OPEN_STREAM] and made.ladder.reason == "mode"
