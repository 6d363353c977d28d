"""An agent that waits for its acknowledgement waits for ever if none comes: whatever happens, each stream gets exactly one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from musetalk_agent.avatar_protocol import core
from musetalk_agent.avatar_protocol.core import (
    AvatarProtocol,
    Begin,
    ClearBuffer,
    Close,
    Command,
    End,
    PushAudio,
    Refuse,
    RpcCall,
)
from musetalk_agent.protocol.messages import PlaybackFinished, PlaybackStarted

SENDER = "agent-1"
USABLE = {"sample_rate": "16000", "num_channels": "1"}
UNUSABLE = {"sample_rate": "12", "num_channels": "none"}
SECOND = np.ones(16_000, np.int16).tobytes()


@dataclass
class World:
    """The agent, the reader of its streams, and a pipeline that plays what it is given."""

    protocol: AvatarProtocol = field(default_factory=lambda: AvatarProtocol(SENDER, tail_s=0.1))
    now: float = 0.0
    waiting: list[str] = field(default_factory=list)  # streams that came, the first may be being read
    reading: str | None = None
    playing: dict[int, float] = field(default_factory=dict)  # segments that have begun and are not over: their seconds
    open: int | None = None
    begun: list[int] = field(default_factory=list)
    came: int = 0
    acknowledged: list[tuple[float, bool]] = field(default_factory=list)

    def take(self, acts: Sequence[Command]) -> None:
        for act in acts:
            match act:
                case Begin(number):
                    assert number not in self.begun, "a segment began twice"
                    self.begun.append(number)
                    self.playing[number], self.open = 0.0, number
                case PushAudio(samples):
                    assert self.open is not None, "sound without a segment"
                    self.playing[self.open] += len(samples) / 16_000
                case End():
                    assert self.open is not None
                    self.open = None
                case ClearBuffer():
                    self.cleared()
                case Close(stream):
                    self.forget(stream)
                case RpcCall(core.FINISHED_METHOD, payload):
                    said = json.loads(payload)
                    self.acknowledged.append((said["playback_position"], said["interrupted"]))
                case _:
                    pass
        assert len(self.acknowledged) <= self.came

    def forget(self, stream: str) -> None:
        if stream in self.waiting:
            self.waiting.remove(stream)
        if self.reading == stream:
            self.reading = None

    def cleared(self) -> None:
        """The pipeline drops everything and says so of each segment, by whomever it was asked."""
        over, self.playing, self.open = self.playing, {}, None
        for number, seconds in over.items():
            self.take(
                self.protocol.on_playback_event(
                    PlaybackFinished(segment=number, position_s=seconds / 2, interrupted=True)
                )
            )

    def arrives(self, attributes: dict[str, str]) -> None:
        stream = f"s{self.came}"
        self.came += 1
        acts = self.protocol.arrived(stream, SENDER, attributes, self.now)
        if not any(isinstance(act, Refuse) for act in acts):
            self.waiting.append(stream)
        self.take(acts)

    def reads(self) -> None:
        if self.reading is None and self.waiting:
            self.reading = self.waiting[0]
            self.take(self.protocol.begin(self.reading, self.now))

    def gets(self, data: bytes) -> None:
        if self.reading is not None:
            self.take(self.protocol.data(self.reading, data, self.now))

    def ends(self) -> None:
        if self.reading is not None:
            stream = self.reading
            self.forget(stream)
            self.take(self.protocol.ended(stream))

    def plays(self) -> None:
        """The first segment is heard to its end, if it has one."""
        number = next(iter(self.playing), None)
        if number is None or number == self.open:
            return
        self.take(self.protocol.on_playback_event(PlaybackStarted(segment=number)))
        seconds = self.playing.pop(number)
        self.take(
            self.protocol.on_playback_event(PlaybackFinished(segment=number, position_s=seconds, interrupted=False))
        )

    def passes(self, seconds: float, *, present: bool = True) -> None:
        self.now += seconds
        heard = (next(iter(self.playing), 0), 0.0)
        self.take(self.protocol.tick(self.now, heard, present=present))

    def act(self, what: str, much: int) -> None:
        match what:
            case "arrives":
                self.arrives(USABLE if much % 5 else UNUSABLE)
            case "arrives-again" if self.waiting:
                assert self.protocol.arrived(self.waiting[0], SENDER, USABLE, self.now) == [Refuse()]
            case "stranger":
                assert self.protocol.arrived(f"x{much}", "somebody", USABLE, self.now) == [Refuse()]
                assert self.protocol.clear("somebody") is None
            case "reads":
                self.reads()
            case "gets":
                self.gets(SECOND[: much * 7])
            case "ends":
                self.ends()
            case "plays":
                self.plays()
            case "clears":
                acts = self.protocol.clear(SENDER)
                assert acts is not None
                self.take(acts)
            case "cleared-elsewhere":
                self.cleared()
            case "passes":
                self.passes(much / 50)
            case _:
                pass


ACTS = st.lists(
    st.tuples(
        st.sampled_from(
            "arrives arrives reads gets gets ends plays clears cleared-elsewhere passes arrives-again stranger".split()
        ),
        st.integers(0, 600),
    ),
    max_size=80,
)


@given(ACTS)
@settings(max_examples=300)
def test_every_stream_is_acknowledged_once_whatever_happens(acts: list[tuple[str, int]]) -> None:
    world = World()
    for what, much in acts:
        world.act(what, much)
    for _ in range(2 * world.came + 2):  # from now on all goes well
        world.reads()
        world.ends()
        world.plays()
    assert len(world.acknowledged) == world.came
    assert not world.waiting and not world.playing


@given(ACTS)
@settings(max_examples=200)
def test_time_alone_acknowledges_whatever_is_stuck(acts: list[tuple[str, int]]) -> None:
    """Nothing more comes of any stream, and nothing is heard: the agent is not kept waiting for it."""
    world = World()
    for what, much in acts:
        world.act(what, much)
    for _ in range(round(2 * core.STUCK_S) + 2):
        world.passes(1.0)
    assert len(world.acknowledged) == world.came


@given(ACTS)
def test_an_agent_that_has_left_gets_no_more_calls(acts: list[tuple[str, int]]) -> None:
    world = World()
    for what, much in acts:
        world.act(what, much)
    world.passes(0.1, present=False)
    world.passes(core.ABSENT_S + 0.1, present=False)
    before = len(world.acknowledged)
    for _ in range(2 * world.came + 2):
        world.reads()
        world.ends()
        world.plays()
    assert len(world.acknowledged) == before and not world.playing


@given(st.lists(st.integers(1, 900), max_size=20), st.sampled_from([1, 2, 3, 8]), st.integers(0, 2**32 - 1))
def test_sound_is_the_same_however_its_bytes_are_cut(cuts: list[int], channels: int, seed: int) -> None:
    pcm = np.random.default_rng(seed).integers(-32_768, 32_768, (400, channels)).astype("<i2")
    protocol = AvatarProtocol(SENDER)
    protocol.arrived("a", SENDER, {"sample_rate": "16000", "num_channels": str(channels)}, 0.0)
    protocol.begin("a", 0.0)
    data, got, at = pcm.tobytes(), list[int](), 0
    for size in [*cuts, len(data)]:
        for act in protocol.data("a", data[at : at + size], 0.0):
            assert isinstance(act, PushAudio)
            got += act.samples.tolist()
        at += size
    assert got == pcm.mean(axis=1).astype(np.int16).tolist()
