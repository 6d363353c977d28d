"""The alert rules and the dashboard: PromQL that parses, over metrics and labels that the services have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml
from prometheus_client import CollectorRegistry

from musetalk_agent import agent_metrics
from musetalk_agent.agent_metrics import REGISTRY
from musetalk_agent.media.scheduler import FrameAction
from musetalk_agent.protocol.http import DiagnosisCode
from musetalk_agent.protocol.problems import ErrorCode
from musetalk_agent.publishers.failover.policy import TransportKind
from orchestrator.metrics import Metrics

ROOT = Path(__file__).parents[2]
OPERATIONS = ROOT / "docs" / "operations"
CODE = {
    path: path.read_text("utf-8") for name in ("musetalk_agent", "orchestrator") for path in (ROOT / name).rglob("*.py")
}
CODES = {
    *map(str, ErrorCode),
    *map(str, DiagnosisCode),
    *map(str, TransportKind),
    *(act.name.lower() for act in FrameAction),
}
_WORD = re.compile(r"\b[a-z]+(?:_[a-z0-9]+)+\b")
FROM_SCRAPE = {"le", "instance", "job"}
_GROUPING = re.compile(r"\bby \(([^)]*)\)")
_PLACEHOLDER = re.compile(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}")


def known() -> dict[str, set[str]]:
    """Names of series, and their labels; a name that both services have may have those of either."""
    found: dict[str, set[str]] = {}
    registry: CollectorRegistry
    for registry in (REGISTRY, Metrics().registry):
        for name, collector in registry._names_to_collectors.items():
            found.setdefault(name, set()).update(collector._labelnames)
    return found


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((OPERATIONS / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    board = json.loads((OPERATIONS / "grafana.json").read_text())
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    targets = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [*(rule["expr"] for rule in alerts()), *(expr.replace("$__rate_interval", "5m") for expr in targets)]


def selectors(node: Any) -> Iterator[promql.VectorSelector]:
    """Every selector of an expression."""
    if isinstance(node, promql.VectorSelector):
        yield node
    for name in ("vector_selector", "expr", "param", "lhs", "rhs"):
        child = getattr(node, name, None)
        if child is not None:
            yield from selectors(child)
    for child in getattr(node, "args", None) or []:
        yield from selectors(child)


@pytest.mark.parametrize("expression", expressions())
def test_every_series_and_label_exists(expression: str) -> None:
    series, grouped = known(), {label.strip() for group in _GROUPING.findall(expression) for label in group.split(",")}
    labels: set[str] = set(FROM_SCRAPE)
    found = list(selectors(promql.parse(expression)))
    assert found
    for selector in found:
        assert selector.name in series, f"no service has {selector.name}"
        matched = {matcher.name for matcher in selector.matchers.matchers}
        assert matched <= series[selector.name] | FROM_SCRAPE, (selector.name, matched)
        labels |= series[selector.name]
    assert grouped <= labels, grouped - labels


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    names = [rule["alert"] for rule in alerts()]
    assert len(names) == len(set(names)) >= 15
    for rule in alerts():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert len(rule["annotations"]["summary"]) > 10 and len(rule["annotations"]["description"]) > 20
        for label in re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())):
            assert re.search(rf"by \([^)]*\b{label}\b", rule["expr"]), f"{rule['alert']} loses {label}"


def test_the_panels_lie_beside_and_under_each_other_and_their_legends_have_labels() -> None:
    taken: set[tuple[int, int]] = set()
    board = json.loads((OPERATIONS / "grafana.json").read_text())
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not taken & cells and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
    for target in (target for panel in panels() for target in panel["targets"]):
        for label in _PLACEHOLDER.findall(target["legendFormat"]):
            assert re.search(rf"by \([^)]*\b{label}\b", target["expr"]), (label, target["expr"])


def emitted(word: str) -> bool:
    """A code, a string that the services' own code writes, or the name of a field that they answer with."""
    if word in CODES or word in known():
        return True
    written = re.compile(rf"[\"']{re.escape(word)}[\"']|^\s+{re.escape(word)}:", re.MULTILINE)
    return any(written.search(source) for path, source in CODE.items() if not path.name.endswith("metrics.py"))


@pytest.mark.parametrize("expression", expressions())
def test_every_value_of_a_label_is_one_that_the_code_writes(expression: str) -> None:
    for selector in selectors(promql.parse(expression)):
        for matcher in selector.matchers.matchers:
            for value in matcher.value.split("|"):
                if re.fullmatch(r"[a-z_/]+", value):  # else an expression, as 5..
                    assert emitted(value), f"nothing writes {matcher.name}={value!r} of {selector.name}"


def test_every_code_that_the_texts_name_exists() -> None:
    texts = [text for rule in alerts() for text in rule["annotations"].values()]
    texts += [panel.get("description", "") for panel in panels()]
    named = {word for text in texts for word in _WORD.findall(text)}
    assert {"engine_failed", "at_capacity", "engine_slow"} <= named, "the test finds them"
    assert not (wrong := {word for word in named if not emitted(word)}), wrong
    assert not emitted("engine_too_slow")


def source_of(package: str) -> str:
    """Everything but where the instruments are made."""
    found = (
        text
        for path, text in CODE.items()
        if path.is_relative_to(ROOT / package) and not path.name.endswith("metrics.py")
    )
    return "".join(found)


def test_every_instrument_is_used() -> None:
    """An instrument that nothing writes to is drawn as if nothing ever happened."""
    agent = source_of("musetalk_agent")
    instruments = [name for name, value in vars(agent_metrics).items() if hasattr(value, "_labelnames")]
    assert len(instruments) >= 15
    assert not (unused := [name for name in instruments if not re.search(rf"\b{name}\b[.(\n]", agent)]), unused
    other = source_of("orchestrator")
    fields = [name for name, value in vars(Metrics()).items() if hasattr(value, "_labelnames")]
    assert len(fields) >= 15
    assert not (unused := [name for name in fields if not re.search(rf"metrics\.{name}\b", other)]), unused
