"""Where a start and the settings say that events are posted."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from orchestrator.webhooks import Webhooks
from tests.fakes.certificates import Authority
from tests.fakes.hook_receiver import receiving
from tests.fakes.stage import Stage, stage
from tests.orchestrator.test_webhooks import SECRET, verified

OWN = "whsec_" + base64.b64encode(bytes(32)).decode()
BODY = {"room": "stage", "engine": "pattern"}


async def test_events_go_to_everybodys_address_and_to_the_sessions_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority = Authority()
    trusted = tmp_path / "authority.pem"
    trusted.write_text(authority.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    context = authority.server("127.0.0.1")
    async with (
        receiving(context) as everybody,
        receiving(context) as own,
        stage(webhook_url=everybody.url(), webhook_secret=SECRET, allow_private_urls=True) as running,
    ):
        with_own = await running.start(webhook_url=own.url(), webhook_secret=OWN)
        without = await running.start()
        for started in (with_own, without):
            running.app.state.context.events.publish(started["session_id"], "warning", {"code": "of_the_test"})
        while not all(
            any(
                hook.event["type"] == "warning" and hook.event["session_id"] == started["session_id"]
                for hook in everybody.hooks
            )
            for started in (with_own, without)
        ):
            await everybody.wait(len(everybody.hooks) + 1)
        while not any(hook.event["type"] == "warning" for hook in own.hooks):
            await own.wait(len(own.hooks) + 1)
        assert {hook.event["session_id"] for hook in own.hooks} == {with_own["session_id"]}
        assert all(verified(hook, OWN) and not verified(hook, SECRET) for hook in own.hooks)
        assert all(verified(hook, SECRET) for hook in everybody.hooks)


async def test_a_sessions_address_needs_something_to_sign_with(running: Stage) -> None:
    answer = await running.http.post("/session/start", json={**BODY, "webhook_url": "https://hooks.example/a"})
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["field"]) == (422, "invalid_request", "webhook_secret")
    assert running.agent.sessions == {}


@pytest.mark.parametrize(
    "url", ["http://hooks.example/a?token=of-mine", "https://127.0.0.1/a?token=of-mine", "https://169.254.169.254/"]
)
async def test_a_forbidden_address_starts_nothing(running: Stage, url: str) -> None:
    answer = await running.http.post("/session/start", json={**BODY, "webhook_url": url, "webhook_secret": OWN})
    assert (answer.status_code, answer.json()["code"]) == (422, "webhook_url_forbidden")
    assert "of-mine" not in answer.text and running.agent.sessions == {}


@pytest.mark.parametrize(
    ("field", "value"), [("webhook_secret", "whsec_short"), ("webhook_secret", "s" * 200), ("webhook_url", "s" * 3000)]
)
async def test_an_error_does_not_repeat_a_secret(
    running: Stage, monkeypatch: pytest.MonkeyPatch, field: str, value: str
) -> None:
    async def fine(self: Webhooks, url: str) -> None:
        """The name is not asked for: tests have no network."""

    monkeypatch.setattr(Webhooks, "check", fine)
    body = {**BODY, "webhook_url": "https://hooks.example/a", "webhook_secret": OWN, field: value}
    answer = await running.http.post("/session/start", json=body)
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["field"]) == (422, "invalid_request", field)
    assert value not in answer.text and "value" not in problem
