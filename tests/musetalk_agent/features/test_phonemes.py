"""Symbols, classes and what each asks of the mouth; and timed symbols that become spans without gap, overlap or loss."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from musetalk_agent.features.phonemes import (
    ARTICULATION,
    CLASSES,
    CLOSURE,
    HOLD,
    JAW,
    LIP_TUCKS,
    LIPS_MEET,
    ROUNDING,
    SILENCE,
    TABLE,
    TUCK,
    WIDTH,
    CueTrack,
    classes_of,
    spans,
)
from musetalk_agent.media_types import Cue


def names(symbol: str) -> list[str]:
    """The classes of a symbol, by name."""
    return [CLASSES[number] for number in classes_of(symbol)]


@pytest.mark.parametrize(
    ("symbol", "classes"),
    [
        ("p", ["pb"]),
        ("b", ["pb"]),
        ("m", ["m"]),
        ("f", ["fv"]),
        ("θ", ["th"]),
        ("ɾ", ["td"]),
        ("ŋ", ["kg"]),
        ("ɡ", ["kg"]),
        ("g", ["kg"]),
        ("ɹ", ["r"]),
        ("ə", ["schwa"]),
        ("ɜː", ["schwa"]),
        ("ˈiː", ["i"]),
        ("t͡ʃ", ["sh"]),
        ("tʃ", ["sh"]),
        ("ts", ["sz"]),
        ("aɪ", ["ae", "ih"]),
        ("oʊ", ["o", "u"]),
        ("eə", ["e", "schwa"]),
        ("ks", ["kg", "sz"]),
        ("pʰ", ["pb"]),
        ("n̩", ["n"]),
        ("tʲ", ["td"]),
        ("a\u0303", ["ae"]),
        ("\u00e3", ["ae"]),  # the same in one character
        ("\u1ebd", ["e"]),
        ("ç", ["kg"]),
        ("", ["sil"]),
        (" ", ["sil"]),
        ("ˈ", ["sil"]),
        ("_", ["sil"]),
        (".", ["sil"]),
        ("1", ["sil"]),
        ("Ω", ["schwa"]),
        ("你", ["schwa"]),
    ],
)
def test_a_symbol_has_the_classes_that_its_sounds_have_on_the_lips(symbol: str, classes: list[str]) -> None:
    assert names(symbol) == classes


@given(st.text(max_size=12))
def test_whatever_is_written_has_a_class(symbol: str) -> None:
    found = classes_of(symbol)
    assert found and all(0 <= number < len(CLASSES) for number in found)


@given(
    st.sampled_from("pbmfvθtnlszʃkɹwhjiɪeæɑʌɔouə"), st.sampled_from(["", "ˈ", "ˌ"]), st.sampled_from(["", "ː", "ʲ", "̃"])
)
def test_marks_change_no_class(sound: str, before: str, after: str) -> None:
    assert classes_of(before + sound + after) == classes_of(sound)


def test_what_the_classes_ask_of_the_mouth_is_what_phonetics_says() -> None:
    jaw = {name: float(TABLE[number, JAW]) for number, name in enumerate(CLASSES)}
    assert TABLE.shape == (25, len(ARTICULATION)) and HOLD.shape == (25,)
    assert not TABLE[SILENCE].any(), "at rest all is 0"
    assert jaw["a"] > jaw["ae"] > jaw["e"] > jaw["ih"] > jaw["i"] > jaw["u"], "open, mid and close vowels"
    assert jaw["sz"] < jaw["td"] < jaw["h"], "teeth together; tongue at the teeth; nothing in the way"
    wide, round_ = TABLE[:, WIDTH], TABLE[:, ROUNDING]
    assert CLASSES[int(wide.argmax())] == "i" and CLASSES[int(round_.argmax())] == "w"
    assert np.all(wide[round_ >= 0.4] < 0), "lips that are rounded are not spread"
    assert np.flatnonzero(TABLE[:, CLOSURE]).tolist() == sorted(LIPS_MEET)
    assert np.flatnonzero(TABLE[:, TUCK]).tolist() == [LIP_TUCKS]
    assert np.all((TABLE[:, [JAW, ROUNDING, CLOSURE, TUCK]] >= 0) & (TABLE[:, [JAW, ROUNDING, CLOSURE, TUCK]] <= 1))
    assert np.all(np.abs(wide) <= 1) and np.all((HOLD >= 0.1) & (HOLD <= 1)) and np.all(HOLD[list(LIPS_MEET)] == 1)


@pytest.mark.parametrize(
    ("timed", "spanned"),
    [
        ([], []),
        ([("p", 0, 100)], [("pb", 0, 100)]),
        ([("p", 100, 100), ("a", 100, 50)], []),
        ([("aɪ", 0, 100)], [("ae", 0, 50), ("ih", 50, 100)]),
        ([("aɪ", 0, 101)], [("ae", 0, 50), ("ih", 50, 101)]),
        ([("aɪ", 7, 8)], [("ih", 7, 8)]),
        ([("ˈ", 0, 30), ("a", 30, 100)], [("ae", 0, 100)]),
        ([("ˈ", 0, 30), ("ˌ", 30, 40), ("a", 40, 100)], [("ae", 0, 100)]),
        ([("a", 0, 60), ("ː", 60, 100)], [("ae", 0, 100)]),
        ([("a", 0, 60), ("ː", 70, 100)], [("ae", 0, 60)]),
        ([("ː", 0, 50), ("a", 50, 100)], [("ae", 50, 100)]),
        ([("a", 0, 50), ("", 50, 80), ("b", 80, 100)], [("ae", 0, 50), ("sil", 50, 80), ("pb", 80, 100)]),
    ],
)
def test_marks_with_a_time_of_their_own_belong_to_their_sound(
    timed: list[tuple[str, int, int]], spanned: list[tuple[str, int, int]]
) -> None:
    assert [(CLASSES[kind], start, end) for kind, start, end in spans(timed)] == spanned


SOUNDS = st.lists(
    st.tuples(st.sampled_from(["p", "a", "aɪ", "tʃ", "", ".", "ks", "oʊ"]), st.integers(0, 3000)), max_size=30
)


@given(SOUNDS, st.integers(0, 10**6))
def test_sounds_without_a_gap_become_spans_without_a_gap(sounds: list[tuple[str, int]], first: int) -> None:
    timed, at = [], first
    for symbol, length in sounds:
        timed.append((symbol, at, at + length))
        at += length
    spanned = spans(timed)
    assert sum(end - start for _, start, end in spanned) == at - first
    assert all(a[2] == b[1] for a, b in itertools.pairwise(spanned))
    assert all(start < end for _, start, end in spanned)
    assert [start for _, start, _ in spanned][:1] == ([first] if at > first else [])


RATE = 16_000
FRAME = RATE // 25


def track(*cues: tuple[str, int, int]) -> CueTrack:
    """Cues of a segment, given at once; times in milliseconds."""
    made = CueTrack()
    made.add([Cue(symbol, start * 16, end * 16) for symbol, start, end in cues])
    return made


def mouth(of: CueTrack, at_ms: float) -> NDArray[np.float32]:
    """The mouth of the frame around a moment."""
    middle = round(at_ms * 16)
    return of.articulation(middle - FRAME // 2, middle + FRAME // 2)


def asks(name: str) -> NDArray[np.float32]:
    """What a class asks of the mouth."""
    return np.asarray(TABLE[CLASSES.index(name)])


@pytest.mark.parametrize(("symbol", "name"), [("ɑ", "a"), ("i", "i"), ("s", "sz"), ("ʃ", "sh"), ("k", "kg")])
def test_in_the_middle_of_a_long_sound_the_mouth_is_its_own(symbol: str, name: str) -> None:
    np.testing.assert_allclose(
        mouth(track(("b", 0, 80), (symbol, 80, 400), ("b", 400, 480)), 240), asks(name), atol=1e-4
    )


@pytest.mark.parametrize("length_ms", [300, 1500, 3000, 20_000])
def test_a_sound_that_is_held_keeps_the_mouth_for_as_long_as_it_lasts(length_ms: int) -> None:
    """A vowel that is sung, and whatever came before it."""
    held = track(("b", 0, 80), ("ɑ", 80, 80 + length_ms), ("m", 80 + length_ms, 160 + length_ms))
    for part in (0.4, 0.6, 0.9):
        at = 80 + part * (length_ms - 200) + 100
        np.testing.assert_allclose(mouth(held, at), asks("a"), atol=0.02, err_msg=f"{part} of {length_ms} ms")


def test_a_pause_of_any_length_is_rest_and_known() -> None:
    paused = track(("ɑ", 0, 200), (".", 200, 5000), ("ɑ", 5000, 5200))
    for at in (500, 1300, 2600, 4700):
        assert not mouth(paused, at).any() and paused.covers(at * 16) and paused.silent(at * 16)


@pytest.mark.parametrize("symbol", ["p", "b", "m"])
@pytest.mark.parametrize("phase", [0, 160, 320, 639])
def test_lips_that_must_meet_meet_in_the_frame_of_the_sound_s_middle_and_in_no_far_one(symbol: str, phase: int) -> None:
    sounds = track(("ɑ", 0, 300), (symbol, 300, 360), ("ɑ", 360, 700))
    closures = []
    for frame in range(17):
        start = frame * FRAME - phase
        closures.append(float(sounds.articulation(start, start + FRAME)[CLOSURE]))
        if start <= 330 * 16 < start + FRAME:
            assert closures[-1] == 1.0
        if start + FRAME < 220 * 16 or start > 440 * 16:
            assert closures[-1] == 0.0, frame
    rises = [b - a for a, b in itertools.pairwise(closures)]
    assert closures.count(1.0) >= 1 and [r for r in rises if r] and max(map(abs, rises)) <= 1


def test_the_lip_tucks_for_f_and_meets_for_p_and_never_the_other_way_round() -> None:
    for symbol, has, lacks in (("f", TUCK, CLOSURE), ("v", TUCK, CLOSURE), ("p", CLOSURE, TUCK)):
        made = mouth(track(("ɑ", 0, 200), (symbol, 200, 260), ("ɑ", 260, 500)), 230)
        assert made[has] == 1.0 and made[lacks] == 0.0


def test_rounding_begins_before_the_vowel_and_is_no_earlier_than_lips_are_known_to_be() -> None:
    sounds = track(("s", 0, 300), ("u", 300, 500))
    early = [float(mouth(sounds, at)[ROUNDING]) for at in (170, 200, 240, 280, 400)]
    assert early[0] == 0.0 and 0 < early[1] < early[2] < early[3] < early[4] == pytest.approx(0.9, abs=0.01)


def test_a_sound_that_holds_firmly_yields_less_to_its_neighbour() -> None:
    """At the border of two sounds the mouth is nearer to the firmer one."""
    firm, loose = asks("sz")[JAW], asks("h")[JAW]
    at_border = mouth(track(("s", 0, 200), ("h", 200, 400)), 200)[JAW]
    assert abs(at_border - firm) < abs(at_border - loose)


def test_the_mouth_moves_without_jumps_between_sounds() -> None:
    sounds = track(("ɑ", 0, 200), ("i", 200, 400), ("s", 400, 500), ("ɑ", 500, 800))
    path = np.array([mouth(sounds, at) for at in range(100, 700, 2)])[:, [JAW, WIDTH]]
    assert np.abs(np.diff(path, axis=0)).max() < 0.07
    assert np.ptp(path[:, 0]) > 0.5, "it moves, though"


PHRASE = st.lists(
    st.tuples(st.sampled_from(["p", "ɑ", "f", "u", "s", ".", "aɪ", "w", "m"]), st.integers(20, 600)),
    min_size=1,
    max_size=12,
)


def timed(phrase: list[tuple[str, int]]) -> list[Cue]:
    """One after the other from the beginning, in samples."""
    cues, at = [], 0
    for symbol, length in phrase:
        cues.append(Cue(symbol, at, at + length * 16))
        at += length * 16
    return cues


def path(cues: list[Cue], until: int) -> NDArray[np.float32]:
    """The mouth of every frame up to a sample."""
    made = CueTrack()
    made.add(cues)
    return np.array([made.articulation(start, start + FRAME) for start in range(0, until, FRAME)])


@given(PHRASE, st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_the_order_in_which_cues_come_changes_nothing(phrase: list[tuple[str, int]], random: st.DataObject) -> None:
    cues = timed(phrase)
    end = cues[-1].end
    shuffled = list(cues)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # a random.Random
    one_by_one = CueTrack()
    for cue in shuffled:
        one_by_one.add([cue])
    want = path(cues, end)
    np.testing.assert_array_equal(path(shuffled, end), want)
    got = [one_by_one.articulation(start, start + FRAME) for start in range(0, end, FRAME)]
    np.testing.assert_array_equal(np.array(got), want)


@given(PHRASE, PHRASE)
@settings(max_examples=40)
def test_what_is_said_far_away_does_not_move_the_mouth(
    before: list[tuple[str, int]], after: list[tuple[str, int]]
) -> None:
    """A phrase has the same mouth alone and with another one a quarter of a second after it."""
    cues = timed(before)
    end = cues[-1].end
    later = [Cue(cue.phoneme, cue.start + end + 4000, cue.end + end + 4000) for cue in timed(after)]
    np.testing.assert_array_equal(path(cues + later, end), path(cues, end))


@given(PHRASE)
@settings(max_examples=40)
def test_every_component_keeps_its_range_and_every_moment_is_known(phrase: list[tuple[str, int]]) -> None:
    cues = timed(phrase)
    vectors = path(cues, cues[-1].end + RATE)
    assert np.all((vectors[:, [JAW, ROUNDING, CLOSURE, TUCK]] >= 0) & (vectors[:, [JAW, ROUNDING, CLOSURE, TUCK]] <= 1))
    assert np.all(np.abs(vectors[:, WIDTH]) <= 1) and vectors.dtype == np.float32
    made = CueTrack()
    made.add(cues)
    for cue in cues:
        for at in (cue.start, (cue.start + cue.end) // 2, cue.end - 1):
            assert made.covers(at) and made.silent(at) == (cue.phoneme == ".")
    assert not made.covers(cues[-1].end) and not made.covers(-1) and not made.silent(cues[-1].end + RATE * 9)


def test_without_cues_nothing_is_known_and_the_mouth_rests() -> None:
    empty = CueTrack()
    empty.add([])
    empty.add([Cue("ɑ", 500, 500), Cue("p", 500, 100)])
    assert not empty.covers(500) and not empty.silent(500) and not empty.articulation(0, FRAME).any()


def test_a_sound_that_was_found_closes_and_tucks_and_says_no_more() -> None:
    track, mouth = CueTrack(), np.array([0.4, 0.2, 0.1, 0.3, 0.0], np.float32)
    track.add([Cue("m", 3200, 4480, found=True), Cue("f", 6400, 7680, found=True), Cue("ɑ", 4480, 6400, found=True)])
    assert not track.covers(3800) and not track.silent(3800)
    closed, tucked, between = (track.pressed(mouth, at, at + 640) for at in (3520, 6720, 5120))
    assert closed.tolist() == [*mouth[:CLOSURE].tolist(), 1.0, 0.0] and tucked[TUCK] == 1.0
    assert (between == mouth).all() and mouth[CLOSURE] == np.float32(0.3), "the mouth that is given stays"
    assert tucked[CLOSURE] == np.float32(0.3), "what the network closes stays closed"


def test_sounds_that_were_found_leave_a_voice_its_own() -> None:
    spoken, both = CueTrack(), CueTrack()
    spoken.add([Cue("ɑ", 0, 1280)])
    both.add([Cue("m", 0, 640, found=True), Cue("ɑ", 0, 1280)])
    assert (both.articulation(0, 640) == spoken.articulation(0, 640)).all() and both.covers(640)
