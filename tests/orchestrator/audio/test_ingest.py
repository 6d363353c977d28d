from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.audio.ingest import AudioFormat, AudioIngest, AudioLimits, LevelMeter, PcmDecoder
from orchestrator.audio.segments import SegmentTracker
from orchestrator.metrics import Metrics


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=8))
def test_any_split_of_the_bytes_gives_the_same_samples(data: bytes, cuts: list[int]) -> None:
    decoder = PcmDecoder(AudioFormat.S16LE)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    announced, out = 0, b""
    for start, end in pairwise(edges):
        announced += (len(decoder.carry) + end - start) // decoder.width
        out += decoder.decode(data[start:end])
    assert out == data[: len(data) - len(data) % 2]
    assert announced == len(out) // 2


def test_half_a_sample_does_not_reach_into_the_next_utterance() -> None:
    decoder = PcmDecoder(AudioFormat.S16LE)
    assert decoder.decode(b"\x01\x02\x03") == b"\x01\x02"
    decoder.reset()
    assert decoder.decode(b"\x05\x06") == b"\x05\x06"


SPEECH = (np.sin(np.arange(8000) * 0.05) * 9000).astype("<i2")
NOISE_FLOOR = np.random.default_rng(1).integers(-3, 4, 8000).astype("<i2")


@pytest.mark.parametrize("audio_format", AudioFormat)
@pytest.mark.parametrize("samples", [SPEECH, NOISE_FLOOR], ids=["speech", "noise floor"])
@pytest.mark.parametrize("quiet_first", [False, True])
@pytest.mark.parametrize("held_up", [False, True])
def test_a_sample_cut_in_half_where_an_utterance_ends(
    audio_format: AudioFormat, samples: np.ndarray, quiet_first: bool, held_up: bool
) -> None:
    """The stream goes on with the other half (it was held up), or begins anew with a whole sample (it was broken off)."""
    width = 2 if audio_format is AudioFormat.S16LE else 4
    before, after = samples[:4000], samples[4000:]
    if quiet_first:
        after = np.concatenate([np.zeros(400, "<i2"), after])
    raw = before if width == 2 else (before / 32767).astype("<f4")
    decoder = PcmDecoder(audio_format)
    cut = len(before) * width - 1
    head = decoder.decode(raw.tobytes()[:cut], 1)
    rest = (after if width == 2 else (after / 32767).astype("<f4")).tobytes()
    stream = raw.tobytes()[cut:] + rest if held_up else rest
    got = b"".join(decoder.decode(stream[at : at + 321], 2) for at in range(0, len(stream), 321))
    wanted = after.astype("<i2").tobytes()
    assert head == before[:-1].tobytes()
    undecided = 2 * (420 if quiet_first else 2)
    assert got[-len(wanted) + undecided :] == wanted[undecided:] and abs(len(got) - len(wanted)) <= 4


def test_a_half_sample_before_a_message_of_the_sender_is_dropped() -> None:
    decoder = PcmDecoder(AudioFormat.S16LE)
    decoder.decode(SPEECH.tobytes() + b"\x01", 1)
    decoder.reset()
    assert decoder.decode(SPEECH.tobytes(), 2) == SPEECH.tobytes()


def test_floats_become_int16_and_are_clipped() -> None:
    floats = np.array([0.0, 0.5, -0.5, 1.0, 2.0, -3.0, np.nan, np.inf], "<f4").tobytes()
    decoder = PcmDecoder(AudioFormat.F32LE)
    out = np.frombuffer(decoder.decode(floats[:7]) + decoder.decode(floats[7:]), "<i2")
    assert out.tolist() == [0, 16384, -16384, 32767, 32767, -32767, 0, 32767]


def test_a_message_that_is_too_large_is_refused_with_its_size() -> None:
    gate = AudioIngest(SegmentTracker(), AudioLimits(message_bytes=100), Metrics())
    gate.admit(100, 0.0)
    with pytest.raises(ProblemError) as caught:
        gate.admit(101, 0.0)
    assert (caught.value.code, caught.value.limit, caught.value.value) == (ErrorCode.MESSAGE_TOO_LARGE, 100, 101)


def test_the_rate_allows_a_burst_and_then_its_own_pace() -> None:
    gate = AudioIngest(SegmentTracker(), AudioLimits(message_bytes=10**6, bytes_per_s=10**5), Metrics())
    gate.admit(399_000, 0.0)
    with pytest.raises(ProblemError, match="100000 bytes per second"):
        gate.admit(50_000, 0.1)
    gate.admit(50_000, 0.6)


def test_a_flood_of_tiny_messages_meets_the_rate_too() -> None:
    gate = AudioIngest(SegmentTracker(), AudioLimits(bytes_per_s=64_000), Metrics())
    with pytest.raises(ProblemError) as caught:
        for _ in range(3000):
            gate.admit(0, 0.0)
    assert caught.value.code is ErrorCode.RATE_EXCEEDED


@pytest.mark.parametrize(("waiting", "more", "refused"), [(119.0, 1.0, False), (119.5, 1.0, True), (0.0, 121.0, True)])
def test_the_backlog_is_bounded_in_seconds(waiting: float, more: float, refused: bool) -> None:
    gate = AudioIngest(SegmentTracker(), AudioLimits(), Metrics())
    if not refused:
        gate.admit(100, 0.0, waiting + more)
        return
    with pytest.raises(ProblemError) as caught:
        gate.admit(100, 0.0, waiting + more)
    assert caught.value.code is ErrorCode.BACKLOG_EXCEEDED
    assert caught.value.value == pytest.approx(waiting + more)


def test_a_minute_of_speech_at_once_is_within_the_default_limits() -> None:
    gate = AudioIngest(SegmentTracker(), AudioLimits(), Metrics())
    for _ in range(60):
        gate.admit(48000 * 4, 0.0)  # 48 kHz float


def test_levels_of_the_last_second() -> None:
    meter = LevelMeter()
    meter.add(np.full(16000, 32767, "<i2").tobytes(), 32000, now=0.0)
    half = np.tile(np.array([16384, -16384], "<i2"), 4000).tobytes()
    meter.add(half, 16000, now=1.5)
    level = meter.level(2.0)
    assert level.rms_dbfs == pytest.approx(-6.0, abs=0.1)
    assert level.peak_dbfs == pytest.approx(-6.0, abs=0.1)
    assert level.bytes_per_s == 16000
    assert meter.level(9.0).rms_dbfs is None


def test_the_peak_of_the_most_negative_sample() -> None:
    meter = LevelMeter()
    meter.add(np.array([-32768, 5], "<i2").tobytes(), 4, now=0.0)
    assert meter.level(0.0).peak_dbfs == 0.0
    meter = LevelMeter()
    meter.add(b"", 1, now=0.0)
    assert meter.level(0.0).peak_dbfs is None
