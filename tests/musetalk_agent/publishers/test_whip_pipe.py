"""The pipe to a WHIP process, which here is a shell script: how it begins, ends, is ended, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from musetalk_agent.publishers.stream.encoder import QueuedAudio, StreamShape
from musetalk_agent.publishers.whip import sink
from musetalk_agent.publishers.whip.sink import _WhipPush
from tests.waiting import wait_until

Program = Callable[[str], _WhipPush]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    """A push whose process is a shell script with these lines."""
    pushes: list[_WhipPush] = []

    def make(lines: str) -> _WhipPush:
        script = tmp_path / "worker"
        script.write_text(f"#!/bin/sh\n{lines}\n")
        script.chmod(0o755)
        monkeypatch.setattr(sink, "sys", SimpleNamespace(executable=str(script)))
        pushes.append(_WhipPush("http://127.0.0.1:9/whip/v1", "secret-token"))
        return pushes[-1]

    yield make
    for push in pushes:
        push.close()


def shape() -> StreamShape:
    return StreamShape(256, 256, 25, 800_000)


def sound() -> QueuedAudio:
    return QueuedAudio(0.0, np.zeros(480, np.int16))


def refused(push: _WhipPush) -> OSError | None:
    try:
        push.poll()
    except OSError as error:
        return error
    return None


def test_a_push_that_never_began_is_ended_and_closed_without_a_process() -> None:
    push = _WhipPush("http://127.0.0.1:9/whip/v1", "secret-token")
    push.abort()
    push.close()
    push.close()
    assert push.sent == 0 and push.pending() == 0


def test_ending_kills_the_process_and_closing_twice_frees_it_once(program: Program) -> None:
    push = program("read about; echo up; exec 3>&1 cat > /dev/null")
    push.open(shape())
    assert push._process is not None
    process = psutil.Process(push._process.pid)
    push.play(sound())
    push.abort()
    error = wait_until(lambda: refused(push))
    assert isinstance(error, ConnectionError) and "the WHIP process ended" in str(error)
    push.close()
    push.close()
    assert not process.is_running()


def test_the_reason_that_the_process_gives_is_reported_without_the_token(program: Program) -> None:
    push = program("read about; echo up; head -c 1 > /dev/null; echo error 401 Unauthorized")
    push.open(shape())
    push.play(sound())
    error = wait_until(lambda: refused(push))
    assert "401 Unauthorized" in str(error) and "secret-token" not in str(error)
    push.close()


def test_a_process_that_ends_before_it_is_up_fails_the_start(program: Program) -> None:
    push = program("exit 3")
    with pytest.raises(OSError, match=r"the WHIP process ended|Broken pipe"):
        push.open(shape())
    push.close()


def test_a_process_that_reads_nothing_is_given_up(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink, "_STALL_S", 0.05)
    push = program("read about; echo up; exec sleep 1000")
    push.open(shape())
    try:
        with pytest.raises(TimeoutError, match="does not go on"):
            for _ in range(10_000):
                push.play(sound())
    finally:
        push.close()


def test_the_end_is_said_and_waited_for(program: Program) -> None:
    push = program("read about; echo up; head -c 1 > /dev/null")
    push.open(shape())
    push.finish()
    assert push._process is not None and push._process.returncode == 0
    push.close()
