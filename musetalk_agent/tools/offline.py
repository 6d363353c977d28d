"""Settings for commands that run without the service."""

from __future__ import annotations

from pydantic import SecretStr

from musetalk_agent.settings import AgentSettings


def offline_settings() -> AgentSettings:
    """The agent's settings from the environment, without its key: nothing listens, so there is nothing to guard.

    Raises:
        pydantic.ValidationError: a variable has an impossible value.
    """
    return AgentSettings(agent_api_key=SecretStr("offline"))
