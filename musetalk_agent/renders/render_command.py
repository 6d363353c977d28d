"""`musetalk-agent render`: one film from options, or a list of them."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from pydantic import ValidationError

from musetalk_agent.agent_settings import AgentSettings, offline_settings
from musetalk_agent.errors import AgentError
from musetalk_agent.protocol.avatar_settings import AvatarSettings
from musetalk_agent.protocol.renders import FPS, RenderFormat
from musetalk_agent.renders.job_list import FilmJob, JobsWrong, make_film, problem_of, run_jobs
from musetalk_agent.tools import render_film
from musetalk_agent.tools.audio_file import AudioUnreadable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "jobs", nargs="?", type=Path, metavar="JOBS.yaml", help="a list of films; it goes on where it was"
    )
    parser.add_argument(
        "--workers", type=int, default=None, help="processes for a list (default: one a core, at most 8)"
    )
    render_film.add_arguments(parser)
    parser.add_argument(
        "--dub", type=Path, metavar="VIDEO", help="footage whose people say the sound, instead of --avatar"
    )
    parser.add_argument(
        "--speaker",
        default=None,
        metavar="WHO",
        help="with --dub: auto (who speaks in it, the default), largest, all, or a person's number from 0, by appearance",
    )
    parser.add_argument(
        "--transcript",
        type=Path,
        metavar="TEXT",
        help="what the sound says: captions beside the film (.srt, .vtt), and lips that meet where they must",
    )
    parser.add_argument(
        "--clip",
        action="append",
        default=[],
        metavar="NAME=CLIP",
        help="with --transcript: another clip of the avatar's person, played where the text has [NAME]; may be given several times",
    )
    parser.add_argument("--burn-captions", action="store_true", help="with --transcript: they are in the picture, too")
    parser.add_argument(
        "--keep-background",
        nargs="?",
        const=True,
        default=False,
        metavar="STEM",
        help="with --dub: its own sound stays under the voice, lowered; or this file instead, its sound without voices",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command: 0 made, 1 refused or failed (a sentence on stderr), 2 wrong usage, 130 interrupted."""
    if (args.width is None) != (args.height is None):
        print("render: give --width and --height together, or neither for the clip's own size.", file=sys.stderr)
        return 2
    if args.jobs is None and args.dub is None and not _by_parts(args):
        return render_film.run(args)
    if args.dub is not None:
        if (wrong := _wrong_dub(args)) is not None:
            print(f"render: {wrong}", file=sys.stderr)
            return 2
    elif args.jobs is not None and (args.avatar or args.audio or args.output or args.background):
        print("render: give either a list or --avatar, --audio and -o.", file=sys.stderr)
        return 2
    elif args.jobs is None and (wrong := _wrong_film(args)) is not None:
        print(f"render: {wrong}", file=sys.stderr)
        return 2
    try:
        settings = offline_settings()
    except ValidationError as error:
        for problem in error.errors():
            print(f"render: {problem['loc'][0]} {problem['input']}: {problem['msg']}", file=sys.stderr)
        return 2
    if args.engine:
        settings = settings.model_copy(update={"engine": args.engine})
    workers = max(1, args.workers or min(8, os.cpu_count() or 1))
    try:
        if args.jobs is not None:
            return run_jobs(args.jobs, settings, workers)
        return _film(args, settings, workers) if args.dub is None else _dub(args, settings, workers)
    except AgentError as error:
        print(f"{error.code.value}: {error.detail}", file=sys.stderr)
    except (JobsWrong, AudioUnreadable) as error:
        print(f"render: {error}", file=sys.stderr)
    except OSError as error:
        print(f"render: {error.filename or args.jobs or args.output}: {error.strerror}.", file=sys.stderr)
    except KeyboardInterrupt:
        print("render: interrupted; the same command begins again.", file=sys.stderr)
        return 130
    return 1


def _by_parts(args: argparse.Namespace) -> bool:
    """Whether this one film is made as those of a list are: `render_film` makes MP4 with the clip's own background."""
    by_parts = bool(args.background or args.transcript or args.burn_captions or args.clip)
    return by_parts or (args.output is not None and args.output.suffix.lower() in (".webm", ".zip"))


def _wrong_film(args: argparse.Namespace) -> str | None:
    """What is wrong with the options of such a film; None for nothing."""
    if not (args.avatar and args.audio and args.output):
        return "give --avatar, --audio and -o."
    if RenderFormat.of_suffix(args.output.suffix) is None:
        return f"{args.output} ends neither in .mp4 nor in .webm nor in .zip, a zip of frames."
    return _wrong_captions(args)


def _wrong_captions(args: argparse.Namespace) -> str | None:
    if args.burn_captions and not args.transcript:
        return "--burn-captions shows the words of --transcript: give it."
    if wrong := [each for each in args.clip if "=" not in each]:
        return f"--clip {wrong[0]}: give a name and a file, as in wave=wave.mp4."
    if args.clip and not args.transcript:
        return "--clip is played where --transcript has its name in brackets: give it."
    return None


def _film(args: argparse.Namespace, settings: AgentSettings, workers: int) -> int:
    """Raises JobsWrong, and as `make_film` does."""
    avatar = Path(args.avatar)
    try:
        job = FilmJob(
            avatar=str(avatar.absolute()) if avatar.exists() else args.avatar,
            audio=args.audio.absolute(),
            transcript=args.transcript and args.transcript.absolute(),
            burn_captions=args.burn_captions,
            clips={name: Path(clip).absolute() for name, _, clip in (each.partition("=") for each in args.clip)},
            output=args.output.absolute(),
            engine=args.engine,
            fps=args.fps,
            width=args.width,
            height=args.height,
            avatar_settings=AvatarSettings(background=args.background or "keep"),
        )
    except ValidationError as error:
        raise JobsWrong(problem_of(error)) from None
    return make_film(job, settings, workers)


def _wrong_dub(args: argparse.Namespace) -> str | None:
    """What is wrong with the options of a dub; None for nothing."""
    if args.jobs or args.avatar or not args.audio or not args.output:
        return "give --dub, --audio and -o, and neither a list nor --avatar."
    if args.fps != FPS or args.width or args.height:
        return "a dub has the rate and the size of its video: leave --fps, --width and --height out."
    if args.clip:
        return "a dub shows its own video, and no clips: leave --clip out."
    if args.background:
        return "a dub keeps what its video shows: leave --background out."
    if RenderFormat.of_suffix(args.output.suffix) is None:
        return f"{args.output} ends neither in .mp4 nor in .webm nor in .zip, a zip of frames."
    for source in (args.dub, args.audio):
        if args.output.exists() and source.exists() and args.output.samefile(source):
            return f"{args.output} would be written over its own source."
    return _wrong_captions(args)


def _dub(args: argparse.Namespace, settings: AgentSettings, workers: int) -> int:
    """Raises JobsWrong, and as `make_film` does."""
    speaker = int(args.speaker) if args.speaker and args.speaker.isdecimal() else args.speaker
    kept = args.keep_background
    try:
        job = FilmJob(
            dub=args.dub.absolute(),
            audio=args.audio.absolute(),
            output=args.output.absolute(),
            speaker=speaker,
            transcript=args.transcript and args.transcript.absolute(),
            burn_captions=args.burn_captions,
            keep_background_audio=Path(kept).absolute() if isinstance(kept, str) else kept,
        )
    except ValidationError:
        raise JobsWrong(f"--speaker {args.speaker}: it is auto, largest, all, or a person's number from 0.") from None
    return make_film(job, settings, workers)
