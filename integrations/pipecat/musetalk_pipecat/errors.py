"""What can go wrong, with the code that the orchestrator gave it."""

from __future__ import annotations

import json


class AvatarError(Exception):
    """A request was refused or a session is over. `code` is one of the orchestrator's `docs/protocol.md`, or `network`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code


def problem(status: int, body: str) -> tuple[str, str]:
    """Code and sentence of a refusal; `http_STATUS` where the answer is no problem+json."""
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        told = None
    told = told if isinstance(told, dict) else {}
    return str(told.get("code", f"http_{status}")), str(told.get("detail", "The request was refused."))
