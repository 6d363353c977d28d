"""When the words and phones of an English text are heard, to a hundredth of a second.

PocketSphinx and its English model, both in the wheel of the extra `[align]`, look for the text's phones where `alignment` found its
letters. On 82 sentences of seven talkers of GRID a word begins 0.01 s beside its time in the median and 0.07 s at the 90th
percentile; letters alone are 0.06 and 0.40 s beside it. Without the extra, in other languages, and where the text is not what is
said, words keep the times of their letters.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from musetalk_agent.judge.alignment import NAMES, Alignment, grouped, placed_words, step_at
from musetalk_agent.media_types import FEATURE_RATE, Pcm

log = logging.getLogger(__name__)

Phone = tuple[str, float, float]
"""A phone of the CMU dictionary, or a word, with its begin and its end in seconds."""

_START_S, _PACE = 60.0, 2.0
"""The search takes 0.1 s for each second of sound on one core: one that takes these and twice the sound's length hangs."""
_SOUNDS = {
    "lips": "P B M",
    "teeth": "F V",
    "tongue": "T D N L TH DH",
    "hiss": "S Z SH ZH CH JH",
    "back": "K G NG HH Y R W",
    "vowel": "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW",
}
IPA = dict(
    pair.split()
    for pair in (
        "AA ɑ;AE æ;AH ə;AO ɔ;AW aʊ;AY aɪ;B b;CH tʃ;D d;DH ð;EH ɛ;ER ɚ;EY eɪ;F f;G ɡ;HH h;IH ɪ;IY i;JH dʒ;K k;L l;M m;N n;NG ŋ;"
        "OW oʊ;OY ɔɪ;P p;R ɹ;S s;SH ʃ;T t;TH θ;UH ʊ;UW u;V v;W w;Y j;Z z;ZH ʒ"
    ).split(";")
)
"""The phones of the CMU dictionary as `features.phonemes` knows them; AH, without its stress, as the schwa that it mostly is."""
_PLACE = {phone: NAMES.index(name) for name, phones in _SOUNDS.items() for phone in phones.split()}
_LIPS = NAMES.index("lips")
_EVIDENCE_LEAST = 0.0
"""How much likelier the mouth network finds the aligned sounds than speech at large, mean of the logarithms. 52 sentences of GRID
that were found with their own text: 0.03 and more. 108 with another's: 106 are not found, one has -1.03, one 0.52. Eight texts
along 16 s of an own voice that says another: at most -0.19, where its own has 0.9."""


@dataclass(frozen=True, slots=True)
class AlignedWord:
    """A word of a text and when it is heard.

    Args:
        text: as it was written.
        begin, end: seconds from the sound's first sample.
        phones: as `(phone of the CMU dictionary, begin, end)`; empty where only its neighbours are known.
    """

    text: str
    begin: float
    end: float
    phones: tuple[Phone, ...] = ()


def refined(aligned: Alignment, text: str, voice: Pcm) -> list[AlignedWord]:
    """The words of a text by their phones where those are found, else by their letters; blocks for 0.1 s a second of sound.

    Args:
        aligned: `alignment.align` of text and voice.
        text: any.
        voice: int16 `[n]`, mono, 16 kHz.
    """
    length_s = len(voice) / FEATURE_RATE
    words = placed_words(aligned, text, length_s)
    phones = _phones(words, voice)
    if phones is None or _evidence(aligned, phones) < _EVIDENCE_LEAST:
        return [AlignedWord(*word) for word in words]
    return _merged(words, phones, length_s)


def _merged(words: list[Phone], phones: list[list[Phone] | None], length_s: float) -> list[AlignedWord]:
    """Words with phones have their times; the others stay where their letters are, between their neighbours."""
    found: list[AlignedWord] = []
    at = 0.0
    for k, ((text, begin, end), each) in enumerate(zip(words, phones, strict=True)):
        if each:
            found.append(AlignedWord(text, each[0][1], each[-1][2], tuple(each)))
        else:
            most = next((later[0][1] for later in phones[k:] if later), length_s)
            found.append(AlignedWord(text, min(max(begin, at), most), min(max(end, at), most)))
        at = found[-1].end
    return found


def _evidence(aligned: Alignment, phones: list[list[Phone] | None]) -> float:
    """How well the phones agree with what the mouth network hears; see `_EVIDENCE_LEAST`. Minus infinity without any."""
    heard = grouped(aligned.phonemes)
    spoken = np.exp(heard[heard[:, NAMES.index("pause")] < np.log(0.5)])
    found = [
        heard[min(max(step_at((begin + end) / 2), 0), len(heard) - 1), _PLACE[phone]]
        - np.log(spoken[:, _PLACE[phone]].mean())
        for each in phones
        for phone, begin, end in each or ()
        if len(spoken)
    ]
    return float(np.mean(found)) if found else -np.inf


def lip_phones(words: list[AlignedWord]) -> list[tuple[float, float]] | None:
    """When /p b m/ are heard, seconds; None where no word's phones are known."""
    if not any(word.phones for word in words):
        return None
    return [(begin, end) for word in words for phone, begin, end in word.phones if _PLACE[phone] == _LIPS]


def _phones(words: list[tuple[str, float, float]], voice: Pcm) -> list[list[Phone] | None] | None:
    """What `aligner_main` finds, a process of its own; None where it finds nothing."""
    if not words or find_spec("pocketsphinx") is None:
        return None
    request = json.dumps(words).encode() + b"\n" + voice.astype("<i2").tobytes()
    command = [sys.executable, "-P", "-m", "musetalk_agent.judge.aligner_main"]
    limit_s = _START_S + _PACE * len(voice) / FEATURE_RATE
    try:
        done = subprocess.run(command, input=request, capture_output=True, timeout=limit_s, check=True)
        found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        log.warning("the aligner failed: words are aligned by their letters", extra={"reason": repr(error)})
        return None
    if found is None:
        return None
    return [None if each is None else [(str(p), float(b), float(e)) for p, b, e in each] for each in found]
