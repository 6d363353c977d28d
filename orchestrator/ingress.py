"""LiveKit Ingress: a way by RTMP into a session's own room, where the deployment has it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from livekit import api
from livekit.protocol import models
from pydantic import ValidationError

from musetalk_agent.protocol.http import MAX_SIDE, RtmpTarget
from orchestrator.livekit_rooms import LiveKitClient, LiveKitFailed, LiveKitKeys

ABSENT_FOR_S = 300.0
"""A deployment that has no ingress is not asked again for this long."""
_REFUSED_FOR_S = 10.0
CALL_S = 2.0
_POLL_S = 0.25
_NAME = "musetalk-avatar"
_FPS, _VIDEO_BITRATE = 30, 3_000_000
"""Of what the ingress publishes: its presets' rate, and what the agent gives a picture of 720p in the room. Each preset bounds the
height too (livekit/ingress, `applyResolutionToLayer`), and would show a portrait of 720×1280 at 404×720."""
_ALL = api.ListIngressRequest()
_log = logging.getLogger(__name__)


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
    """Makes and removes ingresses. `open()` before use, `aclose()` after it. Nothing here raises for LiveKit's sake."""

    def __init__(self, keys: LiveKitKeys, mode: IngressMode = IngressMode.AUTO) -> None:
        self._mode = mode
        self._livekit = LiveKitClient(keys.url, keys.api_key, keys.api_secret)
        self._absent_until = 0.0
        self.deployment_id = ""
        """Marks the ingresses of this deployment, in their names."""

    async def open(self) -> None:
        """Prepares the client; does not connect yet."""
        await self._livekit.open()

    async def aclose(self) -> None:
        """Closes the client's connections."""
        await self._livekit.aclose()

    async def create(self, room: str, identity: str, name: str) -> RoomIngress | None:
        """An idle ingress: whoever pushes to its target is `identity` in `room`. None where there is none to be had.

        Takes at most 2 s. The pushing participant evicts one of the same identity, and is evicted by it.
        """
        if self._mode is IngressMode.OFF or time.monotonic() < self._absent_until:
            return None
        request = _request(self._name, room, identity, name)
        try:
            info = await self._livekit.call(
                lambda livekit: livekit.ingress.create_ingress(request), CALL_S, idempotent=False
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
        if self._mode is IngressMode.OFF or not self.deployment_id:
            return {}
        try:
            listed = await self._livekit.call(lambda livekit: livekit.ingress.list_ingress(_ALL), CALL_S)
        except LiveKitFailed:
            return {}
        return {one.ingress_id: one.participant_identity for one in listed.items if one.name == self._name}

    @property
    def _name(self) -> str:
        return f"{_NAME} {self.deployment_id}".strip()

    async def remove(self, ingress_id: str) -> bool:
        """Removes it, and the participant that comes through it. Returns whether it is gone; one that was not there is. Takes at
        most 2 s.
        """
        request = api.DeleteIngressRequest(ingress_id=ingress_id)
        try:
            await self._livekit.call(lambda livekit: livekit.ingress.delete_ingress(request), CALL_S)
        except LiveKitFailed as error:
            if error.code != "not_found":
                _log.warning("ingress not removed", extra={"ingress_id": ingress_id, "error": str(error)})
                return False
        return True

    async def accompany(self, room: str, identity: str, attributes: Callable[[], dict[str, str] | None]) -> None:
        """Sets the attributes of the participant that comes by ingress, which cannot set its own, whenever they change.

        None: it does not come by ingress now. Runs until it is cancelled.
        """
        told: dict[str, str] | None = None
        while True:
            wanted = attributes()
            if wanted is None or (wanted != told and await self._tell(room, identity, wanted)):
                told = wanted
            await asyncio.sleep(_POLL_S)

    async def _tell(self, room: str, identity: str, attributes: dict[str, str]) -> bool:
        sought = api.RoomParticipantIdentity(room=room, identity=identity)
        update = api.UpdateParticipantRequest(room=room, identity=identity, attributes=attributes)
        try:
            who = await self._livekit.call(lambda livekit: livekit.room.get_participant(sought), CALL_S)
            if who.kind != models.ParticipantInfo.Kind.INGRESS:
                return False
            await self._livekit.call(lambda livekit: livekit.room.update_participant(update), CALL_S)
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
