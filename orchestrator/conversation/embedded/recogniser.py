"""Speech to text on whisper tiny.en: short recordings without the half minute of silence that whisper otherwise reads."""

from __future__ import annotations

import zlib
from typing import IO

import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.audio import decode_audio, pad_or_trim
from faster_whisper.tokenizer import Tokenizer

RATE = 16_000
SHORT_S = 10.0
"""Longer recordings are read the usual way."""
WINDOW = 1500
"""Frames of 10 ms that a short recording is padded to. The usual 3000 take 3.3 times as long; with 1300 words change, with 600 it
repeats itself (measured on ten questions)."""
_LEAST_LOGPROB = -1.0
_MOST_REPETITION = 2.4
"""How far zlib compresses the text: faster-whisper's own bound, as that of the probability."""
_SILENCE = 0.6


class Recogniser:
    """One model; for one thread at a time.

    Args:
        model: the folder of its files.
        threads: how many it may use.
    """

    def __init__(self, model: str, threads: int) -> None:
        self._model = WhisperModel(model, device="cpu", compute_type="int8", cpu_threads=threads)
        self._tokenizer = Tokenizer(self._model.hf_tokenizer, False, task="transcribe", language="en")
        self._short(np.zeros(RATE, np.float32))  # the first one takes longer

    def transcribe(self, file: IO[bytes]) -> str:
        """The words of a recording in any format that FFmpeg reads; empty where there are none."""
        samples = decode_audio(file, sampling_rate=RATE)
        short = self._short(samples) if len(samples) <= SHORT_S * RATE else None
        return self._long(samples) if short is None else short

    def _short(self, samples: np.ndarray) -> str | None:
        """None when it is not sure."""
        frames = pad_or_trim(self._model.feature_extractor(samples), WINDOW)
        (found,) = self._model.model.generate(
            self._model.encode(frames),
            [[*self._tokenizer.sot_sequence, self._tokenizer.no_timestamps]],
            beam_size=1,
            max_length=120,
            return_scores=True,
            return_no_speech_prob=True,
        )
        text = self._tokenizer.decode(found.sequences_ids[0]).strip()
        if found.scores[0] < _LEAST_LOGPROB:
            return "" if found.no_speech_prob > _SILENCE else None
        return None if len(text) / len(zlib.compress(text.encode())) > _MOST_REPETITION else text

    def _long(self, samples: np.ndarray) -> str:
        segments, _ = self._model.transcribe(
            samples, language="en", beam_size=1, condition_on_previous_text=False, without_timestamps=True
        )
        return " ".join(segment.text.strip() for segment in segments)
