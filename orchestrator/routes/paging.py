"""Pages of a list, the newest first: `limit` entries `after` the last one of the page before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

from fastapi import Query

from musetalk_agent.protocol.problems import ErrorCode, ProblemError

Limit = Annotated[int, Query(ge=1, le=200)]
After = Annotated[str | None, Query(max_length=64)]
USUAL = 50
_Entry = TypeVar("_Entry")


def page_of(
    entries: Sequence[_Entry], id_of: Callable[[_Entry], str], what: str, limit: int, after: str | None
) -> tuple[Sequence[_Entry], str | None]:
    """The page, and the `after` of the next one; None on the last page. `what` names an entry in an error.

    Raises ProblemError `invalid_request` for an `after` that is no entry's id.
    """
    if after is not None:
        ids = [id_of(entry) for entry in entries]
        if after not in ids:
            text = f"after: there is no such {what}."
            raise ProblemError(ErrorCode.INVALID_REQUEST, text, field="after", value=after)
        entries = entries[ids.index(after) + 1 :]
    page = entries[:limit]
    return page, id_of(page[-1]) if len(entries) > limit else None
