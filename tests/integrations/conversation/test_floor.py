"""Who may speak, in the environment of livekit-agents: what a person says while the avatar speaks ends its voice, or does not."""

from __future__ import annotations

import subprocess

import pytest

from orchestrator.conversation.conversations import PLUGIN, find_python
from orchestrator.conversation.embedded_model import ROOT
from orchestrator.worker_process import bare_environment
from tests.integrations.conversation import warm_python
from tests.waiting import NEVER_S

pytestmark = pytest.mark.skipif(
    find_python() is None, reason="no environment for conversations: run `tools/setup conversation`"
)
PROGRAM = """
import asyncio, sys
from types import SimpleNamespace
from orchestrator.conversation.worker.floor import Floor

text, state, held, remaining = sys.argv[1:]
acts = []

async def interrupt():
    acts.append("interrupt")

async def main():
    audio = SimpleNamespace(pause=lambda: acts.append("pause"), resume=lambda: acts.append("resume"))
    session = SimpleNamespace(
        agent_state=state, current_speech=object(), output=SimpleNamespace(audio=audio), interrupt=interrupt
    )
    floor = Floor(session, SimpleNamespace(remaining_s=float(remaining) if remaining else None), "en")
    if held:
        floor.hold()
    floor.quiet()
    print([await floor.settle(text), *acts])
    floor.close()

asyncio.run(main())
"""


def settled(text: str, *, state: str = "speaking", held: bool = True, remaining: str = "") -> str:
    """What counts as said, and what became of the voice. `remaining`: seconds of the reply that are still to be heard."""
    environment = bare_environment(path=(str(PLUGIN), str(ROOT)))
    command = [warm_python.path(), "-c", PROGRAM, text, state, "held" if held else "", remaining]
    return subprocess.run(command, env=environment, stdout=-1, timeout=NEVER_S, check=True).stdout.decode().strip()


@pytest.mark.parametrize("held", [True, False])
def test_mhm_interrupts_nothing_with_a_hold_or_without_one(held: bool) -> None:
    assert settled("Mhm.", held=held) == str(["", "pause", "resume"] if held else [""])


def test_words_interrupt_what_is_held() -> None:
    assert settled("Stop, please.") == str(["Stop, please.", "pause", "interrupt", "resume"])


@pytest.mark.parametrize("held", [True, False])
def test_yes_within_the_last_second_of_a_reply_answers_it(held: bool) -> None:
    assert settled("Yes.", held=held, remaining="0.5").startswith("['Yes.'")
    assert settled("Yes.", held=held, remaining="5").startswith("[''")


def test_yes_to_an_avatar_that_listens_is_a_turn() -> None:
    assert settled("Yes.", state="listening", held=False) == str(["Yes."])
