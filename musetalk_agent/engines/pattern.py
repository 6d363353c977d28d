"""The engine for measuring a deployment: a block that is white exactly while its audio is loud. Needs no face and no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.engines.interface import CompletedBatch, Engine, EngineSession, PatchRequest
from musetalk_agent.features.extractor import FeatureExtractor, FeatureStream, VoiceActivityDetector
from musetalk_agent.features.speech_detector import LevelDetector
from musetalk_agent.media_types import Box, Cue, Feature, Patch, Pcm, Pixels, frame_start, frames_begun
from musetalk_agent.protocol.avatar_settings import DEFAULTS, AvatarSettings
from musetalk_agent.protocol.http import AvatarReport

THRESHOLD = 0.05
"""RMS, as a share of full scale, above which the block is white (design, "The `pattern` engine")."""
_GREY, _WHITE, _BLACK = 127, 255, 0


class PatternStream:
    """One value per frame: the RMS of its own samples, 0 … 1."""

    def __init__(self, fps: int) -> None:
        self._fps = fps
        self.reset()

    def reset(self) -> None:
        """Starts again at frame 0."""
        self._samples = np.zeros(0, np.int16)
        self._first = 0  # sample index of _samples[0]
        self._frame = 0

    def cue(self, cues: Sequence[Cue]) -> None:
        """Does nothing: the pattern shows loudness, not words."""

    def push(self, samples: Pcm) -> list[Feature]:
        """RMS of the frames that are complete."""
        self._samples = np.concatenate([self._samples, samples])
        return self._take(padded=False)

    def flush(self) -> list[Feature]:
        """RMS of a last partial frame, padded with silence."""
        return self._take(padded=True)

    def _take(self, *, padded: bool) -> list[Feature]:
        ready: list[Feature] = []
        received = self._first + len(self._samples)
        while self._frame < frames_begun(received, self._fps):
            start, end = frame_start(self._frame, self._fps), frame_start(self._frame + 1, self._fps)
            if end > received and not padded:
                break
            part = self._samples[start - self._first : end - self._first].astype(np.float64) / 32768
            ready.append(np.array([np.sqrt(np.sum(part**2) / (end - start))], np.float32))
            self._frame += 1
        keep = frame_start(self._frame, self._fps)
        self._samples = self._samples[keep - self._first :]
        self._first = min(keep, received)
        return ready


class PatternFeatures:
    """Makes RMS streams; reads nothing beyond the frame."""

    lookahead_ms = 0
    quick = True

    def detector(self) -> LevelDetector:
        """Loudness, since that is what the pattern shows: tones and noise too."""
        return LevelDetector()

    def stream(self, fps: int) -> PatternStream:
        """A new stream."""
        return PatternStream(fps)

    def begin(self, fps: int) -> tuple[LevelDetector, PatternStream]:
        """A detector and a stream of one segment."""
        return self.detector(), self.stream(fps)

    def share(self, detector: VoiceActivityDetector, stream: FeatureStream) -> None:
        """Does nothing: they have no work in common."""


class PatternSession(EngineSession):
    """The two patches of a frame size."""

    rest: Feature = np.zeros(1, np.float32)

    def __init__(self, bundle: Bundle) -> None:
        box = bundle.box(0)
        self.white = Patch(box, np.full((box.height, box.width, 3), _WHITE, np.uint8))
        self.black = Patch(box, np.full((box.height, box.width, 3), _BLACK, np.uint8))

    def fade_to_silence(self, feature: Feature, amount: float) -> Feature:
        """Scales the loudness down."""
        return (feature * (1 - amount)).astype(np.float32)


class PatternEngine(Engine):
    """White block or black block."""

    name = "pattern"
    device = "cpu"
    fingerprint = "pattern-1"
    batch_sizes = (8,)
    needs_face = False
    fade_out_frames = 0
    features: FeatureExtractor = PatternFeatures()

    def open(self, bundle: Bundle, settings: AvatarSettings = DEFAULTS) -> PatternSession:
        """Readies the two patches."""
        return PatternSession(bundle)

    def launch(self, batch: Sequence[PatchRequest]) -> CompletedBatch:
        """Draws the patches and returns them completed."""
        return CompletedBatch(self.infer(batch))

    def infer(self, batch: Sequence[PatchRequest]) -> list[Patch | None]:
        """White above the threshold, else black."""
        patches: list[Patch | None] = []
        for request in batch:
            session = request.session
            assert isinstance(session, PatternSession)
            patches.append(session.white if request.feature[0] > np.float32(THRESHOLD) else session.black)
        return patches


def pattern_bundle(width: int, height: int, fps: int) -> Bundle:
    """The pattern's own idle clip: one mid-grey frame whose central quarter (half the width, half the height) is black."""
    image = np.full((height, width, 3), _GREY, np.uint8)
    box = Box(width // 4, height // 4, width // 4 + width // 2, height // 4 + height // 2).even(width, height)
    image[box.y0 : box.y1, box.x0 : box.x1] = _BLACK
    planes: Pixels = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420), np.uint8)
    report = AvatarReport(avatar_id="pattern", frames=1, width=width, height=height, fps=fps, cached=True, still=True)
    return Bundle(
        path=Path("pattern"),
        width=width,
        height=height,
        fps=fps,
        frames=planes[None],
        landmarks=np.zeros((1, 468, 2), np.float32),
        boxes=np.array([[box.x0, box.y0, box.x1, box.y1]], np.int32),
        faces=image[None, box.y0 : box.y1, box.x0 : box.x1],
        report=report,
    )
