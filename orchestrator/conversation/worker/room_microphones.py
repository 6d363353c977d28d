"""Which tracks of a room a conversation takes: persons' sound, and nothing of the avatar."""

from __future__ import annotations

from livekit import rtc

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
