"""What the agent makes of a decoder's answers, which here a shell script gives: each broken one has its reason."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from musetalk_agent.avatars import decoder_pool
from musetalk_agent.avatars.decoder_pool import Aborted, DecoderLost, DecoderProcess
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.errors import AvatarTooLarge
from tests.loaded import loaded_by

Decoder = Callable[[str], DecoderProcess]


@pytest.fixture
def decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Decoder]:
    """A process that says these lines when it is asked, and then waits."""
    processes: list[DecoderProcess] = []

    def make(answers: str, then: str = "exec 3>&1 cat > /dev/null") -> DecoderProcess:
        script, said = tmp_path / "decoder", tmp_path / "answers"
        said.write_text(answers)
        script.write_text(f"#!/bin/sh\nread request\ncat {said}\n{then}\n")
        script.chmod(0o755)
        monkeypatch.setattr(decoder_pool, "sys", SimpleNamespace(executable=str(script), path=[]))
        processes.append(DecoderProcess())
        return processes[-1]

    yield make
    for process in processes:
        process.close()
        process.close()


def test_a_decoder_starts_without_what_it_does_not_need() -> None:
    needless = ("pydantic", "numpy", "cv2", "av", "PIL")
    assert loaded_by("musetalk_agent.avatars.decoder_main", needless) == []


BEGUN = '{"begun": true}\n'


@pytest.mark.parametrize(
    ("answers", "reason", "begun", "detail"),
    [
        ('{"crash": "IndexError: of a strange clip"}\n', "crash", False, "IndexError: of a strange clip"),
        (BEGUN + '{"crash": "' + 5000 * "x" + 'end"}\n', "crash", True, 997 * "x" + "end"),
        (BEGUN + '{"memory": true}\n', "memory", True, ""),
        (BEGUN + "[7]\n", "crash", True, "ValueError an answer is no object"),
        (BEGUN + "not json\n", "crash", True, "JSONDecodeError"),
        (BEGUN + '{"error": {"kind": "Nonsense", "detail": "?"}}\n', "crash", True, "KeyError"),
        (BEGUN + '{"progress": 7}\n', "crash", True, "TypeError"),
    ],
    ids=["crash", "a long crash", "memory", "no object", "no JSON", "an error of no kind", "progress of no shape"],
)
def test_a_broken_answer_is_a_lost_process_with_its_reason(
    decoder: Decoder, answers: str, reason: str, begun: bool, detail: str
) -> None:
    process = decoder(answers)
    with pytest.raises(DecoderLost) as lost:
        process.call({"do": "clip"}, AvatarLimits(), progress=lambda *_: None)
    assert (lost.value.reason, lost.value.begun) == (reason, begun)
    assert detail in str(lost.value) and len(str(lost.value)) < 1100


def test_an_error_of_ours_and_one_of_the_disk_come_as_they_were_and_the_process_is_free_again(
    decoder: Decoder,
) -> None:
    process = decoder(BEGUN + '{"error": {"kind": "AvatarTooLarge", "detail": "too many frames", "limit": 7}}\n')
    with pytest.raises(AvatarTooLarge, match="too many frames") as refused:
        process.call({"do": "clip"}, AvatarLimits())
    assert refused.value.limit == 7 and not process.busy and process.served == 1
    process = decoder(f'{{"os_error": [{errno.ENOSPC}, "No space left on device"]}}\n')
    with pytest.raises(OSError, match="No space left") as full:
        process.call({"do": "clip"}, AvatarLimits())
    assert full.value.errno == errno.ENOSPC and not process.busy
    process = decoder('{"os_error": [null, "the disk is gone"]}\n')
    with pytest.raises(OSError, match="the disk is gone") as gone:
        process.call({"do": "clip"}, AvatarLimits())
    assert gone.value.errno is None


@pytest.mark.parametrize("answers", ["", BEGUN], ids=["before it begins", "once it has begun"])
def test_a_call_that_is_called_off_ends_though_nothing_is_answered(decoder: Decoder, answers: str) -> None:
    looks = iter([False, False, True])
    process = decoder(answers)
    with pytest.raises(Aborted):
        process.call({"do": "clip"}, AvatarLimits(), aborted=lambda: next(looks))
    assert process.busy, "it is still at it: the caller has to close it"


def test_an_answer_that_comes_as_the_call_is_called_off_is_not_taken(decoder: Decoder) -> None:
    process = decoder('{"done": true}\n')
    with pytest.raises(Aborted):
        process.call({"do": "clip"}, AvatarLimits(), aborted=lambda: True)


def test_silence_is_a_matter_of_time_and_its_end_a_crash(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_pool, "_START_S", 0.1)
    with pytest.raises(DecoderLost) as lost:
        decoder("").call({"do": "clip"}, AvatarLimits())
    assert (lost.value.reason, lost.value.begun) == ("time", False)
    monkeypatch.undo()
    with pytest.raises(DecoderLost) as lost:
        decoder(BEGUN, then="exit 3").call({"do": "clip"}, AvatarLimits())
    assert (lost.value.reason, lost.value.begun) == ("crash", True)
    with pytest.raises(DecoderLost) as lost:
        decoder(BEGUN, then="kill -XCPU $$").call({"do": "clip"}, AvatarLimits())
    assert lost.value.reason == "cpu"


def test_progress_is_passed_on_and_what_cannot_be_started_is_a_lost_process(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int, int]] = []
    process = decoder(BEGUN + '{"progress": ["decoding", 3, 9]}\n{"progress": ["decoding", 9, 9]}\n{"done": true}\n')
    process.call({"do": "clip"}, AvatarLimits(), progress=lambda *step: seen.append(step))
    assert seen == [("decoding", 3, 9), ("decoding", 9, 9)] and not process.busy
    monkeypatch.setattr(decoder_pool, "sys", SimpleNamespace(executable=str(tmp_path / "nowhere"), path=[]))
    with pytest.raises(DecoderLost) as lost:
        DecoderProcess()
    assert (lost.value.reason, lost.value.begun) == ("start", False)
