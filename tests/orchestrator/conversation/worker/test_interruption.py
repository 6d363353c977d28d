"""What counts as a person's speech."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.conversation.worker.interruption import RATE, WINDOW, SpeechEvidence, is_backchannel, spoken, voiced

AT = np.arange(WINDOW) / RATE
VOWEL = sum(2000 / n * np.sin(2 * np.pi * 130 * n * AT + n) for n in range(1, 20))
NOISE = np.random.default_rng(1).normal(0, 2000, WINDOW)


def test_a_vowel_has_a_pitch_and_noise_has_none() -> None:
    assert voiced(VOWEL) and voiced(0.6 * VOWEL + 0.3 * NOISE)
    assert not voiced(NOISE) and not voiced(np.zeros(WINDOW)) and not voiced(np.full(WINDOW, 900.0))


def test_speech_counts_after_two_windows_and_is_certain_after_a_second() -> None:
    evidence = SpeechEvidence()
    persons = []
    for _ in range(32):
        evidence.add(0.9, VOWEL, 1.0)
        persons.append((evidence.person, evidence.certain))
    assert persons.index((True, False)) == 1, "0.064 s"
    assert persons.index((True, True)) == 31, "1.0 s: the 32nd window ends after 1.024 s"
    evidence.reset()
    assert not evidence.person


def test_one_window_with_a_pitch_is_enough_where_the_detector_is_sure() -> None:
    evidence = SpeechEvidence()
    evidence.add(0.9, VOWEL, 1.0)
    assert not evidence.person, "an echo is at times louder than expected"
    evidence.takes_sure = True
    assert evidence.person and not evidence.certain
    evidence.reset()
    evidence.add(0.6, VOWEL, 1.0)
    evidence.add(0.9, NOISE, 1.0)
    assert not evidence.person
    evidence.add(0.9, VOWEL, 1.0)
    assert evidence.person


@pytest.mark.parametrize(
    ("probability", "window", "louder"),
    [
        (0.9, NOISE, 1.0),  # a cough, a key
        (0.3, VOWEL, 1.0),  # no speech to the detector
        (0.9, VOWEL, 0.0),  # the avatar's own voice
        (0.9, VOWEL, None),  # it may be the avatar's own voice
    ],
)
def test_what_is_no_person(probability: float, window: np.ndarray, louder: float | None) -> None:
    evidence = SpeechEvidence()
    evidence.takes_sure = True
    for _ in range(40):
        evidence.add(probability, window, louder)
        assert not evidence.person


def test_pieces_that_lie_apart_do_not_add_up() -> None:
    evidence = SpeechEvidence()
    for _ in range(10):
        for n in range(20):
            evidence.add(0.9 if n < 1 else 0.1, VOWEL, 1.0)
            assert not evidence.person


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Mhm.", "en"),
        ("mm-hmm", "en"),
        ("Uh-huh, yeah.", "en-US"),
        ("OK", "en"),
        ("I see.", "en"),
        ("Ja, genau!", "de"),
        ("D’accord.", "fr"),
        ("[COUGH]", "en"),
        ("(coughing) *sigh*", "en"),
        ("", "en"),
        ("...", "en"),
    ],
)
def test_words_that_say_go_on(text: str, language: str) -> None:
    assert is_backchannel(text, language)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Stop.", "en"),
        ("No.", "en"),
        ("Wait a moment", "en"),
        ("Yeah, but why?", "en"),
        ("yeah yeah yeah yeah", "en"),
        ("42", "en"),
        ("Ja", "en"),
        ("Warte", "de"),
        ("[laughs] what?", "en"),
    ],
)
def test_words_that_are_a_turn(text: str, language: str) -> None:
    assert not is_backchannel(text, language)


def test_marks_of_noise_are_no_words() -> None:
    assert spoken("[BLANK_AUDIO]") == "" and spoken(" (coughs) Hello. ") == "Hello." and spoken("♪") == ""
