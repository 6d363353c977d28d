"""Words that are said otherwise than they are written: where they are found, and what is said and shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.tts.lexicon import Lexicon, LexiconEntry, Said, load, respelled, said
from orchestrator.tts.synthesizer import SpeechOptions
from orchestrator.tts.worker.synthesis import Manner, Replacement, spoken_words
from tests.orchestrator.tts.test_local import voice, whole


def entries(*rows: tuple[str, str] | tuple[str, str, str]) -> Lexicon:
    return Lexicon(LexiconEntry(word=row[0], say=row[1], language=row[2] if len(row) > 2 else None) for row in rows)


@pytest.mark.parametrize(
    ("word", "text", "found"),
    [
        ("nginx", "Nginx, nginx and NGINX; nginxes, my-nginx.", ["Nginx", "nginx", "NGINX", "nginx"]),
        ("IT", "It is IT, not it.", ["IT"]),
        ("C++", "C++ or C, C++20 and (C++)", ["C++", "C++", "C++"]),
        (".NET", "the .NET and internet, a.NET", [".NET", ".NET"]),
        ("New York", "new york, New  York, New Yorker", ["new york"]),
        ("straße", "Die Straße, STRAßE, Straßen", ["Straße", "STRAßE"]),
        ("café", "Un cafe\u0301 au café", ["café", "café"]),
        ("नमस्ते", "नमस्ते दुनिया, नमस्तेजी", ["नमस्ते"]),
        ("東京", "私は東京に行く。東京!", ["東京", "東京"]),
        ("3D", "3D, 3d and 13D", ["3D"]),
        ("o'neil", "O'Neil o'neils", ["O'Neil"]),
    ],
)
def test_words_are_found_whole(word: str, text: str, found: list[str]) -> None:
    import unicodedata

    text = unicodedata.normalize("NFC", text)
    spans = said(text, "en-US", [entries((word, "x"))])
    assert [text[each.start : each.end] for each in spans] == found


def test_the_longest_and_nearest_entry_counts_and_languages_are_kept_apart() -> None:
    near = entries(("York", "near"), ("chef", "boss", "en"), ("chef", "scheff", "de"))
    far = entries(("New York", "far"), ("York", "far"), ("chef", "cook", "fr-CA"))
    assert respelled("New York or York.", "en", [near, far]) == "far or near."
    assert respelled("chef", "en-GB", [near, far]) == "boss" and respelled("chef", "de-DE", [near, far]) == "scheff"
    assert respelled("chef", "fr-FR", [near, far]) == "chef" and respelled("chef", "fr-ca", [near, far]) == "cook"
    assert respelled("chef", "english", [near, far]) == "chef"
    both = Lexicon([LexiconEntry(word="a", say="any"), LexiconEntry(word="a", say="german", language="de")])
    assert respelled("a", "de", [both]) == "german" and respelled("a", "fr", [both]) == "any"


@given(st.text(alphabet="abAB ßİ.é\u0301東", max_size=40), st.text(alphabet="abAßİé.東", min_size=1, max_size=4))
def test_on_any_text_spans_are_in_order_and_inside(text: str, word: str) -> None:
    try:
        lexicon = entries((word, "x"))
    except ValidationError:
        return
    at = 0
    for each in said(text, "en", [lexicon, lexicon]):
        assert at <= each.start < each.end <= len(text)
        at = each.end


@pytest.mark.parametrize(
    "fields",
    [
        {"word": "a"},
        {"word": "", "say": "b"},
        {"word": "!!", "say": "b"},
        {"word": "a", "say": "[[b]]"},
        {"word": "a", "say": "b\x00"},
        {"word": "a", "ipa": "[b]"},
        {"word": "a", "ipa": "ˈˈ"},
        {"word": "a", "ipa": "b]] x [["},
        {"word": "a" * 65, "say": "b"},
        {"word": "a", "say": "b", "speed": 2},
    ],
)
def test_entries_that_are_none(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LexiconEntry.model_validate(fields)


def test_slashes_around_phonemes_are_taken_off() -> None:
    assert LexiconEntry(word="a", ipa="/ʃɪˈvɔːn/").ipa == "ʃɪˈvɔːn"


def test_a_file_is_read_and_its_first_mistake_is_named(tmp_path: Path) -> None:
    file = tmp_path / "lexicon.json"
    file.write_text(json.dumps([{"word": "nginx", "say": "engine x"}]), encoding="utf-8")
    assert respelled("nginx", "en", [load(file)]) == "engine x"
    for text, named in (('[{"word": "a"}]', "entry 0"), ("[", "no JSON"), ('{"a": "b"}', "list"), ("\xff", "no JSON")):
        file.write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=named):
            load(file)
    with pytest.raises(ValueError, match="cannot be read"):
        load(tmp_path / "none.json")


async def test_the_voice_gets_what_to_say_and_captions_keep_the_written_word() -> None:
    made, worker = voice()
    lexicon = Lexicon([LexiconEntry(word="nginx", say="engine x"), LexiconEntry(word="you", ipa="juː")])
    _, _, words = await whole(made.speak("We run nginx. You too!", "x:y", SpeechOptions(lexicons=(lexicon,))))
    assert [(text, said) for (_, text, _), (_, said) in zip(worker.asked, worker.said, strict=True)] == [
        ("We run nginx.", (Said(7, 12, "engine x", ""),)),
        ("You too!", (Said(0, 3, "", "juː"),)),
    ]
    assert "".join(word.text for word in words).split() == ["We", "run", "nginx.", "You", "too!"]


def test_what_is_said_of_a_text_and_where_its_words_lie() -> None:
    text = "We run New York, nginx."
    manner = Manner(1.0, (Replacement(7, 15, "big apple", ""), Replacement(17, 22, "", "ɛndʒ")))
    assert manner.spoken(text, "[[{}]]") == "We run big apple, [[ɛndʒ]]."
    assert manner.spoken(text, None) == "We run big apple, nginx."
    counts = spoken_words(text, manner, "[[{}]]", len)
    assert counts == [("We ", 3), ("run ", 4), ("New ", 9), ("York, ", 1), ("nginx.", 9)]
    spoken = manner.spoken(text, None)
    at = {word: manner.written_at(spoken.index(word)) for word in ("We", "run", "big", "apple", "nginx")}
    assert at == {"We": 0, "run": 3, "big": 7, "apple": 7, "nginx": 17}
