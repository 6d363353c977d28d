"""The avatar's own voice in the microphone, with made rooms and made voices."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from orchestrator.conversation.worker.echo import BANDS, RATE, Echo, EchoPath, _LevelHistory

Sound = npt.NDArray[np.float64]
SECONDS = 6
STEP = 512


def babble(seed: int, seconds: float, level: float) -> Sound:
    """Syllables: noise in four bands that move, 4 a second, with gaps. `level` is its RMS."""
    draw = np.random.default_rng(seed)
    out = np.zeros(round(seconds * RATE))
    at = 0
    while at < len(out):
        length = round(draw.uniform(0.1, 0.25) * RATE)
        spectrum = np.fft.rfft(draw.normal(0, 1, length))
        frequencies = np.fft.rfftfreq(length, 1 / RATE)
        formants = [draw.uniform(*band) for band in ((200, 900), (900, 2000), (2000, 3200), (3200, 5000))]
        shape = sum(np.exp(-(((frequencies - formant) / 400) ** 2)) for formant in formants)
        sound = np.fft.irfft(spectrum * shape, length) * np.hanning(length)
        part = out[at : at + length]
        part += (sound / max(sound.std(), 1e-9))[: len(part)]
        at += length + round(draw.uniform(0.02, 0.15) * RATE)
    return np.asarray(out * level / out.std())


def room(sound: Sound, seed: int, delay_s: float, level_db: float) -> Sound:
    """The sound after a loudspeaker, a room of 0.4 s and a way of `delay_s`."""
    draw = np.random.default_rng(seed)
    t = np.arange(round(0.4 * RATE)) / RATE
    response = 0.2 * draw.normal(0, 1, len(t)) * 10 ** (-3 * t / 0.4)
    response[0] = 1.0
    response /= np.sqrt(np.sum(response**2))
    wet = np.convolve(sound, response)[: len(sound)] * 10 ** (level_db / 20)
    late = round(delay_s * RATE)
    return np.concatenate([np.zeros(late), wet])[: len(sound)]


def follow(heard: Sound, played: Sound) -> tuple[EchoPath, Sound]:
    """The path after both, and for each step the share that was louder than the echo; not a number where that is not known."""
    path, shares = EchoPath(), []
    for at in range(0, len(heard) - STEP + 1, STEP):
        path.push(heard[at : at + STEP], played[at : at + STEP])
        share = path.louder(2)
        shares.append(np.nan if share is None else share)
    return path, np.array(shares)


@pytest.mark.parametrize(("delay_s", "level_db"), [(0.1, -10.0), (0.25, -15.0), (0.45, -20.0)])
def test_an_echo_is_known_and_is_no_person(delay_s: float, level_db: float) -> None:
    played = np.concatenate([np.zeros(RATE), babble(1, SECONDS - 1, 3000.0)])
    noise = np.random.default_rng(2).normal(0, 8, len(played))
    path, shares = follow(room(played, 3, delay_s, level_db) + noise, played)
    assert path.state is Echo.HEARD
    settled = shares[3 * RATE // STEP :]
    assert np.mean(settled >= 0.5) < 0.1, "hardly any step is louder than the echo"
    assert not any(np.all(settled[at : at + 5] >= 0.5) for at in range(len(settled) - 5)), "and never for 0.16 s"


def test_a_person_over_the_echo_is_heard() -> None:
    played = np.concatenate([np.zeros(RATE), babble(1, SECONDS - 1, 3000.0)])
    person = np.zeros(len(played))
    person[4 * RATE : 5 * RATE] = babble(5, 1.0, 3000.0)
    noise = np.random.default_rng(2).normal(0, 8, len(played))
    path, shares = follow(room(played, 3, 0.2, -15.0) + person + noise, played)
    assert path.state is Echo.HEARD
    spoken = shares[4 * RATE // STEP + 2 : 5 * RATE // STEP]
    assert np.mean(spoken >= 0.5) > 0.5, "but for the gaps between syllables"
    before = shares[3 * RATE // STEP : 4 * RATE // STEP]
    assert np.mean(before >= 0.5) < 0.1


def test_with_headphones_everything_is_a_person() -> None:
    played = np.concatenate([np.zeros(RATE), babble(1, SECONDS - 1, 3000.0)])
    noise = np.random.default_rng(2).normal(0, 8, len(played))
    for person in (np.zeros(2 * RATE), babble(7, 2.0, 3000.0)):  # whoever speaks meanwhile is not taken for an echo
        noise[3 * RATE : 5 * RATE] += person
        path, shares = follow(noise, played)
        assert path.state is Echo.NONE
        assert np.all(shares[: RATE // STEP] == 1.0) and np.all(shares[2 * RATE // STEP + 8 :] == 1.0)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("after_s", [0.1, 0.4, 0.9])
def test_a_person_who_begins_in_the_avatars_first_second_is_heard(after_s: float, seed: int) -> None:
    """Both begin after a silence, one a little after the other: that alone makes no echo."""
    played = np.concatenate([np.zeros(2 * RATE), babble(seed, 3.0, 3000.0)])
    heard = np.random.default_rng(2).normal(0, 8, len(played))
    begins = round((2 + after_s) * RATE)
    heard[begins : begins + 2 * RATE] += babble(20 + seed, 2.0, 3000.0)[: len(heard) - begins]
    path, shares = follow(heard, played)
    assert path.state is Echo.NONE
    first = np.flatnonzero(shares[begins // STEP :] >= 0.5)[0]
    assert np.isnan(shares[begins // STEP + 2]), "not at once: it may be the avatar"
    assert first * STEP / RATE < 1.1


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("delay_s", "level_db"), [(0.1, -6.0), (0.3, -12.0), (0.6, -18.0)])
def test_the_echo_of_the_avatars_first_second_is_no_person(delay_s: float, level_db: float, seed: int) -> None:
    played = np.concatenate([np.zeros(2 * RATE), babble(seed, 3.0, 3000.0)])
    noise = np.random.default_rng(2).normal(0, 8, len(played))
    path, shares = follow(room(played, seed, delay_s, level_db) + noise, played)
    assert path.state is Echo.HEARD
    known = shares[2 * RATE // STEP :]
    assert not any(np.all(known[at : at + 3] >= 0.5) for at in range(len(known) - 3))


def test_an_echo_that_is_heard_no_more_hides_nobody() -> None:
    played = np.concatenate([np.zeros(RATE), babble(1, 8.0, 3000.0)])
    echo = room(played, 3, 0.2, -12.0)
    echo[4 * RATE :] = 0.0  # headphones are put in
    heard = echo + np.random.default_rng(2).normal(0, 8, len(played))
    heard[7 * RATE : 8 * RATE] += babble(5, 1.0, 800.0)
    path, shares = follow(heard, played)
    assert path.state is Echo.NONE
    assert np.all(shares[7 * RATE // STEP :] == 1.0)


def test_nothing_is_known_before_the_avatar_has_spoken() -> None:
    path, _ = follow(babble(1, 2.0, 3000.0), np.zeros(2 * RATE))
    assert path.state is Echo.UNKNOWN and not path.sounding and path.louder(2) == 1.0


def test_bands_cover_speech() -> None:
    from orchestrator.conversation.worker import echo

    tones = np.stack([3000 * np.sin(2 * np.pi * hertz * np.arange(512) / RATE) for hertz in (200, 1000, 4000)])
    loudest = np.argmax(echo._levels(tones), axis=1)
    assert list(loudest) == sorted(loudest) and 0 <= loudest[0] < loudest[1] < loudest[2] < BANDS


def test_the_newest_levels_are_kept_however_they_come() -> None:
    history, size = _LevelHistory(3), 3
    for n in range(40):
        hops = 1 + n % size
        history.add(np.full(BANDS, float(n)) if hops == 1 else np.full((hops, BANDS), float(n)))
        came = [float(k) for k in range(n + 1) for _ in range(1 + k % size)][-size:]
        assert history.kept.shape == (size, BANDS)
        assert list(history.kept[-len(came) :, 0]) == came and (history.kept == history.kept[:, :1]).all()
