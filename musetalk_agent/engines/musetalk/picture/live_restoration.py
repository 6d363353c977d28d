"""Restores the faces that sessions speak with, while there is time for it: one network for all sessions of an engine.

It runs on the thread that makes patches, one face after the other. So only as many sessions get it as that thread has time for, and
it ends for all where it fails or becomes too slow: the faces are then as without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars.face_restorer import FaceRestorer
from musetalk_agent.errors import AgentError
from musetalk_agent.media_types import Pixels
from musetalk_agent.weights import Manifest, ModelStore

log = logging.getLogger(__name__)

STRENGTH = 0.8
"""Of the restored face; as `musetalk-agent restore` has it."""
SHARE = 0.5
"""Of the thread's time that it may take; the rest is for patches, and for frames that come together."""
TOO_SLOW = 2.0
"""It ends when faces take so many times what they took at first, on the average of the last `AVERAGED`."""
AVERAGED = 50
LEAST_FPS = 15
"""Of a session."""


class LiveRestoration:
    """Any thread opens and closes sessions; one at a time restores.

    Args:
        restorer: the network; it is measured here. None for none.
        note: why there is none.
        clock: seconds.

    Attributes:
        note: why nothing is restored, or nothing more; None while faces are.
    """

    def __init__(
        self, restorer: FaceRestorer | None, note: str | None = None, clock: Callable[[], float] = perf_counter
    ) -> None:
        self._restorer, self._clock, self._lock = restorer, clock, Lock()
        self._seconds = self._usual = 0.0 if restorer is None else restorer.seconds()
        self._used = 0.0
        self.note = note
        if LEAST_FPS * self._seconds > SHARE:
            self.note = f"a face takes {1000 * self._seconds:.0f} ms, which is too long for a room"
        if self.note is not None:
            log.warning("faces are not restored", extra={"reason": self.note})

    def take(self, fps: int) -> bool:
        """Whether one more session of `fps` frames a second has time; if so, `give_back` it once."""
        with self._lock:
            if self.note is not None or self._used + fps * self._seconds > SHARE:
                return False
            self._used += fps * self._seconds
            return True

    def give_back(self, fps: int) -> None:
        """A session that took has ended."""
        with self._lock:
            self._used = max(0.0, self._used - fps * self._seconds)

    def restored(self, face: Pixels, mesh: NDArray[np.floating]) -> Pixels:
        """The face window, uint8 BGR, restored at `mesh`; as it is after an end. Never raises."""
        if self._restorer is None or self.note is not None:
            return face
        begun = self._clock()
        try:
            made = self._restorer.restored(face, mesh, STRENGTH)
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors have no public base; it is logged, and the frame is shown without it
            self._end(f"the network failed: {error}")
            return face
        self._usual += (self._clock() - begun - self._usual) / AVERAGED
        if self._usual > TOO_SLOW * self._seconds:
            self._end(f"a face takes {1000 * self._usual:.0f} ms and took {1000 * self._seconds:.0f} at first")
        return made

    def stats(self) -> dict[str, object]:
        """For `/debug`."""
        return {"ms": round(1000 * self._usual, 2), "busy": round(self._used, 2), "note": self.note}

    def _end(self, reason: str) -> None:
        self.note = reason
        log.warning("faces are no longer restored", extra={"reason": reason})


def live_restoration(models_dir: Path) -> LiveRestoration:
    """With the weights of a models folder. Where it cannot be, its note says why: a room does without it."""
    try:
        return LiveRestoration(FaceRestorer(ModelStore(models_dir, Manifest.load())))
    except AgentError as error:
        return LiveRestoration(None, error.detail)
    except Exception as error:  # noqa: BLE001 - the same; the note has it, and the engine starts without
        return LiveRestoration(None, f"the network does not run: {error}")
