"""Whatever a provider or a worker answers is sound of ours or an error of ours.

Quick by default; `FUZZ_EXAMPLES=200000 pytest --timeout 0 tests/orchestrator/tts/test_any_bytes.py` looks for longer.
What it finds becomes an `@example`.
"""

from __future__ import annotations

import json
import os
import struct
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from musetalk_agent.protocol.retries import retry_after_s
from orchestrator import worker_pipe
from orchestrator.tts import elevenlabs
from orchestrator.tts.elevenlabs import AlignmentTracker
from orchestrator.tts.pcm_stream import PcmStreamDecoder, WaveError
from orchestrator.tts.segmentation import Splitter, clean, parts
from orchestrator.tts.speech_worker import _part
from orchestrator.tts.synthesizer import word_of
from orchestrator.worker_process import WorkerLost

MANY = settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES", "150")), deadline=None)
TONE = (9000 * np.sin(np.arange(3000) / 9)).astype("<i2").tobytes()
NUMBERS = st.sampled_from([0, 1, 2, 3, 7, 8, 16, 24, 32, 255, 4096, 0x7FFFFFFF, 0xFFFFFFFF])


def chunk(name: bytes, size: int, body: bytes) -> bytes:
    return name + struct.pack("<I", size) + body


@st.composite
def layouts(draw: st.DrawFn) -> bytes:
    """A `fmt ` chunk that is right, nearly right, or wrong."""
    form, channels, bits = draw(st.sampled_from([1, 3, 0xFFFE, 7])), draw(st.integers(0, 3)), draw(NUMBERS)
    rate = draw(st.sampled_from([0, 8000, 16000, 24000, 48000, 0xFFFFFFFF]))
    body = struct.pack("<HHIIHH", form, channels, rate, 0, 0, bits & 0xFFFF) + draw(st.binary(max_size=24))
    return chunk(b"fmt ", draw(st.one_of(st.just(len(body)), NUMBERS)), body)


PIECES = st.one_of(
    st.binary(max_size=60),
    st.just(TONE),
    st.sampled_from(
        [b"RIFF\xff\xff\xff\xffWAVE", b"RIFF", b"WAVE", b"data", b"LIST\x04\0\0\0INFO", b"ID3\x03", b"\xff\xfb\x90"]
    ),
    layouts(),
    st.builds(
        lambda size, body: chunk(b"data", size, body), st.one_of(st.integers(0, 200), NUMBERS), st.binary(max_size=200)
    ),
    st.sampled_from([b'{"error":{"code":"x"}}', b"<html>" * 500, b"\x1a\x45\xdf\xa3" * 9]),
)
ANSWERS = st.lists(PIECES, max_size=8).map(b"".join)
TYPES = st.sampled_from(
    ["", "audio/pcm", "audio/pcm;rate=8000", "audio/pcm;rate=x;channels=2", "audio/wav", ";;=;", "text/html"]
)


def read(content_type: str, data: bytes, cuts: list[int]) -> tuple[bytes, str, int]:
    """What is spoken of an answer that comes in these pieces, the error at its end, and its rate."""
    spoken, edges = bytearray(), sorted({0, *(cut % (len(data) + 1) for cut in cuts), len(data)})
    try:
        reader = PcmStreamDecoder(content_type)
    except WaveError as error:
        return b"", str(error), 0
    try:
        for begin, end in pairwise(edges):
            spoken += reader.feed(data[begin:end])
        spoken += reader.finish()
    except WaveError as error:
        return bytes(spoken), str(error), reader.rate
    assert len(spoken) == 2 * reader.samples and spoken
    return bytes(spoken), "", reader.rate


@MANY
@given(TYPES, ANSWERS, st.lists(st.integers(0, 1 << 16), max_size=6))
@example("", b"RIFF\xff\xff\xff\xffWAVE" * 300, [])
@example(
    "audio/wav",
    (
        b"RIFF\xff\xff\xff\xffWAVE"
        + chunk(b"fmt ", 16, struct.pack("<HHIIHH", 1, 1, 24000, 0, 0, 16))
        + chunk(b"data", 2, b"\1\1")
    )
    * 3000,
    [],
)
def test_an_answer_means_the_same_in_whatever_pieces(content_type: str, data: bytes, cuts: list[int]) -> None:
    whole, piecewise = read(content_type, data, []), read(content_type, data, cuts)
    assert piecewise[1:] == whole[1:]
    if whole[1]:  # what was spoken before the error depends on the pieces; one of the two begins with the other
        shorter, longer = sorted((whole[0], piecewise[0]), key=len)
        assert longer.startswith(shorter)
    else:
        assert piecewise[0] == whole[0]


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["", "AAAA", "AAA=", "A", 10**400]),
)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
)
LETTERS = st.lists(st.sampled_from(["a", " ", "b", "é", "x" * 20, "", 1, None]), max_size=6)
TIMES = st.lists(st.one_of(st.floats(), st.integers(-5, 5000), st.none()), max_size=6)
ALIGNMENTS = st.one_of(
    JSON, st.fixed_dictionaries({"chars": LETTERS, "charStartTimesMs": TIMES, "charDurationsMs": TIMES})
)
MESSAGES = st.lists(st.one_of(JSON, st.fixed_dictionaries({"audio": LEAVES, "alignment": ALIGNMENTS})), max_size=6)


@MANY
@given(MESSAGES)
def test_messages_of_elevenlabs_are_sound_or_refused(messages: list[Any]) -> None:
    recital, given_out = AlignmentTracker(24_000), 0
    recital.add("a b ab and é.")
    for message in messages:
        try:
            pcm, letters = elevenlabs._sound(elevenlabs._parsed(json.dumps(message)))
        except elevenlabs._BrokenError:
            continue
        spoken, words = recital.hear(pcm, letters)
        given_out += len(spoken) // 2
        assert len(spoken) % 2 == 0 and recital.given == given_out
        assert all(0 <= word.start <= word.end for word in words)
    rest, _ = recital.finish()
    assert recital.given == given_out + len(rest) // 2 and recital.held == 0


@MANY
@given(st.binary(max_size=200))
@example(b"[" * 100_000)
@example(b'{"error":' * 20_000)
def test_headers_and_errors_are_objects_or_refused(data: bytes) -> None:
    assert len(word_of(data)) <= 100
    try:
        assert isinstance(worker_pipe.decode_header(data), dict)
    except worker_pipe.FramingError:
        pass


CUES = st.one_of(JSON, st.lists(st.tuples(st.text(max_size=3), st.integers(-2, 40), st.integers(-2, 40)), max_size=3))


@MANY
@given(
    st.fixed_dictionaries({}, optional={"sample_rate": st.one_of(JSON, st.just(16000)), "cues": CUES, "words": CUES}),
    st.binary(max_size=64),
)
def test_a_workers_answer_is_a_part_or_a_lost_worker(header: dict[str, Any], pcm: bytes) -> None:
    try:
        part = _part(json.loads(json.dumps(header)), pcm)
    except WorkerLost:
        return
    assert part is not None and 8000 <= part.sample_rate <= 48000 and len(part.pcm) % 2 == 0
    assert all(0 <= start <= end <= len(pcm) // 2 for _, start, end in (*part.cues, *part.words))


TEXTS = st.lists(
    st.one_of(
        st.text(max_size=20),
        st.sampled_from(["|", "---", "\n", "&#124;", "&amp;", "[^", "](", "**", "# ", "- [ ] ", "😀", "<b", "\u2028"]),
    ),
    max_size=30,
).map("".join)


@MANY
@given(TEXTS, st.lists(st.integers(0, 400), max_size=5))
def test_any_text_is_cut_into_what_can_be_said(text: str, cuts: list[int]) -> None:
    cleaned = clean(text)
    assert "|" not in cleaned and "".join(part.text for part in parts(cleaned)).strip() == "".join(
        p.text for p in parts(cleaned)
    )
    splitter, edges = Splitter(), sorted({0, *(cut % (len(text) + 1) for cut in cuts), len(text)})
    said = [sentence for begin, end in pairwise(edges) for sentence in splitter.push(text[begin:end])]
    assert all(sentence.strip() and "\n" not in sentence for sentence in [*said, *splitter.flush()])


@MANY
@given(st.text(max_size=40))
def test_any_retry_after_is_seconds_or_none(value: str) -> None:
    seconds = retry_after_s(value)
    assert seconds is None or seconds >= 0
