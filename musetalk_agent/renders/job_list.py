"""`musetalk-agent render JOBS.yaml`: a list of films, made by several workers, that goes on where it was interrupted.

What is being made lies in `JOBS.yaml.renders` beside the list, as the renders of a service do (`protocol.renders`); it goes with
the last film. `JOBS.yaml.made` says what each film was made of: a job whose output is there, and was made of the same, is not made
again.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, TypeAdapter, ValidationError
from tqdm import tqdm

from musetalk_agent.agent_settings import AgentSettings
from musetalk_agent.avatars.library import AvatarLibrary
from musetalk_agent.protocol.action_marks import CLIP_NAME, IDLE, ActionMarks
from musetalk_agent.protocol.avatar_settings import AvatarSettings
from musetalk_agent.protocol.http import DEMO_AVATAR_ID, Strict
from musetalk_agent.protocol.render_queue import RenderQueue, RenderTicket, default_target
from musetalk_agent.protocol.renders import (
    CAPTION_SUFFIXES,
    FPS,
    RenderFolder,
    RenderFormat,
    RenderMark,
    RenderOrder,
    RenderRequest,
    RenderState,
    Speaker,
)
from musetalk_agent.renders.render_job import LONGEST_S
from musetalk_agent.renders.sounds import write_sound
from musetalk_agent.weights import Manifest, ModelStore

_POLL_S = 0.25
_ENDS_S = 10.0
_RESTARTS_MOST = 10
"""Workers that may die over the whole list; a render that kills them has failed by then."""


class JobsWrong(Exception):
    """The list cannot be done; the message says what is wrong."""


ClipName = Annotated[str, Field(pattern=f"^{CLIP_NAME.pattern}$")]


class FilmJob(Strict):
    """One film of a list: of an avatar, or of footage (`dub`). Paths are relative to the list; `output` ends in `.mp4`, in `.webm`,
    or in `.zip` for frames. `keep_background_audio` is true, or the file of a stem; `transcript` a text file of what `audio` says,
    and `burn_captions` shows it in the picture. `clips` are other clips of the avatar's person by name: `[wave]` in the transcript
    plays the clip `wave` there.
    """

    avatar: str | None = Field(default=None, min_length=1)
    dub: Path | None = None
    speaker: Speaker | None = None
    keep_background_audio: bool | Path = False
    audio: Path
    transcript: Path | None = None
    burn_captions: bool = False
    clips: dict[ClipName, Path] = Field(default={})
    output: Path
    engine: str | None = None
    fps: int = FPS
    width: int | None = None
    height: int | None = None
    avatar_settings: AvatarSettings = AvatarSettings()


@dataclass(frozen=True)
class _Film:
    """A job that is to be made, and its render."""

    output: Path
    render_id: str
    made: RenderFormat


@dataclass(frozen=True)
class _Made:
    """What the films of a list were made of, in a file beside it; None for a film of no list, which is made anew each time."""

    path: Path | None
    films: dict[str, tuple[str, int]]

    @classmethod
    def read(cls, path: Path) -> _Made:
        try:
            return cls(path, _made.validate_json(path.read_bytes()))
        except (FileNotFoundError, ValidationError):
            return cls(path, {})

    def has(self, film: _Film) -> bool:
        """Whether the output is there as it was made of the same."""
        known = self.films.get(str(film.output))
        try:
            return known == (film.render_id, film.output.stat().st_size)
        except FileNotFoundError:
            return False

    def add(self, film: _Film) -> None:
        """Notes a film that is at its place."""
        self.films[str(film.output)] = film.render_id, film.output.stat().st_size
        if self.path is not None:
            new = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")
            new.write_bytes(_made.dump_json(self.films))
            new.replace(self.path)


_made: TypeAdapter[dict[str, tuple[str, int]]] = TypeAdapter(dict[str, tuple[str, int]])
_jobs: TypeAdapter[list[FilmJob]] = TypeAdapter(list[FilmJob])


def read_jobs(path: Path) -> list[FilmJob]:
    """The films of a list, with whole paths. Raises JobsWrong."""
    try:
        jobs = _jobs.validate_python(yaml.safe_load(path.read_bytes()))
    except OSError as error:
        raise JobsWrong(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise JobsWrong(f"{path} is no YAML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole of it"
        raise JobsWrong(f"{path}: {where}: {problem_of(error)}") from error
    if len({job.output for job in jobs}) < len(jobs):
        raise JobsWrong(f"{path}: two jobs have the same output.")
    for job in jobs:
        if RenderFormat.of_suffix(job.output.suffix) is None:
            raise JobsWrong(f"{path}: {job.output} ends neither in .mp4 nor in .webm nor in .zip.")
        if (job.avatar is None) == (job.dub is None):
            raise JobsWrong(f"{path}: {job.output}: give either avatar or dub: who says it.")
        if job.burn_captions and job.transcript is None:
            raise JobsWrong(f"{path}: {job.output}: burn_captions shows the words of a transcript: give one.")
        if job.clips and (job.dub is not None or job.transcript is None):
            raise JobsWrong(
                f"{path}: {job.output}: clips are played at the marks of a transcript, by an avatar: give both."
            )
    return [_whole(job, path.parent) for job in jobs]


def _whole(job: FilmJob, folder: Path) -> FilmJob:
    """The job with whole paths."""
    paths: dict[str, object] = {"audio": folder / job.audio, "output": folder / job.output}
    if job.dub is not None:
        paths["dub"] = folder / job.dub
    if job.transcript is not None:
        paths["transcript"] = folder / job.transcript
    if job.clips:
        paths["clips"] = {name: folder / clip for name, clip in job.clips.items()}
    if isinstance(job.keep_background_audio, Path):
        paths["keep_background_audio"] = folder / job.keep_background_audio
    return job.model_copy(update=paths)


def run_jobs(path: Path, settings: AgentSettings, workers: int) -> int:
    """Makes the films of a list with a progress bar: 0 all made, 1 some failed (a sentence each on stderr), 130 interrupted.

    What was made stays when it is interrupted, and the same command goes on. Raises JobsWrong; AvatarErrors and AudioUnreadable of
    sources that cannot be used; OSError.
    """
    return _make_films(read_jobs(path), path, settings, workers, _Made.read(path.with_name(path.name + ".made")))


def make_film(job: FilmJob, settings: AgentSettings, workers: int) -> int:
    """The same for one job with whole paths. It is made anew each time, and goes on after a break; what is being made lies in
    `OUTPUT.renders`."""
    return _make_films([job], job.output, settings, workers, _Made(None, {}))


def _make_films(jobs: list[FilmJob], path: Path, settings: AgentSettings, workers: int, made: _Made) -> int:
    folder = RenderFolder(path.with_name(path.name + ".renders"))
    films = asyncio.run(_ordered(jobs, path, folder, settings, made))
    if films:
        try:
            _make(films, folder, settings, min(workers, len(films)) if len(films) > 1 else workers)
        except KeyboardInterrupt:
            print(
                f"render: interrupted; the same command goes on ({folder.root} keeps what was made).", file=sys.stderr
            )
            return 130
    failed = [reason for film in films if (reason := _kept(film, folder, made)) is not None]
    for reason in failed:
        print(f"render: {reason}", file=sys.stderr)
    shutil.rmtree(folder.root, ignore_errors=True)  # every film has ended: those that failed are begun anew
    return 1 if failed else 0


async def _ordered(
    jobs: list[FilmJob], path: Path, folder: RenderFolder, settings: AgentSettings, made: _Made
) -> list[_Film]:
    """Prepares what the jobs need, and orders those that are not made yet."""
    films: list[_Film] = []
    for job in jobs:
        if not job.output.parent.is_dir():  # now, and not when the film has been made
            raise JobsWrong(f"{job.output} cannot be written: there is no folder {job.output.parent}.")
    models = ModelStore(settings.models_dir, Manifest.load())
    library = AvatarLibrary(settings.cache_dir, models, cache_bytes=settings.cache_bytes)
    try:
        for job in jobs:
            avatar_id = job.avatar or ""
            clip = job.dub or path.parent / avatar_id
            if (
                job.dub is None
                and job.avatar != DEMO_AVATAR_ID
                and not avatar_id.startswith("sha256:")
                and job.engine != "pattern"
            ):
                avatar_id = await _added(library, clip)
            form = RenderFormat.of_suffix(job.output.suffix) or RenderFormat.MP4
            marks = ActionMarks((IDLE, *job.clips) if job.clips else ())
            request = _request(job, avatar_id, form, marks)
            clips = {name: await _added(library, clip) for name, clip in job.clips.items()}
            sound = hashlib.sha256(job.audio.read_bytes() if job.audio.exists() else b"").hexdigest()
            stem = job.keep_background_audio if isinstance(job.keep_background_audio, Path) else None
            content = f"{request.model_dump_json()}\0{sound}\0{_stamp(job.dub)}\0{_stamp(stem)}\0{job.output}"
            content += f"\0{_text_of(job.transcript)}\0{clips}" if clips else ""
            film = _Film(job.output, "ren_" + hashlib.sha256(content.encode()).hexdigest()[:24], form)
            if made.has(film) and not folder.path(film.render_id).exists():
                print(f"{film.output}: made already")
                continue
            if (ended := folder.ended(film.render_id)) is not None and ended.state is not RenderState.DONE:
                folder.delete(film.render_id)  # it is tried again
            order = RenderOrder(
                render_id=film.render_id,
                key="",
                created_at=time.time(),
                request=request,
                marks=[RenderMark(name=mark.name, letters=mark.letters) for mark in marks.found],
                clips=clips,
            )
            if folder.create(order):
                with ExitStack() as failed:
                    failed.callback(
                        folder.delete, film.render_id
                    )  # without its files it would be taken for one that goes on
                    write_sound(job.audio, folder.path(film.render_id) / "voice.wav", LONGEST_S)
                    if job.dub is not None:
                        _bring(job.dub, folder.path(film.render_id) / "dub" / "footage")
                        if isinstance(job.keep_background_audio, Path):
                            _bring(job.keep_background_audio, folder.path(film.render_id) / "dub" / "stem")
                    failed.pop_all()
            films.append(film)
    finally:
        library.close()
        with suppress(OSError):  # it keeps what was made
            folder.root.rmdir()
    return films


async def _added(library: AvatarLibrary, clip: Path) -> str:
    """The id of a clip's bytes, which the library has now. Raises AvatarErrors, JobsWrong."""
    try:
        return await library.add(await asyncio.to_thread(clip.read_bytes), clip.name)
    except OSError as error:
        raise JobsWrong(f"{clip} cannot be read: {error.strerror}.") from error


def _request(job: FilmJob, avatar_id: str, form: RenderFormat, marks: ActionMarks) -> RenderRequest:
    """The render, its transcript without `marks`, which are found in it."""
    kept = job.keep_background_audio
    transcript = _text_of(job.transcript)
    try:
        return RenderRequest(
            avatar_id=avatar_id or None,
            video_url=None if job.dub is None else "(a file)",
            speaker=job.speaker,
            keep_background_audio="(a file)" if isinstance(kept, Path) else kept,
            text="(a file)",
            transcript=None if transcript is None else marks.whole(transcript) or None,
            burn_captions=job.burn_captions,
            engine=job.engine,
            fps=job.fps,
            width=job.width,
            height=job.height,
            avatar_settings=job.avatar_settings,
            format=form,
        )
    except ValidationError as error:
        raise JobsWrong(f"{job.output}: {problem_of(error)}") from error


def problem_of(error: ValidationError) -> str:
    """What is wrong with what a user gave, in words: the first of all problems."""
    first = error.errors()[0]
    return str(first["msg"]).removeprefix("Value error, ")


def _bring(source: Path, target: Path) -> None:
    """Puts a file where a worker looks for what it would fetch: a link to it where the disk allows one."""
    target.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        target.symlink_to(source.resolve(strict=True))
    except FileNotFoundError as error:
        raise JobsWrong(f"{source} cannot be read: {error.strerror}.") from error
    except OSError:
        shutil.copyfile(source, target)


def _stamp(source: Path | None) -> str:
    """Changes when a file does."""
    if source is None or not source.exists():
        return ""
    found = source.stat()
    return f"{source}:{found.st_size}:{found.st_mtime_ns}"


def _text_of(transcript: Path | None) -> str | None:
    if transcript is None:
        return None
    try:
        return transcript.read_text("utf-8").strip() or None
    except OSError as error:
        raise JobsWrong(f"{transcript} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise JobsWrong(f"{transcript} is no text in UTF-8.") from error


def _make(films: list[_Film], folder: RenderFolder, settings: AgentSettings, workers: int) -> None:
    """Runs workers until every film has ended."""
    with RenderQueue(default_target(folder.root)) as queue:
        while (left := queue.take("left")) is not None:  # of an interrupted run; what is needed is ordered anew
            queue.done("left", left)
        queue.put(*(RenderTicket(render_id=film.render_id) for film in films if folder.ended(film.render_id) is None))
        running: dict[str, subprocess.Popen[bytes]] = {}
        restarts = 0
        try:
            with tqdm(unit=" frames", desc="render", file=sys.stderr, leave=False) as bar:
                while any(folder.ended(film.render_id) is None for film in films):
                    for name in [name for name, process in running.items() if process.poll() is not None]:
                        del running[name]
                        queue.give_back(name)
                        restarts += 1
                        if restarts > _RESTARTS_MOST:
                            raise JobsWrong(f"{restarts} workers ended by themselves; their last words are above.")
                    while len(running) < workers:
                        name = f"list-{os.getpid()}-{secrets.token_hex(3)}"
                        running[name] = _worker(name, folder, settings)
                    _show(bar, films, folder)
                    time.sleep(_POLL_S)
                _show(bar, films, folder)
        finally:
            _end(list(running.values()))


def _worker(name: str, folder: RenderFolder, settings: AgentSettings) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "RENDERS_DIR": str(folder.root), "AGENT_ENGINE": settings.engine, "LOG_LEVEL": "ERROR"}
    environment.pop("RENDERS_QUEUE", None)
    command = [sys.executable, "-m", "musetalk_agent", "render-worker", "--supervised", "--name", name]
    # a session of its own: Ctrl-C is for this process, which ends the workers
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, start_new_session=True)


def _show(bar: tqdm[Any], films: list[_Film], folder: RenderFolder) -> None:
    done = total = 0
    for film in films:
        plan = folder.plan(film.render_id)
        if plan is None:
            continue
        total += plan.frames
        parts = folder.parts(film.render_id)
        ended = folder.ended(film.render_id)
        done += plan.frames if ended is not None else sum(len(plan.part(part)) for part in parts)
    bar.total = total or None
    bar.update(max(0, done - bar.n))


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.stdin is not None:
            process.stdin.close()
    until = time.monotonic() + _ENDS_S
    for process in processes:
        try:
            process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()


def _kept(film: _Film, folder: RenderFolder, made: _Made) -> str | None:
    """Moves a film to its place; why there is none, else."""
    ended = folder.ended(film.render_id)
    if ended is None or ended.state is not RenderState.DONE:
        why = ended.error.detail if ended is not None and ended.error is not None else "it did not end."
        return f"{film.output}: {why}"
    shutil.move(folder.result(film.render_id, film.made), film.output)
    for suffix in CAPTION_SUFFIXES if ended.captions else ():
        shutil.move(folder.path(film.render_id) / f"result.{suffix}", film.output.with_suffix(f".{suffix}"))
    for warning in ended.warnings:
        print(f"render: {film.output}: {warning.detail}", file=sys.stderr)
    made.add(film)
    folder.delete(film.render_id)
    plan_s = f"{ended.seconds:.2f} s" if ended.seconds is not None else ""
    print(f"{film.output}: {plan_s}, {ended.bytes} bytes")
    return None
