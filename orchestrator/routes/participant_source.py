"""`audio_source` of a start: a named source, or a participant of the room whose microphone the avatar speaks."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, ValidationError

from musetalk_agent.protocol.http import PublisherMode, Strict
from musetalk_agent.protocol.problems import ErrorCode, ProblemError

OUR_IDENTITIES = re.compile(r"(avatar|voice|probe|conversation)-ses_")
"""How the identities of a session's own participants begin: a room has each identity once, and the newer one puts the older out."""

NamedSource = Literal["http", "datastream"]


class ParticipantSource(Strict):
    """`participant` is the identity of the one whose microphone the avatar says."""

    participant: str = Field(min_length=1, max_length=256)


def parse(value: object) -> object:
    """`audio_source` as it was sent, for the field's validator. Raises ValueError with a sentence for what it cannot be."""
    if isinstance(value, dict):
        try:
            return ParticipantSource.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])[:80]
            raise ValueError(f'{field}: {first["msg"]}; give {{"participant": "IDENTITY"}}') from None
    if value not in ("http", "datastream"):
        raise ValueError('give "http", "datastream" or {"participant": "IDENTITY"}')
    return value


def check(source: ParticipantSource, *, speaker: str | None, connect_livekit: bool, publisher: PublisherMode) -> None:
    """Raises ProblemError `invalid_request` for what does not go together with a participant's microphone."""
    asked = source.participant
    if OUR_IDENTITIES.match(asked):
        raise _wrong(
            "audio_source.participant",
            f"{asked[:80]!r} is how sessions name their own participants; name the one that speaks.",
            asked[:80],
        )
    if speaker is not None:
        raise _wrong(
            "speaker", f"the avatar speaks for {asked[:80]!r}, whose microphone it says; leave speaker out.", speaker
        )
    if not connect_livekit:
        raise _wrong(
            "connect_livekit", "a participant's microphone needs the room; leave connect_livekit at true.", None
        )
    if publisher is PublisherMode.RTMP:
        raise _wrong("publisher", NEEDS_WEBRTC, publisher.value)


NEEDS_WEBRTC = "the participant's microphone is heard by WebRTC, which rtmp does without; choose auto or webrtc."


def _wrong(field: str, text: str, value: str | None) -> ProblemError:
    return ProblemError(ErrorCode.INVALID_REQUEST, f"{field}: {text}", field=field, value=value)
