"""The body of an error answer (RFC 9457)."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel

from musetalk_agent.protocol.problems import ErrorCode, ProblemError


class Problem(BaseModel):
    """Body of an error answer (RFC 9457). `code` is stable; `detail` names the wrong value and what to do about it."""

    type: str = "about:blank"
    title: str
    status: int
    code: ErrorCode
    detail: str
    field: str | None = None
    limit: str | int | float | None = None
    value: str | int | float | None = None

    @classmethod
    def of(cls, error: ProblemError) -> Self:
        """The body that reports an error."""
        return cls(
            title=error.code.value.replace("_", " ").capitalize(),
            status=error.status,
            code=error.code,
            detail=error.detail,
            field=error.field,
            limit=error.limit,
            value=error.value,
        )
