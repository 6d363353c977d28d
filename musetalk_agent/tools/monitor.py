"""`musetalk-agent monitor URL`: what an agent's sessions do, once a second, from its own `/debug`, `/health` and `/metrics`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from musetalk_agent.agent_settings import AgentSettings
from musetalk_agent.clock import utc_now
from musetalk_agent.protocol.http import AgentDebug, AgentHealth, AgentSession

_TIMEOUT_S = 5.0
_LEAST_INTERVAL_S = 0.1
_CLEAR, _HOME, _REST_OF_LINE, _REST_OF_SCREEN = "\x1b[2J", "\x1b[H", "\x1b[K", "\x1b[J"
_NONE = "–"
_COLUMNS = "session state engine fps lips_p50 lips_p95 skew waiting dropped held dry viewers diagnosis".split()


class AgentUnreachable(Exception):
    """The agent does not answer, or not as an agent does; the message says which and what to do."""


@dataclass(frozen=True)
class Snapshot:
    """One look at an agent. `at` is monotonic seconds, `queue` and `busy_s` are the engines' by name."""

    at: float
    health: AgentHealth
    debug: AgentDebug
    queue: dict[str, float]
    busy_s: dict[str, float]


@dataclass(frozen=True)
class SessionLine:
    """A session in figures; None where the agent has none yet.

    `fps` is of frames published since the look before; latencies are from a frame's last PCM to its lips leaving, `skew_ms` is
    how much later than their audio frames leave (milliseconds, positive: lips late); `waiting_s` is speech received and not yet
    heard; `dropped` frames came too late, `held` ones were bridged by the one before, `underruns` counts times the audio ran dry.
    """

    session_id: str
    room: str
    state: str
    engine: str
    fps: float | None
    fps_wanted: int
    lip_latency_p50_ms: float | None
    lip_latency_p95_ms: float | None
    skew_ms: float | None
    waiting_s: float
    dropped: float | None
    held: float | None
    underruns: float | None
    viewers: int
    diagnosis: str
    message: str


@dataclass(frozen=True)
class SessionTable:
    """An agent in figures; `busy` is the share of time since the look before that its engines worked, 0 … 1 for each of them;
    `note` says why the engine is not the one that was hoped for."""

    at: str
    status: str
    version: str
    engine: str
    device: str
    sessions_held: int
    sessions_max: int
    queue: dict[str, float]
    busy: dict[str, float]
    note: str | None
    sessions: list[SessionLine]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="the agent's address, http://127.0.0.1:8090 for one")
    parser.add_argument("--key", default=None, help="the agent's key (default: AGENT_API_KEY)")
    parser.add_argument("--interval", type=float, default=1.0, metavar="S", help="seconds between looks (default: 1)")
    parser.add_argument("--once", action="store_true", help="print one table (after two looks) and end")
    parser.add_argument("--json", action="store_true", help="print one JSON object a look instead of a table")


def run(args: argparse.Namespace) -> int:
    """Runs the command: 0 ended by Ctrl-C or --once, 1 the agent does not answer or refuses the key, 2 wrong usage."""
    key = args.key
    if key is None:
        try:
            key = AgentSettings().agent_api_key.get_secret_value()
        except ValidationError:
            print("monitor: give the agent's key with --key, or set AGENT_API_KEY.", file=sys.stderr)
            return 2
    if args.interval < _LEAST_INTERVAL_S:
        print(f"monitor: --interval {args.interval:g} is under {_LEAST_INTERVAL_S:g} s.", file=sys.stderr)
        return 2
    try:
        # no proxy: an agent is a machine of one's own
        with httpx.Client(
            base_url=args.url, headers={"Authorization": f"Bearer {key}"}, timeout=_TIMEOUT_S, trust_env=False
        ) as http:
            _watch(http, args)
    except AgentUnreachable as error:
        print(f"monitor: {error}", file=sys.stderr)
        return 1
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        print(f"monitor: {args.url!r} is no address of an agent: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print()
    return 0


def take_snapshot(http: httpx.Client) -> Snapshot:
    """Looks once. Raises `AgentUnreachable`; httpx's errors for an invalid address."""
    at = time.monotonic()
    debug = _get(http, "/debug")
    try:
        agent = AgentDebug.model_validate_json(debug.content)
        health = AgentHealth.model_validate_json(_get(http, "/health").content)
        metrics = _get(http, "/metrics").text
        queue, busy = _by_engine(metrics, "avatar_engine_queue"), _by_engine(metrics, "avatar_engine_busy_seconds")
    except ValueError as error:
        raise AgentUnreachable(f"{http.base_url} answers, but not as an agent of this version does.") from error
    return Snapshot(at, health, agent, queue, busy)


def session_table(now: Snapshot, before: Snapshot | None) -> SessionTable:
    """The figures of `now`; rates are since `before`."""
    counted = {s.session_id: _published(s) for s in before.debug.sessions} if before else {}
    passed = now.at - before.at if before else 0.0
    busy = {
        name: round((seconds - before.busy_s[name]) / passed, 3)
        for name, seconds in now.busy_s.items()
        if before and passed > 0 and name in before.busy_s
    }
    return SessionTable(
        utc_now(),
        now.health.status,
        now.health.version,
        now.debug.engine,
        now.debug.device,
        now.health.capacity.sessions,
        now.health.capacity.sessions_max,
        now.queue,
        busy,
        now.health.engine_note,
        [_line(s, counted.get(s.session_id), passed) for s in now.debug.sessions],
    )


def table_lines(seen: SessionTable) -> list[str]:
    """The look as lines of text."""
    queue = ", ".join(
        f"{name} {count:.0f} waiting" + (f" {seen.busy[name]:.0%} busy" if name in seen.busy else "")
        for name, count in seen.queue.items()
    )
    head = (
        f"{seen.status} · {seen.engine} on {seen.device} · {seen.sessions_held} of {seen.sessions_max} sessions"
        f"{' · ' + queue if queue else ''} · {seen.version} · {seen.at}"
    )
    rows = [[name.replace("_", " ") for name in _COLUMNS], *(_cells(line) for line in seen.sessions)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    causes = [f"{s.session_id}: {s.message}" for s in seen.sessions if s.diagnosis != "ok"]
    heading = [head, *([seen.note] if seen.note else []), ""]
    return [*heading, *lines, *([] if seen.sessions else ["no session"]), *([""] if causes else []), *causes]


def _watch(http: httpx.Client, args: argparse.Namespace) -> None:
    before: Snapshot | None = None
    live = sys.stdout.isatty() and not args.json and not args.once
    if live:
        sys.stdout.write(_CLEAR)
    while True:
        try:
            now = take_snapshot(http)
        except AgentUnreachable as error:
            if before is None or args.once:
                raise
            now, gone = None, f"{error} Trying again."  # an agent that is being restarted comes back
            if live:
                show([gone], live=True)
            else:
                print(f"monitor: {gone}", file=sys.stderr)
        if now is not None:
            if not args.once or before is not None:
                seen = session_table(now, before)
                show([json.dumps(asdict(seen))] if args.json else table_lines(seen), live=live)
                if args.once:
                    return
            before = now
        time.sleep(args.interval)


def show(lines: Sequence[str], *, live: bool) -> None:
    """Prints lines, in place of those before them on a terminal that is watched (`live`)."""
    # names come from callers of the orchestrator: nothing in them may steer the terminal
    lines = ["".join(c if c.isprintable() else "?" for c in line) for line in lines]
    if live:
        text = _HOME + "".join(f"{line}{_REST_OF_LINE}\n" for line in lines) + _REST_OF_SCREEN
    else:
        text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    sys.stdout.flush()


def _get(http: httpx.Client, path: str) -> httpx.Response:
    try:
        answer = http.get(path)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        raise
    except httpx.HTTPError as error:
        raise AgentUnreachable(f"{http.base_url} cannot be reached: {str(error) or type(error).__name__}.") from error
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        raise AgentUnreachable(f"{http.base_url} refuses the key; give its AGENT_API_KEY with --key.")
    draining = path == "/health" and answer.status_code == httpx.codes.SERVICE_UNAVAILABLE
    if not answer.is_success and not draining:
        raise AgentUnreachable(f"{http.base_url} answers {path} with {answer.status_code}: is an agent there?")
    return answer


def _by_engine(metrics: str, name: str) -> dict[str, float]:
    return {
        sample.labels["engine"]: sample.value
        for family in text_string_to_metric_families(metrics)
        if family.name == name
        for sample in family.samples
        if "engine" in sample.labels
    }


def _published(session: AgentSession) -> int:
    return next((stage.count for stage in session.funnel if stage.stage == "published"), 0)


def _line(session: AgentSession, published: int | None, passed: float) -> SessionLine:
    def figure(name: str) -> float | None:
        value = session.statistics.get(name)
        return float(value) if isinstance(value, int | float) else None

    fps = None if published is None or passed <= 0 else round((_published(session) - published) / passed, 1)
    return SessionLine(
        session.session_id,
        session.room,
        session.state.value,
        session.engine,
        fps,
        session.fps,
        figure("lip_latency_p50_ms"),
        figure("lip_latency_p95_ms"),
        figure("skew_ms"),
        session.playback.buffered_s,
        figure("dropped"),
        figure("held"),
        figure("underruns"),
        session.viewers,
        session.diagnosis.code.value,
        session.diagnosis.message,
    )


def _cells(line: SessionLine) -> list[str]:
    def shown(value: float | None, unit: str = "") -> str:
        return _NONE if value is None else f"{value:.0f}{unit}"

    fps = _NONE if line.fps is None else f"{line.fps:.1f}"
    return [
        line.session_id,
        line.state,
        line.engine,
        f"{fps}/{line.fps_wanted}",
        shown(line.lip_latency_p50_ms, " ms"),
        shown(line.lip_latency_p95_ms, " ms"),
        shown(line.skew_ms, " ms"),
        f"{line.waiting_s:.1f} s",
        shown(line.dropped),
        shown(line.held),
        shown(line.underruns),
        str(line.viewers),
        line.diagnosis,
    ]
