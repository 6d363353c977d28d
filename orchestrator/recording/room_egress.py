"""LiveKit Egress, which records whole rooms where a deployment has it: it joins as a viewer and writes an MP4 file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from livekit import api

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.livekit_rooms import LiveKitClient, LiveKitFailed

CALL_S = 10.0
"""A server whose Egress service is away answers after 24 s only that there was no response."""
LAYOUT = "speaker"
"""One of Egress's own templates: who speaks is large, the others beside."""


@dataclass(frozen=True, slots=True)
class EgressEnd:
    """What became of one: seconds of film, and what went wrong, if anything did."""

    seconds: float
    error: str = ""


class RoomEgress:
    """Begins and ends egresses. `open()` before use, `aclose()` after it.

    Args:
        livekit: a client of its own.
        folder: where Egress writes, as the Egress service and this process see it; None: there is no Egress here.
    """

    def __init__(self, livekit: LiveKitClient, folder: Path | None) -> None:
        self._livekit, self._folder = livekit, folder

    @property
    def there(self) -> bool:
        """Whether the deployment has one."""
        return self._folder is not None

    async def open(self) -> None:
        """Prepares the client; does not connect yet."""
        await self._livekit.open()

    async def aclose(self) -> None:
        """Closes the client's connections."""
        await self._livekit.aclose()

    def path(self, session_id: str) -> Path:
        """The file of a session's room. Raises ProblemError `recording_unavailable` where there is no Egress."""
        if self._folder is None:
            raise ProblemError(
                ErrorCode.RECORDING_UNAVAILABLE,
                "This deployment records no rooms: it needs LiveKit Egress, and EGRESS_DIR, the folder it writes to. "
                "The avatar alone is recorded without (leave `of` out).",
                field="of",
                value="room",
            )
        return self._folder / f"{session_id}.mp4"

    async def begin(self, session_id: str, room: str) -> str:
        """Begins to record a room; returns the egress's id. Raises ProblemError `recording_unavailable`."""
        output = api.EncodedFileOutput(
            file_type=api.EncodedFileType.MP4, filepath=str(self.path(session_id)), disable_manifest=True
        )
        request = api.RoomCompositeEgressRequest(
            room_name=room, layout=LAYOUT, preset=api.EncodingOptionsPreset.H264_720P_30, file_outputs=[output]
        )
        try:
            info = await self._livekit.call(
                lambda livekit: livekit.egress.start_room_composite_egress(request), CALL_S, idempotent=False
            )
        except LiveKitFailed as error:
            raise ProblemError(
                ErrorCode.RECORDING_UNAVAILABLE,
                f"LiveKit cannot record the room: {_reason(error)}. The avatar alone is recorded without Egress (leave `of` out).",
                retry_after_s=5,
                field="of",
                value="room",
            ) from error
        return info.egress_id

    async def stop(self, egress_id: str) -> None:
        """Has it end and write its file; nothing happens where it has ended. Raises ProblemError `recording_unavailable`."""
        request = api.StopEgressRequest(egress_id=egress_id)
        try:
            await self._livekit.call(lambda livekit: livekit.egress.stop_egress(request), CALL_S)
        except LiveKitFailed as error:
            if error.code not in ("failed_precondition", "not_found"):
                raise self._silent(error) from error

    async def ended(self, egress_id: str) -> EgressEnd | None:
        """What became of it; None while it is at work. Raises ProblemError `recording_unavailable`."""
        request = api.ListEgressRequest(egress_id=egress_id)
        try:
            listed = await self._livekit.call(lambda livekit: livekit.egress.list_egress(request), CALL_S)
        except LiveKitFailed as error:
            if error.code == "not_found":
                return EgressEnd(0.0, "LiveKit does not know it any more")
            raise self._silent(error) from error
        if not listed.items:
            return EgressEnd(0.0, "LiveKit does not know it any more")
        info = listed.items[0]
        if info.status in _AT_WORK:
            return None
        seconds = max((file.duration for file in info.file_results), default=0) / 1e9
        whole = info.status in (api.EgressStatus.EGRESS_COMPLETE, api.EgressStatus.EGRESS_LIMIT_REACHED)
        return EgressEnd(seconds, "" if whole else info.error or api.EgressStatus.Name(info.status))

    @staticmethod
    def _silent(error: LiveKitFailed) -> ProblemError:
        return ProblemError(
            ErrorCode.RECORDING_UNAVAILABLE,
            f"LiveKit does not say what became of the room's recording: {_reason(error)}. Try again.",
            retry_after_s=5,
        )


_AT_WORK = (
    api.EgressStatus.EGRESS_STARTING,
    api.EgressStatus.EGRESS_ACTIVE,
    api.EgressStatus.EGRESS_ENDING,
)


def _reason(error: LiveKitFailed) -> str:
    """What is to be done about it, where the server's words say so."""
    if "redis required" in error.detail:
        return "livekit-server has no Redis, through which it reaches Egress"
    if "no response from servers" in error.detail or error.code == "TimeoutError":
        return "no Egress service answers livekit-server"
    return str(error)
