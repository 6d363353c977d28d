from __future__ import annotations

import numpy as np

from orchestrator.tts.worker.espeak import close_stops
from orchestrator.tts.worker.synthesis import LEAD_MS, merge, tile, trim

RATE = 16_000


def test_marks_join_their_sound_with_their_time() -> None:
    symbols = [("^", 0, 10), ("b", 10, 20), ("ˈ", 20, 25), ("ɑ", 25, 40), ("ː", 40, 50), (" ", 50, 60), ("m", 60, 70)]
    symbols += [(",", 70, 80), (" ", 80, 120), ("ɔ", 120, 130), ("̃", 130, 140), ("$", 140, 150)]
    assert merge(symbols) == [
        ("_", 0, 10),
        ("b", 10, 20),
        ("ˈɑː", 20, 50),
        ("m", 50, 70),
        ("_", 70, 120),
        ("ɔ̃", 120, 140),
        ("_", 140, 150),
    ]


def test_cues_tile_the_sound() -> None:
    assert tile([("a", -5, 10), ("b", 12, 20), ("_", 20, 25), ("c", 24, 40)], 30) == [
        ("a", 0, 10),
        ("_", 10, 12),
        ("b", 12, 20),
        ("_", 20, 25),
        ("c", 25, 30),
    ]
    assert tile([], 7) == [("_", 0, 7)]


def test_silence_is_trimmed_and_the_cues_move_with_the_sound() -> None:
    pcm = np.zeros(RATE, np.int16)
    pcm[8000:12000] = 5000
    speech = trim(pcm, RATE, [("_", 0, 8000), ("a", 8000, 12000), ("_", 12000, 16000)])
    lead = RATE * LEAD_MS // 1000
    assert len(speech.pcm) == 4000 + 2 * lead
    assert speech.cues == [("_", 0, lead), ("a", lead, lead + 4000), ("_", lead + 4000, 4000 + 2 * lead)]


def test_silence_alone_leaves_nothing() -> None:
    speech = trim(np.zeros(RATE, np.int16), RATE, [("a", 0, RATE)])
    assert len(speech.pcm) == 0 and speech.cues == []
    assert len(trim(np.zeros(0, np.int16), RATE, []).pcm) == 0


def test_a_stop_begins_with_its_silence() -> None:
    pcm = np.full(3200, 5000, np.int16)
    pcm[1600:2000] = 0
    assert close_stops([("ˈɑː", 0, 2000), ("p", 2000, 2200), ("ə", 2200, 3200)], pcm, RATE) == [
        ("ˈɑː", 0, 1600),
        ("p", 1600, 2200),
        ("ə", 2200, 3200),
    ]
    assert close_stops([("a", 0, 2000), ("m", 2000, 3200)], pcm, RATE)[1] == ("m", 2000, 3200)
