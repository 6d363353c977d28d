"""Files that a render is made of, fetched by the rules of `avatars.sources`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.sources import Fetcher
from musetalk_agent.errors import AvatarFetchFailed, AvatarTooLarge, AvatarUrlForbidden
from musetalk_agent.protocol.problems import ErrorCode, ProblemError


@dataclass(frozen=True, slots=True)
class Source:
    """A file in words: the request's field, what it is, the codes of its errors, and the setting of its size, where one is."""

    field: str
    what: str
    forbidden: ErrorCode
    failed: ErrorCode
    setting: str = ""


SOUND = Source("audio_url", "sound", ErrorCode.AUDIO_URL_FORBIDDEN, ErrorCode.AUDIO_FETCH_FAILED)
STEM = Source("keep_background_audio", "background", ErrorCode.AUDIO_URL_FORBIDDEN, ErrorCode.AUDIO_FETCH_FAILED)
VIDEO = Source("video_url", "video", ErrorCode.VIDEO_URL_FORBIDDEN, ErrorCode.VIDEO_FETCH_FAILED, "DUB_BYTES")


async def fetch_file(url: str, target: Path, limits: AvatarLimits, source: Source, *, allow_private: bool) -> None:
    """Fetches into `target`, which the caller removes where it raises. Raises ProblemError with the source's codes; OSError."""
    fetcher = Fetcher(limits, allow_private=allow_private)
    received = 0
    with target.open("wb") as file:

        async def write(piece: bytes) -> None:
            nonlocal received
            received += len(piece)
            if received > limits.source_bytes:
                set_by = f"; {source.setting} of the agent sets that" if source.setting else ""
                raise AvatarTooLarge(f"The {source.what} has more than {limits.source_bytes} bytes{set_by}.")
            await asyncio.to_thread(file.write, piece)

        try:
            await fetcher.fetch(url, write)
        except AvatarUrlForbidden as error:
            raise ProblemError(source.forbidden, error.detail, field=source.field) from error
        except (AvatarFetchFailed, AvatarTooLarge) as error:
            raise ProblemError(source.failed, error.detail, field=source.field) from error
