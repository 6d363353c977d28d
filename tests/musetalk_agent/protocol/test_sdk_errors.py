"""What the LiveKit SDK raises gets one name, and what others handle keeps its own."""

import asyncio
import logging

import pytest
from livekit import rtc

from musetalk_agent.protocol.sdk_errors import SdkError, clean_up, sdk_errors


@pytest.mark.parametrize("raised", [Exception("no frame"), RuntimeError("closed"), rtc.ConnectError("refused")])
def test_whatever_the_sdk_raises_becomes_one_error_that_reads_like_it(raised: Exception) -> None:
    with pytest.raises(SdkError) as caught, sdk_errors():
        raise raised
    assert (str(caught.value), repr(caught.value)) == (str(raised), repr(raised))
    assert caught.value.raised is raised
    assert caught.value.__cause__ is raised


@pytest.mark.parametrize("raised", [TimeoutError(), asyncio.CancelledError(), KeyError("passing")])
def test_time_outs_cancelling_and_what_the_caller_names_pass(raised: BaseException) -> None:
    with pytest.raises(type(raised)) as caught, sdk_errors(KeyError):
        raise raised
    assert caught.value is raised


async def test_a_clean_up_logs_what_fails_or_never_ends(caplog: pytest.LogCaptureFixture) -> None:
    async def fails() -> None:
        raise Exception("the native library said no")

    with caplog.at_level(logging.WARNING):
        await clean_up(fails(), 10.0, logging.getLogger("test"), room="r")
        await clean_up(asyncio.Event().wait(), 0.01, logging.getLogger("test"))
    first, second = caplog.records
    assert "the native library said no" in first.__dict__["error"]
    assert first.__dict__["room"] == "r"
    assert "TimeoutError" in second.__dict__["error"]


async def test_a_clean_up_that_is_cancelled_ends() -> None:
    task = asyncio.create_task(clean_up(asyncio.Event().wait(), 10.0, logging.getLogger("test")))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
