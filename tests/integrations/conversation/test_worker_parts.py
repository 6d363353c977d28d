"""Small parts of a conversation's worker, in the environment of livekit-agents."""

from __future__ import annotations

import json
import subprocess
from itertools import pairwise
from typing import Any

import pytest

from orchestrator.conversation.conversations import PLUGIN, find_python
from orchestrator.conversation.embedded_model import ROOT
from orchestrator.worker_process import bare_environment
from tests.integrations.conversation import warm_python
from tests.waiting import NEVER_S

# `make test` brings the environment; a bare `pytest` may lack it
pytestmark = pytest.mark.skipif(
    find_python() is None, reason="no environment for conversations: run `tools/setup conversation`"
)
PROGRAM = """
import json
from types import SimpleNamespace
from livekit import rtc
from orchestrator.conversation.worker import models
from orchestrator.conversation.worker.early_sentences import Splitting
from orchestrator.conversation.worker.room_microphones import MicrophoneWatch

TEXT = "I have heard you, and here is my answer. It has a second sentence, which takes longer."
found = {"pieces": Splitting()(TEXT)}

for dialect in ("realtime", "openai"):
    asked = []
    session = SimpleNamespace(generate_reply=lambda instructions: asked.append(instructions), say=asked.append)
    models.greet(session, SimpleNamespace(llm=SimpleNamespace(dialect=dialect), greeting="Good morning."))
    found[dialect] = asked

def person(*muted):
    tracks = {str(n): SimpleNamespace(kind=rtc.TrackKind.KIND_AUDIO, muted=each) for n, each in enumerate(muted)}
    return SimpleNamespace(kind=rtc.ParticipantKind.PARTICIPANT_KIND_STANDARD, track_publications=tracks)

def state(*people):
    room = SimpleNamespace(remote_participants={str(n): one for n, one in enumerate(people)})
    source = SimpleNamespace(label="a microphone")
    return MicrophoneWatch(source, room, lambda _: None, lambda: 0)._state()

found["states"] = [state(), state(person()), state(person(True)), state(person(True), person(True, False))]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    environment = bare_environment(path=(str(PLUGIN), str(ROOT)))
    done = subprocess.run([warm_python.path(), "-c", PROGRAM], env=environment, stdout=-1, timeout=NEVER_S, check=True)
    parts: dict[str, Any] = json.loads(done.stdout)
    return parts


def test_of_a_text_that_comes_at_once_the_first_clause_is_a_piece_of_its_own(found: dict[str, Any]) -> None:
    pieces = found["pieces"]
    assert [text.strip() for text, _, _ in pieces] == [
        "I have heard you,",
        "and here is my answer.",
        "It has a second sentence, which takes longer.",
    ]
    assert all(before[2] <= after[1] for before, after in pairwise(pieces))


def test_a_realtime_model_is_asked_to_greet_and_another_voice_just_does(found: dict[str, Any]) -> None:
    assert found["openai"] == ["Good morning."]
    (asked,) = found["realtime"]
    assert asked.endswith("exactly these words: Good morning.")


def test_microphones_are_muted_where_none_is_open(found: dict[str, Any]) -> None:
    assert found["states"] == ["none", "none", "muted", "heard"]
