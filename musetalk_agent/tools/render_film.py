"""`musetalk-agent render`: a talking film from a clip and a recording, by the pipeline that serves rooms, as fast as it goes.

Two things differ from a session: time is virtual, so that it stands still while frames are made, and the publisher writes a file.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from tqdm import tqdm

from musetalk_agent.agent_settings import AgentSettings, offline_settings
from musetalk_agent.clock import VirtualClock
from musetalk_agent.engine_pool import ENGINES
from musetalk_agent.errors import AgentError
from musetalk_agent.factory import Factory
from musetalk_agent.media_types import FEATURE_RATE, frames_begun
from musetalk_agent.protocol.http import DEMO_AVATAR_ID, AgentStartRequest, AvatarSource, AvatarWarning, Picture
from musetalk_agent.protocol.messages import PlaybackFinished, SegmentEnd, SegmentStart
from musetalk_agent.publishers.file import FilePublisher, Film, FilmAudio
from musetalk_agent.session.session import ENDED, Session
from musetalk_agent.tools.audio_file import AudioFile, AudioUnreadable
from musetalk_agent.tools.prepare import prepare_clip

_AHEAD_S = 1.0
"""Audio in hand ahead of the voice: past what any engine looks ahead, little to hold in memory."""
_STEP_S = 0.1
_WITHOUT_FACE = "pattern"
_A_LONG_TIME_S = 10**8
"""The session's longest duration: real seconds, of which an offline film may need many."""


class RenderFailed(Exception):
    """The film could not be made as it should be; the message says why."""


@dataclass(frozen=True)
class Rendered:
    """What was made: engine, frame size, real seconds from the ready avatar on, what is to be said of the clip, and why the
    engine is not MuseTalk."""

    engine: str
    width: int
    height: int
    seconds: float
    warnings: list[AvatarWarning]
    note: str | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--avatar", metavar="CLIP", help=f"zip, video or picture, an avatar_id or {DEMO_AVATAR_ID!r}")
    parser.add_argument("--audio", type=Path, metavar="SOUND", help="what it says: wav, mp3, flac …")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="OUT.mp4", help="the film to make: .mp4, .webm, or .zip of frames"
    )
    parser.add_argument("--engine", choices=ENGINES, default=None, help="default: AGENT_ENGINE, else auto")
    parser.add_argument("--fps", type=int, default=25, help="frames per second, 15 … 60 (default: 25)")
    parser.add_argument("--width", type=int, default=None, help="width of the picture (default: the clip's)")
    parser.add_argument("--height", type=int, default=None, help="height of the picture (default: the clip's)")
    parser.add_argument(
        "--background",
        default=None,
        help="what is behind the person: keep, blur, #rrggbb, image:URL, or transparent (OUT.webm, or OUT.zip of PNG)",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command: 0 made, 1 refused (a sentence on stderr), 2 wrong usage, 130 interrupted. No part of a film is left."""
    if not (args.avatar and args.audio and args.output):
        print("render: give --avatar, --audio and -o.", file=sys.stderr)
        return 2
    try:
        picture = Picture(fps=args.fps, width=args.width, height=args.height)
        settings = offline_settings()
    except ValidationError as error:
        for problem in error.errors():
            print(f"render: {problem['loc'][0]} {problem['input']}: {problem['msg']}", file=sys.stderr)
        return 2
    if args.engine:
        settings = settings.model_copy(update={"engine": args.engine})
    if (wrong := _wrong_target(args)) is not None:
        print(f"render: {wrong}", file=sys.stderr)
        return 2
    try:
        audio = AudioFile.open(args.audio)
        frames = frames_begun(-(-audio.samples * FEATURE_RATE // audio.rate), picture.fps)
        track = FilmAudio(audio.blocks(), audio.rate, audio.channels)
        with Film(args.output, picture.fps, frames, track) as film:
            made = asyncio.run(render(settings, args.avatar, picture, audio, film))
            film.finish()
    except AgentError as error:
        print(f"{error.code.value}: {error.detail}", file=sys.stderr)
        return 1
    except (AudioUnreadable, RenderFailed) as error:
        print(f"render: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        own = error.filename is None or str(error.filename).endswith(".part")
        where = args.output if own else error.filename  # else the avatars' cache, for one
        print(f"render: {where} cannot be written: {error.strerror}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("render: interrupted; nothing was written.", file=sys.stderr)
        return 130
    if made.note:
        print(f"! {made.note}", file=sys.stderr)
    for warning in made.warnings:
        print(f"! {warning.code}: {warning.message}", file=sys.stderr)
    print(
        f"{args.output}: {frames} frames of {made.width}×{made.height} at {picture.fps} fps, {audio.seconds:.2f} s of sound at "
        f"{audio.rate} Hz; engine {made.engine}, made in {made.seconds:.1f} s ({audio.seconds / made.seconds:.1f} × real time)"
    )
    return 0


async def render(settings: AgentSettings, clip: str, picture: Picture, audio: AudioFile, film: Film) -> Rendered:
    """Plays `audio` through a session with the avatar `clip` into `film`, with a progress bar; the film is not finished yet.

    Cancelling is safe.

    Raises:
        AgentError: the avatar or the engine cannot be used.
        AudioUnreadable: the audio is damaged further on.
        RenderFailed: the session broke, or frames could not be made.
    """
    clock = VirtualClock()
    factory = Factory(settings, clock, publisher=lambda request, fps: FilePublisher(film, clock))
    try:
        await factory.start()
        engine = factory.engines.resolve(None)
        avatar_id, warnings = DEMO_AVATAR_ID, []
        if engine != _WITHOUT_FACE:
            report = await prepare_clip(factory.library, clip, picture)
            avatar_id, warnings = report.avatar_id, report.warnings
        session = await factory.session(_request(avatar_id, picture))
        await session.start()
        try:
            with tqdm(total=film.frames, unit=" frames", desc="render", file=sys.stderr, leave=False) as bar:
                begun = time.perf_counter()
                await _play(session, clock, audio, lambda: bar.update(film.written - bar.n))
                took = time.perf_counter() - begun
        finally:
            await session.stop()
    finally:
        await factory.aclose()
    return Rendered(engine, session.bundle.width, session.bundle.height, took, warnings, factory.engines.note(None))


def _request(avatar_id: str, picture: Picture) -> AgentStartRequest:
    return AgentStartRequest(
        session_id="render",
        room="render",
        livekit_url="",
        livekit_token="",
        avatar=AvatarSource(avatar_id=avatar_id),
        picture=picture,
        connect_livekit=False,
        max_duration_s=_A_LONG_TIME_S,
    )


async def _play(session: Session, clock: VirtualClock, audio: AudioFile, progress: Callable[[], object]) -> None:
    """Sends the audio as one segment, a little ahead of the voice, until all of it was heard."""
    blocks = audio.blocks(channels=1)
    session.receiver.take(SegmentStart(segment=1, sample_rate=audio.rate).model_dump_json())
    ended = False
    while not any(isinstance(entry.event, PlaybackFinished) for entry in session.events.after(0)):
        while not ended and session.pipeline.player.buffered_s < _AHEAD_S:
            block = next(blocks, None)
            ended = block is None
            session.receiver.take(
                SegmentEnd(segment=1).model_dump_json() if block is None else np.asarray(block, "<i2").tobytes()
            )
        await clock.run(clock.now() + _STEP_S)
        progress()
        if session.state in ENDED:
            raise RenderFailed((session.error or {}).get("message", "the session ended by itself"))
    failed = session.pipeline.stats.stages["patches"].last_error
    if failed is not None:
        raise RenderFailed(f"the engine failed on some frames ({failed}); nothing was written.")


def _wrong_target(args: argparse.Namespace) -> str | None:
    """Why the film cannot be called so; None when it can."""
    output: Path = args.output
    if output.suffix.lower() != ".mp4":
        return f"{output} does not end in .mp4, the one kind of film that is made."
    if output.is_dir():
        return f"{output} is a folder."
    for source in (Path(args.avatar), args.audio):
        if output.exists() and source.exists() and output.samefile(source):
            return f"{output} would be written over its own source."
    return None
