"""The gate before the detector's events, in the environment of livekit-agents: words at a change of microphones are no echo."""

from __future__ import annotations

import ast
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
import sys
import numpy as np
from livekit import rtc
from livekit.agents.vad import VADEvent, VADEventType as T
from orchestrator.conversation.worker.gated_vad import VadGate

RATE, WINDOW = 16000, 512

def words(seed, seconds):
    # syllables with a pitch
    draw = np.random.default_rng(seed)
    out, at = np.zeros(round(seconds * RATE)), 0
    while at < len(out):
        length = round(draw.uniform(0.12, 0.25) * RATE)
        t = np.arange(length) / RATE
        pitch, loud = draw.uniform(100, 180), draw.normal(0, 1, 30)
        sound = sum(gain * np.sin(2 * np.pi * pitch * (n + 1) * t) for n, gain in enumerate(loud)) * np.hanning(length)
        out[at : at + length] += sound[: len(out) - at]
        at += length + round(draw.uniform(0.02, 0.08) * RATE)
    return out * 2500 / out.std()

class Played:
    def __init__(self, sound):
        self.sound = sound
    def between(self, begin_s, samples):
        numbers = round(begin_s * RATE) + np.arange(samples)
        inside = (numbers >= 0) & (numbers < len(self.sound))
        return np.where(inside, self.sound[np.clip(numbers, 0, len(self.sound) - 1)], 0.0)

says = np.zeros(7 * RATE)
says[RATE : 4 * RATE] = words(1, 3.0)  # the avatar, until second 4
heard = np.random.default_rng(2).normal(0, 8, len(says))
kind, length_s = sys.argv[1], float(sys.argv[2])
if kind == "person":
    begin = round(4.1 * RATE)
    heard[begin : begin + round(length_s * RATE)] += words(7, length_s)
else:  # the same microphone hears the loudspeaker, 0.2 s later
    late = round(0.2 * RATE)
    heard[late:] += 0.4 * says[:-late]
now, held = 0.0, []
gate = VadGate(Played(says), lambda: held.append(now), lambda: None, lambda: None, clock=lambda: now)
inside, loud, quiet, came = False, 0, 0, []
for number in range(len(heard) // WINDOW):
    window = heard[number * WINDOW : (number + 1) * WINDOW].astype(np.int16)
    now = (number + 1) * WINDOW / RATE
    if number == round((4.0 - length_s / 4) * RATE / WINDOW):
        gate.forget()  # the avatar is still heard, as this clock has it
        inside = False
    speech = bool(np.sqrt(np.mean(window.astype(float) ** 2)) > 150)
    loud, quiet = (loud + 1, 0) if speech else (0, quiet + 1)
    types = [T.INFERENCE_DONE]
    if not inside and loud >= 2:
        inside = True
        types.append(T.START_OF_SPEECH)
    elif inside and quiet >= 8:
        inside = False
        types.append(T.END_OF_SPEECH)
    for kind_of in types:
        sound = window if kind_of is T.INFERENCE_DONE else heard[: (number + 1) * WINDOW].astype(np.int16)
        frames = [rtc.AudioFrame(sound.tobytes(), RATE, 1, len(sound))]
        event = VADEvent(type=kind_of, samples_index=0, timestamp=now, silence_duration=0.25, speech_duration=0.5,
                         frames=frames, probability=float(speech), speaking=inside)
        for passed in gate.pass_on(event):
            if passed.type is not T.INFERENCE_DONE and now > 4.1:
                came.append((passed.type.value, round(sum(frame.duration for frame in passed.frames), 2)))
print(came, bool(held))
"""


def passed(kind: str, length_s: float) -> str:
    """What the gate lets through after the change, with the seconds of each recording; and whether it held the avatar's voice."""
    environment = bare_environment(path=(str(PLUGIN), str(ROOT)))
    command = [warm_python.path(), "-c", PROGRAM, kind, str(length_s)]
    return subprocess.run(command, env=environment, stdout=-1, timeout=NEVER_S, check=True).stdout.decode().strip()


@pytest.mark.parametrize("length_s", [0.5, 0.9])
def test_short_words_right_after_a_change_of_microphones_are_heard_whole(length_s: float) -> None:
    came, held = passed("person", length_s).rsplit(" ", 1)
    assert held == "True"
    (first, _), (last, recorded_s) = ast.literal_eval(came)
    assert (first, last) == ("start_of_speech", "end_of_speech")
    assert length_s + 0.5 <= recorded_s <= length_s + 1.0, "all of it, and half a second before it"


@pytest.mark.parametrize("length_s", [0.5, 0.9])
def test_the_avatars_last_words_in_the_new_microphone_are_nobodys(length_s: float) -> None:
    assert passed("echo", length_s) == "[] False"


WINDOWS = """
import sys
import numpy as np
from livekit import rtc
from livekit.agents.vad import VADEvent, VADEventType as T
from orchestrator.conversation.worker.gated_vad import VadGate

RATE, WINDOW = 16000, 512
draw = np.random.default_rng(1)
says = float(sys.argv[1]) * draw.normal(0, 3000, 5 * RATE)  # the avatar, which this microphone does not hear
AT = np.arange(WINDOW) / RATE
vowel = sum(2000 / n * np.sin(2 * np.pi * 130 * n * AT + n) for n in range(1, 20))

class Played:
    def between(self, begin_s, samples):
        return says[round(begin_s * RATE) :][:samples]

now, held, came = 0.0, [], []
gate = VadGate(Played(), lambda: held.append(number), lambda: None, lambda: None, clock=lambda: now)
for number in range(100):
    now, speech = (number + 1) * WINDOW / RATE, number >= 90
    window = (vowel if speech else draw.normal(0, 8, WINDOW)).astype(np.int16)
    frames = [rtc.AudioFrame(window.tobytes(), RATE, 1, WINDOW)]
    for kind in (T.INFERENCE_DONE, T.START_OF_SPEECH) if number == 90 else (T.INFERENCE_DONE,):
        event = VADEvent(type=kind, samples_index=0, timestamp=now, silence_duration=0, speech_duration=0.032,
                         frames=frames, probability=0.9 * speech, speaking=speech)
        came += [number - 90 for passed in gate.pass_on(event) if passed.type is T.START_OF_SPEECH]
print(came, [number - 90 for number in held[:1]])
"""


@pytest.mark.parametrize(("speaks", "window"), [(1, 0), (0, 1)])
def test_one_sure_window_holds_an_avatar_that_is_heard_and_speech_to_one_that_listens_needs_two(
    speaks: int, window: int
) -> None:
    environment = bare_environment(path=(str(PLUGIN), str(ROOT)))
    command = [warm_python.path(), "-c", WINDOWS, str(speaks)]
    done = subprocess.run(command, env=environment, stdout=-1, timeout=NEVER_S, check=True)
    assert done.stdout.decode().strip() == f"[{window}] [{window}]"
