"""The head of a still picture moves on through speech, pauses and clears: none jumps, and a pose is shown twice only at rest."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.compose.face_warp import FaceWarp
from musetalk_agent.compose.head_motion import Pose
from musetalk_agent.engines.pattern import pattern_bundle
from musetalk_agent.media_types import VideoFrame
from tests.musetalk_agent.stand import stand, tone

BYTES = len(Pose()) * 8


@pytest.fixture
def picture(tmp_path: Path) -> Bundle:
    """A still picture of an egg with five closures of its eyes, as far as the head's motion needs one."""
    around = np.linspace(0, 2 * np.pi, 468)
    egg = np.stack([32 + 12 * np.cos(around), 32 + 16 * np.sin(around)], 1).astype(np.float32)
    five = {n: np.repeat(getattr(pattern_bundle(64, 64, 25), n), 5, 0) for n in ("frames", "boxes", "faces")}
    relief = np.full(468, 4, np.float32)
    landmarks = np.repeat(egg[None], 5, 0)
    np.save(tmp_path / "landmarks.npy", landmarks)
    np.save(tmp_path / "relief.npy", relief)
    return replace(pattern_bundle(64, 64, 25), path=tmp_path, landmarks=landmarks, relief=relief, **five)


@pytest.fixture
def poses(monkeypatch: pytest.MonkeyPatch) -> list[Pose]:
    """What was shown: the warp writes a frame's pose into its pixels, and `seen` reads it there."""

    def write(self: FaceWarp, frame: VideoFrame, pose: Pose, *_: object) -> VideoFrame:
        planes = np.array(frame.i420)
        planes[:BYTES] = np.array(pose).view(np.uint8)
        return replace(frame, i420=planes)

    monkeypatch.setattr(FaceWarp, "moved", write)
    return []


async def shown(executor: ThreadPoolExecutor, picture: Bundle, poses: list[Pose]) -> list[int]:
    """Two seconds of rest, speech that is cleared, speech to its end, rest; returns the frames' eyes."""

    def see(frame: VideoFrame) -> None:
        poses.append(Pose(*np.frombuffer(frame.i420[:BYTES].tobytes(), np.float64)))

    async with stand(executor, bundle=picture, see=see) as made:
        await made.pass_time(2)
        for cleared in (True, False):
            made.pipeline.begin(1 + (not cleared), 16_000)
            made.pipeline.push(np.concatenate([tone(0.6), np.zeros(3200, np.int16), tone(0.6)]))
            made.pipeline.end()
            await made.pass_time(0.8 if cleared else 3)
            if cleared:
                made.pipeline.clear()
                await made.pass_time(1)
        assert made.pipeline.player.report()["idle_late"] == 0 and made.pipeline.player.report()["spoken"] > 40
        return made.idle_indices


async def test_it_moves_in_every_frame_that_speaks_in_every_second_at_rest_and_never_jumps(
    executor: ThreadPoolExecutor, picture: Bundle, poses: list[Pose]
) -> None:
    eyes = await shown(executor, picture, poses)
    assert len(poses) > 150 and set(eyes) > {0, 4}
    head = np.array(poses)[:, :3]
    steps = np.abs(np.diff(head, axis=0)).max(1)
    assert np.degrees(steps.max()) < 2.5
    still = steps == 0
    assert 15 <= still[2:45].sum() <= 22, "a pose at rest is shown twice"
    assert not (still[3:45] & still[2:44]).any(), "and not three times"
    assert still[60:110].sum() <= 4, "a frame may be held where speech begins"


async def test_a_session_moves_the_same_way_again(
    executor: ThreadPoolExecutor, picture: Bundle, poses: list[Pose]
) -> None:
    await shown(executor, picture, poses)
    once = poses.copy()
    poses.clear()
    await shown(executor, picture, poses)
    assert poses == once
