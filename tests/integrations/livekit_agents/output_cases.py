"""Cases of `AvatarOutput` with a room made for them. Runs with the Python of livekit-agents; prints a line of JSON a case.

The avatar of these cases reports only what a case has it report.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

from livekit import rtc
from livekit.plugins.musetalk import output as module
from livekit.plugins.musetalk.output import AvatarOutput

from tests.waiting import turns, until

RATE = 1000
AVATAR = "avatar"


class Writer:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.data, self.closed = b"", False

    async def write(self, data: bytes) -> None:
        self.data += data

    async def aclose(self) -> None:
        self.closed = True


class Room(rtc.EventEmitter[str]):
    """The part of `rtc.Room` that an output uses."""

    def __init__(self) -> None:
        super().__init__()
        self.streams: list[Writer] = []
        self.cleared = 0
        self.clears: asyncio.Event | None = None  # a call waits for it
        self.broken = False
        self.methods: dict[str, Callable[[Any], str]] = {}
        self.avatar = SimpleNamespace(
            identity=AVATAR,
            state=rtc.ParticipantState.PARTICIPANT_STATE_ACTIVE,
            kind=rtc.ParticipantKind.PARTICIPANT_KIND_AGENT,
            track_publications={"v": SimpleNamespace(kind=rtc.TrackKind.KIND_VIDEO)},
        )
        self.remote_participants: dict[str, Any] = {AVATAR: self.avatar}
        self.local_participant = SimpleNamespace(
            stream_bytes=self._open,
            perform_rpc=self._call,
            register_rpc_method=lambda name, handler: self.methods.__setitem__(name, handler),
            _rpc_handlers=self.methods,
        )

    def isconnected(self) -> bool:
        return True

    async def _open(self, **_: Any) -> Writer:
        if self.broken:
            raise RuntimeError("the room is broken")
        self.streams.append(Writer())
        return self.streams[-1]

    async def _call(self, **_: Any) -> str:
        self.cleared += 1
        if self.clears is not None:
            await self.clears.wait()
        return "ok"

    def report(self, method: str, **facts: Any) -> None:
        self.methods[method](SimpleNamespace(caller_identity=AVATAR, payload=json.dumps(facts)))

    def begin(self) -> None:
        self.report("lk.playback_started")

    def finish(self, position_s: float, interrupted: bool = False) -> None:
        self.report("lk.playback_finished", playback_position=position_s, interrupted=interrupted)

    def leave(self) -> None:
        self.emit("participant_disconnected", self.remote_participants.pop(AVATAR))

    def enter(self) -> None:
        self.remote_participants[AVATAR] = self.avatar
        self.emit("participant_connected", self.avatar)


def frame(first: int, samples: int) -> rtc.AudioFrame:
    """Samples that count up from `first`."""
    pcm = b"".join((n % 30000).to_bytes(2, "little") for n in range(first, first + samples))
    return rtc.AudioFrame(pcm, RATE, 1, samples)


async def say(output: AvatarOutput, seconds: float) -> None:
    """A whole segment, in frames of 100 ms."""
    for first in range(0, round(seconds * RATE), RATE // 10):
        await output.capture_frame(frame(first, RATE // 10))
    output.flush()


async def sent(room: Room, number: int) -> None:
    """Returns when a stream has all of its segment, and is closed. The first is 1."""
    await until(lambda: len(room.streams) == number and room.streams[-1].closed)


async def heard(room: Room, output: AvatarOutput, position_s: float) -> list[object]:
    """The avatar plays what it has and reports the end: the position and whether it counts as interrupted."""
    room.begin()
    room.finish(position_s)
    return await over(output)


async def over(output: AvatarOutput) -> list[object]:
    """The position of the segment that ended, and whether it counts as interrupted."""
    event = await output.wait_for_playout()
    return [event.playback_position, event.interrupted]


async def paused_in_a_long_speech(room: Room, output: AvatarOutput) -> list[object]:
    """Little is sent ahead; what was not heard is sent again, and no sample is lost."""
    await say(output, 20)
    await until(lambda: len(room.streams) == 1 and len(room.streams[0].data) >= 2 * RATE * module.LEAD_S)
    room.begin()
    output.pause()
    await until(lambda: room.cleared)
    ahead = len(room.streams[0].data) / 2 / RATE
    room.finish(1.0, interrupted=True)
    await until(lambda: room.streams[0].closed)
    held = output.position_s
    output.resume()
    await until(lambda: len(room.streams) == 2 and room.streams[1].data)
    first = int.from_bytes(room.streams[1].data[:2], "little")
    return [module.LEAD_S <= ahead < 2 * module.LEAD_S, held, first, *await heard(room, output, 19.0)]


async def interrupted_while_a_clear_is_answered(room: Room, output: AvatarOutput) -> list[object]:
    """An answer begins while the avatar still has to say where it stopped, and is cancelled: it is over, too."""
    await say(output, 2)
    await until(lambda: room.streams and room.streams[0].data)
    room.begin()
    room.clears = asyncio.Event()
    output.pause()
    output.clear_buffer()
    await until(lambda: room.cleared)
    capture = asyncio.create_task(output.capture_frame(frame(0, 100)))
    await until(lambda: output.captured_playout_segments == 2)
    capture.cancel()
    await asyncio.gather(capture, return_exceptions=True)
    output.flush()
    output.clear_buffer()
    room.clears.set()
    room.finish(0.5, interrupted=True)
    return [output.captured_playout_segments, *await over(output)]


async def a_report_that_never_comes(room: Room, output: AvatarOutput) -> list[object]:
    module.OVERDUE_S = 0.1
    await say(output, 0.2)
    await sent(room, 1)
    room.begin()
    return await over(output)


async def a_report_that_is_late(room: Room, output: AvatarOutput) -> list[object]:
    """It does not end the speech that came after it."""
    module.RECALL_S = 0.05
    await say(output, 1)
    await until(lambda: room.streams and room.streams[0].data)
    output.clear_buffer()
    first = await output.wait_for_playout()
    await say(output, 0.3)
    await sent(room, 2)
    room.finish(0.4, interrupted=True)
    pending = output._pending_playback_count
    return [first.interrupted, pending, *await heard(room, output, 0.3)]


async def another_avatar(room: Room, output: AvatarOutput) -> list[object]:
    """It says what the one that died had not said."""
    module.BACK_S = 0.05
    await say(output, 1)
    await sent(room, 1)
    room.leave()
    room.enter()
    await sent(room, 2)
    again = len(room.streams[1].data) / 2 / RATE
    return [again, *await heard(room, output, again)]


async def the_same_avatar_again(room: Room, output: AvatarOutput) -> list[object]:
    """It still has the speech, and says so."""
    await say(output, 1)
    await sent(room, 1)
    room.begin()
    room.leave()
    room.enter()
    return [len(room.streams), *await heard(room, output, 1.0)]


async def no_avatar(room: Room, output: AvatarOutput) -> list[object]:
    module.AWAY_S = 0.05
    await say(output, 1)
    await sent(room, 1)
    room.leave()
    return await over(output)


async def a_room_that_breaks(room: Room, output: AvatarOutput) -> list[object]:
    room.broken = True
    await say(output, 1)
    first = await output.wait_for_playout()
    room.broken = False
    await say(output, 0.3)
    await sent(room, 1)
    return [first.interrupted, *await heard(room, output, 0.3)]


async def more_than_may_wait(room: Room, output: AvatarOutput) -> list[object]:
    """A capture waits, and ends with the speech."""
    module.BACKLOG_S = 0.15
    output.pause()
    await output.capture_frame(frame(0, 100))
    waiting = asyncio.create_task(output.capture_frame(frame(0, 100)))
    await turns()
    waits = not waiting.done()
    output.flush()
    output.clear_buffer()
    await waiting
    return [waits, *await over(output)]


async def a_voice_slower_than_it_is_sent(room: Room, output: AvatarOutput) -> list[object]:
    """What there is goes, and what comes later follows it in the same stream."""
    await output.capture_frame(frame(0, RATE // 10))
    await until(lambda: room.streams and len(room.streams[0].data) == 2 * RATE // 10)
    await turns()
    waits = not room.streams[0].closed
    await output.capture_frame(frame(RATE // 10, RATE // 10))
    output.flush()
    await sent(room, 1)
    whole = room.streams[0].data == bytes(frame(0, RATE // 5).data)
    return [waits, whole, *await heard(room, output, 0.2)]


async def closed(room: Room, output: AvatarOutput) -> list[object]:
    """Nothing waits afterwards, not even what comes later."""
    await say(output, 1)
    await output.aclose()
    first = await output.wait_for_playout()
    await say(output, 1)
    second = await output.wait_for_playout()
    return [first.interrupted, second.interrupted, output.captured_playout_segments]


CASES: dict[str, Callable[[Room, AvatarOutput], Awaitable[list[object]]]] = {
    case.__name__: case
    for case in (
        paused_in_a_long_speech,
        interrupted_while_a_clear_is_answered,
        a_report_that_never_comes,
        a_report_that_is_late,
        another_avatar,
        the_same_avatar_again,
        no_avatar,
        a_room_that_breaks,
        more_than_may_wait,
        a_voice_slower_than_it_is_sent,
        closed,
    )
}
_CHANGED = ("OVERDUE_S", "RECALL_S", "BACK_S", "AWAY_S", "BACKLOG_S")


async def main() -> None:
    usual = {name: getattr(module, name) for name in _CHANGED}
    for name, case in CASES.items():
        for constant, value in usual.items():
            setattr(module, constant, value)
        room = Room()
        # `Room` has what is used of the SDK's
        output = AvatarOutput(cast(Any, room), destination_identity=AVATAR, sample_rate=RATE)
        try:
            async with asyncio.timeout(60):
                found: object = await case(room, output)
        except TimeoutError:
            found = "it hangs"
        await output.aclose()
        sys.stdout.write(json.dumps({name: found}) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
