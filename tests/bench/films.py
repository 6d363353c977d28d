"""Films of real faces by real weights: what MuseTalk makes of them, their lag, and a sheet of stills for eyes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import wave
from pathlib import Path

import av
import cv2
import numpy as np

from tests.bench.figures import Figure
from tests.bench.shop import NEEDS_CARD, Bench
from tests.bench.talkers import RATE, speech

SPOKEN_S = 10
STILLS = 8
STILL_HEIGHT = 240


async def films(bench: Bench) -> list[Figure]:
    """A film of each face of the folder, its `measure-sync` figures, and one contact sheet; beside the accepted rows.

    With weights of the small network a second is filmed, which proves the path and shows nothing.
    """
    name = "films of the faces given, contact sheet"
    if bench.faces is None:
        return [Figure(name, None, "films", note="no folder of faces was given (FACES=)")]
    if bench.device == "cpu" and not bench.tiny:
        return [Figure(name, None, "films", note=NEEDS_CARD)]
    faces = sorted(path for path in bench.faces.iterdir() if path.is_file() and not path.name.startswith("."))
    if not bench.tiny and (missing := _missing(bench.weights)):
        note = f"needs weights: {', '.join(missing)} is not in {bench.weights}; `musetalk-agent fetch-models musetalk`"
        return [Figure(name, None, "films", note=note)]
    bench.films.mkdir(parents=True, exist_ok=True)
    sound = bench.films / "speech.wav"
    _write(sound, 1 if bench.tiny else SPOKEN_S)
    found, rows = [], []
    for face in faces:
        film = bench.films / f"{face.stem}.mp4"
        found.append(await asyncio.to_thread(_filmed, bench, face, sound, film))
        if film.exists():
            rows.append(await asyncio.to_thread(_stills, film))
    sheet = bench.films / "contact-sheet.jpg"
    if rows:
        width = max(row.shape[1] for row in rows)
        cv2.imwrite(str(sheet), np.vstack([cv2.copyMakeBorder(r, 0, 0, 0, width - r.shape[1], 0) for r in rows]))
    return [*found, Figure(name, len(rows), "films", len(faces), at_least=True, note=str(sheet))]


def _filmed(bench: Bench, face: Path, sound: Path, film: Path) -> Figure:
    environment = os.environ | {
        "MODELS_DIR": str(bench.models if bench.tiny else bench.weights),
        "MUSETALK_DEVICE": bench.device,
        "MUSETALK_PROFILE": bench.profile,
        "AVATAR_CACHE_DIR": str(bench.folder / "films"),
    }
    name, agent = f"film of {face.name}: lag of the lips", [sys.executable, "-m", "musetalk_agent"]
    command = [*agent, "render", "--avatar", str(face), "--audio", str(sound), "-o", str(film), "--engine", "musetalk"]
    film.unlink(missing_ok=True)
    made = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if made.returncode:
        return Figure(name, None, "ms", note=f"failed: {made.stderr.strip()[-200:]}")
    measured = subprocess.run(
        [*agent, "measure-sync", str(film), "--json"], capture_output=True, text=True, timeout=300
    )
    try:
        sync = json.loads(measured.stdout)
    except ValueError:
        return Figure(name, None, "ms", note=f"failed: {measured.stderr.strip()[-200:]}")
    lag = sync.pop("lag_ms")
    return Figure(
        name, lag, "ms", note=f"{json.dumps(sync, ensure_ascii=False)}; {made.stdout.strip().rpartition(os.sep)[2]}"
    )


def _missing(weights: Path) -> list[str]:
    from musetalk_agent.engines.musetalk.weights_files import musetalk_state
    from musetalk_agent.weights import Manifest, ModelStore

    return musetalk_state(ModelStore(weights, Manifest.load()))


def _write(path: Path, seconds: int) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(speech(seconds)[: seconds * RATE].astype("<i2").tobytes())


def _stills(film: Path) -> np.ndarray:
    with av.open(str(film)) as file:
        pictures = [frame.to_ndarray(format="bgr24") for frame in file.decode(video=0)]
    chosen = [pictures[at] for at in np.linspace(0, len(pictures) - 1, STILLS).astype(int)]
    scale = STILL_HEIGHT / chosen[0].shape[0]
    return np.hstack([cv2.resize(picture, None, fx=scale, fy=scale) for picture in chosen])
