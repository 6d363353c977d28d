"""The words of the failover's state machine: its states, events and acts, and its times in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum, auto

SUSPECT_S = 1.0
"""Nothing came back from the SFU for so long (its answers are 0.3 s apart, 0.8 s when it stalls): a stream is opened in case."""
DEAD_S = 1.5
"""Nothing for so long: the room counts as dead. A cut of one second, which the SDK rides out by itself, looks shorter than this."""
PROBE_AT_START_S = 2.5
JOIN_AT_START_S = 3.0
"""A start that has another way waits so long for the room."""
STREAM_AT_START_S = 2.5
ALONE_AT_START_S = 10.0
"""A start that has no other way waits so long: a join through blocked UDP fails by itself after a minute only."""
WHIP_S = 4.0
LEAVE_S = 0.8
"""An identity counts as left after this, whether the goodbye was answered or not."""
PAUSE_S = 3.0
"""A return waits so long for a pause of the voice."""
DRAIN_S = 5.0  # on top of it, the most that an identity's own stream may take to be heard
INGRESS_LEAD_S = 1.0
"""The voice waits so long when a push to an ingress begins: nobody has subscribed to its tracks yet."""
INGRESS_STAY_S = 4.0
"""An ingress is not left before it can have begun."""
SDK_S = 60.0
"""The SDK tries so long to reconnect before its room is given up for a new one."""
LOST_S = 120.0
RETRY_S = (1.0, 10.0)
"""Pause after a join that failed: it doubles from the first to the second."""
TRUST_S = 60.0
BACK_OFF_S = (10.0, 120.0)
"""A room that dies within `TRUST_S` of a return is not returned to for 10 s, and twice as long each time, up to 120 s."""


class Rung(StrEnum):
    """The way that media take."""

    LIVEKIT = "livekit"
    WHIP = "whip"
    RTMP = "rtmp"
    NONE = "none"


class State(StrEnum):
    """Where the ladder stands."""

    NEW = "new"
    PROBING = "probing"  # nothing carries: whether the room can be reached is tried under another identity
    JOINING = "joining"  # nothing carries: the room is being joined
    WEBRTC = "webrtc"  # the room carries
    SUSPECT = "suspect"  # the room carries, and nothing came back for a moment
    MOVING = "moving"  # the room carries until the stream is connected: RTMP was asked for
    SILENT = "silent"  # nothing carries: the room is dead, the SDK tries to reconnect
    WAITING = "waiting"  # nothing carries: until the next join
    LEAVING = "leaving"  # nothing carries: the room is being left for a stream of the same identity
    WHIP_OPENING = "whip_opening"  # nothing carries: WHIP is being connected
    WHIP = "whip"
    RTMP_OPENING = "rtmp_opening"  # nothing carries: the stream is being connected
    RTMP = "rtmp"
    REJOINING = "rejoining"  # RTMP carries while the room is being joined
    SETTLING = "settling"  # RTMP carries, the room is joined: until the voice pauses
    DRAINING = "draining"  # a stream of the same identity carries until all of it was heard
    LOST = "lost"


class Event(Enum):
    """What happens to it."""

    START = auto()
    TICK = auto()
    PROBE_OK = auto()
    PROBE_FAILED = auto()
    JOINED = auto()
    JOIN_FAILED = auto()  # timed out, or the SFU does not answer
    JOIN_BROKE = auto()  # the SDK failed at once, although the SFU answers over HTTP
    JOIN_REFUSED = auto()  # the SFU does not take the token
    ROOM_LOST = auto()  # the SDK has given up
    ROOM_ENDED = auto()  # somebody ended it: the avatar was removed or replaced, the room closed
    ROOM_LEFT = auto()
    STREAM_UP = auto()
    STREAM_DOWN = auto()
    WHIP_UP = auto()
    WHIP_DOWN = auto()
    MODE = auto()


class Act(Enum):
    """What is to be done, in this order."""

    JOIN = auto()
    LEAVE_ROOM = auto()
    OPEN_STREAM = auto()
    CLOSE_STREAM = auto()
    OPEN_WHIP = auto()
    CLOSE_WHIP = auto()
    REWIND = auto()  # play again what is not known to be heard
    GIVE_UP = auto()


RUNGS = {
    State.WEBRTC: Rung.LIVEKIT,
    State.SUSPECT: Rung.LIVEKIT,
    State.MOVING: Rung.LIVEKIT,
    State.WHIP: Rung.WHIP,
    State.RTMP: Rung.RTMP,
    State.REJOINING: Rung.RTMP,
    State.SETTLING: Rung.RTMP,
}
PROBED = frozenset({State.PROBING, State.RTMP_OPENING, State.RTMP, State.WHIP})


@dataclass(frozen=True, slots=True)
class Ways:
    """What there is besides the room.

    `rtmp`: an RTMP target; `ingress`: it leads into the same room, under the same identity; `beside`: it runs all the time;
    `whip`: the SFU may be reached by WHIP.
    """

    rtmp: bool = False
    ingress: bool = False
    beside: bool = False
    whip: bool = False
