"""Messages between the core and the voice worker. Their framing is that of the speech worker: a JSON header and a payload.

Times named `at` are seconds of the machine's monotonic clock, which both processes share. Positions named `_s` are seconds from the
segment's own first sample.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter


class JoinRoom(BaseModel):
    """A line joins its room. `on_air`: it publishes its track at once."""

    op: Literal["join"] = "join"
    line: str
    url: str
    token: str = Field(repr=False)
    on_air: bool


class Publish(BaseModel):
    """The line publishes its track, or takes it back and stays in the room."""

    op: Literal["air"] = "air"
    line: str
    on: bool


class LeaveRoom(BaseModel):
    """The line leaves its room; its last report has the state `left`."""

    op: Literal["leave"] = "leave"
    line: str


class SegmentPcm(BaseModel):
    """The payload is int16 mono PCM of a segment at `rate` Hz, from sample `start` on. Blocks of a segment follow without gaps."""

    op: Literal["sound"] = "sound"
    line: str
    segment: int
    rate: int
    start: int


class EndSegment(BaseModel):
    """No more PCM for the segment."""

    op: Literal["end"] = "end"
    line: str
    segment: int


class SyncTo(BaseModel):
    """Second `heard_s` of the segment leaves at `at`, and what follows without a gap; `held`: the voice pauses there.

    Without this a line says what it has as soon as it can; `free` returns to that.
    """

    op: Literal["follow"] = "follow"
    line: str
    segment: int = 0
    heard_s: float = 0.0
    at: float = 0.0
    held: bool = False
    free: bool = False


class ClearAudio(BaseModel):
    """Silence at once; everything the line has is dropped."""

    op: Literal["clear"] = "clear"
    line: str


class Handoff(BaseModel):
    """Asks for a place to stop: at least `after_s` ahead of what was handed to the SDK, in a pause of the `within_s` after that."""

    op: Literal["cut"] = "cut"
    line: str
    call: int
    after_s: float
    within_s: float


Order = Annotated[
    JoinRoom | Publish | LeaveRoom | SegmentPcm | EndSegment | SyncTo | ClearAudio | Handoff, Field(discriminator="op")
]
worker_commands: TypeAdapter[Order] = TypeAdapter(Order)


class WorkerReady(BaseModel):
    """The worker's first message: the SDK is loaded. Again every second, as a sign of life."""

    op: Literal["hello"] = "hello"


class LineReport(BaseModel):
    """Where a line is; every 100 ms while it speaks, and when something changes.

    `state`: `joining`, `joined` (no track), `live` (track published), `reconnecting`, `left`. At `at`, `heard_s` of `segment`
    was heard; the sound goes on by itself up to `handed_s`. `next_segment` and `next_s` are where the next block comes from.
    `finished` are segments heard to their end since the last report.
    """

    op: Literal["report"] = "report"
    line: str
    state: str
    at: float
    segment: int = 0
    heard_s: float = 0.0
    handed_s: float = 0.0
    next_segment: int = 0
    next_s: float = 0.0
    finished: list[int] = []
    stopped: bool = False
    room: str | None = None
    sid: str | None = None
    level_dbfs: float | None = None
    buffer_s: float = 0.0
    corrections: int = 0
    error: str | None = None


class HandoffDone(BaseModel):
    """Answer to `cut`: the line says `heard_s` of `segment` and no more; the last sample leaves at `at`.

    `segment` 0: it has nothing to say.

    `whole`: that is the segment's end.
    """

    op: Literal["cut_made"] = "cut_made"
    line: str
    call: int
    segment: int
    heard_s: float
    at: float
    whole: bool


WorkerReport = Annotated[WorkerReady | LineReport | HandoffDone, Field(discriminator="op")]
worker_reports: TypeAdapter[WorkerReport] = TypeAdapter(WorkerReport)
