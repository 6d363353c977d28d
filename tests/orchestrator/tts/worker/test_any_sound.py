"""Phonemes and words on any sound: nothing is lost, all of it is covered, and a text that a voice chokes on harms no other."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import worker_pipe
from orchestrator.tts.worker.__main__ import _answer
from orchestrator.tts.worker.espeak import CLOSURE_MS, _spans, close_stops
from orchestrator.tts.worker.synthesis import (
    LEAD_MS,
    PAUSE,
    PLAIN,
    SILENCE_DBFS,
    Cue,
    Manner,
    SpokenText,
    VoiceEntry,
    block_levels,
    counted,
    marked,
    merge,
    tile,
    trim,
    written,
)

RATE = 8000
GROUPS = ["a", "b", "p", "ʃ", "aː", "a\u0303", "ˈa", " ", " ˈp", ",", ".", "^", "$"]
"""As voices give them: a mark of length or nasality behind its sound, one of stress before it."""
SYMBOLS = st.lists(st.tuples(st.sampled_from(GROUPS), st.integers(1, 400)), max_size=20).map(
    lambda groups: [(symbol, length) for group, length in groups for symbol in group]
)


def following(symbols: list[tuple[str, int]]) -> list[Cue]:
    """One after the other, without a gap."""
    out, at = list[Cue](), 0
    for symbol, length in symbols:
        out.append((symbol, at, at + length))
        at += length
    return out


@settings(max_examples=80)
@given(SYMBOLS)
def test_merged_sounds_keep_every_letter_and_every_moment_up_to_the_last_sound(symbols: list[tuple[str, int]]) -> None:
    given_, merged = following(symbols), merge(following(symbols))
    sounds = [symbol for symbol, _ in symbols if symbol in "abpʃ"]
    assert [c for symbol, _, _ in merged for c in symbol if c in "abpʃ"] == sounds
    assert all(a[2] == b[1] for a, b in pairwise(merged))
    assert all(symbol == PAUSE or any(c in "abpʃ" for c in symbol) for symbol, _, _ in merged)
    if merged:
        assert merged[0][1] == given_[0][1]
        rest = {symbol for symbol, start, _ in given_ if start >= merged[-1][2]}
        assert rest <= {"ˈ", " "}  # a mark with no sound behind it belongs to none


@settings(max_examples=80)
@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", PAUSE]), st.integers(-50, 300), st.integers(-50, 300)), max_size=12
    ).map(lambda cues: sorted((s, min(a, b), max(a, b)) for s, a, b in cues)),
    st.integers(0, 250),
)
def test_tiles_cover_every_sample_once(cues: list[Cue], samples: int) -> None:
    tiles = tile(cues, samples)
    covered = [at for _, start, end in tiles for at in range(start, end)]
    assert covered == list(range(samples))
    assert not any(a[0] == b[0] == PAUSE for a, b in pairwise(tiles))


@settings(max_examples=60)
@given(st.integers(0, 2000), st.integers(0, 2000), st.integers(0, 2000), SYMBOLS)
def test_trimming_takes_silence_only_and_moves_all_marks_alike(
    before: int, loud: int, after: int, symbols: list[tuple[str, int]]
) -> None:
    pcm = np.concatenate([np.zeros(before), np.full(loud, 4000), np.zeros(after)]).astype(np.int16)
    cues = following(symbols)
    speech = trim(pcm, RATE, cues, cues)
    assert np.count_nonzero(speech.pcm) == loud
    lead, block = RATE * LEAD_MS // 1000, RATE // 200
    if not loud:
        assert len(speech.pcm) == 0 and speech.cues == speech.words == []
        return
    first = int(np.flatnonzero(speech.pcm)[0])
    assert min(before, lead) <= first <= min(before, lead + block)
    assert len(speech.pcm) - first - loud <= min(after, lead + block)
    assert sum(end - start for _, start, end in speech.cues) == (len(speech.pcm) if cues else 0)
    by = first - before
    assert [start for _, start, _ in speech.words] == [min(max(0, s + by), len(speech.pcm)) for _, s, _ in cues]


@settings(max_examples=60)
@given(SYMBOLS, st.integers(0, 10**6))
def test_a_stop_takes_of_the_sound_before_it_and_of_nothing_else(symbols: list[tuple[str, int]], seed: int) -> None:
    cues = following(symbols)
    pcm = np.random.default_rng(seed).integers(-30, 31, cues[-1][2] if cues else 0).astype(np.int16)
    moved = close_stops(cues, pcm, RATE)
    assert [symbol for symbol, _, _ in moved] == [symbol for symbol, _, _ in cues]
    assert all(a[2] == b[1] for a, b in pairwise(moved))
    for (symbol, start, end), (_, was, ended) in zip(moved, cues, strict=True):
        assert start <= was and (start == was or symbol[:1] in "pb") and end <= ended
        assert was - start <= RATE * CLOSURE_MS // 1000 + RATE // 200 and start <= end


@given(st.lists(st.tuples(st.integers(-3, 30), st.integers(0, 500)), max_size=12))
@settings(max_examples=60)
def test_marked_words_put_together_are_the_text(marks: list[tuple[int, int]]) -> None:
    text = "of the night, and so on"
    placed = marked(text, sorted(marks, key=lambda mark: mark[1]), 500)
    assert "".join(word for word, _, _ in placed) == (text if placed else "")
    assert all(a[2] <= b[2] and a[1] <= b[1] for a, b in pairwise(placed))
    assert bool(placed) == any(0 <= character < len(text) for character, _ in marks)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=8), SYMBOLS)
def test_counted_words_come_in_their_order_on_sounds_that_are_there(
    counts: list[int], symbols: list[tuple[str, int]]
) -> None:
    cues = following(symbols)
    words = [(f"w{n} ", count) for n, count in enumerate(counts)]
    placed = counted(words, cues)
    starts = {start for symbol, start, _ in cues if symbol in "abpʃ"}
    if not starts or not sum(counts):
        assert placed == []
        return
    assert [word for word, _, _ in placed] == [word for word, _ in words]
    assert all(start in starts for _, start, _ in placed)
    assert all(a[1] <= b[1] and a[2] == b[1] for a, b in pairwise(placed)) and placed[-1][2] == cues[-1][2]


def test_each_phoneme_of_espeak_lasts_until_the_next_and_marks_of_languages_are_none() -> None:
    events = [("h", 0), ("(en)", 50), ("ə", 50), ("", 120), ("l", 120), ("oʊ", 160)]
    assert _spans(events, 300) == [("h", 0, 50), ("ə", 50, 120), ("l", 120, 160), ("oʊ", 160, 300)]
    assert _spans([], 300) == [] and _spans([("a", 300)], 300) == []


def test_levels_are_in_decibels_of_full_scale_and_the_last_block_is_padded() -> None:
    levels = block_levels(np.concatenate([np.full(40, 32767), np.full(20, 3277)]).astype(np.int16), 40)
    assert levels == pytest.approx([0.0, -20 - 3.01], abs=0.01)
    assert block_levels(np.zeros(40, np.int16), 40)[0] < SILENCE_DBFS - 40
    assert written("") == written("  \n") == []


class Engine:
    """A voice that speaks a tone, and chokes on a text."""

    provider = "fake"
    loaded, loads = 1, 2

    def voices(self) -> list[VoiceEntry]:
        return []

    def speak(self, text: str, name: str, manner: Manner = PLAIN) -> SpokenText:
        if text == "choke":
            raise RuntimeError("a secret sentence")
        if text == "endless":
            return SpokenText(np.zeros(worker_pipe.PAYLOAD_LIMIT, np.int16), RATE, [])
        return SpokenText(np.array([1, -2], np.int16), RATE, [(name, 0, 2)], [(text, 0, 2)])


@pytest.mark.parametrize(
    ("voice", "text", "header", "pcm"),
    [
        (
            "fake:joe",
            "hi",
            {"id": 7, "sample_rate": RATE, "cues": [["joe", 0, 2]], "words": [["hi", 0, 2]], "loaded": 1, "loads": 2},
            b"\1\0\xfe\xff",
        ),
        ("fake:joe", "choke", {"id": 7, "error": "RuntimeError"}, b""),
        ("fake:joe", "endless", {"id": 7, "error": "FramingError"}, b""),
        ("other:joe", "hi", {"id": 7, "error": "KeyError"}, b""),
        ("joe", "hi", {"id": 7, "error": "KeyError"}, b""),
    ],
)
def test_each_request_has_its_answer_and_an_error_tells_nothing_of_the_text(
    voice: str, text: str, header: dict[str, object], pcm: bytes
) -> None:
    message = _answer({"fake": Engine()}, 7, voice, text, PLAIN)
    head, payload = worker_pipe.lengths(message[: worker_pipe.LENGTHS.size])
    assert worker_pipe.decode_header(message[worker_pipe.LENGTHS.size :][:head]) == header
    assert message[worker_pipe.LENGTHS.size + head :] == pcm and payload == len(pcm)
