"""LiveKit's room service on the wire (Twirp, protobuf), as far as the orchestrator uses it: it records what it is asked."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, Request
from livekit import api
from starlette.responses import JSONResponse, Response


class FakeRoomService:
    """Rooms that were made and deleted, participants that were removed. `broken` answers every call with an error.

    `ingress_url` None is a deployment without Ingress; `ingresses` are those that are there, by id. `egress` None is one without
    Egress, else what a film of a room consists of; `egresses` are those that were begun, by id. One that is stopped ends at once,
    unless `egress_writes` is clear.
    """

    def __init__(self) -> None:
        self.ingress_url: str | None = None
        self.ingresses: dict[str, api.CreateIngressRequest] = {}
        self.rooms: dict[str, api.CreateRoomRequest] = {}
        self.removed: list[tuple[str, str]] = []
        self.deleted: list[str] = []
        self.broken = False
        self.egress: bytes | None = None
        self.egress_error = ""
        self.egresses: dict[str, api.EgressInfo] = {}
        self.egress_writes = True
        self.app = FastAPI(openapi_url=None)
        self.app.add_api_route("/twirp/livekit.RoomService/{method}", self._call, methods=["POST"])
        self.app.add_api_route("/twirp/livekit.Ingress/{method}", self._ingress, methods=["POST"])
        self.app.add_api_route("/twirp/livekit.Egress/{method}", self._egress, methods=["POST"])

    async def _call(self, method: str, request: Request) -> Response:
        body = await request.body()
        assert request.headers["authorization"].startswith("Bearer ")
        if self.broken:
            return JSONResponse({"code": "unavailable", "msg": "broken on purpose"}, status_code=503)
        if method == "CreateRoom":
            asked = api.CreateRoomRequest.FromString(body)
            self.rooms[asked.name] = asked
            return Response(api.Room(name=asked.name).SerializeToString(), media_type="application/protobuf")
        if method == "DeleteRoom":
            room = api.DeleteRoomRequest.FromString(body).room
            self.deleted.append(room)
            self.rooms.pop(room, None)
            return Response(api.DeleteRoomResponse().SerializeToString(), media_type="application/protobuf")
        if method == "ListRooms":
            listed = api.ListRoomsResponse(rooms=[api.Room(name=name) for name in self.rooms])
            return Response(listed.SerializeToString(), media_type="application/protobuf")
        if method == "ListParticipants":
            return Response(api.ListParticipantsResponse().SerializeToString(), media_type="application/protobuf")
        assert method == "RemoveParticipant"
        gone = api.RoomParticipantIdentity.FromString(body)
        self.removed.append((gone.room, gone.identity))
        return JSONResponse({"code": "not_found", "msg": "participant not found"}, status_code=404)

    async def _ingress(self, method: str, request: Request) -> Response:
        body = await request.body()
        if self.ingress_url is None:
            return JSONResponse({"code": "internal", "msg": "ingress not connected (redis required)"}, status_code=500)
        if method == "CreateIngress":
            name = f"IN_{len(self.ingresses)}"
            self.ingresses[name] = api.CreateIngressRequest.FromString(body)
            info = api.IngressInfo(ingress_id=name, url=self.ingress_url, stream_key="key")
            return Response(info.SerializeToString(), media_type="application/protobuf")
        assert method == "DeleteIngress"
        asked = api.DeleteIngressRequest.FromString(body).ingress_id
        self.ingresses.pop(asked, None)
        return Response(api.IngressInfo(ingress_id=asked).SerializeToString(), media_type="application/protobuf")

    async def _egress(self, method: str, request: Request) -> Response:
        body = await request.body()
        if self.egress is None:
            return JSONResponse({"code": "internal", "msg": "egress not connected (redis required)"}, status_code=500)
        if method == "StartRoomCompositeEgress":
            asked = api.RoomCompositeEgressRequest.FromString(body)
            info = api.EgressInfo(egress_id=f"EG_{len(self.egresses)}", room_name=asked.room_name, room_composite=asked)
            self.egresses[info.egress_id] = info
            return Response(info.SerializeToString(), media_type="application/protobuf")
        if method == "ListEgress":
            found = self.egresses[api.ListEgressRequest.FromString(body).egress_id]
            if self.egress_writes and found.status == api.EgressStatus.EGRESS_ENDING:
                self._end(found)
            answer = api.ListEgressResponse(items=[found])
            return Response(answer.SerializeToString(), media_type="application/protobuf")
        assert method == "StopEgress"
        found = self.egresses[api.StopEgressRequest.FromString(body).egress_id]
        if found.status not in (api.EgressStatus.EGRESS_STARTING, api.EgressStatus.EGRESS_ACTIVE):
            text = f"egress with status {api.EgressStatus.Name(found.status)} cannot be stopped"
            return JSONResponse({"code": "failed_precondition", "msg": text}, status_code=412)
        found.status = api.EgressStatus.EGRESS_ENDING
        return Response(found.SerializeToString(), media_type="application/protobuf")

    def _end(self, info: api.EgressInfo) -> None:
        """Writes the film, as Egress does, where it was asked to."""
        info.status = api.EgressStatus.EGRESS_FAILED if self.egress_error else api.EgressStatus.EGRESS_COMPLETE
        info.error = self.egress_error
        if not self.egress_error and self.egress is not None:
            (output,) = info.room_composite.file_outputs
            Path(output.filepath).write_bytes(self.egress)
            info.file_results.append(
                api.FileInfo(filename=output.filepath, duration=int(12.5e9), size=len(self.egress))
            )
