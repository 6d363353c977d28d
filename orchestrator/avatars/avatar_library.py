"""The avatars that callers keep: uploaded, prepared ahead of any session, changed, deleted.

The folder is the truth (`avatar_folder`). Agents have copies: of clips, and of what is made of them; one that lacks a clip gets it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pydantic import ValidationError

from musetalk_agent.protocol.action_marks import CLIP_NAME, IDLE
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.agents.agent_client import AgentClient, AgentLease
from orchestrator.agents.pool import AgentPool
from orchestrator.avatars.avatar_folder import AvatarFolder, IncomingClip
from orchestrator.avatars.avatar_record import (
    CLIPS_MOST,
    NAME_CHARACTERS,
    AvatarChange,
    AvatarOrder,
    AvatarRecord,
    AvatarState,
    ClipRecord,
    ShownSettings,
    new_avatar_id,
)
from orchestrator.avatars.avatar_storage import AvatarStorage
from orchestrator.avatars.clip_supply import supply
from orchestrator.avatars.newcomers import Newcomers
from orchestrator.avatars.preparation import Preparations
from orchestrator.disk import Disk

_PIECE_BYTES = 1 << 20
_CLIP_WAIT_S = 60.0
"""How long a clip waits for an avatar that is still being fetched."""
_UNNAMED = "Avatar"
_disk = Disk("avatars")


@dataclass(frozen=True)
class AvatarOptions:
    """Where the library is, and what it may hold: `most` avatars of a caller, `most_bytes` of clips, `clip_bytes` of one.

    With a `bucket` (`s3://…`) the library is there, and the folder has copies.
    """

    folder: Path
    bucket: str | None = None
    most: int = 200
    most_bytes: int = 20 << 30
    clip_bytes: int = 256 << 20


class Avatars:
    """Every avatar of the deployment.

    Args:
        options: where they are, and limits.
        pool, agents: who prepares them.
    """

    def __init__(self, options: AvatarOptions, pool: AgentPool, agents: AgentClient) -> None:
        self._options, self._pool, self._agents = options, pool, agents
        self._folder = _storage(options)
        self._changing = asyncio.Lock()
        self._preparations = Preparations(self._folder, pool, agents, self._changing)
        self._newcomers = Newcomers(self._folder, pool, self._preparations.at)

    async def open(self) -> None:
        """Takes up what an earlier process left unfinished. Raises OSError where the folder cannot be used."""
        await asyncio.to_thread(self._folder.make)
        records = await self.all()
        await asyncio.to_thread(self._folder.sweep, {source for record in records for source in record.sources})
        leases = {lease.name: lease for lease in self._pool.leases()}
        for record in records:
            if record.state is AvatarState.PREPARING:
                self._preparations.begin(record.avatar_id)
            elif record.source is not None and record.agent in leases:
                self._pool.remember_avatar(record.source, leases[record.agent])
        self._newcomers.begin()

    async def aclose(self) -> None:
        """Ends the preparations; the next process takes them up. Idempotent."""
        await self._newcomers.aclose()
        await self._preparations.aclose()

    # --- what there is

    async def find(self, avatar_id: str) -> AvatarRecord | None:
        """An avatar; None for an unknown id."""
        return await _disk(self._folder.read, avatar_id)

    async def clip_names(self, avatar_id: str | None) -> tuple[str, ...]:
        """Names of an avatar's clips, `idle` first; empty for one that is not of the library."""
        record = await self.find(avatar_id) if avatar_id is not None else None
        return () if record is None else (IDLE, *sorted(record.clips))

    async def all(self) -> list[AvatarRecord]:
        """Every avatar, the newest first."""

        def read() -> list[AvatarRecord]:
            return sorted(self._folder.records(), key=lambda record: (-record.created_at, record.avatar_id))

        return await _disk(read)

    async def poster(self, record: AvatarRecord) -> Path | None:
        """The file of the poster; None before there is one."""
        return await _disk(self._folder.poster, record.avatar_id)

    def view(self, record: AvatarRecord) -> dict[str, Any]:
        """What `GET /avatars/{id}` says."""
        ready = record.state is AvatarState.READY
        clips = [{"name": IDLE, "frames": record.report.frames if record.report else None, "cached": ready}]
        clips += [
            {"name": name, "frames": clip.frames, "cached": clip.frames is not None}
            for name, clip in sorted(record.clips.items())
        ]
        created = datetime.fromtimestamp(record.created_at, UTC).isoformat(timespec="milliseconds")
        return {
            "avatar_id": record.avatar_id,
            "name": record.name,
            "state": record.state.value,
            "progress": 1.0 if ready else self._preparations.progress(record.avatar_id),
            "created_at": created.replace("+00:00", "Z"),
            "report": None
            if record.report is None
            else {**record.report.model_dump(mode="json"), "avatar_id": record.avatar_id},
            "settings": record.settings.model_dump(mode="json"),
            "clips": clips,
            "error": None if record.error is None else record.error.model_dump(mode="json", exclude_none=True),
        }

    # --- what changes it

    async def upload(
        self, key: str, idempotency_key: str | None, filename: str | None, body: AsyncIterator[bytes]
    ) -> AvatarRecord:
        """Takes a clip's bytes. They are looked at by an agent before this returns; the rest of the preparation goes on after it.

        Raises ProblemError: what the agent says of the clip, `avatar_too_large`, `quota_exceeded`, `idempotency_conflict`,
        `disk_full`, and what `body` raises. Cancelling leaves nothing behind.
        """
        avatar_id = new_avatar_id(key, idempotency_key)
        await self._admit(key, avatar_id)
        source, size = await self._received(body)
        record = AvatarRecord(
            avatar_id=avatar_id,
            key=key,
            name=_name_of(filename),
            created_at=time.time(),
            source=source,
            body_sha256=source,
            size=size,
        )
        known = await self.find(avatar_id)
        if known is None:
            await self._shown_to_agent(source, filename)
        return await self._added(record)

    async def order(self, key: str, idempotency_key: str | None, order: AvatarOrder) -> AvatarRecord:
        """Takes an avatar by its address, which is fetched after this has returned. Raises as `upload` does."""
        avatar_id = new_avatar_id(key, idempotency_key)
        await self._admit(key, avatar_id)
        record = AvatarRecord(
            avatar_id=avatar_id,
            key=key,
            name=order.name or _name_of(order.url.partition("?")[0].rpartition("/")[2]),
            created_at=time.time(),
            settings=order.settings,
            url=order.url,
            body_sha256=hashlib.sha256(order.model_dump_json().encode()).hexdigest(),
        )
        return await self._added(record)

    async def change(self, record: AvatarRecord, change: AvatarChange) -> AvatarRecord:
        """Renames it and sets its settings. Other artefacts that these need are made, and it is `preparing` again until then.

        Raises ProblemError `invalid_request` for settings that are none, `avatar_not_found` when it was deleted meanwhile.
        """
        async with self._changing:
            now = await self._again(record)
            update: dict[str, Any] = {} if change.name is None else {"name": change.name}
            if change.settings is not None:
                update["settings"] = _settings(now.settings, change.settings)
                if update["settings"].prepared_for != now.settings.prepared_for and now.source is not None:
                    update |= {"state": AvatarState.PREPARING, "error": None}
            now = now.model_copy(update=update)
            await _disk(self._folder.write, now)
        if now.state is AvatarState.PREPARING:
            self._preparations.begin(now.avatar_id)
        return now

    async def delete(self, record: AvatarRecord) -> None:
        """Removes an avatar, and its clips where no other avatar has them. Idempotent."""
        async with self._changing:
            self._preparations.end(record.avatar_id)
            await _disk(self._folder.delete, record.avatar_id)
            others = {source for other in await self.all() for source in other.sources}
            await _disk(self._folder.remove_sources, record.sources - others)

    # --- clips

    async def put_clip(
        self, record: AvatarRecord, name: str, filename: str | None, body: AsyncIterator[bytes]
    ) -> tuple[AvatarRecord, bool]:
        """Takes a clip of the avatar, has it prepared and compared with it, and then keeps it; says whether the name is new.

        Raises ProblemError: `invalid_request` for an invalid name, `clip_mismatch`, `quota_exceeded`, and what `upload` raises.
        Cancelling leaves nothing behind.
        """
        _check_clip_name(record, name)
        await self._check_room()
        idle = await self.source(record, _CLIP_WAIT_S)
        source, size = await self._received(body)
        async with self._unless_kept(source), self._pool.borrow() as lease:
            await supply(self._folder, self._agents, lease, source, filename)
            prepared = await self._preparations.clip(lease, record, idle, source)
            return await self._with_clip(
                record, name, ClipRecord(source=source, frames=prepared.report.frames, size=size)
            )

    async def order_clip(self, record: AvatarRecord, name: str, url: str) -> tuple[AvatarRecord, bool]:
        """The same with a clip at an address, which an agent fetches."""
        _check_clip_name(record, name)
        await self._check_room()
        idle = await self.source(record, _CLIP_WAIT_S)
        async with self._pool.borrow() as lease:
            report = (await self._preparations.clip(lease, record, idle, None, url)).report
            source, size = await self._preparations.copy(lease, report.avatar_id)
        async with self._unless_kept(source):
            return await self._with_clip(record, name, ClipRecord(source=source, frames=report.frames, size=size))

    async def _with_clip(self, record: AvatarRecord, name: str, clip: ClipRecord) -> tuple[AvatarRecord, bool]:
        async with self._changing:
            now = await self._again(record)
            before = now.clips.get(name)
            now = now.model_copy(update={"clips": {**now.clips, name: clip}})
            await self._without(now, {before.source} if before is not None else set())
        return now, before is None

    async def delete_clip(self, record: AvatarRecord, name: str) -> AvatarRecord:
        """Removes a clip. Raises ProblemError `clip_not_found`; `invalid_request` for `idle`, which every avatar has."""
        if name == IDLE:
            raise _idle_stays()
        async with self._changing:
            now = await self._again(record)
            if name not in now.clips:
                raise no_clip(name, now)
            clips = {each: clip for each, clip in now.clips.items() if each != name}
            removed = now.clips[name].source
            now = now.model_copy(update={"clips": clips})
            await self._without(now, {removed})
        return now

    async def _without(self, now: AvatarRecord, removed: set[str]) -> None:
        """Stores the record, and removes these clips where no avatar has them any more. `_changing` must be held."""
        await _disk(self._folder.write, now)
        used = {source for each in await self.all() for source in each.sources} if removed else set()
        await _disk(self._folder.remove_sources, removed - used)

    # --- for sessions

    async def source(self, record: AvatarRecord, within_s: float) -> str:
        """The avatar's clip as agents know it; waits until one that comes from an address has come.

        Raises ProblemError: why it cannot be used, or `avatar_fetch_failed` when it does not come within `within_s`.
        """
        until = time.monotonic() + within_s
        while True:
            if record.state is AvatarState.FAILED and record.error is not None:
                error = record.error
                raise ProblemError(error.code, error.detail, field="avatar_id", limit=error.limit, value=error.value)
            if record.source is not None:
                return record.source
            left_s = until - time.monotonic()
            if left_s <= 0:
                text = f"The clip of avatar {record.avatar_id} is still being fetched: try again."
                raise ProblemError(ErrorCode.AVATAR_FETCH_FAILED, text, field="avatar_id", retry_after_s=5)
            await self._preparations.wait(record.avatar_id, min(left_s, 1.0))
            record = await self._again(record)

    async def supply(self, lease: AgentLease, source: str) -> bool:
        """Hands an agent a clip that it lacks; False where this library does not have it either. Raises ProblemError."""
        return await supply(self._folder, self._agents, lease, source)

    def copy_clip(self, source: str, target: Path) -> bool:
        """Puts the bytes of a clip at `target`, unless something is there: a link where the disk allows one. False where
        the clip is not here. Blocks. Raises OSError.
        """
        path = self._folder.source(source)
        if path is None:
            return False
        with suppress(FileExistsError):
            try:
                os.link(path, target)
            except FileExistsError:
                raise
            except OSError:  # another disk
                made = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
                shutil.copyfile(path, made)
                made.replace(target)
        return True

    # --- the parts

    async def _admit(self, key: str, avatar_id: str) -> None:
        records = await self.all()
        mine = sum(record.key == key for record in records)
        if any(record.avatar_id == avatar_id for record in records):
            return
        if mine >= self._options.most:
            raise ProblemError(
                ErrorCode.QUOTA_EXCEEDED,
                f"The key {key!r} has {mine} avatars of {self._options.most}: delete one, or raise AVATARS_MAX.",
                limit=self._options.most,
                value=mine,
            )
        await self._check_room(records)

    async def _check_room(self, records: list[AvatarRecord] | None = None) -> None:
        records = await self.all() if records is None else records
        held = sum(record.size + sum(clip.size for clip in record.clips.values()) for record in records)
        if held >= self._options.most_bytes:
            raise ProblemError(
                ErrorCode.QUOTA_EXCEEDED,
                f"The avatars here have {held} bytes of {self._options.most_bytes}: delete some, or raise AVATARS_BYTES.",
                limit=self._options.most_bytes,
                value=held,
            )

    async def _received(self, body: AsyncIterator[bytes]) -> tuple[str, int]:
        """Keeps a clip's bytes; returns its name and its size."""
        incoming: IncomingClip = await _disk(self._folder.incoming)
        try:
            await self._receive(incoming, body)
            source, _ = await _disk(incoming.keep)
        finally:
            await asyncio.shield(asyncio.to_thread(incoming.drop))
        return source, incoming.size

    async def _receive(self, incoming: IncomingClip, body: AsyncIterator[bytes]) -> None:
        limit, waiting = self._options.clip_bytes, bytearray()
        async for piece in body:
            waiting += piece
            if incoming.size + len(waiting) > limit:
                raise too_large(limit)
            if len(waiting) >= _PIECE_BYTES:
                await _disk(incoming.write, bytes(waiting))
                waiting.clear()
        await _disk(incoming.write, bytes(waiting))

    async def _shown_to_agent(self, source: str, filename: str | None) -> None:
        """An agent takes the clip, or says what is wrong with it; what is wrong is not kept."""
        async with self._unless_kept(source), self._pool.borrow() as lease:
            await supply(self._folder, self._agents, lease, source, filename)
            self._pool.remember_avatar(source, lease)

    @asynccontextmanager
    async def _unless_kept(self, source: str) -> AsyncIterator[None]:
        """Removes a clip that no avatar has when what is done with it fails."""
        async with AsyncExitStack() as failed:
            failed.push_async_callback(self._drop_unused, source)
            yield
            failed.pop_all()

    async def _drop_unused(self, source: str) -> None:
        async with self._changing:
            used = {each for record in await self.all() for each in record.sources}
            await _disk(self._folder.remove_sources, {source} - used)

    async def _added(self, record: AvatarRecord) -> AvatarRecord:
        """Stores it and begins to prepare it; one of the same id and body is that one. Raises `idempotency_conflict`."""
        async with self._changing:
            first = await self.find(record.avatar_id)
            if first is not None:
                if first.body_sha256 != record.body_sha256:
                    text = "This Idempotency-Key was used with another body: use a new key for a new request."
                    raise ProblemError(ErrorCode.IDEMPOTENCY_CONFLICT, text, field="Idempotency-Key")
                return first
            await _disk(self._folder.write, record)
        self._preparations.begin(record.avatar_id)
        return record

    async def _again(self, record: AvatarRecord) -> AvatarRecord:
        """The record as it is now. Raises ProblemError `avatar_not_found`."""
        now = await self.find(record.avatar_id)
        if now is None:
            raise unknown(record.avatar_id)
        return now


def unknown(avatar_id: str) -> ProblemError:
    """The error for an avatar that is not here, or not this caller's."""
    text = f"There is no avatar {avatar_id[:64]!r}."
    return ProblemError(ErrorCode.AVATAR_NOT_FOUND, text, field="avatar_id", value=avatar_id[:64])


def no_clip(name: str, record: AvatarRecord | None) -> ProblemError:
    """The error for a clip that an avatar does not have; `record` is None for one that is not of the library."""
    there = (
        ", ".join([IDLE, *sorted(record.clips)]) if record is not None else f"{IDLE} only, for it is not of the library"
    )
    text = f"The avatar has no clip {name[:32]!r}: it has {there}."
    return ProblemError(ErrorCode.CLIP_NOT_FOUND, text, field="name", value=name[:32])


def _idle_stays() -> ProblemError:
    text = "name: idle is the avatar's own clip; for another one make another avatar."
    return ProblemError(ErrorCode.INVALID_REQUEST, text, field="name", value=IDLE)


def _check_clip_name(record: AvatarRecord, name: str) -> None:
    if name == IDLE:
        raise _idle_stays()
    if not CLIP_NAME.fullmatch(name):
        text = "name: a clip is named by 1 to 32 of a-z, 0-9, - and _, and begins with a letter or a digit."
        raise ProblemError(ErrorCode.INVALID_REQUEST, text, field="name", value=name[:32])
    if name not in record.clips and len(record.clips) >= CLIPS_MOST:
        text = f"The avatar has {CLIPS_MOST} clips, the most that it may have: delete one."
        raise ProblemError(ErrorCode.QUOTA_EXCEEDED, text, limit=CLIPS_MOST)


def too_large(limit: int) -> ProblemError:
    """The error for a clip that is larger than `limit` bytes."""
    text = f"The upload passes {limit} bytes: shorten or scale the clip."
    return ProblemError(ErrorCode.AVATAR_TOO_LARGE, text, limit=limit)


def _settings(now: ShownSettings, changes: dict[str, Any]) -> ShownSettings:
    """Raises ProblemError `invalid_request`, which names the setting."""
    fields = {**now.model_dump(), **changes}
    for name in [name for name, value in changes.items() if value is None]:
        del fields[name]  # back to its default
    try:
        return ShownSettings.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = "settings." + ".".join(str(part) for part in first["loc"])[:80]
        value = first.get("input")
        message = str(first["msg"]).removeprefix("Value error, ")
        raise ProblemError(
            ErrorCode.INVALID_REQUEST,
            f"{name}: {message}.",
            field=name,
            value=value[:80] if isinstance(value, str) else value if isinstance(value, int | float) else None,
        ) from None


def _name_of(filename: str | None) -> str:
    """By the name of a file, which may be percent-encoded, since a header holds no other letters than English ones."""
    stem = Path(unquote(filename or "")).stem.strip()
    return "".join(c for c in stem if c.isprintable())[:NAME_CHARACTERS] or _UNNAMED


def _storage(options: AvatarOptions) -> AvatarStorage:
    folder = AvatarFolder(options.folder)
    if options.bucket is None:
        return folder
    from orchestrator.avatars.avatar_bucket import AvatarBucket  # the extra [s3]

    return AvatarBucket(options.bucket, folder)
