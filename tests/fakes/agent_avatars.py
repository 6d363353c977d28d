"""The avatars of a fake agent: clips by their bytes, and preparations that a test holds up or lets fail."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response, StreamingResponse

from musetalk_agent.protocol.http import AgentActionRequest, AgentAvatarRequest, AvatarReport
from musetalk_agent.protocol.preparation_messages import AgentPrepareRequest, PreparedAvatar, PrepareLine
from musetalk_agent.protocol.problem_body import Problem
from musetalk_agent.protocol.problems import ErrorCode, ProblemError

POSTER = b"\xff\xd8 a poster"


def not_found() -> ProblemError:
    """The agent's word for a clip that it lacks."""
    return ProblemError(ErrorCode.AVATAR_NOT_FOUND, "no such avatar")


class FakeAvatars:
    """What the agent has, and what it was asked for."""

    def __init__(self) -> None:
        self.uploads: list[tuple[str | None, int]] = []
        self.clips: dict[str, bytes] = {}
        self.prepared: list[AgentPrepareRequest] = []
        """Preparations of clips that are here, in the order in which they were asked for."""
        self.may_prepare = asyncio.Event()
        self.may_prepare.set()
        self.may_show = asyncio.Event()
        self.may_show.set()
        self.shown: list[AgentAvatarRequest] = []
        """Changes of the avatar of running sessions."""
        self.played: list[AgentActionRequest] = []
        """Actions of running sessions."""
        self.prepare_error: ProblemError | None = None
        self.refuses: ProblemError | None = None
        """What is said to an upload."""
        self.at_address = b"a clip"
        """What is found at any address."""
        self.needs_clips = False
        """Whether a start of a clip that is not here fails."""

    def add_to(self, app: FastAPI) -> None:
        """Adds the routes."""
        app.add_api_route("/avatars", self._upload, methods=["POST"])
        app.add_api_route("/avatars/prepare", self._prepare, methods=["POST"])
        app.add_api_route("/avatars/{avatar_id}/source", self._source, methods=["GET"])

    def check(self, avatar_id: str | None) -> None:
        """Raises where a start needs a clip that is not here."""
        if self.needs_clips and avatar_id not in self.clips:
            raise not_found()

    def _keep(self, data: bytes) -> str:
        name = "sha256:" + hashlib.sha256(data).hexdigest()
        self.clips[name] = data
        return name

    async def _upload(self, request: Request) -> dict[str, Any]:
        data = b"".join([chunk async for chunk in request.stream()])
        if self.refuses is not None:
            raise self.refuses
        self.uploads.append((request.headers.get("x-filename"), len(data)))
        return {"avatar_id": self._keep(data)}

    async def _prepare(self, body: AgentPrepareRequest) -> Response:
        async def lines() -> AsyncIterator[bytes]:
            try:
                avatar_id = self._keep(self.at_address) if body.clip_url else body.avatar.avatar_id or ""
                if avatar_id not in self.clips:
                    raise not_found()
                self.prepared.append(body)
                yield _line(PrepareLine(progress=0.4))
                await self.may_prepare.wait()
                if self.prepare_error is not None:
                    raise self.prepare_error
                report = AvatarReport(avatar_id=avatar_id, frames=100, width=512, height=512, fps=25, face_px=212)
                made = PreparedAvatar(report=report, poster=base64.b64encode(POSTER).decode())
                yield _line(PrepareLine(prepared=made))
            except ProblemError as error:
                yield _line(PrepareLine(problem=Problem.of(error)))

        return StreamingResponse(lines())

    async def _source(self, avatar_id: str) -> Response:
        if avatar_id not in self.clips:
            raise not_found()
        return Response(self.clips[avatar_id])


def _line(line: PrepareLine) -> bytes:
    return line.model_dump_json(exclude_none=True).encode() + b"\n"
