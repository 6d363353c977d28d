"""The installed package `modal` has what `orchestrator.agents.modal_pool` calls, under these names and with these arguments."""

from __future__ import annotations

import inspect

import modal
import pytest
from modal._server import _post_session_start, _post_session_terminate, _ServerSessionsManager
from modal.types import ServerSessionCredentials

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.agents.modal_pool import HEADER, ModalSessions


def test_the_names_and_arguments_are_the_packages() -> None:
    assert list(inspect.signature(modal.Server.from_name).parameters)[:2] == ["app_name", "name"]
    server = modal.Server.from_name("app", "server")  # looks nothing up
    assert inspect.iscoroutinefunction(server.get_url.aio)
    start, terminate = server.sessions.start.aio, server.sessions.terminate.aio
    assert inspect.iscoroutinefunction(start) and inspect.iscoroutinefunction(terminate)
    assert inspect.signature(_ServerSessionsManager.start).parameters["idle_timeout"].default == 600
    assert list(inspect.signature(_ServerSessionsManager.terminate).parameters) == ["self", "token"]
    assert [*inspect.signature(ServerSessionCredentials).parameters] == ["session_id", "token"]
    assert issubclass(modal.exception.TimeoutError, modal.Error)


def test_the_headers_and_addresses_are_the_packages() -> None:
    reported = inspect.getsource(inspect.unwrap(_post_session_start)) + inspect.getsource(_ServerSessionsManager)
    for word in (
        f'"{HEADER}"',
        "/_modal/sessions/start",
        "x-modal-server-session-idle-timeout",
        "x-modal-server-session-token",
    ):
        assert word in reported, word
    assert "/_modal/sessions/terminate" in inspect.getsource(inspect.unwrap(_post_session_terminate))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (modal.exception.ExecutionError("Failed to start session: status 503 Service Unavailable"), "at_capacity"),
        (modal.exception.ExecutionError("Failed to start session: status 429 Too Many Requests"), "at_capacity"),
        (modal.exception.TimeoutError("timed out"), "at_capacity"),
        (TimeoutError("Failed to start session: timed out"), "at_capacity"),
        (modal.exception.ExecutionError("Failed to start session: status 401 Unauthorized"), "agent_unavailable"),
        (modal.exception.NotFoundError("App 'avatars' not found"), "agent_unavailable"),
        (modal.exception.AuthError("Token missing"), "agent_unavailable"),
        (OSError("no route"), "agent_unavailable"),
    ],
)
async def test_what_the_package_raises_gets_a_code(
    error: Exception, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        class sessions:
            class start:
                @staticmethod
                async def aio(idle_timeout: int) -> None:
                    raise error

        class get_url:
            @staticmethod
            async def aio() -> str:
                return "https://avatars.example/"

    monkeypatch.setattr("modal.Server.from_name", lambda app, name: Broken)
    with pytest.raises(ProblemError) as caught:
        await ModalSessions("avatars", "Agent").start(60)
    assert caught.value.code is ErrorCode(code) and caught.value.retry_after_s
    assert str(error) in caught.value.detail
