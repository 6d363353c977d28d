"""`/session/start`, `/sessions`, and the calls to one session: its state, stop, interrupt, publisher, avatar, action."""

from __future__ import annotations

import secrets
import time
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from pydantic import Field, field_validator

from musetalk_agent.protocol.http import (
    AgentSession,
    AudioSource,
    AvatarSource,
    Picture,
    PublisherMode,
    PublisherRequest,
    Strict,
    VideoCodec,
    VoiceSource,
)
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.avatars.avatar_record import ShownSettings
from orchestrator.conversation.options import ConversationRequest
from orchestrator.keys import Caller, Scope
from orchestrator.livekit_rooms import ALPHA_BELOW
from orchestrator.routes import participant_source
from orchestrator.routes.auth import Rule, current, require, visible
from orchestrator.routes.avatar_routes import resolved
from orchestrator.routes.context import Context, Ctx, here, host_url, run_once, stored, views
from orchestrator.routes.participant_source import NEEDS_WEBRTC, NamedSource, ParticipantSource
from orchestrator.routes.public_access import shown
from orchestrator.session.model import ManagedSession, SessionRequest, iso
from orchestrator.tts.speech_settings import SpeechSettings
from orchestrator.webhooks import secret

PATTERN_ENGINE = "pattern"
OWN_MODELS = Rule(Scope.OPERATOR)
"""The worker calls the addresses of a conversation's models from inside the deployment, so only operators may give them."""
router = APIRouter(tags=["sessions"])


class StartRequest(AvatarSource, Picture):
    """Body of `POST /session/start`.

    `speaker` says who publishes the speech, `agent` or `orchestrator`; any other value is the identity of the participant for
    whom the avatar speaks, and with `audio_source` `datastream` that one sends the speech through the room. With `audio_source`
    `{"participant": IDENTITY}` the avatar says what that one's microphone says. `rtmp_url` holds a stream key and is shown nowhere.
    """

    room: str = Field(min_length=1, max_length=256)
    connect_livekit: bool = True
    engine: str | None = Field(default=None, min_length=1, max_length=64)
    avatar_settings: ShownSettings = ShownSettings()
    speaker: str | None = Field(default=None, min_length=1, max_length=256)
    audio_source: NamedSource | ParticipantSource = "http"
    rtmp_url: str | None = Field(default=None, min_length=8, max_length=2048, repr=False)
    wants_rtmp: bool = False
    publisher: PublisherMode = PublisherMode.AUTO
    captions: bool = True
    video_codec: VideoCodec = VideoCodec.VP8
    simulcast: bool = False
    record: bool = False
    skip_idle: bool = False
    conversation: ConversationRequest | None = None
    speech: SpeechSettings | None = None
    webhook_url: str | None = Field(default=None, min_length=8, max_length=2048, repr=False)
    webhook_secret: str | None = Field(default=None, max_length=128, repr=False)

    @field_validator("audio_source", mode="before")
    @classmethod
    def _is_source(cls, value: object) -> object:
        return participant_source.parse(value)

    @field_validator("webhook_secret")
    @classmethod
    def _is_secret(cls, value: str | None) -> str | None:
        if value is not None:
            secret(value)
        return value

    def order(self) -> SessionRequest:
        """What is asked for. Raises ProblemError for fields that do not go together."""
        if (self.width is None) != (self.height is None):
            missing = "height" if self.height is None else "width"
            raise ProblemError(
                ErrorCode.INVALID_REQUEST,
                f"{missing}: give width and height together, or neither for the clip's own size.",
                field=missing,
            )
        source = AvatarSource(
            frames_zip_url=self.frames_zip_url, idle_video_url=self.idle_video_url, avatar_id=self.avatar_id
        )
        if source.empty and self.engine != PATTERN_ENGINE:
            raise ProblemError(
                ErrorCode.AVATAR_MISSING, "Give frames_zip_url, idle_video_url or avatar_id.", field="frames_zip_url"
            )
        self._check_rtmp()
        self._check_source()
        self._check_conversation()
        self._check_video()
        self._check_recording()
        voices = {source.value: source for source in VoiceSource}
        speaker, audio_source = self.speaker if self.speaker not in voices else None, AudioSource.PARTICIPANT
        if isinstance(self.audio_source, ParticipantSource):
            speaker = self.audio_source.participant
        else:
            audio_source = AudioSource(self.audio_source)
        return SessionRequest(
            room=self.room,
            avatar=source,
            picture=Picture(fps=self.fps, width=self.width, height=self.height),
            engine=self.engine,
            connect_livekit=self.connect_livekit,
            speaker=speaker,
            voice=voices.get(self.speaker or "", VoiceSource.AGENT),
            audio_source=audio_source,
            rtmp_url=self.rtmp_url,
            wants_rtmp=self.wants_rtmp,
            publisher=self.publisher,
            captions=self.captions,
            video_codec=self.video_codec,
            simulcast=self.simulcast,
            webhook_url=self.webhook_url,
            webhook_secret=self.webhook_secret,
            conversation=self.conversation,
            record=self.record,
            skip_idle=self.skip_idle,
            speech=self.speech,
            avatar_settings=self.avatar_settings.mouth,
            avatar_voice=self.avatar_settings.voice,
        )

    def _check_conversation(self) -> None:
        if self.conversation is None:
            return
        if self.speaker is not None or self.audio_source != "http" or not self.connect_livekit:
            raise ProblemError(
                ErrorCode.INVALID_REQUEST,
                "conversation: it speaks for itself and needs the room; leave speaker, audio_source and connect_livekit out.",
                field="conversation",
            )

    def _check_recording(self) -> None:
        if self.skip_idle and not self.record:
            raise ProblemError(
                ErrorCode.INVALID_REQUEST,
                "skip_idle: it says what a recording leaves out; give record too, or leave it out.",
                field="skip_idle",
            )

    def _check_video(self) -> None:
        if self.simulcast and not self.connect_livekit:
            raise ProblemError(
                ErrorCode.INVALID_REQUEST,
                "simulcast: it is for the viewers of a room; leave connect_livekit at true, or simulcast at false.",
                field="simulcast",
            )

    def _check_source(self) -> None:
        if isinstance(self.audio_source, ParticipantSource):
            participant_source.check(
                self.audio_source,
                speaker=self.speaker,
                connect_livekit=self.connect_livekit,
                publisher=self.publisher,
            )
        if self.audio_source != "datastream":
            return
        if self.speaker is None or self.speaker in {source.value for source in VoiceSource}:
            raise ProblemError(
                ErrorCode.INVALID_REQUEST,
                f"speaker: audio_source datastream needs the identity of the participant that sends speech, not {self.speaker!r}.",
                field="speaker",
            )
        if not self.connect_livekit:
            raise ProblemError(
                ErrorCode.INVALID_REQUEST,
                "connect_livekit: audio_source datastream needs the room; leave connect_livekit at true.",
                field="connect_livekit",
            )

    def _check_rtmp(self) -> None:
        if self.rtmp_url is not None and not self.rtmp_url.lower().startswith(("rtmp://", "rtmps://")):
            raise ProblemError(
                ErrorCode.RTMP_URL_FORBIDDEN,
                "rtmp_url: give an address that begins with rtmp:// or rtmps://.",
                field="rtmp_url",
            )
        if self.wants_rtmp and self.rtmp_url is None:
            raise ProblemError(
                ErrorCode.INVALID_REQUEST,
                "rtmp_url: wants_rtmp needs an address to push to beside WebRTC.",
                field="rtmp_url",
            )


@router.post("/session/start")
async def start(
    body: StartRequest,
    request: Request,
    ctx: Ctx,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=256)] = None,
) -> dict[str, Any]:
    """Starts an avatar in a room. Both media tracks are published when the answer comes.

    With an `Idempotency-Key`, the same body gets the same answer however often it is sent, until the session has ended. A caller
    that leaves before the answer leaves nothing behind: without a key at once, with one unless it asks again within 30 s.
    """
    caller = current(request.scope)
    order = await admitted(ctx, body, caller)
    ctx.note_address(request)
    own_key = idempotency_key and f"{caller.name} {idempotency_key}"
    begin = partial(_begin, ctx, request, caller, order)
    answer = await run_once(ctx.starts, request, own_key, body.model_dump_json(), begin)
    request.state.session_id = answer["session_id"]
    return answer


async def admitted(ctx: Context, body: StartRequest, caller: Caller) -> SessionRequest:
    """What is asked for, when this caller may ask for it. Raises ProblemError."""
    if body.webhook_url is not None:
        await _check_webhook(ctx, body, body.webhook_url)
    if body.conversation is not None and body.conversation.names_models:
        require(caller, OWN_MODELS)
    order = replace(body.order(), key=caller.name)
    if body.conversation is not None:
        await ctx.tools.check(body.conversation.tools)
    return await resolved(ctx, caller, order, body.avatar_settings)


async def _check_webhook(ctx: Context, body: StartRequest, url: str) -> None:
    if not (body.webhook_secret or ctx.options.webhooks_signed):
        raise ProblemError(
            ErrorCode.INVALID_REQUEST,
            "webhook_secret: give one, for this service has no WEBHOOK_SECRET to sign with.",
            field="webhook_secret",
        )
    await ctx.webhooks.check(url)


async def _begin(ctx: Context, request: Request, caller: Caller, order: SessionRequest) -> dict[str, object]:
    """Starts the session within its caller's quotas."""
    mine = sum(session.order.key == caller.name for session in ctx.sessions.registry.running())
    ctx.access.quotas.start(caller, mine, time.monotonic())
    return started(ctx, request, await ctx.sessions.start(order))


def started(ctx: Context, request: Request, session: ManagedSession) -> dict[str, object]:
    """The answer to a start."""
    agent = session.snapshot
    assert agent is not None
    viewer = f"viewer-{secrets.token_urlsafe(6)}"
    ttl_s = ctx.sessions.options.max_s
    audio_token = ctx.credentials.audio_token(session.session_id, session.expires_at)
    base = host_url(request, ctx.options.public_url)
    report = _report(session, agent)
    return {
        "session_id": session.session_id,
        "state": session.state.value,
        "room": session.order.room,
        "livekit_url": ctx.minter.public_url,
        "avatar_identity": session.identity,
        "viewer_identity": viewer,
        "viewer_token": ctx.minter.viewer(
            session.order.room, viewer, ttl_s, talks=session.order.conversation is not None
        ),
        "audio_url": f"{base}/audio?session_id={session.session_id}&token={audio_token}",
        "engine": agent.engine,
        "engine_note": agent.engine_note,
        "fps": agent.fps,
        "width": agent.width,
        "height": agent.height,
        "alpha": ALPHA_BELOW if session.order.transparent else None,
        "publisher": agent.publisher,
        "expires_at": iso(session.expires_at),
        "avatar": report,
        **session.microphone,
        **({"conversation": talk} if (talk := ctx.conversations.view(session.session_id)) is not None else {}),
    }


def _report(session: ManagedSession, agent: AgentSession) -> dict[str, Any] | None:
    """The quality report of what is shown, under the id that the caller knows it by."""
    return {**agent.avatar.model_dump(mode="json"), "avatar_id": session.avatar_id} if agent.avatar else None


@router.get("/sessions")
async def sessions(ctx: Ctx, request: Request) -> dict[str, Any]:
    """Every session that the caller sees, ended ones for ten minutes. The state of their media is at most a few seconds old."""
    caller, known = current(request.scope), ctx.sessions.registry.all()
    others = await views(ctx, caller, {session.session_id for session in known})
    return {"sessions": [*others, *(session.view() for session in visible(caller, known))]}


@router.get("/session/{session_id}")
async def session(session_id: str, ctx: Ctx, request: Request) -> dict[str, Any]:
    """One session with its funnel, as its agent sees it now; as its owner last stored it, without one, when that is another
    orchestrator.
    """
    caller = current(request.scope)
    if not ctx.sessions.registry.holds(session_id):
        return shown(caller, {**(await stored(ctx, caller, session_id)).view, "funnel": []})
    found = ctx.sessions.registry.get(session_id)
    await ctx.sessions.refresh(found)
    return shown(caller, {**found.view(), **ctx.conversations.status(session_id), "funnel": found.funnel})


@router.post("/session/{session_id}/stop")
async def stop(session_id: str, ctx: Ctx, request: Request) -> dict[str, Any]:
    """Ends the session, in whatever state it is, any number of times."""
    caller = current(request.scope)
    if not ctx.sessions.registry.holds(session_id):
        record = await stored(ctx, caller, session_id)
        if record.ended:
            return shown(caller, record.view)
    found = await here(ctx, caller, session_id)
    await ctx.sessions.stop(found)
    return shown(caller, found.view())


@router.post("/session/{session_id}/interrupt")
async def interrupt(session_id: str, ctx: Ctx, request: Request) -> dict[str, float]:
    """Barge-in: silence at once. Answers with the seconds of speech that will not be heard."""
    live = (await here(ctx, current(request.scope), session_id)).running()
    ctx.conversations.interrupt(session_id)  # else the rest of its reply would go on after the silence
    return {"dropped_s": await live.interrupt()}


@router.post("/session/{session_id}/publisher")
async def publisher(session_id: str, body: PublisherRequest, ctx: Ctx, request: Request) -> dict[str, Any]:
    """Holds the session's media to WebRTC or RTMP, or leaves the choice to the agent. `publisher.changed` follows."""
    found = await here(ctx, current(request.scope), session_id)
    if body.mode is PublisherMode.RTMP and found.order.audio_source is AudioSource.PARTICIPANT:
        raise ProblemError(
            ErrorCode.PUBLISHER_UNAVAILABLE, f"mode: {NEEDS_WEBRTC}", field="mode", value=body.mode.value
        )
    await ctx.sessions.set_publisher(found, body.mode)
    return found.view()


class AvatarRequest(AvatarSource):
    """Body of `POST /session/{session_id}/avatar`."""

    avatar_settings: ShownSettings = ShownSettings()


@router.post("/session/{session_id}/avatar")
async def avatar(session_id: str, body: AvatarRequest, ctx: Ctx, request: Request) -> dict[str, Any]:
    """Shows another avatar in the session, on the same tracks and at the same size; speech goes on. Answers when it is shown.

    When it cannot be shown the old one stays.
    """
    caller = current(request.scope)
    found = await here(ctx, caller, session_id)
    found.running()
    source = AvatarSource.model_validate(body.model_dump(exclude={"avatar_settings"}))
    if source.empty:
        raise ProblemError(
            ErrorCode.AVATAR_MISSING, "Give frames_zip_url, idle_video_url or avatar_id.", field="frames_zip_url"
        )
    if body.avatar_settings.background == "transparent" and not found.order.transparent:
        raise ProblemError(
            ErrorCode.INVALID_REQUEST,
            "avatar_settings.background: a session is transparent from its start on or never; start another one.",
            field="avatar_settings.background",
            value="transparent",
        )
    chosen = replace(found.order, avatar=source, avatar_settings=body.avatar_settings.mouth)
    snapshot = await ctx.sessions.change_avatar(found, await resolved(ctx, caller, chosen, body.avatar_settings))
    return {"session_id": session_id, "avatar": _report(found, snapshot)}


class ActionRequest(Strict):
    """Body of `POST /session/{session_id}/action`."""

    name: str = Field(min_length=1, max_length=64)
    loop: bool = False


@router.post("/session/{session_id}/action", status_code=202)
async def action(session_id: str, body: ActionRequest, ctx: Ctx, request: Request) -> dict[str, Any]:
    """Plays a clip of the session's avatar, once or until something else is asked for; `idle` ends it. The mouth speaks over it."""
    found = await here(ctx, current(request.scope), session_id)
    found.running()
    await ctx.clips.act(found, body.name, loop=body.loop)
    return {"session_id": session_id, "name": body.name, "loop": body.loop}
