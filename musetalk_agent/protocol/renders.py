"""Renders: what is asked for, and the folder in which the orchestrator and the workers keep it.

    renders/<render_id>/
        order.json      what was asked for, and by whom; never changes
        voice.wav       the text, spoken (the orchestrator makes it)
        sound.wav       the sound of the film, int16 (a worker makes it)
        dub/            of a dub: the footage, and what was found in it
        looked          how much of a dub's footage was looked at, 0 … 1
        plan.json       frames, size, parts: there once preparation is over
        sources/<sha256>
                        clips of an avatar of the library, for workers that lack them
        parts/<n>.…     finished parts of the film, each put in place whole
        tries/…         one empty file for each time a ticket was taken
        words.json, cues.json, lips.json
                        what is known of the speech (`renders.known_speech`)
        result.…        the film, and its captions (srt, vtt)
        end.json        how it ended; the process that creates this file ends the render, once

Every file is written under another name and put in place whole, so that any number of processes may look at any time. What happened
is what files there are: nothing needs to be taken back when a process dies.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from contextlib import suppress
from enum import StrEnum
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from musetalk_agent.protocol.avatar_settings import AvatarSettings
from musetalk_agent.protocol.http import AvatarSource, Picture, Strict

TEXT_CHARACTERS = 10_000
"""Longest text of a render: ten minutes of speech or so; the voices take no more at once."""
URL_CHARACTERS = 4096
VOICE_CHARACTERS = 128
FPS = 25
LOOK_SHARE = 0.4
"""Of a dub's progress: the first look at its footage, against `warp` and the encoder."""
CAPTION_SUFFIXES = ("srt", "vtt")
"""Of the files of captions beside a result."""
PART_S = 4
"""Film in one part: what a worker that dies loses at most."""
SPAN_PARTS = 8
"""Parts of one ticket: half a minute, so that the two seconds of sound heard before it cost little; two workers share a minute."""
Speaker = Literal["all", "largest", "auto"] | Annotated[int, Field(ge=0, le=999)]
"""Whose mouth a dub changes: `auto` is who speaks in the footage, a number a person, in order of appearance from 0."""
RENDER_ID = re.compile(r"ren_[0-9a-f]{24}")
Model = TypeVar("Model", bound=BaseModel)


class RenderFormat(StrEnum):
    """What a render's result is: MP4 (H.264 and AAC), WebM (VP9 and Opus), or a zip of PNG frames (`00000000.png` …) with
    `sound.wav`. The last two have alpha where the background is `transparent`.
    """

    MP4 = "mp4"
    WEBM = "webm"
    PNG = "png"

    @property
    def suffix(self) -> str:
        """Of the result's file."""
        return "zip" if self is RenderFormat.PNG else self.value

    @classmethod
    def of_suffix(cls, suffix: str) -> RenderFormat | None:
        """The format of a file that ends so (`.mp4`); None for any other."""
        return next((made for made in cls if f".{made.suffix}" == suffix.lower()), None)


class RenderState(StrEnum):
    """`queued` until a worker has begun; the last three are for good."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class RenderRequest(Strict):
    """Body of `POST /renders`. Exactly one of `audio_url` and `text`, and an avatar unless the engine is `pattern`; or, for a dub,
    `video_url` in the avatar's place, whose size and rate the film has."""

    avatar_id: str | None = Field(default=None, max_length=128)
    idle_video_url: str | None = Field(default=None, max_length=URL_CHARACTERS)
    frames_zip_url: str | None = Field(default=None, max_length=URL_CHARACTERS)
    video_url: str | None = Field(default=None, min_length=1, max_length=URL_CHARACTERS)
    speaker: Speaker | None = None
    keep_background_audio: bool | Annotated[str, Field(min_length=1, max_length=URL_CHARACTERS)] = False
    audio_url: str | None = Field(default=None, min_length=1, max_length=URL_CHARACTERS)
    text: str | None = Field(default=None, min_length=1, max_length=TEXT_CHARACTERS)
    transcript: str | None = Field(default=None, min_length=1, max_length=TEXT_CHARACTERS)
    voice: str | None = Field(default=None, min_length=1, max_length=VOICE_CHARACTERS)
    engine: str | None = Field(default=None, max_length=64)
    fps: int = Field(default=FPS, ge=15, le=60)
    width: int | None = None
    height: int | None = None
    avatar_settings: AvatarSettings = AvatarSettings()
    format: RenderFormat = RenderFormat.MP4
    burn_captions: bool = False
    judge: bool = False

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.audio_url is None) == (self.text is None):
            raise ValueError("give either audio_url or text: what the avatar says")
        if self.voice is not None and self.text is None:
            raise ValueError("voice: it speaks a text, and there is none")
        if self.burn_captions and self.text is None and self.transcript is None:
            raise ValueError("burn_captions: it shows words: give text, or a transcript of audio_url")
        if self.video_url is not None:
            self._check_dub()
        elif self.speaker is not None or self.keep_background_audio:
            raise ValueError("speaker and keep_background_audio belong to a dub: give video_url with them")
        elif self.source.empty and self.engine != "pattern":
            raise ValueError("give avatar_id, idle_video_url or frames_zip_url: who says it")
        if (self.width is None) != (self.height is None):
            raise ValueError("give width and height together, or neither for the clip's own size")
        if self.judge and self.format is not RenderFormat.MP4:
            raise ValueError("judge: it looks at films of the format mp4 only")
        self.check_transparency()
        _ = self.picture  # its limits
        return self

    def check_transparency(self) -> None:
        """Raises ValueError where the format has no alpha and the background is `transparent`."""
        if self.transparent and self.format is RenderFormat.MP4:
            raise ValueError("format: mp4 has no transparency: give webm or png, or another background")

    @property
    def transparent(self) -> bool:
        """Whether the film has alpha."""
        return self.avatar_settings.background == "transparent"

    def _check_dub(self) -> None:
        if not self.source.empty:
            raise ValueError("give video_url, which has its own people, or an avatar, not both")
        if self.width is not None or self.fps != FPS:
            raise ValueError("fps, width and height: a dub has those of its video; leave them out")
        if self.avatar_settings.background != "keep":
            raise ValueError("avatar_settings.background: a dub keeps what its video shows; leave it out")

    @property
    def source(self) -> AvatarSource:
        """The avatar."""
        return AvatarSource(
            avatar_id=self.avatar_id, idle_video_url=self.idle_video_url, frames_zip_url=self.frames_zip_url
        )

    @property
    def picture(self) -> Picture:
        """Size and rate."""
        return Picture(fps=self.fps, width=self.width, height=self.height)


class RenderMark(BaseModel):
    """A mark that stood in what is said: the name of a clip, and how many letters and digits come before it."""

    name: str
    letters: int


class RenderOrder(BaseModel):
    """A render as it was ordered: the caller's name, when (Unix time), and what. `body_sha256` recognises the same request.

    `clips` (`sha256:…`, by name) are the avatar's own one (`idle`), where the avatar is of the library, and those of the `marks`.
    """

    render_id: str
    key: str
    created_at: float
    request: RenderRequest
    body_sha256: str = ""
    marks: list[RenderMark] = []
    clips: dict[str, str] = {}


class RenderAction(BaseModel):
    """A clip that is played in a film: how it is entered, and left where it is played once; each the frame of the film, the frame
    of what is entered, and over how many frames.
    """

    name: str
    enter: tuple[int, int, int]
    leave: tuple[int, int, int] | None = None


@lru_cache(maxsize=16)
def _parts_of(starts: tuple[int, ...], frames: int, step: int) -> tuple[range, ...]:
    """The parts of a film, in order. Not kept in the plan, whose copies may have other frames."""
    bounds = [*starts, frames] if starts else [0, frames]
    return tuple(range(at, min(end, at + step)) for first, end in pairwise(bounds) for at in range(first, end, step))


class RenderPlan(BaseModel):
    """What preparation found: the avatar in the cache, the engine, the size, and how the film is cut.

    `looked` is the progress that there was when it was made. `starts` are the frames at which tickets begin, 0 first, where shots
    say so; without them tickets are of one length. `found` is what a dub's footage shows, for people. `actions` are in the order in
    which they begin.
    """

    avatar_id: str
    engine: str
    width: int
    height: int
    fps: int
    frames: int
    begun_at: float
    looked: float = 0.0
    starts: list[int] = []
    found: dict[str, Any] | None = None
    actions: list[RenderAction] = []

    @property
    def part_frames(self) -> int:
        """Frames of a part; the last one of a ticket may have fewer."""
        return PART_S * self.fps

    @property
    def _parts(self) -> tuple[range, ...]:
        return _parts_of(tuple(self.starts), self.frames, self.part_frames)

    @property
    def parts(self) -> int:
        """Parts of the film."""
        return len(self._parts)

    @property
    def spans(self) -> int:
        """Tickets of the film."""
        return len(self.starts) if self.starts else -(-self.parts // SPAN_PARTS)

    def span(self, index: int) -> range:
        """The parts of span `index`."""
        if not self.starts:
            return range(index * SPAN_PARTS, min(self.parts, (index + 1) * SPAN_PARTS))
        firsts = [part.start for part in self._parts]
        last = index + 1 == len(self.starts)
        return range(firsts.index(self.starts[index]), self.parts if last else firsts.index(self.starts[index + 1]))

    def part(self, index: int) -> range:
        """The frames of part `index`."""
        return self._parts[index]


class RenderFailure(BaseModel):
    """Why a render failed: a stable code and a sentence."""

    code: str
    detail: str


class RenderEnd(BaseModel):
    """How a render ended, and when (Unix time). `bytes` and `seconds` are the film's; `judge` is the judge's report on it;
    `captions` says that it has some, and `timing` where their words' times come from; `warnings` what is missing all the same."""

    state: RenderState
    at: float
    bytes: int | None = None
    seconds: float | None = None
    judge: dict[str, Any] | None = None
    captions: bool = False
    timing: str | None = None
    warnings: list[RenderFailure] = []
    error: RenderFailure | None = None


def new_render_id(key: str, idempotency_key: str | None) -> str:
    """A render's id: random, or always the same for a caller's idempotency key."""
    if idempotency_key is None:
        return "ren_" + secrets.token_hex(12)
    return "ren_" + hashlib.sha256(f"{key}\0{idempotency_key}".encode()).hexdigest()[:24]


class RenderSharing(Protocol):
    """What makes one folder of copies, each of another machine. Its methods block, and raise what the network raises."""

    def fetch(self) -> bool:
        """What others have published is here afterwards. False where that is not possible at the moment."""
        ...

    def publish(self) -> None:
        """What was written here is there for others afterwards."""
        ...

    def first(self, name: str, value: str) -> str:
        """The value that was given first under this name: this one, where there was none. Atomic over all machines."""
        ...

    def known(self, name: str) -> bool:
        """Whether a value was given under this name."""
        ...


class RenderFolder:
    """The folder of all renders. Its methods read and write small files: call them in a thread.

    Reading something that is not there, or that another version wrote, gives None; a disk that fails raises OSError.

    Args:
        root: the folder.
        sharing: where it is a copy of this machine's; None where all see the same folder.
    """

    def __init__(self, root: Path, sharing: RenderSharing | None = None) -> None:
        self.root, self._sharing = root, sharing

    def fetch(self) -> bool:
        """What other machines published is here afterwards; False where that is not possible at the moment."""
        return self._sharing is None or self._sharing.fetch()

    def publish(self) -> None:
        """What was written here is there for other machines afterwards."""
        if self._sharing is not None:
            self._sharing.publish()

    def path(self, render_id: str) -> Path:
        """The folder of one render. Raises ValueError for an invalid id: ids come from strangers."""
        if not RENDER_ID.fullmatch(render_id):
            raise ValueError(f"{render_id[:64]!r} is no id of a render")
        return self.root / render_id

    def ids(self) -> list[str]:
        """Every render that there is, in no order."""
        with suppress(FileNotFoundError):
            return [name for name in os.listdir(self.root) if RENDER_ID.fullmatch(name)]
        return []

    def create(self, order: RenderOrder) -> bool:
        """Keeps a new order; False when there is one of this id."""
        target = self.path(order.render_id)
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = self.root / f".{order.render_id}.{secrets.token_hex(4)}"
        made.mkdir(mode=0o700)
        try:
            (made / "order.json").write_text(order.model_dump_json())
            (made / "parts").mkdir()
            (made / "tries").mkdir()
            made.rename(target)  # fails where a folder with something in it stands
        except OSError:
            shutil.rmtree(made, ignore_errors=True)
            if target.exists():
                return False
            raise
        return True

    def order(self, render_id: str) -> RenderOrder | None:
        """What was ordered."""
        return self._read(render_id, "order.json", RenderOrder)

    def plan(self, render_id: str) -> RenderPlan | None:
        """How it is cut; None before preparation is over."""
        return self._read(render_id, "plan.json", RenderPlan)

    def write_plan(self, render_id: str, plan: RenderPlan) -> None:
        """Preparation is over."""
        self._write(self.path(render_id) / "plan.json", plan.model_dump_json())

    def looked(self, render_id: str) -> float:
        """How much of a dub's footage was looked at, 0 … 1; 0 where nothing says so."""
        with suppress(FileNotFoundError, ValueError):
            return min(1.0, max(0.0, float((self.path(render_id) / "looked").read_text())))
        return 0.0

    def write_looked(self, render_id: str, share: float) -> None:
        """Notes how much was looked at; less than before changes nothing. Raises FileNotFoundError where the render is gone."""
        if share > self.looked(render_id):
            self._write(self.path(render_id) / "looked", f"{share:.4f}")

    def ended(self, render_id: str) -> RenderEnd | None:
        """How it ended; None while it has not."""
        return self._read(render_id, "end.json", RenderEnd)

    def end(self, render_id: str, end: RenderEnd) -> bool:
        """Ends a render, once and for good; False when it had ended, or is gone. What is not needed any more is deleted."""
        if self._sharing is not None:
            return self._end_shared(self._sharing, render_id, end)
        folder = self.path(render_id)
        made = folder / f".end.{secrets.token_hex(4)}"
        try:
            made.write_text(end.model_dump_json())
            os.link(made, folder / "end.json")
        except (FileExistsError, FileNotFoundError):
            return False
        finally:
            made.unlink(missing_ok=True)
        self._clear(folder, end)
        return True

    def _end_shared(self, sharing: RenderSharing, render_id: str, end: RenderEnd) -> bool:
        """The result is published before the end is decided, so that every reader of the end finds it. One that was decided by a
        machine which was lost at once is written by the next that tries."""
        folder = self.path(render_id)
        if not folder.exists():
            return False
        sharing.publish()
        ours = end.model_dump_json()
        kept = sharing.first(f"{render_id}.end", ours)
        self._write(folder / "end.json", kept)
        self._clear(folder, RenderEnd.model_validate_json(kept))
        sharing.publish()
        return kept == ours

    def ends(self, render_id: str) -> bool:
        """Whether it has ended, on whichever machine; cheaper than `ended`."""
        here = (self.path(render_id) / "end.json").exists()
        return here or (self._sharing is not None and self._sharing.known(f"{render_id}.end"))

    @staticmethod
    def _clear(folder: Path, end: RenderEnd) -> None:
        """Deletes what is not needed once it has ended."""
        for name in ("parts", "tries", "dub", "sources"):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in ("voice.wav", "sound.wav", "words.json", "cues.json", "lips.json"):
            (folder / name).unlink(missing_ok=True)
        if end.state is not RenderState.DONE:
            for left in folder.glob("result.*"):
                left.unlink(missing_ok=True)

    def parts(self, render_id: str) -> set[int]:
        """Numbers of the parts that are finished."""
        with suppress(FileNotFoundError):
            names = os.listdir(self.path(render_id) / "parts")
            return {int(name.partition(".")[0]) for name in names if name[:1].isdigit()}
        return set()

    def tried(self, render_id: str, span: int | None) -> int:
        """Notes that a worker takes this ticket; returns how often that has happened, this time included."""
        tries = self.path(render_id) / "tries"
        prefix = "begin-" if span is None else f"{span}-"
        with suppress(FileNotFoundError):
            (tries / f"{prefix}{secrets.token_hex(4)}").touch()
            self.publish()
            return sum(name.startswith(prefix) for name in os.listdir(tries))
        return 1

    def begun(self, render_id: str) -> bool:
        """Whether a worker has taken it up."""
        with suppress(FileNotFoundError):
            return bool(os.listdir(self.path(render_id) / "tries"))
        return False

    def mark(self, render_id: str, name: str) -> bool:
        """Leaves a mark of this name; False when it was there, or the render is gone."""
        if self._sharing is not None:
            ours = secrets.token_hex(8)
            if self._sharing.first(f"{render_id}.{name}", ours) != ours:
                return False
        try:
            os.close(os.open(self.path(render_id) / name, os.O_CREAT | os.O_EXCL, 0o600))
        except (FileExistsError, FileNotFoundError):
            return False
        return True

    def marked(self, render_id: str, name: str) -> bool:
        """Whether the mark is there."""
        return (self.path(render_id) / name).exists()

    def sources(self, render_id: str) -> Path:
        """Where the clips of its avatar are, or would be."""
        return self.path(render_id) / "sources"

    def result(self, render_id: str, made: RenderFormat) -> Path:
        """Where the film is, or will be."""
        return self.path(render_id) / f"result.{made.suffix}"

    def delete(self, render_id: str) -> None:
        """Removes everything of a render."""
        shutil.rmtree(self.path(render_id), ignore_errors=True)
        self.publish()

    def _read(self, render_id: str, name: str, model: type[Model]) -> Model | None:
        try:
            return model.model_validate_json((self.path(render_id) / name).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    @staticmethod
    def _write(path: Path, text: str) -> None:
        made = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        made.write_text(text)
        made.replace(path)
