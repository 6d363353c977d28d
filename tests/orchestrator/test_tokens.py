"""What LiveKit learns about each participant: the grants of each token read back, and what its failures become."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from livekit import api

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.livekit_rooms import DEPLOYMENT, LiveKitClient, LiveKitFailed, LiveKitKeys, Rooms, TokenMinter
from tests.virtual_loop import virtually

SECRET = "secretsecretsecretsecretsecret00"
KEYS = LiveKitKeys("ws://inner:7880", "wss://outer", "devkey", SECRET, playout_delay_ms=120)


def claims(token: str, secret: str = SECRET) -> dict[str, Any]:
    """The claims of a token, after its signature was checked as RFC 7515 has it (HS256)."""
    head, body, signature = token.split(".")
    expected = base64.urlsafe_b64encode(hmac.digest(secret.encode(), f"{head}.{body}".encode(), "sha256")).rstrip(b"=")
    assert hmac.compare_digest(expected, signature.encode()), "signed by somebody else"
    assert json.loads(_bytes(head))["alg"] == "HS256"
    return dict(json.loads(_bytes(body)))


def _bytes(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def made(kind: str, deployment: str = "", on_behalf_of: str | None = None) -> dict[str, Any]:
    minter = TokenMinter(KEYS, lambda: deployment)
    if kind == "avatar":
        return claims(minter.avatar("lobby", "me", 60, name="Avatar", on_behalf_of=on_behalf_of))
    return claims(getattr(minter, kind)("lobby", "me", 60))


def test_a_viewer_may_watch_one_room_and_nothing_else() -> None:
    reported = made("viewer")
    assert reported["sub"] == "me" and reported["iss"] == "devkey"
    video = {name: value for name, value in reported["video"].items() if value not in (None, [])}
    assert video.pop("canPublish") is False and video.pop("canPublishData") is False
    assert {name for name, value in video.items() if value} == {"roomJoin", "room", "canSubscribe"}
    assert video["room"] == "lobby"


def test_a_probe_joins_unseen_and_hears_and_says_nothing() -> None:
    video = made("probe")["video"]
    assert video["hidden"] is True and video["roomJoin"] is True
    assert (video["canSubscribe"], video["canPublish"], video["canPublishData"]) == (False, False, False)


def test_an_avatar_publishes_camera_and_microphone_as_an_agent() -> None:
    reported = made("avatar")
    assert reported["kind"] == "agent" and reported["name"] == "Avatar"
    video = reported["video"]
    assert video["canPublishSources"] == ["camera", "microphone"]
    assert video["canPublish"] and video["canSubscribe"] and video["canPublishData"] and video["canUpdateOwnMetadata"]
    for grant in ("roomAdmin", "roomCreate", "roomList", "roomRecord", "ingressAdmin", "hidden"):
        assert not video.get(grant), grant


@pytest.mark.parametrize(
    ("deployment", "on_behalf_of", "attributes"),
    [
        ("", None, {}),
        ("dep_1", None, {DEPLOYMENT: "dep_1"}),
        ("", "bot", {"lk.publish_on_behalf": "bot"}),
        ("dep_1", "bot", {DEPLOYMENT: "dep_1", "lk.publish_on_behalf": "bot"}),
    ],
)
def test_an_avatar_tells_whose_it_is_and_for_whom_it_speaks(
    deployment: str, on_behalf_of: str | None, attributes: dict[str, str]
) -> None:
    assert (made("avatar", deployment, on_behalf_of).get("attributes") or {}) == attributes


@pytest.mark.parametrize("kind", ["viewer", "probe", "avatar"])
def test_the_room_is_right_whoever_joins_first(kind: str) -> None:
    config = made(kind)["roomConfig"]
    assert config["syncStreams"] is True
    assert (config["emptyTimeout"], config["departureTimeout"]) == (300, 20)
    assert config["minPlayoutDelay"] == config["maxPlayoutDelay"] == 120


@given(ttl_s=st.floats(1, 24 * 3600), room=st.text(min_size=1), identity=st.text(min_size=1))
def test_a_token_is_for_its_room_identity_and_time(ttl_s: float, room: str, identity: str) -> None:
    before = time.time()
    reported = claims(TokenMinter(KEYS).viewer(room, identity, ttl_s))
    assert (reported["video"]["room"], reported["sub"]) == (room, identity)
    assert before + ttl_s - 2 <= reported["exp"] <= time.time() + ttl_s + 2
    assert reported["nbf"] <= time.time() + 1


def test_a_tokens_secret_is_not_shown() -> None:
    assert SECRET not in repr(KEYS)


# --- calls of the room service


class Scripted:
    """A `LiveKitClient` whose calls end as a test says."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.within: list[float] = []

    async def call(self, ask: Callable[[Any], Awaitable[Any]], within_s: float) -> Any:
        self.within.append(within_s)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def rooms(*answers: object) -> tuple[Rooms, Scripted]:
    made = Rooms(KEYS)
    client = Scripted(*answers)
    made._livekit = client  # type: ignore[assignment]  # it has the one method that is used
    return made, client


async def test_what_a_caller_needs_and_livekit_does_not_do_is_livekit_unavailable() -> None:
    failed = LiveKitFailed("TimeoutError")
    for call, what in (
        ("ensure", "make the room"),
        ("names", "list its rooms"),
        ("participants", "list the participants"),
    ):
        service, client = rooms(failed)
        arguments = {"ensure": ("r",), "names": (), "participants": ("r", "dep_1")}[call]
        with pytest.raises(ProblemError, match=f"LiveKit did not {what}.*TimeoutError.*Check LIVEKIT_URL") as caught:
            await getattr(service, call)(*arguments)
        assert (caught.value.code, caught.value.retry_after_s) == (ErrorCode.LIVEKIT_UNAVAILABLE, 2)
        assert client.within == [5.0]


@pytest.mark.parametrize("code", ["", "not_found", "unavailable", "permission_denied"])
async def test_what_is_only_tidier_never_fails_and_waits_two_seconds(code: str) -> None:
    service, client = rooms(LiveKitFailed(code or "TimeoutError", code), LiveKitFailed("TimeoutError", code))
    await service.remove("r", "avatar-1")
    await service.mute("r", "avatar-1", "TR_1")
    assert client.within == [2.0, 2.0]


async def test_a_track_is_muted_for_all() -> None:
    asked: list[api.MuteRoomTrackRequest] = []

    class Asks(Scripted):
        async def call(self, ask: Callable[[Any], Awaitable[Any]], within_s: float) -> Any:
            return await ask(SimpleNamespace(room=SimpleNamespace(mute_published_track=mute)))

    async def mute(request: api.MuteRoomTrackRequest) -> None:
        asked.append(request)

    service = Rooms(KEYS)
    service._livekit = Asks()  # type: ignore[assignment]  # it has the one method that is used
    await service.mute("r", "avatar-1", "TR_1")
    assert asked == [api.MuteRoomTrackRequest(room="r", identity="avatar-1", track_sid="TR_1", muted=True)]


async def test_a_room_that_is_gone_has_nobody_in_it() -> None:
    service, _ = rooms(LiveKitFailed("not_found", "not_found"))
    assert await service.participants("r", "dep_1") == []


async def test_only_this_deployments_own_are_reported() -> None:
    people = [
        api.ParticipantInfo(identity="ours", attributes={DEPLOYMENT: "dep_1"}),
        api.ParticipantInfo(identity="another's", attributes={DEPLOYMENT: "dep_2"}),
        api.ParticipantInfo(identity="a viewer"),
    ]
    service, _ = rooms(api.ListParticipantsResponse(participants=people))
    assert await service.participants("r", "dep_1") == ["ours"]


# --- one call


def opened() -> LiveKitClient:
    client = LiveKitClient("ws://x", "devkey", SECRET)
    client._api = object()  # type: ignore[assignment]  # what it is handed to is the test's own
    return client


@pytest.mark.parametrize(
    ("error", "reason", "code", "detail"),
    [
        (api.TwirpError("not_found", "no such room", status=404), "not_found", "not_found", "no such room"),
        (ValueError("https://key:secret@host"), "ValueError", "", ""),
        (OSError("refused"), "OSError", "", ""),
    ],
)
async def test_a_call_that_fails_names_the_reason_and_no_address(
    error: Exception, reason: str, code: str, detail: str
) -> None:
    async def ask(livekit: Any) -> None:
        raise error

    with pytest.raises(LiveKitFailed) as caught:
        await opened().call(ask, 5.0)
    assert (str(caught.value), caught.value.code, caught.value.detail) == (reason, code, detail)


@virtually
async def test_a_call_that_is_never_answered_ends_at_its_deadline_and_a_cancelled_one_at_once() -> None:
    async def ask(livekit: Any) -> None:
        await asyncio.Event().wait()

    client, begun = opened(), time.monotonic()
    with pytest.raises(LiveKitFailed, match="TimeoutError"):
        await client.call(ask, 5.0)
    assert time.monotonic() - begun == 5.0
    task = asyncio.create_task(client.call(ask, 5.0))
    await asyncio.sleep(1.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_one_that_was_not_opened_says_so_and_closing_twice_is_harmless() -> None:
    client = LiveKitClient("ws://x", "devkey", SECRET)
    with pytest.raises(RuntimeError, match="open"):
        await client.call(lambda livekit: asyncio.sleep(0), 1.0)
    await client.open()
    await client.aclose()
    await client.aclose()
