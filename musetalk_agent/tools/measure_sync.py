"""`musetalk-agent measure-sync VIDEO`: how much later the lips of a film move than its voice says, in milliseconds.

The opening of the mouth is measured in the pictures and predicted from the sound; both are compared at every lag. Loudness
would not do: it leads and trails the lips by tens of milliseconds, depending on the sounds. Where SyncNet's weights are, its
figures are told, too.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from musetalk_agent.avatars.face import FaceNet
from musetalk_agent.errors import AgentError
from musetalk_agent.features.visemes import VisemeFeatures
from musetalk_agent.media import FEATURE_RATE
from musetalk_agent.tools import lse
from musetalk_agent.tools.lag import LEAST_S, Lag, lag_of
from musetalk_agent.tools.mouth_tracks import FilmUnreadable, MouthTrack, find_faces, heard_mouth, seen_mouth
from musetalk_agent.tools.offline import offline_settings
from musetalk_agent.tools.sound import SoundFile, SoundUnreadable, mono
from musetalk_agent.weights import Manifest, ModelStore

LEAST_CONFIDENCE = 0.6
"""Of talkers that the network never saw, every answer above it was right within a frame; one stranger in a hundred passes it
(docs/tools.md)."""
_LEAST_SPEECH_S = 1.0
"""With less, 2 of 840 pieces of 3 s had a lag wrong by 220 ms at a confidence of 0.93 and 0.99 (docs/tools.md)."""
_OPEN = 0.012  # outer eye distances: a tenth of a full opening


@dataclass(frozen=True)
class Verdict:
    """What was measured, and `problem`: None, or one sentence that says why nothing can be told. `syncnet` is None without its
    weights, or where the film shows it too little."""

    lag: Lag | None
    problem: str | None
    syncnet: lse.LipSync | None = None

    def as_json(self) -> str:
        """`lag_ms` (null with a problem; positive when the lips are late), `correlation`, `confidence`; `lse_c`, `lse_d` and
        `syncnet_offset_ms` (positive when the lips are late) if SyncNet judged; `problem` if any."""
        lag = self.lag
        told: dict[str, float | str | None] = {
            "lag_ms": round(1000 * lag.lag_s, 1) if lag and not self.problem else None,
            "correlation": round(lag.correlation, 3) if lag else None,
            "confidence": round(lag.confidence, 3) if lag else None,
        }
        if self.syncnet is not None:
            told["lse_c"] = round(self.syncnet.confidence, 3)
            told["lse_d"] = round(self.syncnet.distance, 3)
            told["syncnet_offset_ms"] = self.syncnet.offset_ms
        return json.dumps(told if self.problem is None else {**told, "problem": self.problem})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("video", type=Path, metavar="VIDEO", help="a film of one talking face")
    parser.add_argument("--audio", type=Path, default=None, metavar="SOUND", help="its sound (default: the film's own)")
    parser.add_argument("--json", action="store_true", help="print JSON, also when nothing can be told")


def run(args: argparse.Namespace) -> int:
    """Runs the command: 0 measured, 1 when the film cannot be read or nothing can be told (a sentence says why)."""
    try:
        store = ModelStore(offline_settings().models_dir, Manifest.load())
        with tqdm(unit=" frames", desc="measure-sync", file=sys.stderr, leave=False) as bar:
            verdict = measure(args.video, args.audio, store, VisemeFeatures.load(), bar.update)
    except (FilmUnreadable, SoundUnreadable) as error:
        print(f"measure-sync: {error}", file=sys.stderr)
        return 1
    except AgentError as error:
        print(f"{error.code.value}: {error.detail}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if args.json:
        print(verdict.as_json())
    if verdict.problem is not None:
        print(f"measure-sync: {verdict.problem}", file=sys.stderr)
        return 1
    if not args.json and verdict.lag is not None:
        print(_sentence(verdict.lag))
        if verdict.syncnet is not None:
            print(_syncnet_sentence(verdict.syncnet))
    return 0


def measure(
    video: Path, audio: Path | None, store: ModelStore, features: VisemeFeatures, progress: Callable[[int], object]
) -> Verdict:
    """Measures one film against its own sound, or against `audio`, which then begins with its first picture.

    `progress` is called with 1 for every picture read; with SyncNet's weights every picture is read twice.

    Raises:
        FilmUnreadable, SoundUnreadable: a file cannot be used.
        WeightsMissing: the face networks are not there.
        WeightsInvalid: SyncNet's weights are there, but are something else.
    """
    sound = SoundFile.open(audio or video)
    faces = find_faces(video, FaceNet(store), lambda _: progress(1))
    start = sound.start_s if audio is None else float(faces.times[0])
    voice = mono(sound, FEATURE_RATE)
    seen, heard = seen_mouth(faces), heard_mouth(features, voice, start)
    lag = lag_of(seen, heard)
    path = lse.weights(store)
    syncnet = lse.judge(path, video, faces, voice, start, lambda _: progress(1)) if path else None
    return Verdict(lag, _problem(seen, heard, lag), syncnet)


def _problem(seen: MouthTrack, heard: MouthTrack, lag: Lag | None) -> str | None:
    missing = int(np.isnan(seen.aperture).sum())
    if 2 * missing > len(seen.times):
        return f"{missing} of {len(seen.times)} frames show no face; nothing can be told."
    speech = float((heard.aperture > _OPEN).mean()) * float(heard.times[-1] - heard.times[0])
    if speech < _LEAST_SPEECH_S:
        return (
            f"only {speech:.1f} s of open-mouthed speech are heard; {_LEAST_SPEECH_S:g} s are needed, ten are better."
        )
    if lag is None:
        return f"pictures of a face and sound overlap for less than {LEAST_S:g} s; ten are better."
    if lag.confidence < LEAST_CONFIDENCE:
        return (
            f"the lips do not follow this sound at any lag within half a second (correlation {lag.correlation:.2f}, "
            f"confidence {lag.confidence:.2f}, {LEAST_CONFIDENCE:g} needed): another voice, a turned face, or too short."
        )
    return None


def _sentence(lag: Lag) -> str:
    late = round(1000 * lag.lag_s)
    told = "the lips are in step" if late == 0 else f"the lips are {abs(late)} ms {'late' if late > 0 else 'early'}"
    return f"{told} (correlation {lag.correlation:.2f}, confidence {lag.confidence:.2f})"


def _syncnet_sentence(found: lse.LipSync) -> str:
    return f"SyncNet: LSE-C {found.confidence:.2f}, LSE-D {found.distance:.2f}, offset {found.offset_ms} ms"
