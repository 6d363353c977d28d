"""What interrupts the avatar: a person's speech (not a cough, a key, or the avatar's own voice), and more than "yes, go on"."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

RATE = 16_000
WINDOW = 512
"""Samples of a window: those of the voice activity detector."""
WINDOW_S = WINDOW / RATE
SPEECH_S = 0.064
"""So much of a person's speech holds the avatar's voice: no more than `_VOICED` needs."""
SURE = 0.7
"""Probability from which one window with a pitch is enough. Measured from the onset, without a room, on 30 utterances of piper and
espeak-ng, four times each: 64 ms median, 136 ms p95, 184 ms at most (without it: 87, 168, 216 ms). Forty coughs and forty series of
keys hold nothing, with either: windows with a pitch have 0.44 at most."""
ECHO_S = 0.192
"""The same where the microphone hears the avatar: its echo is at times a little louder than expected."""
CERTAIN_S = 1.0
"""A person who has spoken for so long has interrupted: an "mhm" takes 0.3 to 0.6 s."""
LIKELY = 0.5
"""Probability of speech from which a window counts, as the detector itself has it."""
_FORGET_S = 0.4
"""Windows that count and lie further apart do not belong together."""
_VOICED = 2
"""Windows with a pitch that speech has before it counts. A cough has one at most."""
_PITCH = 0.5
"""Likeness of a window with itself one pitch period later. Vowels 0.6 to 1, noise below 0.45."""
_PITCHES = slice(RATE // 400, RATE // 70)

Sound = npt.NDArray[np.float64]


def _likeness_of(power: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    correlation = np.fft.irfft(power)[: WINDOW // 2]
    return np.asarray(correlation / correlation[0])


_TAPER = np.hanning(WINDOW)
_TAPERED = np.maximum(_likeness_of(np.abs(np.fft.rfft(_TAPER, 2 * WINDOW)) ** 2), 0.15)


def voiced(window: Sound) -> bool:
    """The window has a pitch between 70 and 400 Hz."""
    power = np.abs(np.fft.rfft((window - np.mean(window)) * _TAPER, 2 * WINDOW)) ** 2
    if not np.any(power):
        return False
    return bool(np.max((_likeness_of(power) / _TAPERED)[_PITCHES]) >= _PITCH)


class SpeechEvidence:
    """Adds up what speaks for a person, until the detector says that the speech is over (`reset`).

    `needed_s`: how much of it is a person's speech. `takes_sure`: or one window with a pitch of which the detector is sure.
    """

    def __init__(self) -> None:
        self.speech_s = 0.0
        self.needed_s = SPEECH_S
        self.takes_sure = False
        self._sure = False
        self._voiced = 0
        self._idle_s = 0.0

    def add(self, probability: float, window: Sound, louder: float | None) -> None:
        """One window. `louder`: the share of it that is louder than an echo; None: that is not known yet, so it does not count."""
        if probability < LIKELY or louder is None or louder < 0.5:
            self._idle_s += WINDOW_S
            if self._idle_s > _FORGET_S:
                self.reset()
            return
        self._idle_s = 0.0
        self.speech_s += WINDOW_S
        if voiced(window):
            self._voiced += 1
            self._sure = self._sure or probability >= SURE

    def reset(self) -> None:
        """The speech is over."""
        self.speech_s, self._voiced, self._idle_s, self._sure = 0.0, 0, 0.0, False

    @property
    def person(self) -> bool:
        """A person speaks."""
        return (self.takes_sure and self._sure) or (self.speech_s >= self.needed_s - 1e-9 and self._voiced >= _VOICED)

    @property
    def certain(self) -> bool:
        """And says more than "mhm"."""
        return self.person and self.speech_s >= CERTAIN_S


_ANY = frozenset("m mm mmm mhm mmhm mmhmm mhmm hm hmm hmmm uhhuh aha ah oh uh um huh mh".split())
_BY_LANGUAGE = {
    "en": frozenset("yeah yes yep yup ok okay right sure cool wow nice great good really i see got it".split()),
    "de": frozenset("ja jaja jo genau ok okay gut klar stimmt richtig ach so aha echt wirklich".split()),
    "fr": frozenset("oui ouais ok okay bien bon d'accord voilà exactement ah vraiment".split()),
    "es": frozenset("sí si ya vale ok okay claro bien bueno ajá exacto".split()),
    "it": frozenset("sì si ok okay bene certo giusto esatto vero".split()),
    "pt": frozenset("sim ok okay bem certo claro exato pois tá".split()),
    "nl": frozenset("ja ok okay goed precies klopt juist inderdaad".split()),
}
WORDS_MAX = 3
"""More words than these are a turn, whatever they are."""
_NOISE = re.compile(r"\[[^\]]*\]|\([^)]*\)|\*[^*]*\*|♪")
"""How recognisers write what is not speech: `[COUGH]`, `(coughing)`, `*sigh*`."""
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")


def spoken(text: str) -> str:
    """The text without marks of noise; empty where nothing was said."""
    kept = _NOISE.sub(" ", text).strip()
    return kept if re.search(r"\w", kept) else ""


def is_backchannel(text: str, language: str) -> bool:
    """`text` is "mhm", "yeah, ok" and the like, or nothing at all: words that do not interrupt the avatar. `language` is BCP 47."""
    joined = re.sub(r"(?<=\w)-(?=\w)", "", spoken(text).lower().replace("’", "'"))
    words = _WORD.findall(joined)
    known = _ANY | _BY_LANGUAGE.get(language.split("-")[0].lower(), _BY_LANGUAGE["en"])
    return len(words) <= WORDS_MAX and all(word in known for word in words) and not re.search(r"\d", joined)
