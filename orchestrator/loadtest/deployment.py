"""The deployment under test, over its public HTTP surface."""

from __future__ import annotations

import ipaddress
from typing import Any
from urllib.parse import urlsplit

import httpx

_START_S = 200.0  # the service itself gives up after 180 s by default
_TIMEOUT_S = 20.0
_ENDED = ("stopped", "failed")
_NONSENSE = "http_nonsense"
Json = dict[str, Any]
Fields = dict[str, type]
"""What a caller reads of an answer."""
_TICKET: Fields = {"livekit_url": str, "token": str}
_STARTED: Fields = {"session_id": str, "audio_url": str, "engine": str, "fps": int}
_LISTED: Fields = {"session_id": str, "room": str, "state": str}


class CallError(Exception):
    """A call failed. `code` is the service's own, or `unreachable`, `timeout`, `http_STATUS`, `http_nonsense`."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


def is_loopback(url: str) -> bool:
    """Whether it leads to this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class Deployment:
    """Calls with one key. Every method raises CallError; cancelling one leaves open whether the service carried it out."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=_TIMEOUT_S,
            trust_env=not is_loopback(url),
            limits=httpx.Limits(max_connections=None),
        )

    async def aclose(self) -> None:
        """Closes its connections."""
        await self._http.aclose()

    async def token(self, room: str, identity: str) -> Json:
        """A viewer's token for a room, which exists afterwards."""
        return await self._json("POST", "/token", _TICKET, json={"room": room, "identity": identity})

    async def start(self, body: Json) -> Json:
        """Starts a session."""
        return await self._json("POST", "/session/start", _STARTED, json=body, timeout=_START_S)

    async def interrupt(self, session_id: str) -> None:
        """Barge-in."""
        await self._json("POST", f"/session/{session_id}/interrupt")

    async def stop(self, session_id: str) -> None:
        """Ends a session."""
        await self._json("POST", f"/session/{session_id}/stop")

    async def running(self, rooms: str) -> list[Json]:
        """Sessions that have not ended, in rooms whose names begin with `rooms`."""
        sessions = (await self._json("GET", "/sessions", {"sessions": list}))["sessions"]
        for each in sessions:
            _check(each, _LISTED, "GET /sessions")
        return [each for each in sessions if each["room"].startswith(rooms) and each["state"] not in _ENDED]

    async def debug(self) -> Json:
        """`/debug/musetalk`; operators only."""
        return await self._json("GET", "/debug/musetalk", {"sessions": list})

    async def metrics(self) -> str:
        """`/metrics`; operators only."""
        return (await self._call("GET", "/metrics")).text

    async def _json(self, method: str, path: str, needs: Fields | None = None, **options: Any) -> Json:
        answer = await self._call(method, path, **options)
        try:
            body = answer.json()
        except (ValueError, RecursionError) as error:
            raise CallError(_NONSENSE, f"{method} {path} answered no JSON") from error
        return _check(body, needs or {}, f"{method} {path}")

    async def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = await self._http.request(method, path, **options)
        except httpx.TimeoutException as error:
            raise CallError("timeout", f"{method} {path} was not answered in time") from error
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise CallError("unreachable", f"{self.url} cannot be reached: {error}") from error
        if answer.is_success:
            return answer
        code, detail = f"http_{answer.status_code}", f"{method} {path} answered {answer.status_code}"
        try:
            problem = answer.json()
        except (ValueError, RecursionError):
            problem = None  # a proxy's page
        if isinstance(problem, dict) and "code" in problem:
            code, detail = str(problem["code"]), str(problem.get("detail", detail))
        raise CallError(code, detail)


def _check(body: Any, needs: Fields, call: str) -> Json:
    """The answer, an object with these fields of these types. Raises CallError: then something else listens at that address."""
    if not isinstance(body, dict):
        raise CallError(_NONSENSE, f"{call} answered no JSON object: is an orchestrator at that address?")
    for name, kind in needs.items():
        if not isinstance(body.get(name), kind):
            raise CallError(_NONSENSE, f"{call} answered without {name!r}: is an orchestrator at that address?")
    return body
