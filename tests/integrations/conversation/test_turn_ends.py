"""When a turn is over although livekit-agents' detector doubts it, in the environment of livekit-agents."""

from __future__ import annotations

import json
import subprocess
from typing import Any

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
import asyncio, json, sys
from orchestrator.conversation.worker import turn_ends

turn_ends.ASKED_S, turn_ends.STATED_S = 0.01, 0.02

def stream_of(words):
    stream = turn_ends.TurnEnds("en", lambda: words).stream()
    stream._transport.run_inference = lambda request: None  # the detector itself
    return stream

async def judged(words, probability):
    stream = stream_of(words)
    prediction = stream.predict()
    stream._resolve_prediction(stream._request_id, probability)
    at_once = prediction.done()
    found = (await prediction).end_of_turn_probability
    await stream.aclose()
    return [found, at_once]

async def superseded():
    stream, looked = stream_of("What is your name?"), asyncio.Event()
    look = stream._look

    def last_look(waited_s, *request):
        look(waited_s, *request)
        if waited_s == turn_ends.STATED_S: looked.set()

    stream._look = last_look
    first = stream.predict()
    stream._resolve_prediction(stream._request_id, 0.1)
    second = stream.predict()
    await looked.wait()  # the first request's time is over, and is ignored
    open_still = not second.done()
    stream._resolve_prediction(stream._request_id, 0.9)
    found = [(await first).end_of_turn_probability, (await second).end_of_turn_probability, open_still]
    await stream.aclose()
    return found

async def main():
    judgements, whole = json.load(sys.stdin)
    json.dump([[await judged(*each) for each in judgements], await superseded(),
               [[turn_ends.is_whole(words, waited_s) for waited_s in (0.01, 0.02)] for words in whole]], sys.stdout)

asyncio.run(main())
"""
JUDGED = [("What is your name?", 0.1), ("I am well.", 0.1), ("I would like", 0.1), ("", 0.1), ("I would like", 0.9)]
WHOLE = {
    "What is your name?": [True, True],
    "Really?!": [True, True],
    "“Is that so?” ": [True, True],
    "你好吗？": [True, True],
    "My name is Ada.": [False, True],
    "我很好。": [False, True],
    "I would like to know, and...": [False, False],
    "I would like to know…": [False, False],
    "I would like": [False, False],
    "": [False, False],
}
"""Words, and whether they are a turn after a question's time and after a statement's."""


@pytest.fixture(scope="module")
def found() -> Any:
    """All of it in one process: livekit-agents is imported for seconds."""
    environment = bare_environment(path=(str(PLUGIN), str(ROOT)))
    given = json.dumps([JUDGED, list(WHOLE)]).encode()
    command = [warm_python.path(), "-c", PROGRAM]
    done = subprocess.run(command, input=given, env=environment, stdout=-1, timeout=NEVER_S, check=True)
    return json.loads(done.stdout)


def test_words_that_are_a_sentence_settle_the_detectors_doubt(found: Any) -> None:
    question, statement, broken_off, nothing, certain = found[0]
    assert question == [1.0, False] and statement == [1.0, False]
    assert broken_off == [0.1, False] and nothing == [0.1, False], "it is waited for longer"
    assert certain == [0.9, True], "what the detector believes needs no words"


def test_a_user_who_speaks_again_has_not_finished(found: Any) -> None:
    assert found[1] == [0.0, 0.9, True], "the first is settled by the one after it, and does not settle that"


def test_a_question_is_whole_sooner_than_a_statement_and_what_is_broken_off_never(found: Any) -> None:
    assert dict(zip(WHOLE, found[2], strict=True)) == WHOLE
