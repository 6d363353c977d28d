"""What a worker does for a dub: fetches and looks at the footage and decides who speaks; then makes the frames of its stretches.

renders/<render_id>/dub/
    footage         the video
    film.wav        the film's sound
    look.npz, meshes.f32
                    what the footage shows (`look`)
    seen/           what is done of the first look (`scanning`)
    speaks.npy      whose mouths are changed, a bool for each row of the look
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
import threading
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.avatars.face import FaceNet
from musetalk_agent.avatars.identity import describer
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.errors import AvatarError
from musetalk_agent.factory import Factory
from musetalk_agent.features.extractor import FeatureExtractor
from musetalk_agent.features.mouth_network import STEP
from musetalk_agent.features.visemes import VisemeFeatures
from musetalk_agent.judge.lips import Heard
from musetalk_agent.media_types import FEATURE_RATE, Cue, Pcm
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.protocol.renders import RenderPlan, RenderRequest
from musetalk_agent.renders.dub import background, speakers
from musetalk_agent.renders.dub.dub_frames import Actor, Decided, dub_frames, heard_stretch
from musetalk_agent.renders.dub.footage import Footage, FootageFrame, footage_limits
from musetalk_agent.renders.dub.footage_scan import LOOK_FILE, MESHES_FILE, FootageScan
from musetalk_agent.renders.dub.scanning import look_at
from musetalk_agent.renders.dub.takes import Take, takes_of, write_clips
from musetalk_agent.renders.fetching import STEM, VIDEO, Source, fetch_file
from musetalk_agent.renders.film_captions import BurnedCaptions
from musetalk_agent.renders.film_parts import AlteredPart, PartWriter, part_writer
from musetalk_agent.renders.part_making import LOOK_FRAMES, RenderStopped, make_parts, runs, stretch_of
from musetalk_agent.renders.sounds import FeatureSound, Sound
from musetalk_agent.renders.talking_frames import Talker, decide, first_heard
from musetalk_agent.tools.audio_file import AudioFile, AudioUnreadable

log = logging.getLogger(__name__)

TICKET_S = 24
"""Footage of one ticket at most: shots are kept together as far as that goes."""
_SPEECH_BESIDE_S = 0.5
"""A shot that the new voice comes so near to is spoken in."""
_LISTED = 50
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class DubJob:
    """One dub.

    Args:
        factory: started.
        request: with a `video_url`.
        folder: the render's.
        looked: called with how much of the footage was looked at, 0 … 1, in a thread.
        may_go_on: raises RenderStopped once the render has ended; returns when live sessions leave room.
        burned: draws captions on all frames; None for none.
    """

    factory: Factory
    request: RenderRequest
    folder: Path
    looked: Callable[[float], None]
    may_go_on: Callable[[], Awaitable[None]]
    burned: BurnedCaptions | None = None

    @property
    def own(self) -> Path:
        """The folder of what is a dub's alone."""
        return self.folder / "dub"

    @property
    def limits(self) -> AvatarLimits:
        """Of the footage."""
        settings = self.factory.settings
        return footage_limits(settings.dub_seconds, settings.dub_bytes)

    @property
    def footage(self) -> Footage:
        """The video."""
        return Footage(self.own / "footage", self.limits)

    async def prepare(self, sound: Sound) -> tuple[FootageScan, list[int], dict[str, Any]]:
        """Fetches, looks, decides, and writes the film's sound. Returns what is seen, the tickets' first frames, what was found.

        Raises ProblemError; RenderStopped; AudioUnreadable; OSError. Cancelling leaves what is whole.
        """
        await asyncio.to_thread(self.own.mkdir, 0o700, True, True)
        if not (self.own / "footage").exists():
            await self._fetch(self.request.video_url or "", "footage", VIDEO)
        look = await self._looked()
        heard = await asyncio.to_thread(self._heard, look)
        said = await asyncio.to_thread(self._said, sound)
        people = describer(self.factory.models)
        speaker = "auto" if self.request.speaker is None else self.request.speaker
        chosen = await asyncio.to_thread(speakers.choose, look, speaker, heard, people)
        speaks = chosen.speaks & _in_spoken_shots(look, said)
        await self._write_sound(look, sound, heard, said)
        await asyncio.to_thread(_save, self.own / "speaks.npy", speaks)
        return look, ticket_starts(look), _found(look, chosen, speaks)

    async def _looked(self) -> FootageScan:
        try:
            return await asyncio.to_thread(FootageScan.load, self.own)
        except FileNotFoundError:
            pass
        loop, gone = asyncio.get_running_loop(), threading.Event()
        expected = await asyncio.to_thread(self.footage.expected)

        def progress(done: int) -> None:
            if gone.is_set():
                raise RenderStopped
            if done % LOOK_FRAMES == 0:
                self.looked(done / max(done, expected))
                asyncio.run_coroutine_threadsafe(_awaited(self.may_go_on()), loop).result()

        def work() -> FootageScan:
            with _scratch(self.own) as made:
                net, people = FaceNet(self.factory.models), describer(self.factory.models)
                look = look_at(self.footage, self.own / "seen", made, net, people, progress)
                for name in (MESHES_FILE, LOOK_FILE):
                    (made / name).replace(self.own / name)
                shutil.rmtree(self.own / "seen", ignore_errors=True)
                return look

        try:
            return await asyncio.to_thread(work)
        except FileNotFoundError:  # it has ended, and its files are deleted
            if not self.own.exists():
                raise RenderStopped from None
            raise
        finally:
            gone.set()

    def _heard(self, look: FootageScan) -> Heard | None:
        """What the footage's own sound asks of mouths, on the film's time line; None where it has none."""
        try:
            return _hear(self.own / "footage", -float(look.start))
        except AudioUnreadable:
            return None

    def _said(self, sound: Sound) -> Flags:
        """Whether the new voice speaks, by the engine's own detector: bool `[n]`, 20 ms each."""
        engines = self.factory.engines
        detector = engines.batcher(engines.resolve(self.request.engine)).engine.features.detector()
        return np.array([said for piece in _mono(AudioFile.open(sound.path)) for said in detector.push(piece)], bool)

    async def _write_sound(self, look: FootageScan, sound: Sound, heard: Heard | None, said: Flags) -> None:
        kept, under = self.request.keep_background_audio, None
        if isinstance(kept, str):
            if not (self.own / "stem").exists():
                await self._fetch(kept, "stem", STEM)
            file = await asyncio.to_thread(_opened, self.own / "stem")
            under = background.Background(file, 0.0, background.full)
        elif kept and heard is not None:
            file = await asyncio.to_thread(AudioFile.open, self.own / "footage")
            step_s = STEP / FEATURE_RATE
            levels = background.ducked(_either(look, heard, said), step_s)
            under = background.Background(file, file.start_s - float(look.start), levels)
        await asyncio.to_thread(background.write_film_sound, sound, look.clock.seconds, under, self.own / "film.wav")

    async def _fetch(self, url: str, name: str, source: Source) -> None:
        made = self.own / f".{name}"
        try:
            await fetch_file(url, made, self.limits, source, allow_private=self.factory.settings.allow_private_urls)
            made.replace(self.own / name)
        finally:
            made.unlink(missing_ok=True)

    async def make(self, plan: RenderPlan, span: range, parts: list[int], cues: list[Cue]) -> None:
        """Makes the missing `parts` of a ticket that has the parts `span`.

        Raises FramesFailed; ProblemError; RenderStopped; AgentError of the engine; OSError. Cancelling leaves what is finished.
        """
        look = await asyncio.to_thread(FootageScan.load, self.own)
        speaks = await asyncio.to_thread(np.load, self.own / "speaks.npy")
        whole = stretch_of(plan, span)
        takes = await asyncio.to_thread(takes_of, look, self.own, speaks, whole)
        with _scratch(self.own) as made:
            bundles = await self._clips(look, takes, whole.start, made)
            actors: list[Actor] = []
            try:
                for take, bundle in zip(takes, bundles, strict=True):
                    await self._cast(plan.engine, take, bundle, actors)
                decided = Decided(0, [])
                if actors:
                    features = actors[0].talker.batcher.engine.features
                    decided = await asyncio.to_thread(self._decided, features, look, heard_stretch(look, whole), cues)
                for run in runs(parts):
                    await self._make_run(plan, look, actors, run, decided)
            finally:
                for actor in actors:
                    actor.talker.session.close()

    async def _clips(self, look: FootageScan, takes: list[Take], start: int, folder: Path) -> list[Bundle]:
        gone = threading.Event()

        def frames() -> Iterator[FootageFrame]:
            with closing(self._frames(start, look)) as footage:
                for frame in footage:
                    if gone.is_set():
                        raise RenderStopped
                    yield frame

        try:
            if not takes:
                return []
            return await asyncio.to_thread(write_clips, takes, frames(), start, look.rate, folder)
        finally:
            gone.set()

    def _frames(self, start: int, look: FootageScan) -> Generator[FootageFrame]:
        yield from self.footage.frames(start, look.stamps)

    async def _cast(self, engine: str, take: Take, bundle: Bundle, actors: list[Actor]) -> None:
        """Opens a take at the engine; one whose face the engine cannot use stays as it is."""
        settings = self.request.avatar_settings
        try:
            opened = await self.factory.opened_bundle(engine, bundle, settings)
        except AvatarError as error:
            log.warning("a face is left as it is", extra={"frames": str(take.frames), "reason": error.detail})
            return
        talker = Talker(opened.batcher, opened.engine_session, bundle, settings.av_offset_ms)
        actors.append(Actor(take, bundle, talker))
        await talker.close_idle_mouths()

    async def _make_run(
        self, plan: RenderPlan, look: FootageScan, actors: list[Actor], run: range, decided: Decided
    ) -> None:
        made = self.request.format

        def writer(path: Path, first: int) -> PartWriter:
            part = part_writer(path, made, plan.fps, first, look.colours, look.aspect)
            return part if self.burned is None else AlteredPart(part, self.burned.on, first)

        source = dub_frames(self.footage, look, actors, stretch_of(plan, run), decided)
        await make_parts(self.folder / "parts", plan, run, source, writer, made.suffix, self.may_go_on)

    def _decided(self, features: FeatureExtractor, look: FootageScan, heard: range, cues: list[Cue]) -> Decided:
        with closing(FeatureSound(Sound.open(self.folder / "sound.wav"))) as reader:
            offset_ms = self.request.avatar_settings.av_offset_ms
            made = decide(features, look.rate, offset_ms, heard, reader.read, cues)
            return Decided(first_heard(heard.start, look.rate), made)


def ticket_starts(look: FootageScan) -> list[int]:
    """The frames at which tickets begin: whole shots as far as `TICKET_S` holds them, longer ones in equal pieces."""
    most = TICKET_S * look.rate
    bounds = [*look.cuts.tolist(), look.frames]
    starts = [0]
    for begin, end in pairwise(bounds):
        if end - starts[-1] <= most:
            continue
        if begin > starts[-1]:
            starts.append(begin)
        pieces = -(-(end - starts[-1]) // most)
        starts += [begin + (end - begin) * k // pieces for k in range(1, pieces)]
    return starts


def _mono(file: AudioFile) -> Iterator[Pcm]:
    return (block[:, 0] for block in file.blocks(FEATURE_RATE, 1))


def _hear(path: Path, later_s: float) -> Heard:
    """Raises AudioUnreadable."""
    file = AudioFile.open(path)
    return Heard.in_pieces(VisemeFeatures.load(), _mono(file), file.start_s + later_s)


def _opened(stem: Path) -> AudioFile:
    try:
        return AudioFile.open(stem)
    except AudioUnreadable as error:
        text = str(error).replace(str(stem), "The file at keep_background_audio")
        raise ProblemError(ErrorCode.AUDIO_UNREADABLE, text, field="keep_background_audio") from error


def _in_spoken_shots(look: FootageScan, said: Flags) -> Flags:
    """Rows in shots that the new voice is heard in: bool `[m]`."""
    step_s = STEP / FEATURE_RATE
    times = np.append(look.times, float(look.clock.seconds))
    bounds = np.append(look.cuts, look.frames)
    spoken = np.zeros(len(look.cuts), bool)
    for shot, (begin, end) in enumerate(pairwise(bounds.tolist())):
        first = max(0, int((times[begin] - _SPEECH_BESIDE_S) / step_s))
        spoken[shot] = said[first : int((times[end] + _SPEECH_BESIDE_S) / step_s) + 1].any()
    return np.asarray(spoken[look.shot_of(look.frame)], bool)


def _either(look: FootageScan, heard: Heard, said: Flags) -> Flags:
    """Whether the footage or the new voice speaks: bool `[n]`, 20 ms each of the film."""
    step_s = STEP / FEATURE_RATE
    found = np.zeros(int(float(look.clock.seconds) / step_s) + 1, bool)
    found[: len(said)] |= said[: len(found)]
    at = np.arange(len(heard.speech)) + round(heard.start_s / step_s)
    inside = (at >= 0) & (at < len(found))
    found[at[inside]] |= heard.speech[inside]
    return found


def _found(look: FootageScan, chosen: speakers.Chosen, speaks: Flags) -> dict[str, Any]:
    """What the footage shows, for people: shots, and each person with its time in seconds."""
    person = chosen.person[look.number]
    shown_s = np.diff(np.append(look.times, float(look.clock.seconds)))
    faces = []
    for index in range(min(_LISTED, int(person.max()) + 1)):
        rows = np.flatnonzero(person == index)
        faces.append(
            {
                "index": index,
                "from_s": round(float(look.times[look.frame[rows[0]]]), 3),
                "to_s": round(float(look.times[look.frame[rows[-1]]]), 3),
                "seen_s": round(float(shown_s[look.frame[rows]].sum()), 2),
                "speaks_s": round(float(shown_s[look.frame[rows[speaks[rows]]]].sum()), 2),
                "width_px": round(float(np.median(look.width[rows]))),
            }
        )
    return {"shots": len(look.cuts), "speaker": chosen.by, "faces": faces}


def _save(path: Path, speaks: Flags) -> None:
    made = path.with_name(f".{path.name}")
    with made.open("wb") as file:
        np.save(file, speaks, allow_pickle=False)
    made.replace(path)


async def _awaited(work: Awaitable[None]) -> None:
    await work


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder that goes afterwards."""
    made = Path(tempfile.mkdtemp(prefix=".made.", dir=folder))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
