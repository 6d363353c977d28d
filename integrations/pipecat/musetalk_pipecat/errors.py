"""What can go wrong, with the code that the orchestrator gave it."""

from __future__ import annotations


class AvatarError(Exception):
    """A request was refused or a session is over. `code` is one of the orchestrator's `docs/protocol.md`, or `network`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
