"""The code in the sound: what is missing and what comes twice is reported, to the tenth of a second."""

from __future__ import annotations

import numpy as np

from tests.net.coded import RATE, account, coded, decode, strand


def test_whole_speech_is_whole() -> None:
    heard = decode(5.0, coded(6))
    reported = account(heard, 6)
    assert (reported.lost, reported.doubled, reported.lost_ms, reported.doubled_ms) == ([], [], 0, 0)
    assert reported.longest_gap_s < 0.06
    assert [piece.number for piece in heard[:3]] == [0, 1, 2] and abs(heard[0].at - 5.0) < 0.05


def test_a_hole_and_a_repetition_are_reported() -> None:
    pcm = coded(6)
    torn = np.concatenate([pcm[: 2 * RATE], pcm[round(2.3 * RATE) : 4 * RATE], pcm[round(3.0 * RATE) :]])
    reported = account(decode(0.0, torn), 6)
    assert reported.lost == [20, 21, 22] and reported.lost_ms == 300
    assert reported.doubled == list(range(30, 38))


def test_a_pause_is_a_gap_and_noise_is_nothing() -> None:
    pcm = coded(4)
    noise = np.random.default_rng(1).normal(0, 3000, RATE).astype(np.int16)
    paused = np.concatenate([pcm[:RATE], np.zeros(RATE // 2, np.int16), pcm[RATE:], noise])
    reported = account(decode(0.0, paused), 4)
    assert reported.lost == [] and abs(reported.longest_gap_s - 0.5) < 0.05 and abs(reported.gap_at - 0.7) < 0.05


def test_blocks_are_joined_until_they_stop_coming() -> None:
    pcm = coded(2)
    blocks = [(10 + (at + 160) / RATE, pcm[at : at + 160]) for at in range(0, len(pcm), 160)]
    later = [(at + 3, block) for at, block in blocks]
    runs = list(strand(blocks + later))
    assert [round(begun, 3) for begun, _ in runs] == [10.0, 13.0] and all(len(run) == 2 * RATE for _, run in runs)
