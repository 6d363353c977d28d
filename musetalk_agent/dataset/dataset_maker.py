"""Makes MuseTalk's training data of a folder of films: what its trainer reads (`musetalk/data/dataset.py` of MuseTalk v1.5).

OUT/video_audio_clip_root/clip000_NAME.mp4 and .wav, OUT/meta/clip000_NAME.json, OUT/train.txt and OUT/val.txt, each with a header
line, which the trainer skips. What is done is known by its files: a source by its record in OUT/sources, a clip by its meta file,
which is written last. So a run that was killed goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from musetalk_agent.avatars.face import FaceNet
from musetalk_agent.dataset.face_clip import FaceClip
from musetalk_agent.dataset.source_film import FPS, ClipWriter, begins_at, frames_at_25, stated_seconds
from musetalk_agent.measure.lip_measures import VideoUnreadable
from musetalk_agent.media_types import FEATURE_RATE, Pcm, Pixels
from musetalk_agent.tools.audio_file import AudioFile, AudioUnreadable, mono

FILMS = frozenset({".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts"})
HEADER = "meta"
"""First line of the lists: the trainer reads from the second on."""
_LEAST_FRAMES = 10
"""The trainer takes no clip of fewer frames for each one that it samples (`T * 10`)."""


@dataclass
class SourceRecord:
    """What became of a source film.

    Args:
        name: its file name.
        size, modified_ns: of the file when it was read; a changed one is read again.
        settings: those that it was made with.
        clips: names of the clips that are trained on, without a suffix.
        left_out: clips that are not, with the reason.
        broken: why the film cannot be used; None when it can.
        done: False while it is worked on; a run that was killed leaves it so.
    """

    name: str
    size: int
    modified_ns: int
    settings: str
    clips: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    broken: str | None = None
    done: bool = False


@dataclass(frozen=True)
class DatasetSettings:
    """How the data is made.

    Args:
        clip_s: longest clip, in whole seconds.
        validation: share of the films whose clips are for validation, 0 … 1.
        least_px: least width of a face.
    """

    clip_s: int = 30
    validation: float = 0.1
    least_px: int = 150

    @property
    def key(self) -> str:
        """What a finished source depends on."""
        return f"{self.clip_s}/{self.least_px}"


class DatasetMaker:
    """Makes the data; run it from one thread and one process at a time.

    Args:
        out: the folder to make; what a former run left there is used.
        net: the face networks.
        settings: see `DatasetSettings`.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, out: Path, net: FaceNet, settings: DatasetSettings) -> None:
        self._out, self._net, self._settings = out.resolve(), net, settings
        self._clips, self._meta, self._sources = (
            self._out / name for name in ("video_audio_clip_root", "meta", "sources")
        )
        for folder in (self._clips, self._meta, self._sources):
            folder.mkdir(parents=True, exist_ok=True)

    def make(self, films: list[Path], progress: Callable[[int], object] = lambda _: None) -> list[SourceRecord]:
        """Works through the films and writes the lists. `progress` is called with 1 for every frame.

        Raises:
            OSError: something cannot be written.
        """
        names = clip_names(films)
        records = []
        for film in films:
            record = self._begun(film, names[film])
            if not record.done:
                self._work(film, names[film], record, progress)
            records.append(record)
        self._write_lists(records)
        return records

    def _begun(self, film: Path, name: str) -> SourceRecord:
        """The record of a former run, if the film and the settings are the same; else a new one, and nothing of the old clips."""
        place = self._sources / f"{name}.json"
        fresh = SourceRecord(film.name, *_stamp(film), self._settings.key)
        try:
            record = SourceRecord(**json.loads(place.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            record = None
        if record is not None and (record.name, record.size, record.modified_ns, record.settings) == (
            fresh.name,
            fresh.size,
            fresh.modified_ns,
            fresh.settings,
        ):
            record.done = record.done and all(self._is_made(clip) for clip in record.clips)
            return record
        self._forget(name)
        _write(place, asdict(fresh))
        return fresh

    def _forget(self, name: str) -> None:
        """Deletes the clips of a film, the meta files first."""
        mine = re.compile(rf"clip\d{{3,}}_{re.escape(name)}\.(json|mp4|wav)")
        for folder in (self._meta, self._clips):
            for file in [file for file in folder.iterdir() if mine.fullmatch(file.name)]:
                file.unlink()

    def _is_made(self, clip: str) -> bool:
        files = (self._meta / f"{clip}.json", self._clips / f"{clip}.mp4", self._clips / f"{clip}.wav")
        return all(file.is_file() for file in files)

    def _work(self, film: Path, name: str, record: SourceRecord, progress: Callable[[int], object]) -> None:
        """Makes the clips of a film that are not there yet, and fills its record."""
        record.clips, record.left_out, record.broken = [], {}, None
        size = self._settings.clip_s
        try:
            stated_seconds(film)  # what is no film is not called a sound that cannot be read
            voice = _voice(film)
            frames = _counted(frames_at_25(film), progress)
            for number, first in enumerate(frames):
                clip = f"clip{number:03d}_{name}"
                said = voice[number * size * FEATURE_RATE : (number + 1) * size * FEATURE_RATE]
                reason = self._clip(clip, first, islice(frames, size * FPS - 1), said)
                if reason is None:
                    record.clips.append(clip)
                else:
                    record.left_out[clip] = reason
        except (VideoUnreadable, AudioUnreadable) as error:
            self._forget(name)
            record.broken, record.clips, record.left_out = str(error), [], {}
        record.done = True
        _write(self._sources / f"{name}.json", asdict(record))

    def _clip(self, clip: str, first: Pixels, frames: Iterator[Pixels], voice: Pcm) -> str | None:
        """Makes one clip of its first frame and the others; why it is left out, or None."""
        faces = FaceClip(self._net, self._settings.least_px)
        target = self._clips / f"{clip}.mp4"
        if self._is_made(clip):  # by a run that was killed later on
            for _ in frames:
                pass
            return None
        with ClipWriter(target, first.shape, voice) as writer:
            for frame in chain([first], frames):
                writer.push(frame)
                faces.push(frame)
            reason = faces.verdict()
            if reason is None and writer.frames < _LEAST_FRAMES:
                reason = f"it has {writer.frames} frames only"
            if reason is not None:
                return reason
            writer.finish()
        height, width = (side // 2 * 2 for side in first.shape[:2])
        x0, y0, x1, y1 = faces.boxes[0]
        meta = {
            "mp4_path": str(target),
            "wav_path": str(target.with_suffix(".wav")),
            "video_size": [height, width],
            "face_size": [y1 - y0, x1 - x0],
            "frames": writer.frames,
            "face_list": faces.boxes,
            "landmark_list": faces.landmarks,
            "isvalid": True,
        }
        _write(self._meta / f"{clip}.json", meta)
        return None

    def _write_lists(self, records: list[SourceRecord]) -> None:
        """Films, not clips, are divided, so that no film is in both lists; which ones depends on their names alone."""
        usable = [record for record in records if record.clips]
        shuffled = sorted(usable, key=lambda record: hashlib.sha256(record.name.encode()).hexdigest())
        share = self._settings.validation
        count = min(len(usable) - 1, max(1, round(share * len(usable)))) if share > 0 and len(usable) > 1 else 0
        chosen = {record.name for record in shuffled[:count]}
        for file, wanted in (("train.txt", False), ("val.txt", True)):
            clips = [f"{clip}.json" for record in usable if (record.name in chosen) is wanted for clip in record.clips]
            _write_text(self._out / file, "\n".join([HEADER, *clips]) + "\n")
        left = [f"{clip}\t{reason}" for record in records for clip, reason in record.left_out.items()]
        left += [f"{record.name}\t{record.broken}" for record in records if record.broken is not None]
        _write_text(self._out / "left_out.txt", "".join(f"{line}\n" for line in left))


def films_of(folder: Path) -> list[Path]:
    """The films of a folder and of those below it, by name. Raises `OSError`."""
    os.scandir(folder).close()
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in FILMS and path.is_file())


def clip_names(films: list[Path]) -> dict[Path, str]:
    """A name for each film's clips: letters, digits, `-` and `_` alone, since the trainer's lists are split at spaces."""
    names: dict[Path, str] = {}
    for film in films:
        plain = re.sub(r"[^A-Za-z0-9_-]+", "_", film.stem).strip("_") or "film"
        if plain in names.values():
            plain = f"{plain}_{hashlib.sha256(str(film).encode()).hexdigest()[:8]}"
        names[film] = plain
    return names


def _voice(film: Path) -> Pcm:
    """The film's sound from its first frame on, int16 `[n]` at 16 kHz."""
    sound = AudioFile.open(film)
    voice = mono(sound, FEATURE_RATE)
    lead = round((begins_at(film) - sound.start_s) * FEATURE_RATE)
    return voice[lead:] if lead >= 0 else np.concatenate([np.zeros(-lead, np.int16), voice])


def _stamp(film: Path) -> tuple[int, int]:
    state = film.stat()
    return state.st_size, state.st_mtime_ns


def _counted(frames: Iterator[Pixels], progress: Callable[[int], object]) -> Iterator[Pixels]:
    for frame in frames:
        progress(1)
        yield frame


def _write(path: Path, fields: dict[str, Any]) -> None:
    _write_text(path, json.dumps(fields))


def _write_text(path: Path, text: str) -> None:
    """Whole or not at all, whenever the process is killed."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, "utf-8")
    part.replace(path)
