"""Words where nobody tells where they lie, and the embedded voices, which do."""

from __future__ import annotations

from itertools import pairwise

import pytest

from orchestrator.tts.segmentation import WORD_CHARACTERS, spread, words
from orchestrator.tts.voices import Voices

TEXT = "In the middle of the night, 42 people came to Dr. Smith's house. It was loud; so they left!"


@pytest.mark.parametrize("text", [TEXT, " two  spaces ", "一" * 100 + "。", "", "x" * 95])
def test_pieces_put_together_are_the_text_and_none_is_too_long(text: str) -> None:
    pieces = words(text)
    assert "".join(pieces) == text
    assert all(len(piece.rstrip()) <= WORD_CHARACTERS for piece in pieces)


def test_a_script_without_spaces_is_cut_behind_its_marks() -> None:
    assert words("今天天气很好，" * 8)[0].endswith("，")


def test_words_share_the_sound_by_their_letters() -> None:
    spoken = spread("a bbb, cccc", 100, 900)
    assert [(w.text, w.start, w.end) for w in spoken] == [("a ", 100, 200), ("bbb, ", 200, 500), ("cccc", 500, 900)]
    assert spread("", 0, 100) == ()


MARKED = "# Ages\n\n| Ann | **41** |\n|-----|----|\n| Bob | 7 |\n\n---\n\nThat is *all* \U0001f600 of [it](http://x.y)."


@pytest.mark.voice
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("voice", ["piper:joe", "espeak:en-us"])
async def test_captions_show_what_is_said_and_no_marks(voices: Voices, voice: str) -> None:
    chunks = [chunk async for chunk in voices.speak(MARKED, voice)]
    said = "".join(word.text for chunk in chunks for word in chunk.words)
    assert said.split() == "Ages Ann, 41 Bob, 7 That is all of it.".split()


@pytest.mark.voice
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("voice", ["piper:joe", "espeak:en-us"])
async def test_the_voices_tell_where_their_words_lie(voices: Voices, voice: str) -> None:
    chunks = [chunk async for chunk in voices.speak(TEXT, voice)]
    rate, said = chunks[0].sample_rate, [word for chunk in chunks for word in chunk.words]
    assert "".join(word.text for word in said).strip() == TEXT
    assert all(a.end <= b.start and a.start <= a.end for a, b in pairwise(said))
    assert said[-1].end <= sum(len(chunk.pcm) // 2 for chunk in chunks)
    at = 0
    for chunk in chunks:
        assert all(word.start >= at for word in chunk.words), "a word came after its sound"
        at += len(chunk.pcm) // 2
    cues = [cue for chunk in chunks for cue in chunk.cues]
    for text, sound in (("night, ", "n"), ("people ", "p"), ("house. ", "h"), ("loud; ", "l"), ("left!", "l")):
        start = next(word.start for word in said if word.text.strip() == text.strip())
        nearest = min(
            (cue.start for cue in cues if cue.phoneme.strip("ˈˌ").startswith(sound)), key=lambda s: abs(s - start)
        )
        assert abs(nearest - start) / rate < 0.1, (text, start / rate, nearest / rate)
