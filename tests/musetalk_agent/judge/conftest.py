"""A film of the demo avatar that speaks, and its frames: the good film that the tests make wrong."""

from __future__ import annotations

import argparse
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from musetalk_agent.agent_settings import offline_settings
from musetalk_agent.avatars.face import Points
from musetalk_agent.avatars.identity import PlainDescriber
from musetalk_agent.judge.film_judge import Judge
from musetalk_agent.judge.film_scan import FilmScan
from musetalk_agent.judge.following import FaceFollower
from musetalk_agent.measure.lip_measures import video_frames
from musetalk_agent.media_types import Pcm, Pixels
from musetalk_agent.tools import render_film
from musetalk_agent.weights import Manifest, ModelStore
from tests.musetalk_agent.measure.test_measure_sync import RATE, speech
from tests.musetalk_agent.tools.test_render_film import write_wav
from tests.once_a_run import once_a_run

SECONDS = 6
BEGIN_S = 1.2
"""Silence before the speech."""


@dataclass(frozen=True)
class GoodFilm:
    """The film, what was seen of it, and what the makers of wrong films need."""

    path: Path
    voice: Pcm
    frames: Pixels
    meshes: list[Points]
    seen: FilmScan


@pytest.fixture(scope="session")
def judge() -> Judge:
    """With the plain descriptor, whatever is installed."""
    whole = Judge.load(ModelStore(offline_settings().models_dir, Manifest.load()))
    return Judge(whole.net, whole.features, whole.network, PlainDescriber())


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory, judge: Judge) -> GoodFilm:
    """The demo avatar saying some sentences, by the warp engine, 320 pixels wide; made and looked at once a run."""
    voice = np.concatenate([np.zeros(int(BEGIN_S * RATE), np.int16), speech()])[: SECONDS * RATE]

    def make(folder: Path) -> None:
        film = render(folder, voice)
        follower = FaceFollower(judge.net)
        frames, meshes = [], []
        for _, frame in video_frames(film):
            [seen] = follower.push(frame)
            frames.append(frame)
            meshes.append(seen.face.points)
        (folder / "seen.pickle").write_bytes(pickle.dumps((np.stack(frames), meshes, judge.look(film))))

    folder = once_a_run(tmp_path_factory, "good-film", make)
    frames, meshes, seen = pickle.loads((folder / "seen.pickle").read_bytes())  # noqa: S301 - written above, in this run
    return GoodFilm(folder / "out.mp4", voice, frames, meshes, seen)


def render(folder: Path, voice: Pcm) -> Path:
    """`out.mp4` in the folder: the demo avatar that says int16 mono 16 kHz, by the warp engine, 320 pixels wide."""
    source = write_wav(folder / "in.wav", voice, RATE)
    parser = argparse.ArgumentParser()
    render_film.add_arguments(parser)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AVATAR_CACHE_DIR", str(folder / "cache"))
        argv = ["--avatar", "demo", "--audio", str(source), "-o", str(folder / "out.mp4"), "--engine", "warp"]
        assert render_film.run(parser.parse_args([*argv, "--width", "320", "--height", "320"])) == 0
    return folder / "out.mp4"
