"""Speech that is recognised at its pauses, in the environment of livekit-agents: what comes after a pause makes it void."""

from __future__ import annotations

import json
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
import asyncio, json, sys
from livekit import rtc
from livekit.agents import APIConnectionError, stt
from livekit.agents.stt import SpeechEventType
from livekit.agents.vad import VADEvent, VADEventType as T
from orchestrator.conversation.worker import room_agent
from orchestrator.conversation.worker.room_agent import RoomAgent

WINDOW = 512

def event(kind, probability=0.0):
    window = rtc.AudioFrame(bytes(2 * WINDOW), 16000, 1, WINDOW)
    return VADEvent(type=kind, samples_index=0, timestamp=0, silence_duration=0.25, speech_duration=1, frames=[window] * 9,
                    probability=probability)

TAKEN = asyncio.Event()

class Early(room_agent.EarlyRecognition):
    def start(self, wanted):
        super().start(wanted)
        TAKEN.set()
    def take(self, event):
        begun = super().take(event)
        TAKEN.set()
        return begun
    def end(self):
        TAKEN.set()
        return super().end()

room_agent.EarlyRecognition = Early

class Detector:  # windows of one letter each: s speech, . silence, < start, > end; at _ recognitions get their answers
    def __init__(self, script, answered):
        self.script, self.answered = script, answered
        TAKEN.set()
    def __aiter__(self):
        return self
    async def __anext__(self):
        await TAKEN.wait()  # the window before: they come one after the other
        while self.script:
            letter = self.script.pop(0)
            if letter != "_":
                TAKEN.clear()
            if letter in "<>":
                return event(T.START_OF_SPEECH if letter == "<" else T.END_OF_SPEECH)
            if letter in "s.":
                return event(T.INFERENCE_DONE, 0.9 if letter == "s" else 0.1)
            self.answered.set()
            asked = [task for task in asyncio.all_tasks() if task.get_name() == "early-recognition"]
            await asyncio.gather(*asked, return_exceptions=True)
            self.answered.clear()
        raise StopAsyncIteration

class Recogniser:
    def __init__(self, answered, fails):
        self.asked, self.cancelled, self.answered, self.fails = [], 0, answered, fails
    async def recognize(self, buffer):
        self.asked.append(round(sum(frame.duration for frame in buffer), 3))
        try:
            await self.answered.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.fails: raise APIConnectionError()
        text = f"words {len(self.asked)}"
        return stt.SpeechEvent(stt.SpeechEventType.FINAL_TRANSCRIPT, alternatives=[stt.SpeechData("en", text)])

class Session:
    agent_state = "listening"

class Agent(RoomAgent):
    session = Session()

class Floor:
    def __init__(self):
        self.settled = []
    async def settle(self, text):
        self.settled.append(text)
        return text

async def recognised(script, wanted=True, speaking=False, fails=False):
    agent, answered = Agent(instructions=""), asyncio.Event()
    recogniser = Recogniser(answered, fails)
    agent.floor, agent.recognises_early = Floor(), wanted
    Session.agent_state = "speaking" if speaking else "listening"
    found = []
    async for each in agent._recognised(recogniser, Detector(list(script), answered)):
        if each.type is SpeechEventType.START_OF_SPEECH: answered.clear()
        if each.type is SpeechEventType.END_OF_SPEECH: answered.set()
        if each.alternatives:
            found.append([each.type.value, each.alternatives[0].text])
    return found, recogniser.asked, recogniser.cancelled, agent.floor.settled

async def main():
    json.dump([await recognised(script, **given) for script, given in json.load(sys.stdin)], sys.stdout)

asyncio.run(main())
"""
WINDOW_S = 0.032
SILENCE_S = 0.15
"""That is added to a recording which was broken off."""


CASES: dict[str, tuple[str, dict[str, bool]]] = {
    "pause": ("ss<ssss..__......>", {}),
    "goes on": ("ss<ss..__s..s..__......>", {}),
    "short pauses": ("ss<ss.ss.ss..__......>", {}),
    "late": ("ss<ss..>", {}),
    "not wanted": ("ss<ssss..__......>", {"wanted": False}),
    "avatar speaks": ("ss<ssss..__......>", {"speaking": True}),
    "fails": ("ss<ssss..__......>ss<ss..__.....>", {"fails": True}),
    "long": ("ss<" + "s" * 320 + "..__......>ss<ss..__......>", {}),
}
"""One letter a window of the detector, see `Detector`."""
Result = tuple[list[list[str]], list[float], int, list[str]]
"""Transcripts with their kinds, seconds of each recording, how many recognitions were cancelled, what was settled."""
PREFLIGHT, FINAL = "preflight_transcript", "final_transcript"


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    """All in one process: livekit-agents is imported for seconds."""
    environment = bare_environment(path=(str(PLUGIN), str(ROOT)))
    command = [warm_python.path(), "-c", PROGRAM]
    given = json.dumps(list(CASES.values())).encode()
    done = subprocess.run(command, input=given, env=environment, stdout=-1, timeout=NEVER_S, check=True)
    return dict(zip(CASES, (tuple(each) for each in json.loads(done.stdout)), strict=True))


def test_it_is_recognised_at_the_second_silent_window_and_that_is_its_transcript(results: dict[str, Result]) -> None:
    found, asked, cancelled, settled = results["pause"]
    assert found == [[PREFLIGHT, "words 1"], [FINAL, "words 1"]] and settled == ["words 1"] and not cancelled
    assert asked == [pytest.approx(8 * WINDOW_S + SILENCE_S, abs=0.002)], "two windows before the start, too"


def test_speech_that_goes_on_makes_a_transcript_void_and_cancels_what_is_under_way(results: dict[str, Result]) -> None:
    found, asked, cancelled, settled = results["goes on"]
    assert found == [[PREFLIGHT, "words 1"], [PREFLIGHT, "words 3"], [FINAL, "words 3"]]
    assert len(asked) == 3 and asked == sorted(asked) and cancelled == 1 and settled == ["words 3"]


def test_words_between_single_silent_windows_are_recognised_once(results: dict[str, Result]) -> None:
    found, asked, _, _ = results["short pauses"]
    assert [kind for kind, _ in found] == [PREFLIGHT, FINAL] and len(asked) == 1


def test_a_transcript_that_comes_after_the_end_is_the_final_one_alone(results: dict[str, Result]) -> None:
    found, asked, _, settled = results["late"]
    assert found == [[FINAL, "words 1"]] and len(asked) == 1 and settled == ["words 1"]


@pytest.mark.parametrize("case", ["not wanted", "avatar speaks"])
def test_where_it_is_not_wanted_it_is_recognised_when_it_is_over(results: dict[str, Result], case: str) -> None:
    found, asked, _, settled = results[case]
    assert found == [[FINAL, "words 1"]] and settled == ["words 1"]
    assert asked == [pytest.approx(9 * WINDOW_S, abs=0.002)], "the detector's own recording"


def test_what_cannot_be_recognised_is_nothing(results: dict[str, Result]) -> None:
    found, asked, _, settled = results["fails"]
    assert found == [] and len(asked) == 2 and settled == ["", ""]


def test_speech_of_more_than_ten_seconds_is_recognised_when_it_is_over(results: dict[str, Result]) -> None:
    found, asked, _, _ = results["long"]
    assert [kind for kind, _ in found] == [FINAL, PREFLIGHT, FINAL]
    whole, early = asked
    assert whole == pytest.approx(9 * WINDOW_S, abs=0.002)
    assert early == pytest.approx(19 * WINDOW_S + SILENCE_S, abs=0.002), "half a second before it, and no more"
