"""Bodies of requests are bounded in size and in time, and a length that is no number is none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from musetalk_agent.protocol.http_server import MAX_BODY, announced, bounded, dictated, timely
from musetalk_agent.protocol.problems import ErrorCode, ProblemError

Part = tuple[bytes, bool]  # bytes of the body, and whether more of it comes


def client(*parts: Part, ticks: Callable[[], None] = lambda: None) -> Callable[[], Awaitable[Message]]:
    """What a client sends, and then nothing any more."""
    waiting: Iterator[Part] = iter(parts)

    async def receive() -> Message:
        ticks()
        part = next(waiting, None)
        if part is None:
            await asyncio.Event().wait()
        assert part is not None
        return {"type": "http.request", "body": part[0], "more_body": part[1]}

    return receive


async def read(receive: Callable[[], Awaitable[Message]]) -> bytes:
    """The whole body."""
    got = b""
    while True:
        message = await receive()
        got += message.get("body", b"")
        if not message.get("more_body", False):
            return got


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=8))
async def test_a_body_arrives_as_it_was_sent(parts: list[bytes]) -> None:
    last = len(parts) - 1
    sent = [(part, at < last) for at, part in enumerate(parts)]
    assert await read(bounded(client(*sent))) == b"".join(parts)


@pytest.mark.parametrize("parts", [1, 2, 7])
@pytest.mark.parametrize(("size", "fits"), [(MAX_BODY - 1, True), (MAX_BODY, True), (MAX_BODY + 1, False)])
async def test_a_body_of_the_limit_passes_and_one_byte_more_is_refused(size: int, fits: bool, parts: int) -> None:
    step = -(-size // parts)
    sizes = [min(step, size - at) for at in range(0, size, step)]
    receive = bounded(client(*[(bytes(one), at < len(sizes) - 1) for at, one in enumerate(sizes)]))
    if fits:
        assert len(await read(receive)) == size
        return
    with pytest.raises(ProblemError, match=f"passes {MAX_BODY} bytes") as refused:
        await read(receive)
    assert (refused.value.code, refused.value.status, refused.value.limit) == ("message_too_large", 413, MAX_BODY)


@pytest.mark.parametrize("sent", [[], [(b"{", True)], [(b"", True), (b"", True)]])
async def test_a_body_that_stops_coming_is_refused_with_the_time_that_was_waited(sent: list[Part]) -> None:
    with pytest.raises(ProblemError, match=r"nothing came for 0\.01 s") as refused:
        await read(timely(client(*sent), 0.01))
    assert (refused.value.code, refused.value.status, refused.value.limit) == ("body_timeout", 408, 0.01)


async def test_after_the_body_the_end_of_the_connection_may_come_at_its_own_time() -> None:
    """A handler that waits for the client to leave is not disturbed by the deadlines of a body that is complete."""
    receive = timely(client((b"{}", False)), 0.001, longest_s=0.001)
    assert await read(receive) == b"{}"
    leaving = asyncio.ensure_future(receive())
    done, _ = await asyncio.wait({leaving}, timeout=0.02)  # many times the deadline
    assert not done
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)


async def test_a_reader_that_is_cancelled_ends_as_cancelled_and_not_as_too_slow() -> None:
    reader = asyncio.create_task(read(timely(client((b"{", True)), 30)))
    await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader


@pytest.mark.parametrize(("parts", "whole"), [(3, True), (4, False), (400, False)])
async def test_a_body_that_trickles_is_over_at_its_deadline(
    parts: int, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part comes each second, and two seconds are the longest."""
    loop, now = asyncio.get_running_loop(), 1000.0

    def tick() -> None:
        nonlocal now
        now += 1

    with monkeypatch.context() as patched:
        patched.setattr(loop, "time", lambda: now)
        receive = timely(client(*[(b"a", at < parts) for at in range(1, parts + 1)], ticks=tick), 60, longest_s=2)
        if whole:
            assert await read(receive) == b"aaa", "the last part may come late: it is here"
            return
        with pytest.raises(ProblemError, match="not sent whole within 2 s") as refused:
            await read(receive)
    assert (refused.value.code, refused.value.limit) == (ErrorCode.BODY_TIMEOUT, 2)


def scope(path: str = "/session/s/speak", method: str = "POST", **headers: bytes) -> dict[str, object]:
    """The head of a request."""
    named = [(name.replace("_", "-").encode(), value) for name, value in headers.items()]
    return {"type": "http", "method": method, "path": path, "headers": named}


@pytest.mark.parametrize(
    ("length", "says"),
    [
        (b"0", 0),
        (b"17", 17),
        (b"00017", 17),
        (b"262145", 262_145),
        (b"-1", 0),
        (b"+5", 0),
        (b"1e9", 0),
        (b" 5", 0),
        (b"5, 5", 0),
        (b"", 0),
        (b"0x10", 0),
        (b"ten", 0),
        ("²".encode("latin-1"), 0),
        (b"9" * 18, 10**18 - 1),
    ],
)
def test_a_length_is_what_a_head_says_and_nothing_where_it_is_no_number(length: bytes, says: int) -> None:
    assert announced(scope(content_length=length)) == says


def test_a_head_without_a_length_promises_nothing_and_one_with_thousands_of_digits_too_much() -> None:
    assert announced(scope()) == 0
    for digits in (20, 100, 5000):  # Python itself reads no number of more than 4300
        assert announced(scope(content_length=b"9" * digits)) > MAX_BODY


@given(st.binary(max_size=30))
def test_no_length_breaks_the_reader(length: bytes) -> None:
    assert 0 <= announced(scope(content_length=length)) <= 10**19


@pytest.mark.parametrize(
    ("path", "method", "kind", "holds"),
    [
        ("/session/s/speak", "POST", b"text/plain", True),
        ("/session/s/speak/", "POST", b"Text/Plain; charset=utf-8", True),
        ("/session/s/speak", "POST", b" text/plain ;x", True),
        ("/session/s/speak", "POST", b"application/json", False),
        ("/session/s/speak", "POST", b"text/plainer", False),
        ("/session/s/speak", "POST", b"", False),
        ("/session/s/speak", "GET", b"text/plain", False),
        ("/session//speak", "POST", b"text/plain", False),
        ("/session/a/b/speak", "POST", b"text/plain", False),
        ("/session/s/speak/more", "POST", b"text/plain", False),
        ("/x/session/s/speak", "POST", b"text/plain", False),
        ("/token", "POST", b"text/plain", False),
    ],
)
def test_only_a_text_for_speak_may_still_be_being_written(path: str, method: str, kind: bytes, holds: bool) -> None:
    assert dictated(scope(path, method, content_type=kind)) is holds
    assert not dictated(scope(path, method))
