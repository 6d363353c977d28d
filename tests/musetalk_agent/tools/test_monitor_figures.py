"""The monitor's arithmetic on made looks at an agent, its table, and what it says of an address that is no agent."""

from __future__ import annotations

import dataclasses
from typing import Any

import httpx
import pytest

from musetalk_agent.protocol.http import (
    AgentDebug,
    AgentHealth,
    AgentSession,
    Capacity,
    Diagnosis,
    DiagnosisCode,
    FunnelStage,
    Playback,
    SessionState,
)
from musetalk_agent.tools.monitor import AgentUnreachable, Snapshot, session_table, table_lines, take_snapshot

FIGURES: dict[str, float | int | str | None] = {
    "lip_latency_p50_ms": 81.4,
    "lip_latency_p95_ms": 120.6,
    "skew_ms": -3.2,
    "dropped": 2,
    "held": 0,
    "underruns": 1,
}


def session(name: str = "ses_1", published: int = 100, **more: Any) -> AgentSession:
    """A session that has published so many pictures."""
    reported: dict[str, Any] = {
        "diagnosis": Diagnosis(code=DiagnosisCode.OK, message="All is well."),
        "statistics": FIGURES,
        "funnel": [FunnelStage(stage="composed", count=7), FunnelStage(stage="published", count=published)],
        "playback": Playback(buffered_s=1.25),
        "viewers": 3,
        **more,
    }
    return AgentSession(
        session_id=name,
        state=SessionState.SPEAKING,
        room="lobby",
        publisher="livekit",
        engine="warp",
        fps=25,
        width=64,
        height=64,
        started_at="2026-11-28T20:53:00Z",
        **reported,
    )


def snapshot(at: float, *sessions: AgentSession, busy_s: float = 0.0, note: str | None = None) -> Snapshot:
    """A look at an agent at a time."""
    health = AgentHealth(
        status="ok",
        version="1.2.3",
        engine="warp",
        engine_note=note,
        capacity=Capacity(sessions=len(sessions), sessions_max=8),
    )
    debug = AgentDebug(engine="warp", device="cpu", sessions=list(sessions))
    return Snapshot(at, health, debug, {"warp": 2.0}, {"warp": busy_s})


@pytest.mark.parametrize(
    ("before", "after", "passed", "fps"), [(100, 125, 1.0, 25.0), (100, 100, 1.0, 0.0), (0, 61, 2.5, 24.4)]
)
def test_a_rate_is_what_was_published_over_the_time_between_two_looks(
    before: int, after: int, passed: float, fps: float
) -> None:
    seen = session_table(snapshot(50.0 + passed, session(published=after)), snapshot(50.0, session(published=before)))
    assert seen.sessions[0].fps == fps


def test_the_first_look_and_a_session_that_was_not_there_before_have_no_rate() -> None:
    assert (
        session_table(snapshot(1.0, session()), None).sessions[0].fps is None
        and session_table(snapshot(1.0), None).busy == {}
    )
    seen = session_table(snapshot(2.0, session("old", 150), session("new", 9)), snapshot(1.0, session("old", 100)))
    assert [(line.session_id, line.fps) for line in seen.sessions] == [("old", 50.0), ("new", None)]
    at_once = session_table(snapshot(1.0, session()), snapshot(1.0, session()))
    assert at_once.sessions[0].fps is None and at_once.busy == {}, "no time has passed"


@pytest.mark.parametrize(("before_s", "after_s", "busy"), [(1.0, 1.5, 0.25), (1.0, 3.0, 1.0), (0.0, 0.0, 0.0)])
def test_an_engine_is_busy_for_the_share_of_the_time_in_which_it_worked(
    before_s: float, after_s: float, busy: float
) -> None:
    seen = session_table(snapshot(12.0, busy_s=after_s), snapshot(10.0, busy_s=before_s))
    assert seen.busy == {"warp": busy}


def test_an_engine_that_was_made_meanwhile_has_no_share_yet() -> None:
    before = dataclasses.replace(snapshot(10.0), busy_s={"pattern": 1.0})
    assert session_table(snapshot(12.0, busy_s=3.0), before).busy == {}


def test_the_figures_of_a_session_are_the_agent_s_and_none_where_it_has_none() -> None:
    (line,) = session_table(snapshot(1.0, session()), None).sessions
    assert (line.lip_latency_p50_ms, line.lip_latency_p95_ms, line.skew_ms) == (81.4, 120.6, -3.2)
    assert (line.dropped, line.held, line.underruns, line.waiting_s, line.viewers) == (2, 0, 1, 1.25, 3)
    (line,) = session_table(
        snapshot(1.0, session(statistics={"skew_ms": None, "dropped": "many"}, funnel=[])), None
    ).sessions
    assert line.skew_ms is None and line.dropped is None and line.lip_latency_p50_ms is None


def test_the_table_has_a_row_for_each_session_under_its_columns() -> None:
    lines = table_lines(
        session_table(snapshot(2.0, session("ses_1", 125), session("a-long-name")), snapshot(1.0, session()))
    )
    assert lines[0].startswith("ok · warp on cpu · 2 of 8 sessions · warp 2 waiting 0% busy · 1.2.3 · 20")
    assert lines[1] == ""
    head, one, other = lines[2:5]
    assert head.split() == (
        "session state engine fps lips p50 lips p95 skew waiting dropped held dry viewers diagnosis".split()
    )
    assert one.split() == "ses_1 speaking warp 25.0/25 81 ms 121 ms -3 ms 1.2 s 2 0 1 3 ok".split()
    assert other.split()[3] == "–/25"
    for column in ("state", "fps", "skew", "diagnosis"):
        at = head.index(column)
        assert one[at - 1] == other[at - 1] == " " and one[at] != " " and other[at] != " "
    assert len(lines) == 5, "nobody has a cause to tell"


def test_causes_and_the_engine_s_note_are_reported_around_the_table() -> None:
    silent = session("b", diagnosis=Diagnosis(code=DiagnosisCode.NO_AUDIO, message="No PCM has arrived yet."))
    lines = table_lines(
        session_table(snapshot(2.0, session("a"), silent, note="The engine is 'warp', not MuseTalk."), None)
    )
    assert lines[1:3] == ["The engine is 'warp', not MuseTalk.", ""]
    assert lines[-2:] == ["", "b: No PCM has arrived yet."] and lines[-3].endswith("no_audio")


def test_an_agent_without_sessions_says_so() -> None:
    assert table_lines(session_table(snapshot(1.0), None))[-1] == "no session"


DEBUG = {"engine": "warp", "device": "cpu"}
HEALTH = {"status": "ok", "version": "1", "engine": "warp", "capacity": {"sessions": 0, "sessions_max": 8}}
METRICS = '# TYPE avatar_engine_queue gauge\navatar_engine_queue{engine="warp"} 3.0\n'


def answering(answers: dict[str, httpx.Response | Exception]) -> httpx.Client:
    """A client of an agent that answers so."""
    usual = {"/debug": httpx.Response(200, json=DEBUG), "/metrics": httpx.Response(200, text=METRICS)}

    def handle(request: httpx.Request) -> httpx.Response:
        answer = {**usual, "/health": httpx.Response(200, json=HEALTH), **answers}[request.url.path]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return httpx.Client(base_url="http://agent.test:8090", transport=httpx.MockTransport(handle))


def test_a_look_reads_debug_health_and_metrics_and_a_draining_agent_is_one() -> None:
    draining = {**HEALTH, "status": "draining", "draining": True}
    with answering({"/health": httpx.Response(503, json=draining)}) as http:
        seen = take_snapshot(http)
    assert (seen.debug.device, seen.health.status, seen.queue, seen.busy_s) == ("cpu", "draining", {"warp": 3.0}, {})


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ({"/debug": httpx.Response(401)}, "refuses the key; give its AGENT_API_KEY with --key."),
        ({"/debug": httpx.Response(404)}, "answers /debug with 404: is an agent there?"),
        ({"/debug": httpx.Response(503)}, "answers /debug with 503"),
        ({"/debug": httpx.Response(302)}, "answers /debug with 302"),
        ({"/health": httpx.Response(500)}, "answers /health with 500"),
        ({"/metrics": httpx.Response(403)}, "answers /metrics with 403"),
        ({"/debug": httpx.Response(200, text="<html>")}, "but not as an agent of this version does"),
        ({"/debug": httpx.Response(200, json={"engine": 5})}, "but not as an agent of this version does"),
        ({"/health": httpx.Response(200, json=[])}, "but not as an agent of this version does"),
        ({"/metrics": httpx.Response(200, text="a b c d e")}, "but not as an agent of this version does"),
        ({"/debug": httpx.ConnectError("refused")}, "cannot be reached: refused."),
        ({"/debug": httpx.ReadTimeout("")}, "cannot be reached: ReadTimeout."),
    ],
)
def test_what_is_no_agent_is_reported_with_its_address(
    answers: dict[str, httpx.Response | Exception], says: str
) -> None:
    with answering(answers) as http, pytest.raises(AgentUnreachable) as refused:
        take_snapshot(http)
    assert str(refused.value).startswith("http://agent.test:8090") and says in str(refused.value)


@pytest.mark.parametrize(
    ("text", "queue"),
    [
        ("", {}),
        ("avatar_engine_queue 3\n", {}),
        ('avatar_engine_queue{engine="a"} 1\navatar_engine_queue{card="b"} 2\n', {"a": 1.0}),
    ],
)
def test_metrics_that_name_no_engine_are_left_out(text: str, queue: dict[str, float]) -> None:
    with answering({"/metrics": httpx.Response(200, text=text)}) as http:
        assert take_snapshot(http).queue == queue
