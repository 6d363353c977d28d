"""The microphones of a room, as a conversation hears them: which tracks it takes (persons' audio, and nothing of the avatar), which
of them it listens to, quiet voices made louder, and what is known of them when it does not answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Literal

import numpy as np
from livekit import rtc
from livekit.agents.voice.io import AudioInput

from orchestrator.conversation.worker.speech_gain import SpeechGain

OPTIONS = rtc.RoomOptions(auto_subscribe=False)
"""For `Room.connect`. A track that is taken is also decoded, and the avatar encodes its picture for each one that takes it."""


def take_microphones(room: rtc.Room) -> None:
    """Subscribes to persons' sound, of now and later. Must be called as soon as the room is joined, and once."""
    room.on("track_published", _take)
    for participant in room.remote_participants.values():
        for publication in participant.track_publications.values():
            _take(publication, participant)


def of_person(publication: rtc.TrackPublication, participant: rtc.RemoteParticipant) -> bool:
    """Whether it is the sound of a participant that is no agent: avatars are agents."""
    agent = rtc.ParticipantKind.PARTICIPANT_KIND_AGENT
    return bool(publication.kind == rtc.TrackKind.KIND_AUDIO and participant.kind != agent)


def _take(publication: rtc.RemoteTrackPublication, participant: rtc.RemoteParticipant) -> None:
    if of_person(publication, participant):
        publication.set_subscribed(True)


class OpenMicrophones:
    """Which microphone is listened to: of the open ones that which was published or unmuted last.

    Follows the room's persons from `open` until `close`. While no microphone is open the last one stays chosen.

    Args:
        room: whose microphones they are.
        choose: is called with the identity of each new choice; must not block.
    """

    def __init__(self, room: rtc.Room, choose: Callable[[str], object]) -> None:
        self._room, self._choose = room, choose
        self._order: list[str] = []  # identities, the one that opened a microphone last at the end
        self._chosen: str | None = None

    def open(self) -> None:
        """Those that are there count as opened in the order in which they joined."""
        self._room.on("track_subscribed", self._on_subscribed)
        self._room.on("track_unmuted", self._opened)
        self._room.on("track_muted", self._settle)
        self._room.on("track_unsubscribed", self._settle)
        self._room.on("participant_disconnected", self._settle)
        for who in self._room.remote_participants.values():
            for publication in who.track_publications.values():
                self._opened(who, publication)

    def close(self) -> None:
        """Chooses no more. Idempotent."""
        self._room.off("track_subscribed", self._on_subscribed)
        self._room.off("track_unmuted", self._opened)
        self._room.off("track_muted", self._settle)
        self._room.off("track_unsubscribed", self._settle)
        self._room.off("participant_disconnected", self._settle)

    def _on_subscribed(self, _: rtc.Track, publication: rtc.TrackPublication, who: rtc.RemoteParticipant) -> None:
        self._opened(who, publication)

    def _opened(self, who: rtc.RemoteParticipant, publication: rtc.TrackPublication) -> None:
        if not of_person(publication, who):
            return
        if who.identity in self._order:
            self._order.remove(who.identity)
        self._order.append(who.identity)
        self._settle()

    def _settle(self, *_: object) -> None:
        """Whatever happened: looks who is there."""
        self._order = [identity for identity in self._order if identity in self._room.remote_participants]
        chosen = next((identity for identity in reversed(self._order) if self._is_open(identity)), self._chosen)
        if chosen is None:
            chosen = self._order[-1] if self._order else None
        if chosen is not None and chosen != self._chosen:
            self._chosen = chosen
            self._choose(chosen)

    def _is_open(self, identity: str) -> bool:
        return any(
            publication.kind == rtc.TrackKind.KIND_AUDIO and publication.track is not None and not publication.muted
            for publication in self._room.remote_participants[identity].track_publications.values()
        )


State = Literal["none", "muted", "silent", "late", "heard"]
LEVEL = 100
"""Of 32768, -50 dBFS: a louder sample is no silence."""
SILENT_S = 10.0
LATE_S = 10.0
LOOK_S = 1.0


class MicrophoneWatch(AudioInput):  # type: ignore[misc]  # its types are in the environment of livekit-agents
    """Hands audio on as it comes, and notes whether it is silence.

    Args:
        source: the audio that livekit-agents hears.
        room: whose microphones they are.
        report: is called with each new state; must not block.
        dropped: how many pieces of sound this process has dropped.
    """

    def __init__(
        self, source: AudioInput, room: rtc.Room, report: Callable[[State], object], dropped: Callable[[], int]
    ) -> None:
        super().__init__(label="MicrophoneWatch", source=source)
        self._room, self._report, self._dropped = room, report, dropped
        self._loud_at = time.monotonic()
        self._known_dropped = dropped()
        self._late_at = -LATE_S

    async def __anext__(self) -> rtc.AudioFrame:
        frame: rtc.AudioFrame = await super().__anext__()
        if int(np.abs(np.frombuffer(frame.data, np.int16).astype(np.int32)).max(initial=0)) > LEVEL:
            self._loud_at = time.monotonic()
        return frame

    async def run(self) -> None:
        """Looks once a second, until cancelled."""
        known: State | None = None
        while True:
            state = self._state()
            if state != known:
                known = state
                self._report(state)
            await asyncio.sleep(LOOK_S)

    def _state(self) -> State:
        tracks = [
            track
            for participant in self._room.remote_participants.values()
            if participant.kind != rtc.ParticipantKind.PARTICIPANT_KIND_AGENT
            for track in participant.track_publications.values()
            if track.kind == rtc.TrackKind.KIND_AUDIO
        ]
        if not any(not track.muted for track in tracks):
            self._loud_at = time.monotonic()
            return "muted" if tracks else "none"
        now, lost = time.monotonic(), self._dropped()
        if lost != self._known_dropped:
            self._known_dropped, self._late_at = lost, now
        if now - self._late_at < LATE_S:
            return "late"
        return "silent" if now - self._loud_at > SILENT_S else "heard"


class LouderMicrophone(AudioInput):  # type: ignore[misc]  # livekit-agents lies in another environment, so that its base is Any here
    """Hands audio on through `SpeechGain`.

    Args:
        source: the audio as it comes.
    """

    def __init__(self, source: AudioInput) -> None:
        super().__init__(label="LouderMicrophone", source=source)
        self._gain = SpeechGain()

    async def __anext__(self) -> rtc.AudioFrame:
        frame: rtc.AudioFrame = await super().__anext__()
        heard = np.frombuffer(frame.data, np.int16)
        louder = self._gain.apply(heard, frame.duration)
        if louder is heard:
            return frame
        return rtc.AudioFrame(louder.tobytes(), frame.sample_rate, frame.num_channels, frame.samples_per_channel)

    def forget(self) -> None:
        """Another person is heard from now on."""
        self._gain = SpeechGain()
