"""LiveKit: its HTTP API, access tokens with the fewest grants that suffice, and rooms."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import aiohttp
from livekit import api

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
                pass  # a TLS goodbye that is never answered; the sockets end with the process

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
        except Exception as error:  # an answer that is no protobuf breaks livekit-api in its own ways
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
"""A room nobody joined closes after this long; LiveKit's own default, set so that it does not depend on the server."""
DEPARTURE_TIMEOUT_S = 20
DEPLOYMENT = "avatar.deployment"
"""Attribute of our participants that tells whose they are."""
CALL_S = 5.0
"""Longest wait for an answer that a caller of ours needs."""
COURTESY_S = 2.0
"""The same for what is only tidier when it succeeds."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LiveKitKeys:
    """Address and credentials of LiveKit. `public_url` is what clients are told.

    `playout_delay_ms` is what viewers hold pictures back for at least, so that a lost packet can be sent again in time.
    """

    url: str
    public_url: str
    api_key: str
    api_secret: str = field(repr=False)
    playout_delay_ms: int = 0


class TokenMinter:
    """Makes join tokens. Both kinds carry the room's configuration, so that the room is right whoever joins first."""

    def __init__(self, keys: LiveKitKeys) -> None:
        self._keys = keys
        self.deployment_id = ""

    @property
    def url(self) -> str:
        """Address of LiveKit for the agent."""
        return self._keys.url

    @property
    def public_url(self) -> str:
        """Address of LiveKit for clients."""
        return self._keys.public_url

    def viewer(self, room: str, identity: str, ttl_s: float) -> str:
        """A token that may join `room` and subscribe, and nothing else."""
        grants = api.VideoGrants(
            room_join=True, room=room, can_subscribe=True, can_publish=False, can_publish_data=False
        )
        return self._token(identity, ttl_s, grants).to_jwt()

    def probe(self, room: str, identity: str, ttl_s: float) -> str:
        """A token that joins `room` unseen, to find out whether that is possible."""
        grants = api.VideoGrants(
            room_join=True, room=room, can_subscribe=False, can_publish=False, can_publish_data=False, hidden=True
        )
        return self._token(identity, ttl_s, grants).to_jwt()

    def avatar(self, room: str, identity: str, ttl_s: float, *, name: str, on_behalf_of: str | None) -> str:
        """The agent's token: publishes camera and microphone, kind `agent`.

        `on_behalf_of` is the identity of the participant whose voice the avatar is (attribute `lk.publish_on_behalf`).
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
        attributes = {DEPLOYMENT: self.deployment_id} if self.deployment_id else {}
        if on_behalf_of:
            attributes["lk.publish_on_behalf"] = on_behalf_of
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

        `sync_streams` must be set before anybody joins, or browsers do not hold sound and picture together.
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
            raise _unavailable("tell its rooms", error) from error
        return [room.name for room in answer.rooms]

    async def participants(self, room: str, deployment_id: str) -> list[str]:
        """Identities of a deployment's own participants in a room. Raises ProblemError `livekit_unavailable`."""
        request = api.ListParticipantsRequest(room=room)
        try:
            answer = await self._livekit.call(lambda livekit: livekit.room.list_participants(request), CALL_S)
        except LiveKitFailed as error:
            if error.code == "not_found":
                return []
            raise _unavailable("tell who is in the room", error) from error
        return [one.identity for one in answer.participants if one.attributes.get(DEPLOYMENT) == deployment_id]

    async def mute(self, room: str, identity: str, track: str) -> None:
        """Mutes a track for everybody, whatever its publisher still sends. Never raises for LiveKit's sake."""
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


def _unavailable(what: str, error: LiveKitFailed) -> ProblemError:
    return ProblemError(
        ErrorCode.LIVEKIT_UNAVAILABLE,
        f"LiveKit did not {what}: {error}. Check LIVEKIT_URL and its key, and that it runs.",
        retry_after_s=2,
    )
