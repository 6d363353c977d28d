"""The voice of a text that names none: the text's language, among the voices that are there."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.tts.local import LocalSynthesizer
from orchestrator.tts.segmentation import GrowingText
from orchestrator.tts.synthesizer import PLAIN, SpeechChunk, SpeechOptions, VoiceInfo
from orchestrator.tts.voice_choice import (
    VoiceChoice,
    auto_voice,
    base,
    best_language,
    best_voice,
    candidates,
    says_nothing,
)
from orchestrator.tts.voices import Voices
from tests.fakes.stage import stage

JOE = VoiceInfo("piper:joe", "en-US", "piper", 22_050, "medium")
OTTO = VoiceInfo("piper:de_DE-otto-low", "de-DE", "piper", 22_050, "low")
VERA = VoiceInfo("piper:de_AT-vera-high", "de-AT", "piper", 22_050, "high")
ESPEAK = [
    VoiceInfo(f"espeak:{code}", code, "espeak", 22_050) for code in ("cmn", "de", "en", "en-gb", "en-us", "fr", "fr-be")
]
ALL = [JOE, OTTO, VERA, *ESPEAK]
WORDS = {"guten": "de", "bonjour": "fr", "good": "en", "hola": "es", "你好": "zh"}


class Voiced:
    """A provider that knows languages by their greetings."""

    def __init__(self, voices: list[VoiceInfo] = ALL) -> None:
        self.voices = voices
        self.asked: list[tuple[str, list[str]]] = []
        self.spoken: list[tuple[str, str]] = []

    async def open(self) -> None: ...

    async def aclose(self) -> None: ...

    def names(self) -> list[VoiceInfo]:
        return self.voices

    async def ranking(self, text: str, languages: list[str]) -> list[tuple[str, float]]:
        self.asked.append((text, languages))
        found = WORDS.get(text.lower().partition(" ")[0].strip(".,!！"), "")
        return [(language, 0.9 if language == found else 0.02) for language in languages]

    async def speak(self, text: str, voice: str, options: SpeechOptions = PLAIN) -> AsyncGenerator[SpeechChunk, None]:
        self.spoken.append((voice, text))
        yield SpeechChunk(bytes(2000), 22_050, ())


@pytest.mark.parametrize(
    ("language", "default", "voice"),
    [
        ("de", JOE, "piper:de_AT-vera-high"),
        ("de-DE", JOE, "piper:de_DE-otto-low"),
        ("de", OTTO, "piper:de_DE-otto-low"),
        ("de-AT", OTTO, "piper:de_AT-vera-high"),
        ("fr", JOE, "espeak:fr"),
        ("fr-BE", JOE, "espeak:fr-be"),
        ("zh-CN", JOE, "espeak:cmn"),
        ("en", JOE, "piper:joe"),
        ("en-GB", JOE, "piper:joe"),
        ("sv", JOE, None),
        ("sv", VoiceInfo("openai:nova", "mul", "openai", 24_000), "openai:nova"),
    ],
)
def test_the_best_voice_of_a_language(language: str, default: VoiceInfo, voice: str | None) -> None:
    found = best_voice(ALL, language, default)
    assert (found.name if found else None) == voice


def test_languages_and_when_a_text_says_nothing_of_its_own() -> None:
    assert candidates(ALL) == ["de", "en", "fr", "zh"] and base("cmn") == "zh" and base("nb-NO") == "no"
    assert says_nothing("OK!") and says_nothing("1 2 3 4") and not says_nothing("Hallo") and not says_nothing("好")
    assert (
        best_language([("de", 0.6), ("en", 0.3)], "en") == "en"
        and best_language([("de", 0.7), ("en", 0.2)], "en") == "de"
    )
    assert best_language([], "en") == "en" and best_language([("de", 0.4)], "sv") == "de"


@pytest.mark.parametrize(
    ("text", "voice", "default", "chosen"),
    [
        ("Guten Morgen.", None, None, VoiceChoice("piper:de_AT-vera-high", "de-AT", True)),
        ("Good morning.", None, None, VoiceChoice("piper:joe", "en-US", True)),
        ("你好！", "auto", None, VoiceChoice("espeak:cmn", "cmn", True)),
        ("Xyzzy plugh.", "auto", None, VoiceChoice("piper:joe", "en-US", True)),
        ("OK", None, None, VoiceChoice("piper:joe", "en-US", True)),
        ("[pause 1s] Guten Tag", None, None, VoiceChoice("piper:de_AT-vera-high", "de-AT", True)),
        ("Guten Morgen.", "piper:joe", None, VoiceChoice("piper:joe")),
        ("Guten Morgen.", None, "espeak:fr", VoiceChoice("espeak:fr")),
        ("Guten Morgen.", "auto", "espeak:fr", VoiceChoice("piper:de_AT-vera-high", "de-AT", True)),
        ("Xyzzy plugh.", "auto", "espeak:fr", VoiceChoice("espeak:fr", "fr", True)),
        ("Good morning.", "auto:fr", None, VoiceChoice("espeak:fr", "fr", True)),
        ("Guten Morgen.", auto_voice(""), None, VoiceChoice("piper:joe", "en-US", True)),
        ("Guten Morgen.", auto_voice(""), "espeak:fr", VoiceChoice("espeak:fr", "fr", True)),
        ("Guten Morgen.", auto_voice("fr"), None, VoiceChoice("espeak:fr", "fr", True)),
        ("Good morning.", "auto:sv", None, VoiceChoice("piper:joe", "en-US", True)),
    ],
)
async def test_the_voice_of_a_text(text: str, voice: str | None, default: str | None, chosen: VoiceChoice) -> None:
    assert await Voices(default, synthesizers=[Voiced()]).choose(text, voice) == chosen


async def test_a_voice_that_is_not_there_is_still_an_error() -> None:
    voices = Voices(synthesizers=[Voiced()])
    for name in ("piper:none", "autos", "de"):
        with pytest.raises(ProblemError) as caught:
            await voices.choose("Guten Tag", name)
        assert caught.value.code in (ErrorCode.VOICE_UNKNOWN, ErrorCode.VOICE_UNAVAILABLE)


async def test_a_growing_text_keeps_the_voice_of_its_first_sentence() -> None:
    voiced = Voiced()
    text, choices = GrowingText.whole("Guten Morgen. Good morning. Bonjour."), list[VoiceChoice]()
    stream = Voices(synthesizers=[voiced]).stream(text, None, on_choice=choices.append)
    assert [chunk async for chunk in stream]
    assert {voice for voice, _ in voiced.spoken} == {"piper:de_AT-vera-high"}
    assert [said for _, said in voiced.spoken] == ["Guten Morgen.", "Good morning.", "Bonjour."]
    assert choices == [VoiceChoice("piper:de_AT-vera-high", "de-AT", True)]


async def test_every_answer_says_which_voice_was_taken() -> None:
    voiced = Voiced()
    async with stage(voices=Voices(synthesizers=[voiced])) as running:
        started = await running.start()
        address = f"/session/{started['session_id']}/speak"
        answer = await running.http.post(address, json={"text": "Guten Morgen."})
        assert answer.json() == {"segment": 1, "voice": "piper:de_AT-vera-high", "language": "de-AT"}
        answer = await running.http.post(address, json={"text": "Guten Morgen.", "voice": "piper:joe"})
        assert answer.json() == {"segment": 2}
        answer = await running.http.post(address, content="Bonjour, tous.", headers={"Content-Type": "text/plain"})
        assert answer.json() == {"segment": 3, "voice": "espeak:fr", "language": "fr"}
        answer = await running.http.post("/v1/audio/speech", json={"input": "Guten Morgen.", "response_format": "pcm"})
        assert answer.headers["x-voice"] == "piper:de_AT-vera-high"
        spoken = [voice for voice, _ in voiced.spoken]
        assert spoken == ["piper:de_AT-vera-high", "piper:joe", "espeak:fr", "piper:de_AT-vera-high"]


@pytest.mark.voice
async def test_real_sentences_get_a_voice_of_their_language(tmp_path: Path) -> None:
    pytest.importorskip("py3langid")
    voices = Voices(synthesizers=[LocalSynthesizer(languages=True)])
    try:
        await voices.open()
        for text, language in (
            ("Good morning, how are you today?", "en"),
            ("Hello.", "en"),
            ("Guten Morgen, wie geht es dir?", "de"),
            ("Danke, bis morgen.", "de"),
            ("Bonjour, comment allez-vous ?", "fr"),
            ("Buenos días, ¿cómo estás?", "es"),
            ("今日はいい天気です。", "ja"),
            ("今天天气很好。", "zh"),
            ("Привет, как дела?", "ru"),
            ("The file is called Müller.txt, and it is here.", "en"),
        ):
            choice = await voices.choose(text, None)
            assert base(choice.language) == language, (text, choice)
        assert (await voices.choose("Good morning.", None)).voice == "piper:joe"
    finally:
        await voices.aclose()
