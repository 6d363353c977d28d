"""How good the pictures may be: steps down while the way out or the encoder cannot keep up, and back when they can. No I/O.

First the bitrate goes down, then the size, then the pictures a second. For the room the SDK's own bandwidth estimation sets the
bitrate, and libvpx follows it at once; there is no way to set it from here, so those steps are only told. A stream cannot change
its size on the way, so that its steps of size are steps of bitrate.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from musetalk_agent.publishers.transport import Reading

DOWN_S = 2.0
UP_S = 8.0
_MOST_UP_S = 64.0
_RELAPSE_S = 10.0  # bad again so soon after a step up: the next one waits twice as long
_LAG = 0.8  # an encoder that needs more of a picture's time than this is about to fall behind
_LOSS_BAD, _LOSS_FAIR = 0.15, 0.08
_SHORT, _ENOUGH = 0.5, 0.8  # of the bitrate that a step wants
_QUEUE_BAD_S, _QUEUE_FAIR_S = 0.4, 0.2


@dataclass(frozen=True, slots=True)
class Quality:
    """One step: `bitrate` and `scale` (of width and height) as shares of the full ones, and every how many pictures one goes."""

    bitrate: float = 1.0
    scale: float = 1.0
    fps_divisor: int = 1

    @property
    def share(self) -> float:
        """Of the full bitrate, what this needs."""
        return self.bitrate * self.scale**2 / self.fps_divisor


STEPS = (
    Quality(),
    Quality(0.6),
    Quality(0.35),
    Quality(0.35, 0.75),
    Quality(0.35, 0.5),
    Quality(0.35, 0.5, 2),
)


class Health(Enum):
    """Of the way out. `GOOD`: a step up would fit."""

    BAD = auto()
    FAIR = auto()
    GOOD = auto()


class Adaptation:
    """Decides on the step, with hysteresis: one down for every 2 s that are bad, one up for every 8 s that are good throughout.

    Args:
        now: monotonic seconds.
    """

    def __init__(self, now: float) -> None:
        self.step = 0
        self._since = now  # this health, or the last step
        self._health = Health.GOOD
        self._up_s = UP_S
        self._raised_at = float("-inf")

    @property
    def quality(self) -> Quality:
        """What the step means."""
        return STEPS[self.step]

    def note(self, health: Health, now: float) -> bool:
        """Takes the present health; returns whether the step has changed."""
        if health is not self._health:
            self._health, self._since = health, now
        elapsed = now - self._since
        if health is Health.BAD and elapsed >= DOWN_S and self.step < len(STEPS) - 1:
            relapse = now - self._raised_at < _RELAPSE_S
            self._up_s = min(_MOST_UP_S, 2 * self._up_s) if relapse else self._up_s
            self.step += 1
        elif health is Health.GOOD and self.step and elapsed >= self._up_s:
            self.step -= 1
            self._raised_at = now
            self._up_s = self._up_s if self.step else UP_S
        else:
            return False
        self._since = now
        return True


def judge_room(before: Reading, after: Reading, wanted: int, fps: int, step: int) -> Health:
    """Health of a room, from two readings some time apart.

    Args:
        wanted: bit/s at full quality.
        fps: pictures a second at full quality.
    """
    encoded = after.frames_encoded - before.frames_encoded
    lags = encoded > 0 and (after.encode_s - before.encode_s) / encoded > _LAG * STEPS[step].fps_divisor / fps
    available = after.available_bitrate
    short = after.limited and available < _SHORT * wanted * STEPS[step].share
    if lags or short or after.fraction_lost > _LOSS_BAD:
        return Health.BAD
    fits = available >= _ENOUGH * wanted * STEPS[max(0, step - 1)].share
    return Health.GOOD if fits and after.fraction_lost <= _LOSS_FAIR else Health.FAIR


def judge_stream(queue_s: float, dropped: int) -> Health:
    """Health of a stream: what waits in it, and how many pictures were dropped since the last look."""
    if dropped or queue_s > _QUEUE_BAD_S:
        return Health.BAD
    return Health.FAIR if queue_s > _QUEUE_FAIR_S else Health.GOOD
