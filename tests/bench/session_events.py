"""Collects the events of a session, and prints them when a try of a bench fails."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import httpx

_PRINTED = 200
"""Characters of an event that are printed."""


class SessionEvents:
    """Of one session. `all` has them with `at`: when each came (monotonic)."""

    def __init__(self, http: httpx.AsyncClient, session_id: str) -> None:
        self._http, self._session_id = http, session_id
        self.all: list[dict[str, Any]] = []

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Those of one type."""
        return [event for event in self.all if event["type"] == kind]

    async def follow(self) -> None:
        """Reads them; never returns."""
        async with self._http.stream("GET", f"/session/{self._session_id}/events", timeout=None) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data:"):
                    self.all.append({**json.loads(line[5:]), "at": time.monotonic()})

    def report(self, what: str, since: float, zero: float) -> None:
        """Prints `what`, and those since then in seconds from `zero` on, to standard error."""
        print(what, file=sys.stderr)
        for event in self.all:
            if event["at"] > since:
                data = json.dumps(event.get("data", {}))
                print(f"  {event['at'] - zero:.2f} {event['type']} {data[:_PRINTED]}", file=sys.stderr, flush=True)
