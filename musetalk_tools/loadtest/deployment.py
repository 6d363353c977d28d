"""The deployment under test: its public HTTP API, and, with an operator's key, its own metrics (`/metrics`, `/debug/musetalk`)."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

_START_S = 200.0  # the service itself gives up after 180 s by default
_TIMEOUT_S = 20.0
_ENDED = ("stopped", "failed")
_NONSENSE = "http_nonsense"
Json = dict[str, Any]
Fields = dict[str, type]
"""What a caller reads of an answer."""
_TICKET: Fields = {"livekit_url": str, "token": str}
_STARTED: Fields = {"session_id": str, "audio_url": str, "engine": str, "fps": int}
_LISTED: Fields = {"session_id": str, "room": str, "state": str}


class CallError(Exception):
    """A call failed. `code` is the service's own, or `unreachable`, `timeout`, `http_STATUS`, `http_nonsense`."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


def is_loopback(url: str) -> bool:
    """Whether it leads to this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class Deployment:
    """Calls with one key. Every method raises CallError; cancelling one leaves open whether the service carried it out."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=_TIMEOUT_S,
            trust_env=not is_loopback(url),
            limits=httpx.Limits(max_connections=None),
        )

    async def aclose(self) -> None:
        """Closes its connections."""
        await self._http.aclose()

    async def token(self, room: str, identity: str) -> Json:
        """A viewer's token for a room, which exists afterwards."""
        return await self._json("POST", "/token", _TICKET, json={"room": room, "identity": identity})

    async def start(self, body: Json) -> Json:
        """Starts a session."""
        return await self._json("POST", "/session/start", _STARTED, json=body, timeout=_START_S)

    async def interrupt(self, session_id: str) -> None:
        """Barge-in."""
        await self._json("POST", f"/session/{session_id}/interrupt")

    async def stop(self, session_id: str) -> None:
        """Ends a session."""
        await self._json("POST", f"/session/{session_id}/stop")

    async def running(self, rooms: str) -> list[Json]:
        """Sessions that have not ended, in rooms whose names begin with `rooms`."""
        sessions = (await self._json("GET", "/sessions", {"sessions": list}))["sessions"]
        for each in sessions:
            _check(each, _LISTED, "GET /sessions")
        return [each for each in sessions if each["room"].startswith(rooms) and each["state"] not in _ENDED]

    async def debug(self) -> Json:
        """`/debug/musetalk`; operators only."""
        return await self._json("GET", "/debug/musetalk", {"sessions": list})

    async def metrics(self) -> str:
        """`/metrics`; operators only."""
        return (await self._call("GET", "/metrics")).text

    async def _json(self, method: str, path: str, needs: Fields | None = None, **options: Any) -> Json:
        answer = await self._call(method, path, **options)
        try:
            body = answer.json()
        except (ValueError, RecursionError) as error:
            raise CallError(_NONSENSE, f"{method} {path} answered no JSON") from error
        return _check(body, needs or {}, f"{method} {path}")

    async def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = await self._http.request(method, path, **options)
        except httpx.TimeoutException as error:
            raise CallError("timeout", f"{method} {path} was not answered in time") from error
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise CallError("unreachable", f"{self.url} cannot be reached: {error}") from error
        if answer.is_success:
            return answer
        code, detail = f"http_{answer.status_code}", f"{method} {path} answered {answer.status_code}"
        try:
            problem = answer.json()
        except (ValueError, RecursionError):
            problem = None  # a proxy's page
        if isinstance(problem, dict) and "code" in problem:
            code, detail = str(problem["code"]), str(problem.get("detail", detail))
        raise CallError(code, detail)


def _check(body: Any, needs: Fields, call: str) -> Json:
    """The answer, an object with these fields of these types. Raises CallError: then something else listens at that address."""
    if not isinstance(body, dict):
        raise CallError(_NONSENSE, f"{call} answered no JSON object: is an orchestrator at that address?")
    for name, kind in needs.items():
        if not isinstance(body.get(name), kind):
            raise CallError(_NONSENSE, f"{call} answered without {name!r}: is an orchestrator at that address?")
    return body


_SUMMED = ("spoken", "dropped", "held", "stalls", "underruns", "began_without_lips")
_WORST = ("lip_latency_p50_ms", "lip_latency_p95_ms")
_COUNTERS = ("_total", "_sum", "_count")
Samples = dict[str, float]


class ServiceMetrics(BaseModel):
    """`note` says why there are none. `orchestrator`: by how much its counters rose, whatever the cause. `agents`: of this
    run's sessions, counts added up and the worst of their percentiles; `device` and `engine` are the first agent's."""

    note: str | None = None
    orchestrator: dict[str, float] = {}
    engine: str | None = None
    device: str | None = None
    sessions_seen: int = 0
    agents: dict[str, float] = {}
    diagnoses: dict[str, int] = {}


async def counters(deployment: Deployment) -> Samples | CallError:
    """The orchestrator's counters as they stand, or why there are none."""
    try:
        return samples(await deployment.metrics())
    except CallError as error:
        return error


def samples(text: str) -> Samples:
    """Counters, sums and counts of a Prometheus text, by name and labels; empty for any other text."""
    found: Samples = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.startswith("avatar_") and sample.name.endswith(_COUNTERS):
                    labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
                    found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    except ValueError:
        return {}
    return found


async def agents(deployment: Deployment, session_ids: set[str]) -> ServiceMetrics:
    """What the agents report of these sessions, which must still be running."""
    try:
        report = await deployment.debug()
    except CallError as error:
        return ServiceMetrics(note=f"{error.code}: {error}")
    mine = [each for each in report["sessions"] if isinstance(each, dict) and each.get("session_id") in session_ids]
    figures = [each.get("statistics") or {} for each in mine]
    services = ServiceMetrics(engine=report.get("engine"), device=report.get("device"), sessions_seen=len(mine))
    for name in _SUMMED:
        services.agents[name] = sum(_number(each, name) for each in figures)
    for name in _WORST:
        if any(name in each for each in figures):
            services.agents[name] = max(_number(each, name) for each in figures)
    for each in mine:
        code = str(each.get("diagnosis", {}).get("code"))
        services.diagnoses[code] = services.diagnoses.get(code, 0) + 1
    return services


def risen(services: ServiceMetrics, before: Samples | CallError, after: Samples | CallError) -> None:
    """Adds the orchestrator's part."""
    for each in (before, after):
        if isinstance(each, CallError):
            services.note = services.note or f"{each.code}: {each}"
            return
    assert isinstance(before, dict) and isinstance(after, dict)
    for name, value in sorted(after.items()):
        rise = round(value - before.get(name, 0.0), 6)
        if rise > 0:
            services.orchestrator[name] = rise


def _number(figures: Mapping[str, Any], name: str) -> float:
    value = figures.get(name)
    return float(value) if isinstance(value, int | float) else 0.0
