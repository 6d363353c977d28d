from __future__ import annotations

import pytest

from musetalk_tools.deploy.modal_settings import CARDS, KILL_S, ModalSettings, ModalSettingsError


def test_what_was_read_is_read_again() -> None:
    given = {"AGENT_GPU": "H200", "AGENT_SNAPSHOT": "yes", "REDIS_URL": "redis://r", "ORCHESTRATOR_CONTAINERS": "4"}
    numbers = ModalSettings.read(given)
    assert ModalSettings.read(numbers.variables()) == numbers
    assert ModalSettings.read(ModalSettings().variables()) == ModalSettings()
    assert (numbers.sessions, numbers.agent_snapshot) == (CARDS["H200"], True)


def test_an_unknown_card_holds_few_and_a_given_number_wins() -> None:
    assert ModalSettings.read({"AGENT_GPU": "RTX-PRO-6000"}).sessions == 4
    assert ModalSettings.read({"AGENT_GPU": "L4", "AGENT_SESSIONS": "3"}).sessions == 3


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("AGENT_DRAIN_S", "28", "0 … 27"),
        ("AGENT_LINGER_S", "3601", "0 … 3600"),
        ("AGENT_CONTAINERS_MIN", "11", "0 … 10"),
        ("AGENT_SESSIONS", "many", "a whole number"),
        ("AGENT_SNAPSHOT", "perhaps", "true or false"),
        ("ORCHESTRATOR_CONTAINERS", "2", "needs REDIS_URL"),
    ],
)
def test_a_wrong_number_is_named(name: str, value: str, said: str) -> None:
    with pytest.raises(ModalSettingsError) as caught:
        ModalSettings.read({name: value})
    assert name in str(caught.value) and value in str(caught.value) and said in str(caught.value)


def test_an_agent_has_drained_before_modal_kills_it() -> None:
    assert ModalSettings().agent_drain_s < KILL_S
    assert ModalSettings().agent_idle_s > 14, "an orchestrator on Redis takes over within that"


def test_it_says_how_many_orchestrators_there_are() -> None:
    assert "would need REDIS_URL" in ModalSettings().how_many_orchestrators()
    assert "Up to 3" in ModalSettings(orchestrator_containers=3, redis_url="redis://r").how_many_orchestrators()
