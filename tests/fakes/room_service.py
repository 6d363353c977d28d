"""LiveKit's room service on the wire (Twirp, protobuf), as far as the orchestrator uses it: it records what it is asked."""

from __future__ import annotations

from fastapi import FastAPI, Request
from livekit import api
from starlette.responses import JSONResponse, Response


class FakeRoomService:
    """Rooms that were made and deleted, participants that were removed. `broken` answers every call with an error.

    `ingress_url` None is a deployment without Ingress; `ingresses` are those that are there, by id.
    """

    def __init__(self) -> None:
        self.ingress_url: str | None = None
        self.ingresses: dict[str, api.CreateIngressRequest] = {}
        self.rooms: dict[str, api.CreateRoomRequest] = {}
        self.removed: list[tuple[str, str]] = []
        self.deleted: list[str] = []
        self.broken = False
        self.app = FastAPI(openapi_url=None)
        self.app.add_api_route("/twirp/livekit.RoomService/{method}", self._call, methods=["POST"])
        self.app.add_api_route("/twirp/livekit.Ingress/{method}", self._ingress, methods=["POST"])

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
