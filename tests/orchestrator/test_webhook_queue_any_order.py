"""The queue of webhooks against a plain list, under any order of coming, going and overflowing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.events import SessionEvent
from orchestrator.webhooks import Delivery, Endpoint, Queue

ENDPOINTS = [
    Endpoint("https://a.example/x", (), "shop"),
    Endpoint("https://A.example/y", (), "shop"),  # the same host for the same caller: the same party
    Endpoint("https://a.example/x", (), "club"),
    Endpoint("https://b.example/", ()),
]
MOST, EACH = 9, 4
_put = st.tuples(st.just("put"), st.integers(0, 3), st.sampled_from(["s", "t"]))
_take = st.tuples(st.just("take"), st.integers(0, 3), st.sampled_from(["s", "t"]))
_stale = st.tuples(st.just("stale"), st.integers(1, 60), st.just(""))


@settings(max_examples=400, deadline=None)
@given(acts=st.lists(st.one_of(_put, _put, _take, _stale), max_size=60))
def test_order_bounds_and_fairness_hold_whatever_comes(acts: list[tuple[str, int, str]]) -> None:
    queue, model = Queue(MOST, EACH), list[Delivery]()
    for number, (act, which, session) in enumerate(acts, 1):
        if act == "put":
            delivery = Delivery(ENDPOINTS[which], SessionEvent(number, session, "t", "{}"))
            model.append(delivery)
            dropped = queue.put(delivery)
            mine = [d for d in model if d.endpoint.party == delivery.endpoint.party]
            if len(mine) > EACH:
                assert dropped is mine[0], "a party that has too many loses its own oldest"
            elif len(model) > MOST:
                sizes = {d.endpoint.party: 0 for d in model}
                for d in model:
                    sizes[d.endpoint.party] += 1
                assert dropped is not None and sizes[dropped.endpoint.party] == max(sizes.values())
                assert dropped is next(d for d in model if d.endpoint.party == dropped.endpoint.party)
            else:
                assert dropped is None
            if dropped is not None:
                model.remove(dropped)
        elif act == "take":
            lane = (ENDPOINTS[which], session)
            first = next((d for d in model if d.lane == lane), None)
            found = queue.head(lane)
            assert (found is None) == (first is None)
            if found is not None:
                assert found[1] is first and queue.holds(found[0])
                queue.done(found[0])
                queue.done(found[0])
                assert not queue.holds(found[0])
                model.remove(found[1])
        elif not queue.holds(which):
            queue.done(which)  # of one that was dropped, or never was
        assert len(queue) == len(model) <= MOST
    for endpoint in ENDPOINTS:
        for session in ("s", "t"):
            while (found := queue.head((endpoint, session))) is not None:
                queue.done(found[0])
    assert len(queue) == 0 and not queue._lanes and not queue._parties and not queue._pending
