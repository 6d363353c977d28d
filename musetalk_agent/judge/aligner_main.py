"""`python -m musetalk_agent.judge.aligner_main`: finds the phones of an English text in its sound, with PocketSphinx.

A process of its own, because PocketSphinx keeps Python's lock for as long as it works. Standard input: a line of JSON, the
text's words as `[word, begin, end]` with their rough times, then int16 mono PCM at 16 kHz. Standard output: JSON, for each word
its phones as `[phone, begin, end]`, or null where they were not found; null alone where the text is not English. Times are seconds.
"""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.judge.pronunciation import guessed, read_dictionary, words_of

Phones = list[tuple[str, float, float]]
RoughWord = tuple[str, float, float]
Pcm = NDArray[np.int16]

_RATE, _FRAME_S = 16_000, 0.01
_BEAMS = (1e-40, 1e-60)
"""How unlikely a path may become before it is dropped. 1e-40 finds 69 of 70 sentences of GRID; a wider one takes several times as
long and is tried where the first finds nothing."""
_NOISE, _PADDING = 8.0, 4800
"""Standard deviation of noise that is laid over the sound, and samples of it after its end: the model never heard digital silence,
and a last word is not found without a pause after it."""
_KNOWN_LEAST = 0.6
"""Share of words that an English dictionary has. Below it the text is of another language."""
_WINDOW_LEAST, _WINDOW_MOST = 12, 30
"""Words that are looked for at once, as the time grows with their square: up to the longest pause among these."""
_HALVED_LEAST = 8
"""A window of so many words in which nothing is found is cut in two at its longest pause."""
_BESIDE = (0, 4)
"""Words on either side that are looked for too and not kept. Four take up an error of the rough times, where a window finds nothing
alone."""
_MARGIN_S = 0.3


def found_phones(words: list[RoughWord], pcm: Pcm) -> list[Phones | None] | None:
    """Each word's phones in the sound, none of a sign that is silent; None for words that are not found, and for all where the text
    is not English.

    Args:
        words: of the text, in order, with their rough begin and end in seconds.
        pcm: int16 `[n]`, mono, 16 kHz.
    """
    spec = find_spec("pocketsphinx")
    if spec is None or spec.origin is None:
        return None
    model = Path(spec.origin).parent / "model" / "en-us"
    read = [words_of(word) for word, _, _ in words]
    spoken = [word for each in read for word in each]
    known = read_dictionary(model / "cmudict-en-us.dict", spoken)
    if not spoken or sum(word in known for word in spoken) < _KNOWN_LEAST * len(spoken):
        return None
    phones = [[phone for word in each for phone in known.get(word) or guessed(word)] for each in read]
    found: list[Phones | None] = [None if each else [] for each in phones]
    windows = _windows(words)
    while windows:
        window = windows.pop()
        tries = (_window(model, words, phones, window, beside, pcm) for beside in _BESIDE)
        times = next((times for times in tries if times is not None), None)
        if times is not None:
            found[window.start : window.stop] = times
        elif len(window) >= _HALVED_LEAST:
            quarter = len(window) // 4
            cut = _longest_pause(words, range(window.start + quarter, window.stop - quarter))
            windows += [range(window.start, cut), range(cut, window.stop)]
    return found


def _windows(words: list[RoughWord]) -> list[range]:
    """Cuts the text where the pauses are."""
    windows, start = [], 0
    while len(words) - start > _WINDOW_MOST:
        end = _longest_pause(words, range(start + _WINDOW_LEAST, start + _WINDOW_MOST))
        windows.append(range(start, end))
        start = end
    return [*windows, range(start, len(words))]


def _longest_pause(words: list[RoughWord], among: range) -> int:
    """The word before which the longest pause is."""
    return max(among, key=lambda k: words[k][1] - words[k - 1][2])


def _window(
    model: Path, words: list[RoughWord], phones: list[list[str]], window: range, beside: int, pcm: Pcm
) -> list[Phones] | None:
    """The phones of the words of a window."""
    first, last = max(window.start - beside, 0), min(window.stop + beside, len(words))
    begin_s = max(words[first][1] - _MARGIN_S, _middle(words, first)) if first else 0.0
    end_s = min(words[last - 1][2] + _MARGIN_S, _middle(words, last)) if last < len(words) else len(pcm) / _RATE
    at = max(0, round(begin_s * _RATE))
    sound = _with_noise(pcm[at : round(end_s * _RATE)])
    row = [phone for each in phones[first:last] for phone in each]
    times = next((times for beam in _BEAMS if (times := _search(model, row, sound, beam)) is not None), None)
    if times is None:
        return None
    length_s, spans = len(pcm) / _RATE, iter(times)
    placed = [
        [
            (phone, min(at / _RATE + begin * _FRAME_S, length_s), min(at / _RATE + end * _FRAME_S, length_s))
            for phone, (begin, end) in zip(each, spans, strict=False)
        ]
        for each in phones[first:last]
    ]
    return placed[window.start - first : window.stop - first]


def _middle(words: list[RoughWord], k: int) -> float:
    """The middle between a word and the one before it, seconds."""
    return (words[k - 1][2] + words[k][1]) / 2


def _with_noise(pcm: Pcm) -> bytes:
    noise = np.random.default_rng(1).normal(0, _NOISE, len(pcm) + _PADDING)
    noise[: len(pcm)] += pcm
    return noise.clip(-32_768, 32_767).astype("<i2").tobytes()


def _search(model: Path, row: list[str], sound: bytes, beam: float) -> list[tuple[int, int]] | None:
    """Frames `[begin, end)` of each phone; None where no path through all of them is found."""
    from pocketsphinx import Decoder

    decoder: Any = Decoder(
        hmm=str(model / "en-us"), lm=None, dict=None, beam=beam, wbeam=beam, pbeam=beam, loglevel="FATAL"
    )
    # Each phone is a word: the library's second pass, which finds phones within words, fails on half of GRID's sentences.
    for phone in sorted(set(row)):
        decoder.add_word(f"_{phone}", phone, True)
    try:
        decoder.set_align_text(" ".join(f"_{phone}" for phone in row))
        decoder.start_utt()
        decoder.process_raw(sound, full_utt=True)
        decoder.end_utt()
    except RuntimeError:
        return None
    if decoder.hyp() is None:
        return None
    times = [(part.start_frame, part.end_frame + 1) for part in decoder.seg() if part.word.startswith("_")]
    return times if len(times) == len(row) else None


def main() -> None:
    """Reads one request, answers it, and ends."""
    source = sys.stdin.buffer
    words = [(str(word), float(begin), float(end)) for word, begin, end in json.loads(source.readline())]
    json.dump(found_phones(words, np.frombuffer(source.read(), "<i2")), sys.stdout)


if __name__ == "__main__":
    main()
