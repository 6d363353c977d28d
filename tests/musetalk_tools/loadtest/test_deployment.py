"""What a deployment's answers become: values, or a code and a sentence. And whose figures the services' are."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from musetalk_tools.loadtest.deployment import (
    CallError,
    Deployment,
    ServiceMetrics,
    agents,
    counters,
    is_loopback,
    risen,
    samples,
)

Handler = Any


@asynccontextmanager
async def deployment(handler: Handler, url: str = "http://service/") -> AsyncIterator[Deployment]:
    """One whose HTTP ends in `handler`."""
    made = Deployment(url, "the-key")
    headers = made._http.headers
    await made.aclose()
    made._http = httpx.AsyncClient(base_url=made.url, headers=headers, transport=httpx.MockTransport(handler))
    try:
        yield made
    finally:
        await made.aclose()


def answering(status: int, body: Any = None, **fields: Any) -> Handler:
    return lambda request: (
        httpx.Response(status, json=body, **fields) if body is not None else httpx.Response(status, **fields)
    )


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:8080", True),
        ("http://127.1.2.3", True),
        ("http://[::1]:8080", True),
        ("http://localhost:1", True),
        ("http://a.localhost", True),
        ("http://localhost.example", False),
        ("http://10.0.0.1", False),
        ("http://[::ffff:10.0.0.1]", False),
        ("https://avatar.example", False),
        ("nonsense", False),
        ("", False),
    ],
)
def test_which_addresses_lead_to_this_machine(url: str, here: bool) -> None:
    assert is_loopback(url) is here


WELL = {
    "livekit_url": "ws://x",
    "token": "t",
    "session_id": "ses_1",
    "audio_url": "ws://y",
    "engine": "warp",
    "fps": 25,
    "sessions": [],
}
"""An answer that has what each call needs."""


async def test_calls_go_where_they_should_with_the_key() -> None:
    asked: list[tuple[str, str, bytes]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer the-key"
        asked.append((request.method, str(request.url), request.content))
        return httpx.Response(200, json=WELL)

    async with deployment(handler) as service:
        assert await service.token("room", "me") == WELL
        assert await service.start({"room": "r"}) == WELL
        await service.interrupt("ses_1")
        await service.stop("ses_1")
        assert await service.debug() == WELL
        assert '"fps":25' in await service.metrics()
    assert [(method, url) for method, url, _ in asked] == [
        ("POST", "http://service/token"),
        ("POST", "http://service/session/start"),
        ("POST", "http://service/session/ses_1/interrupt"),
        ("POST", "http://service/session/ses_1/stop"),
        ("GET", "http://service/debug/musetalk"),
        ("GET", "http://service/metrics"),
    ]
    assert asked[0][2] == b'{"room":"room","identity":"me"}'


@pytest.mark.parametrize(
    ("handler", "code", "reported"),
    [
        (answering(429, {"code": "at_capacity", "detail": "Full."}), "at_capacity", "Full."),
        (answering(503, {"code": "draining"}), "draining", "POST /session/start answered 503"),
        (answering(502), "http_502", "POST /session/start answered 502"),
        (answering(500, ["a list"]), "http_500", "answered 500"),
        (answering(500, {"error": "no code"}), "http_500", "answered 500"),
        (answering(200, content=b"<html>"), "http_nonsense", "answered no JSON"),
    ],
)
async def test_a_refusal_has_the_services_code_or_the_status(handler: Handler, code: str, reported: str) -> None:
    async with deployment(handler) as service:
        with pytest.raises(CallError, match=reported) as caught:
            await service.start({})
    assert caught.value.code == code


async def test_a_refusal_that_says_json_and_is_none_has_the_status() -> None:
    broken = answering(502, content=b"<html>", headers={"content-type": "application/json"})
    async with deployment(broken) as service:
        with pytest.raises(CallError) as caught:
            await service.start({})
    assert caught.value.code == "http_502"


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (httpx.ConnectError("refused"), "unreachable"),
        (httpx.RemoteProtocolError("cut"), "unreachable"),
        (httpx.ReadTimeout("late"), "timeout"),
        (httpx.ConnectTimeout("late"), "timeout"),
        (httpx.PoolTimeout("late"), "timeout"),
    ],
)
async def test_one_that_does_not_answer(raised: Exception, code: str) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise raised

    async with deployment(handler) as service:
        with pytest.raises(CallError) as caught:
            await service.running("loadtest-")
    assert caught.value.code == code


async def test_only_sessions_of_this_runs_rooms_that_have_not_ended_are_running() -> None:
    listed = [
        {"room": "loadtest-1-0", "state": "ready", "session_id": "a"},
        {"room": "loadtest-1-1", "state": "stopped", "session_id": "b"},
        {"room": "loadtest-1-2", "state": "failed", "session_id": "c"},
        {"room": "loadtest-1-3", "state": "starting", "session_id": "d"},
        {"room": "loadtest-2-0", "state": "ready", "session_id": "another run"},
        {"room": "a-callers-own", "state": "ready", "session_id": "e"},
    ]
    async with deployment(answering(200, {"sessions": listed})) as service:
        assert [each["session_id"] for each in await service.running("loadtest-1-")] == ["a", "d"]


LISTED = {"session_id": "a", "room": "loadtest-1-0", "state": "ready"}


@pytest.mark.parametrize("sessions", [None, {}, "none", [None], ["a"], *([{**LISTED, name: 7}] for name in LISTED)])
async def test_a_list_that_is_none_is_reported_as_such(sessions: Any) -> None:
    async with deployment(answering(200, {"sessions": sessions})) as service:
        with pytest.raises(CallError, match="is an orchestrator at that address") as caught:
            await service.running("loadtest-1-")
    assert caught.value.code == "http_nonsense"


@pytest.mark.parametrize(
    ("call", "lacks"),
    [
        *(("token", name) for name in ("livekit_url", "token")),
        *(("start", name) for name in ("session_id", "audio_url", "engine", "fps")),
        ("debug", "sessions"),
    ],
)
async def test_an_answer_that_lacks_what_is_needed_of_it_says_what(call: str, lacks: str) -> None:
    answer = {name: value for name, value in WELL.items() if name != lacks}
    async with deployment(answering(200, answer)) as service:
        calls = {"token": service.token("r", "i"), "start": service.start({}), "debug": service.debug()}
        with pytest.raises(CallError, match=f"answered without '{lacks}'") as caught:
            await calls.pop(call)
        for other in calls.values():
            other.close()
    assert caught.value.code == "http_nonsense"


@pytest.mark.parametrize("body", [[1, 2], "text", 7, None])
async def test_an_answer_that_is_no_object_is_none(body: Any) -> None:
    async with deployment(answering(200, content=json.dumps(body).encode())) as service:
        with pytest.raises(CallError, match="no JSON object"):
            await service.stop("ses_1")


# --- the services' own figures

METRICS = """# TYPE avatar_session_starts counter
avatar_session_starts_total{outcome="ok"} 3.0
avatar_session_starts_total{outcome="at_capacity"} 1.0
# TYPE avatar_session_start_seconds histogram
avatar_session_start_seconds_bucket{le="1.0"} 2.0
avatar_session_start_seconds_bucket{le="+Inf"} 4.0
avatar_session_start_seconds_count 4.0
avatar_session_start_seconds_sum 2.5
# TYPE avatar_orchestrator_sessions gauge
avatar_orchestrator_sessions{state="ready"} 2.0
# TYPE python_gc counter
python_gc_total 9.0
"""


def test_counters_sums_and_counts_are_read_and_nothing_else() -> None:
    assert samples(METRICS) == {
        "avatar_session_starts_total{outcome=ok}": 3.0,
        "avatar_session_starts_total{outcome=at_capacity}": 1.0,
        "avatar_session_start_seconds_count": 4.0,
        "avatar_session_start_seconds_sum": 2.5,
    }


async def test_counters_or_why_there_are_none() -> None:
    async with deployment(answering(200, content=METRICS.encode())) as service:
        reported = await counters(service)
        assert isinstance(reported, dict) and reported["avatar_session_start_seconds_sum"] == 2.5
    async with deployment(answering(403, {"code": "forbidden", "detail": "Operators only."})) as service:
        refused = await counters(service)
        assert isinstance(refused, CallError) and refused.code == "forbidden"


def test_only_what_rose_is_reported_also_of_what_was_not_there_before() -> None:
    services = ServiceMetrics()
    risen(services, {"a": 1.0, "b": 2.0, "c": 5.0}, {"a": 1.5, "b": 2.0, "new": 3.0, "c": 4.0})
    assert services.orchestrator == {"a": 0.5, "new": 3.0} and services.note is None


@pytest.mark.parametrize("first", [True, False])
def test_why_there_are_no_counters_is_noted_once(first: bool) -> None:
    services, refused = ServiceMetrics(), CallError("forbidden", "Operators only.")
    risen(services, *((refused, {}) if first else ({}, refused)))
    assert (services.note, services.orchestrator) == ("forbidden: Operators only.", {})
    services = ServiceMetrics(note="timeout: late")
    risen(services, refused, refused)
    assert services.note == "timeout: late", "the first reason stays"


async def test_the_worst_percentile_and_the_sum_of_the_counts() -> None:
    sessions = [
        {
            "session_id": "a",
            "statistics": {"spoken": 10, "held": 1, "lip_latency_p50_ms": 40.0, "lip_latency_p95_ms": 90},
        },
        {"session_id": "b", "statistics": {"spoken": 5, "stalls": None, "lip_latency_p50_ms": 60.5}},
        {"session_id": "c"},
        {"session_id": "not ours", "statistics": {"spoken": 1000}},
    ]
    body = {"engine": "warp", "device": "cpu", "sessions": sessions}
    async with deployment(answering(200, body)) as service:
        reported = await agents(service, {"a", "b", "c", ""})
    assert (reported.engine, reported.device, reported.sessions_seen, reported.note) == ("warp", "cpu", 3, None)
    assert reported.agents == {
        "spoken": 15,
        "dropped": 0,
        "held": 1,
        "stalls": 0,
        "underruns": 0,
        "began_without_lips": 0,
        "lip_latency_p50_ms": 60.5,
        "lip_latency_p95_ms": 90,
    }
    assert reported.diagnoses == {"None": 3}


async def test_a_percentile_that_no_agent_tells_is_not_zero() -> None:
    async with deployment(answering(200, {"sessions": []})) as service:
        reported = await agents(service, {"a"})
    assert "lip_latency_p95_ms" not in reported.agents and reported.sessions_seen == 0


async def test_a_call_that_is_cancelled_leaves_the_next_one_its_connection() -> None:
    gate = asyncio.Event()

    async def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/token":
            await gate.wait()
        return httpx.Response(200, json=WELL)

    async with deployment(handler) as service:
        task = asyncio.create_task(service.token("r", "i"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await service.debug() == WELL
