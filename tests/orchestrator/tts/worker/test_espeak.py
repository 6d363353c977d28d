"""espeak-ng itself, in this process: sound, phonemes and words that belong together."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from orchestrator.tts.worker.synthesis import Manner, Replacement

pytest.importorskip("espeakng_loader")
from orchestrator.tts.worker.espeak import EspeakEngine

pytestmark = pytest.mark.voice
TEXT = "Ada says hello to Bob."


@pytest.fixture(scope="module")
def engine() -> EspeakEngine:
    return EspeakEngine()


def test_its_words_and_phonemes_lie_within_the_sound_in_order(engine: EspeakEngine) -> None:
    said = engine.speak(TEXT, "en-us")
    assert np.abs(said.pcm).max() > 3000
    assert "".join(word for word, _, _ in said.words) == TEXT and len(said.words) == 5
    places = [(start, end) for _, start, end in said.words]
    assert all(before[1] == after[0] for before, after in pairwise(places)) and places[-1][1] == len(said.pcm)
    assert all(before[2] == after[1] for before, after in pairwise(said.cues)) and said.cues[-1][2] == len(said.pcm)
    assert [symbol for symbol, _, _ in said.cues].count("b") == 2, "of Bob"


def test_what_is_said_in_another_way_is_shown_as_it_is_written(engine: EspeakEngine) -> None:
    manner = Manner(replacements=(Replacement(0, 3, say="Augusta Ada"),))
    said = engine.speak(TEXT, "en-us", manner)
    assert len(said.pcm) > len(engine.speak(TEXT, "en-us").pcm)
    assert [word for word, _, _ in said.words] == ["Ada ", "says ", "hello ", "to ", "Bob."]


def test_a_faster_voice_is_shorter_and_a_language_it_lacks_is_refused(engine: EspeakEngine) -> None:
    assert len(engine.speak(TEXT, "en-us", Manner(speed=1.5)).pcm) < 0.8 * len(engine.speak(TEXT, "en-us").pcm)
    with pytest.raises(KeyError, match="xx"):
        engine.speak(TEXT, "xx")
