"""What a worker does with a ticket: prepares a render and cuts it, or makes the parts of a span and, after the last one, the film.

Everything may be done again by another worker: what is finished is found and left as it is.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.compose.head_motion import seed_of
from musetalk_agent.errors import AgentError, AvatarNotFound
from musetalk_agent.factory import Factory
from musetalk_agent.judge.film_judge import Judge
from musetalk_agent.measure.lip_measures import VideoUnreadable
from musetalk_agent.media_types import FEATURE_RATE, frames_begun
from musetalk_agent.protocol.file_blocks import file_blocks
from musetalk_agent.protocol.http import DEMO_AVATAR_ID, AgentStartRequest, AvatarSource
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.protocol.render_queue import RenderTicket
from musetalk_agent.protocol.renders import (
    LOOK_SHARE,
    RenderEnd,
    RenderFailure,
    RenderFolder,
    RenderOrder,
    RenderPlan,
    RenderState,
)
from musetalk_agent.renders.dub.dub_job import DubJob
from musetalk_agent.renders.dub.footage_scan import FootageScan
from musetalk_agent.renders.fetching import SOUND, fetch_file
from musetalk_agent.renders.film_actions import film_actions, mark_times, open_clips, plan_actions
from musetalk_agent.renders.film_captions import (
    BurnedCaptions,
    FilmCaption,
    captions,
    font_for,
    write_captions,
)
from musetalk_agent.renders.film_parts import STUDIO_601, AlteredPart, FilmClock, PartWriter, join, part_writer
from musetalk_agent.renders.known_speech import film_cues, film_words, find_transcript, lips_meet, word_timing
from musetalk_agent.renders.part_making import RenderStopped, make_parts, runs, stretch_of
from musetalk_agent.renders.sounds import FeatureSound, Sound, lengthen, write_sound
from musetalk_agent.renders.talking_frames import FramesFailed, Talker
from musetalk_agent.tools.audio_file import AudioUnreadable

log = logging.getLogger(__name__)

TRIES_MOST = 6
"""A ticket on which so many workers have died is given up: the render would kill the next one too."""
LONGEST_S = 3600.0
_NO_WORDS = (
    "The words could not be found in the sound, so that there are no captions: give a transcript in Latin letters, of at most "
    "4,000 letters and ten minutes, that says what is heard."
)
_UNCAPTIONED = RenderFailure(code=ErrorCode.CAPTIONS_UNAVAILABLE.value, detail=_NO_WORDS)


@dataclass(frozen=True)
class RenderJobs:
    """Does tickets, with the engines and avatars of a factory.

    Args:
        factory: started.
        folder: where the renders are.
        put: adds tickets to the queue.
        turn: returns when the machine's live sessions leave room for work.
        limits: of fetching a sound.
    """

    factory: Factory
    folder: RenderFolder
    put: Callable[[list[RenderTicket]], Awaitable[None]]
    turn: Callable[[], Awaitable[None]]
    limits: AvatarLimits = field(default_factory=AvatarLimits)

    async def do(self, ticket: RenderTicket) -> None:
        """Does a ticket; a render that cannot be made fails. Cancelling leaves what is finished.

        Raises OSError where the folder cannot be read or written.
        """
        order = await asyncio.to_thread(self.folder.order, ticket.render_id)
        if order is None or await asyncio.to_thread(self.folder.ended, ticket.render_id) is not None:
            return
        if await asyncio.to_thread(self.folder.tried, ticket.render_id, ticket.span) > TRIES_MOST:
            text = f"{TRIES_MOST} workers ended while they made it; it is not tried again."
            await self._fail(order, ErrorCode.RENDER_FAILED, text)
            return
        try:
            await self.turn()
            if ticket.span is None:
                await self._begin(order)
            else:
                await self._span(order, ticket.span)
        except RenderStopped:
            return
        except ProblemError as error:
            await self._fail(order, error.code, error.detail)
        except AudioUnreadable as error:
            await self._fail(
                order, ErrorCode.AUDIO_UNREADABLE, str(error).replace(str(self._path(order)), "").strip("/ ")
            )
        except FramesFailed as error:
            await self._fail(order, ErrorCode.RENDER_FAILED, str(error))

    def _path(self, order: RenderOrder) -> Path:
        return self.folder.path(order.render_id)

    async def _fail(self, order: RenderOrder, code: ErrorCode, detail: str) -> None:
        end = RenderEnd(state=RenderState.FAILED, at=time.time(), error=RenderFailure(code=code.value, detail=detail))
        if await asyncio.to_thread(self.folder.end, order.render_id, end):
            log.warning("a render failed", extra={"render_id": order.render_id, "code": code.value, "reason": detail})

    async def _begin(self, order: RenderOrder) -> None:
        plan = await asyncio.to_thread(self.folder.plan, order.render_id)
        if plan is None:
            plan = await self._plan(order)
            await asyncio.to_thread(self._know_speech, order)
            if order.marks:
                plan = await self._with_actions(order, plan)
            await asyncio.to_thread(self.folder.write_plan, order.render_id, plan)
        await self.put([RenderTicket(render_id=order.render_id, span=span) for span in range(plan.spans)])

    async def _plan(self, order: RenderOrder) -> RenderPlan:
        begun_at = time.time()
        sound = await self._sound(order)
        if order.request.video_url is not None:
            look, starts, found = await self._dub(order).prepare(sound)
            return RenderPlan(
                avatar_id="",
                engine=self.factory.engines.resolve(order.request.engine),
                width=look.size[0],
                height=look.size[1],
                fps=look.rate,
                frames=look.frames,
                begun_at=time.time(),
                looked=LOOK_SHARE,
                starts=starts,
                found=found,
            )
        await self._bring_clips(order)
        opened = await self.factory.opened(_session_request(order))
        opened.engine_session.close()
        request, bundle = order.request, opened.bundle
        return RenderPlan(
            avatar_id=bundle.report.avatar_id or DEMO_AVATAR_ID,
            engine=opened.engine,
            width=bundle.width,
            height=bundle.height,
            fps=request.fps,
            frames=frames_begun(-(-sound.samples * FEATURE_RATE // sound.rate), request.fps),
            begun_at=begun_at,
        )

    async def _bring_clips(self, order: RenderOrder) -> None:
        """Gives this worker's cache the clips of the render's avatar that it lacks. Raises AvatarErrors; DiskFull."""
        library = self.factory.library
        for path in await asyncio.to_thread(lambda: sorted(self.folder.sources(order.render_id).glob("[0-9a-f]*"))):
            try:
                await library.source(f"sha256:{path.name}")
            except AvatarNotFound:
                await library.add(file_blocks(path))

    async def _with_actions(self, order: RenderOrder, plan: RenderPlan) -> RenderPlan:
        """The plan with the clips of the text's marks. The film goes on, silent, until the last one is over."""
        sound = await asyncio.to_thread(Sound.open, self._path(order) / "sound.wav")
        words = await asyncio.to_thread(film_words, self._path(order))
        text = order.request.text or order.request.transcript or ""
        opened = await self.factory.opened(_session_request(order, plan))
        try:
            if not opened.batcher.engine.needs_face:
                return plan
            times = mark_times(order.marks, text, words, sound.seconds)
            actions, end = await plan_actions(self.factory, opened, order, times)
        finally:
            opened.engine_session.close()
        if end > plan.frames:
            await asyncio.to_thread(lengthen, sound.path, -(-end * sound.rate // plan.fps))
        return plan.model_copy(update={"actions": actions, "frames": max(plan.frames, end)})

    async def _sound(self, order: RenderOrder) -> Sound:
        """The render's sound, made now unless it is there."""
        path = self._path(order) / "sound.wav"
        if path.exists():
            return await asyncio.to_thread(Sound.open, path)
        if order.request.audio_url is None:
            return await asyncio.to_thread(write_sound, self._path(order) / "voice.wav", path, LONGEST_S)
        fetched = self._path(order) / f".sound.{secrets.token_hex(4)}"
        try:
            allow_private = self.factory.settings.allow_private_urls
            await fetch_file(order.request.audio_url, fetched, self.limits, SOUND, allow_private=allow_private)
            return await asyncio.to_thread(write_sound, fetched, path, LONGEST_S)
        except AudioUnreadable as error:
            text = str(error).replace(str(fetched), "The file at audio_url")
            raise ProblemError(ErrorCode.AUDIO_UNREADABLE, text, field="audio_url") from error
        finally:
            fetched.unlink(missing_ok=True)

    def _dub(self, order: RenderOrder, burned: BurnedCaptions | None = None) -> DubJob:
        looked = partial(self.folder.write_looked, order.render_id)
        return DubJob(self.factory, order.request, self._path(order), looked, partial(self._may_go_on, order), burned)

    async def _span(self, order: RenderOrder, span: int) -> None:
        plan = await asyncio.to_thread(self.folder.plan, order.render_id)
        if plan is None:
            return  # another version's, or damaged: the ticket of its beginning makes it anew
        done = await asyncio.to_thread(self.folder.parts, order.render_id)
        missing = [part for part in plan.span(span) if part not in done]
        if missing and order.request.video_url is not None:
            cues = await asyncio.to_thread(film_cues, self._path(order))
            burned = await asyncio.to_thread(self._burned, order, plan)
            await self._dub(order, burned).make(plan, plan.span(span), missing, cues)
        elif missing:
            await self._make(order, plan, missing)
        await asyncio.to_thread(self.folder.publish)
        if not await asyncio.to_thread(self.folder.fetch):
            raise OSError("what other workers made cannot be seen at the moment")
        if len(await asyncio.to_thread(self.folder.parts, order.render_id)) == plan.parts:
            await self._finish(order, plan)

    async def _make(self, order: RenderOrder, plan: RenderPlan, parts: list[int]) -> None:
        """Makes these parts, in order, those that follow each other in one go."""
        await self._bring_clips(order)
        opened = await self.factory.opened(_session_request(order, plan))
        try:
            async with open_clips(self.factory, opened, order, [action.name for action in plan.actions]) as clips:
                talker = Talker(
                    opened.batcher,
                    opened.engine_session,
                    opened.bundle,
                    order.request.avatar_settings.av_offset_ms,
                    seed_of(order.render_id),
                    film_actions(plan.actions, clips),
                )
                await talker.close_idle_mouths()
                for run in runs(parts):
                    await self._make_run(order, plan, talker, run)
        finally:
            opened.engine_session.close()

    async def _make_run(self, order: RenderOrder, plan: RenderPlan, talker: Talker, run: range) -> None:
        sound = await asyncio.to_thread(Sound.open, self._path(order) / "sound.wav")
        reader = FeatureSound(sound)
        frames = talker.frames(
            stretch_of(plan, run), reader.read, await asyncio.to_thread(film_cues, self._path(order))
        )
        made, burned = order.request.format, await asyncio.to_thread(self._burned, order, plan)

        def writer(path: Path, first: int) -> PartWriter:
            part = part_writer(path, made, plan.fps, first, alpha=order.request.transparent)
            return part if burned is None else AlteredPart(part, burned.on, first)

        try:
            await make_parts(
                self._path(order) / "parts", plan, run, frames, writer, made.suffix, partial(self._may_go_on, order)
            )
        finally:
            reader.close()

    async def _may_go_on(self, order: RenderOrder) -> None:
        if await asyncio.to_thread(self.folder.ends, order.render_id):
            raise RenderStopped
        await self.turn()

    async def _finish(self, order: RenderOrder, plan: RenderPlan) -> None:
        """Joins the parts and ends the render, once: of several workers that come here, one does."""
        made = self._path(order) / f".result.{secrets.token_hex(4)}"
        result = self.folder.result(order.render_id, order.request.format)
        try:
            end = await asyncio.to_thread(self._joined, order, plan, made)
            made.replace(result)
        except FileNotFoundError:  # it has ended, and its parts are deleted
            return
        finally:
            made.unlink(missing_ok=True)
        if await asyncio.to_thread(self.folder.end, order.render_id, end):
            log.info("a render is done", extra={"render_id": order.render_id, "frames": plan.frames})
            return
        ended = await asyncio.to_thread(self.folder.ended, order.render_id)
        if ended is None or ended.state is not RenderState.DONE:
            result.unlink(missing_ok=True)

    def _joined(self, order: RenderOrder, plan: RenderPlan, made: Path) -> RenderEnd:
        folder, suffix = self._path(order) / "parts", order.request.format.suffix
        sound, clock = Sound.open(self._path(order) / "sound.wav"), FilmClock.steady(plan.fps, plan.frames)
        if order.request.video_url is not None:
            own = self._dub(order).own
            sound, clock = Sound.open(own / "film.wav"), FootageScan.load(own).clock
        join([folder / f"{part:06d}.{suffix}" for part in range(plan.parts)], sound, order.request.format, clock, made)
        shown = self._captions(order, float(clock.seconds))
        return RenderEnd(
            state=RenderState.DONE,
            at=time.time(),
            captions=bool(shown),
            timing=word_timing(self._path(order)).value if shown else None,
            bytes=made.stat().st_size,
            seconds=round(float(clock.seconds), 3),
            judge=self._judged(order, made) if order.request.judge else None,
            warnings=[] if shown or order.request.transcript is None else [_UNCAPTIONED],
        )

    def _know_speech(self, order: RenderOrder) -> None:
        """Finds a transcript's words in the sound: for the mouth, the captions and the judge. A film is no worse without them.

        Raises ProblemError where the picture shall show words that are not known, or cannot be drawn.
        """
        folder, request = self._path(order), order.request
        if request.transcript is not None:
            try:
                find_transcript(folder, request.transcript, folder / "sound.wav")
            except (AgentError, AudioUnreadable) as error:
                text = "a transcript was not looked for"
                log.warning(text, extra={"render_id": order.render_id, "reason": str(error)})
        if not request.burn_captions:
            return
        words = film_words(folder)
        if not words:
            raise ProblemError(
                ErrorCode.CAPTIONS_UNAVAILABLE, f"{_NO_WORDS} Or leave burn_captions out.", field="transcript"
            )
        font_for({letter for word in words for letter in word.text}, self.factory.settings.caption_font)

    def _burned(self, order: RenderOrder, plan: RenderPlan) -> BurnedCaptions | None:
        """What draws the captions; None where none are wished."""
        if not order.request.burn_captions:
            return None
        folder, clock, colours = self._path(order), FilmClock.steady(plan.fps, plan.frames), STUDIO_601
        if order.request.video_url is not None:
            look = FootageScan.load(self._dub(order).own)
            clock, colours = look.clock, look.colours
        shown = captions(film_words(folder), float(clock.seconds))
        font = self.factory.settings.caption_font
        return BurnedCaptions(shown, lambda frame: float(clock.ticks[frame] * clock.base), colours, font)

    def _captions(self, order: RenderOrder, film_s: float) -> list[FilmCaption]:
        """Writes the film's captions; none where its words are not known."""
        folder = self._path(order)
        shown = captions(film_words(folder), film_s)
        if shown:
            write_captions(shown, folder)
        return shown

    def _judged(self, order: RenderOrder, film: Path) -> dict[str, Any]:
        """The judge's report on a film, a dub's against its footage; where there is none, why: the film is no worse for it."""
        text = order.request.transcript or order.request.text
        footage = None if order.request.video_url is None else self._dub(order).own / "footage"
        try:
            report = Judge.load(self.factory.models).judge(
                film, text=text, lips_meet=lips_meet(self._path(order)), reference=footage
            )
        except AgentError as error:
            return {"passed": None, "error": {"code": error.code.value, "detail": error.detail}}
        except VideoUnreadable as error:
            detail = str(error).replace(str(film), "The film")
            return {"passed": None, "error": {"code": ErrorCode.RENDER_FAILED.value, "detail": detail}}
        return report.as_dict() | {"film": self.folder.result(order.render_id, order.request.format).name}


def _session_request(order: RenderOrder, plan: RenderPlan | None = None) -> AgentStartRequest:
    request = order.request
    return AgentStartRequest(
        session_id=order.render_id,
        room=order.render_id,
        livekit_url="",
        livekit_token="",
        avatar=request.source if plan is None else AvatarSource(avatar_id=plan.avatar_id),
        picture=request.picture,
        avatar_settings=request.avatar_settings,
        engine=request.engine if plan is None else plan.engine,
        connect_livekit=False,
    )
