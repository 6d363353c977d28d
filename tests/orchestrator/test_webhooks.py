"""Webhooks against a real https server, whose certificate is by an authority that only the test knows."""

from __future__ import annotations

import asyncio
import base64
import hmac
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from musetalk_agent.protocol.problems import ProblemError
from orchestrator.events import EventBus, SessionEvent
from orchestrator.metrics import Metrics
from orchestrator.webhooks import (
    AT_ONCE,
    AT_ONCE_OWNER,
    AT_ONCE_PARTY,
    Delivery,
    Endpoint,
    Queue,
    Slots,
    Webhooks,
    secret,
    signature,
)
from tests.fakes.certificates import Authority
from tests.fakes.hook_receiver import Hook, Receiver, receiving
from tests.waiting import NEVER_S, turns, until

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
AUTHORITY = Authority()


def documented() -> Callable[[Mapping[str, str], bytes, str], bool]:
    """The function that docs/reference/security.md gives to receivers."""
    text = (Path(__file__).parents[2] / "docs" / "reference" / "security.md").read_text("utf-8")
    code = text.partition("```python\n")[2].partition("```")[0]
    assert code.count("\n") == 6
    names: dict[str, Any] = {"base64": base64, "hmac": hmac, "time": time, "Mapping": Mapping}
    exec(code, names)
    return cast("Callable[[Mapping[str, str], bytes, str], bool]", names["verified"])


def verified(hook: Hook, shared: str) -> bool:
    """As a receiver sees it."""
    return documented()(hook.headers, hook.body, shared)


async def local(host: str, port: int) -> list[str]:
    return ["127.0.0.1"]


@asynccontextmanager
async def posting(
    *urls: str, delays_s: Sequence[float] = (0.01, 0.02, 0.03, 0.04), keys: Sequence[str] = (SECRET,), **options: object
) -> AsyncIterator[tuple[EventBus, Metrics]]:
    """A bus whose events go to these addresses."""
    metrics = Metrics()
    bus = EventBus(metrics)
    endpoints = [Endpoint(url, tuple(secret(key) for key in keys)) for url in urls]
    options = {"allow_private": True, "resolver": local, "ssl_context": AUTHORITY.trust, **options}
    hooks = Webhooks(lambda session_id: endpoints, metrics, delays_s=delays_s, **options)  # type: ignore[arg-type]
    bus.listen(hooks.on_event)
    try:
        yield bus, metrics
    finally:
        await hooks.aclose()


def count(metrics: Metrics, outcome: str) -> float:
    return metrics.registry.get_sample_value("avatar_webhooks_total", {"outcome": outcome}) or 0.0


async def counted(metrics: Metrics, outcome: str, wanted: float) -> None:
    await until(lambda: count(metrics, outcome) >= wanted)
    assert count(metrics, outcome) == wanted


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving(AUTHORITY.server("hooks.example", "127.0.0.1")) as made:
        yield made


async def test_an_event_is_posted_and_its_signature_holds(receiver: Receiver) -> None:
    async with posting(receiver.url("hooks.example")) as (bus, metrics):
        bus.publish("ses_a", "session.state", {"state": "ready"})
        (hook,) = await receiver.wait(1)
        await counted(metrics, "delivered", 1)
    assert hook.path == "/hook?a=1" and hook.headers["host"] == f"hooks.example:{receiver.port}"
    assert hook.headers["content-type"] == "application/json"
    event = hook.event
    assert event["session_id"] == "ses_a" and event["type"] == "session.state" and event["data"] == {"state": "ready"}
    assert hook.headers["webhook-id"] == f"ses_a-{event['id']}"
    assert verified(hook, SECRET)
    other = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    assert not verified(hook, other)
    assert not verified(Hook(hook.path, hook.headers, hook.body + b" "), SECRET)


def test_the_signature_is_that_of_the_standard() -> None:
    """The example of github.com/standard-webhooks/standard-webhooks."""
    made = signature(
        [secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")],
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_every_secret_signs_while_they_change(receiver: Receiver) -> None:
    new = "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()
    async with posting(receiver.url(), keys=[SECRET, new]) as (bus, _):
        bus.publish("ses_a", "warning", {})
        (hook,) = await receiver.wait(1)
    assert verified(hook, SECRET) and verified(hook, new)


async def test_failures_are_tried_again_in_order_and_with_the_same_id(receiver: Receiver) -> None:
    receiver.answers = [500, 503, 302, 429, 200]
    receiver.location = "https://127.0.0.1:1/elsewhere"
    async with posting(receiver.url()) as (bus, metrics):
        for number in (1, 2):
            bus.publish("ses_a", "playback.started", {"segment": number})
        hooks = await receiver.wait(6)
        await counted(metrics, "delivered", 2)
    assert [hook.event["data"]["segment"] for hook in hooks] == [1, 1, 1, 1, 1, 2]
    assert len({hook.headers["webhook-id"] for hook in hooks[:5]}) == 1
    assert all(verified(hook, SECRET) for hook in hooks)


@pytest.mark.parametrize(("answers", "tries"), [([500] * 5, 5), ([410], 1)])
async def test_one_that_always_fails_is_given_up(receiver: Receiver, answers: list[int], tries: int) -> None:
    receiver.answers = [*answers, 200]
    async with posting(receiver.url()) as (bus, metrics):
        bus.publish("ses_a", "warning", {"number": 1})
        bus.publish("ses_a", "warning", {"number": 2})
        hooks = await receiver.wait(tries + 1)
        await counted(metrics, "failed", 1)
    assert [hook.event["data"]["number"] for hook in hooks] == [1] * tries + [2]


async def test_one_session_does_not_wait_for_another(receiver: Receiver) -> None:
    receiver.hold.clear()
    async with posting(receiver.url()) as (bus, metrics):
        for session in ("ses_a", "ses_b", "ses_a"):
            bus.publish(session, "warning", {})
        hooks = await receiver.wait(2)
        assert [hook.event["session_id"] for hook in hooks] == ["ses_a", "ses_b"]
        receiver.hold.set()
        await counted(metrics, "delivered", 3)


async def test_a_receiver_that_never_answers_slows_no_other_one(receiver: Receiver) -> None:
    """Whatever it is sent: its posts hang in all its slots, and the others have theirs."""
    async with receiving(AUTHORITY.server("127.0.0.1")) as dead:
        dead.hold.clear()
        async with posting(dead.url(), receiver.url()) as (bus, metrics):
            for number in range(3 * AT_ONCE):
                bus.publish(f"ses_{number}", "warning", {})
            await counted(metrics, "delivered", 3 * AT_ONCE)
            assert len(receiver.hooks) == 3 * AT_ONCE
            await dead.wait(AT_ONCE_PARTY)  # those that hang; more follow only once these have timed out


async def trickling(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-Slow: 1\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)


async def flooding_head(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-Long: " + bytes(b"a" * 8000) + b"\r\n")
        await writer.drain()


async def flooding_body(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(bytes(1 << 16))
        await writer.drain()


async def silent(writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [(silent, "failed"), (trickling, "failed"), (flooding_head, "failed"), (flooding_body, "delivered")],
)
async def test_a_receiver_that_answers_badly_ends_by_the_deadline(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, answer: Any, outcome: str
) -> None:
    """Of an answer only the status is read."""
    if outcome == "failed":
        monkeypatch.setattr("orchestrator.webhooks.TRY_S", 0.5)
    receiver.misbehave = answer
    async with posting(receiver.url(), delays_s=()) as (bus, metrics):
        bus.publish("ses_a", "warning", {})
        await counted(metrics, outcome, 1)


async def test_only_the_right_certificate_is_talked_to(receiver: Receiver) -> None:
    async with receiving(Authority().server("hooks.example")) as stranger:
        for url in (receiver.url("other.example"), stranger.url("hooks.example")):
            async with posting(url, delays_s=()) as (bus, metrics):
                bus.publish("ses_a", "warning", {})
                await counted(metrics, "failed", 1)
    assert receiver.hooks == [] and stranger.hooks == []


async def test_a_name_that_changes_its_mind_is_checked_at_every_try(receiver: Receiver) -> None:
    answers = [["127.0.0.1"], ["169.254.169.254"], ["10.0.0.1", "169.254.169.254"], ["127.0.0.1"]]
    asked: list[str] = []

    async def resolver(host: str, port: int) -> list[str]:
        asked.append(host)
        return answers[len(asked) - 1]

    receiver.answers = [500, 200]
    async with posting(receiver.url("hooks.example"), resolver=resolver) as (bus, metrics):
        bus.publish("ses_a", "warning", {})
        await counted(metrics, "delivered", 1)
    assert len(asked) == 4 and len(receiver.hooks) == 2


async def test_private_addresses_are_not_posted_to(receiver: Receiver) -> None:
    async with posting(receiver.url(), delays_s=(), allow_private=False) as (bus, metrics):
        bus.publish("ses_a", "warning", {})
        await counted(metrics, "failed", 1)
    assert receiver.hooks == []


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example/a",
        "https://127.0.0.1/a",
        "https://localhost/a",
        "https://169.254.169.254/latest",
        "https://[::ffff:10.0.0.1]/a",
        "https://2130706433/a",
        "https://user:pass@hooks.example/a",
        "https://",
        "ftp://hooks.example",
        "hooks.example",
    ],
)
async def test_what_is_never_posted_to_is_refused_beforehand(url: str) -> None:
    hooks = Webhooks(lambda session_id: [], Metrics(), resolver=local)
    with pytest.raises(ProblemError) as caught:
        await hooks.check(url)
    assert (caught.value.code, caught.value.status, caught.value.field) == ("webhook_url_forbidden", 422, "webhook_url")
    assert "pass" not in caught.value.detail


@pytest.mark.parametrize("text", ["", "whsec_", "whsec_AAAA", "AAAA", "whsec_" + "A" * 200, "whsec_ä", SECRET[6:]])
def test_a_secret_has_its_form(text: str) -> None:
    with pytest.raises(ValueError, match="whsec_"):
        secret(text)


def delivery(session: str, number: int, url: str = "https://a", owner: str = "") -> Delivery:
    return Delivery(Endpoint(url, (), owner), SessionEvent(number, session, "warning", "{}"))


def test_a_party_that_takes_nothing_pushes_out_only_its_own() -> None:
    queue = Queue(most=8, each=4)
    mine = [delivery("mine", n, "https://good/") for n in range(2)]
    assert [queue.put(each) for each in mine] == [None, None]
    dead = [delivery(f"ses_{n}", n, f"https://dead/{n}", "shop") for n in range(100)]
    dropped = [queue.put(each) for each in dead]
    assert dropped == [None] * 4 + dead[:96] and len(queue) == 6  # its share is 4, whatever paths it names
    others = [delivery("x", n, f"https://h{n}/", "club") for n in range(4)]
    assert [queue.put(each) for each in others] == [None, None, dead[96], dead[97]]
    head = queue.head(mine[0].lane)
    assert head is not None and head[1] is mine[0] and len(queue) == 8


def test_a_lane_that_stands_still_keeps_no_trace_of_what_was_dropped() -> None:
    queue = Queue(most=8, each=4)
    for number in range(1, 1000):
        queue.put(delivery("s", number))
    assert len(queue) == 4 and sum(len(tickets) for tickets in queue._lanes.values()) == 4
    head = queue.head(delivery("s", 1).lane)
    assert head is not None and head[1].event.id == 996


async def test_one_that_was_dropped_while_it_waited_for_a_slot_is_not_posted(receiver: Receiver) -> None:
    endpoint, metrics = Endpoint(receiver.url("hooks.example"), (secret(SECRET),)), Metrics()
    hooks = Webhooks(lambda _: [endpoint], metrics, allow_private=True, resolver=local, ssl_context=AUTHORITY.trust)
    hooks._queue = Queue(most=1, each=1)
    try:
        async with AsyncExitStack() as stack:
            for _ in range(AT_ONCE_PARTY):
                await stack.enter_async_context(hooks._slots.one(endpoint))
            hooks.on_event(SessionEvent(1, "s", "t", "{}", False))
            await asyncio.sleep(0)  # its lane waits for a slot
            hooks.on_event(SessionEvent(2, "s", "t", "{}", False))
            assert count(metrics, "dropped") == 1
        (hook,) = await receiver.wait(1)
        await counted(metrics, "delivered", 1)
        assert hook.headers["webhook-id"] == "s-2"
    finally:
        await hooks.aclose()


async def test_slots_are_shared_by_host_and_by_caller() -> None:
    slots = Slots()
    async with AsyncExitStack() as held:
        hosts = AT_ONCE_OWNER // AT_ONCE_PARTY
        for number in range(AT_ONCE_OWNER):
            endpoint = Endpoint(f"https://h{number % hosts}/{number}", (), "shop")
            async with asyncio.timeout(NEVER_S):
                await held.enter_async_context(slots.one(endpoint))
        for full in (Endpoint("https://new/", (), "shop"), Endpoint("https://h0/other", (), "shop")):
            waiting = asyncio.create_task(held.enter_async_context(slots.one(full)))
            await turns()  # a slot that is free is taken without a wait
            assert not waiting.done()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        async with (
            asyncio.timeout(NEVER_S),
            slots.one(Endpoint("https://h0/", (), "club")),
            slots.one(Endpoint("https://h0/", ())),
        ):
            pass
    assert not slots._shares


def test_the_queue_drops_the_oldest_and_keeps_the_order() -> None:
    queue = Queue(3)
    first, other, second, third = (delivery(s, n) for s, n in (("a", 1), ("b", 1), ("a", 2), ("a", 3)))
    assert [queue.put(each) for each in (first, other, second)] == [None] * 3
    ticket = queue.head(first.lane)
    assert ticket is not None and ticket[1] is first
    assert queue.put(third) is first and len(queue) == 3
    assert not queue.holds(ticket[0])
    taken = []
    while (head := queue.head(first.lane)) is not None:
        taken.append(head[1])
        queue.done(head[0])
    assert taken == [second, third] and len(queue) == 1
    assert queue.head(("https://b", "c")) is None  # type: ignore[arg-type]


async def test_what_waits_at_the_end_is_given_up(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.webhooks.CLOSE_S", 0.05)
    receiver.hold.clear()
    async with posting(receiver.url()) as (bus, metrics):
        bus.publish("ses_a", "warning", {})
        await receiver.wait(1)
    assert count(metrics, "delivered") == 0
