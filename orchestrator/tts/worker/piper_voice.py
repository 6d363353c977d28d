"""One piper voice: a model with its phonemes' times, and a pace that scales them exactly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from piper.config import PiperConfig
from piper.voice import PiperVoice

from orchestrator.tts.worker.synthesis import (
    PLAIN,
    Cue,
    Manner,
    Pcm,
    SpokenText,
    count_sounds,
    counted,
    merge,
    shift,
    spoken_words,
    trim,
)

GAIN = 1.5
"""From the voice's own level, -24 dBFS RMS, to -20.5; one gain for all parts, or their loudness would jump."""
PEAK = 0.95
WARM_UP = "Hello."
"""A longer sentence after it made the next one no quicker, and took 0.5 CPU seconds of each start."""
PACE = "pace"
_BEGIN, _BLANK, _END = "^", "_", "$"


class PiperModel:
    """A loaded model of any piper voice. Loading takes 0.5 s and 250 MB (a `medium` voice).

    Args:
        model: the `.onnx` file; `config` is its `.onnx.json`.
        threads: that synthesise.

    Raises:
        OSError, ValueError, KeyError, and onnx's and onnxruntime's own errors: the files are no voice.
    """

    def __init__(self, model: Path, config: Path, *, threads: int) -> None:
        graph = onnx.load(str(model))
        self._timed = add_pace(graph)
        session = session_of(graph.SerializeToString(), threads, plans_memory=False)
        self.config = PiperConfig.from_dict(json.loads(config.read_text(encoding="utf-8")))
        self._voice = PiperVoice(session=session, config=self.config)

    @property
    def sample_rate(self) -> int:
        """Samples per second."""
        return int(self.config.sample_rate)

    def warm_up(self) -> None:
        """Speaks a word: what is loaded at the first sentence is there then."""
        self.speak(WARM_UP)

    def speak(self, text: str, manner: Manner = PLAIN, speaker: str | None = None) -> SpokenText:
        """Speaks `text`. Raises KeyError for a speaker that the model does not have."""
        number = None if speaker is None else self._speaker(speaker)
        rate, position = self.sample_rate, 0
        pieces: list[Pcm] = []
        cues: list[Cue] = []
        for phonemes in self._voice.phonemize(manner.spoken(text, "[[{}]]")):
            pcm, symbols = self._sentence(phonemes, manner.speed, number)
            cues += shift(symbols, position)
            position += len(pcm)
            pieces.append(pcm)
        if not pieces:
            return SpokenText(np.zeros(0, np.int16), rate, [])
        words = counted(spoken_words(text, manner, "[[{}]]", self._sounds), cues) if cues else []
        return trim(np.concatenate(pieces), rate, merge(cues), words)

    def _speaker(self, name: str) -> int:
        table = self.config.speaker_id_map or {str(number): number for number in range(self.config.num_speakers)}
        return int(table[name])

    def _sounds(self, word: str) -> int:
        return max(1, sum(count_sounds(phonemes) for phonemes in self._voice.phonemize(word)))

    def _sentence(self, phonemes: list[str], speed: float, speaker: int | None) -> tuple[Pcm, list[Cue]]:
        ids, symbols = self._numbered(phonemes)
        config = self.config
        length_scale = config.length_scale if self._timed else config.length_scale / speed
        inputs: dict[str, NDArray[np.generic]] = {
            "input": np.array([ids], np.int64),
            "input_lengths": np.array([len(ids)], np.int64),
            "scales": np.array([config.noise_scale, length_scale, config.noise_w_scale], np.float32),
        }
        if config.num_speakers > 1:
            inputs["sid"] = np.array([config.default_speaker_id if speaker is None else speaker], np.int64)
        if self._timed:
            inputs[PACE] = np.array(1 / speed, np.float32)
        audio, *durations = self._voice.session.run(None, inputs)
        sound = np.atleast_1d(audio.squeeze())
        gain = min(GAIN, PEAK / max(float(np.abs(sound).max()), 1e-6))
        pcm: Pcm = (sound * (gain * 32767)).astype(np.int16)
        if not self._timed:
            return pcm, []
        samples = (durations[0].reshape(-1) * config.hop_length).astype(np.int64)
        return pcm, spans(symbols, samples)

    def _numbered(self, phonemes: list[str]) -> tuple[list[int], list[tuple[str, int]]]:
        """The model's ids, and each symbol with how many ids it takes; a blank follows each, but not the last."""
        table = self.config.phoneme_id_map
        ids: list[int] = []
        symbols: list[tuple[str, int]] = []
        for symbol in (_BEGIN, *phonemes, _END):
            own = table.get(symbol)
            if own is None:
                continue  # a sound that the voice does not have
            ids += [*own, *table[_BLANK]]
            symbols.append((symbol, len(own)))
        return ids[: -len(table[_BLANK])], symbols


def session_of(model: bytes, threads: int, *, plans_memory: bool = True) -> onnxruntime.InferenceSession:
    """A session on the CPU; `plans_memory`: it finds out while it loads which of its buffers can share memory.

    For a piper voice that takes nine tenths of the loading, 2.5 of 3 CPU seconds, and saves nothing: onnxruntime takes back what is
    over anyway. The peak (581 MB for 1,000 sounds at once), the pace and every sample are the same without.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin while they wait would take the renderer's cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_reuse = plans_memory
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def add_pace(model: onnx.ModelProto, kind: str = "Ceil", name: str | None = None) -> bool:
    """Makes the frames of each id an output, and adds the input `pace`: a scalar that they are multiplied with.

    The model rounds every duration up, so its own `length_scale` makes speech at twice the speed 60 % as long instead of half.
    Here the sums of the rounded durations are scaled and rounded to the nearest: all of it is `pace` times as long, within half a
    frame, and no sound is off its place by more. The durations are the output of the one node of this kind (and `name`). False:
    they cannot be found, and nothing is changed.
    """
    found = [node for node in model.graph.node if node.op_type == kind and name in (None, node.name)]
    if len(found) != 1:
        return False
    output, made = found[0].output[0], []
    whole = f"{output}_whole"
    found[0].output[0] = whole
    for edge, exclusive in (("end", 0), ("start", 1)):
        made += [
            onnx.helper.make_node("CumSum", [whole, "pace_axis"], [f"pace_{edge}_sum"], exclusive=exclusive),
            onnx.helper.make_node("Mul", [f"pace_{edge}_sum", PACE], [f"pace_{edge}_scaled"]),
            onnx.helper.make_node("Round", [f"pace_{edge}_scaled"], [f"pace_{edge}"]),
        ]
    made.append(onnx.helper.make_node("Sub", ["pace_end", "pace_start"], [output]))
    at = list(model.graph.node).index(found[0]) + 1
    for offset, node in enumerate(made):
        model.graph.node.insert(at + offset, node)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(-1, np.int64), "pace_axis"))
    model.graph.input.append(onnx.helper.make_tensor_value_info(PACE, onnx.TensorProto.FLOAT, []))
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(output))
    return True


def spans(symbols: list[tuple[str, int]], durations: NDArray[np.int64], blanks: int = 1) -> list[Cue]:
    """Spans of `^`, the phonemes and `$` from the samples of each id; `symbols` have how many ids each takes.

    Between two of them the voice puts a blank, with a duration of its own. piper gives it to the sound before, and its labels
    then come 20 ms late (/p b/: 32). Given to the sound after, they are right: of the lags from -40 to 80 ms, 0 explains most
    of the spectrum (60 sentences, R² 0.66 against 0.61), and the middle of a /p/ is 6 ms (10th to 90th percentile -17 to 35)
    from the middle of its silence. Hence no further correction.
    """
    edges = np.concatenate(([0], np.cumsum(durations)))
    if len(durations) != sum(count for _, count in symbols) + blanks * (len(symbols) - 1):
        raise ValueError("the voice's alignment does not fit its phonemes")
    out: list[Cue] = []
    index = start = 0
    for symbol, count in symbols:
        end = int(edges[index + count])
        out.append((symbol, start, end))
        index, start = index + count + blanks, end
    return out
