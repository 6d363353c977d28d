"""The services' own figures, where the key is an operator's: `/metrics` before and after, `/debug/musetalk` at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

from orchestrator.loadtest.deployment import CallError, Deployment

_SUMMED = ("spoken", "dropped", "held", "stalls", "underruns", "began_without_lips")
_WORST = ("lip_latency_p50_ms", "lip_latency_p95_ms")
_COUNTERS = ("_total", "_sum", "_count")
Samples = dict[str, float]


class Services(BaseModel):
    """`note` says why there are none. `orchestrator`: by how much its counters rose, whoever's doing it was. `agents`: of this
    run's sessions, counts added up and the worst of their percentiles; `device` and `engine` are the first agent's."""

    note: str | None = None
    orchestrator: dict[str, float] = {}
    engine: str | None = None
    device: str | None = None
    sessions_seen: int = 0
    agents: dict[str, float] = {}
    diagnoses: dict[str, int] = {}


async def counters(deployment: Deployment) -> Samples | CallError:
    """The orchestrator's counters as they stand, or why they are not told."""
    try:
        return samples(await deployment.metrics())
    except CallError as error:
        return error


def samples(text: str) -> Samples:
    """Counters, sums and counts of a Prometheus text, by name and labels; nothing of a text that is none."""
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


async def agents(deployment: Deployment, session_ids: set[str]) -> Services:
    """What the agents tell of these sessions, which must still be running."""
    try:
        report = await deployment.debug()
    except CallError as error:
        return Services(note=f"{error.code}: {error}")
    mine = [each for each in report["sessions"] if isinstance(each, dict) and each.get("session_id") in session_ids]
    figures = [each.get("statistics") or {} for each in mine]
    services = Services(engine=report.get("engine"), device=report.get("device"), sessions_seen=len(mine))
    for name in _SUMMED:
        services.agents[name] = sum(_number(each, name) for each in figures)
    for name in _WORST:
        if any(name in each for each in figures):
            services.agents[name] = max(_number(each, name) for each in figures)
    for each in mine:
        code = str(each.get("diagnosis", {}).get("code"))
        services.diagnoses[code] = services.diagnoses.get(code, 0) + 1
    return services


def risen(services: Services, before: Samples | CallError, after: Samples | CallError) -> None:
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
