from __future__ import annotations

import pytest

from musetalk_agent.card_estimates import CARDS
from musetalk_tools.deploy.modal_settings import KILL_S, ModalSettings, ModalSettingsError


def test_what_was_read_is_read_again() -> None:
    given = {"AGENT_GPU": "H200", "AGENT_SNAPSHOT": "yes", "REDIS_URL": "redis://r", "ORCHESTRATOR_CONTAINERS": "4"}
    numbers = ModalSettings.read(given)
    assert ModalSettings.read(numbers.variables()) == numbers
    assert ModalSettings.read(ModalSettings().variables()) == ModalSettings()
    assert (numbers.sessions, numbers.cores, numbers.agent_snapshot) == (12, 5.6, True)


@pytest.mark.parametrize(
    ("card", "places"), [("L4", 1), ("A10", 1), ("L40S", 3), ("A100-80GB", 4), ("H100", 10), ("H200", 12), ("T4", 1)]
)
def test_places_and_cores_follow_from_the_model_of_the_card(card: str, places: int) -> None:
    numbers = ModalSettings.read({"AGENT_GPU": card})
    assert card in CARDS and numbers.sessions == places
    assert numbers.cores == pytest.approx(2 + 0.3 * places)
    assert ModalSettings.read({"AGENT_GPU": card, "AGENT_CPU": "7.5"}).cores == 7.5


def test_the_profile_counts_and_brings_its_weights() -> None:
    assert ModalSettings.read({"MUSETALK_PROFILE": "fast"}).sessions > ModalSettings().sessions
    assert ModalSettings.read({"MUSETALK_PROFILE": "fast"}).groups == ("face", "musetalk", "fast")
    assert ModalSettings.read({"AGENT_ENGINE": "auto"}).groups == ("face", "musetalk", "fast")
    assert ModalSettings().groups == ("face", "musetalk")


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
        ("AGENT_CPU", "lots", "a number"),
        ("MUSETALK_PROFILE", "best", "quality, lower, fast"),
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
