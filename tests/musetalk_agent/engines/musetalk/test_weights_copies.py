"""Half-precision copies of weights: when one may stand for the original, from files made here without any library."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musetalk_agent.engines.musetalk.profiles import BUCKETS, PROFILES, SHOWN_FROM, bucket_of, profile_named
from musetalk_agent.engines.musetalk.weights_files import (
    HEADER_LIMIT,
    MARK,
    Half,
    copies_state,
    copy_path,
    find,
    find_original,
    fingerprint,
    notes_of,
    problem_of,
)
from musetalk_agent.errors import EngineUnavailable
from tests.late import late_imports

with late_imports():
    from musetalk_agent.engines.musetalk.runner import HEADROOM, Throughput

BLOCK = 1 << 16


def safetensors(notes: dict[str, str] | None, tensors: int = 8, header: str | None = None) -> bytes:
    """A file of one tensor of so many bytes, with notes in its header; or with that text as its header."""
    reported: dict[str, object] = {} if notes is None else {"__metadata__": notes}
    reported["weight"] = {"dtype": "F16", "shape": [tensors // 2], "data_offsets": [0, tensors]}
    text = (json.dumps(reported) if header is None else header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(tensors)


def notes_for(original: Path) -> dict[str, str]:
    """What `convert-weights` notes of an original."""
    return {
        "mark": MARK,
        "source_size": str(original.stat().st_size),
        "source_fingerprint": fingerprint(original),
    }


@pytest.fixture
def original(tmp_path: Path) -> Path:
    path = tmp_path / "musetalkV15" / "unet.pth"
    path.parent.mkdir()
    path.write_bytes(bytes(range(256)) * 1024)
    return path


def copied(original: Path, half: Half = "fp16", **other: str) -> Path:
    path = copy_path(original, half)
    path.write_bytes(safetensors(notes_for(original) | other))
    return path


def test_a_copy_lies_beside_its_original_under_its_precision(tmp_path: Path) -> None:
    assert copy_path(tmp_path / "unet.pth", "fp16") == tmp_path / "unet.fp16.safetensors"
    assert copy_path(tmp_path / "model.safetensors", "bf16") == tmp_path / "model.bf16.safetensors"


@settings(max_examples=30)
@given(st.integers(0, 3 * BLOCK), st.integers(0, 255))
def test_a_fingerprint_is_the_content_s_and_not_the_name_s(
    tmp_path_factory: pytest.TempPathFactory, size: int, value: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    one, other = folder / "one.bin", folder / "other.bin"
    one.write_bytes(bytes([value]) * size)
    other.write_bytes(bytes([value]) * size)
    assert fingerprint(one) == fingerprint(other)
    other.write_bytes(bytes([value]) * (size + 1))
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize("size", [1, 100, BLOCK, 63 * BLOCK, 64 * BLOCK])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.5, 0.999])
def test_up_to_four_megabytes_every_byte_counts(tmp_path: Path, size: int, place: float) -> None:
    path = tmp_path / "a"
    data = bytearray(size)
    path.write_bytes(data)
    before = fingerprint(path)
    data[int(place * size)] ^= 1
    path.write_bytes(data)
    assert fingerprint(path) != before


def test_of_a_large_file_beginning_end_and_samples_count(tmp_path: Path) -> None:
    path = tmp_path / "a"
    data = bytearray(130 * BLOCK)
    path.write_bytes(data)
    before, step = fingerprint(path), (129 * BLOCK) // 63
    for place in (0, BLOCK - 1, step, 40 * step + BLOCK - 1, len(data) - BLOCK, len(data) - 1):
        data[place] ^= 1
        path.write_bytes(data)
        assert fingerprint(path) != before, place
        data[place] ^= 1
    data[BLOCK + 5] ^= 1
    path.write_bytes(data)
    assert fingerprint(path) == before, "what lies between the samples is not read: that is what makes it quick"


def test_notes_are_those_of_the_header(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(safetensors({"mark": MARK, "made": "today"}))
    (tmp_path / "b").write_bytes(safetensors(None))
    assert notes_of(tmp_path / "a") == {"mark": MARK, "made": "today"} and notes_of(tmp_path / "b") == {}


WHOLE = safetensors({"mark": MARK})
BROKEN: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": bytes(7),
    "a header of one byte": (1).to_bytes(8, "little") + b"{",
    "a header beyond the limit": (HEADER_LIMIT + 1).to_bytes(8, "little") + b"{}",
    "a header beyond the file": (1 << 20).to_bytes(8, "little") + b"{}",
    "no JSON": safetensors(None, header="{" * 20),
    "a byte too few": WHOLE[:-1],
    "a byte too many": WHOLE + b"\0",
    "half a header": WHOLE[:20],
    "a list": safetensors(None, header="[1, 2, 3]"),
    "a tensor that is a number": safetensors(None, header='{"weight": 3}'),
    "a tensor without a place": safetensors(None, header='{"weight": {"dtype": "F16"}}'),
    "notes that are a list": safetensors(None, 0, header='{"__metadata__": ["mark"]}'),
    "notes that are null": safetensors(None, 0, header='{"__metadata__": null}'),
    "text that is no text": (4).to_bytes(8, "little") + b"\xff\xfe\xfd\xfc",
    "offsets that are text": safetensors(None, header='{"weight": {"data_offsets": ["0", "8"]}}'),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_copy_is_not_used_and_it_is_said_why(original: Path, name: str) -> None:
    path = copy_path(original, "fp16")
    path.write_bytes(BROKEN[name])
    assert problem_of(path, original)
    assert find(original.parent.parent, "unet", "fp16") == find(original.parent.parent, "unet", None)


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_damaged_headers_are_a_reason_and_never_an_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(WHOLE)
    for place, value in changes:
        data[place] = value
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(data)
    reported = problem_of(path, None)
    assert reported is None or reported


def cut(original: Path) -> None:
    original.write_bytes(original.read_bytes()[:-1])


def exchanged(original: Path) -> None:
    original.write_bytes(original.read_bytes()[::-1])


@pytest.mark.parametrize(
    ("change", "reported"),
    [(cut, "has another size than what it was made from"), (exchanged, "is not what it was made from")],
)
def test_a_copy_of_other_weights_is_stale(
    original: Path, change: Callable[[Path], None], reported: str, caplog: pytest.LogCaptureFixture
) -> None:
    copy = copied(original)
    assert problem_of(copy, original) is None and problem_of(copy, None) is None
    change(original)
    assert problem_of(copy, original) == f"unet.pth {reported}"
    with caplog.at_level(logging.WARNING):
        found = find(original.parent.parent, "unet", "fp16")
    assert found is not None and found.path == original and found.half is None
    assert "not used" in caplog.text


def test_a_copy_of_another_format_or_one_that_is_not_there_is_none(original: Path, tmp_path: Path) -> None:
    assert problem_of(copied(original, mark="somebody's/7"), original) == "it was not written by convert-weights"
    assert problem_of(tmp_path / "nothing", original)
    copy = copied(original)
    original.unlink()
    assert problem_of(copy, original), "an original that went away meanwhile"


@pytest.mark.parametrize(
    ("there", "wanted", "chosen"),
    [
        (("original",), "fp16", None),
        (("original", "fp16"), "fp16", "fp16"),
        (("original", "fp16"), "bf16", None),
        (("original", "fp16"), None, None),
        (("fp16", "bf16"), "bf16", "bf16"),
        (("fp16", "bf16"), None, "fp16"),
        (("bf16",), "fp16", "bf16"),
    ],
)
def test_the_wanted_copy_comes_first_then_the_original_then_another_copy(
    original: Path, there: tuple[str, ...], wanted: Half | None, chosen: Half | None
) -> None:
    halves: tuple[Half, ...] = ("fp16", "bf16")
    for half in halves:
        if half in there:
            copied(original, half)
    if "original" not in there:
        original.unlink()
    found = find(original.parent.parent, "unet", wanted)
    assert found is not None and found.half == chosen
    assert found.path == (original if chosen is None else copy_path(original, chosen))


def test_nothing_at_all_is_none(tmp_path: Path) -> None:
    assert find(tmp_path, "vae", "fp16") is None and find_original(tmp_path, "vae") is None
    assert copies_state(tmp_path) == {}


def test_the_state_of_copies_tells_whole_ones_from_others(original: Path) -> None:
    good = copied(original)
    copy_path(original, "bf16").write_bytes(b"half")
    state = copies_state(original.parent.parent)
    assert {name: (one.bytes, one.verified) for name, one in state.items()} == {
        "musetalkV15/unet.fp16.safetensors": (good.stat().st_size, True),
        "musetalkV15/unet.bf16.safetensors": (4, False),
    }


@given(st.dictionaries(st.sampled_from(BUCKETS), st.floats(0.001, 2), max_size=8), st.sampled_from([15, 25, 30, 60]))
def test_a_card_promises_three_quarters_of_its_best_pace(seconds: dict[int, float], fps: int) -> None:
    pace = Throughput(seconds)
    best = max([0.0, *(size / spent for size, spent in seconds.items())])
    assert pace.frames_per_second == best
    assert pace.capacity(fps) <= HEADROOM * best / fps < pace.capacity(fps) + 1
    slower = Throughput({size: 2 * spent for size, spent in seconds.items()})
    assert slower.capacity(fps) <= pace.capacity(fps) and pace.capacity(2 * fps) <= pace.capacity(fps)


def test_a_batch_that_took_no_time_was_not_measured() -> None:
    assert (Throughput().capacity(25), Throughput({4: 0.0}).capacity(25)) == (0, 0)


@given(st.lists(st.integers(1, 32), min_size=1, unique=True).map(sorted), st.integers(1, 40))
def test_a_bucket_is_the_smallest_that_holds_the_batch_or_the_largest(sizes: list[int], count: int) -> None:
    chosen = bucket_of(count, sizes)
    holding = [size for size in sizes if size >= count]
    assert chosen == (min(holding) if holding else max(sizes))


def test_profiles_decode_whole_latent_rows_and_another_name_is_refused_with_those_there_are() -> None:
    for name, profile in PROFILES.items():
        assert profile_named(name) is profile and profile.rows % 8 == 0 and 256 - profile.rows <= SHOWN_FROM
    with pytest.raises(EngineUnavailable, match="'best'; there are quality, lower, fast") as caught:
        profile_named("best")
    assert (caught.value.field, caught.value.value) == ("profile", "best")
