from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import modal
import pytest

from musetalk_agent.checks import exit_code, next_command
from musetalk_tools.deploy.modal_settings import ModalCloud, ModalSettings, Wanted, examine
from tests.modal.inspected import inspected


@dataclass
class Workspace:
    """What somebody has at Modal."""

    secrets: dict[str, set[str]] = field(default_factory=dict)
    volumes: dict[str, dict[str, int]] = field(default_factory=dict)
    servers: set[str] = field(default_factory=set)

    def secret(self, name: str, keys: Sequence[str]) -> str | None:
        if name not in self.secrets:
            return "not found"
        lacking = set(keys) - self.secrets[name]
        return f"lacks {', '.join(sorted(lacking))}" if lacking else None

    def files(self, volume: str) -> Mapping[str, int] | None:
        return self.volumes.get(volume)

    def address(self, app: str, server: str) -> str | None:
        return f"https://{app}-{server}.example" if server in self.servers else None


def wanted(monkeypatch: pytest.MonkeyPatch) -> Wanted:
    reported: Wanted = inspected(monkeypatch).module.wanted()
    return reported


def whole(of: Wanted) -> Workspace:
    return Workspace(
        {name: set(keys) for name, keys, _ in of.secrets},
        {of.models: {name: size or 1 for name, size in of.weights.items()}, of.avatars: {}},
        set(of.servers),
    )


def test_nothing_is_said_of_a_whole_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    of = wanted(monkeypatch)
    findings = examine(whole(of), ModalSettings(), of)
    assert [finding.cure for finding in findings] == [findings[0].cure, *[""] * 6] and not findings[0].needed
    assert "musetalkV15/unet.pth" in of.weights and "face/face_landmark.tflite" in of.weights


def test_an_empty_workspace_gets_every_step_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = examine(Workspace(), ModalSettings(), wanted(monkeypatch))
    cures = [finding.cure.split(" ")[:4] for finding in findings if finding.verdict == "todo"]
    assert next_command(findings) == findings[1].cure and exit_code(findings) == 1
    assert [" ".join(cure) for cure in cures] == [
        "modal secret create livekit",
        "modal secret create musetalk-keys",
        "modal run modal_app.py::fetch_models",
        "modal deploy modal_app.py",
        "modal deploy modal_app.py",
    ]


def test_what_is_half_there_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    of = wanted(monkeypatch)
    mine = whole(of)
    mine.secrets["livekit"].discard("LIVEKIT_API_SECRET")
    mine.volumes[of.models]["musetalkV15/unet.pth"] = 1000
    del mine.volumes[of.models]["face/face_landmark.tflite"]
    lines = "\n".join(finding.line() for finding in examine(mine, ModalSettings(agent_gpu="B300"), of) if finding.cure)
    assert "lacks LIVEKIT_API_SECRET" in lines and "2 of " in lines
    assert "musetalkV15/unet.pth" in lines and "face/face_landmark.tflite" in lines
    assert "set AGENT_SESSIONS" in lines
    slow = examine(mine, ModalSettings(agent_gpu="T4"), of)[0]
    assert slow.verdict == "todo" and "no session" in slow.found and "MUSETALK_PROFILE=fast" in slow.cure


def test_the_doctor_uses_what_the_package_has(monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing:
        def hydrate(self) -> None:
            raise modal.exception.NotFoundError("Secret 'livekit' not found")

        def listdir(self, path: str, *, recursive: bool) -> list[object]:
            raise modal.exception.NotFoundError("no volume")

        def get_url(self) -> str:
            raise modal.exception.NotFoundError("no app")

    assert hasattr(modal.Secret.from_name("s", required_keys=["K"]), "hydrate")
    for kind in (modal.Secret, modal.Volume, modal.Server):
        monkeypatch.setattr(kind, "from_name", lambda *names, **more: Missing())
    cloud = ModalCloud()
    assert cloud.secret("livekit", ["LIVEKIT_URL"]) == "Secret 'livekit' not found"
    assert cloud.files("v") is None and cloud.address("a", "s") is None
