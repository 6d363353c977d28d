"""The environments beside `.venv`: what they share with it is the same version, so that its files are there once."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def pinned(path: str) -> dict[str, str]:
    lines = (ROOT / path).read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def test_the_conversation_environment_shares_the_versions_of_the_constraints() -> None:
    ours, listed = pinned("constraints.txt"), pinned("orchestrator/conversation/requirements.txt")
    assert len(ours) > 50 and len(listed) > 50
    different = {name for name in listed.keys() & ours.keys() if listed[name] != ours[name]}
    assert different == {"livekit"}, "livekit-agents pins that one"
