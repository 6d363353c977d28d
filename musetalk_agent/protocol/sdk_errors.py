"""Failures of the LiveKit SDK under one name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class SdkError(Exception):
    """A call into the LiveKit SDK failed. Text and representation are those of `raised`, which is also the cause."""

    def __init__(self, raised: Exception) -> None:
        super().__init__(str(raised))
        self.raised = raised

    def __repr__(self) -> str:
        return repr(self.raised)


@contextmanager
def sdk_errors(*passing: type[Exception]) -> Iterator[None]:
    """Raises `SdkError` for what the SDK raises, but for TimeoutError and the classes of `passing`. Cancelling passes.

    livekit-rtc 1.x has no base class for its errors: beside `ConnectError`, `PublishTrackError`, `RpcError` and `StreamError` it
    raises `RuntimeError` (`Room.get_rtc_stats`, a stream that is closed) and bare `Exception` (`AudioSource.capture_frame`,
    `Room.local_participant`).
    """
    try:
        yield
    except (TimeoutError, SdkError, *passing):
        raise
    except Exception as error:  # the SDK raises bare Exceptions; see above
        raise SdkError(error) from error
