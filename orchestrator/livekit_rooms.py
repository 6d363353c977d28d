"""LiveKit: its HTTP API, access tokens with the fewest grants that suffice, rooms, and ingresses by RTMP into a session's room."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import TypeVar

import aiohttp
from google.protobuf.message import DecodeError
from livekit import api
from livekit.protocol import models
from pydantic import ValidationError

from musetalk_agent.protocol.http import MAX_SIDE, RtmpTarget
from musetalk_agent.protocol.problems import ErrorCode, ProblemError

ANSWER_BYTES = 8 << 20
"""Largest answer that is read: the list of some 20,000 rooms."""
CLOSE_S = 2.0
_Answer = TypeVar("_Answer")


class LiveKitFailed(Exception):
    """A call failed. The message names the reason without addresses or tokens: LiveKit's own code, or the error's class.

    `code` and `detail` are LiveKit's, empty where it said nothing that can be read.
    """

    def __init__(self, reason: str, code: str = "", detail: str = "") -> None:
        super().__init__(reason)
        self.code = code
        self.detail = detail


_CALL_ERRORS = (aiohttp.ClientError, OSError, DecodeError, AttributeError, RuntimeError, TypeError, ValueError)
"""What livekit-api raises beside its own error: the connection's, a closed client's, and those of an answer that is neither
protobuf nor a JSON object.
"""


class LiveKitClient:
    """One client of the server API. `open()` before use, `aclose()` after it.

    livekit-api passes `timeout=None` with each request, which switches the session's own time-out off; so the deadline is here.
    """

    def __init__(self, url: str, api_key: str, api_secret: str) -> None:
        self._url, self._api_key, self._api_secret = url, api_key, api_secret
        self._session: aiohttp.ClientSession | None = None
        self._api: api.LiveKitAPI | None = None

    async def open(self) -> None:
        """Prepares the client; does not connect yet."""
        self._session = aiohttp.ClientSession(response_class=_BoundedResponse)
        self._api = api.LiveKitAPI(self._url, self._api_key, self._api_secret, session=self._session, failover=False)

    async def aclose(self) -> None:
        """Closes the connections, in bounded time. Idempotent."""
        session, self._session, self._api = self._session, None, None
        if session is not None:
            try:
                async with asyncio.timeout(CLOSE_S):
                    await session.close()
            except TimeoutError:
                pass  # a TLS close that is never answered; the sockets end with the process

    async def call(
        self, ask: Callable[[api.LiveKitAPI], Awaitable[_Answer]], within_s: float, *, idempotent: bool = True
    ) -> _Answer:
        """The answer of one call. Raises LiveKitFailed, at the latest after `within_s` seconds. Cancelling gives the call up.

        An idempotent call whose connection breaks before the answer is sent once more: a server closes idle connections, and
        a request may be under way on one at that moment.
        """
        if self._api is None:
            raise RuntimeError("LiveKitClient.open() was not called")
        try:
            async with asyncio.timeout(within_s):
                try:
                    return await ask(self._api)
                except aiohttp.ClientConnectorError:
                    raise  # there was no connection that could break
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                    if not idempotent:
                        raise
                    return await ask(self._api)
        except api.TwirpError as error:
            raise LiveKitFailed(str(error.code), str(error.code), str(error.message)) from error
        except _CALL_ERRORS as error:
            raise LiveKitFailed(type(error).__name__) from error


class _BoundedResponse(aiohttp.ClientResponse):
    """A response whose body is read up to `ANSWER_BYTES`."""

    async def read(self) -> bytes:
        """The body. Raises ClientPayloadError for a larger one, and closes the connection."""
        if self._body is None:
            parts, size = [], 0
            async for part in self.content.iter_any():
                size += len(part)
                if size > ANSWER_BYTES:
                    self.close()
                    raise aiohttp.ClientPayloadError(f"an answer of more than {ANSWER_BYTES} bytes")
                parts.append(part)
            self._body = b"".join(parts)
        return await super().read()


EMPTY_TIMEOUT_S = 300
"""A room without participants closes after this long (s); LiveKit's own default, set so that it does not depend on the server."""
DEPARTURE_TIMEOUT_S = 20
ALPHA, ALPHA_BELOW = "avatar.alpha", "below"
"""The attribute of an avatar whose video has its alpha in its lower half, and its one value."""
DEPLOYMENT = "avatar.deployment"
"""Attribute of our participants that names their deployment."""
CALL_S = 5.0
"""Longest wait for an answer that a caller of ours needs."""
COURTESY_S = 2.0
"""The same for what is only tidier when it succeeds."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LiveKitKeys:
    """Address and credentials of LiveKit. `public_url` is the address for clients.

    `playout_delay_ms` is what viewers hold frames back for at least, so that a lost packet can be sent again in time.
    """

    url: str
    public_url: str
    api_key: str
    api_secret: str = field(repr=False)
    playout_delay_ms: int = 0


class TokenMinter:
    """Makes join tokens. They carry the room's configuration, so that the room is right whichever participant joins first.

    `deployment_id` gives the deployment's id, empty before the store is open; it marks our participants.
    """

    def __init__(self, keys: LiveKitKeys, deployment_id: Callable[[], str] = lambda: "") -> None:
        self._keys = keys
        self._deployment_id = deployment_id

    @property
    def url(self) -> str:
        """Address of LiveKit for the agent."""
        return self._keys.url

    @property
    def public_url(self) -> str:
        """Address of LiveKit for clients."""
        return self._keys.public_url

    def viewer(self, room: str, identity: str, ttl_s: float, *, talks: bool = False, microphone: bool = False) -> str:
        """A token that may join `room` and subscribe; with `microphone` it may also publish one, and one that `talks` data too."""
        grants = api.VideoGrants(
            room_join=True,
            room=room,
            can_subscribe=True,
            can_publish=talks or microphone,
            can_publish_data=talks,
            can_publish_sources=["microphone"] if talks or microphone else None,
        )
        return self._token(identity, ttl_s, grants).to_jwt()

    def conversation(self, room: str, identity: str, ttl_s: float) -> str:
        """The conversation worker's token: hears the room, sends data, and publishes no track. Kind `agent`."""
        grants = api.VideoGrants(
            room_join=True,
            room=room,
            can_publish=False,
            can_subscribe=True,
            can_publish_data=True,
            can_update_own_metadata=True,
        )
        deployment_id = self._deployment_id()
        attributes = {DEPLOYMENT: deployment_id} if deployment_id else {}
        token = self._token(identity, ttl_s, grants).with_kind("agent").with_name("Conversation")
        return token.with_attributes(attributes).to_jwt()

    def probe(self, room: str, identity: str, ttl_s: float) -> str:
        """A token that joins `room` unseen, to find out whether that is possible."""
        grants = api.VideoGrants(
            room_join=True, room=room, can_subscribe=False, can_publish=False, can_publish_data=False, hidden=True
        )
        return self._token(identity, ttl_s, grants).to_jwt()

    def avatar(
        self, room: str, identity: str, ttl_s: float, *, name: str, on_behalf_of: str | None, alpha: bool = False
    ) -> str:
        """The agent's token: publishes camera and microphone, kind `agent`.

        `on_behalf_of` is the identity of the participant whose voice the avatar is (attribute `lk.publish_on_behalf`). `alpha` says
        that the lower half of its video is the alpha of the upper one (attribute `avatar.alpha`).
        """
        grants = api.VideoGrants(
            room_join=True,
            room=room,
            can_publish=True,
            can_subscribe=True,
            can_publish_data=True,
            can_publish_sources=["camera", "microphone"],
            can_update_own_metadata=True,
        )
        deployment_id = self._deployment_id()
        attributes = {DEPLOYMENT: deployment_id} if deployment_id else {}
        if on_behalf_of:
            attributes["lk.publish_on_behalf"] = on_behalf_of
        if alpha:
            attributes[ALPHA] = ALPHA_BELOW
        token = self._token(identity, ttl_s, grants).with_kind("agent").with_name(name)
        return token.with_attributes(attributes).to_jwt()

    def _token(self, identity: str, ttl_s: float, grants: api.VideoGrants) -> api.AccessToken:
        config = api.RoomConfiguration(
            sync_streams=True,
            empty_timeout=EMPTY_TIMEOUT_S,
            departure_timeout=DEPARTURE_TIMEOUT_S,
            min_playout_delay=self._keys.playout_delay_ms,
            max_playout_delay=self._keys.playout_delay_ms,
        )
        return (
            api.AccessToken(self._keys.api_key, self._keys.api_secret)
            .with_identity(identity)
            .with_ttl(timedelta(seconds=ttl_s))
            .with_grants(grants)
            .with_room_config(config)
        )


class Rooms:
    """LiveKit's room service. `open()` before use, `aclose()` after it. Each call has a deadline."""

    def __init__(self, keys: LiveKitKeys) -> None:
        self._keys = keys
        self._livekit = LiveKitClient(keys.url, keys.api_key, keys.api_secret)

    async def open(self) -> None:
        """Prepares the client; does not connect yet."""
        await self._livekit.open()

    async def aclose(self) -> None:
        """Closes the client's connections."""
        await self._livekit.aclose()

    async def ensure(self, room: str) -> None:
        """Makes the room, or sets its configuration when it exists. Raises ProblemError `livekit_unavailable`.

        `sync_streams` must be set before the first participant joins, or browsers do not hold audio and video together.
        """
        request = api.CreateRoomRequest(
            name=room,
            sync_streams=True,
            empty_timeout=EMPTY_TIMEOUT_S,
            departure_timeout=DEPARTURE_TIMEOUT_S,
            min_playout_delay=self._keys.playout_delay_ms,
            max_playout_delay=self._keys.playout_delay_ms,
        )
        try:
            await self._livekit.call(lambda livekit: livekit.room.create_room(request), CALL_S)
        except LiveKitFailed as error:
            _log.warning("LiveKit did not make the room", extra={"room": room, "error": str(error)})
            raise _unavailable("make the room", error) from error

    async def names(self) -> list[str]:
        """Every room there is. Raises ProblemError `livekit_unavailable`."""
        try:
            answer = await self._livekit.call(lambda livekit: livekit.room.list_rooms(api.ListRoomsRequest()), CALL_S)
        except LiveKitFailed as error:
            raise _unavailable("list its rooms", error) from error
        return [room.name for room in answer.rooms]

    async def participants(self, room: str, deployment_id: str) -> list[str]:
        """Identities of a deployment's own participants in a room. Raises ProblemError `livekit_unavailable`."""
        request = api.ListParticipantsRequest(room=room)
        try:
            answer = await self._livekit.call(lambda livekit: livekit.room.list_participants(request), CALL_S)
        except LiveKitFailed as error:
            if error.code == "not_found":
                return []
            raise _unavailable("list the participants", error) from error
        return [one.identity for one in answer.participants if one.attributes.get(DEPLOYMENT) == deployment_id]

    async def mute(self, room: str, identity: str, track: str) -> None:
        """Mutes a track for all participants, whatever its publisher still sends. Never raises for LiveKit's sake."""
        request = api.MuteRoomTrackRequest(room=room, identity=identity, track_sid=track, muted=True)
        try:
            await self._livekit.call(lambda livekit: livekit.room.mute_published_track(request), COURTESY_S)
        except LiveKitFailed as error:
            _log.info("track not muted", extra={"room": room, "error": str(error)})

    async def remove(self, room: str, identity: str) -> None:
        """Removes a participant that may linger. Never raises for LiveKit's sake: a crashed one leaves by time-out anyway."""
        who = api.RoomParticipantIdentity(room=room, identity=identity)
        try:
            await self._livekit.call(lambda livekit: livekit.room.remove_participant(who), COURTESY_S)
        except LiveKitFailed as error:
            if error.code != "not_found":
                _log.warning("participant not removed", extra={"room": room, "error": str(error)})

    async def delete(self, room: str) -> None:
        """Closes a room and removes all its participants. Never raises for LiveKit's sake: an empty room closes by itself."""
        try:
            await self._livekit.call(
                lambda livekit: livekit.room.delete_room(api.DeleteRoomRequest(room=room)), COURTESY_S
            )
        except LiveKitFailed as error:
            if error.code != "not_found":
                _log.warning("room not closed", extra={"room": room, "error": str(error)})


def _unavailable(what: str, error: LiveKitFailed) -> ProblemError:
    return ProblemError(
        ErrorCode.LIVEKIT_UNAVAILABLE,
        f"LiveKit did not {what}: {error}. Check LIVEKIT_URL and its key, and that it runs.",
        retry_after_s=2,
    )


ABSENT_FOR_S = 300.0
"""A deployment that has no ingress is not asked again for this long."""
_REFUSED_FOR_S = 10.0
INGRESS_CALL_S = 2.0
_POLL_S = 0.25
_NAME = "musetalk-avatar"
_FPS, _VIDEO_BITRATE = 30, 3_000_000
"""Of what the ingress publishes: its presets' rate, and what the agent gives a frame of 720p in the room. Each preset bounds the
height too (livekit/ingress, `applyResolutionToLayer`), and would show a portrait of 720×1280 at 404×720."""
_ALL = api.ListIngressRequest()


class IngressMode(StrEnum):
    """`LIVEKIT_INGRESS`: used where it is there, or never."""

    AUTO = "auto"
    OFF = "off"


@dataclass(frozen=True)
class RoomIngress:
    """A way into a room. Its target holds the stream key and hides it from `repr`."""

    ingress_id: str
    target: RtmpTarget


class Ingresses:
    """Makes and removes ingresses. `open()` before use, `aclose()` after it. Failures of LiveKit raise nothing here.

    `deployment_id` gives the deployment's id, which marks its ingresses in their names; empty before the store is open.
    """

    def __init__(
        self, keys: LiveKitKeys, mode: IngressMode = IngressMode.AUTO, deployment_id: Callable[[], str] = lambda: ""
    ) -> None:
        self._mode = mode
        self._livekit = LiveKitClient(keys.url, keys.api_key, keys.api_secret)
        self._absent_until = 0.0
        self._deployment_id = deployment_id

    async def open(self) -> None:
        """Prepares the client; does not connect yet."""
        await self._livekit.open()

    async def aclose(self) -> None:
        """Closes the client's connections."""
        await self._livekit.aclose()

    async def create(self, room: str, identity: str, name: str) -> RoomIngress | None:
        """Makes an idle ingress: its stream appears as `identity` in `room`. None where there is no ingress service.

        Takes at most 2 s. The pushing participant evicts one of the same identity, and is evicted by it.
        """
        if self._mode is IngressMode.OFF or time.monotonic() < self._absent_until:
            return None
        request = _request(self._name, room, identity, name)
        try:
            info = await self._livekit.call(
                lambda livekit: livekit.ingress.create_ingress(request), INGRESS_CALL_S, idempotent=False
            )
        except LiveKitFailed as error:
            absent = "redis required" in error.detail
            self._hold_off("no Redis" if absent else str(error), ABSENT_FOR_S if absent else _REFUSED_FOR_S)
            return None
        try:
            target = RtmpTarget(url=f"{info.url.rstrip('/')}/{info.stream_key}", ingress=True)
        except ValidationError:
            target = None
        if target is None or not info.url:
            self._hold_off("livekit-server has no ingress.rtmp_base_url", ABSENT_FOR_S)
            await self.remove(info.ingress_id)
            return None
        return RoomIngress(info.ingress_id, target)

    async def ours(self) -> dict[str, str]:
        """The identities of this deployment's ingresses by ingress id; none while LiveKit does not answer. Takes at most 2 s."""
        if self._mode is IngressMode.OFF or not self._deployment_id():
            return {}
        try:
            listed = await self._livekit.call(lambda livekit: livekit.ingress.list_ingress(_ALL), INGRESS_CALL_S)
        except LiveKitFailed:
            return {}
        return {one.ingress_id: one.participant_identity for one in listed.items if one.name == self._name}

    @property
    def _name(self) -> str:
        return f"{_NAME} {self._deployment_id()}".strip()

    async def remove(self, ingress_id: str) -> bool:
        """Removes it, and the participant that comes through it. Returns whether it is gone; one that was not there is. Takes at
        most 2 s.
        """
        request = api.DeleteIngressRequest(ingress_id=ingress_id)
        try:
            await self._livekit.call(lambda livekit: livekit.ingress.delete_ingress(request), INGRESS_CALL_S)
        except LiveKitFailed as error:
            if error.code != "not_found":
                _log.warning("ingress not removed", extra={"ingress_id": ingress_id, "error": str(error)})
                return False
        return True

    async def accompany(self, room: str, identity: str, attributes: Callable[[], dict[str, str] | None]) -> None:
        """Sets the attributes of the participant that comes by ingress, which cannot set its own, whenever they change.

        None: it does not come by ingress now. Runs until it is cancelled.
        """
        published: dict[str, str] | None = None
        while True:
            wanted = attributes()
            if wanted is None or (wanted != published and await self._set_attributes(room, identity, wanted)):
                published = wanted
            await asyncio.sleep(_POLL_S)

    async def _set_attributes(self, room: str, identity: str, attributes: dict[str, str]) -> bool:
        sought = api.RoomParticipantIdentity(room=room, identity=identity)
        update = api.UpdateParticipantRequest(room=room, identity=identity, attributes=attributes)
        try:
            who = await self._livekit.call(lambda livekit: livekit.room.get_participant(sought), INGRESS_CALL_S)
            if who.kind != models.ParticipantInfo.Kind.INGRESS:
                return False
            await self._livekit.call(lambda livekit: livekit.room.update_participant(update), INGRESS_CALL_S)
        except LiveKitFailed:
            return False  # not there yet, or not any more
        return True

    def _hold_off(self, reason: str, seconds: float) -> None:
        self._absent_until = time.monotonic() + seconds
        _log.info("no ingress: the fallback is without one", extra={"reason": reason, "asked_again_s": seconds})


def _request(label: str, room: str, identity: str, name: str) -> api.CreateIngressRequest:
    return api.CreateIngressRequest(
        input_type=api.IngressInput.RTMP_INPUT,
        name=label,
        room_name=room,
        participant_identity=identity,
        participant_name=name,
        audio=api.IngressAudioOptions(
            source=api.TrackSource.MICROPHONE, preset=api.IngressAudioEncodingPreset.OPUS_MONO_64KBS
        ),
        video=api.IngressVideoOptions(
            source=api.TrackSource.CAMERA,
            options=api.IngressVideoEncodingOptions(
                video_codec=models.VideoCodec.H264_BASELINE,
                frame_rate=_FPS,
                layers=[
                    models.VideoLayer(
                        quality=models.VideoQuality.HIGH, width=MAX_SIDE, height=MAX_SIDE, bitrate=_VIDEO_BITRATE
                    )
                ],
            ),
        ),
    )
