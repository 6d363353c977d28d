"""Messages between the load generator and its viewers' processes: one JSON object a line. Times are monotonic seconds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter

LINE_LIMIT = 1 << 20
"""Bytes of one line, on either side."""


class JoinViewer(BaseModel):
    """Joins a room as a viewer that is called `name` here."""

    type: Literal["join"] = "join"
    name: str
    url: str
    token: str = Field(repr=False)


class LeaveViewer(BaseModel):
    """Leaves it; the answer is `left`."""

    type: Literal["leave"] = "leave"
    name: str


Order = Annotated[JoinViewer | LeaveViewer, Field(discriminator="type")]
viewer_commands: TypeAdapter[Order] = TypeAdapter(Order)


class ViewersReady(BaseModel):
    """The process can take orders."""

    type: Literal["hello"] = "hello"


class Joined(BaseModel):
    """The viewer is in the room, or is not: then `error` says why."""

    type: Literal["joined"] = "joined"
    name: str
    error: str | None = None


class Seen(BaseModel):
    """What came since the message before, each with its moment of arrival.

    `frames`: frames. `whites`: the centre of the frame turned white. `onsets`: loud audio began after 100 ms without, to the
    sample. `offsets`: the last loud audio before 100 ms without.
    """

    type: Literal["seen"] = "seen"
    name: str
    frames: list[float] = []
    whites: list[float] = []
    onsets: list[float] = []
    offsets: list[float] = []


class Link(BaseModel):
    """The viewer's own connection to the room changed: `reconnecting`, `reconnected` or `disconnected`."""

    type: Literal["link"] = "link"
    name: str
    state: str
    reason: str = ""


class Left(BaseModel):
    """The viewer has left; what WebRTC counted, all tracks together."""

    type: Literal["left"] = "left"
    name: str
    packets_received: int = 0
    packets_lost: int = 0
    frames_dropped: int = 0
    freezes: int = 0
    concealed_s: float = 0.0


ViewerReport = Annotated[ViewersReady | Joined | Seen | Link | Left, Field(discriminator="type")]
viewer_reports: TypeAdapter[ViewerReport] = TypeAdapter(ViewerReport)


def line(message: BaseModel) -> bytes:
    """A message as it goes over the pipe."""
    return message.model_dump_json().encode() + b"\n"
