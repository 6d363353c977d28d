"""Faces of sessions are restored while there is time, and left alone where there is none, or where the network fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.engines.musetalk.picture import live_restoration as live_restoration_module
from musetalk_agent.engines.musetalk.picture.live_restoration import AVERAGED, LiveRestoration, live_restoration
from musetalk_agent.engines.musetalk.picture.mouth_picture import MouthPicture
from musetalk_agent.media_types import Pixels
from musetalk_agent.protocol.avatar_settings import AvatarSettings
from tests.bench.picture import PaintedClip
from tests.fakes.painted_mouth import Faults, speech
from tests.musetalk_agent.engines.musetalk.faces import bundle_of, moved


class Restorer:
    """Adds ten levels; takes as long as `seconds` says, by a clock that only it moves."""

    def __init__(self, seconds: float) -> None:
        self.takes, self.now, self.seen = seconds, 0.0, list[tuple[Pixels, np.ndarray]]()
        self.broken = False

    def seconds(self) -> float:
        return self.takes

    def restored(self, picture: Pixels, mesh: np.ndarray, strength: float) -> Pixels:
        self.now += self.takes
        self.seen.append((picture, mesh))
        if self.broken:
            raise RuntimeError("CUDA failure 2: out of memory")
        return np.asarray(picture + 10, np.uint8)


def live(restorer: Any) -> LiveRestoration:
    return LiveRestoration(restorer, clock=lambda: restorer.now)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle_of(tmp_path_factory.mktemp("bundle"), [moved(40 + k, 20, 0.75, (560, 500)) for k in range(4)])


@pytest.fixture(scope="module")
def clip(bundle: Bundle) -> PaintedClip:
    return PaintedClip(bundle, speech(12), Faults(trembling=0, noise=0))


def test_as_many_sessions_get_it_as_half_of_the_time_is_enough_for() -> None:
    restoration = live(Restorer(0.006))  # 25 frames a second of it are 0.15 of the time
    assert [restoration.take(25) for _ in range(4)] == [True, True, True, False]
    assert restoration.take(15) is False and restoration.note is None
    restoration.give_back(25)
    assert restoration.take(25) is True
    assert restoration.stats() == {"ms": 6.0, "busy": 0.45, "note": None}


def test_a_network_too_slow_for_any_session_is_reported_and_never_asked() -> None:
    slow = Restorer(0.05)
    restoration = live(slow)
    face = np.zeros((8, 8, 3), np.uint8)
    assert restoration.take(15) is False and "50 ms" in (restoration.note or "")
    assert restoration.restored(face, np.zeros((468, 2))) is face and slow.seen == []


def test_it_ends_for_all_when_faces_take_twice_as_long_or_the_network_fails(caplog: pytest.LogCaptureFixture) -> None:
    face, mesh = np.zeros((8, 8, 3), np.uint8), np.zeros((468, 2))
    restorer = Restorer(0.004)
    restoration = live(restorer)
    restorer.takes = 0.02
    restored = 0
    while restoration.note is None and restored < 10 * AVERAGED:
        assert restoration.restored(face, mesh).max() == 10
        restored += 1
    assert 5 < restored < AVERAGED and "4 at first" in (restoration.note or "")
    failing = Restorer(0.004)
    restoration = live(failing)
    failing.broken = True
    assert restoration.restored(face, mesh) is face and "out of memory" in (restoration.note or "")
    assert restoration.restored(face, mesh) is face and len(failing.seen) == 1
    assert [record.message for record in caplog.records] == ["faces are no longer restored"] * 2


def test_without_weights_the_note_names_the_command_and_no_session_gets_it(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    restoration = live_restoration(tmp_path)
    assert "fetch-models restore" in (restoration.note or "") and restoration.take(25) is False


def test_a_network_that_cannot_be_run_at_the_start_is_a_note_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def __init__(self, models: object) -> None:
            pass

        def seconds(self) -> float:
            raise RuntimeError("out of memory")

    monkeypatch.setattr(live_restoration_module, "FaceRestorer", Full)
    restoration = live_restoration(tmp_path)
    assert restoration.note == "the network does not run: out of memory" and restoration.take(25) is False


def test_of_the_whole_restored_face_the_patch_is_kept(clip: PaintedClip, bundle: Bundle) -> None:
    settings = AvatarSettings(smoothing="off")
    restorer = Restorer(0.001)
    with_it, without = (MouthPicture(clip.artefacts, bundle, settings) for _ in range(2))
    with_it.restoration = live(restorer)
    for idle_index, painted in zip(clip.indices, clip.faces, strict=True):
        made = with_it.patch(idle_index, painted.copy(), 1.0, speaking=True)
        plain = without.patch(idle_index, painted.copy(), 1.0, speaking=True)
        assert made.box == plain.box and np.array_equal(made.mask, plain.mask)
        whole = np.asarray(plain.mask) == 255
        assert np.array_equal(made.pixels[whole], plain.pixels[whole] + 10), (
            "all of the patch, and nothing else of the face"
        )
        window, mesh = bundle.box(idle_index), restorer.seen[-1][1]
        assert np.allclose(mesh + np.array((window.x0, window.y0)), bundle.landmarks[idle_index], atol=1e-3)
        shown, idle = restorer.seen[-1][0], np.asarray(bundle.faces[idle_index])
        assert shown.shape == idle.shape and np.array_equal(shown[0], idle[0]) and not np.array_equal(shown, idle)


def test_idle_mouths_and_a_session_without_a_place_are_as_ever(clip: PaintedClip, bundle: Bundle) -> None:
    restorer = Restorer(0.001)
    picture = MouthPicture(clip.artefacts, bundle, AvatarSettings())
    picture.restoration = live(restorer)
    other = MouthPicture(clip.artefacts, bundle, AvatarSettings())
    made, plain = (p.patch(0, clip.faces[0].copy(), 1.0, speaking=False) for p in (picture, other))
    assert np.array_equal(made.pixels, plain.pixels) and restorer.seen == []
