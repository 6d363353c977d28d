"""Which variables of a deployer's environment go on to the containers: the services' own settings, without secrets and folders."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import AliasChoices, SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

MUSETALK = "MUSETALK_"
"""Whatever begins with it is the agent's."""
OTHERS = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
)
"""Read by libraries of both services. Headers for the collector hold its key: they belong into a secret."""
_OF_THE_APP = frozenset(
    {
        *("AGENT_URL", "AGENT_POOL", "AGENT_MAX_SESSIONS", "AGENT_SESSIONS_MAX", "MODAL_AGENT"),
        *(
            "LIVEKIT_URL",
            "LIVEKIT_API_KEY",
            "STORE_PATH",
            "PUBLIC_URL",
            "CONVERSATION_PYTHON",
            "LIVEKIT_INFERENCE_API_KEY",
        ),
        "MUSETALK_DEVICE",
    }
)
"""Set by the app or by a secret; or true of the deployer's own machine only."""


def plain_settings(settings: type[BaseSettings]) -> list[str]:
    """Variables of a service that may be handed on: no secret, no file or folder, nothing that the app itself sets."""
    names = [_variable(name, info) for name, info in settings.model_fields.items() if not _kept_back(info.annotation)]
    return [name for name in names if name not in _OF_THE_APP]


def passed_on(environment: Mapping[str, str], names: Iterable[str], *, musetalk: bool = False) -> dict[str, str]:
    """Those of the names that the environment has a value for; `musetalk` adds every other variable of MuseTalk."""
    wanted = {*names, *OTHERS} | ({name for name in environment if name.startswith(MUSETALK)} if musetalk else set())
    return {name: environment[name] for name in sorted(wanted - _OF_THE_APP) if environment.get(name, "").strip()}


def describe(environment: Mapping[str, str], services: Mapping[str, Mapping[str, str]]) -> str:
    """For people: which variables of the deployer each service has got, a line each."""
    lines = []
    for service, has in services.items():
        given = [f"{name}={value}" for name, value in sorted(has.items()) if environment.get(name) == value]
        lines.append(f"From your environment, for the {service}: {', '.join(given) or 'nothing'}.")
    return "\n".join(lines)


def _variable(name: str, info: FieldInfo) -> str:
    alias = info.validation_alias
    first = alias.choices[0] if isinstance(alias, AliasChoices) else alias
    return (first if isinstance(first, str) else name).upper()


def _kept_back(annotation: object) -> bool:
    parts = (annotation, *typing.get_args(annotation))
    return any(part in (SecretStr, Path) for part in parts)
