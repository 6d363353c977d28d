"""Render jobs in the orchestrator: accepts them, synthesizes their texts, and reports the workers' progress.

The folder is the truth (`protocol.renders`), the queue says who works on what (`protocol.render_queue`). Any number of
orchestrators may share both: what one of them did not finish, another one finds.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
import wave
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.protocol.render_queue import RenderQueue, RenderTicket, default_target
from musetalk_agent.protocol.renders import (
    CAPTION_SUFFIXES,
    LOOK_SHARE,
    RenderEnd,
    RenderFailure,
    RenderFolder,
    RenderOrder,
    RenderPlan,
    RenderRequest,
    RenderState,
)
from orchestrator.disk import Disk
from orchestrator.events import EventBus
from orchestrator.metrics import Metrics
from orchestrator.supervision import supervise
from orchestrator.tts.speech_settings import SpeechSettings
from orchestrator.tts.voices import Voices

if TYPE_CHECKING:
    from musetalk_agent.protocol.modal_renders import ModalRenders  # the extra [modal]

OPEN_MOST = 1000
"""Renders that have not ended, of all callers."""
LOOK_S = 0.5
_ABANDONED_S = 120.0
"""An order whose ticket was not written so long after it came is another orchestrator's that died."""
_FETCH_EVERY_S = 2.0
"""Where the folder is a copy: a call to Modal each time."""
_QUEUED, _REPORTED = "queued", "reported"
_CUE_RATE = 16_000
_DELETE_EVERY_S = 3600.0
_DAY_S = 86_400.0
_log = logging.getLogger(__name__)
_disk = Disk("renders")


@dataclass(frozen=True)
class RenderOptions:
    """The folder; None: there are no renders here. `queue` is an address `redis://…` or `modal://APP`, or None for a file in the
    folder.

    Results are kept for `keep_days` after the end.
    """

    folder: Path | None = None
    queue: str | None = None
    keep_days: float = 7.0


class Renders:
    """Every render of the deployment.

    Args:
        options: where they are.
        voices: speak the texts.
        speech: the deployment's own choice of voice and pauses.
        bus: gets `render.finished` and `render.failed`, under the render's id.
        copy_clip: puts the bytes of a clip of the library (`sha256:…`) into a file; False where they are not there. Blocks.
    """

    def __init__(
        self,
        options: RenderOptions,
        voices: Voices,
        speech: SpeechSettings,
        bus: EventBus,
        metrics: Metrics,
        copy_clip: Callable[[str, Path], bool],
    ) -> None:
        self._copy_clip = copy_clip
        self._options, self._voices, self._speech, self._bus, self._metrics = options, voices, speech, bus, metrics
        self._queue: RenderQueue | ModalRenders | None = None
        self._loop: asyncio.Task[None] | None = None
        self._speaking: dict[str, asyncio.Task[None]] = {}
        self._voices_free = asyncio.Semaphore(1)  # texts of renders wait for each other, so that sessions find a voice
        self._open: dict[str, RenderOrder] = {}
        self._known: set[str] = set()
        self._delete_at = self._fetch_at = 0.0

    async def open(self) -> None:
        """Opens the queue, finds what there is, and looks on from then on. Raises OSError where the folder cannot be used."""
        folder = self._options.folder
        if folder is None:
            return
        await asyncio.to_thread(folder.mkdir, 0o700, True, True)
        self._queue = _queue(self._options.queue, folder)
        await asyncio.to_thread(self._queue.__enter__)
        await self._look(first=True)
        self._loop = asyncio.create_task(supervise("renders", self._look_on, self._metrics), name="renders")

    async def aclose(self) -> None:
        """Ends what runs here; the workers go on. A text that is being spoken is spoken anew at the next start. Idempotent."""
        tasks = [task for task in (self._loop, *self._speaking.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        queue, self._queue, self._loop = self._queue, None, None
        if queue is not None:
            await asyncio.to_thread(queue.__exit__, None, None, None)

    @property
    def folder(self) -> RenderFolder:
        """Raises ProblemError `renders_unavailable`."""
        if self._options.folder is None or self._queue is None:
            raise ProblemError(
                ErrorCode.RENDERS_UNAVAILABLE,
                "This deployment makes no renders: set RENDERS_DIR at the orchestrator and at the agent.",
            )
        return RenderFolder(self._options.folder, None if isinstance(self._queue, RenderQueue) else self._queue)

    def open_of(self, key: str) -> int:
        """Renders of this caller that have not ended, as far as this process knows."""
        return sum(order.key == key for order in self._open.values())

    async def order(self, order: RenderOrder) -> RenderOrder:
        """Takes an order; one with the id of another order of the same body is that one.

        Raises ProblemError `renders_unavailable`, `idempotency_conflict`, `at_capacity`, `disk_full`.
        """
        folder = self.folder
        if len(self._open) >= OPEN_MOST and await _disk(folder.order, order.render_id) is None:
            text = f"{OPEN_MOST} renders wait or run already: wait until some have ended."
            raise ProblemError(ErrorCode.AT_CAPACITY, text, limit=OPEN_MOST, retry_after_s=30)
        if not await _disk(folder.create, order):
            first = await _disk(folder.order, order.render_id)
            if first is None or first.body_sha256 != order.body_sha256:
                text = "This Idempotency-Key was used with another body: use a new key for a new request."
                raise ProblemError(ErrorCode.IDEMPOTENCY_CONFLICT, text, field="Idempotency-Key")
            return first
        self._known.add(order.render_id)
        self._open[order.render_id] = order
        self._take_up(order)
        return order

    async def view(self, order: RenderOrder) -> dict[str, Any]:
        """What `GET /renders/{id}` says."""
        return await _disk(_view, self.folder, order)

    async def find(self, render_id: str) -> RenderOrder | None:
        """An order; None for an unknown or malformed id."""
        try:
            return await _disk(self.folder.order, render_id)
        except ValueError:
            return None

    async def all(self) -> list[RenderOrder]:
        """Every order, the newest first."""
        folder = self.folder

        def read() -> list[RenderOrder]:
            orders = [order for render_id in folder.ids() if (order := folder.order(render_id)) is not None]
            return sorted(orders, key=lambda order: (-order.created_at, order.render_id))

        return await _disk(read)

    async def cancel(self, order: RenderOrder) -> None:
        """Ends a render that has not ended. Its worker notices within a second of film."""
        await _disk(self.folder.end, order.render_id, RenderEnd(state=RenderState.CANCELLED, at=time.time()))
        if (speaking := self._speaking.get(order.render_id)) is not None:
            speaking.cancel()

    def _take_up(self, order: RenderOrder) -> None:
        task = asyncio.create_task(self._queue_up(order), name=f"render-{order.render_id}")
        self._speaking[order.render_id] = task
        task.add_done_callback(lambda _: self._speaking.pop(order.render_id, None))

    async def _queue_up(self, order: RenderOrder) -> None:
        """Copies the avatar's clips for workers that lack them, speaks a text, and writes the first ticket."""
        folder, queue = self.folder, self._queue
        try:
            await asyncio.to_thread(self._bring_clips, order)
            if order.request.text is not None:
                async with self._voices_free:
                    await self._speak(order.request, folder.path(order.render_id))
            if queue is not None:
                await asyncio.to_thread(queue.put, RenderTicket(render_id=order.render_id))
                await asyncio.to_thread(folder.mark, order.render_id, _QUEUED)
        except ProblemError as error:
            await self._fail(order, error)
        except Exception as error:  # noqa: BLE001 - task boundary: a voice or a disk that breaks fails this render and no other
            _log.exception("a render could not be queued", extra={"render_id": order.render_id})
            await self._fail(order, ProblemError(ErrorCode.RENDER_FAILED, f"It could not be queued ({error})."))

    def _bring_clips(self, order: RenderOrder) -> None:
        target = self.folder.sources(order.render_id)
        for source in set(order.clips.values()):
            target.mkdir(mode=0o700, exist_ok=True)
            self._copy_clip(source, target / source.removeprefix("sha256:"))

    async def _fail(self, order: RenderOrder, error: ProblemError) -> None:
        failure = RenderFailure(code=error.code.value, detail=error.detail)
        end = RenderEnd(state=RenderState.FAILED, at=time.time(), error=failure)
        await asyncio.to_thread(self.folder.end, order.render_id, end)

    async def _speak(self, request: RenderRequest, folder: Path) -> None:
        """Writes `voice.wav`, `cues.json` with its phonemes in samples at 16 kHz, and `words.json` with its words in seconds.

        Raises what the voice raises.
        """
        await self._voices.wait_open()
        chosen = SpeechSettings(voice=request.voice).over(self._speech)
        text = request.text or ""
        choice = await self._voices.choose(text, chosen.voice)
        cues: list[tuple[str, int, int]] = []
        words: list[tuple[str, float, float]] = []
        made, file = folder / f".voice.{secrets.token_hex(4)}", None
        try:
            async with aclosing(self._voices.speak(text, choice.voice, chosen.options())) as chunks:
                async for chunk in chunks:
                    if file is None:
                        file = wave.open(str(made), "wb")
                        file.setnchannels(1)
                        file.setsampwidth(2)
                        file.setframerate(chunk.sample_rate)
                    await asyncio.to_thread(file.writeframesraw, chunk.pcm)
                    scale = _CUE_RATE / chunk.sample_rate
                    cues += [(cue.phoneme, round(cue.start * scale), round(cue.end * scale)) for cue in chunk.cues]
                    rate = chunk.sample_rate
                    words += [
                        (word.text, round(word.start / rate, 3), round(word.end / rate, 3)) for word in chunk.words
                    ]
            if file is None:
                raise ProblemError(ErrorCode.TTS_FAILED, "The voice said nothing.")
            await asyncio.to_thread(file.close)
            await asyncio.to_thread((folder / "cues.json").write_text, json.dumps(cues))
            await asyncio.to_thread((folder / "words.json").write_text, json.dumps(words))
            made.replace(folder / "voice.wav")
        except FileNotFoundError:
            return  # it was cancelled, and deleted
        finally:
            if file is not None:
                file.close()
            made.unlink(missing_ok=True)

    async def _look_on(self) -> None:
        while True:
            await self._look()
            await asyncio.sleep(LOOK_S)

    async def _look(self, *, first: bool = False) -> None:
        """Takes up what others left, reports what has ended, deletes what is old."""
        folder = self.folder
        await self._fetch(folder, first=first)
        ids = set(await asyncio.to_thread(folder.ids))
        for render_id in ids - self._known:
            order = await asyncio.to_thread(folder.order, render_id)
            if order is not None:
                self._open[render_id] = order
        self._known = ids | self._speaking.keys()
        for render_id, order in list(self._open.items()):
            end = await asyncio.to_thread(folder.ended, render_id)
            if end is not None:
                await self._report(order, end)
                del self._open[render_id]
            elif render_id not in ids and render_id not in self._speaking:
                del self._open[render_id]
            elif render_id not in self._speaking and (first or time.time() - order.created_at > _ABANDONED_S):
                if not await asyncio.to_thread(folder.marked, render_id, _QUEUED):
                    self._take_up(order)
        self._metrics.renders_open.set(len(self._open))
        if first or time.monotonic() >= self._delete_at:
            self._delete_at = time.monotonic() + _DELETE_EVERY_S
            await asyncio.to_thread(self._delete_old, ids - self._open.keys())

    async def _fetch(self, folder: RenderFolder, *, first: bool) -> None:
        """Sees what workers elsewhere wrote, where the folder is a copy. A film that is being sent holds that up."""
        now = time.monotonic()
        if now < self._fetch_at:
            return
        self._fetch_at = now + _FETCH_EVERY_S
        if not first:  # a copy that was just made is new
            await asyncio.to_thread(folder.fetch)

    async def _report(self, order: RenderOrder, end: RenderEnd) -> None:
        """Publishes how a render ended, once in the deployment."""
        if not await asyncio.to_thread(self.folder.mark, order.render_id, _REPORTED):
            return
        self._metrics.renders.labels(state=end.state.value).inc()
        if end.state is RenderState.CANCELLED:
            return
        view = await self.view(order)
        data = {name: view[name] for name in ("render_id", "state", "result", "error")}
        self._bus.publish(order.render_id, _EVENTS[end.state], data)

    def _delete_old(self, ended: set[str]) -> None:
        folder, old = self.folder, time.time() - self._options.keep_days * _DAY_S
        for render_id in ended:
            end = folder.ended(render_id)
            if end is not None and end.at < old:
                folder.delete(render_id)


def _queue(target: str | None, folder: Path) -> RenderQueue | ModalRenders:
    if target is None or not target.startswith("modal://"):
        return RenderQueue(target or default_target(folder))
    from musetalk_agent.protocol.modal_renders import ModalRenders

    return ModalRenders(target)


_EVENTS = {RenderState.DONE: "render.finished", RenderState.FAILED: "render.failed"}


def _view(folder: RenderFolder, order: RenderOrder) -> dict[str, Any]:
    """Blocks: it reads the render's files."""
    render_id = order.render_id
    end, plan = folder.ended(render_id), folder.plan(render_id)
    parts = set() if end is not None or plan is None else folder.parts(render_id)
    frames_done = 0 if plan is None else sum(len(plan.part(part)) for part in parts)
    if end is None and not parts:  # it may have ended between the two looks, and its parts be deleted
        end = folder.ended(render_id)
    if end is not None:
        state = end.state
        if plan is not None and state is RenderState.DONE:
            frames_done = plan.frames
    else:
        state = RenderState.RUNNING if plan is not None or folder.begun(render_id) else RenderState.QUEUED
    eta_s = None
    if plan is not None and state is RenderState.RUNNING and frames_done:
        eta_s = round((plan.frames - frames_done) * (time.time() - plan.begun_at) / frames_done, 1)
    return {
        "render_id": render_id,
        "state": state.value,
        "progress": round(_progress(folder, render_id, plan, frames_done), 4),
        "frames_done": frames_done,
        "frames": None if plan is None else plan.frames,
        "eta_s": eta_s,
        "created_at": datetime.fromtimestamp(order.created_at, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z"),
        "engine": None if plan is None else plan.engine,
        "dub": None if plan is None else plan.found,
        "result": None
        if end is None or state is not RenderState.DONE
        else {
            "url": f"/renders/{render_id}/result.{order.request.format.suffix}",
            "bytes": end.bytes,
            "seconds": end.seconds,
            "judge": end.judge,
            "captions": _captions(render_id, end),
            "warnings": [warning.model_dump() for warning in end.warnings],
        },
        "error": None if end is None or end.error is None else end.error.model_dump(),
    }


def _captions(render_id: str, end: RenderEnd) -> dict[str, Any] | None:
    if not end.captions:
        return None
    return {suffix: f"/renders/{render_id}/result.{suffix}" for suffix in CAPTION_SUFFIXES} | {"timing": end.timing}


def _progress(folder: RenderFolder, render_id: str, plan: RenderPlan | None, frames_done: int) -> float:
    if plan is None:
        return LOOK_SHARE * folder.looked(render_id)
    return plan.looked + (1 - plan.looked) * frames_done / plan.frames
