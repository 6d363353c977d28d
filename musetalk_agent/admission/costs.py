"""The estimated cost of a session before it is measured: cores by frame size and engine, and bytes of memory.

Cores are those of docs/reference/performance.md ("Codecs and pacing", "What a session costs"), measured with the demo's face, all
speaking, on two cores of an AMD EPYC. A line through 512×512 and 1280×720 gives the encoder's other sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

from musetalk_agent.protocol.http import AgentStartRequest, VideoCodec

USUAL_WIDTH, USUAL_HEIGHT = 1280, 720
"""Of a session whose size is left to its clip: no clip makes it larger."""
_FPS = 25
_ROOM = 0.045
"""Of the SDK: connection, network, frames handed over."""
_VOICE_AND_CLOCK = 0.05
"""The audio's encoder, and the event loop for one session."""
_PER_PIXEL = {VideoCodec.VP8: 3.4e-7, VideoCodec.H264: 1.9e-7}
"""Of the encoder at 25 frames a second: 0.09 and 0.05 at 512×512, 0.31 and 0.175 at 1280×720."""
_SIMULCAST = 1.4
"""Of one size: 1.3 with VP8 and 1.5 to 1.7 with H.264."""
_ENGINES = {"warp": 0.2, "pattern": 0.02}
_OTHER_ENGINE = 0.05
"""Features, patches and composition where a card makes the mouths."""
_LIVING_PER_PIXEL = 3e-7
"""Of a still picture's head, which is moved in every frame: 0.05 to 0.06 at 512×512, and 0.02 for an encoder that gets a picture of
which all moves."""
IDLE_SHARE = 0.5
"""What a session that does not speak costs by what it costs when it does: 0.16 to 0.21 of 0.34 to 0.48."""
_OWN_BYTES = 24 << 20
_FRAMES_HELD = 24
"""Frames of a session in memory: rendered ahead, in the encoder, and the idle clip's next ones."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a session asks of the machine: frames of `width` × `height` pixels, `fps` a second, made by `engine` and encoded by each
    of `codecs` (none: nothing is published). `living`: of a still picture, whose head is moved."""

    engine: str
    width: int = USUAL_WIDTH
    height: int = USUAL_HEIGHT
    fps: int = _FPS
    codecs: tuple[VideoCodec, ...] = (VideoCodec.VP8,)
    simulcast: bool = False
    living: bool = False

    @property
    def cores_unwatched(self) -> float:
        """While it is heard and no viewer subscribes to its video, which is then neither made nor encoded."""
        return min(self.cores, _VOICE_AND_CLOCK + _ROOM)

    @property
    def cores(self) -> float:
        """While it speaks, on the machine of the figures."""
        rate, pixels = self.fps / _FPS, self.width * self.height
        several = _SIMULCAST if self.simulcast else 1.0
        encoders = sum(_ROOM + rate * several * _PER_PIXEL[codec] * pixels for codec in self.codecs)
        frames = _ENGINES.get(self.engine, _OTHER_ENGINE) + (_LIVING_PER_PIXEL * pixels if self.living else 0.0)
        return _VOICE_AND_CLOCK + rate * frames + encoders

    @property
    def memory(self) -> int:
        """Bytes."""
        return _OWN_BYTES + _FRAMES_HELD * self.width * self.height * 3 // 2


def demand_of(request: AgentStartRequest, engine: str) -> Demand:
    """Of a session that is not there yet: a size that is left to the clip is taken for the largest, and the clip for one that moves
    by itself."""
    picture, codecs = request.picture, list[VideoCodec]()
    if request.connect_livekit:
        codecs.append(request.video_codec.chosen)
    if request.rtmp is not None and (request.rtmp.beside or not request.connect_livekit):
        codecs.append(VideoCodec.H264)
    return Demand(
        engine,
        picture.width or USUAL_WIDTH,
        picture.height or USUAL_HEIGHT,
        picture.fps,
        tuple(codecs),
        request.simulcast and request.connect_livekit,
    )
