"""The film's sound, the tickets, and cuts found frame by frame."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from musetalk_agent.avatars.shots import CutFinder, thumbnail
from musetalk_agent.renders.dub.background import DUCKED, Background, ducked, full, write_film_sound
from musetalk_agent.renders.dub.dub_job import TICKET_S, ticket_starts
from musetalk_agent.renders.dub.footage_scan import FootageScan
from musetalk_agent.renders.film_parts import STUDIO_601, FilmClock
from musetalk_agent.renders.sounds import Sound
from musetalk_agent.tools.audio_file import AudioFile
from tests.musetalk_agent.avatars.clips import face, moving
from tests.musetalk_agent.avatars.test_shots import other_shot

RATE = 16_000


def wav(path: Path, samples: np.ndarray, rate: int = RATE) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def read(sound: Sound) -> np.ndarray:
    return np.concatenate(list(sound.blocks()))


@pytest.mark.parametrize(
    ("film_s", "kept"), [(Fraction(3, 2), 24_000), (Fraction(1001, 1000), 16_016), (Fraction(9), 32_000)]
)
def test_the_voice_is_kept_as_it_is_until_the_film_ends(tmp_path: Path, film_s: Fraction, kept: int) -> None:
    voice = np.random.default_rng(1).integers(-9000, 9000, 2 * RATE)
    made = write_film_sound(Sound.open(wav(tmp_path / "v.wav", voice)), film_s, None, tmp_path / "film.wav")
    assert np.array_equal(read(made)[:, 0], voice[:kept])


@pytest.mark.parametrize("starts_s", [0.0, 0.5, -0.25])
def test_a_stem_lies_under_the_voice_at_its_time(tmp_path: Path, starts_s: float) -> None:
    voice, stem = np.full(RATE, 1000), np.arange(3 * RATE) % 5000
    background = Background(AudioFile.open(wav(tmp_path / "s.wav", stem)), starts_s, full)
    made = write_film_sound(Sound.open(wav(tmp_path / "v.wav", voice)), Fraction(2), background, tmp_path / "film.wav")
    late = round(starts_s * RATE)
    placed = np.concatenate([np.zeros(max(0, late), int), stem[max(0, -late) :]])[: 2 * RATE]
    wanted = placed + np.pad(voice, (0, RATE))
    assert np.array_equal(read(made)[:, 0], wanted)


def test_the_footage_is_lowered_under_speech_and_comes_back(tmp_path: Path) -> None:
    speech = np.zeros(200, bool)
    speech[50:100] = True
    levels = ducked(speech, 0.02)
    assert levels(np.array([1.0, 1.5, 1.99])) == pytest.approx(DUCKED)
    assert levels(np.array([0.2, 2.9, 5.0])) == pytest.approx(1.0)
    steps = np.diff(levels(np.arange(0, 4, 0.001)))
    assert np.abs(steps).max() < 0.01, "no click"


def test_a_stereo_background_makes_the_film_stereo(tmp_path: Path) -> None:
    stem = np.stack([np.full(48_000, 500), np.full(48_000, -500)], 1)
    background = Background(AudioFile.open(wav(tmp_path / "s.wav", stem, 48_000)), 0.0, full)
    made = write_film_sound(
        Sound.open(wav(tmp_path / "v.wav", np.zeros(RATE))), Fraction(2), background, tmp_path / "film.wav"
    )
    assert (made.rate, made.channels, made.samples) == (48_000, 2, 96_000)
    assert read(made)[1000].tolist() == [500, -500] and not read(made)[50_000:].any()


def look(cuts: list[int], frames: int, **arrays: Any) -> FootageScan:
    none: dict[str, Any] = {
        name: np.zeros(0, np.float32) for name in ("aperture", "width", "turn", "nod", "evidence", "frame", "number")
    }
    return FootageScan(
        clock=FilmClock.steady(25, frames),
        start=Fraction(0),
        size=(64, 48),
        aspect=Fraction(1),
        colours=STUDIO_601,
        cuts=np.array(cuts, np.int64),
        described=np.zeros((0, 1), np.float32),
        **{**none, **arrays},
    )


@pytest.mark.parametrize(
    ("cuts", "frames", "starts"),
    [
        ([0], 100, [0]),
        ([0, 75, 150], 500, [0]),
        ([0, 500, 650], 1000, [0, 500]),
        ([0], 1800, [0, 600, 1200]),
        ([0, 100], 1400, [0, 100, 533, 966]),
    ],
)
def test_tickets_are_whole_shots_where_these_are_short(cuts: list[int], frames: int, starts: list[int]) -> None:
    found = ticket_starts(look(cuts, frames))
    assert found == starts
    assert max(np.diff([*found, frames])) <= TICKET_S * 25


def cuts_of(pictures: list[np.ndarray]) -> list[int]:
    finder, found = CutFinder(), list[bool]()
    for number, picture in enumerate(pictures):
        found += finder.push(thumbnail(picture))
        assert number - len(found) < 6, "decisions come soon"
    found += finder.flush()
    assert len(found) == len(pictures)
    return [number for number, cut in enumerate(found) if cut]


def test_cuts_are_found_while_the_film_is_read() -> None:
    black, title = np.zeros((256, 256, 3), np.uint8), np.full((256, 256, 3), 120, np.uint8)
    title[100:120, 20:200] = 250
    film = [*[face()] * 9, *[other_shot()] * 9, *[black] * 5, *[face()] * 7, *[title] * 6]
    assert cuts_of(film) == [0, 9, 18, 23, 30]


def test_a_jump_within_one_framing_is_a_cut_and_a_head_that_moves_is_none() -> None:
    aside = np.array([[1.0, 0, 2], [0, 1, 1]])
    jumped = cv2.warpAffine(face(), aside, (256, 256), borderMode=cv2.BORDER_REPLICATE)
    film = [cv2.add(picture, (k % 2, k % 2, k % 2)) for k, picture in enumerate([*[face()] * 9, *[jumped] * 9])]
    assert cuts_of(film) == [0, 9]
    for step in (0.0, 1.0, 4.0, 12.0):
        assert cuts_of(moving(20, step=step)) == [0]


def test_neither_a_pan_nor_doubled_frames_are_cuts() -> None:
    wide = np.hstack([face(), other_shot(), face()[:, ::-1]])
    pan = [np.ascontiguousarray(wide[:, 8 * k : 8 * k + 256]) for k in range(60)]
    assert cuts_of(pan) == [0]
    assert cuts_of([frame for frame in pan for _ in range(2)]) == [0]
