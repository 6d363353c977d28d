"""The mouth that the articulation table asks for where the phonemes are known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.features.phonemes import CLOSURE, JAW, CueTrack
from musetalk_agent.media_types import Cue

#: One symbol of every class, in their order.
SYMBOLS = ("_", *"pmfθtnlsʃkɹwhjiɪɛæɑʌɔouə")


def table_jaw(spans: NDArray[np.int32], count: int) -> NDArray[np.float32]:
    """Opening by the articulation table at the moments 0, 20, 40 … ms, lips shut for /p b m/."""
    track = CueTrack()
    track.add([Cue(SYMBOLS[kind], int(start), int(end)) for kind, start, end in spans])
    made = np.array([track.articulation(320 * m - 160, 320 * m + 160) for m in range(count)])
    out: NDArray[np.float32] = made[:, JAW] * (1 - made[:, CLOSURE])
    return out
