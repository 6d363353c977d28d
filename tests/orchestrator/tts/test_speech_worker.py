"""The worker process when things go wrong: killed, hung, refusing to start, orphaned."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
from typing import Any

import psutil
import pytest

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator import worker_pipe
from orchestrator.tts.local import LocalSynthesizer
from orchestrator.tts.speech_worker import TIMES, SpeechWorker, SpokenPart
from orchestrator.tts.voices import Voices
from orchestrator.worker_process import NICE, WorkerLink, backoff_s
from tests.waiting import NEVER_S, until, wait_until

COMMAND = (sys.executable, "-m", "orchestrator.tts.worker")
LONG = " ".join(f"This is sentence number {n} of a long story that nobody waits for." for n in range(20))


pytestmark = pytest.mark.usefixtures("no_process_left")


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.voice
async def test_a_killed_worker_fails_its_utterance_and_the_next_one_speaks() -> None:
    synthesizer = LocalSynthesizer()
    voices = Voices(synthesizers=[synthesizer])
    await voices.open()
    try:
        first = synthesizer.pid
        assert first is not None
        speech = voices.speak(LONG, None)
        await anext(speech)
        os.kill(first, signal.SIGKILL)
        with pytest.raises(ProblemError) as caught:
            async for _ in speech:
                pass
        assert caught.value.code is ErrorCode.TTS_FAILED
        # Asked for while the worker is down: waits for the new one.
        assert [chunk async for chunk in voices.speak("And on we go.", None)]
        assert synthesizer.pid not in (None, first)
        assert synthesizer.statistics.starts == 2
    finally:
        pid = synthesizer.pid
        await voices.aclose()
        await voices.aclose()
    assert pid is not None and gone(pid)
    with pytest.raises(ProblemError) as caught:
        voices.speak("Too late.", None)
    assert caught.value.code is ErrorCode.TTS_FAILED


# Speaks the protocol without a voice: answers with 10 ms of silence, and does what it should not over certain texts.
SCRIPTED = """
import sys, time
from orchestrator import worker_pipe as f
i, o = sys.stdin.buffer, sys.stdout.buffer
def send(b): o.write(b); o.flush()
send(f.encode({'voices': [{'name': 'x:y', 'language': 'en', 'provider': 'x', 'sample_rate': 16000}]}))
while p := i.read(8):
    h = f.decode_header(i.read(f.lengths(p)[0]))
    if h['text'] == 'die': sys.exit(3)
    if h['text'] == 'hang': time.sleep(60)
    n, t = h['id'], h['text']
    if t == 'babble': send(b'x' * 64)
    if t == 'huge': send(b'\\xff' * 8)
    if t == 'flood':
        while True: send(f.encode({'id': n + 1, 'sample_rate': 16000}, bytes(320)))
    if t == 'trickle':
        while True: send(b'\\0'); time.sleep(0.1)
    if t == 'deep': b = b'[' * 200_000; send(f.LENGTHS.pack(len(b), 0) + b)
    if t == 'log':
        for _ in range(400): sys.stderr.write('y' * 4000)
    if t == 'refuse': send(f.encode({'id': n, 'error': 'KeyError'})); continue
    wrong = {'odd': {}, 'rate': {'sample_rate': 0}, 'cue': {'cues': [['a', 0, 161]]}, 'word': {'words': [['a', -1, 1]]}}
    if t == 'twice': send(f.encode({'id': n, 'sample_rate': 16000, 'cues': []}, b'\\1\\1' * 160))
    sent = {'id': n, 'sample_rate': 16000, 'cues': [['a', 0, 160]], **wrong.get(t, {})}
    send(f.encode(sent, bytes(321 if t == 'odd' else 320)))
"""


@pytest.fixture
def scripted() -> SpeechWorker:
    return SpeechWorker((sys.executable, "-c", SCRIPTED), part_timeout_s=NEVER_S)


@pytest.mark.parametrize(
    "text", ["die", "hang", "babble", "huge", "flood", "trickle", "deep", "odd", "rate", "cue", "word"]
)
async def test_only_the_part_in_progress_fails(scripted: SpeechWorker, text: str) -> None:
    if text in ("hang", "flood", "trickle"):
        scripted.part_timeout_s = 0.5
    await scripted.open()
    try:
        bad = scripted.submit("x:y", text)
        good = scripted.submit("x:y", "hello")
        with pytest.raises(ProblemError) as caught:
            await bad
        scripted.part_timeout_s = NEVER_S
        assert caught.value.code is ErrorCode.TTS_FAILED
        assert len((await good).pcm) == 320
        assert scripted.statistics.starts == 2 and scripted.statistics.failures == 1
    finally:
        await scripted.aclose()


async def test_what_paces_sound_goes_before_a_voice(scripted: SpeechWorker) -> None:
    await scripted.open()
    try:
        assert scripted.pid is not None
        assert psutil.Process(scripted.pid).nice() == min(psutil.Process().nice() + NICE, 19)
    finally:
        await scripted.aclose()


async def test_an_answer_too_many_is_nobodys(scripted: SpeechWorker) -> None:
    """Each text would be spoken with the sound of the one before it."""
    await scripted.open()
    try:
        assert (await scripted.submit("x:y", "twice")).pcm == b"\1\1" * 160
        with pytest.raises(ProblemError) as caught:
            await scripted.submit("x:y", "hello")
        assert caught.value.code is ErrorCode.TTS_FAILED
        assert (await scripted.submit("x:y", "hello")).pcm == bytes(320) and scripted.statistics.starts == 2
    finally:
        await scripted.aclose()


async def test_a_worker_that_floods_its_log_fills_not_ours(
    scripted: SpeechWorker, caplog: pytest.LogCaptureFixture
) -> None:
    await scripted.open()
    try:
        assert await scripted.submit("x:y", "log")
    finally:
        await scripted.aclose()
    assert 1000 < sum(len(record.__dict__.get("text", "")) for record in caplog.records) <= 64 << 10


@pytest.mark.parametrize(
    "voices", ['[{"name": "x:y"}]', "[7]", '[{"name":1,"language":1,"provider":1,"sample_rate":1e99}]']
)
async def test_a_hello_that_is_malformed_is_a_lost_worker(voices: str) -> None:
    program = f"import sys, json; from orchestrator import worker_pipe as f; v = json.loads({voices!r}); "
    program += "sys.stdout.buffer.write(f.encode({'voices': v})); sys.stdout.flush(); sys.stdin.read()"
    worker = SpeechWorker((sys.executable, "-c", program))
    await worker.open()
    try:
        waiting = worker.submit("x:y", "hello")
        async with asyncio.timeout(NEVER_S):
            with pytest.raises(ProblemError) as caught:
                await waiting
        assert caught.value.code is ErrorCode.TTS_FAILED and worker.statistics.failures >= 1
    finally:
        await worker.aclose()


async def test_a_part_the_voice_refuses_costs_no_worker(scripted: SpeechWorker) -> None:
    await scripted.open()
    try:
        with pytest.raises(ProblemError) as caught:
            await scripted.submit("x:y", "refuse")
        assert caught.value.code is ErrorCode.TTS_FAILED
        assert scripted.statistics.starts == 1
    finally:
        await scripted.aclose()


async def test_a_worker_that_dies_idle_is_replaced(scripted: SpeechWorker) -> None:
    await scripted.open()
    try:
        pid = scripted.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: gone(pid) and scripted.statistics.failures == 1)  # and that is known
        async with asyncio.timeout(NEVER_S):
            assert await scripted.submit("x:y", "hello")
    finally:
        await scripted.aclose()


async def test_a_fault_of_our_own_fails_the_part_and_the_worker_is_started_again(
    scripted: SpeechWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scripted.open()
    real = WorkerLink.exchange

    async def breaks(link: WorkerLink, header: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        if header["text"] == "break":
            raise LookupError("a bug")
        return await real(link, header)

    monkeypatch.setattr(WorkerLink, "exchange", breaks)
    try:
        async with asyncio.timeout(NEVER_S):
            with pytest.raises(ProblemError) as caught:
                await scripted.submit("x:y", "break")
            assert caught.value.code is ErrorCode.TTS_FAILED
            assert (await scripted.submit("x:y", "hello")).pcm == bytes(320)
    finally:
        await scripted.aclose()


def test_the_back_off_has_a_limit_however_often_a_worker_was_lost() -> None:
    assert [backoff_s(losses, TIMES.backoff_s) for losses in (1, 2, 3, 4, 7, 5000)] == [0.1, 0.2, 0.4, 0.8, 5.0, 5.0]


async def test_closing_ends_a_hung_worker_and_fails_what_waits(scripted: SpeechWorker) -> None:
    await scripted.open()
    pid = scripted.pid
    waiting = [scripted.submit("x:y", "hang"), scripted.submit("x:y", "hello", due=math.inf)]
    await until(lambda: scripted.statistics.waiting == 1)  # the other one is in progress
    async with asyncio.timeout(NEVER_S):
        await scripted.aclose()
    assert pid is not None and gone(pid)
    for result in waiting:
        with pytest.raises(ProblemError):
            await result


async def test_a_worker_that_cannot_start_is_no_crash() -> None:
    worker = SpeechWorker(("/nonexistent/worker",))
    await worker.open()
    assert worker.voices == ()
    waiting = worker.submit("x:y", "hello")
    async with asyncio.timeout(NEVER_S):
        with pytest.raises(ProblemError) as caught:
            await waiting
    assert caught.value.code is ErrorCode.TTS_FAILED
    await worker.aclose()


async def test_parts_are_made_in_the_order_they_are_due(scripted: SpeechWorker) -> None:
    await scripted.open()
    made: list[str] = []
    try:
        now = asyncio.get_running_loop().time()
        due = {"in progress": None, "late": now + 9, "soon": now + 1, "starving": now - 1, "new": None}
        results = {name: scripted.submit("x:y", "hello", due=when) for name, when in due.items()}

        async def note(name: str) -> None:
            await results[name]
            made.append(name)

        await asyncio.gather(*map(note, results))
    finally:
        await scripted.aclose()
    assert made[0] == "starving" and made[-2:] == ["soon", "late"]


async def test_cancelled_parts_are_never_made(scripted: SpeechWorker) -> None:
    await scripted.open()
    try:
        results = [scripted.submit("x:y", "hello", due=math.inf) for _ in range(5)]
        for result in results[1:]:
            result.cancel()
        await results[0]
        await scripted.submit("x:y", "hello", due=math.inf)
        assert scripted.statistics.parts == 2
    finally:
        await scripted.aclose()


@pytest.mark.voice
async def test_opening_twice_starts_one_worker(scripted: SpeechWorker) -> None:
    await asyncio.gather(scripted.open(), scripted.open())
    try:
        pid = scripted.pid
        await scripted.open()
        assert scripted.pid == pid and scripted.statistics.starts == 1
        assert (await scripted.submit("x:y", "hello")).sample_rate == 16000
    finally:
        await scripted.aclose()


@pytest.mark.parametrize("text", ["hello", "refuse", "die"])
async def test_what_is_cancelled_while_it_is_made_is_dropped_and_the_next_is_spoken(
    scripted: SpeechWorker, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """Also where it would have failed."""
    await scripted.open()
    real = WorkerLink.exchange
    dropped: list[asyncio.Future[SpokenPart]] = []

    async def cancels(link: WorkerLink, header: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        for result in dropped:
            result.cancel()
        return await real(link, header)

    monkeypatch.setattr(WorkerLink, "exchange", cancels)
    try:
        async with asyncio.timeout(NEVER_S):
            dropped.append(scripted.submit("x:y", text))
            assert (await scripted.submit("x:y", "hello")).pcm == bytes(320)
        assert dropped[0].cancelled()
        assert scripted.statistics.parts == (2 if text == "hello" else 1)
    finally:
        await scripted.aclose()


def test_the_worker_leaves_when_its_core_is_killed() -> None:
    program = (
        f"import subprocess; p = subprocess.Popen({list(COMMAND)!r}, stdin=-1, stdout=-1); print(p.pid, flush=True); "
    )
    program += "p.stdout.read(8); print('ready', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as core:
        assert core.stdout is not None
        worker = int(core.stdout.readline())
        assert core.stdout.readline().strip() == b"ready"
        assert not gone(worker)
        core.kill()
        core.wait()
        wait_until(lambda: gone(worker))


@pytest.mark.voice
def test_the_worker_leaves_at_nonsense() -> None:
    with subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as worker:
        assert worker.stdin is not None and worker.stdout is not None
        head, _ = worker_pipe.lengths(worker.stdout.read(worker_pipe.LENGTHS.size))
        assert worker_pipe.decode_header(worker.stdout.read(head))["voices"]
        worker.stdin.write(b"\xff" * 64)
        worker.stdin.flush()
        assert worker.wait(NEVER_S) == 0
