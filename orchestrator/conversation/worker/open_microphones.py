"""Which of a room's microphones is listened to: of the open ones that which was published or unmuted last."""

from __future__ import annotations

from collections.abc import Callable

from livekit import rtc

from orchestrator.conversation.worker.room_microphones import of_person


class OpenMicrophones:
    """Follows the room's persons from `open` until `close`. While no microphone is open the last one stays chosen.

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
