"""Sound of every form that providers send, against samples written out; and what is reported of bytes that are none."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from orchestrator.tts.pcm_stream import LOOK_BYTES, Layout, PcmStreamDecoder, WaveError, encoded, is_noise, is_text

TONE = (9000 * np.sin(np.arange(3000) / 9)).astype("<i2")


def chunk(name: bytes, body: bytes, size: int | None = None) -> bytes:
    return name + struct.pack("<I", len(body) if size is None else size) + body + bytes(len(body) % 2)


def wav(
    body: bytes,
    *,
    rate: int = 24_000,
    channels: int = 1,
    bits: int = 16,
    form: int = 1,
    size: int | None = None,
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    extension = struct.pack("<HHIH", 22, bits, 0, 1) + bytes(14) if form == 0xFFFE else b""
    head = struct.pack("<HHIIHH", form, channels, rate, rate * channels * bits // 8, channels * bits // 8, bits)
    return b"RIFF\xff\xff\xff\xffWAVE" + chunk(b"fmt ", head + extension) + before + chunk(b"data", body, size) + after


def read(data: bytes, content_type: str = "", step: int = 997) -> tuple[np.ndarray, int]:
    reader = PcmStreamDecoder(content_type)
    pcm = b"".join(reader.feed(data[at : at + step]) for at in range(0, len(data), step)) + reader.finish()
    assert reader.samples == len(pcm) // 2
    return np.frombuffer(pcm, "<i2"), reader.rate


def refusal(data: bytes, content_type: str = "") -> str:
    with pytest.raises(WaveError) as refused:
        read(data, content_type)
    return str(refused.value)


WIDE = TONE.astype(np.int64)


@pytest.mark.parametrize("step", [1, 3, 5000])
@pytest.mark.parametrize(
    ("bits", "form", "body"),
    [
        (16, 1, TONE.tobytes()),
        (16, 0xFFFE, TONE.tobytes()),
        (24, 1, b"".join(struct.pack("<i", int(v) << 8)[:3] for v in TONE)),
        (32, 1, (WIDE << 16).astype("<i4").tobytes()),
        (32, 3, (TONE / 32767).astype("<f4").tobytes()),
    ],
)
def test_the_samples_of_every_form_are_the_same(bits: int, form: int, body: bytes, step: int) -> None:
    pcm, rate = read(wav(body, bits=bits, form=form), step=step)
    assert rate == 24_000 and np.abs(pcm.astype(int) - TONE).max() <= (1 if form == 3 else 0)


def test_two_channels_are_heard_as_their_mean() -> None:
    pair = np.stack([TONE, TONE // 3], axis=1).astype("<i2")
    pcm, _ = read(wav(pair.tobytes(), channels=2))
    assert np.array_equal(pcm, ((TONE.astype(float) + TONE // 3) / 2).astype(np.int16))
    pcm, rate = read(pair.tobytes(), "audio/pcm;rate=16000;channels=2")
    assert rate == 16_000 and len(pcm) == len(TONE)


def test_floats_beyond_the_full_scale_are_clipped_and_nan_is_silence() -> None:
    made = Layout(form=3, bits=32).mono(np.array([2, -2, 1, 0.5, np.nan, np.inf, -np.inf], "<f4").tobytes())
    assert made.tolist() == [32767, -32768, 32767, 16383, 0, 32767, -32767]


@pytest.mark.parametrize("size", [None, 0, 0xFFFFFFFF, 0x7FFFFF00])
def test_a_length_that_was_not_known_is_the_rest_of_the_answer(size: int | None) -> None:
    assert np.array_equal(read(wav(TONE.tobytes(), size=size))[0], TONE)


@pytest.mark.parametrize("name", [b"LIST", b"id3 ", b"bext", b"fact", b"iXML"])
def test_other_chunks_before_and_behind_the_sound_are_not_heard(name: bytes) -> None:
    other = chunk(name, b"\x7f\x7f" * 50 + b"x")
    assert np.array_equal(read(wav(TONE.tobytes(), before=other, after=other))[0], TONE)


def test_an_answer_of_several_files_is_one_sound() -> None:
    assert np.array_equal(read(wav(TONE.tobytes()) + wav(TONE[:100].tobytes()))[0], np.concatenate([TONE, TONE[:100]]))
    both = wav(TONE.tobytes()) + wav(TONE.tobytes(), rate=16_000)
    assert refusal(both) == "it changes its format on the way"


def test_more_sound_than_the_header_knew_of_is_heard_too() -> None:
    data = wav(TONE[:1000].tobytes(), size=2000) + TONE[1000:].tobytes()
    assert np.array_equal(read(data)[0], TONE)


def test_half_a_sample_at_the_end_is_left_out() -> None:
    assert np.array_equal(read(TONE.tobytes() + b"\x01", "audio/pcm")[0], TONE)
    assert np.array_equal(read(wav(TONE.tobytes() + b"\x01\x02", bits=16, channels=2, size=0))[0].shape, (1500,))


@pytest.mark.parametrize(
    ("content_type", "rate", "channels"),
    [
        ("", 24_000, 1),
        ("audio/pcm", 24_000, 1),
        ("Audio/PCM; Rate=8000", 8000, 1),
        ("audio/L16;rate=48000;channels=2", 48_000, 2),
        ("audio/pcm;rate=7999", 24_000, 1),
        ("audio/pcm;rate=48001", 24_000, 1),
        ("audio/pcm;rate=-8000", 24_000, 1),
        ("audio/pcm;rate=١٦٠٠٠", 24_000, 1),
        ("audio/mpeg;rate=16000", 24_000, 1),
        ("application/octet-stream", 24_000, 1),
    ],
)
def test_the_rate_of_bare_sound_is_reported_or_the_usual_one(content_type: str, rate: int, channels: int) -> None:
    pcm, found = read(np.repeat(TONE, channels).tobytes(), content_type)
    assert found == rate and np.array_equal(pcm, TONE)


@pytest.mark.parametrize(
    ("data", "reported"),
    [
        (b"", "there is no sound in it"),
        (b"RIFF", "a WAV whose sound does not begin"),
        (b"RIFF0000AVI " + bytes(99), "it is RIFF of the kind b'AVI '"),
        (b"RIFF0000WAVE" + chunk(b"data", bytes(20)), "a WAV without its format"),
        (b"RIFF0000WAVE" + chunk(b"fmt ", bytes(8)) + bytes(40), "a WAV without its format"),
        (b"RIFF0000WAVE" + chunk(b"junk", bytes(5000)), "a WAV whose sound does not begin"),
        (wav(TONE.tobytes(), rate=7999), "7999 Hz"),
        (wav(TONE.tobytes(), rate=48_001), "48001 Hz"),
        (wav(TONE.tobytes(), channels=3), "3 channels"),
        (wav(TONE.tobytes(), bits=8), "8 bits"),
        (wav(TONE.tobytes(), form=7), "format 7"),
        (wav(b""), "there is no sound in it"),
        (b'{"error": "no"}', "it is text"),
    ],
)
def test_what_is_no_sound_is_reported_with_what_was_found(data: bytes, reported: str) -> None:
    assert reported in refusal(data)


@pytest.mark.parametrize("kind", ["text/html", "image/png", "application/json", "application/vnd.api+json", "a/b+xml"])
def test_a_type_that_is_no_sound_is_refused_before_a_byte_is_read(kind: str) -> None:
    with pytest.raises(WaveError, match="Content-Type"):
        PcmStreamDecoder(f"{kind}; charset=utf-8")


MP3 = b"\xff\xfb\x90\x00" + bytes(413)  # MPEG-1 layer III, 128 kbit/s, 44.1 kHz: 417 bytes
MP3_22 = b"\xff\xf3\x80\x00" + bytes(204)  # MPEG-2, 64 kbit/s, 22.05 kHz: 208 bytes
AAC = b"\xff\xf1\x50\x80\x10\x1f\xfc" + bytes(121)  # ADTS: 128 bytes


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (MP3 * 3, "MP3"),
        (MP3_22 * 3, "MP3"),
        (AAC * 3, "AAC"),
        (MP3, None),  # one frame alone may be a loud sample
        (b"\xff\xfb\x90\x00" + bytes(600), None),
        (b"\xff\xfb\xf0\x00" + bytes(600), None),
        (b"\x00\x00\x00\x20ftypM4A ", "MP4"),
        (b"ID3\x04" + bytes(99), "MP3"),
        (b"OggS" + bytes(99), "Ogg"),
        (b"fLaC" + bytes(99), "FLAC"),
        (b"<html>", "text"),
        ("Übung".encode() + b"\xc3", "text"),
        (b"{", None),
        (b"ab\x00\x01", None),
        (TONE.tobytes(), None),
        (bytes(LOOK_BYTES), None),
    ],
)
def test_compressed_sound_and_text_are_distinguished_from_samples(head: bytes, name: str | None) -> None:
    assert encoded(head) == name


def test_noise_is_loud_and_unlike_itself() -> None:
    rng = np.random.default_rng(3)
    noise = rng.integers(-32768, 32768, 1024).astype(np.int16)
    assert is_noise(noise) and not is_noise(noise[:255]) and not is_noise(noise // 4)
    assert not is_noise(np.full(1024, 32767, np.int16))
    assert not is_noise((30_000 * np.sign(np.sin(np.arange(1024) / 20))).astype(np.int16))
    assert not is_noise(np.repeat(noise, 4))
    assert is_text(b"ok") and not is_text(b"o") and not is_text(b"\xff\xfe")
