"""The judge's table: real clips, and clips made wrong on purpose, and what is named of each.

`python -m tests.bench.judge_table FOLDER [--plain] [--lag-only]`: FOLDER holds clips of one talker each; a clip's talker is its
folder's name, or its own name where it lies in FOLDER itself. A wrong clip is judged with the clip that it was made of as
its reference, and without any; a real one with another clip of its talker, and without any. `--plain` judges identity without the
network.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from musetalk_agent.agent_settings import offline_settings
from musetalk_agent.avatars.face import Points
from musetalk_agent.avatars.identity import PlainDescriber
from musetalk_agent.judge.film_judge import Judge
from musetalk_agent.judge.film_report import FilmReport
from musetalk_agent.judge.film_scan import FilmScan
from musetalk_agent.judge.following import FaceFollower
from musetalk_agent.measure.lip_measures import video_frames
from musetalk_agent.media_types import Pcm, Pixels
from musetalk_agent.tools.audio_file import AudioFile, mono
from musetalk_agent.weights import Manifest, ModelStore
from tests.bench import judge_clips

SHIFTS_MS = (80, -80, 120, -120, 200, -200, 400, -400)
EARLY = frozenset({"s34/bbaczs", "s33/bbac3a"})
"""Real clips whose own lips are early by a quarter of a second (docs/reference/tools.md): neither a real nor a wrong one."""


@dataclass
class Clip:
    """A real clip, in memory."""

    path: Path
    talker: str
    frames: Pixels
    meshes: list[Points]
    voice: Pcm
    seen: FilmScan

    @property
    def name(self) -> str:
        """For the table's notes."""
        return f"{self.talker}/{self.path.stem}"


def read(path: Path, folder: Path, judge: Judge) -> Clip:
    """Reads a clip; each of its frames must show a face."""
    follower = FaceFollower(judge.net)
    frames, meshes = [], []
    for _, frame in video_frames(path):
        seen = follower.push(frame)
        if seen:
            frames.append(frame)
            meshes.append(seen[0].face.points)
    talker = path.stem if path.parent == folder else path.parent.name
    return Clip(path, talker, np.stack(frames), meshes, mono(AudioFile.open(path), 16_000), judge.look(path))


def wrong_pictures(clip: Clip, other: Clip) -> Iterator[tuple[str, str, Pixels]]:
    """What was done, the measure that must name it, and the pictures."""
    frames, meshes = clip.frames, clip.meshes
    yield "frozen mouth", "frozen", judge_clips.frozen(frames, meshes)
    yield "blurred mouth", "sharpness", judge_clips.blurred(frames, meshes)
    yield "red tint, 14 levels", "colour_step", judge_clips.tinted(frames, meshes, (0, 0, 14))
    yield "blue tint, 14 levels", "colour_step", judge_clips.tinted(frames, meshes, (14, 0, 0))
    yield "darker by 14 levels", "colour_step", judge_clips.tinted(frames, meshes, (-14, -14, -14))
    yield "flicker of 4 levels", "flicker", judge_clips.flickering(frames, meshes)
    yield "edge of 4 levels", "seam", judge_clips.edged(frames, meshes)
    yield "black frames", "black", judge_clips.blackened(frames)
    yield "face swapped on the way", "identity", judge_clips.swapped(frames, meshes, other.frames, other.meshes)


class Table:
    """Counts, by what was done and whether there was a reference."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, bool], list[tuple[bool, str]]] = {}

    def add(self, kind: str, referenced: bool, expected: list[str], report: FilmReport, name: str) -> None:
        """Takes one verdict."""
        right = report.faults == expected
        note = "" if right else f"{name}: {', '.join(report.faults) or 'nothing'}"
        self._rows.setdefault((kind, referenced), []).append((right, note))

    def lines(self) -> Iterator[str]:
        """Markdown."""
        yield "| made | with its reference | without | wrong, with the reference |"
        yield "|---|---|---|---|"
        for kind in dict.fromkeys(kind for kind, _ in self._rows):
            both = [self._rows.get((kind, referenced), []) for referenced in (True, False)]
            cells = [f"{sum(right for right, _ in rows)} of {len(rows)}" if rows else "–" for rows in both]
            yield f"| {kind} | {cells[0]} | {cells[1]} | {'; '.join(note for _, note in both[0] if note)} |"


def fill(table: Table, judge: Judge, clips: list[Clip], folder: Path, *, lag_only: bool) -> None:
    """Judges everything; prints each line that is not as it should be."""
    film, sound = folder / "wrong.mp4", folder / "wrong.wav"
    for index, clip in enumerate(clips):
        mates = [one for one in clips if one.talker == clip.talker and one is not clip]
        other = next(one for one in [*clips[index:], *clips] if one.talker != clip.talker)
        table.add("nothing", False, [], judge.decide(clip.path, clip.seen), clip.name)
        if mates:
            report = judge.decide(clip.path, clip.seen, reference=mates[0].seen)
            table.add("nothing", True, [], report, clip.name)
        for late_ms in SHIFTS_MS:
            write(sound, judge_clips.shifted(clip.voice, late_ms))
            kind = f"lips {abs(late_ms)} ms {'late' if late_ms > 0 else 'early'}"
            both(table, judge, kind, "lag_ms", clip, clip.path, clip.seen, sound)
        write(sound, other.voice)
        both(table, judge, "another talker's speech", "lip_correlation", clip, clip.path, clip.seen, sound)
        report = judge.decide(clip.path, clip.seen, reference=other.seen)
        table.add("another person than the reference", True, ["identity"], report, clip.name)
        for kind, measure, pictures in [] if lag_only else wrong_pictures(clip, other):
            judge_clips.write_film(film, pictures, clip.voice)
            both(table, judge, kind, measure, clip, film, judge.look(film), None)
        print(f"{index + 1} of {len(clips)}: {clip.name}", file=sys.stderr, flush=True)


def both(
    table: Table, judge: Judge, kind: str, measure: str, clip: Clip, film: Path, seen: FilmScan, sound: Path | None
) -> None:
    """With the clip as the reference, and without one."""
    for reference in (clip.seen, None):
        report = judge.decide(film, seen, reference=reference, audio=sound)
        table.add(kind, reference is not None, [measure], report, clip.name)
        if report.faults != [measure] and reference is not None:
            values = {name: m.value for face in report.faces for name, m in face.measures.items()}
            print(f"{clip.name}: {kind}: {report.faults} {values}", file=sys.stderr, flush=True)


def write(path: Path, voice: Pcm) -> None:
    """A WAV of 16 kHz."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(voice.astype("<i2").tobytes())


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--lag-only", action="store_true")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    judge = Judge.load(ModelStore(offline_settings().models_dir, Manifest.load()))
    if options.plain:
        judge = Judge(judge.net, judge.features, judge.network, PlainDescriber())
    paths = sorted(path for path in options.folder.rglob("*") if path.suffix in {".mpg", ".mp4", ".webm", ".mov"})
    clips = [read(path, options.folder, judge) for path in paths]
    clips = [clip for clip in clips if clip.name not in EARLY]
    table = Table()
    with tempfile.TemporaryDirectory() as folder:
        fill(table, judge, clips, Path(folder), lag_only=options.lag_only)
    print("\n".join(table.lines()))


if __name__ == "__main__":
    main()
