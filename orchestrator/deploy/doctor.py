"""What a deployment lacks, told before anyone waits for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrator.deploy.numbers import CARDS, Numbers


class Cloud(Protocol):
    """What can be looked up. Methods block; those that find nothing return None."""

    def secret(self, name: str, keys: Sequence[str]) -> str | None:
        """What is wrong with the secret; None when it is there and has these keys."""
        ...

    def files(self, volume: str) -> Mapping[str, int] | None:
        """Sizes of a volume's files by path; None when there is no such volume."""
        ...

    def address(self, app: str, server: str) -> str | None:
        """Of a deployed server."""
        ...


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `cure` is what to do; empty when all is well."""

    what: str
    found: str
    cure: str = ""

    def line(self) -> str:
        """For people."""
        return f"{'missing' if self.cure else 'ok':8} {self.what}: {self.found}" + (
            f"\n         → {self.cure}" if self.cure else ""
        )


@dataclass(frozen=True)
class Wanted:
    """What the deployment needs by name.

    Attributes:
        secrets: name of each secret, its keys, and the command that makes it.
        models, avatars: the volumes.
        weights: size in bytes of each file of `models`, None where it is not known.
        servers: what is to be deployed.
    """

    secrets: Sequence[tuple[str, Sequence[str], str]]
    models: str
    avatars: str
    weights: Mapping[str, int | None]
    servers: Sequence[str]


def examine(cloud: Cloud, numbers: Numbers, wanted: Wanted) -> list[Finding]:
    """Everything, in the order in which it is to be cured."""
    findings = [_card(numbers)]
    for name, keys, command in wanted.secrets:
        fault = cloud.secret(name, keys)
        findings.append(Finding(f"secret {name}", fault or "there", command if fault else ""))
    findings.append(_weights(cloud, wanted))
    avatars = cloud.files(wanted.avatars)
    found = "made by the first deploy" if avatars is None else f"{len(avatars)} files"
    findings.append(Finding(f"volume {wanted.avatars}", found))
    for server in wanted.servers:
        address = cloud.address(numbers.modal_app, server)
        findings.append(
            Finding(f"server {server}", address or "not deployed", "" if address else "modal deploy modal_app.py")
        )
    return findings


def _card(numbers: Numbers) -> Finding:
    known = numbers.agent_gpu in CARDS
    found = (
        f"{numbers.agent_gpu}, {numbers.sessions} sessions a container (an estimate: make bench-gpu ARGS='--only hold')"
    )
    cure = "" if known else f"AGENT_GPU is none of {', '.join(CARDS)}: set AGENT_SESSIONS to what was measured on it"
    return Finding("card", found, "" if numbers.agent_sessions else cure)


def _weights(cloud: Cloud, wanted: Wanted) -> Finding:
    files = cloud.files(wanted.models)
    what, cure = f"weights in volume {wanted.models}", "modal run modal_app.py::fetch_models"
    if files is None:
        return Finding(what, "no such volume", cure)
    lacking = [name for name, size in wanted.weights.items() if name not in files or size not in (None, files[name])]
    if lacking:
        return Finding(
            what, f"{len(lacking)} of {len(wanted.weights)} missing or cut short: {', '.join(lacking[:3])}", cure
        )
    return Finding(what, f"{len(wanted.weights)} files, of the right sizes")
